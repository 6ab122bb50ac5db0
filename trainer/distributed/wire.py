"""JSON objects, one per line, over TCP: how workers talk to each other outside TensorFlow.

No pickle: whatever a stranger sends to a port becomes numbers and text, or ends the connection.
"""

import errno
import json
import socket
from collections.abc import Iterable
from multiprocessing.connection import wait
from typing import Any

from common import status
from common.errors import UsageError

MOST_BYTES = 1 << 20  # in one message; the addresses of a thousand workers take a tenth

Message = dict[str, Any]


class Channel:
    """A connection that never blocks. It owns the socket.

    Attributes:
        ended: the connection is closed or broken, or something other than messages came.
    """

    def __init__(self, connection: socket.socket):
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._received = b""
        self._unsent = b""
        self.ended = False

    def fileno(self) -> int:
        """Return the descriptor, for `wait_for`."""
        return self._socket.fileno()

    def read(self) -> list[Message]:
        """Return the messages since the last call, oldest first. Sets `ended` after the last."""
        self._push()
        try:
            while block := self._socket.recv(1 << 16):
                self._received += block
                if len(self._received) > MOST_BYTES:
                    break
            self.ended = True
        except BlockingIOError:
            pass
        except OSError:  # reset, timed out, host unreachable
            self.ended = True
        *lines, self._received = self._received.split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            messages = [None]
        if not all(isinstance(message, dict) for message in messages):
            self.ended = True
            return []
        return messages

    def send(self, message: Message) -> None:
        """Send as much as the other side takes now; `read` and `send` push the rest."""
        self._unsent += json.dumps(message).encode() + b"\n"
        self._push()

    def _push(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            if len(self._unsent) > MOST_BYTES:  # it has not read for long
                self.ended = True
        except OSError:
            # What the other side sent before it ended can still be read.
            self._unsent = b""

    def close(self) -> None:
        """Close the connection; what was sent still arrives."""
        self._socket.close()


def wait_for(things: Iterable[socket.socket | Channel], seconds: float) -> None:
    """Return when one of them can be read or accepted from, at the latest after `seconds`."""
    wait([thing.fileno() for thing in things], seconds)


def listen(address: str) -> socket.socket:
    """Listen on the port of `address` (host:port) on all interfaces, with IPv6 where there is any.

    Raises:
        UsageError: if the port is taken or may not be opened.
    """
    port = int(address.rpartition(":")[2])
    try:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:  # IPv6 is compiled in, but switched off
                raise
        return socket.create_server(("", port))
    except OSError as error:
        reason = f"cannot be opened ({error.strerror})"
        if error.errno == errno.EADDRINUSE:
            reason = "is in use"
            status.report(port_in_use=port)
        raise UsageError(
            f"port {port} of this machine {reason}, and this worker ({address}) needs it: end the "
            "process that holds the port, or give the worker another one"
        ) from error


def dial(address: str, seconds: float) -> Channel:
    """Connect to host:port or [IPv6]:port.

    Raises:
        OSError: if that fails or takes longer than `seconds`.
    """
    host, _, port = address.rpartition(":")
    return Channel(socket.create_connection((host.strip("[]"), int(port)), timeout=seconds))
