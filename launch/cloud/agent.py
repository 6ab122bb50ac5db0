#!/usr/bin/env python3
"""Fetch the job from the bucket on the TPU machine, and keep it running.

This file is the node's startup script, so it needs only Python 3.10. At every boot it installs
itself as a systemd service. The service polls for job.json in the folder that the node's metadata
names, installs the code, and starts the trainer. It restarts the trainer after exit code 42 and
after a crash, sends the output to logs/, and reports in state.json. It leaves a job that is done or
has failed for good alone until job.json is written again. None of this needs the user's machine.
"""

import contextlib
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

METADATA = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
STORAGE = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com").rstrip("/")
HOME = os.environ.get("TRANSFORMER_AGENT_HOME", "/opt/transformer-job")
# All in seconds.
POLL = 15.0  # between two polls for a job
LOG = 15.0  # between two parts of the log
BEAT = 60.0  # between two reports of an unchanged state
TIMEOUT = 60.0  # for one request
GOOD_RUN = 600.0  # a run of this length resets the count of restarts
LONGEST_PAUSE = 60.0  # between two starts
TRIES = 5  # of a request
INSTALL_TRIES = 3
INSTALL_PAUSE = 10.0  # seconds before the second try; twice that before the third
PART_BYTES = 4 << 20
BAD_INPUT = 2  # the trainer's exit code when a restart cannot help

# Set by a signal. An Event will not do: a signal handler must not take its lock.
stopping = False


def say(text):
    with contextlib.suppress(OSError, UnicodeError):  # a full disk must not end the job
        print(f"agent: {text}", flush=True)


def on_signal(number, frame):
    global stopping
    stopping = True


def pause(seconds):
    """Sleep for some seconds, or until a signal arrives."""
    end = time.monotonic() + seconds
    while not stopping and time.monotonic() < end:
        time.sleep(min(0.2, seconds))


def open_url(request, direct=False):
    """Return the body of the answer.

    Retry transient errors; raise OSError for others.
    """
    proxies = [urllib.request.ProxyHandler({})] if direct else []
    last: Exception | None = None
    for attempt in range(TRIES):
        try:
            opener = urllib.request.build_opener(*proxies)
            with opener.open(request, timeout=TIMEOUT) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code not in (408, 429, 500, 502, 503, 504):
                raise
            last = error
        except (OSError, http.client.HTTPException) as error:
            last = error
        pause(2**attempt / 4)
    raise OSError(f"{request.full_url}: {last}")


def metadata(path):
    """Return a value from the metadata server; None if it does not exist."""
    request = urllib.request.Request(
        f"http://{METADATA}/computeMetadata/v1/{path}", headers={"Metadata-Flavor": "Google"}
    )
    try:
        return open_url(request, direct=True).decode().strip()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


class Google:
    """Makes requests with the rights of this machine."""

    def __init__(self):
        self._token, self._until, self._lock = "", 0.0, threading.Lock()

    def call(self, method, url, content=None):
        with self._lock:
            if time.monotonic() > self._until:
                text = metadata("instance/service-accounts/default/token")
                if text is None:
                    raise OSError("this machine has no service account")
                answer = json.loads(text)
                self._token = answer["access_token"]
                self._until = time.monotonic() + answer["expires_in"] - 300
        headers = {"Authorization": f"Bearer {self._token}"}
        if content is not None:
            headers["Content-Type"] = "application/octet-stream"
        request = urllib.request.Request(url, content, headers, method=method)
        return open_url(request)


class Folder:
    """A folder in a bucket."""

    def __init__(self, address, google):
        self._bucket, _, prefix = address.removeprefix("gs://").partition("/")
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._google = google

    def _url(self, name, query=""):
        path = urllib.parse.quote(self._prefix + name, safe="")
        return f"{STORAGE}/storage/v1/b/{self._bucket}/o/{path}{query}"

    def generation(self, name):
        """Return the object's generation number; None if the object does not exist."""
        try:
            return json.loads(self._google.call("GET", self._url(name)))["generation"]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def read(self, name, generation=None):
        version = f"&generation={generation}" if generation else ""
        return self._google.call("GET", self._url(name, f"?alt=media{version}"))

    def write(self, name, content):
        path = urllib.parse.quote(self._prefix + name, safe="")
        query = f"uploadType=media&name={path}"
        url = f"{STORAGE}/upload/storage/v1/b/{self._bucket}/o?{query}"
        self._google.call("POST", url, content)


class Reporter:
    """Sends the log and the state from a thread; its errors never stop the training.

    An object cannot be appended to, so each part of the log is an object; names sort by time.
    """

    def __init__(self, folder, log_path):
        self._folder, self._path = folder, log_path
        now = time.time()  # including milliseconds: two jobs may start in one second
        seconds = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
        self._start = f"{seconds}.{int(now % 1 * 1000):03d}Z"
        self._part, self._sent = 0, 0
        self._state, self._changed = {}, False
        self._lock, self._told, self._end = threading.Lock(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def set(self, generation, state, **more):
        """Report the job's state at once, with the log so far."""
        with self._lock:  # or the thread, which is sending the last one, takes this one for sent
            self._state = {"generation": generation, "state": state, **more}
            self._changed = True
        say(" ".join([state, *(f"{key}={value}" for key, value in more.items())]))
        self.send(whole=True)

    def send(self, whole=False):
        with self._lock:
            try:
                self._send_log(whole)
                if self._state and (self._changed or time.monotonic() - self._told > BEAT):
                    state = {**self._state, "time": time.time()}
                    self._folder.write("state.json", json.dumps(state).encode())
                    self._changed, self._told = False, time.monotonic()
            except OSError as error:
                say(f"cannot report, will try again: {error}")

    def _send_log(self, whole):
        with open(self._path, "rb") as file:
            while True:
                file.seek(self._sent)
                text = file.read(PART_BYTES)
                if not whole and len(text) < PART_BYTES:  # only whole lines
                    text = text[: text.rfind(b"\n") + 1]
                if not text:
                    return
                self._folder.write(f"logs/{self._start}-{self._part:06d}.txt", text)
                self._part, self._sent = self._part + 1, self._sent + len(text)

    def _run(self):
        while not self._end.wait(LOG):
            self.send()

    def close(self):
        self._end.set()
        self._thread.join()
        self.send(whole=True)
        while self._changed and not stopping:  # or the job would be run again
            pause(POLL)
            self.send(whole=True)


def run(argv, log, **options):
    """Run a command with its output in the log; return its exit code, or 128 + n for signal n.

    If this process gets a signal, the command gets SIGTERM once. Processes that the command leaves
    behind are killed, because only one process can hold the TPU.
    """
    say("running " + " ".join(argv))
    process = subprocess.Popen(
        argv, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, **options
    )
    told = False
    while process.poll() is None:
        if stopping and not told:
            process.terminate()
            told = True
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    code = process.returncode
    return code if code >= 0 else 128 - code


def install(job, folder, log):
    """Fetch and unpack the code and run the commands that install it, once for each archive.

    Returns:
        The directory of the code; None if a command failed or a stop was requested.
    """
    directory = os.path.join(HOME, "code-" + job["code_sha256"][:16])
    done = os.path.join(directory, ".installed")
    if os.path.exists(done):
        return directory
    content = folder.read(job["code"])
    if hashlib.sha256(content).hexdigest() != job["code_sha256"]:
        raise OSError(f"{job['code']} does not have the checksum in job.json")
    os.makedirs(directory, exist_ok=True)
    archive = os.path.join(directory, ".code.tar.gz")
    with open(archive, "wb") as file:
        file.write(content)
    with tarfile.open(archive) as tar:
        tar.extractall(directory)
    for command in job["install"]:
        for attempt in range(INSTALL_TRIES):
            pause(INSTALL_PAUSE * attempt)
            if stopping:
                return None
            if not run(["bash", "-ec", command], log, cwd=directory):
                break
        else:
            return None
    with open(done, "w", encoding="ascii"):
        pass
    return directory


def keep_running(job, generation, directory, reporter, log):
    """Run the trainer until it is done, fails for good, or this machine stops."""
    restarts = 0
    while True:
        reporter.set(generation, "running", restarts=restarts)
        start = time.monotonic()
        code = run(job["argv"], log, cwd=directory, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        if code in (0, BAD_INPUT):
            reporter.set(generation, "failed" if code else "done", code=code, restarts=restarts)
            return
        if stopping:
            reporter.set(generation, "stopped", code=code, restarts=restarts)
            return
        restarts = 1 if time.monotonic() - start > GOOD_RUN else restarts + 1
        if restarts > job["max_restarts"]:
            reporter.set(generation, "failed", code=code, restarts=restarts - 1)
            return
        seconds = min(LONGEST_PAUSE, 2.0 ** min(restarts - 1, 10))
        say(f"code {code}; restart {restarts} of {job['max_restarts']} in {seconds:g} s")
        pause(seconds)
        if stopping:
            return


def serve(folder, google):
    """Poll for jobs and run them, until a stop is requested."""
    while not stopping:
        try:
            generation = folder.generation("job.json")
            if generation:
                job = json.loads(folder.read("job.json", generation))
                if not has_ended(folder, generation):
                    work(job, generation, folder)
                if job.get("delete_url") and has_ended(folder, generation):
                    say("deleting the TPU")
                    google.call("DELETE", job["delete_url"])
        except OSError as error:
            say(f"trying again: {error}")
        pause(POLL)


def has_ended(folder, generation):
    """Return whether this version of the job is done or has failed for good."""
    if not folder.generation("state.json"):
        return False
    state = json.loads(folder.read("state.json"))
    return state["generation"] == generation and state["state"] in ("done", "failed")


def work(job, generation, folder):
    """Install and run one job."""
    path = os.path.join(HOME, "log")
    with open(path, "wb", buffering=0) as log:
        reporter = Reporter(folder, path)
        try:
            reporter.set(generation, "installing")
            directory = install(job, folder, log)
            if directory:
                keep_running(job, generation, directory, reporter, log)
            elif not stopping:
                reporter.set(generation, "failed", code=1, message="the installation failed")
        finally:
            reporter.close()


def become_a_service():
    """Continue under systemd, which restarts this program and lets it save before a shutdown."""
    os.makedirs(HOME, exist_ok=True)
    path = os.path.join(HOME, "agent.py")
    with open(__file__, encoding="utf-8") as source, open(path, "w", encoding="utf-8") as target:
        target.write(source.read())
    properties = ["Restart=always", "RestartSec=10", "KillMode=mixed", "TimeoutStopSec=90"]
    options = [f"--property={one}" for one in properties]
    command = [sys.executable or "python3", path, "--serve"]
    return subprocess.call(["systemd-run", "--unit=transformer-job", *options, *command])


def main():
    if "--serve" not in sys.argv:
        return become_a_service()
    if (metadata("instance/attributes/agent-worker-number") or "0") != "0":
        say("worker 0 drives the whole slice; nothing to do on this one")
        # If this process ended, systemd would restart it.
        ends = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, ends)
        signal.sigwait(ends)
        return 0
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    os.makedirs(HOME, exist_ok=True)
    google = Google()
    serve(Folder(metadata("instance/attributes/transformer-job"), google), google)
    return 0


if __name__ == "__main__":
    sys.exit(main())
