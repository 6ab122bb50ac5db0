"""The folder of a name in a bucket, and the same one only told of.

    spec.json    what was asked for; `create` writes it first, `delete` removes it last
    code/        archives of commits
    job.json     what to run; the machine looks for it
    state.json   what the machine says of it
    logs/        what the job printed, in parts that sort by time
    model/       checkpoints, metrics, TensorBoard

The last two are what the money was spent on: `delete` leaves them.
"""

from google.api_core import exceptions
from google.cloud.storage.retry import DEFAULT_RETRY

from launch.cloud import buckets

SPEC, JOB, STATE, CODE, LOGS = "spec.json", "job.json", "state.json", "code/", "logs/"
TIMEOUT_SECONDS = 60.0  # for one request


class Store:
    """The objects below a gs:// address.

    Raises:
        UsageError: without credentials; from the methods, for what the storage refuses.
    """

    def __init__(self, folder: str):
        self.folder = folder
        bucket, self._prefix = buckets.split(folder)
        self._bucket = buckets.make_client().bucket(bucket)

    def location(self) -> str:
        """Region of the bucket, such as US-CENTRAL1; "" if the account may not ask.

        The role Storage Object Admin, which is enough for all else, does not include the right to
        look at the bucket itself.
        """
        with buckets.one_line(f"gs://{self._bucket.name}"):
            try:
                self._bucket.reload(timeout=TIMEOUT_SECONDS)
            except exceptions.Forbidden:
                print(f"warning: no right to see in which region gs://{self._bucket.name} is")
                return ""
        return self._bucket.location or ""

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is none."""
        return self.read_version(name)[0]

    def read_version(self, name: str) -> tuple[bytes | None, str]:
        """The content of an object and the number of this version of it."""
        with buckets.one_line(self.folder):
            blob = self._bucket.get_blob(self._prefix + name, timeout=TIMEOUT_SECONDS)
            if blob is None:
                return None, ""
            version = str(blob.generation)  # before the download, whose headers need not tell it
            return blob.download_as_bytes(timeout=TIMEOUT_SECONDS), version

    def write(self, name: str, content: bytes) -> None:
        """Writes an object, whole or not at all."""
        blob = self._bucket.blob(self._prefix + name)
        with buckets.one_line(self.folder):
            blob.upload_from_string(
                content, checksum="crc32c", retry=DEFAULT_RETRY, timeout=TIMEOUT_SECONDS
            )

    def names(self, prefix: str, after: str = "") -> list[str]:
        """Names that begin with a prefix, sorted; from `after` on, if given, without itself."""
        with buckets.one_line(self.folder):
            blobs = self._bucket.list_blobs(
                prefix=self._prefix + prefix,
                start_offset=self._prefix + after if after else None,
                timeout=TIMEOUT_SECONDS,
            )
            found = [blob.name[len(self._prefix) :] for blob in blobs]
        return [name for name in sorted(found) if name > after]

    def delete(self, name: str) -> None:
        """Removes an object; well if there is none."""
        with buckets.one_line(self.folder):
            self._bucket.delete_blobs(
                [self._prefix + name], on_error=lambda _: None, timeout=TIMEOUT_SECONDS
            )


class DryStore:
    """Tells of what is read and written, and is empty but for the spec that it is given."""

    def __init__(self, folder: str, spec: bytes | None = None):
        self.folder = folder
        self._spec = spec

    def location(self) -> str:
        print(f"  look up gs://{buckets.split(self.folder)[0]}")
        return ""

    def read(self, name: str) -> bytes | None:
        return self.read_version(name)[0]

    def read_version(self, name: str) -> tuple[bytes | None, str]:
        print(f"  read {self.folder}/{name}")
        return (self._spec, "1") if name == SPEC else (None, "")

    def write(self, name: str, content: bytes) -> None:
        print(f"  write {self.folder}/{name}, {len(content):,} bytes")

    def names(self, prefix: str, after: str = "") -> list[str]:
        print(f"  list {self.folder}/{prefix}")
        return []

    def delete(self, name: str) -> None:
        print(f"  delete {self.folder}/{name}")
