"""A TPU's folder in the bucket, and a stand-in for it that only prints the calls.

    spec.json    the slice; `create` writes it first, `delete` removes it last
    code/        archives of commits
    job.json     what to run; the machine polls for it
    state.json   what the machine reports about the job
    logs/        the job's output, in parts that sort by time
    model/       checkpoints, metrics, TensorBoard

`delete` leaves logs/ and model/ in place.
"""

from google.api_core import exceptions
from google.cloud.storage.retry import DEFAULT_RETRY

from launch.cloud import buckets

SPEC, JOB, STATE, CODE, LOGS = "spec.json", "job.json", "state.json", "code/", "logs/"
TIMEOUT_SECONDS = 60.0  # for one request


class Store:
    """The objects below a gs:// address.

    Raises:
        UsageError: if there are no credentials; from each method, if the storage refuses.
    """

    def __init__(self, folder: str):
        self.folder = folder
        bucket, self._prefix = buckets.split(folder)
        self._bucket = buckets.make_client().bucket(bucket)

    def location(self) -> str:
        """Return the bucket's region, such as US-CENTRAL1; "" if the account may not ask.

        The role Storage Object Admin, which is enough for everything else, does not include the
        right to read the bucket's own metadata.
        """
        with buckets.one_line(f"gs://{self._bucket.name}"):
            try:
                self._bucket.reload(timeout=TIMEOUT_SECONDS)
            except exceptions.Forbidden:
                print(f"warning: no permission to look up the region of gs://{self._bucket.name}")
                return ""
        return self._bucket.location or ""

    def read(self, name: str) -> bytes | None:
        """Return the content of an object; None if it does not exist."""
        return self.read_version(name)[0]

    def read_version(self, name: str) -> tuple[bytes | None, str]:
        """Return an object's content and generation number; None and "" if it does not exist."""
        with buckets.one_line(self.folder):
            blob = self._bucket.get_blob(self._prefix + name, timeout=TIMEOUT_SECONDS)
            if blob is None:
                return None, ""
            version = str(blob.generation)  # before the download, whose headers may lack it
            return blob.download_as_bytes(timeout=TIMEOUT_SECONDS), version

    def write(self, name: str, content: bytes) -> None:
        """Write an object, whole or not at all."""
        blob = self._bucket.blob(self._prefix + name)
        with buckets.one_line(self.folder):
            blob.upload_from_string(
                content, checksum="crc32c", retry=DEFAULT_RETRY, timeout=TIMEOUT_SECONDS
            )

    def names(self, prefix: str, after: str = "") -> list[str]:
        """Return the sorted names that begin with a prefix and come after `after`."""
        with buckets.one_line(self.folder):
            blobs = self._bucket.list_blobs(
                prefix=self._prefix + prefix,
                start_offset=self._prefix + after if after else None,
                timeout=TIMEOUT_SECONDS,
            )
            found = [blob.name[len(self._prefix) :] for blob in blobs]
        return [name for name in sorted(found) if name > after]

    def delete(self, name: str) -> None:
        """Delete an object, if it exists."""
        with buckets.one_line(self.folder):
            self._bucket.delete_blobs(
                [self._prefix + name], on_error=lambda _: None, timeout=TIMEOUT_SECONDS
            )


class DryStore:
    """Prints the calls instead of making them; holds nothing but the given spec."""

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
