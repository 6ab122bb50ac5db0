"""A Google Cloud Storage of our own, in memory, with faults: for TensorFlow's own gs:// client.

    with GcsService(faults={"503": 0.1}) as service:
        subprocess.run(command, env={**os.environ, **service.environ})
        service.objects["bucket/name"]

TensorFlow knows no other address than Google's, but goes through a proxy. So this is a proxy that
answers itself: it ends the TLS connections, with certificates of its own authority, and speaks as
much of the JSON API as TensorFlow's client uses.
"""

import base64
import collections
import hashlib
import http.server
import json
import os
import random
import re
import socket
import socketserver
import ssl
import tempfile
import threading
import time
import urllib.parse
from dataclasses import dataclass, field

import trustme

FAULTS = ("503", "429", "reset", "cut", "lost", "truncate", "slow")
"""Answers "try again"; "too many requests"; no answer; half of an upload taken, and no answer; the
work done, and no answer; an answer of which only one half comes; an answer in small pieces."""

_HOSTS = ("www.googleapis.com", "storage.googleapis.com")
_PIECES, _PIECE_SECONDS = 8, 0.02  # of a slow answer


@dataclass
class Log:
    """What happened.

    Attributes:
        requests: their number.
        faults: kind -> number.
        uploaded: object -> bytes that came, however often.
        downloaded: bytes of objects that went out.
    """

    requests: int = 0
    faults: dict[str, int] = field(default_factory=collections.Counter)
    uploaded: dict[str, int] = field(default_factory=collections.Counter)
    downloaded: int = 0


class GcsService:
    """Runs in threads of this process while it is open.

    Args:
        faults: kind of `FAULTS` -> share of the requests it happens to.
        seed: decides which; requests of several threads come in any order, though.

    Attributes:
        objects: "bucket/name" -> content; to be looked at and to be changed.
        stored: "bucket/name" -> bytes, of every object that ever was, at its largest.
        environ: variables for a process that is to use it.
        log: `Log`.
    """

    def __init__(self, faults: dict[str, float] | None = None, seed: int = 1):
        assert set(faults or {}) <= set(FAULTS)
        self.objects: dict[str, bytes] = {}
        self.stored: dict[str, int] = {}
        self.log = Log()
        self.environ: dict[str, str] = {}
        self._faults = faults or {}
        self._dice = random.Random(seed)
        self._lock = threading.Lock()
        self._generations: dict[str, int] = {}
        self._uploads: dict[str, tuple[str, bytearray]] = {}

    def __enter__(self) -> "GcsService":
        authority = trustme.CA()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*_HOSTS).configure_cert(self._context)
        descriptor, self._authority_path = tempfile.mkstemp(suffix=".pem")
        os.close(descriptor)
        authority.cert_pem.write_to_path(self._authority_path)

        service = self

        class Proxy(socketserver.StreamRequestHandler):
            def handle(self):
                service._serve(self)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Proxy)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.environ = {
            "https_proxy": f"http://127.0.0.1:{self._server.server_address[1]}",
            "CURL_CA_BUNDLE": self._authority_path,
            "NO_GCE_CHECK": "true",
            "GCS_RETRY_CONFIG_INIT_DELAY_TIME_US": "1000",
        }
        return self

    def __exit__(self, *error) -> None:
        self._server.shutdown()
        self._server.server_close()
        os.unlink(self._authority_path)

    def put(self, name: str, content: bytes) -> None:
        """Stores an object."""
        with self._lock:
            self.objects[name] = content
            self.stored[name] = max(len(content), self.stored.get(name, 0))
            self._generations[name] = self._generations.get(name, 0) + 1

    def _serve(self, connection: socketserver.StreamRequestHandler) -> None:
        if not connection.rfile.readline().startswith(b"CONNECT "):
            return
        while connection.rfile.readline().strip():
            pass
        connection.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        connection.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        try:
            with self._context.wrap_socket(connection.connection, server_side=True) as secure:
                _Handler(self, secure)
        except OSError:  # the client has gone, or a fault has closed it
            pass

    def draw_fault(self) -> str | None:
        """What is to happen to the next request."""
        with self._lock:
            self.log.requests += 1
            number = self._dice.random()
            for kind, share in self._faults.items():
                number -= share
                if number < 0:
                    self.log.faults[kind] += 1
                    return kind
        return None

    def describe(self, name: str) -> dict:
        """The metadata of an object, as the API gives it."""
        bucket, _, path = name.partition("/")
        content = self.objects[name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": path,
            "size": str(len(content)),
            "generation": str(self._generations[name]),
            "updated": "2026-01-01T00:00:00.000Z",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
        }

    def listing(self, bucket: str, query: dict[str, str]) -> dict:
        """A page of the names that begin with a prefix; those below a delimiter as one."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        entries: dict[str, dict | None] = {}
        for name in sorted(self.objects):
            path = name.removeprefix(f"{bucket}/")
            if path == name or not path.startswith(prefix):
                continue
            rest = path[len(prefix) :]
            if delimiter and delimiter in rest:
                entries[prefix + rest.split(delimiter)[0] + delimiter] = None
            else:
                entries[path] = self.describe(name)
        names = [name for name in entries if name > query.get("pageToken", "")]
        page = names[: int(query.get("maxResults", 1000))]
        answer: dict = {"items": [entries[name] for name in page if entries[name]]}
        answer["prefixes"] = [name for name in page if entries[name] is None]
        if len(page) < len(names):
            answer["nextPageToken"] = page[-1]
        return answer

    def start_upload(self, name: str) -> str:
        """Opens a resumable upload; returns its number."""
        with self._lock:
            number = str(len(self._uploads))
            self._uploads[number] = (name, bytearray())
        return number

    def upload(self, number: str, content: bytes, content_range: str) -> tuple[int, dict]:
        """Takes a part of an upload, or the question how much has come.

        Returns:
            200 and the object, or 308 and the headers that say what has come.
        """
        name, received = self._uploads[number]
        match = re.fullmatch(r"bytes (?:\*|(\d+)-\d+)/(\d+|\*)", content_range)
        start, total = (match[1], match[2]) if match else ("0", str(len(content)))
        if start is not None and content:
            with self._lock:
                del received[int(start) :]
                received += content
                self.log.uploaded[name] += len(content)
        if total != "*" and len(received) >= int(total):
            self.put(name, bytes(received))
            return 200, self.describe(name)
        return 308, {"Range": f"bytes=0-{len(received) - 1}"} if received else {}


class _Handler(http.server.BaseHTTPRequestHandler):
    """Requests of one connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one piece

    def __init__(self, service: GcsService, connection: ssl.SSLSocket):
        self._service = service
        super().__init__(connection, ("127.0.0.1", 0), None)  # type: ignore[arg-type]

    def handle_expect_100(self) -> bool:
        """The client waits for it before it sends a body."""
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def log_message(self, *arguments) -> None:
        pass

    def do_GET(self) -> None:
        content, fault = self._body(), self._service.draw_fault()
        if fault in ("503", "429"):
            self._answer(int(fault), {"error": {"code": int(fault)}})
        elif fault == "reset":
            self.close_connection = True
        elif fault == "cut":
            if self.path.startswith("/upload/session/"):
                self._work(content[: len(content) // 2])
            self.close_connection = True
        else:
            code, answer, headers = self._work(content)
            if fault == "lost":
                self.close_connection = True
            else:
                self._answer(code, answer, headers, fault)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def _body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, code, answer, headers=None, fault=None) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "truncate" and body:
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "slow":
            step = max(1, -(-len(body) // _PIECES))
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                self.wfile.flush()
                time.sleep(_PIECE_SECONDS)
        else:
            self.wfile.write(body)

    def _work(self, content: bytes) -> tuple[int, dict | bytes, dict[str, str]]:
        """Does what is asked; the status, the answer and more headers."""
        service = self._service
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        parts = [urllib.parse.unquote(part) for part in url.path.strip("/").split("/")]
        missing = 404, {"error": {"code": 404}}, {}
        match parts:
            case ["upload", "storage", _, "b", bucket, "o"]:
                name = f"{bucket}/{query['name']}"
                if query.get("ifGenerationMatch") == "0" and name in service.objects:
                    return 412, {"error": {"code": 412}}, {}
                number = service.start_upload(name)
                if query["uploadType"] == "media":
                    size = len(content)
                    return *service.upload(number, content, f"bytes 0-{size}/{size}"), {}
                return 200, b"", {"Location": f"https://{_HOSTS[0]}/upload/session/{number}"}
            case ["upload", "session", number]:
                code, answer = service.upload(
                    number, content, self.headers.get("Content-Range", "")
                )
                return (200, answer, {}) if code == 200 else (308, b"", answer)
            case ["storage", _, "b", bucket, "o", path, "rewriteTo", "b", other, "o", target]:
                name = f"{bucket}/{path}"
                if name not in service.objects:
                    return missing
                service.put(f"{other}/{target}", service.objects[name])
                resource = service.describe(f"{other}/{target}")
                return 200, {"done": True, "resource": resource}, {}
            case ["storage", _, "b", bucket, "o", path]:
                name = f"{bucket}/{path}"
                if name not in service.objects:
                    return missing
                if self.command == "DELETE":
                    del service.objects[name]
                    return 204, b"", {}
                return 200, service.describe(name), {}
            case ["storage", _, "b", bucket, "o"]:
                return 200, service.listing(bucket, query), {}
            case ["storage", _, "b", bucket]:
                return 200, {"name": bucket, "location": "NOWHERE"}, {}
            case [bucket, *path] if f"{bucket}/{'/'.join(path)}" in service.objects:
                return self._read(service.objects[f"{bucket}/{'/'.join(path)}"])
        return missing

    def _read(self, content: bytes) -> tuple[int, bytes, dict[str, str]]:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not match:
            self._service.log.downloaded += len(content)
            return 200, content, {}
        start = int(match[1])
        part = content[start : int(match[2]) + 1 if match[2] else None]
        if not part:
            return 416, b"", {}
        self._service.log.downloaded += len(part)
        end = start + len(part) - 1
        return 206, part, {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
