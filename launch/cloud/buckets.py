"""Buckets of Google Cloud Storage: addresses, a client, and errors told in one line."""

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
    """Bucket and prefix of gs://bucket/prefix; the prefix ends with a slash unless it is empty.

    Raises:
        UsageError: if it is no such address.
    """
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise UsageError(f"{address!r} is not an address in a bucket: gs://BUCKET/FOLDER")
    prefix = (match[2] or "").strip("/")
    return match[1], f"{prefix}/" if prefix else ""


def make_client() -> storage.Client:
    """A client with the credentials of this machine; of the service that STORAGE_EMULATOR_HOST
    names, and without credentials, if that is set.

    Raises:
        UsageError: when there are no credentials.
    """
    if os.environ.get("STORAGE_EMULATOR_HOST"):
        return storage.Client("local", google.auth.credentials.AnonymousCredentials())
    # It would warn of what the exception tells, and so make two lines of one.
    logging.getLogger("google.auth").setLevel(logging.ERROR)
    try:
        return storage.Client()
    # OSError: it knows the credentials, and no project; no call needs one.
    except OSError:
        return storage.Client("none")
    except google.auth.exceptions.DefaultCredentialsError as error:
        raise UsageError(f"no Google Cloud credentials on this machine; get some: {LOG_IN}") from (
            error
        )


@contextlib.contextmanager
def one_line(place: str) -> Iterator[None]:
    """Turns what a bucket answers into a `UsageError`.

    Args:
        place: what is worked on, for the message.
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
            f"{place}: checksums differ on both sides; start the same command again"
        ) from error
    except google.auth.exceptions.RefreshError as error:
        raise UsageError(f"{place}: the credentials are no longer valid: {LOG_IN}") from error
    except (
        exceptions.GoogleAPIError,
        google.auth.exceptions.TransportError,
        requests.RequestException,
    ) as error:
        raise UsageError(
            f"{place}: {error}; start the same command again: what was done stays done"
        ) from error
