"""Who is lost is noticed and named by all others: watches in threads, over real connections."""

import functools
import socket
import threading
from types import SimpleNamespace

import pytest

from common import status
from trainer.distributed import heartbeat
from trainer.distributed.heartbeat import Progress, Watch
from trainer.distributed.wire import Channel, wait_for

ADDRESSES = ["host-a:1", "host-b:2", "host-c:3"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(heartbeat, "_GRACE_SECONDS", 0.2)
    monkeypatch.setattr(heartbeat, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(heartbeat, "_LONGEST_PAUSE", 0.2)
    yield
    for thread in threading.enumerate():  # what it still prints would be the next test's
        if thread.name == "heartbeat":
            thread.join(300)
            assert not thread.is_alive()


def connected() -> tuple[Channel, Channel]:
    with socket.create_server(("localhost", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        return Channel(ours), Channel(server.accept()[0])


class Worker:
    """A watch whose process does not really end."""

    def __init__(self, index: int, connections, silence=1e6, stall=1e6, reason=None):
        self.ended = threading.Event()
        self.code = None
        self.progress = Progress()
        self.watch = Watch(silence, stall, lambda: reason, self._end, self.progress)
        self.watch.start(ADDRESSES, index, connections)

    def _end(self, code: int) -> None:
        self.code = code
        self.ended.set()

    def wait(self) -> int:
        assert self.ended.wait(300)
        return self.code


def three(make=Worker, **options) -> tuple[list, list[Channel]]:
    """A chief, two workers, and the workers' ends of the connections."""
    (first, first_end), (second, second_end) = connected(), connected()
    ends = [{1: first_end, 2: second_end}, {0: first}, {0: second}]
    workers = [make(index, connections, **options) for index, connections in enumerate(ends)]
    return workers, [first, second]


def test_a_connection_that_ends(capfd):
    """All others end, with the same line, whoever they are."""
    (near, far), (dead, dead_end) = connected(), connected()
    chief, other = Worker(0, {1: far, 2: dead_end}), Worker(1, {0: near})
    dead.close()
    assert (chief.wait(), other.wait()) == (1, 1)
    line = "error: worker 2 (host-c:3) has died, or its connection is lost; ending, so that all "
    assert capfd.readouterr().err.count(line) == 2


def test_a_dead_chief(capfd, monkeypatch, tmp_path):
    """The launcher, if there is one, learns who it is."""
    path = str(tmp_path / "status.json")
    monkeypatch.setenv(status.VARIABLE, path)
    near, far = connected()
    worker = Worker(1, {0: near})
    far.close()
    assert worker.wait() == 1
    assert "error: worker 0 (host-a:1) has died" in capfd.readouterr().err
    reason = "has died, or its connection is lost"
    assert status.read(path) == {"lost_worker": 0, "reason": reason}


@pytest.mark.parametrize("index", [0, 1])
def test_silence(capfd, index):
    near, far = connected()
    worker = Worker(index, {1 - index: near}, silence=1.0)
    assert worker.wait() == 1
    error = capfd.readouterr().err
    assert f"error: worker {1 - index} ({ADDRESSES[1 - index]}) has not answered for 1 s" in error
    assert far.read()  # the beats that it got, without an answer
    far.close()


class Clockwork:
    """A watch that turns when the test says so, at the time that the test says."""

    def __init__(self, monkeypatch, index: int, connections, **options):
        self.progress = SimpleNamespace(count=0, inside=False, connecting=False, seconds=0.0)
        self.watch = Watch(options.pop("silence", 30.0), 60.0, progress=self.progress)
        with monkeypatch.context() as patch:
            patch.setattr(heartbeat.Watch, "_run", lambda watch: None)
            self.watch.start(ADDRESSES, index, connections, **options)
        self.now = self.watch._began

    def turn(self, seconds: float, news: bool = False):
        """One turn, so many seconds later; with `news`, all others have sent something."""
        for other in self.watch._others.values() if news else ():
            wait_for([other.channel], 60)
        self.now += seconds
        return self.watch._turn(self.now)


def test_beats_keep_a_busy_worker_alive_and_leaving_is_no_death(monkeypatch):
    near, far = connected()
    workers = [
        Clockwork(monkeypatch, 0, {1: near}, silence=3.0),
        Clockwork(monkeypatch, 1, {0: far}, silence=3.0),
    ]
    assert workers[0].turn(0.0) is None
    for _ in range(20):  # three times the silence, with nothing to do
        assert [worker.turn(0.5, news=True) for worker in reversed(workers)] == [None, None]
    workers[1].watch.leave()
    far._socket.shutdown(socket.SHUT_RDWR)
    while not near.ended:
        assert workers[0].turn(0.0, news=True) is None
    assert [workers[0].turn(0.5) for _ in range(20)] == [None] * 20


def test_silence_after_the_last_beat(monkeypatch):
    near, far = connected()
    chief = Clockwork(monkeypatch, 0, {1: near}, silence=3.0)
    far.send({"state": {}})
    assert chief.turn(0.5, news=True) is None
    assert [chief.turn(0.5) for _ in range(6)] == [None] * 6  # 3 s
    verdict = chief.turn(0.5)
    assert (verdict.code, verdict.lost) == (1, 1)
    assert verdict.reason == "has not answered for 3 s"


def test_who_stood_still_itself_blames_nobody(monkeypatch):
    near, _far = connected()
    chief = Clockwork(monkeypatch, 0, {1: near}, silence=3.0)
    assert chief.turn(100.0) is None
    assert chief.turn(1.0) is None


def test_tensorflow_that_cannot_connect_the_workers(monkeypatch):
    near, far = connected()
    worker = Clockwork(monkeypatch, 1, {0: near}, connecting_seconds=20.0)
    assert [worker.turn(1.0) for _ in range(30)] == [None] * 30
    worker.progress.connecting = True
    far.send({"state": {}})
    verdict = worker.turn(1.0, news=True)
    assert verdict.code == 1 and verdict.lost is None
    assert "TensorFlow could not connect them within 20 s: look for a firewall" in verdict.text


def test_why_a_worker_ends_is_passed_on(capfd):
    workers, ends = three()
    workers[2].watch.fail("no such file")
    ends[1]._socket.shutdown(socket.SHUT_RDWR)
    assert workers[0].wait() == workers[1].wait() == 2
    line = "error: worker 2 (host-c:3) has ended: no such file\n"
    assert capfd.readouterr().err.count(line) >= 2


def test_a_worker_that_was_asked_to_stop_before_it_had_begun(capfd):
    """There is nothing to save: the others stop likewise, at once."""
    workers, ends = three()
    workers[2].watch.stop()
    ends[1]._socket.shutdown(socket.SHUT_RDWR)
    assert workers[0].wait() == workers[1].wait() == 42
    error = capfd.readouterr().err
    assert error.count("worker 2 (host-c:3) was asked to stop; nothing to save yet") >= 2
    assert "error" not in error


def test_a_worker_that_keeps_the_others_waiting(monkeypatch):
    """All beat; two wait for the third, which has not come to where they meet."""
    (chief, *others), _ = three(functools.partial(Clockwork, monkeypatch))
    chief.progress.count, chief.progress.inside = 2, True
    others[0].progress.count, others[0].progress.inside = 2, True
    others[1].progress.count = 1
    for quiet in (59.0, 60.0):
        for one in (chief, *others):
            one.progress.seconds = quiet
        assert [one.turn(1.0) for one in others] == [None, None]
        verdict = chief.turn(1.0, news=True)
        assert (verdict is None) == (quiet < 60.0)
    line = "worker 2 (host-c:3) keeps the others waiting and has made no progress for 60 s (at "
    assert verdict.text.startswith(line) and ", in " in verdict.text
    assert (verdict.code, verdict.lost) == (1, 2)


def test_no_progress_of_anyone(capfd):
    workers, _ = three(silence=300.0, stall=1.0)
    assert [worker.wait() for worker in workers] == [1, 1, 1]
    assert capfd.readouterr().err.count("error: no worker has made progress for 1 s") == 3


def test_progress_of_one_is_enough(monkeypatch):
    near, far = connected()
    chief = Clockwork(monkeypatch, 0, {1: near})
    chief.progress.seconds = 100.0
    far.send({"state": {"count": 3, "quiet": 59.0}})
    assert chief.turn(1.0, news=True) is None
    far.send({"state": {"count": 3, "quiet": 60.0}})
    verdict = chief.turn(1.0, news=True)
    assert "worker 0 (host-a:1) keeps the others waiting" in verdict.text and verdict.lost == 0


def test_asked_to_stop_itself(capfd):
    """Then the other was asked too: nothing is wrong, and all can start again."""
    near, far = connected()
    worker = Worker(1, {0: near}, reason="SIGTERM")
    far.close()
    assert worker.wait() == 42
    assert "SIGTERM, and worker 0 (host-a:1) has died" in capfd.readouterr().err


def test_what_is_being_saved_is_finished(monkeypatch):
    monkeypatch.setattr(heartbeat, "_SAVING_SECONDS", 300.0)
    near, far = connected()
    worker = Worker(1, {0: near})
    began, may_end, saved = threading.Event(), threading.Event(), threading.Event()

    def save():
        began.set()
        may_end.wait(300)
        saved.set()

    worker.watch.saving = save
    far.close()
    assert began.wait(300) and not worker.ended.is_set()
    may_end.set()
    worker.wait()
    assert saved.is_set()


def test_a_failed_program_learns_why_at_once(monkeypatch):
    """It need not wait for the time that is left to programs to end by themselves."""
    monkeypatch.setattr(heartbeat, "_SAVING_SECONDS", 0.01)
    near, far = connected()
    worker = Worker(1, {0: near})
    monkeypatch.setattr(heartbeat, "_GRACE_SECONDS", 1000.0)
    far.close()
    explaining = threading.Thread(target=worker.watch.explain)
    explaining.start()
    assert worker.wait() == 1
    explaining.join(300)
    assert not explaining.is_alive()


def test_alone_there_is_nothing_to_explain():
    watch = Watch(30.0, 60.0)
    watch.explain()
    watch.leave()
    watch.fail("why")
