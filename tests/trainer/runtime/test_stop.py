"""Requests to stop: signals at any moment, and notices of Google Cloud."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from trainer.runtime import google_cloud, maintenance, signals
from trainer.runtime.signals import StopRequest

# Says when it is inside a call of C that no signal interrupts, as a compilation is, and when it has
# got the first signal.
_BUSY = """
import hashlib, sys, threading, time
from trainer.runtime import signals
def tell():
    while not stop.reason:
        time.sleep(0.01)
    print("asked", flush=True)
with signals.StopRequest() as stop:
    if sys.argv[1] == "hold":
        signals._SAME_SIGNAL_SECONDS = float(sys.argv[2])
        stop.hold()
        threading.Thread(target=tell, daemon=True).start()
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""


def _busy(*arguments: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", _BUSY, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "busy\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_to_save(number):
    """The process ends at once, though its main thread is far from Python."""
    process = _busy("start")
    process.send_signal(number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 42
    assert output == f"{number.name}: nothing to save yet; start again to go on\n"


def test_a_second_signal_ends_at_once():
    process = _busy("hold", "0")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGINT
    assert output == "SIGINT again: ending at once\n"


def test_twice_at_once_is_one():
    """As timeout(1) sends it: to its child, and to the child's group."""
    process = _busy("hold", "1e9")
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    time.sleep(1)
    assert process.poll() is None
    process.kill()
    process.communicate(timeout=300)


def _wait_for(condition) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_remembered_and_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        stop.hold()
        assert stop.reason is None
        os.kill(os.getpid(), signal.SIGTERM)
        _wait_for(lambda: stop.reason)
        assert stop.reason == "SIGTERM"
        stop.request("another reason")
        assert stop.reason == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_handler_that_somebody_else_puts_in_place_does_not_stay():
    """As TensorFlow does while it starts several workers."""
    with StopRequest() as stop:
        stop.hold()
        ours = signals._get_handler(signal.SIGTERM)
        signals._set_handler(signal.SIGTERM, signal.SIG_IGN)
        _wait_for(lambda: signals._get_handler(signal.SIGTERM) == ours)
        os.kill(os.getpid(), signal.SIGTERM)
        _wait_for(lambda: stop.reason)
        assert stop.reason == "SIGTERM"


def test_a_hang_up_is_a_request_to_stop_unless_it_is_ignored():
    """As nohup ignores it."""
    for handler, reason in ((signal.SIG_DFL, "SIGHUP"), (signal.SIG_IGN, None)):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with StopRequest() as stop:
                stop.hold()
                os.kill(os.getpid(), signal.SIGHUP)
                if reason:
                    _wait_for(lambda stop=stop: stop.reason)
                assert stop.reason == reason
        finally:
            signal.signal(signal.SIGHUP, before)


def test_a_notice_is_no_first_signal():
    """The signal that follows it does not cut the saving short."""
    with StopRequest() as stop:
        stop.hold()
        stop.request("a notice")
        os.kill(os.getpid(), signal.SIGTERM)
        _wait_for(lambda: stop._signalled)
        assert stop.reason == "a notice"


@pytest.fixture
def metadata(monkeypatch):
    """A metadata server: its address, and what it answers for each key."""
    monkeypatch.setattr(maintenance, "_SECONDS", 300.0)  # for an answer
    values = {"maintenance-event": "NONE", "preempted": "FALSE"}
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            folder, _, key = self.path.rpartition("/")
            good = folder == "/computeMetadata/v1/instance" and key in values
            good = good and self.headers["Metadata-Flavor"] == "Google"
            body = values[key].encode() if good else b""
            self.send_response(200 if good else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            asked.append(key)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}", values, asked
        server.shutdown()


@pytest.mark.parametrize(
    ("key", "value"),
    [("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"), ("preempted", "TRUE")],
)
def test_notice(metadata, key, value):
    host, values, asked = metadata
    told: list[str] = []
    end = maintenance.watch(host, told.append, seconds=0.01)
    try:
        _wait_for(lambda: len(asked) > 4)
        assert told == []
        values["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"  # the machine goes on
        _wait_for(lambda: len(asked) > 8)
        assert told == []
        values[key] = value
        _wait_for(lambda: told)
        assert told == [f"Google Cloud's notice {key}={value}"]
    finally:
        end.set()


def test_a_notice_from_before_the_start(metadata, capsys):
    """Who was stopped by it and started again is to train while there is time."""
    host, values, asked = metadata
    values["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    told: list[str] = []
    end = maintenance.watch(host, told.append, seconds=0.01)
    try:
        _wait_for(lambda: len(asked) > 8)
        assert told == []
        assert "is TERMINATE_ON_HOST_MAINTENANCE already" in capsys.readouterr().err
        values["maintenance-event"] = "NONE"
        count = len(asked)
        _wait_for(lambda: len(asked) > count + 4)
        values["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
        _wait_for(lambda: told)
    finally:
        end.set()


def test_where_the_metadata_server_is(monkeypatch):
    monkeypatch.setenv("GCE_METADATA_HOST", "here:80")
    assert google_cloud.metadata_host() == "here:80"
    monkeypatch.delenv("GCE_METADATA_HOST")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    assert google_cloud.metadata_host() is None


@pytest.mark.parametrize(("product", "value"), [("Google Compute Engine\n", None), ("KVM\n", "1")])
def test_libtpu_asks_for_metadata_where_there_are_some(monkeypatch, tmp_path, product, value):
    (tmp_path / "product").write_text(product)
    monkeypatch.setattr(google_cloud, "_PRODUCT", str(tmp_path / "product"))
    for name in ("GCE_METADATA_HOST", "NO_GCE_CHECK", "TPU_SKIP_MDS_QUERY"):
        monkeypatch.delenv(name, raising=False)
    google_cloud.skip_metadata_queries()
    assert os.environ.get("TPU_SKIP_MDS_QUERY") == value
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "0")
    google_cloud.skip_metadata_queries()
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "0"


def test_a_key_that_is_never_served_is_warned_about_once(metadata, capsys):
    host, values, asked = metadata
    del values["preempted"]
    end = maintenance.watch(host, lambda _: None, seconds=0.01)
    try:
        _wait_for(lambda: len(asked) > 8)
    finally:
        end.set()
    assert capsys.readouterr().err.count("does not answer") == 1
