"""The life of a TPU, against a Cloud TPU and a bucket that are local services."""

import json

import pytest
from google.api_core import exceptions

from common.errors import UsageError
from launch.cloud import job, life, service
from launch.cloud.service import DryRun, Service
from launch.cloud.spec import Spec, request_body
from launch.cloud.store import JOB, SPEC, DryStore, Store
from tests.services.project import (
    ARCHIVE,
    FOLDER,
    NAME,
    SPOT,
    create,
    delete,
    go_through,
    in_bucket,
    machine_says,
    resume,
    train,
    until,
    yes,
)
from tests.services.storage import BUCKET
from tests.services.tpu import LOST, SLOW, Fault

PATH = f"/v2/{SPOT.parent}/queuedResources"


def test_create_asks_with_the_price_class_before_it_writes_anything(cloud):
    def no(question):
        assert cloud.made == []
        assert in_bucket() == []
        raise UsageError("nothing was done")

    with pytest.raises(UsageError, match="nothing was done"):
        create(ask=no)
    assert (cloud.made, in_bucket()) == ([], [])
    text = life.describe(SPOT, 1.5)
    assert "price class: spot" in text
    assert "8 chips by the second, from ACTIVE" in text
    assert "12.00 USD per hour" in text
    pod = Spec(NAME, "p", "us-central1-a", "v4-32", False, "x", FOLDER)
    assert "on demand" in life.describe(pod, None)
    assert "experimental" in life.describe(pod, None)


def test_what_is_asked_for(cloud):
    create()
    [found] = cloud.resources.values()
    [node] = found["tpu"]["nodeSpec"]
    assert found["spot"] == {}
    assert node["nodeId"] == NAME
    assert node["node"]["acceleratorType"] == "v5litepod-8"
    assert node["node"]["runtimeVersion"] == "v2-alpha-tpuv5-lite"
    assert node["node"]["metadata"]["transformer-job"] == FOLDER
    assert node["node"]["metadata"]["startup-script"].startswith("#!/usr/bin/env python3\n")
    assert len(node["node"]["metadata"]["startup-script"]) < 200_000  # 256 KB are allowed
    on_demand = Spec(NAME, "p", "us-central1-a", "v5litepod-8", False, "x", FOLDER)
    assert "spot" not in request_body(on_demand)


def test_a_second_create_makes_no_second_resource(cloud, capsys):
    create()
    create()
    assert cloud.made == [NAME]
    assert "mine exists already" in capsys.readouterr().out
    other = Spec(NAME, "p", "us-central1-a", "v6e-8", True, "x", FOLDER)
    with pytest.raises(UsageError, match="--accelerator_type=v6e-8, but mine was created with"):
        create(other)
    Store(FOLDER).delete(SPEC)  # somebody has tidied up
    with pytest.raises(UsageError, match="--accelerator_type=v6e-8, but mine was created with"):
        create(other)
    create()
    assert in_bucket() == [SPEC]
    assert cloud.made == [NAME]


def test_the_resource_of_somebody_else_is_left_alone(cloud):
    create()
    node = cloud.resources[NAME]["tpu"]["nodeSpec"][0]["node"]
    node["labels"] = {}
    Store(FOLDER).delete(SPEC)
    with pytest.raises(UsageError, match="this program did not create; choose another name"):
        create()
    cloud.requests.clear()
    for command in (life.delete, life.resume):  # named by flags
        cloud.resources[NAME]["state"]["state"] = "SUSPENDED"
        with pytest.raises(UsageError, match="this program did not create that queued resource"):
            command(SPOT, Service(), Store(FOLDER), yes)
    assert {method for method, _ in cloud.requests} == {"GET"}
    assert list(cloud.resources) == [NAME]


def test_the_node_of_somebody_else_is_left_alone(cloud):
    cloud.nodes[NAME] = {"state": "READY", "labels": {}}
    with pytest.raises(UsageError, match="a node of that name exists"):
        create()
    assert in_bucket() == []
    with pytest.raises(UsageError, match="a node of that name exists"):
        life.delete(SPOT, Service(), Store(FOLDER), yes)
    assert {method for method, _ in cloud.requests} == {"GET"}
    assert list(cloud.nodes) == [NAME]


def test_a_second_create_with_another_bucket_is_refused(cloud):
    create()
    elsewhere = f"gs://{BUCKET}/others/{NAME}"
    other = Spec(NAME, "p", SPOT.zone, SPOT.accelerator_type, True, SPOT.image, elsewhere)
    with pytest.raises(UsageError, match=f"looks for jobs in {FOLDER}, not in {elsewhere}"):
        life.create(other, Service(), Store(elsewhere), yes)
    assert Store(elsewhere).names("") == []
    assert cloud.made == [NAME]


def test_a_bucket_whose_region_may_not_be_asked_for(cloud, monkeypatch, capsys):
    def refuse(*_, **__):
        raise exceptions.Forbidden("storage.buckets.get")

    monkeypatch.setattr("google.cloud.storage.Bucket.reload", refuse)
    create()
    assert "no permission to look up the region of gs://bucket" in capsys.readouterr().out
    assert cloud.made == [NAME]


@pytest.mark.parametrize("kind", [LOST, SLOW, 503, 500])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_what_passes_is_tried_again(cloud, monkeypatch, method, kind):
    monkeypatch.setattr(service, "TIMEOUT_SECONDS", 0.2)
    cloud.slow_seconds = 0.4
    cloud.faults.append(Fault(method, kind))
    go_through(cloud, ("create", "train", "preempted", "resume"))
    cloud.faults += [Fault(method, kind)] if method == "DELETE" else []
    delete()
    assert cloud.faults == []
    assert cloud.made == [NAME, NAME]
    assert (cloud.resources, cloud.nodes) == ({}, {})


def test_a_quota_of_chips_is_told_at_once(cloud):
    message = "Quota limit 'TPUV5sPreemptibleLitepodPerProjectPerZone' has been exceeded. Limit: 0"
    cloud.faults.append(Fault("POST", 429, message, 9))
    with pytest.raises(UsageError, match="Limit: 0; request quota in the console"):
        create()
    assert [method for method, _ in cloud.requests].count("POST") == 1
    cloud.faults.clear()
    create()
    assert cloud.made == [NAME]


def test_a_quota_of_requests_is_waited_for(cloud):
    cloud.faults.append(Fault("POST", 429, "limit 'Requests per minute' of service 'tpu'", 3))
    create()
    assert [method for method, _ in cloud.requests].count("POST") == 4


def test_refusals_are_one_line(cloud, monkeypatch):
    cloud.faults.append(Fault("GET", 403, "Cloud TPU API has not been used in project p"))
    with pytest.raises(
        UsageError, match=r"gcloud services enable tpu\.googleapis\.com --project=p"
    ):
        create()
    cloud.faults.append(Fault("POST", 400, "Runtime version not found"))
    with pytest.raises(UsageError, match="Runtime version not found"):
        create()
    monkeypatch.setattr(service, "RETRY_SECONDS", (0.01, 0.01, 0.1))
    cloud.faults.append(Fault("GET", 503, "down", 10**6))
    with pytest.raises(UsageError, match="down; run the same command again"):
        create()
    with pytest.raises(UsageError, match="gs://missing: not found"):
        life.create(SPOT, Service(), Store("gs://missing/mine"), yes)


def test_a_request_that_fails_in_the_queue(cloud):
    cloud.end = "FAILED"
    with pytest.raises(UsageError, match="no capacity in the zone; correct that and resume"):
        create()
    cloud.end = "ACTIVE"
    resume()
    until(cloud, "ACTIVE")
    assert cloud.made == [NAME, NAME]


def test_resume_does_nothing_where_there_is_nothing_to_do(cloud, capsys):
    create()
    resume()
    assert "is already in the queue" in capsys.readouterr().out
    until(cloud, "ACTIVE")
    train()
    machine_says("running")
    resume()
    assert "is active; job: running" in capsys.readouterr().out
    machine_says("done")
    cloud.preempt(NAME)
    resume()
    assert "the job is done" in capsys.readouterr().out
    assert cloud.made == [NAME]


def test_resume_starts_a_failed_job_again_and_only_that(cloud):
    create()
    train()
    until(cloud, "ACTIVE")
    machine_says("failed", code=1)
    before = Store(FOLDER).read_version(JOB)
    resume()
    after = Store(FOLDER).read_version(JOB)
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert job.state(Store(FOLDER)) == {}
    resume()
    assert Store(FOLDER).read_version(JOB) == after
    assert cloud.made == [NAME]


@pytest.mark.parametrize("state", ["PREEMPTED", "TERMINATED", "STOPPED"])
def test_resume_goes_by_the_node_too(cloud, state):
    create()
    until(cloud, "ACTIVE")
    cloud.nodes[NAME]["state"] = state
    resume()
    until(cloud, "ACTIVE")
    assert cloud.made == [NAME, NAME]
    assert cloud.nodes[NAME]["state"] == "READY"


def test_delete_finds_a_node_without_its_queued_resource(cloud):
    create()
    until(cloud, "ACTIVE")
    del cloud.resources[NAME]
    delete()
    assert (cloud.nodes, in_bucket()) == ({}, [])


def test_what_does_not_go_away_is_told(cloud, monkeypatch):
    create()
    until(cloud, "ACTIVE")
    cloud.stuck = True
    with monkeypatch.context() as patch:
        patch.setattr(life, "DELETE_SECONDS", 0.1)
        with pytest.raises(UsageError, match=r"still exists after .* may cost money"):
            delete()
    assert SPEC in in_bucket()
    cloud.stuck = False
    delete()
    assert (cloud.resources, in_bucket()) == ({}, [])


def test_a_job_that_runs_is_not_replaced(cloud):
    create()
    train()
    train()  # the same
    other = job.make(SPOT, ["--config.train.steps=7"], "commit", ARCHIVE, 3, False)
    machine_says("running")
    with pytest.raises(UsageError, match="another job is running"):
        job.submit(other, ARCHIVE, Store(FOLDER))
    machine_says("done")
    with pytest.raises(UsageError, match="this job is done already"):
        train()
    job.submit(other, ARCHIVE, Store(FOLDER))
    assert json.loads(Store(FOLDER).read(JOB))["argv"][-2] == "--config.train.steps=7"


def test_a_dry_run_tells_the_calls_that_are_made(cloud, capsys):
    dry = DryRun(there=False)
    life.create(SPOT, dry, DryStore(FOLDER), yes)
    told = calls_in(capsys.readouterr().out)
    assert cloud.requests == []
    create()
    made = [(method, path.split("&")[0]) for method, path in cloud.requests]
    node = ("GET", f"/v2/{SPOT.parent}/nodes/{NAME}")
    resource = ("GET", f"{PATH}/{NAME}")
    assert told == [resource, node, ("POST", PATH), resource]
    assert [(method, path.split("?")[0]) for method, path in made][:4] == told

    until(cloud, "ACTIVE")
    life.delete(SPOT, DryRun(there=True), DryStore(FOLDER, SPOT.to_json().encode()), yes)
    told = calls_in(capsys.readouterr().out)
    cloud.requests.clear()
    delete()
    made = [(method, path.split("?")[0]) for method, path in cloud.requests]
    assert [call for i, call in enumerate(made) if made[i - 1] != call] == told


def calls_in(text):
    """(method, path) of the calls that a dry run tells of."""
    lines = [line.split() for line in text.splitlines() if " /v2/" in line]
    return [(one[0], one[1].split("?")[0]) for one in lines]
