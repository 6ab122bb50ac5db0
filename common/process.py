"""What the process of every command needs before TensorFlow or Keras is imported.

Packages with commands call `prepare` when they are imported, so it comes first.
"""

import gc
import os
import sys

from common.console import keep_descriptors
from common.notices import drop_notices

NO_GRPC_PROXY = "no_grpc_proxy"


def prepare() -> None:
    """Prepare for TensorFlow: descriptors, its notices, Keras' backend, the proxy of local gRPC.

    A command is imported without garbage collections, which would find nothing to collect among
    the objects of TensorFlow, and take half a second for that; `common.errors.run_app` puts them
    back to normal.
    """
    if sys.argv[:1] == ["-m"]:  # while Python looks for the module of a command
        gc.set_threshold(1_000_000)
    keep_descriptors()
    drop_notices()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no notices about TensorFlow itself
    _keep_proxies_from_local_grpc()


def _keep_proxies_from_local_grpc() -> None:
    """Let gRPC, such as Beam's between its processes, reach this machine without a proxy.

    It would send even that through http_proxy, and wait forever. `no_grpc_proxy`, which only gRPC
    reads, takes the place of `no_proxy`.
    """
    others = os.environ.get(NO_GRPC_PROXY, os.environ.get("no_proxy", ""))
    names = [name for name in others.split(",") if name]
    names += [name for name in ("localhost", "127.0.0.1") if name not in names]
    os.environ[NO_GRPC_PROXY] = ",".join(names)
