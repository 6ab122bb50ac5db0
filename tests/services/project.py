"""A project with a TPU and a bucket, and what its user and its machine do, each in a word."""

import json
import time

import pytest

from launch.cloud import job, life
from launch.cloud.service import Service
from launch.cloud.spec import Spec, from_json
from launch.cloud.store import JOB, SPEC, STATE, Store
from tests.services.storage import BUCKET

NAME = "mine"
FOLDER = f"gs://{BUCKET}/jobs/{NAME}"
SPOT = Spec(NAME, "p", "us-central1-a", "v5litepod-8", True, "v2-alpha-tpuv5-lite", FOLDER)
ARCHIVE = b"code"


def yes(question):
    pass


def create(spec=SPOT, ask=yes):
    life.create(spec, Service(), Store(FOLDER), ask)


def train():
    made = job.make(SPOT, ["--data_dir=gs://bucket/data"], "commit", ARCHIVE, 3, False)
    job.submit(made, ARCHIVE, Store(FOLDER))


def resume():
    life.resume(known(), Service(), Store(FOLDER), yes)


def delete():
    life.delete(known(), Service(), Store(FOLDER), yes)


def known():
    """What a user finds who remembers nothing but the name and the bucket."""
    return from_json(Store(FOLDER).read(SPEC) or b"{}")


def machine_says(state, **more):
    """As the agent does."""
    generation = Store(FOLDER).read_version(JOB)[1]
    told = {"generation": generation, "state": state, "time": time.time(), **more}
    Store(FOLDER).write(STATE, json.dumps(told).encode())


def until(cloud, state):
    for _ in range(9):
        if cloud.resources[NAME]["state"]["state"] == state:
            return
        Service().resource(SPOT)
    pytest.fail(f"{cloud.resources[NAME]['state']}, not {state}")


def in_bucket():
    return Store(FOLDER).names("")


STEPS = ("create", "train", "preempted", "resume", "done", "delete")
COMMANDS = {"create": create, "train": train, "resume": resume, "delete": delete}


def go_through(cloud, steps):
    for step in steps:
        if step == "preempted":
            until(cloud, "ACTIVE")
            machine_says("running")
            cloud.preempt(NAME)
        elif step == "done":
            until(cloud, "ACTIVE")
            machine_says("done")
            Store(FOLDER).write("model/weights", b"1")
            Store(FOLDER).write("logs/1.txt", b"2")
        else:
            COMMANDS[step]()
