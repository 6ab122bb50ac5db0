"""Who is lost is noticed and named by all others: watches in threads, over real connections."""

import socket
import threading
import time

import pytest

from trainer.distributed import heartbeat
from trainer.distributed.heartbeat import Progress, Watch
from trainer.distributed.wire import Lines

ADDRESSES = ["host-a:1", "host-b:2", "host-c:3"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(heartbeat, "_GRACE_SECONDS", 0.2)


def connected() -> tuple[Lines, Lines]:
    with socket.create_server(("localhost", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        return Lines(ours), Lines(server.accept()[0])


class Worker:
    """A watch whose process does not really end."""

    def __init__(self, index: int, connections, silence=30.0, stall=60.0, reason=None):
        self.ended = threading.Event()
        self.code = None
        self.progress = Progress()
        self.watch = Watch(silence, stall, lambda: reason, self._end, self.progress)
        self.watch.start(ADDRESSES, index, connections)

    def _end(self, code: int) -> None:
        self.code = code
        self.ended.set()

    def wait(self) -> int:
        assert self.ended.wait(20)
        return self.code


def three(**options) -> tuple[list[Worker], list[Lines]]:
    """A chief, two workers, and the workers' ends of the connections."""
    (first, first_end), (second, second_end) = connected(), connected()
    chief = Worker(0, {1: first_end, 2: second_end}, **options)
    return [chief, Worker(1, {0: first}, **options), Worker(2, {0: second}, **options)], [
        first,
        second,
    ]


def test_a_connection_that_ends(capfd):
    """All others end, with the same line, whoever they are."""
    (near, far), (dead, dead_end) = connected(), connected()
    chief, other = Worker(0, {1: far, 2: dead_end}), Worker(1, {0: near})
    dead.close()
    assert (chief.wait(), other.wait()) == (1, 1)
    line = "error: worker 2 (host-c:3) has died, or its connection is lost; ending, so that all "
    assert capfd.readouterr().err.count(line) == 2


def test_a_dead_chief(capfd):
    near, far = connected()
    worker = Worker(1, {0: near})
    far.close()
    assert worker.wait() == 1
    assert "error: worker 0 (host-a:1) has died" in capfd.readouterr().err


@pytest.mark.parametrize("index", [0, 1])
def test_silence(capfd, index):
    near, far = connected()
    worker = Worker(index, {1 - index: near}, silence=1.0)
    assert worker.wait() == 1
    error = capfd.readouterr().err
    assert f"error: worker {1 - index} ({ADDRESSES[1 - index]}) has not answered for 1 s" in error
    assert far.read()  # the beats that it got, without an answer
    far.close()


def test_beats_keep_a_busy_worker_alive_and_leaving_is_no_death():
    workers, ends = three(silence=1.5)
    time.sleep(3)  # twice the silence, with nothing to do
    assert not any(worker.ended.is_set() for worker in workers)
    workers[1].watch.leave()
    time.sleep(0.5)
    ends[0]._socket.shutdown(socket.SHUT_RDWR)
    time.sleep(1)
    assert not workers[0].ended.is_set() and not workers[2].ended.is_set()
    for worker in workers:
        worker.watch.leave()


def test_why_a_worker_ends_is_passed_on(capfd):
    workers, ends = three()
    workers[2].watch.fail("no such file")
    time.sleep(0.2)
    ends[1]._socket.shutdown(socket.SHUT_RDWR)
    assert workers[0].wait() == workers[1].wait() == 2
    line = "error: worker 2 (host-c:3) has ended: no such file\n"
    assert capfd.readouterr().err.count(line) >= 2


def test_a_worker_that_was_asked_to_stop_before_it_had_begun(capfd):
    """There is nothing to save: the others stop likewise, at once."""
    workers, ends = three()
    workers[2].watch.stop()
    time.sleep(0.2)
    ends[1]._socket.shutdown(socket.SHUT_RDWR)
    assert workers[0].wait() == workers[1].wait() == 42
    error = capfd.readouterr().err
    assert error.count("worker 2 (host-c:3) was asked to stop; nothing to save yet") >= 2
    assert "error" not in error


def test_a_worker_that_keeps_the_others_waiting(capfd):
    """All beat; two wait for the third, which has not come to where they meet."""
    workers, _ = three(silence=3.0, stall=1.5)
    for worker in workers:
        with worker.progress:
            pass
    for worker in workers[:2]:
        worker.progress.__enter__()
    assert [worker.wait() for worker in workers] == [1, 1, 1]
    line = "error: worker 2 (host-c:3) keeps the others waiting and has made no progress for 1.5 s"
    error = capfd.readouterr().err
    assert error.count(line) == 3
    assert "(at " in error and ", in " in error


def test_no_progress_of_anyone(capfd):
    workers, _ = three(silence=3.0, stall=1.0)
    assert [worker.wait() for worker in workers] == [1, 1, 1]
    assert capfd.readouterr().err.count("error: no worker has made progress for 1 s") == 3


def test_progress_of_one_is_enough():
    workers, _ = three(silence=3.0, stall=1.0)
    for _ in range(30):
        with workers[1].progress:
            time.sleep(0.1)
    assert not any(worker.ended.is_set() for worker in workers)
    for worker in workers:
        worker.watch.leave()


def test_asked_to_stop_itself(capfd):
    """Then the other was asked too: nothing is wrong, and all can start again."""
    near, far = connected()
    worker = Worker(1, {0: near}, reason="SIGTERM")
    far.close()
    assert worker.wait() == 42
    assert "SIGTERM, and worker 0 (host-a:1) has died" in capfd.readouterr().err


def test_what_is_being_saved_is_finished():
    near, far = connected()
    worker = Worker(1, {0: near})
    saved = threading.Event()

    def save():
        assert not worker.ended.is_set()
        time.sleep(0.5)
        saved.set()

    worker.watch.saving = save
    far.close()
    worker.wait()
    assert saved.is_set()


def test_a_failed_program_learns_why_at_once(monkeypatch):
    """It need not wait for the time that is left to programs to end by themselves."""
    monkeypatch.setattr(heartbeat, "_SAVING_SECONDS", 0.01)
    near, far = connected()
    worker = Worker(1, {0: near})
    monkeypatch.setattr(heartbeat, "_GRACE_SECONDS", 30.0)
    far.close()
    explaining = threading.Thread(target=worker.watch.explain)
    explaining.start()
    assert worker.wait() == 1
    explaining.join(10)
    assert not explaining.is_alive()


def test_alone_there_is_nothing_to_explain():
    watch = Watch(30.0, 60.0)
    watch.explain()
    watch.leave()
    watch.fail("why")
