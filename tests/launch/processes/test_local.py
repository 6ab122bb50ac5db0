"""The launcher: its workers' output, signals, restarts, ports and cores."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags

from common.errors import UsageError
from launch import local
from launch.processes.supervisor import outcome, pause_before

_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="prctl and affinity are Linux'")
_QUICK = {"_FIRST_PAUSE_SECONDS": 0.01, "_STOP_SECONDS": 300.0}


def _pids(lines: list[str]) -> list[int]:
    return [int(line.split()[-1]) for line in lines]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or ") Z" not in stat.read_text()  # a zombie only waits for init
    except OSError:
        return False


def _assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 300
    while any(map(_lives, pids)):
        assert time.monotonic() < deadline, [pid for pid in pids if _lives(pid)]
        time.sleep(0.02)


def test_lines_are_tagged_and_never_broken(launch):
    body = """
for number in range(40):
    for stream, letter in ((sys.stdout, "o"), (sys.stderr, "e")):
        stream.write(f"{number} ")
        stream.flush()
        stream.write(letter * 20_000 + "\\n")
os.write(1, b"\\xff without an end")
"""
    run = launch(body, stderr=subprocess.STDOUT, text=False)
    stdout, _ = run.finish(0)
    lines = stdout.split(b"\n")
    assert lines.pop() == b""
    for index in range(2):
        own = [line for line in lines if line.startswith(b"[worker %d] " % index)]
        for letter in (b"o", b"e"):
            expected = [b"[worker %d] %d %s" % (index, n, letter * 20_000) for n in range(40)]
            assert [line for line in own if line.endswith(letter)] == expected
        assert b"[worker %d] \xff without an end" % index in own
    assert len([line for line in lines if line.startswith(b"[worker")]) == 2 * (2 * 40 + 1)


def test_cluster_flags_and_aligned_tags(launch):
    body = 'print(json.dumps([config, sys.argv[1:], os.environ["PYTHONUNBUFFERED"]]))'
    arguments = ["--config=a b", "--", "--data_dir", "x"]
    stdout, _ = launch(body, "--workers=11", "--", *arguments).finish(0)
    lines = sorted(stdout.splitlines())
    assert [line[:12] for line in lines] == [f"[worker {i:2}] " for i in range(11)]
    found = [json.loads(line[12:]) for line in lines]
    addresses = found[0][0]["cluster"]["worker"]
    assert len(set(addresses)) == 11
    assert all(re.fullmatch(r"localhost:\d+", address) for address in addresses)
    for index, (config, argv, unbuffered) in enumerate(found):
        assert config["cluster"] == {"worker": addresses}
        assert config["task"] == {"type": "worker", "index": index}
        assert argv == ["--strategy=multi_worker", *arguments]
        assert unbuffered == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_once_and_gives_42(launch, number):
    body = "on_sigterm(lambda: (time.sleep(0.3), sys.exit(42)))\nwait()"
    run = launch(body, constants={"_SAME_SIGNAL_SECONDS": 60.0})
    run.read_until("ready", 2)
    run.process.send_signal(number)
    run.process.send_signal(number)  # at the same moment: the same request
    stdout, stderr = run.finish(42)
    assert sorted(stdout.splitlines()) == ["[worker 0] got SIGTERM", "[worker 1] got SIGTERM"]
    assert stderr.count("stopped on request") == 1 and "restart" not in stderr
    assert run.starts() == [1, 1]


def test_a_second_signal_kills_all(launch):
    body = """
child = subprocess.Popen(["sleep", "60"])
print("child", child.pid)
on_sigterm(lambda: None)
wait()
"""
    run = launch(body)
    lines = run.read_until(" ", 4)  # both of both workers, in any order
    run.process.send_signal(signal.SIGTERM)
    run.read_until("got SIGTERM", 2)
    time.sleep(0.2)
    run.process.send_signal(signal.SIGINT)
    _, stderr = run.finish(128 + signal.SIGINT)
    assert "SIGINT again" in stderr
    assert len(_pids(lines)) == 4
    _assert_gone(_pids(lines))


@pytest.mark.parametrize("code", [0, 42])
def test_workers_that_have_nothing_to_save_yet(launch, code):
    """One dies of the SIGTERM, because it does not listen yet: that is no failure."""
    listening = f"on_sigterm(lambda: sys.exit({code}))"
    body = f'{listening} if index else print("ready")\nwait()'
    run = launch(body)
    run.read_until("ready", 2)
    run.process.terminate()
    run.finish(42)


def test_a_killed_worker_takes_the_others_and_all_start_again(launch):
    body = """
print(attempt, config["cluster"])
if attempt:
    sys.exit()
if index == 1:
    while not os.path.exists("listening"):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
on_sigterm(lambda: sys.exit(42))
open("listening", "w").close()
wait()
"""
    run = launch(body, constants=_QUICK)
    stdout, stderr = run.finish(0)
    assert run.starts() == [2, 2]
    assert stdout.count("got SIGTERM") == 1
    assert "worker 1 died of SIGKILL" in stderr and "worker 0" not in stderr
    first, second = (set(re.findall(rf"\] {attempt} (.*)", stdout)) for attempt in (0, 1))
    assert len(first) == len(second) == 1 and first != second  # other ports


def test_restarts_are_used_up(launch):
    run = launch("if index: sys.exit(3)\nwait()", "--max_restarts=2", constants=_QUICK)
    _, stderr = run.finish(1)
    assert run.starts()[1] == 3
    assert stderr.count("worker 1 ended with code 3") == 3
    assert "restart 2 of 2" in stderr and "restart 3" not in stderr


def test_a_long_run_resets_the_restarts(launch):
    body = "sys.exit(3 if index and attempt < 3 else 0)"
    run = launch(body, "--max_restarts=1", constants={**_QUICK, "_STEADY_SECONDS": 0.0})
    _, stderr = run.finish(0)
    assert stderr.count("restart 1 of 1") == 3


def test_bad_usage_is_not_restarted(launch):
    body = """
if index == 0:
    wait()
print("error: no such field", file=sys.stderr)
sys.exit(2)
"""
    run = launch(body)
    _, stderr = run.finish(2)
    assert run.starts()[1] == 1
    assert stderr.count("[worker 1] error: no such field\n") == 1 and "not restarted" in stderr


def test_workers_that_stop_by_themselves_start_again(launch):
    """One ends with 42: the others, which agreed to stop with it, get no signal."""
    body = """
if attempt:
    sys.exit()
on_sigterm(lambda: sys.exit(5))
time.sleep(0.3 * index)
sys.exit(42)
"""
    run = launch(body, constants=_QUICK)
    stdout, stderr = run.finish(0)
    assert run.starts() == [2, 2] and "got SIGTERM" not in stdout
    assert "restart 1 of 3 in 0.01 s" in stderr


def test_workers_that_are_stopping_get_no_signal(launch):
    """To a trainer that is saving, one more means "at once"."""
    body = """
if index == 0:
    sys.exit(42)
on_sigterm(lambda: sys.exit(5))
while not os.path.exists("saved"):
    time.sleep(0.01)
sys.exit(42)
"""
    run = launch(body)
    run.read_until("ready", 1)
    assert "worker 0 stopped by itself" in run.process.stderr.readline()
    run.process.terminate()
    assert "SIGTERM: the workers save" in run.process.stderr.readline()
    (run.folder / "saved").touch()
    stdout, _ = run.finish(42)
    assert stdout == ""


def test_stopped_workers_with_no_restarts_left_give_42(launch):
    run = launch("sys.exit(42)", "--max_restarts=0")
    run.finish(42)
    assert run.starts() == [1, 1]


@pytest.mark.parametrize("ended", [42, 1])
def test_a_signal_ends_the_pause_before_a_restart(launch, ended):
    """Stopped on request, whatever the restart is for."""
    constants = {"_FIRST_PAUSE_SECONDS": 50.0}
    run = launch(f"sys.exit({ended})", constants=constants)
    while "restart 1 of 3 in 50 s" not in (line := run.process.stderr.readline()):
        assert line
    run.process.terminate()
    run.finish(42)
    assert max(run.starts()) == 1  # one may have failed before the other began


def test_a_hanging_worker_is_killed_after_the_grace_time(launch):
    run = launch("on_sigterm(lambda: None)\nwait()", "--workers=1", "--grace_seconds=0.5")
    pids = _pids(run.read_until("ready", 1))
    run.process.terminate()
    _, stderr = run.finish(1)
    assert "worker 0 has not ended in time and is killed" in stderr
    assert run.starts() == [1, 0]
    _assert_gone(pids)


def test_a_worker_that_hangs_after_the_death_of_another_is_killed(launch):
    body = """
if attempt:
    sys.exit()
if index == 0:
    on_sigterm(lambda: None)
    open("listening", "w").close()
    wait()
while not os.path.exists("listening"):
    time.sleep(0.01)
sys.exit(1)
"""
    run = launch(body, constants={**_QUICK, "_STOP_SECONDS": 0.3})
    _, stderr = run.finish(0)
    assert "worker 1 ended with code 1" in stderr
    assert "worker 0 has not ended in time and is killed" in stderr
    assert run.starts() == [2, 2]


@_LINUX
def test_workers_die_with_the_launcher(launch):
    run = launch("on_sigterm(lambda: None)\nwait()")
    pids = _pids(run.read_until("ready", 2))
    run.process.kill()
    assert run.process.wait(timeout=300) == -signal.SIGKILL
    _assert_gone(pids)


def test_a_worker_leaves_no_process_behind(launch):
    body = 'print(subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL).pid)'
    stdout, _ = launch(body).finish(0)
    assert len(stdout.splitlines()) == 2
    _assert_gone(_pids(stdout.splitlines()))


def test_the_run_goes_on_when_nobody_reads_its_output(launch):
    body = """
print("ready")
while not os.path.exists("closed"):
    time.sleep(0.01)
for _ in range(100):
    print("x" * 10_000)
open(f"end-{index}", "w").close()
"""
    run = launch(body)
    run.read_until("ready", 2)
    run.process.stdout.close()
    (run.folder / "closed").touch()
    assert run.process.wait(timeout=300) == 0
    assert len(list(run.folder.glob("end-*"))) == 2


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two CPU cores",
)
def test_pinned_workers_have_cores_of_their_own(launch):
    body = "print(json.dumps(sorted(os.sched_getaffinity(0))))"
    stdout, stderr = launch(body, "--pin_cores").finish(0)
    shares = [set(json.loads(line.partition("] ")[2])) for line in stdout.splitlines()]
    assert len(shares) == 2 and all(shares)
    assert not shares[0] & shares[1]
    assert shares[0] | shares[1] == os.sched_getaffinity(0)
    assert stderr == ""


@_LINUX
def test_shares_of_cores(monkeypatch, capfd):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 2, 3, 5, 6, 7, 9})
    assert local.share_cores(3, pin=True) == [{1, 2}, {3, 5}, {6, 7, 9}]
    assert local.share_cores(3, pin=False) == [None] * 3
    assert capfd.readouterr().err == ""
    assert local.share_cores(8, pin=True) == [None] * 8
    assert "8 workers on 7 CPU core(s): they share, unpinned" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers=0"], ["workers", "0"]),
        (["--wrokers=2"], ["wrokers", "after --"]),
        (["extra"], ["extra"]),
        (["--port=65535"], ["65536"]),
        (["--module=trainer.nope"], ["--module=trainer.nope: there is no such Python module"]),
        (["--", "--strategy=mirrored"], ["--strategy=mirrored", "multi_worker"]),
        (["--", "--strategy", "tpu"], ["--strategy=tpu", "multi_worker"]),
        (["--", "--help"], ["--help", "python -m job --help"]),
    ],
)
def test_bad_flags(launch, arguments, words):
    run = launch("", *arguments)
    stdout, stderr = run.finish(2)
    (line,) = stderr.splitlines()
    assert line.startswith("error: ") and not stdout and run.starts() == [0, 0]
    for word in words:
        assert word in line


def test_a_strategy_that_the_user_names_is_not_added_again():
    flags.FLAGS.mark_as_parsed()
    for named in (["--a", "--strategy=multi_worker"], ["--strategy", "multi_worker", "--a"]):
        assert local.with_strategy(named) == named
    with pytest.raises(UsageError, match="one_device"):
        local.with_strategy(["--strategy=multi_worker", "--strategy=one_device"])


def test_ports_are_free_and_different():
    ports = local.pick_ports(400)  # so many that chance would repeat one
    assert len(set(ports)) == 400 and min(ports) >= 1024
    assert local.pick_ports(1, ports[0]) == [ports[0]]
    with socket.socket() as server:
        server.bind(("localhost", ports[1]))
        server.listen()
        with pytest.raises(UsageError, match=f"port {ports[1]} "):
            local.pick_ports(1, ports[1])


@pytest.mark.parametrize(
    ("codes", "asked", "expected"),
    [
        ([0, 0], False, 0),
        ([0, 0], True, 0),
        ([0, 42], False, 42),
        ([42, 42], True, 42),
        ([42, -15], True, 42),
        ([42, -15], False, 1),
        ([42, -9], True, 1),
        ([0, 1], True, 1),
        ([-15, 2], False, 2),
        ([1, 2], True, 2),
    ],
)
def test_outcome(codes, asked, expected):
    assert outcome(codes, asked) == expected


def test_pauses():
    assert [pause_before(n) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert pause_before(10_000) == 60
