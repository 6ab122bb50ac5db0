"""Whether this machine is one of Google Cloud's; without TensorFlow, for before its import."""

import os

_HOST = "metadata.google.internal"
_PRODUCT = "/sys/class/dmi/id/product_name"


def metadata_host() -> str | None:
    """Address of the metadata server; None where this is no machine of Google Cloud.

    GCE_METADATA_HOST names another one, as for Google's own libraries; NO_GCE_CHECK=true says, as
    for TensorFlow, that there is none.
    """
    if host := os.environ.get("GCE_METADATA_HOST"):
        return host
    if os.environ.get("NO_GCE_CHECK", "").lower() == "true":
        return None
    try:
        with open(_PRODUCT, encoding="ascii", errors="replace") as file:
            return _HOST if "Google" in file.read() else None
    except OSError:  # not Linux, or a container that hides it
        return None


def skip_metadata_queries() -> None:
    """Keep libtpu, where it is installed, from looking for a metadata server that is not there.

    It would do so while TensorFlow is imported, for minutes. A user's own setting stays.
    """
    if metadata_host() is None:
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
