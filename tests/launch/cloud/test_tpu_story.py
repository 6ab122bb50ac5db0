"""The whole life of a TPU: a crash at each call, and each request to the bucket failing once."""

import itertools
import threading

import pytest
import requests

from launch.cloud.store import SPEC
from tests.services.project import COMMANDS, NAME, STEPS, delete, go_through, in_bucket
from tests.services.tpu import LOST


class Crash(BaseException):
    """The end of the process."""


def crash_at(monkeypatch, call):
    """Ends the process before that call to either service; a list that tells whether it did."""
    send = requests.Session.send
    calls = iter(range(10**6))
    this = threading.current_thread()
    crashed = []

    def wrapped(self, request, **options):
        # Another thread, of the storage client, asks about the bucket now and then.
        if threading.current_thread() is this and next(calls) == call:
            crashed.append(request.url)
            raise Crash
        return send(self, request, **options)

    monkeypatch.setattr(requests.Session, "send", wrapped)
    return crashed


@pytest.mark.parametrize("goes_on", [True, False], ids=["goes_on", "gives_up"])
@pytest.mark.parametrize("step", list(COMMANDS))
def test_the_story_with_a_crash_at_each_call(cloud, bucket_service, monkeypatch, step, goes_on):
    """Before call n + 1 the services know what they know after call n."""
    position = STEPS.index(step)
    for call in range(100):
        go_through(cloud, STEPS[:position])
        with monkeypatch.context() as patch:
            crashed = crash_at(patch, call)
            try:
                COMMANDS[step]()
                assert not crashed
                break
            except Crash:
                assert crashed
        if goes_on and (step != "delete" or SPEC in in_bucket()):
            go_through(cloud, STEPS[position:])
            assert cloud.made == [NAME, NAME]  # at first, and by resume
        elif SPEC in in_bucket():
            delete()
        kept = goes_on or position > STEPS.index("done")
        assert in_bucket() == (["logs/1.txt", "model/weights"] if kept else [])
        assert (cloud.resources, cloud.nodes) == ({}, {})
        bucket_service[0].wipe(keep_buckets=True)
        cloud.made.clear()
    assert call >= {"create": 6, "train": 5, "resume": 8, "delete": 8}[step]


@pytest.mark.parametrize(
    "step",
    [
        step if step == "train" else pytest.param(step, marks=pytest.mark.faults)
        for step in COMMANDS
    ],
)
def test_the_story_with_a_fault_of_the_bucket_at_each_call(cloud, monkeypatch, step):
    """Each request to the bucket fails once: 503, 429, or its work is done and no answer comes."""
    send = requests.Session.send
    failed = set()
    kinds = itertools.cycle((LOST, 503, 429))

    def wrapped(self, request, **options):
        key = (request.method, request.path_url)
        if "/storage/v1/" not in request.url or key in failed:
            return send(self, request, **options)
        failed.add(key)
        if (kind := next(kinds)) == LOST:
            send(self, request, **options)
            raise requests.ConnectionError("injected")
        answer = requests.Response()
        answer.status_code, answer.request, answer.url = kind, request, request.url
        return answer

    go_through(cloud, STEPS[: STEPS.index(step)])
    monkeypatch.setattr("google.api_core.retry.retry_base.exponential_sleep_generator", no_wait)
    with monkeypatch.context() as patch:
        patch.setattr(requests.Session, "send", wrapped)
        COMMANDS[step]()
    assert len(failed) >= 3
    go_through(cloud, STEPS[STEPS.index(step) + 1 :])
    assert cloud.made == [NAME, NAME]
    assert in_bucket() == ["logs/1.txt", "model/weights"]
    assert (cloud.resources, cloud.nodes) == ({}, {})


def no_wait(*_, **__):
    while True:
        yield 0.0
