"""Who may hold a directory: two processes, dead ones, other machines, and the one that lost it."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import lock
from common.errors import UsageError


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lock, "_REFRESH_SECONDS", 0.1)
    monkeypatch.setattr(lock, "_EXPIRY_SECONDS", 1.0)


def _write(directory, **changes) -> Path:
    """Write the lock of a process on another machine, whose clock is an hour ahead."""
    holder = {**lock._this_process(), "token": "other", "pid": 12, "host": "far"}
    path = directory / "in_use.json"
    path.write_text(json.dumps({**holder, "machine": "m", "time": 1e10, **changes}))
    return path


def test_held_by_this_process(tmp_path):
    directory = tmp_path / "run=[a*b?]"
    with lock.held(str(directory)):
        holder = json.loads((directory / "in_use.json").read_text())
        assert holder["pid"] == os.getpid()
        message = f"{directory} is in use by process {os.getpid()} on {holder['host']} "
        with pytest.raises(UsageError) as refused, lock.held(str(directory)):
            pass
        assert str(refused.value).startswith(message)
    assert not directory.exists()  # it was made for the lock alone
    with lock.held(str(directory)):
        (directory / "file").touch()
    assert os.listdir(directory) == ["file"]


@pytest.mark.parametrize("changes", [{"pid": 2**22 + 1}, {"pid": os.getppid(), "started": 1}])
def test_a_dead_holder_on_this_machine(tmp_path, changes):
    """Also where its number has been given to another process."""
    here = {key: lock._this_process()[key] for key in ("host", "machine")}
    _write(tmp_path, **here, **changes)
    with lock.held(str(tmp_path)):
        pass


def test_a_process_that_is_dead_but_not_buried(tmp_path):
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert lock._start_time(process.pid) is None
    process.wait()


def test_dead_holders_elsewhere(tmp_path, capsys):
    _write(tmp_path)
    with lock.held(str(tmp_path)):
        assert "names process 12 on far: waiting up to 1 s" in capsys.readouterr().out
    _write(tmp_path, time=1e9)  # too old to be waited for
    with lock.held(str(tmp_path)):
        assert capsys.readouterr().out == ""


def test_a_live_holder_elsewhere(tmp_path, monkeypatch):
    path = _write(tmp_path)
    read, times = lock._read, iter((1.0, 1.0, 1.0, 2.0))
    monkeypatch.setattr(lock, "_EXPIRY_SECONDS", 60.0)
    monkeypatch.setattr(lock, "_LONG_DEAD_SECONDS", 1e11)
    monkeypatch.setattr(lock, "_read", lambda path: {**read(path), "time": next(times)})
    content = path.read_bytes()
    with (
        pytest.raises(UsageError, match=r"in use by process 12 on far \("),
        lock.held(str(tmp_path)),
    ):
        pass
    assert path.read_bytes() == content


def test_two_at_once(tmp_path, monkeypatch):
    """Both take it from a dead one: the last writer has it."""
    _write(tmp_path, time=1e9)
    clock = SimpleNamespace(time=time.time, sleep=lambda seconds: _write(tmp_path))
    monkeypatch.setattr(lock, "time", clock)
    with pytest.raises(UsageError, match="in use by process 12 on far"), lock.held(str(tmp_path)):
        pass


def test_the_faster_of_two(tmp_path, monkeypatch):
    """The other one makes the file between this one's look and its own attempt."""
    monkeypatch.setattr(lock, "_is_alive", lambda path, holder: True)
    link = os.link

    def link_second(draft, path):
        _write(tmp_path)
        link(draft, path)

    monkeypatch.setattr(lock.os, "link", link_second)
    with pytest.raises(UsageError, match="in use by process 12 on far"), lock.held(str(tmp_path)):
        pass
    assert os.listdir(tmp_path) == ["in_use.json"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*paths):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(lock.os, "link", refuse)
    with lock.held(str(tmp_path)):
        assert os.listdir(tmp_path) == ["in_use.json"]
        with pytest.raises(UsageError, match="is in use by process"), lock.held(str(tmp_path)):
            pass


def test_a_file_that_makes_no_sense(tmp_path):
    for content in ("", "{", "[]", "{}"):
        (tmp_path / "in_use.json").write_text(content)
        with lock.held(str(tmp_path)):
            pass


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    directory = str(tmp_path / "file" / "model")
    with pytest.raises(UsageError, match="model cannot be written"), lock.held(directory):
        pass


def test_a_lost_lock_ends_the_process(tmp_path, monkeypatch, capsys):
    """As it happens to a process that was suspended for too long."""
    path = _write(tmp_path)
    content = path.read_bytes()
    monkeypatch.setattr(lock.os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        lock._refresh(str(path), {"token": "mine"}, threading.Event())
    assert ended.value.code == 1 and path.read_bytes() == content
    assert "error: process 12 on far has taken" in capsys.readouterr().out


def test_the_time_stamp_is_renewed(tmp_path):
    path = tmp_path / "in_use.json"
    with lock.held(str(tmp_path)):
        first = json.loads(path.read_text())
        deadline = time.monotonic() + 300
        while (now := json.loads(path.read_text())) == first:
            assert time.monotonic() < deadline
    assert now["time"] > first["time"] and now["token"] == first["token"]
