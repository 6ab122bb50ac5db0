"""What the process of every command needs."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from common import process

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("benchmarks", "data_pipeline", "launch", "trainer")


def _run(program: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=_ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("package", _PACKAGES)
def test_a_command_runs_keras_on_tensorflow_whatever_the_user_has_chosen(package):
    """It is chosen by the package of the command, before anything imports Keras."""
    program = (
        f"import {package}, os, sys; print(os.environ['KERAS_BACKEND'], 'keras' in sys.modules)"
    )
    done = _run(program, KERAS_BACKEND="jax")
    assert (done.stdout, done.stderr) == ("tensorflow False\n", "")


def test_every_command_stands_in_such_a_package():
    found = {
        path.relative_to(_ROOT).parts[0]
        for package in ("common", "configs", *_PACKAGES)
        for path in (_ROOT / package).rglob("*.py")
        if "    run_app(main" in path.read_text(encoding="utf-8")
    }
    assert found == set(_PACKAGES)


def test_grpc_reaches_this_machine_without_the_proxy(monkeypatch):
    """As Beam's workers do; nobody listens where the proxy should be."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "example.org,localhost")
    monkeypatch.delenv(process.NO_GRPC_PROXY, raising=False)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    process.prepare()
    assert os.environ[process.NO_GRPC_PROXY] == "example.org,localhost,127.0.0.1"
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("localhost:0")
    server.start()
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        grpc.channel_ready_future(channel).result(timeout=300)
    server.stop(None)


def test_tensorflow_is_imported_without_its_notices():
    """What else is said meanwhile is passed on, also if the process then dies."""
    program = (
        "import os, sys, trainer; from importlib.machinery import SourceFileLoader as Loader\n"
        "execute = Loader.exec_module\n"
        "def spoken(self, module):\n"
        "    execute(self, module)\n"
        "    if module.__name__ == 'tensorflow':\n"
        "        os.write(2, b'the last word\\n'); os.abort()\n"
        "Loader.exec_module = spoken\n"
        "import tensorflow"
    )
    done = _run(program, TF_CPP_MIN_LOG_LEVEL="2")
    assert done.returncode == -signal.SIGABRT
    assert done.stderr.endswith("the last word\n")
    assert "oneDNN" not in done.stderr and "InitializeLog" not in done.stderr


@pytest.mark.parametrize("package", _PACKAGES)
def test_commands_are_imported_without_garbage_collections(package):
    """And run with Python's own, which need not look at what the imports have made."""
    program = (
        "import gc, sys; sys.argv = ['-m', *sys.argv[1:]]\n"
        f"import {package}; print(*gc.get_threshold())\n"
        "from common.errors import run_app; sys.argv = ['command']\n"
        "run_app(lambda argv: print(*gc.get_threshold(), gc.get_freeze_count() > 10_000))"
    )
    done = _run(program)
    assert done.stdout.splitlines() == ["1000000 10 10", "700 10 10 True"], done.stderr
    done = _run(f"import gc, {package}; print(*gc.get_threshold())")
    assert done.stdout == "700 10 10\n"
