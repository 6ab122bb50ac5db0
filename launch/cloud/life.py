"""The life of a slice: create, resume after a preemption, delete.

Each can be killed at any call and run again. All state is with Cloud TPU and in the bucket, under
the slice's name: spec.json is written before anything that costs money is created, and deleted
after all of it is gone.
"""

import time
from collections.abc import Callable

from common.errors import UsageError
from launch.cloud import job
from launch.cloud.service import DryRun, Machine, Resource, Service
from launch.cloud.spec import Spec, from_json
from launch.cloud.store import CODE, JOB, SPEC, STATE, DryStore, Store

POLL_SECONDS = (1.0, 10.0)  # the first pause between two polls, and the longest
SETTLE_SECONDS = 120.0  # until a request appears in the queue
DELETE_SECONDS = 1200.0

QUEUED = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
COMING_BACK = ("CREATING", "READY", "RESTARTING", "REIMAGING", "REPAIRING", "STARTING")
"""States of a node that runs, or will run without our help."""

Ask = Callable[[str], None]


def describe(spec: Spec, usd_per_chip_hour: float | None) -> str:
    """Describe the slice, its price class and its billing, for people."""
    what = spec.slice
    hosts = "one host" if what.single_host else "several hosts"
    lines = [
        f"{spec.name}: {spec.accelerator_type}, {what.chips} chips on {hosts}, image {spec.image},",
        f"  project {spec.project}, zone {spec.zone}, files in {spec.folder}",
        f"price class: {spec.price_class}"
        + (", can be preempted at any time; resume continues the job" if spec.spot else ""),
        f"billing: {what.chips} chips by the second, from ACTIVE until delete, idle or not;",
        "  waiting in the queue is free; prices: https://cloud.google.com/tpu/pricing",
    ]
    if usd_per_chip_hour is not None:
        hourly = what.chips * usd_per_chip_hour
        lines.append(f"  {hourly:,.2f} USD per hour at --usd_per_chip_hour={usd_per_chip_hour:g}")
    if not what.single_host:
        lines.append(
            "warning: multi-host slices are experimental: TensorFlow's last image for them is "
            "2.18, older than this project's, and this program was never tried on one"
        )
    return "\n".join(lines)


def create(spec: Spec, service: Service | DryRun, store: Store | DryStore, ask: Ask) -> None:
    """Request the slice from Cloud TPU, unless it was requested before.

    Raises:
        UsageError: if something else has the name, or the user says no.
    """
    location = store.location().lower()
    region = spec.zone.rsplit("-", 1)[0]
    if location not in ("", region, region.split("-")[0]):
        print(
            f"warning: the bucket is in {location} and the TPU in {region}: transfers are slow "
            "and cost money"
        )
    known = store.read(SPEC)
    if known is not None:
        _check_same(spec, from_json(known))
    found = service.resource(spec)
    if found is not None:
        if known is None and not found.ours:
            raise UsageError(
                f"--name={spec.name}: a queued resource of that name exists that this program did "
                "not create; choose another name"
            )
        _check_same(spec, found)
        if found.folder not in ("", spec.folder):
            raise UsageError(
                f"{spec.name} exists already and looks for jobs in {found.folder}, not in "
                f"{spec.folder}; give the same --bucket, or choose another --name"
            )
        if known is None:
            store.write(SPEC, spec.to_json().encode())
        again = f"python -m launch.tpu resume --name={spec.name}"
        gone = found.state not in (*QUEUED, "ACTIVE")
        print(f"{spec.name} exists already: {found.state}" + (f"; {again}" if gone else ""))
        return
    _refuse_a_foreign_node(spec, service.machine(spec))
    ask("create it?")
    store.write(SPEC, spec.to_json().encode())
    service.create(spec)
    _settle(spec, service)


def _refuse_a_foreign_node(spec: Spec, machine: Machine | None) -> None:
    """Raise `UsageError` for a node that somebody created by hand, without a queued resource."""
    if machine is not None and not machine.ours:
        raise UsageError(
            f"--name={spec.name}: a node of that name exists that this program did not create; "
            "choose another name"
        )


def _check_same(spec: Spec, other: Spec | Resource) -> None:
    for field in ("project", "zone", "accelerator_type", "spot"):
        asked, there = getattr(spec, field), getattr(other, field, getattr(spec, field))
        if there != "" and asked != there:  # the service may leave out the type
            raise UsageError(
                f"--{field}={asked}, but {spec.name} was created with {there}; "
                "choose another --name, or delete it first"
            )


def _settle(spec: Spec, service: Service | DryRun) -> None:
    """Wait until the service has queued or refused the request."""
    found = _wait(lambda: service.resource(spec), _is_settled, SETTLE_SECONDS)
    if found is None:
        raise UsageError(
            f"Cloud TPU accepted the request for {spec.name}, but does not show it after "
            f"{SETTLE_SECONDS:g} s; run the same command again"
        )
    if found.state == "FAILED":
        raise UsageError(
            f"{spec.name}: {found.reason or 'the request failed'}; "
            "correct that and resume, or delete it"
        )
    if isinstance(service, Service):
        print(f"{spec.name}: {found.state}; see python -m launch.tpu status --name={spec.name}")


def _is_settled(found: Resource | None) -> bool:
    return found is not None and found.state != "CREATING"


def _wait(look: Callable, good: Callable, seconds: float):
    """Poll `look` until `good` or until the time is up; return the last result."""
    pause, longest = POLL_SECONDS
    end = time.monotonic() + seconds
    while not good(seen := look()) and time.monotonic() < end:
        time.sleep(pause)
        pause = min(longest, 1.5 * pause)
    return seen


def resume(spec: Spec, service: Service | DryRun, store: Store | DryStore, ask: Ask) -> None:
    """Create the slice again if it was preempted, and restart a failed job.

    It is safe to call at any time, for example from a timer.

    Raises:
        UsageError: if the user says no, or Cloud TPU refuses.
    """
    state = job.state(store)
    if state.get("state") == "done":
        print(f"{spec.name}: the job is done; there is nothing to resume")
        return
    found = service.resource(spec)
    if found is not None and found.state in QUEUED:
        print(f"{spec.name} is already in the queue: {found.state}")
    elif found is not None and found.state == "ACTIVE" and _is_alive(spec, service):
        print(f"{spec.name} is active; job: {state.get('state', 'none yet')}")
    else:
        _refuse_what_is_foreign(spec, service, store)
        ask("create it again?")
        remove(spec, service)
        service.create(spec)
        _settle(spec, service)
    if state.get("state") == "failed":
        job.start_again(store)


def _refuse_what_is_foreign(spec: Spec, service: Service | DryRun, store: Store | DryStore) -> None:
    """Raise `UsageError` for a queued resource that is not ours.

    If spec.json is in the bucket, the name is ours whatever the labels say. Otherwise the user
    named the TPU by flags, perhaps the wrong one.
    """
    if store.read(SPEC) is not None:
        return
    found = service.resource(spec)
    if found is not None and not found.ours:
        raise UsageError(
            f"--name={spec.name}: this program did not create that queued resource and does not "
            "delete it; if it has to go, delete it in the console"
        )


def _is_alive(spec: Spec, service: Service | DryRun) -> bool:
    machine = service.machine(spec)
    return machine is not None and machine.state in COMING_BACK


def remove(spec: Spec, service: Service | DryRun) -> None:
    """Delete the queued resource and the node, and wait until both are gone.

    Raises:
        UsageError: if they remain after `DELETE_SECONDS`, or the node is somebody else's.
    """
    kinds = (
        ("queued resource", service.resource, service.delete_resource),
        ("node", service.machine, service.delete_machine),
    )
    for kind, look, delete in kinds:
        found = look(spec)
        if found is None:
            continue
        if isinstance(found, Machine):
            _refuse_a_foreign_node(spec, found)
        if found.state != "DELETING":
            delete(spec)
        if _wait(lambda look=look: look(spec), lambda seen: seen is None, DELETE_SECONDS):
            raise UsageError(
                f"the {kind} {spec.name} still exists after {DELETE_SECONDS / 60:g} minutes and "
                "may cost money; run the same command again, or look in the console"
            )


def delete(spec: Spec, service: Service | DryRun, store: Store | DryStore, ask: Ask) -> None:
    """Delete everything that `create` and `train` made, except the logs and the model.

    Raises:
        UsageError: if the user says no, or something cannot be deleted.
    """
    _refuse_what_is_foreign(spec, service, store)
    ask(f"delete the TPU {spec.name}? A running job loses what came after its last checkpoint.")
    remove(spec, service)
    for name in (JOB, STATE, *store.names(CODE), SPEC):
        store.delete(name)
    if isinstance(service, Service):
        print(f"{spec.name} is deleted and billing has ended; model and logs stay in {spec.folder}")
