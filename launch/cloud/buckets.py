"""Google Cloud Storage buckets: addresses, a client, and one-line errors."""

import contextlib
import logging
import os
import re
from collections.abc import Iterator

import google.auth.credentials
import google.auth.exceptions
import google.cloud.storage as storage
import requests
from google.api_core import exceptions
from google.cloud.storage.exceptions import DataCorruption

from common.errors import UsageError

_ADDRESS = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/(.*))?")
LOG_IN = "gcloud auth application-default login"


def split(address: str) -> tuple[str, str]:
    """Return the bucket and the prefix of gs://bucket/prefix.

    The prefix ends with a slash unless it is empty.

    Raises:
        UsageError: if the address has another form.
    """
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise UsageError(f"{address!r} is not a bucket address; write gs://BUCKET/FOLDER")
    prefix = (match[2] or "").strip("/")
    return match[1], f"{prefix}/" if prefix else ""


def make_client() -> storage.Client:
    """Return a client with this machine's credentials.

    If STORAGE_EMULATOR_HOST is set, the client talks to that service, without credentials.

    Raises:
        UsageError: if there are no credentials.
    """
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client("local", google.auth.credentials.AnonymousCredentials())
    # Otherwise it logs a warning that repeats the exception's message.
    logging.getLogger("google.auth").setLevel(logging.ERROR)
    try:
        return storage.Client()
    # OSError: there are credentials but no project, which none of our calls needs.
    except OSError:
        return storage.Client("none")
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise UsageError(f"no Google Cloud credentials on this machine; run {LOG_IN}") from error


@contextlib.contextmanager
def one_line(place: str) -> Iterator[None]:
    """Turn the storage's errors into a `UsageError`.

    Args:
        place: the address in use, for the message.
    """
    try:
        yield
    except exceptions.NotFound as error:
        raise UsageError(f"{place}: not found; check the name, or create the bucket") from error
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise UsageError(
            f"{place}: {error.message}; the account needs the role Storage Object Admin there"
        ) from error
    except DataCorruption as error:
        raise UsageError(
            f"{place}: the checksums of the two sides differ; run the same command again"
        ) from error
    except google.auth.exceptions.RefreshError as error:
        raise UsageError(f"{place}: the credentials have expired; run {LOG_IN}") from error
    except (
        exceptions.GoogleAPIError,
        google.auth.exceptions.TransportError,
        requests.RequestException,
    ) as error:
        raise UsageError(
            f"{place}: {error}; run the same command again, and it continues where it stopped"
        ) from error
