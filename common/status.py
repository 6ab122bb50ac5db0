"""What a worker reports to its supervisor: JSON, so that nobody has to parse messages."""

import contextlib
import json
import os
from typing import Any

VARIABLE = "WORKER_STATUS_FILE"
"""The environment variable with which a supervisor names the file."""


def report(**facts: Any) -> None:
    """Write `facts` to the status file, if a supervisor wants one. The last report counts.

    A worker reports "lost_worker", the index of the worker whose failure ended it, with "reason",
    or "port_in_use"; and "seconds_to_first_step", phase -> seconds, for `benchmarks.startup`.
    """
    path = os.environ.get(VARIABLE)
    if path:
        temporary = f"{path}.incomplete"
        with contextlib.suppress(OSError):  # the supervisor then knows the exit code only
            with open(temporary, "w", encoding="utf-8") as file:
                json.dump(facts, file)
            os.replace(temporary, path)


def read(path: str) -> dict[str, Any]:
    """Return what a worker has reported to this file; {} if nothing."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}
