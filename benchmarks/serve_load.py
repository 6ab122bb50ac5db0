"""How fast `trainer.serve` starts, answers one sentence, and answers many clients at once.

    python -m benchmarks.serve_load --model_dir=MODEL --lines=in.txt
    python -m benchmarks.serve_load --model_dir=OUT --lines=in.txt --clients=16 --seconds=60

It starts the server as a user does, with the same Python, and writes a JSON line: seconds from the
start of the process to the first answer; milliseconds of a sentence of --words words, with nothing
else to do; then of clients that each send a sentence as soon as the last one is answered.
"""

import http.client
import json
import socket
import subprocess
import sys
import threading
import time

import numpy as np
from absl import flags

from common.errors import UsageError, no_arguments, run_app

_MODEL_DIR = flags.DEFINE_string("model_dir", None, "What to serve.", required=True)
_LINES = flags.DEFINE_string("lines", None, "File with a sentence a line.", required=True)
_CLIENTS = flags.DEFINE_integer("clients", 16, "Clients at once.", 1)
_SECONDS = flags.DEFINE_float("seconds", 60.0, "How long they ask.", 0.1)
_WORDS = flags.DEFINE_integer("words", 20, "Words of the single sentence.", 1)
_SINGLE = 50  # requests of a single client
_START_SECONDS = 300  # until the server answers, at most


class _Client:
    """One connection to the server."""

    def __init__(self, port: int):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, line: str, attention: bool = False) -> float | None:
        """Return the milliseconds until the translation came, or None where none came."""
        body = json.dumps({"text": line, "attention": attention})
        began = time.perf_counter()
        try:
            self._connection.request("POST", "/translate", body)
            response = self._connection.getresponse()
            (_,) = json.load(response)["translations"]
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            self._connection.close()
            return None
        return 1e3 * (time.perf_counter() - began)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def _percentiles(times: list[float]) -> dict[str, float]:
    return {f"p{share}_ms": round(float(np.percentile(times, share)), 1) for share in (50, 95)}


def _ask_together(port: int, lines: list[str]) -> dict:
    """Return what the clients saw."""
    found: list[float | None] = []
    end = time.monotonic() + _SECONDS.value

    def work(first: int) -> None:
        client, number = _Client(port), first
        while time.monotonic() < end:
            found.append(client.ask(lines[number % len(lines)]))
            number += _CLIENTS.value

    threads = [threading.Thread(target=work, args=(number,)) for number in range(_CLIENTS.value)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    times = [one for one in found if one is not None]
    rate = {"sentences_per_second": round(len(times) / seconds, 1)}
    lost = {"requests": len(found), "lost": len(found) - len(times)}
    return {"clients": _CLIENTS.value, **lost, **_percentiles(times), **rate}


def main(argv: list[str]) -> None:
    """Start, ask, stop."""
    no_arguments(argv)
    try:
        with open(_LINES.value, encoding="utf-8") as file:
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--lines={_LINES.value} cannot be read as UTF-8 text") from error
    if not lines:
        raise UsageError(f"--lines={_LINES.value} holds no sentence")
    words = " ".join(lines).split()
    single, port = " ".join(words[: _WORDS.value]), _free_port()
    command = [sys.executable, "-m", "trainer.serve", f"--model_dir={_MODEL_DIR.value}"]
    began = time.monotonic()
    server = subprocess.Popen([*command, f"--port={port}"], stdout=subprocess.DEVNULL)
    try:
        while _Client(port).ask(single) is None:
            if server.poll() is not None or time.monotonic() - began > _START_SECONDS:
                raise UsageError("the server did not start; it says above why")
            time.sleep(0.02)
        result: dict = {"first_answer_seconds": round(time.monotonic() - began, 2)}
        client = _Client(port)
        for attention in (False, True):
            times = [client.ask(single, attention) for _ in range(_SINGLE)]
            if None in times:
                raise UsageError("a request got no translation; the server's log says why")
            name = "single_with_attention" if attention else "single"
            result[name] = _percentiles([one for one in times if one is not None])
        print(json.dumps({**result, "together": _ask_together(port, lines)}), flush=True)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
