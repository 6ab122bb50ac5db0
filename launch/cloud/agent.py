#!/usr/bin/env python3
"""Runs on the TPU machine: fetches the job from the bucket, and keeps it running.

This file is the start-up script in the metadata of the node, so it needs nothing but Python 3.10.
At every boot it makes itself a service of systemd. That looks for job.json in the folder which the
metadata names, installs what the job says, starts the trainer, starts it again with code 42 or
after a crash, sends what it prints to logs/, and tells in state.json what it is doing. A job that
is done, or has failed for good, is left alone until job.json is written anew. All of it goes on
without the machine of the user.
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
# Seconds: between two looks for a job; between two parts of the log; between two signs of life;
# for one request; of a run that makes up for the restarts before; at most between two starts.
POLL, LOG, BEAT, TIMEOUT, GOOD_RUN, LONGEST_PAUSE = 15.0, 15.0, 60.0, 60.0, 600.0, 60.0
TRIES = 5  # of a request; of the installation
INSTALL_TRIES = 3
PART_BYTES = 4 << 20
BAD_INPUT = 2  # the exit code of the trainer that no new start can mend

stopping = False  # set by a signal; no Event, whose lock a signal handler must not take


def say(text):
    print(f"agent: {text}", flush=True)


def on_signal(number, frame):
    global stopping
    stopping = True


def pause(seconds):
    """Sleeps so long, or until a signal comes."""
    end = time.monotonic() + seconds
    while not stopping and time.monotonic() < end:
        time.sleep(min(0.2, seconds))


def open_url(request, direct=False):
    """The body of the answer. Tries again what may pass; raises OSError for the rest."""
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
    """A value of the metadata server; None if it has none."""
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
    """Requests with the rights of this machine."""

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
        """Number of this version of the object; None if there is none."""
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
    """Sends the log and the state, from a thread; nothing of it may stop the training.

    Parts of the log are objects of their own, named so that they sort by time: an object cannot be
    appended to.
    """

    def __init__(self, folder, log_path):
        self._folder, self._path = folder, log_path
        now = time.time()  # with milliseconds: two jobs may start within a second
        seconds = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
        self._start = f"{seconds}.{int(now % 1 * 1000):03d}Z"
        self._part, self._sent = 0, 0
        self._state, self._changed = {}, False
        self._lock, self._told, self._end = threading.Lock(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def set(self, generation, state, **more):
        """Tells the state of the job at once, together with the log until now."""
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
                say(f"cannot report, trying again later: {error}")

    def _send_log(self, whole):
        with open(self._path, "rb") as file:
            while True:
                file.seek(self._sent)
                text = file.read(PART_BYTES)
                if not whole and len(text) < PART_BYTES:  # whole lines
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


def run(argv, log, **options):
    """Runs a command, its output in the log; its exit code, 128 + n for signal n.

    It gets SIGTERM once if this process gets a signal. What it leaves behind when it ends is
    killed: only one process can have the TPU.
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
    """Fetches and unpacks the code, and runs the commands that install it, once for each archive.

    Returns:
        the directory of the code; None if a command failed, or a stop was asked for.
    """
    directory = os.path.join(HOME, "code-" + job["code_sha256"][:16])
    done = os.path.join(directory, ".installed")
    if os.path.exists(done):
        return directory
    content = folder.read(job["code"])
    if hashlib.sha256(content).hexdigest() != job["code_sha256"]:
        raise OSError(f"{job['code']} is not what the job says")
    os.makedirs(directory, exist_ok=True)
    archive = os.path.join(directory, ".code.tar.gz")
    with open(archive, "wb") as file:
        file.write(content)
    with tarfile.open(archive) as tar:
        tar.extractall(directory)
    for command in job["install"]:
        for attempt in range(INSTALL_TRIES):
            pause(10.0 * attempt)
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
    """Starts the trainer until it is done, fails for good, or this machine stops."""
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
    """Looks for jobs and runs them, until it is told to stop."""
    while not stopping:
        try:
            generation = folder.generation("job.json")
            if generation:
                job = json.loads(folder.read("job.json", generation))
                if not has_ended(folder, generation):
                    work(job, generation, folder)
                if job.get("delete_url") and has_ended(folder, generation):
                    say("giving the TPU back")
                    google.call("DELETE", job["delete_url"])
        except OSError as error:
            say(f"trying again: {error}")
        pause(POLL)


def has_ended(folder, generation):
    """Whether this version of the job is done, or has failed for good."""
    if not folder.generation("state.json"):
        return False
    state = json.loads(folder.read("state.json"))
    return state["generation"] == generation and state["state"] in ("done", "failed")


def work(job, generation, folder):
    """Installs and runs one job."""
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
    """Goes on under systemd, which starts it again and lets it save at a shutdown."""
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
        say("not worker 0, which drives the whole slice: nothing to do")
        # Not the end, which systemd would answer with a new start.
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
