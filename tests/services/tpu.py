"""A Cloud TPU of our own, in memory: the REST resources of its API, version 2, with faults.

    with TpuService() as service:
        os.environ["TPU_EMULATOR_HOST"] = service.address

Queued resources go through the states of the real ones, one at each look; nodes come and go with
them. `MetadataServer` is what a machine of such a node asks about itself.
"""

import http.server
import json
import threading
import time
import urllib.parse
from dataclasses import dataclass

QUEUE = ("ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
LOST, SLOW = "lost", "slow"
"""Faults: the work is done, and no answer comes; the answer takes `TpuService.slow_seconds`."""


@dataclass
class Fault:
    """Happens to the next requests of a method.

    Attributes:
        method: GET, POST or DELETE.
        kind: an HTTP status, or `LOST` or `SLOW`.
        message: of the error.
        left: to how many.
    """

    method: str
    kind: int | str
    message: str = "injected"
    left: int = 1


class _Server:
    """An HTTP server in a thread, while it is open."""

    def __enter__(self):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = outer.answer(self.command, self.path, body)
                if answer is None:
                    self.close_connection = True
                    return
                code, content = answer
                text = content if isinstance(content, str) else json.dumps(content)
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_POST = do_DELETE = do_GET  # noqa: N815

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._http.server_address[1]}"
        self.address = f"http://{self.host}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._http.shutdown()
        self._http.server_close()


class TpuService(_Server):
    """Runs in threads of this process while it is open.

    Attributes:
        resources: name -> queued resource, in JSON, of those that are there.
        nodes: name -> node, likewise.
        made: names of all queued resources that ever were made.
        requests: (method, path) of all requests.
        faults: those still to come.
        end: the last state that a queued resource comes to.
        stuck: whether deleting never ends.
        slow_seconds: how long a slow answer takes.
    """

    def __init__(self):
        self.resources: dict[str, dict] = {}
        self.nodes: dict[str, dict] = {}
        self.made: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.end = "ACTIVE"
        self.stuck = False
        self.slow_seconds = 0.5
        self._lock = threading.Lock()

    def preempt(self, name: str) -> None:
        """Takes the machines of a spot slice away."""
        assert "spot" in self.resources[name]
        self.resources[name]["state"] = {"state": "SUSPENDED", "stateInitiator": "SERVICE"}
        del self.nodes[_node_of(self.resources[name])["nodeId"]]

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict] | None:
        with self._lock:
            self.requests.append((method, path))
            fault = next((one for one in self.faults if one.method == method), None)
            if fault:
                fault.left -= 1
                if not fault.left:
                    self.faults.remove(fault)
                if isinstance(fault.kind, int):
                    return _error(fault.kind, fault.message)
            result = self._work(method, path, body)
        if fault and fault.kind == SLOW:
            time.sleep(self.slow_seconds)
        return None if fault and fault.kind == LOST else result

    def _work(self, method: str, path: str, body: bytes) -> tuple[int, dict]:
        url = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(url.query))
        match (method, *url.path.strip("/").split("/")):
            case ("POST", "v2", "projects", _, "locations", _, "queuedResources"):
                return self._create(url.path[4:], query["queuedResourceId"], json.loads(body))
            case ("GET", "v2", "projects", _, "locations", _, "queuedResources", name):
                return self._look(name)
            case ("DELETE", "v2", "projects", _, "locations", _, "queuedResources", name):
                return self._delete(name, query.get("force", "").lower() == "true")
            case ("GET", "v2", "projects", _, "locations", _, "nodes", name):
                return self._look_at_node(name)
            case ("DELETE", "v2", "projects", _, "locations", _, "nodes", name):
                if name not in self.nodes:
                    return _error(404, f"no node {name}")
                self.nodes[name]["state"] = "DELETING"
                return _operation()
        return _error(404, f"no such method: {method} {path}")

    def _create(self, parent: str, name: str, body: dict) -> tuple[int, dict]:
        if name in self.resources:
            return _error(409, f"queued resource {name} already exists")
        node = _node_of(body)
        if node["nodeId"] in self.nodes:
            return _error(409, f"node {node['nodeId']} already exists")
        self.made.append(name)
        self.resources[name] = {
            **body,
            "name": f"{parent}/{name}",
            "state": {"state": "CREATING"},
        }
        return _operation()

    def _look(self, name: str) -> tuple[int, dict]:
        found = self.resources.get(name)
        if found is None:
            return _error(404, f"no queued resource {name}")
        shown = json.loads(json.dumps(found))
        self._move(name, found)
        return 200, shown

    def _move(self, name: str, found: dict) -> None:
        """The next state, after this look."""
        state = found["state"]["state"]
        spec = _node_of(found)
        if state == "DELETING" and not self.stuck:
            del self.resources[name]
            self.nodes.pop(spec["nodeId"], None)
        elif state == "CREATING" and self.end == "FAILED":
            error = {"code": 8, "message": "no capacity in the zone"}
            found["state"] = {"state": "FAILED", "failedData": {"error": error}}
        elif state in ("CREATING", *QUEUE) and state != self.end:
            following = ("CREATING", *QUEUE).index(state)
            found["state"] = {"state": QUEUE[min(following, 3)]}
            if found["state"]["state"] in ("PROVISIONING", "ACTIVE"):
                ready = found["state"]["state"] == "ACTIVE"
                self.nodes[spec["nodeId"]] = {
                    **spec["node"],
                    "state": "READY" if ready else "CREATING",
                    "health": "HEALTHY",
                    "createTime": "2026-01-01T00:00:00Z",
                }

    def _delete(self, name: str, force: bool) -> tuple[int, dict]:
        if name not in self.resources:
            return _error(404, f"no queued resource {name}")
        state = self.resources[name]["state"]["state"]
        if state in ("ACTIVE", "PROVISIONING") and not force:
            return _error(400, f"queued resource {name} is {state}")
        self.resources[name]["state"] = {"state": "DELETING"}
        return _operation()

    def _look_at_node(self, name: str) -> tuple[int, dict]:
        found = self.nodes.get(name)
        if found is None:
            return _error(404, f"no node {name}")
        shown = dict(found)
        if found["state"] == "DELETING" and not self.stuck:
            del self.nodes[name]
        return 200, shown


class MetadataServer(_Server):
    """What a machine of Google Cloud asks about itself.

    Args:
        attributes: of the instance.
    """

    def __init__(self, attributes: dict[str, str]):
        self._attributes = attributes

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict | str]:
        path = path.removeprefix("/computeMetadata/v1/instance/")
        if path == "service-accounts/default/token":
            return 200, {"access_token": "token", "expires_in": 3600}
        value = self._attributes.get(path.removeprefix("attributes/"))
        return (200, value) if value is not None else (404, "not found")


def _node_of(resource: dict) -> dict:
    return resource["tpu"]["nodeSpec"][0]


def _operation() -> tuple[int, dict]:
    return 200, {"name": "projects/p/locations/z/operations/operation-1", "done": False}


def _error(code: int, message: str) -> tuple[int, dict]:
    return code, {"error": {"code": code, "message": message}}
