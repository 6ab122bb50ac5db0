"""Google Cloud's notice that a machine is about to be taken away.

Every Compute Engine and TPU virtual machine has a metadata server, which tells of a host
maintenance event (an hour ahead where there are GPUs) and of the preemption of a spot machine
(30 seconds ahead). See "Detect a host event" and "Preemptible VM instances" in Google's
documentation of Compute Engine.
"""

import threading
import urllib.error
import urllib.request
from collections.abc import Callable

from common.console import warn

_SECONDS = 5.0  # between two looks, and for an answer
# Key -> the value that means the end. A machine that migrates instead keeps running.
_NOTICES = {
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
    "preempted": "TRUE",
}


def watch(host: str, tell: Callable[[str], None], seconds: float = _SECONDS) -> threading.Event:
    """Ask for notices every few seconds, in a thread, until one comes.

    A maintenance event that was announced before the start causes only a warning: whoever stopped
    for it has been started again, and stopping each time would leave no time for training.

    Args:
        host: of the metadata server.
        tell: called with the notice, as text for people.
        seconds: between two looks.

    Returns:
        An event that ends the watch when it is set.
    """
    end = threading.Event()
    arguments = (host, tell, seconds, end)
    threading.Thread(target=_watch, args=arguments, daemon=True, name="maintenance").start()
    return end


def _watch(host: str, tell, seconds: float, end: threading.Event) -> None:
    known: set[str] = set()
    failed: set[str] = set()
    first = True
    while first or not end.wait(seconds):
        for key, bad in _NOTICES.items():
            try:
                value = _read(host, key)
            except (OSError, urllib.error.URLError) as error:
                if key not in failed:
                    warn(f"the metadata server {host} does not answer: {error}; still asking")
                failed.add(key)
                continue
            failed.discard(key)
            if value != bad:
                known.discard(key)
            elif first:
                known.add(key)
                warn(f"{key} is {value} already; training until a signal comes")
            elif key not in known:
                tell(f"Google Cloud's notice {key}={value}")
                return
        first = False


def _read(host: str, key: str) -> str:
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/{key}", headers={"Metadata-Flavor": "Google"}
    )
    # Directly: a proxy for the outside world does not know this machine's own address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_SECONDS) as answer:
        return answer.read().decode().strip()
