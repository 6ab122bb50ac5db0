"""All workers meet before TensorFlow starts, and find out whether they can train together.

TensorFlow's own start waits forever for a worker that does not come, and for about an hour where an
address is wrong. So the chief, worker 0, first listens on its own address, which TensorFlow needs
only later. Every other worker connects to it and says what it takes the run to be. When all are
there and agree, each tries the addresses of all others. If these lead where they should, all close
their ports, and TensorFlow takes them over. The connections to the chief stay open for
`trainer.distributed.heartbeat`; no port besides those of the cluster is needed.

The messages (see `trainer.distributed.wire`):

    worker to chief:     {"worker": 1, "addresses": [...], "facts": {...}, "token": "..."}
    chief to workers:    {"waits": "for whom", "lost": 1}, {"dial": 1, "tokens": [...]}, then
                         {"go": true}, or {"refused": "why"}, {"in_vain": "why", "lost": 1}
    worker to chief:     {"dialled": 1, "trouble": "" or "why"}
    anyone to anyone:    {"who": true}, answered by {"worker": 1, "token": "..."}
"""

import contextlib
import hashlib
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from common import status
from common.console import say
from common.errors import RetryError, UsageError
from trainer.distributed.wire import Channel, Message, dial, listen, wait_for

Connections = dict[int, Channel]
"""The index of a worker -> the connection to it."""

_POLL_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_TELL_SECONDS = 30.0  # between two messages that say whom a worker waits for
_DIAL_SECONDS = 10.0  # for an address to lead where it should
_STRANGER_SECONDS = 10.0  # for a connection to introduce itself
_LINGER_SECONDS = 10.0  # for late workers to hear why the chief refuses
_TAKEOVERS = 3


class MissingWorkersError(RetryError):
    """Some workers have not come in time. They may if all are started again.

    Attributes:
        lost: the index of the first of them.
    """

    def __init__(self, message: str, lost: int):
        super().__init__(message)
        self.lost = lost


def name_of(index: int, addresses: Sequence[str]) -> str:
    """Return what people call a worker: "worker 1 (host-b:2222)"."""
    return f"worker {index} ({addresses[index]})"


def code_facts() -> dict[str, str]:
    """Map each Python file that a worker may run to the first digits of its SHA-256."""
    root = Path(__file__).parents[2]
    files = sorted(
        file
        for package in ("common", "configs", "data_pipeline", "trainer")
        for file in root.glob(f"{package}/**/*.py")
        if not file.name.startswith(".")  # such as an editor's lock, a link to nowhere
    )
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        for file in files
    }


def difference(ours: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    """Say what is different in `theirs`, three things at most; "" if all is the same."""
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    shown = [f"{name} is {theirs.get(name)!r}, not {ours.get(name)!r}" for name in names[:3]]
    more = [f"and {len(names) - 3} more"] if len(names) > 3 else []
    return "; ".join(shown + more)


def meet(
    addresses: Sequence[str], index: int, facts: Mapping[str, object], seconds: float
) -> Connections:
    """Wait until all workers have called this, agree, and reach each other.

    Args:
        addresses: host:port of all workers; worker 0 is the chief.
        index: of this worker.
        facts: what has to be the same on all workers: name -> text, number, list or None.
        seconds: how long to wait for the others.

    Returns:
        On the chief, the connections to all others; on another worker, that to the chief.

    Raises:
        UsageError: if the workers do not agree or do not reach each other, with the same text on
            all that have come; or if this worker cannot have its port.
        MissingWorkersError: if not all have come in time.
    """
    # As the other side gets them: JSON makes lists of tuples, and None is as good as nothing.
    ours = json.loads(json.dumps({name: v for name, v in facts.items() if v is not None}))
    door, patience = _Door(list(addresses), index, ours), _Patience(seconds)
    try:
        return _Chief(door, patience).run() if index == 0 else _join(door, patience)
    except MissingWorkersError as error:
        status.report(lost_worker=error.lost, reason=f"has not come in {seconds:g} s")
        raise
    finally:
        door.close()


class _Patience:
    """Waits for a limited time, and says now and then for whom."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._began = self._told = time.monotonic()

    def check(self, missing: str, lost: int) -> None:
        """Raise `MissingWorkersError` if the time is over; `lost` is the first of the missing."""
        now = time.monotonic()
        if now > self._began + self._seconds:
            raise MissingWorkersError(
                f"waited {self._seconds:g} s in vain for {missing}: look at its log, start it, and "
                "check that all workers have the same list of addresses",
                lost,
            )
        if now > self._told + _TELL_SECONDS:
            self._told = now
            say(f"waiting for {missing}")


class _Door:
    """The port of this worker: accepts other workers and answers with this worker's identity."""

    def __init__(self, addresses: list[str], index: int, facts: Message):
        self.addresses, self.index, self.facts = addresses, index, facts
        self.token = secrets.token_hex(8)  # of this process: an address may lead to another one
        self._listener = listen(addresses[index])
        self._listener.setblocking(False)
        self._strangers: dict[Channel, float] = {}
        self._closed = threading.Event()

    def name(self, index: int) -> str:
        return name_of(index, self.addresses)

    def introduction(self) -> Message:
        return {
            "worker": self.index,
            "addresses": self.addresses,
            "facts": self.facts,
            "token": self.token,
        }

    def close(self) -> None:
        """Free the port, and try no more addresses."""
        self._closed.set()
        self._listener.close()
        for stranger in self._strangers:
            stranger.close()

    def wait(self, friends: Iterable[Channel] = ()) -> list[tuple[Channel, Message]]:
        """Wait a moment for anything to happen; return the introductions that have come."""
        wait_for([self._listener, *self._strangers, *friends], _POLL_SECONDS)
        now = time.monotonic()
        with contextlib.suppress(OSError):  # nobody is there, or no longer
            self._strangers[Channel(self._listener.accept()[0])] = now + _STRANGER_SECONDS
        introduced = []
        for stranger, until in list(self._strangers.items()):
            said = stranger.read()
            if said and "who" in said[0]:
                stranger.send({"worker": self.index, "token": self.token})
            elif said:
                introduced.append((stranger, said[0]))
                del self._strangers[stranger]
                continue
            if stranger.ended or now > until:
                stranger.close()
                del self._strangers[stranger]
        return introduced

    def pause(self) -> None:
        """Wait for a second, open to others."""
        until = time.monotonic() + _RETRY_SECONDS
        while time.monotonic() < until:
            self.wait()

    def try_addresses(self, tokens: Sequence[str]) -> "Future[str]":
        """Try to reach all others, in a thread, while this one answers those who try to reach us.

        Returns:
            What is wrong with the first address that fails; "" if none does.
        """
        result: Future[str] = Future()

        def try_all() -> None:
            for index, token in enumerate(tokens):
                if index == self.index:
                    continue
                if trouble := _try_address(self.addresses[index], token, self._closed):
                    result.set_result(
                        f"{self.name(self.index)} cannot reach {self.name(index)}: {trouble}"
                    )
                    return
            result.set_result("")

        threading.Thread(target=try_all, daemon=True, name="meeting").start()
        return result


class _Chief:
    """Worker 0, who decides."""

    def __init__(self, door: _Door, patience: _Patience):
        self._door, self._patience = door, patience
        self._guests: Connections = {}
        self._rejected: list[Channel] = []
        self._came: set[int] = set()  # indices of all that have come, rejected or not
        self._tokens = {0: door.token}
        self._takeovers: Counter[int] = Counter()
        self._refused = ""
        self._round = 0

    def run(self) -> Connections:
        trouble = None
        try:
            while trouble is None:
                self._gather()
                trouble = self._refused or self._check_addresses()
        except MissingWorkersError as error:
            self._tell({"in_vain": str(error), "lost": error.lost})
            raise
        if trouble:
            self._refuse(trouble)
        self._door.close()  # before anyone goes on to TensorFlow, which dials this port
        self._tell({"go": True})
        return self._guests

    def _tell(self, message: Message) -> None:
        for guest in self._guests.values():
            guest.send(message)

    def _gather(self) -> None:
        """Wait until all are there, or somebody who cannot train with us."""
        told: object = None
        everyone = set(range(1, len(self._door.addresses)))
        while not self._refused and (missing := everyone - self._guests.keys()):
            names = ", ".join(map(self._door.name, sorted(missing)))
            news = names, set(self._guests.values())
            if news != told:
                self._tell({"waits": names, "lost": min(missing)})
                told = news
            self._patience.check(names, min(missing))
            self._receive()

    def _receive(self) -> dict[int, list[Message]]:
        """Let new guests in and drop those that have left; return what the others have said."""
        for channel, introduction in self._door.wait(self._guests.values()):
            self._admit(channel, introduction)
        said = {}
        for index, guest in list(self._guests.items()):
            said[index] = guest.read()
            if guest.ended:
                guest.close()
                del self._guests[index]
        return said

    def _admit(self, channel: Channel, introduction: Message) -> None:
        index, addresses = introduction.get("worker"), introduction.get("addresses")
        facts, token = introduction.get("facts"), introduction.get("token")
        if not (isinstance(index, int) and isinstance(facts, dict) and isinstance(token, str)):
            channel.close()
            return
        self._came.add(index)
        if reason := self._objection(index, addresses, facts):
            remedy = "all workers need the same code, command and cluster, and each its own index"
            self._refused = self._refused or f"{reason}; {remedy}"
            self._rejected.append(channel)
        else:
            self._guests[index], self._tokens[index] = channel, token

    def _objection(self, index: int, addresses: object, facts: Message) -> str | None:
        """Say why that worker cannot train with us."""
        ours = self._door.addresses
        if addresses != ours:
            return (
                f"worker {index} has the addresses {_shown(addresses)}, and worker 0 has "
                f"{_shown(ours)}"
            )
        if not 0 < index < len(ours):
            return f"two processes say that they are worker {index}"
        if different := difference(self._door.facts, facts):
            return f"{self._door.name(index)} differs from {self._door.name(0)}: {different}"
        if index in self._guests:
            # It was started again, or there are two of them, which take each other's place.
            self._guests.pop(index).close()
            self._takeovers[index] += 1
        if self._takeovers[index] >= _TAKEOVERS:
            return f"two processes say that they are {self._door.name(index)}"
        return None

    def _refuse(self, reason: str) -> None:
        """Tell everyone, latecomers of the next seconds included, and raise."""
        told: set[Channel] = set()
        until = time.monotonic() + _LINGER_SECONDS
        while True:
            for channel in {*self._guests.values(), *self._rejected} - told:
                channel.send({"refused": reason})
                told.add(channel)
            all_came = self._came.issuperset(range(1, len(self._door.addresses)))
            # While two workers take each other's place, one of them is always missing.
            if time.monotonic() > until or (all_came and not self._takeovers):
                raise UsageError(reason)
            self._receive()

    def _check_addresses(self) -> str | None:
        """Let all try all addresses.

        Returns:
            What is wrong; "" if nothing is; None if workers have come or left meanwhile.
        """
        self._round += 1
        tokens = [self._tokens[index] for index in range(len(self._door.addresses))]
        self._tell({"dial": self._round, "tokens": tokens})
        own, guests = self._door.try_addresses(tokens), dict(self._guests)
        reports: dict[int, str] = {}
        while len(reports) < len(guests) or not own.done():
            for index, messages in self._receive().items():
                for message in messages:
                    if message.get("dialled") == self._round:
                        reports[index] = str(message.get("trouble"))
            if self._refused or self._guests != guests:
                return None
            waiting = [index for index in sorted(guests) if index not in reports]
            names = ", ".join(map(self._door.name, waiting))
            self._patience.check(names or "connections to the others", min(waiting, default=0))
        return next((trouble for trouble in [own.result(), *reports.values()] if trouble), "")


def _join(door: _Door, patience: _Patience) -> Connections:
    """Do the part of any worker but the chief."""
    while True:
        chief = _find_chief(door, patience)
        chief.send(door.introduction())
        if _follow(door, patience, chief):
            return {0: chief}
        chief.close()
        door.pause()


def _find_chief(door: _Door, patience: _Patience) -> Channel:
    reason = ""
    while True:
        patience.check(f"{door.name(0)}{reason}", 0)
        try:
            return dial(door.addresses[0], _RETRY_SECONDS)
        except OSError as error:
            reason = f" ({error.strerror or error})"
        door.pause()


def _follow(door: _Door, patience: _Patience, chief: Channel) -> bool:
    """Do what the chief says until it says "go"; return False if it has left, or is no chief."""
    number, missing, lost = 0, door.name(0), 0
    trouble: Future[str] | None = None
    while not chief.ended:
        patience.check(missing, lost)
        door.wait([chief])
        for message in chief.read():
            if "refused" in message:
                raise UsageError(str(message["refused"]))
            if "in_vain" in message:
                raise MissingWorkersError(str(message["in_vain"]), int(message["lost"]))
            if "go" in message:
                return True
            missing = str(message.get("waits", missing))
            lost = int(message.get("lost", lost))
            if isinstance(message.get("tokens"), list):
                number, trouble = message["dial"], door.try_addresses(message["tokens"])
        if trouble and trouble.done():
            chief.send({"dialled": number, "trouble": trouble.result()})
            trouble = None
    return False


def _try_address(address: str, token: str, given_up: threading.Event) -> str | None:
    """Say what is wrong if the process with that token does not answer at the address."""
    until, trouble = time.monotonic() + _DIAL_SECONDS, "no answer"
    while (left := until - time.monotonic()) > 0 and not given_up.is_set():
        try:
            with contextlib.closing(dial(address, left)) as channel:
                channel.send({"who": True})
                answers: list[Message] = []
                while not answers and not channel.ended and time.monotonic() < until:
                    wait_for([channel], until - time.monotonic())
                    answers = channel.read()
        except OSError as error:
            trouble = error.strerror or str(error)
        else:
            if answers and answers[0].get("token") == token:
                return None
            # It may have been started again and not have come to the chief yet.
            other = f"another process, worker {answers[0].get('worker')}," if answers else ""
            trouble = f"{other or 'something else'} answers there"
        time.sleep(min(_POLL_SECONDS, max(0.0, until - time.monotonic())))
    return trouble


def _shown(addresses: object) -> str:
    return ", ".join(map(str, addresses)) if isinstance(addresses, list) else "none"
