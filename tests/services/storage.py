"""A Google Cloud Storage in memory, from gcp-storage-emulator, for Google's own client library."""

import contextlib
from collections.abc import Iterator

from gcp_storage_emulator.server import Server, create_server

BUCKET = "bucket"


@contextlib.contextmanager
def emulator() -> Iterator[tuple[Server, str]]:
    """Runs one, with an empty bucket, in threads of this process.

    Yields:
        the server, and its address for STORAGE_EMULATOR_HOST.
    """
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    with server:
        # The thread says that it runs when the socket listens.
        port = server._api._httpd.server_address[1]
        yield server, f"http://127.0.0.1:{port}"
        server.wipe()
