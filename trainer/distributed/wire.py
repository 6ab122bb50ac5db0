"""JSON objects, one a line, over TCP: what workers say to each other beside TensorFlow.

No pickle: whatever a stranger sends to a port, it becomes numbers and text, or an error.
"""

import contextlib
import errno
import json
import socket
from collections.abc import Iterable
from multiprocessing.connection import wait
from typing import Any

from common.errors import UsageError

MOST_BYTES = 1 << 20  # of a line; a cluster of a thousand workers fits ten times

Message = dict[str, Any]


class BrokenLineError(ValueError):
    """What came is not one JSON object a line."""


class Lines:
    """A connection that never blocks.

    Args:
        connection: a connected socket; this object owns it from now on.

    Attributes:
        ended: the other side has closed it, or the network did.
    """

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        # Small messages at once; and a dead host shows even where nobody sends.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._received = b""
        self._unsent = b""
        self.ended = False

    def fileno(self) -> int:
        """For `selectors`."""
        return self._socket.fileno()

    def read(self) -> list[Message]:
        """What has come since the last call, oldest first; sets `ended` at the end of it.

        Raises:
            BrokenLineError: if it is no JSON object, or longer than `MOST_BYTES`.
        """
        try:
            while block := self._socket.recv(1 << 16):
                self._received += block
                if len(self._received) > MOST_BYTES:
                    raise BrokenLineError("a line is too long")
            self.ended = True
        except BlockingIOError:
            pass
        except OSError:  # reset, timed out, host unreachable
            self.ended = True
        *lines, self._received = self._received.split(b"\n")
        return [_parse(line) for line in lines]

    def send(self, message: Message) -> None:
        """Sends, as far as the other side takes it; the rest goes with the next call or `flush`."""
        self._unsent += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Sends what is left over. A side that reads nothing for long gets no more."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            if len(self._unsent) > MOST_BYTES:
                self.ended = True
        except OSError:
            # What it said before it went can still be read, and `read` sets `ended` after that.
            self._unsent = b""

    def close(self) -> None:
        """Closes it; what was sent still arrives."""
        self._socket.close()


def wait_for(things: Iterable[socket.socket | Lines], seconds: float) -> None:
    """Returns when one of them can be read or accepted from, or after so many seconds."""
    wait([thing.fileno() for thing in things], seconds)


def listen(port: int) -> socket.socket:
    """A listener on all addresses of this machine, IPv6 too where there is such a thing."""
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:  # IPv6 is compiled in, but switched off
            raise
    return socket.create_server(("", port))


def port_error(address: str, error: OSError) -> UsageError:
    """What to tell where this process cannot listen on the port of `address`."""
    port = address.rpartition(":")[2]
    reason = "is in use" if error.errno == errno.EADDRINUSE else f"fails ({error.strerror})"
    return UsageError(
        f"port {port} of this machine {reason}, and this worker ({address}) needs it: end what "
        "holds it, or give the worker another port"
    )


def dial(address: str, seconds: float) -> Lines:
    """Connects to host:port or [IPv6]:port.

    Raises:
        OSError: if that fails, or takes longer than `seconds`.
    """
    host, _, port = address.rpartition(":")
    return Lines(socket.create_connection((host.strip("[]"), int(port)), timeout=seconds))


def accept(listener: socket.socket) -> Lines | None:
    """The next connection; None if whoever knocked has gone already."""
    with contextlib.suppress(OSError):
        return Lines(listener.accept()[0])
    return None


def _parse(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise BrokenLineError("not JSON") from error
    if not isinstance(message, dict):
        raise BrokenLineError("not a JSON object")
    return message
