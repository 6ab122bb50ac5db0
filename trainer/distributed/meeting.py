"""All workers meet before TensorFlow starts, and find out whether they can train together.

TensorFlow's own start waits for ever for a worker that does not come, and for an hour or so where
an address is wrong or the lists of addresses differ. So the chief, worker 0, first listens on its
own address, which TensorFlow needs only later; each other worker connects and says what it believes
the run to be. When all are there and agree, each tries all addresses; when these lead where they
should, all close their ports, which TensorFlow takes over. The connections to the chief stay open,
and `trainer.distributed.heartbeat` goes on with them: nothing but the ports of the cluster must be
reachable.

Lines of JSON, by `trainer.distributed.wire`:

    worker to chief:     {"worker": 1, "addresses": [...], "facts": {...}, "token": "..."}
    chief to workers:    {"waits": "for whom"}, {"dial": 1, "tokens": [...]}, then {"go": true}, or
                         {"refused": "why"}, {"in_vain": "for whom"}
    worker to chief:     {"dialled": 1, "trouble": null or "why"}
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
from pathlib import Path

from common.console import say
from common.errors import UsageError
from trainer.distributed.wire import (
    BrokenLineError,
    Lines,
    Message,
    accept,
    dial,
    listen,
    port_error,
    wait_for,
)

Connections = dict[int, Lines]
"""From a worker's index to the connection to it."""

_POLL_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_TELL_SECONDS = 30.0  # how often a waiting worker says for whom
_DIAL_SECONDS = 10.0
_STRANGER_SECONDS = 10.0  # within which a connection must say what it is
_LINGER_SECONDS = 10.0  # in which the chief tells late workers why it refuses
_TAKEOVERS = 3


class MissingWorkersError(Exception):
    """Some workers have not come in time; they may if all are started again."""


def name_of(index: int, addresses: Sequence[str]) -> str:
    """A worker for people: "worker 1 (host-b:2222)"."""
    return f"worker {index} ({addresses[index]})"


def code_facts() -> dict[str, str]:
    """Map each file that a worker runs to the first digits of its SHA-256."""
    root = Path(__file__).parents[2]
    files = sorted(
        file
        for package in ("common", "configs", "data_pipeline", "trainer")
        for file in root.glob(f"{package}/**/*.py")
    )
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        for file in files
    }


def difference(ours: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    """What they have otherwise than we, up to three things; "" for the same."""
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    shown = [f"{name} is {theirs.get(name)!r}, not {ours.get(name)!r}" for name in names[:3]]
    more = [f"and {len(names) - 3} more"] if len(names) > 3 else []
    return "; ".join(shown + more)


def meet(
    addresses: Sequence[str], index: int, facts: Mapping[str, object], seconds: float
) -> Connections:
    """Returns when all workers have called it, agree, and reach each other.

    Args:
        addresses: host:port of all workers; worker 0 is the chief.
        index: of this worker.
        facts: what has to be the same on all workers, as text and numbers: name -> value.
        seconds: how long to wait for the others.

    Returns:
        the connections to all others, for the chief; for another worker that to the chief.

    Raises:
        UsageError: if the workers do not agree or do not reach each other; the same on all that
            have come. Also when the port of this worker cannot be had.
        MissingWorkersError: if not all have come in time.
    """
    # As they come out on the other side: a tuple is a list there, and None as good as nothing.
    facts = json.loads(json.dumps({name: v for name, v in facts.items() if v is not None}))
    meeting = (_Chief if index == 0 else _Guest)(addresses, index, facts, seconds)
    try:
        return meeting.run()
    finally:
        meeting.close()


class _Meeting:
    """What both sides do: keep their own port open, and try all addresses."""

    def __init__(self, addresses, index: int, facts, seconds: float):
        self._addresses, self._index, self._facts = list(addresses), index, dict(facts)
        self._began = self._told = time.monotonic()
        self._seconds = seconds
        self._token = secrets.token_hex(8)  # of this process, should an address lead to another
        self._strangers: dict[Lines, float] = {}
        address = addresses[index]
        try:
            self._listener = listen(int(address.rpartition(":")[2]))
        except OSError as error:
            raise port_error(address, error) from error
        self._listener.setblocking(False)

    def _name(self, index: int) -> str:
        return name_of(index, self._addresses)

    def close(self) -> None:
        """Gives the port free."""
        self._listener.close()
        for stranger in self._strangers:
            stranger.close()

    def _wait_for(self, missing: str) -> None:
        now = time.monotonic()
        if now > self._began + self._seconds:
            self._give_up(missing)
        if now > self._told + _TELL_SECONDS:
            self._told = now
            say(f"waiting for {missing}")

    def _give_up(self, missing: str) -> None:
        raise MissingWorkersError(
            f"waited {self._seconds:g} s in vain for {missing}: look at its log, start it, and "
            "check that all workers have the same list of addresses"
        )

    def _knocks(self, friends: Iterable[Lines]) -> list[tuple[Lines, Message]]:
        """Waits a moment for anything; returns who came to this port and what it said first."""
        wait_for([self._listener, *self._strangers, *friends], _POLL_SECONDS)
        now = time.monotonic()
        if new := accept(self._listener):
            self._strangers[new] = now + _STRANGER_SECONDS
        said = []
        for stranger, until in list(self._strangers.items()):
            messages = read(stranger)
            if messages and "who" in messages[0]:
                stranger.send({"worker": self._index, "token": self._token})
            elif messages:
                said.append((stranger, messages[0]))
                del self._strangers[stranger]
                continue
            if stranger.ended or now > until:
                stranger.close()
                del self._strangers[stranger]
        return said

    def _dial_all(self, tokens: Sequence[str], result: list[str | None]) -> None:
        """Appends what is wrong with the way to any other worker, or None."""
        for index, token in enumerate(tokens):
            if index != self._index and (trouble := _try_address(self._addresses[index], token)):
                result.append(
                    f"{self._name(self._index)} cannot reach {self._name(index)}: {trouble}"
                )
                return
        result.append(None)

    def _start_dialling(self, tokens: Sequence[str]) -> list[str | None]:
        result: list[str | None] = []
        # In a thread: this one answers those that dial us.
        threading.Thread(target=self._dial_all, args=(tokens, result), daemon=True).start()
        return result


class _Chief(_Meeting):
    """Worker 0, who decides."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._guests: Connections = {}
        self._tokens: dict[int, str] = {0: self._token}
        self._takeovers: Counter[int] = Counter()
        self._refused: str | None = None
        self._round = 0

    def run(self) -> Connections:
        while True:
            self._gather()
            trouble = self._all_dial()
            if trouble is None:
                continue  # one has gone meanwhile, or was started again
            if trouble:
                self._refuse(trouble)
            self.close()  # before anyone goes on to TensorFlow, which dials this port
            for guest in self._guests.values():
                guest.send({"go": True})
            return self._guests

    def _give_up(self, missing: str) -> None:
        for guest in self._guests.values():
            guest.send({"in_vain": missing})
        super()._give_up(missing)

    def _missing(self) -> list[int]:
        return [i for i in range(1, len(self._addresses)) if i not in self._guests]

    def _gather(self) -> None:
        told: tuple[set[Lines], str] = set(), ""
        while missing := self._missing():
            names = ", ".join(map(self._name, missing))
            if told != (told := (set(self._guests.values()), names)):
                for guest in told[0]:
                    guest.send({"waits": names})
            self._wait_for(names)
            self._receive()
            if self._refused:
                self._refuse(self._refused)

    def _receive(self) -> dict[int, list[Message]]:
        """Lets new guests in, and those go that have gone; what the others have said."""
        for lines, hello in self._knocks(self._guests.values()):
            self._admit(lines, hello)
        said = {}
        for index, guest in list(self._guests.items()):
            said[index] = read(guest)
            if guest.ended:
                guest.close()
                del self._guests[index]
        return said

    def _admit(self, lines: Lines, hello: Message) -> None:
        index, addresses = hello.get("worker"), hello.get("addresses")
        facts, token = hello.get("facts"), hello.get("token")
        if not (isinstance(index, int) and isinstance(facts, dict) and isinstance(token, str)):
            lines.close()
            return
        if reason := self._objection(index, addresses, facts):
            mend = "all workers need the same code, command and cluster, and each its own index"
            self._refused = self._refused or f"{reason}; {mend}"
        key = index if index not in self._guests else -len(self._guests) - 1
        self._guests[key], self._tokens[index] = lines, token

    def _objection(self, index: int, addresses: object, facts: Message) -> str | None:
        """Why that worker cannot train with us."""
        if addresses != self._addresses:
            ours = _shown(self._addresses)
            return f"worker {index} has the addresses {_shown(addresses)}, and worker 0 has {ours}"
        if not 0 < index < len(self._addresses):
            return f"two processes say that they are worker {index}"
        if different := difference(self._facts, facts):
            return f"{self._name(index)} differs from {self._name(0)}: {different}"
        return self._take_place(index)

    def _take_place(self, index: int) -> str | None:
        """A guest that comes again takes its place: it was restarted. Two take it by turns."""
        if index in self._guests:
            self._guests.pop(index).close()
            self._takeovers[index] += 1
        if self._takeovers[index] < _TAKEOVERS:
            return None
        return f"two processes say that they are {self._name(index)}"

    def _refuse(self, reason: str) -> None:
        """Tells all, those too that come in the next seconds."""
        self._refused = reason
        told: set[Lines] = set()
        until = time.monotonic() + _LINGER_SECONDS
        while True:
            for guest in self._guests.values():
                if guest not in told:
                    guest.send({"refused": reason})
                    told.add(guest)
            # Of two that take one place by turns, one is always away.
            if time.monotonic() > until or not (self._missing() or self._takeovers):
                raise UsageError(reason)
            self._receive()

    def _all_dial(self) -> str | None:
        """Lets all try all addresses. What is wrong; "" if nothing is; None if one was replaced."""
        self._round += 1
        tokens = [self._tokens[index] for index in range(len(self._addresses))]
        for guest in self._guests.values():
            guest.send({"dial": self._round, "tokens": tokens})
        own, guests = self._start_dialling(tokens), dict(self._guests)
        reports: dict[int, str] = {}
        while len(reports) < len(self._guests) or not own:
            for index, messages in self._receive().items():
                for message in messages:
                    if message.get("dialled") == self._round:
                        reports[index] = str(message.get("trouble") or "")
            if self._guests != guests:
                return None
            waiting = [i for i in self._guests if i not in reports]
            self._wait_for(", ".join(map(self._name, waiting)) or "connections to the others")
        return next((text for text in [own[0], *reports.values()] if text), "")


class _Guest(_Meeting):
    """Any other worker."""

    def run(self) -> Connections:
        while True:
            chief = self._find_chief()
            hello = {"worker": self._index, "addresses": self._addresses, "facts": self._facts}
            chief.send({**hello, "token": self._token})
            if self._stay(chief):
                return {0: chief}
            chief.close()

    def _find_chief(self) -> Lines:
        reason = ""
        while True:
            self._wait_for(f"{self._name(0)}{reason}")
            try:
                return dial(self._addresses[0], _RETRY_SECONDS)
            except OSError as error:
                reason = f" ({error.strerror or error})"
            self._pause()

    def _pause(self) -> None:
        until = time.monotonic() + _RETRY_SECONDS
        while time.monotonic() < until:
            self._knocks([])

    def _stay(self, chief: Lines) -> bool:
        """Waits for the word to go on; False if the chief has gone, or is none yet."""
        number, result, missing = 0, list[str | None](), self._name(0)
        while True:
            self._wait_for(missing)
            self._knocks([chief])
            for message in read(chief):
                if "refused" in message:
                    raise UsageError(str(message["refused"]))
                if "in_vain" in message:
                    self._give_up(str(message["in_vain"]))
                missing = str(message.get("waits", missing))
                if "go" in message:
                    return True
                if isinstance(tokens := message.get("tokens"), list):
                    number, result = message["dial"], self._start_dialling(tokens)
            if result:
                chief.send({"dialled": number, "trouble": result[0]})
                result = []
            if chief.ended:
                self._pause()
                return False


def read(lines: Lines) -> list[Message]:
    """What has come; a connection that brings anything else has `ended`."""
    try:
        return lines.read()
    except BrokenLineError:
        lines.ended = True
        return []


def _try_address(address: str, token: str) -> str | None:
    """Whether the process with that token answers there: None, or what is wrong."""
    until, trouble = time.monotonic() + _DIAL_SECONDS, "no answer"
    while (left := until - time.monotonic()) > 0:
        try:
            with contextlib.closing(dial(address, left)) as lines:
                lines.send({"who": True})
                answers: list[Message] = []
                while not answers and not lines.ended and (left := until - time.monotonic()) > 0:
                    wait_for([lines], left)
                    answers = read(lines)
        except OSError as error:
            trouble = error.strerror or str(error)
        else:
            if answers and answers[0].get("token") == token:
                return None
            # It may have been started again, and not have come to the chief yet.
            other = f"another process, worker {answers[0].get('worker')}," if answers else ""
            trouble = f"{other or 'something else'} answers there"
        time.sleep(min(_POLL_SECONDS, max(0.0, until - time.monotonic())))
    return trouble


def _shown(addresses: object) -> str:
    return ", ".join(map(str, addresses)) if isinstance(addresses, list) else "none"
