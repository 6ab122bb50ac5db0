"""The program that runs on the TPU machine, as a process; scripts take the trainer's place."""

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from launch.cloud import agent, job
from launch.cloud.spec import Spec
from launch.cloud.store import JOB, LOGS, STATE, Store
from tests.services.storage import BUCKET
from tests.services.tpu import MetadataServer, TpuService

ROOT = Path(__file__).parents[3]
FOLDER = f"gs://{BUCKET}/jobs/mine"
SPEC = Spec("mine", "p", "us-central1-a", "v5litepod-8", True, "x", FOLDER)
AGENT = """
import sys
from launch.cloud import agent
agent.POLL, agent.LOG, agent.BEAT = 0.1, 0.1, 0.2
agent.LONGEST_PAUSE = agent.INSTALL_PAUSE = 0.0
sys.argv = ["agent.py", "--serve"]
sys.exit(agent.main())
"""
SECONDS = 300  # for what comes sooner


class Machine:
    """A TPU machine: a home for the agent, and its surroundings."""

    def __init__(self, home: Path, storage: str, metadata: str):
        self.home = home
        self.store = Store(FOLDER)
        self._env = {
            **os.environ,
            "STORAGE_EMULATOR_HOST": storage,
            "GCE_METADATA_HOST": metadata,
            "TRANSFORMER_AGENT_HOME": str(home),
            "PYTHONPATH": str(ROOT),
        }

    def submit(self, script: str, install=("true",), restarts=3, **more) -> None:
        """Gives it a job that runs a script, in the place where the code lies."""
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz") as tar:
            info = tarfile.TarInfo("script.py")
            info.size = len(script.encode())
            tar.addfile(info, io.BytesIO(script.encode()))
        made = job.make(SPEC, [], "commit", file.getvalue(), restarts, False)
        made.update(install=list(install), argv=[sys.executable, "script.py"], **more)
        job.submit(made, file.getvalue(), self.store)

    @contextlib.contextmanager
    def boot(self):
        """Runs the agent; stops it with SIGTERM, as a shutdown does."""
        agent = subprocess.Popen([sys.executable, "-c", AGENT], env=self._env)
        try:
            yield agent
        finally:
            agent.terminate()
            try:
                agent.wait(SECONDS)
            finally:
                agent.kill()
            assert agent.returncode in (0, -signal.SIGTERM)  # it may not have begun

    def wait(self, *states: str) -> dict:
        """Until the machine tells one of these states of the job."""
        return self.until(lambda: (found := job.state(self.store)).get("state") in states and found)

    def until(self, look):
        """What `look` finds at last."""
        end = time.monotonic() + SECONDS
        while not (found := look()):
            assert time.monotonic() < end, (job.state(self.store), self.log())
            time.sleep(0.05)
        return found

    def log(self) -> str:
        return b"".join(job.read_logs(self.store, follow=False)).decode()

    def files(self) -> dict[str, str]:
        """What the script has written beside itself."""
        return {path.name: path.read_text() for path in self.home.glob("code-*/out-*")}


@pytest.fixture
def machine(bucket_service, monkeypatch, tmp_path):
    server, address = bucket_service
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    with MetadataServer({"transformer-job": FOLDER, "agent-worker-number": "0"}) as metadata:
        yield Machine(tmp_path, address, metadata.host)
    server.wipe(keep_buckets=True)


def test_a_state_that_comes_while_another_is_sent_is_told(tmp_path, monkeypatch):
    """If it is that the job is done, the job would be run once more."""
    monkeypatch.setattr(agent, "LOG", 1000.0)
    (tmp_path / "log").touch()
    written, threads = [], []

    def write(name, content):
        written.append(json.loads(content)["state"])
        if not threads:
            threads.append(threading.Thread(target=reporter.set, args=(1, "done")))
            threads[0].start()
            threads[0].join(0.2)  # it comes as far as it can

    reporter = agent.Reporter(SimpleNamespace(write=write), str(tmp_path / "log"))
    reporter.set(1, "running")
    threads[0].join(SECONDS)
    reporter.close()
    assert written == ["running", "done"]


COUNT = """
import os, signal, sys, time
with open("out-starts", "a+") as file:
    file.write("x")
    attempt = file.tell()
print("start", attempt)
"""


def test_42_and_crashes_are_started_again_until_it_is_done(machine):
    machine.submit(COUNT + "sys.exit({1: 42, 2: 1}.get(attempt, 0))", ["echo installed"])
    with machine.boot():
        found = machine.wait("done", "failed")
        assert (found["state"], found["code"], found["restarts"]) == ("done", 0, 2)
        assert machine.log() == "installed\nstart 1\nstart 2\nstart 3\n"
        time.sleep(0.5)  # several looks at a job that is done
    with machine.boot():  # the machine has started anew
        time.sleep(1.0)
    assert machine.files() == {"out-starts": "xxx"}


@pytest.mark.parametrize(("code", "starts"), [(2, 1), (1, 3), (42, 3)])
def test_the_limits_of_starting_again(machine, code, starts):
    machine.submit(COUNT + f"sys.exit({code})", restarts=2)
    with machine.boot():
        found = machine.wait("done", "failed")
    assert (found["state"], found["code"]) == ("failed", code)
    assert machine.files() == {"out-starts": "x" * starts}


def test_a_failed_job_starts_when_it_is_written_anew(machine):
    machine.submit(COUNT + "sys.exit(2 if attempt == 1 else 0)", ["echo installing"])
    with machine.boot():
        machine.wait("failed")
        job.start_again(machine.store)
        machine.wait("done")
    assert machine.files() == {"out-starts": "xx"}
    assert machine.log().count("installing") == 1  # the same code is installed once


WAIT = (
    COUNT
    + """
def stop(number, frame):
    with open("out-signals", "a") as file:
        file.write(f"{number} ")
    time.sleep(0.5)
    sys.exit(42)
signal.signal(signal.SIGTERM, stop)
if attempt == 2:
    sys.exit(0)
print("waiting")
while True:
    time.sleep(0.05)
"""
)


def test_a_shutdown_lets_the_trainer_save_and_the_next_machine_goes_on(machine):
    machine.submit(WAIT)
    with machine.boot():
        machine.until(lambda: "waiting" in machine.log())
    assert machine.files() == {"out-starts": "x", "out-signals": f"{signal.SIGTERM.value} "}
    assert job.state(machine.store)["state"] == "stopped"
    with machine.boot():
        machine.wait("done")
    assert machine.files()["out-starts"] == "xx"


def test_a_sign_of_life_comes_again_and_again(machine):
    machine.submit(WAIT)
    with machine.boot():
        first = machine.wait("running")["time"]
        machine.until(lambda: job.state(machine.store)["time"] > first + 0.4)
        assert job.is_fresh(job.state(machine.store))


def test_no_process_is_left_that_holds_the_tpu(machine):
    machine.submit(
        COUNT + "import subprocess\nif attempt == 1:\n"
        "    child = subprocess.Popen(['sleep', '600'])\n"
        "    open('out-pid', 'w').write(str(child.pid))\n    sys.exit(1)\n"
    )
    with machine.boot():
        machine.wait("done")
        status = Path(f"/proc/{machine.files()['out-pid']}/stat")
        machine.until(lambda: not status.exists() or status.read_text().split()[2] == "Z")


@pytest.mark.parametrize(("tries", "state"), [(3, "done"), (4, "failed")])
def test_an_installation_that_fails_is_tried_three_times(machine, tries, state):
    machine.submit(COUNT, [f"echo no package; echo x >> tries; [ $(wc -l < tries) -ge {tries} ]"])
    with machine.boot() as agent:
        assert machine.wait("done", "failed")["state"] == state
        assert agent.poll() is None
    assert machine.log().count("no package\n") == 3
    assert machine.files() == ({"out-starts": "x"} if state == "done" else {})


def test_code_that_is_not_what_the_job_says_is_not_run(machine):
    machine.submit(COUNT)
    made = json.loads(machine.store.read(JOB))
    machine.store.write(made["code"], b"another")
    with machine.boot():
        machine.wait("installing")
        time.sleep(0.3)
    assert machine.files() == {}
    assert hashlib.sha256(b"another").hexdigest() != made["code_sha256"]


def test_it_waits_for_a_job_and_keeps_all_of_a_long_log(machine):
    with machine.boot():
        time.sleep(0.5)
        assert machine.store.names("") == []
        machine.submit("print('\\n'.join(f'{i} é' for i in range(200_000)), end='')")
        machine.wait("done")
    assert machine.log() == "\n".join(f"{i} é" for i in range(200_000))
    assert len(machine.store.names(LOGS)) >= 1
    assert STATE in machine.store.names("")


def test_the_tpu_is_given_back_when_the_job_has_ended(machine):
    with TpuService() as cloud:
        path = f"/v2/{SPEC.parent}/queuedResources/mine?force=true"
        machine.submit(COUNT + "sys.exit(2)", delete_url=cloud.address + path)
        with machine.boot():
            machine.until(lambda: ("DELETE", path) in cloud.requests)
            assert job.state(machine.store)["state"] == "failed"
    assert machine.files() == {"out-starts": "x"}


def test_another_worker_than_the_first_does_nothing(machine, bucket_service):
    machine.submit(COUNT)
    with MetadataServer({"transformer-job": FOLDER, "agent-worker-number": "1"}) as metadata:
        other = Machine(machine.home, bucket_service[1], metadata.host)
        with other.boot():
            time.sleep(1.5)
    assert machine.files() == {}
    assert job.state(machine.store) == {}
