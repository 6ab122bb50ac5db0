"""How workers meet before TensorFlow starts: each a thread here, with its real port."""

import hashlib
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from common import status
from common.errors import UsageError
from trainer.distributed import meeting
from trainer.distributed.meeting import MissingWorkersError, code_facts, difference, meet
from trainer.distributed.wire import MOST_BYTES, Channel, wait_for

FACTS = {"TensorFlow": "2", "--config.data.buckets": (8, 16), "--init_from": None}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(meeting, "_RETRY_SECONDS", 0.1)
    for name in ("_DIAL_SECONDS", "_STRANGER_SECONDS", "_LINGER_SECONDS"):  # all come, if late
        monkeypatch.setattr(meeting, name, 60.0)
    yield
    for thread in threading.enumerate():  # those that still try addresses
        if thread.name == "meeting":
            thread.join(300)
            assert not thread.is_alive()


class Clock:
    """The clock of the meeting, which goes on when the test says so, or in pauses."""

    def __init__(self, monkeypatch, pause: float = 0.0):
        self.now, self._pause = 0.0, pause
        monkeypatch.setattr(meeting, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += self._pause


def free_addresses(count: int) -> list[str]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return [f"localhost:{port}" for port in ports]


def answers(address: str) -> bool:
    try:
        socket.create_connection(("localhost", int(address.split(":")[1]))).close()
    except ConnectionRefusedError:
        return False
    return True


class Worker(threading.Thread):
    """One that calls `meet`; keeps what comes of it."""

    def __init__(self, addresses, index: int, facts=FACTS, seconds: float = 300.0):
        super().__init__(daemon=True)
        self._arguments = addresses, index, facts, seconds
        self.connections, self.error, self.chief_answers = None, None, None
        self.start()

    def run(self):
        try:
            self.connections = meet(*self._arguments)
            if self._arguments[1]:  # TensorFlow would dial the chief now
                self.chief_answers = answers(self._arguments[0][0])
        except (UsageError, MissingWorkersError) as error:
            self.error = error


def join(*workers: Worker) -> None:
    for worker in workers:
        worker.join(300)
        assert not worker.is_alive()


def hello(addresses, index: int) -> bytes:
    facts = {"TensorFlow": "2", "--config.data.buckets": [8, 16]}
    said = {"worker": index, "addresses": addresses, "facts": facts, "token": "t"}
    return json.dumps(said).encode() + b"\n"


def connect(address: str) -> socket.socket:
    deadline = time.monotonic() + 300
    while True:
        try:
            return socket.create_connection(("localhost", int(address.split(":")[1])))
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def refusal_of(*workers: Worker) -> str:
    """The reason, which is the same on all of them."""
    join(*workers)
    assert {type(worker.error) for worker in workers} == {UsageError}
    (reason,) = {str(worker.error) for worker in workers}
    assert "\n" not in reason
    return reason


def test_all_meet_and_leave_their_ports_free():
    """The chief may come last. All ports can be had again while the connections stay open."""
    addresses = free_addresses(3)
    workers = [Worker(addresses, index) for index in (2, 1)]
    time.sleep(0.3)
    workers.append(Worker(addresses, 0))
    join(*workers)
    chief = workers[-1].connections
    assert sorted(chief) == [1, 2] and [w.connections.keys() for w in workers[:2]] == [{0}] * 2
    assert [worker.chief_answers for worker in workers] == [False, False, None]
    for address in addresses:
        socket.create_server(("", int(address.split(":")[1]))).close()
    for number, worker in enumerate(workers[:2]):
        chief[2 - number].send({"number": number})
        deadline = time.monotonic() + 300
        while not (messages := worker.connections[0].read()):
            assert time.monotonic() < deadline
        assert messages == [{"number": number}]


def test_whoever_else_knocks_does_no_harm():
    addresses = free_addresses(2)
    chief = Worker(addresses, 0)
    silent = connect(addresses[0])
    for words in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\xff",
        b"[1]\n",
        b'{"worker": "1"}\n',
    ):
        connect(addresses[0]).sendall(words)
    connect(addresses[0]).close()
    guest = Worker(addresses, 1)
    join(chief, guest)
    assert chief.error is None and guest.error is None and list(chief.connections) == [1]
    silent.close()


def test_a_worker_that_was_started_again_takes_its_place():
    addresses = free_addresses(3)
    workers = [Worker(addresses, 0), Worker(addresses, 2)]
    old = connect(addresses[0])  # its host has lost power: the connection stays
    old.sendall(hello(addresses, 1))
    workers.append(Worker(addresses, 1))
    join(*workers)
    assert [worker.error for worker in workers] == [None] * 3
    old.close()


def test_two_of_the_same_index(monkeypatch):
    monkeypatch.setattr(meeting, "_LINGER_SECONDS", 0.0)
    addresses = free_addresses(3)
    chief = Worker(addresses, 0)
    doubles = []
    for _ in range(4):
        doubles.append(connect(addresses[0]))
        doubles[-1].sendall(hello(addresses, 1))
    reason = refusal_of(chief)
    assert reason.startswith(f"two processes say that they are worker 1 ({addresses[1]}); ")
    doubles[-1].settimeout(300)
    assert {"refused": reason} in map(json.loads, doubles[-1].recv(10_000).splitlines())


def test_what_differs_is_named_on_all_workers():
    addresses = free_addresses(3)
    other = FACTS | {"TensorFlow": "3", "trainer/x.py": "ab"}
    reason = refusal_of(*(Worker(addresses, i, other if i == 2 else FACTS) for i in range(3)))
    assert reason.startswith(
        f"worker 2 ({addresses[2]}) differs from worker 0 ({addresses[0]}): TensorFlow is '3', "
        "not '2'; trainer/x.py is 'ab', not None; "
    )


def test_another_list_of_addresses():
    first, second, third = free_addresses(3)
    reason = refusal_of(Worker([first, second], 0), Worker([first, third], 1))
    assert reason.startswith(
        f"worker 1 has the addresses {first}, {third}, and worker 0 has {first}, {second}; "
    )


def test_another_number_of_workers():
    addresses = free_addresses(3)
    reason = refusal_of(Worker(addresses[:2], 0), Worker(addresses, 1))
    assert reason.startswith(f"worker 1 has the addresses {', '.join(addresses)}, and worker 0 ")


def test_an_address_that_leads_nowhere(monkeypatch):
    addresses = free_addresses(3)
    real = meeting._try_address

    def fail(address, *rest):
        return "No route to host" if address == addresses[2] else real(address, *rest)

    monkeypatch.setattr(meeting, "_try_address", fail)
    reason = refusal_of(*(Worker(addresses, i) for i in range(3)))
    assert reason in {
        f"worker {i} ({addresses[i]}) cannot reach worker 2 ({addresses[2]}): No route to host"
        for i in (0, 1)
    }


def test_what_an_address_leads_to(monkeypatch):
    Clock(monkeypatch, pause=25.0)  # so that each address is tried three times
    never = threading.Event()
    assert meeting._try_address(free_addresses(1)[0], "t", never) == "Connection refused"
    for answer, expected in (
        (b'{"worker": 4, "token": "t"}\n', None),
        (b'{"worker": 4, "token": "u"}\n', "another process, worker 4, answers there"),
        (b"HTTP/1.1 400 Bad Request\r\n", "something else answers there"),
    ):
        with socket.create_server(("localhost", 0)) as server:

            def serve(server=server, answer=answer):
                for _ in range(3):
                    try:
                        connection, _ = server.accept()
                    except OSError:
                        return
                    with connection:
                        connection.recv(100)
                        connection.sendall(answer)

            threading.Thread(target=serve, daemon=True).start()
            address = f"localhost:{server.getsockname()[1]}"
            assert meeting._try_address(address, "t", never) == expected


def test_missing_workers_are_named_by_all_that_came(monkeypatch):
    told, clock = [], Clock(monkeypatch)
    monkeypatch.setattr(meeting, "_STRANGER_SECONDS", 1e9)
    monkeypatch.setattr(meeting, "say", told.append)
    addresses = free_addresses(4)
    workers = [Worker(addresses, 0, seconds=1e6), Worker(addresses, 2, seconds=1e9)]
    missing = f"worker 1 ({addresses[1]}), worker 3 ({addresses[3]})"
    deadline = time.monotonic() + 300
    while f"waiting for {missing}" not in told:
        assert time.monotonic() < deadline
        clock.now += 1.0
        time.sleep(0.02)
    clock.now += 1e6
    join(*workers)
    for worker in workers:
        assert type(worker.error) is MissingWorkersError
        assert f"waited 1e+06 s in vain for {missing}: " in str(worker.error)
        assert worker.error.lost == 1


def test_a_chief_that_is_missing(monkeypatch, tmp_path):
    """The launcher hears of it too, so that it does not blame the worker that waited."""
    clock = Clock(monkeypatch)
    monkeypatch.setenv(status.VARIABLE, str(tmp_path / "status"))

    def wait(door):
        clock.now += 1.0

    monkeypatch.setattr(meeting._Door, "wait", wait)
    addresses = free_addresses(2)
    worker = Worker(addresses, 1, seconds=2.5)
    join(worker)
    assert f"in vain for worker 0 ({addresses[0]}) (Connection refused): " in str(worker.error)
    told = {"lost_worker": 0, "reason": "has not come in 2.5 s"}
    assert status.read(str(tmp_path / "status")) == told


def test_a_port_in_use(monkeypatch, tmp_path):
    path = str(tmp_path / "status.json")
    monkeypatch.setenv(status.VARIABLE, path)
    addresses = free_addresses(2)
    port = int(addresses[1].split(":")[1])
    with socket.create_server(("", port)):
        worker = Worker(addresses, 1)
        assert refusal_of(worker).startswith(f"port {port} of this machine is in use")
    assert status.read(path) == {"port_in_use": port}


def test_difference():
    ours, theirs = dict.fromkeys("abcde", 1), dict.fromkeys("bcdef", 2)
    assert difference(ours, ours) == ""
    assert difference({"a": 1}, {"a": 1.5}) == "a is 1.5, not 1"
    assert difference(ours, theirs) == "a is None, not 1; b is 2, not 1; c is 2, not 1; and 3 more"


def test_code_facts():
    facts, root = code_facts(), Path(__file__).parents[3]
    content = (root / "trainer/model/transformer.py").read_bytes()
    assert facts["trainer/model/transformer.py"] == hashlib.sha256(content).hexdigest()[:12]
    assert "data_pipeline/dataset/examples.py" in facts


def test_code_facts_beside_an_editor(tmp_path, monkeypatch):
    """Its lock is a link to nowhere."""
    monkeypatch.setattr("trainer.distributed.meeting.__file__", str(tmp_path / "a" / "b" / "c.py"))
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "step.py").write_text("")
    (tmp_path / "trainer" / ".#step.py").symlink_to("me@host.12:1")
    assert list(code_facts()) == ["trainer/step.py"]


def test_lines():
    """Parts of lines wait for the rest; the end is seen."""
    with socket.create_server(("localhost", 0)) as server:
        plain = socket.create_connection(server.getsockname())
        lines = Channel(server.accept()[0])
    assert lines.read() == []
    plain.sendall(b'{"a": 1}\n{"b"')
    wait_for([lines], 60)
    assert lines.read() == [{"a": 1}]
    plain.sendall(b": 2}\n")
    wait_for([lines], 60)
    assert lines.read() == [{"b": 2}] and not lines.ended
    lines.send({"c": "x" * 100_000})
    received = b""
    while not received.endswith(b"\n"):
        received += plain.recv(1 << 16)
        lines.read()
    assert json.loads(received) == {"c": "x" * 100_000}
    plain.close()
    wait_for([lines], 60)
    assert lines.read() == [] and lines.ended
    lines.close()


@pytest.mark.parametrize("words", [b"[3]\n", b"GET / HTTP/1.1\n", b"\xff\n", b"[" * 9999 + b"\n"])
def test_what_is_no_message_ends_the_channel(words):
    with socket.create_server(("localhost", 0)) as server:
        plain = socket.create_connection(server.getsockname())
        lines = Channel(server.accept()[0])
    plain.sendall(words)
    while not lines.ended:
        wait_for([lines], 60)
        assert lines.read() == []
    plain.close()


def test_a_line_has_an_end():
    with socket.create_server(("localhost", 0)) as server:
        plain = socket.create_connection(server.getsockname())
        lines = Channel(server.accept()[0])
    threading.Thread(target=lambda: plain.sendall(b"x" * (MOST_BYTES + 2)), daemon=True).start()
    while not lines.ended:
        wait_for([lines], 60)
        assert lines.read() == []
    lines.close()
