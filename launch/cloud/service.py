"""The calls to the Cloud TPU API, and a stand-in that only prints them.

`Service` uses google-cloud-tpu over REST. TPU_EMULATOR_HOST=http://HOST:PORT replaces Google's
service by another one, which needs no credentials.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from common.errors import UsageError
from launch.cloud import buckets
from launch.cloud.spec import FOLDER_KEY, LABEL, Spec, request_body

ADDRESS = "https://tpu.googleapis.com"
TIMEOUT_SECONDS = 60.0  # for one request
RETRY_SECONDS = (1.0, 20.0, 120.0)  # the first pause, the longest pause, and the limit in all


def address() -> str:
    """Return the service's address: Google's, or TPU_EMULATOR_HOST."""
    return os.environ.get("TPU_EMULATOR_HOST", ADDRESS).rstrip("/")


@dataclass(frozen=True)
class Resource:
    """A queued resource.

    Attributes:
        state: WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED, FAILED and so on.
        reason: why it failed, in the service's words; "" otherwise.
        accelerator_type: the requested type and size.
        spot: whether it can be preempted.
        ours: whether it has the label of this program.
        folder: gs:// address where its machine looks for a job; "" if the service does not say.
    """

    state: str
    reason: str
    accelerator_type: str
    spot: bool
    ours: bool
    folder: str = ""


@dataclass(frozen=True)
class Machine:
    """A node, which is all the machines of a slice.

    Attributes:
        state: READY, PREEMPTED and so on.
        health: HEALTHY and so on, with a description.
        created: seconds since 1970.
        ours: whether it has the label of this program.
    """

    state: str
    health: str
    created: float
    ours: bool


def _is_transient(error: Exception) -> bool:
    """Return whether the same request may succeed a little later."""
    import requests
    from google.api_core import exceptions

    # Quotas on requests are per minute; a quota on chips stays exhausted.
    if isinstance(error, exceptions.TooManyRequests):
        return "per minute" in str(error)
    kinds = (exceptions.ServerError, requests.ConnectionError, requests.Timeout)
    return isinstance(error, kinds)


@contextlib.contextmanager
def _one_line(spec: Spec) -> Iterator[None]:
    """Turn Cloud TPU's errors into a `UsageError`."""
    import google.auth.exceptions
    import requests
    from google.api_core import exceptions

    place = f"Cloud TPU, {spec.project}, {spec.zone}"
    try:
        yield
    except exceptions.TooManyRequests as error:
        raise UsageError(
            f"{place}: {error.message}; request quota in the console under IAM, Quotas, or try "
            f"another zone{'' if spec.spot else ' or --spot, which has its own quota'}"
        ) from error
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise UsageError(
            f"{place}: {error.message}; the account needs the role TPU Admin, and the project the "
            f"API: gcloud services enable tpu.googleapis.com --project={spec.project}"
        ) from error
    except exceptions.RetryError as error:
        raise UsageError(f"{place}: {error.cause}; run the same command again") from error
    except google.auth.exceptions.RefreshError as error:
        raise UsageError(f"the credentials have expired; run {buckets.LOG_IN}") from error
    except (
        exceptions.GoogleAPICallError,
        google.auth.exceptions.TransportError,
        requests.RequestException,
    ) as error:
        raise UsageError(f"{place}: {error}; run the same command again") from error


class Service:
    """Cloud TPU.

    Raises:
        UsageError: if the package or the credentials are missing; from each method, if the
            service refuses.
    """

    def __init__(self):
        try:
            import google.cloud.tpu_v2 as tpu_v2
        except ImportError as error:
            raise UsageError(
                "google-cloud-tpu is not installed; run "
                "pip install -c requirements/cpu.txt -e '.[cloud]'"
            ) from error
        import google.auth.credentials
        import google.auth.exceptions
        from google.api_core.retry import Retry

        first, longest, give_up = RETRY_SECONDS
        retry = Retry(_is_transient, initial=first, maximum=longest, timeout=give_up)
        self._options: dict[str, Any] = {"retry": retry, "timeout": TIMEOUT_SECONDS}
        options: dict[str, Any] = {}
        if address() != ADDRESS:
            options["credentials"] = google.auth.credentials.AnonymousCredentials()
            options["client_options"] = {"api_endpoint": address()}
        try:
            self._client = tpu_v2.TpuClient(transport="rest", **options)
        except google.auth.exceptions.DefaultCredentialsError as error:
            raise UsageError(
                "no Google Cloud credentials on this machine; run "
                f"{buckets.LOG_IN}, or use --dry_run, which needs none"
            ) from error
        self._types = tpu_v2

    def resource(self, spec: Spec) -> Resource | None:
        """Return the queued resource of this name; None if it does not exist."""
        name = f"{spec.parent}/queuedResources/{spec.name}"
        found = self._get(spec, self._client.get_queued_resource, name)
        if found is None:
            return None
        node = found.tpu.node_spec[0].node if found.tpu.node_spec else self._types.Node()
        return Resource(
            found.state.state.name,
            found.state.failed_data.error.message,
            node.accelerator_type,
            "spot" in found,
            _is_ours(node),
            dict(node.metadata).get(FOLDER_KEY, ""),
        )

    def machine(self, spec: Spec) -> Machine | None:
        """The node of this name; None if there is none."""
        found = self._get(spec, self._client.get_node, f"{spec.parent}/nodes/{spec.name}")
        if found is None:
            return None
        health = " ".join(filter(None, [found.health.name, found.health_description]))
        created = found.create_time.timestamp() if found.create_time else 0.0
        return Machine(found.state.name, health, created, _is_ours(found))

    def create(self, spec: Spec) -> None:
        """Request the queued resource, unless it exists, as after a lost answer."""
        from google.api_core import exceptions

        resource = self._types.QueuedResource.from_json(json.dumps(request_body(spec)))
        with _one_line(spec), contextlib.suppress(exceptions.Conflict):
            self._client.create_queued_resource(
                parent=spec.parent,
                queued_resource=resource,
                queued_resource_id=spec.name,
                **self._options,
            )

    def delete_resource(self, spec: Spec) -> None:
        """Delete the queued resource and its node, if they exist."""
        # Without force, the service refuses to delete an active one.
        request = {"name": f"{spec.parent}/queuedResources/{spec.name}", "force": True}
        self._delete(spec, lambda **o: self._client.delete_queued_resource(request=request, **o))

    def delete_machine(self, spec: Spec) -> None:
        """Delete the node, if it exists."""
        name = f"{spec.parent}/nodes/{spec.name}"
        self._delete(spec, lambda **o: self._client.delete_node(name=name, **o))

    def _get(self, spec: Spec, call: Callable, name: str) -> Any:
        from google.api_core import exceptions

        with _one_line(spec):
            try:
                return call(name=name, **self._options)
            except exceptions.NotFound:
                return None

    def _delete(self, spec: Spec, call: Callable) -> None:
        from google.api_core import exceptions

        # Conflict: it is already being deleted.
        with _one_line(spec), contextlib.suppress(exceptions.NotFound, exceptions.Conflict):
            call(**self._options)


def _is_ours(node: Any) -> bool:
    return LABEL.items() <= dict(node.labels).items()


class DryRun:
    """Prints the calls instead of making them.

    Args:
        there: whether to answer as if the queued resource existed, until it is deleted.
    """

    def __init__(self, there: bool):
        self._there = there

    def resource(self, spec: Spec) -> Resource | None:
        self._tell("GET", f"{spec.parent}/queuedResources/{spec.name}")
        if not self._there:
            return None
        return Resource("SUSPENDED", "", spec.accelerator_type, spec.spot, ours=True)

    def machine(self, spec: Spec) -> Machine | None:
        self._tell("GET", f"{spec.parent}/nodes/{spec.name}")
        return None

    def create(self, spec: Spec) -> None:
        body = request_body(spec)
        metadata = body["tpu"]["nodeSpec"][0]["node"]["metadata"]
        size = len(metadata["startup-script"])
        metadata["startup-script"] = f"<launch/cloud/agent.py, {size:,} characters>"
        self._tell("POST", f"{spec.parent}/queuedResources?queuedResourceId={spec.name}")
        for path, value in _flatten(body, ""):
            print(f"   {path.removeprefix('tpu.nodeSpec[0].')} = {value}")
        self._there = True

    def delete_resource(self, spec: Spec) -> None:
        self._tell("DELETE", f"{spec.parent}/queuedResources/{spec.name}?force=true")
        self._there = False

    def delete_machine(self, spec: Spec) -> None:
        self._tell("DELETE", f"{spec.parent}/nodes/{spec.name}")

    def _tell(self, method: str, path: str) -> None:
        print(f"  {method} /v2/{path}")


def _flatten(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each leaf of a JSON value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _flatten(inner, f"{path}[{index}]")
    else:
        yield path, value
