"""Copy a directory to a Google Cloud Storage bucket, or back.

    python -m launch.storage push data/mine gs://bucket/data/mine
    python -m launch.storage pull gs://bucket/models/mine models/mine

Files with the same size and CRC32C on both sides are skipped, so the same command continues a copy
that was cut short. dataset.json and config.json are copied last: a directory without them is no
dataset and no model. Nothing is deleted, except one of these two that is about to be replaced.
STORAGE_EMULATOR_HOST replaces Google's service by another one.

Exit codes: 0 done; 2 bad usage, or the storage refused.
"""

import base64
import concurrent.futures
import time
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

import google.cloud.storage as storage
import google_crc32c
from absl import flags
from google.cloud.storage.retry import DEFAULT_RETRY

from common import lock
from common.errors import UsageError, run_app
from common.files import is_temporary, temporary_name
from launch.cloud import buckets

MARKERS = ("dataset.json", "config.json")
"""Files whose presence says that a directory is complete."""

_USAGE = "python -m launch.storage push DIR gs://BUCKET/FOLDER, or pull gs://BUCKET/FOLDER DIR"
_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60.0  # for one request
_REPORT_SECONDS = 5.0

_PARALLEL = flags.DEFINE_integer("parallel", 8, "Files to copy at the same time.", 1, 64)


def crc32c(path: Path) -> str:
    """Return a file's CRC32C as Cloud Storage writes it: base64 of the big-endian number."""
    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            checksum.update(block)
    return base64.b64encode(checksum.digest()).decode()


def is_same(path: Path, blob: storage.Blob | None) -> bool:
    """Return whether a local file and an object have the same content."""
    return (
        blob is not None
        and path.is_file()
        and path.stat().st_size == blob.size
        and crc32c(path) == blob.crc32c
    )


def local_files(directory: Path) -> dict[str, Path]:
    """Return relative name, with slashes -> file, without temporary files."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {
        path.relative_to(directory).as_posix(): path
        for path in sorted(files)
        if not is_temporary(path.name) and path.name != lock.FILE
    }


def remote_files(client: storage.Client, bucket: str, prefix: str) -> dict[str, storage.Blob]:
    """Return name below the prefix -> object.

    Raises:
        UsageError: if a name would lead out of a local directory.
    """
    blobs = {}
    for blob in client.list_blobs(bucket, prefix=prefix, timeout=_TIMEOUT_SECONDS):
        name = blob.name[len(prefix) :]
        if not name or name.endswith("/"):  # a folder made by the web console
            continue
        if is_temporary(PurePosixPath(name).name) or PurePosixPath(name).name == lock.FILE:
            continue
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise UsageError(f"gs://{bucket}/{blob.name} has no place in a directory; rename it")
        blobs[name] = blob
    return blobs


def _is_marker(name: str) -> bool:
    return PurePosixPath(name).name in MARKERS


def _copy_all(
    names: Iterable[str], copy: Callable[[str], int], parallel: int, verb: str
) -> tuple[int, int]:
    """Call `copy`, which returns bytes or -1 for a file that it skipped, for all names.

    Returns:
        The number of copied files, and their bytes.
    """
    names = list(names)
    done = copied = total = 0
    reported = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(copy, name) for name in names]
        try:
            for future in concurrent.futures.as_completed(futures):
                size = future.result()
                done += 1
                if size >= 0:
                    copied, total = copied + 1, total + size
                if time.monotonic() - reported > _REPORT_SECONDS:
                    reported = time.monotonic()
                    print(f"{verb}: {done:,} of {len(names):,} files, {total:,} bytes", flush=True)
        finally:  # after an error the files that are left need not be copied
            pool.shutdown(wait=False, cancel_futures=True)
    return copied, total


def _in_order(
    names: Iterable[str],
    copy: Callable[[str], int],
    unmark: Callable[[str], None],
    parallel: int,
    verb: str,
) -> tuple[int, int]:
    """Copy the markers last, after deleting those that will change."""
    names = list(names)
    markers = [name for name in names if _is_marker(name)]
    for name in markers:
        unmark(name)
    rest = [name for name in names if not _is_marker(name)]
    copied, total = _copy_all(rest, copy, parallel, verb)
    more, bytes_more = _copy_all(markers, copy, parallel, verb)
    return copied + more, total + bytes_more


def push(directory: Path, address: str, parallel: int = 8) -> tuple[int, int, int]:
    """Copy a directory into a bucket.

    Returns:
        The number of files, the number that had to be sent, and the bytes of those.

    Raises:
        UsageError: if there is nothing to send, or the storage refuses.
    """
    bucket_name, prefix = buckets.split(address)
    files = local_files(directory)
    if not files:
        raise UsageError(f"{directory}: no such directory, or no file in it")
    client = buckets.make_client()
    bucket = client.bucket(bucket_name)

    with buckets.one_line(address):
        there = remote_files(client, bucket_name, prefix)

        def send(name: str) -> int:
            if is_same(files[name], there.get(name)):
                return -1
            blob = bucket.blob(prefix + name)
            # The library checks the checksum. The size shows whether the file grew meanwhile.
            size = files[name].stat().st_size
            blob.upload_from_filename(
                str(files[name]), checksum="crc32c", retry=DEFAULT_RETRY, timeout=_TIMEOUT_SECONDS
            )
            if blob.size != size or blob.crc32c != crc32c(files[name]):
                raise UsageError(f"{files[name]} changed while it was sent; run it again")
            return size

        def unmark(name: str) -> None:
            if name in there and not is_same(files[name], there[name]):
                there.pop(name).delete(retry=DEFAULT_RETRY, timeout=_TIMEOUT_SECONDS)

        copied, total = _in_order(files, send, unmark, parallel, "sent")
    return len(files), copied, total


def pull(address: str, directory: Path, parallel: int = 8) -> tuple[int, int, int]:
    """Copy what is below an address into a directory.

    Returns:
        The number of files, the number that had to be fetched, and the bytes of those.

    Raises:
        UsageError: if there is nothing to fetch, or the storage refuses.
    """
    bucket_name, prefix = buckets.split(address)
    client = buckets.make_client()
    with buckets.one_line(address):
        there = remote_files(client, bucket_name, prefix)
        if not there:
            raise UsageError(f"{address}: there is nothing below it")

        def fetch(name: str) -> int:
            path = directory / name
            if is_same(path, there[name]):
                return -1
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(temporary_name(str(path)))
            try:
                there[name].download_to_filename(
                    str(temporary),
                    checksum="crc32c",
                    retry=DEFAULT_RETRY,
                    timeout=_TIMEOUT_SECONDS,
                )
                if not is_same(temporary, there[name]):
                    raise UsageError(f"{address}: {name} changed while it was read; run it again")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            return path.stat().st_size

        def unmark(name: str) -> None:
            if not is_same(directory / name, there[name]):
                (directory / name).unlink(missing_ok=True)

        copied, total = _in_order(there, fetch, unmark, parallel, "fetched")
    return len(there), copied, total


def _copy(arguments: list[str]) -> tuple[int, int, int]:
    try:
        match arguments:
            case ["push", directory, address]:
                return push(Path(directory), address, _PARALLEL.value)
            case ["pull", address, directory]:
                return pull(address, Path(directory), _PARALLEL.value)
    except OSError as error:  # of local files: no permission, no space
        raise UsageError(f"{error}; correct that and run the same command again") from error
    raise UsageError(f"usage: {_USAGE}")


def main(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    start = time.monotonic()
    files, copied, total = _copy(argv[1:])
    seconds = time.monotonic() - start
    print(
        f"{argv[1]}: {files:,} files, {copied:,} of them copied, {total:,} bytes, "
        f"{seconds:.1f} s; the others were up to date"
    )
    return 0


if __name__ == "__main__":
    run_app(main)
