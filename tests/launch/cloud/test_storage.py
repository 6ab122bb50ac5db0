"""Copies between a directory and a bucket, with Google's client, against an emulator."""

import json

import pytest
import requests
from google.api_core import exceptions

from common.errors import UsageError
from launch import storage
from launch.cloud import buckets
from tests.commands import run_command
from tests.services.storage import BUCKET

ADDRESS = f"gs://{BUCKET}/data/mine"
SHARDS = 6


class Crash(BaseException):
    """The end of the process."""


@pytest.fixture
def bucket(bucket_service, monkeypatch):
    """The client's view of an empty bucket."""
    server, address = bucket_service
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    yield buckets.make_client().bucket(BUCKET)
    server.wipe(keep_buckets=True)


@pytest.fixture
def dataset(tmp_path):
    """Some files as of a dataset; one in a folder, one empty."""
    folder = tmp_path / "dataset"
    (folder / "raw").mkdir(parents=True)
    for number in range(SHARDS):
        (folder / f"train-{number:05d}.tfrecord").write_bytes(bytes([number]) * (1000 * number))
    (folder / "raw" / "test en.txt").write_text("Grüße\n")
    (folder / "dataset.json").write_text("{}")
    (folder / "_incomplete-1-x").write_text("of a killed job")
    (folder / "in_use.json").write_text("{}")
    return folder


def names(bucket):
    """The objects' names, in the order in which they came."""
    blobs = sorted(bucket.client.list_blobs(bucket), key=lambda blob: blob.time_created)
    return [blob.name for blob in blobs]


def sends(monkeypatch, action):
    """Calls `action(number, method, url)` before each request; not before what a thread of the
    client asks about the bucket now and then."""
    send = requests.Session.send
    count = iter(range(10**6))

    def wrapped(self, request, **options):
        if not request.path_url.split("?")[0].endswith(f"/b/{BUCKET}"):
            action(next(count), request.method, request.url)
        return send(self, request, **options)

    monkeypatch.setattr(requests.Session, "send", wrapped)


def test_there_and_back(bucket, dataset, tmp_path):
    total = sum(1000 * number for number in range(SHARDS)) + len("Grüße\n".encode()) + 2
    assert storage.push(dataset, ADDRESS) == (SHARDS + 2, SHARDS + 2, total)
    assert names(bucket)[-1] == "data/mine/dataset.json"
    assert storage.push(dataset, ADDRESS) == (SHARDS + 2, 0, 0)

    back = tmp_path / "back"
    assert storage.pull(ADDRESS, back) == (SHARDS + 2, SHARDS + 2, total)
    for name, path in storage.local_files(dataset).items():
        assert (back / name).read_bytes() == path.read_bytes()
    assert not (back / "_incomplete-1-x").exists()
    (back / "train-00003.tfrecord").write_bytes(bytes([9]) * 3000)  # of the same size
    assert storage.pull(f"{ADDRESS}/", back) == (SHARDS + 2, 1, 3000)
    assert (back / "train-00003.tfrecord").read_bytes() == bytes([3]) * 3000


@pytest.mark.parametrize("crash_at", range(SHARDS + 3))  # the listing, then one a file
def test_a_push_that_is_cut_goes_on(bucket, dataset, monkeypatch, crash_at):
    def crash(number, method, url):
        if number == crash_at:
            raise Crash

    with monkeypatch.context() as patch:
        sends(patch, crash)
        with pytest.raises(Crash):
            storage.push(dataset, ADDRESS, parallel=1)
    there = names(bucket)
    assert "data/mine/dataset.json" not in there
    files, copied, _ = storage.push(dataset, ADDRESS)
    assert (files, copied) == (SHARDS + 2, SHARDS + 2 - len(there))
    assert names(bucket)[-1] == "data/mine/dataset.json"


def test_another_dataset_is_marked_incomplete_while_it_changes(bucket, dataset, monkeypatch):
    storage.push(dataset, ADDRESS)
    (dataset / "dataset.json").write_text('{"new": 1}')
    (dataset / "train-00001.tfrecord").write_bytes(b"new")

    def crash(number, method, url):
        if "/upload/" in url:
            raise Crash

    with monkeypatch.context() as patch:
        sends(patch, crash)
        with pytest.raises(Crash):
            storage.push(dataset, ADDRESS, parallel=1)
    assert "data/mine/dataset.json" not in names(bucket)
    assert storage.push(dataset, ADDRESS) == (SHARDS + 2, 2, 13)
    assert json.loads(bucket.blob("data/mine/dataset.json").download_as_bytes()) == {"new": 1}


def test_what_passes_is_tried_again(bucket, dataset, monkeypatch):
    failed = []

    def fail(number, method, url):
        if number % 3 == 1:
            failed.append(number)
            raise (requests.ConnectionError if number % 2 else requests.ReadTimeout)("injected")

    monkeypatch.setattr("google.api_core.retry.retry_base.exponential_sleep_generator", no_wait)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    sends(monkeypatch, fail)
    assert storage.push(dataset, ADDRESS, parallel=1)[:2] == (SHARDS + 2, SHARDS + 2)
    assert len(failed) > 3
    assert len(names(bucket)) == SHARDS + 2


def no_wait(*_, **__):
    while True:
        yield 0.0


def test_a_damaged_download_is_no_file(bucket, dataset, tmp_path, monkeypatch):
    storage.push(dataset, ADDRESS)
    from google.cloud.storage import Blob

    def damaged(self, path, **_):
        with open(path, "wb") as file:
            file.write(b"?" * self.size)

    monkeypatch.setattr(Blob, "download_to_filename", damaged)
    with pytest.raises(UsageError, match=r"test en\.txt changed while it was read"):
        storage.pull(ADDRESS, tmp_path / "back", parallel=1)
    files = [path for path in (tmp_path / "back").rglob("*") if path.is_file()]
    assert [path for path in files if path.stat().st_size] == []


def test_a_name_that_leads_elsewhere_is_refused(bucket, tmp_path, monkeypatch):
    blobs = [bucket.blob("data/mine/../../outside")]
    monkeypatch.setattr("google.cloud.storage.Client.list_blobs", lambda *_, **__: blobs)
    with pytest.raises(UsageError, match="no place in a directory"):
        storage.pull(ADDRESS, tmp_path / "back")


def test_bad_input_is_told(bucket, dataset, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="gs://BUCKET/FOLDER"):
        storage.push(dataset, "s3://bucket/x")
    with pytest.raises(UsageError, match="no such directory"):
        storage.push(tmp_path / "missing", ADDRESS)
    with pytest.raises(UsageError, match="gs://missing/x: not found"):
        storage.push(dataset, "gs://missing/x")
    with pytest.raises(UsageError, match="nothing below it"):
        storage.pull(f"gs://{BUCKET}/nothing", tmp_path / "back")

    def refuse(*_, **__):
        raise exceptions.Forbidden("no access to the bucket")

    monkeypatch.setattr("google.cloud.storage.Client.list_blobs", refuse)
    with pytest.raises(UsageError, match="no access to the bucket; the account needs the role"):
        storage.push(dataset, ADDRESS)


def test_the_command(bucket, dataset):
    code, out, err = run_command("launch.storage", "push", str(dataset), ADDRESS)
    assert (code, err) == (0, "")
    assert f"push: {SHARDS + 2} files, {SHARDS + 2} of them copied" in out
    occupied = str(dataset / "dataset.json")  # a file, not a directory
    code, out, err = run_command("launch.storage", "pull", ADDRESS, occupied)
    assert (code, out) == (2, "")
    assert err.startswith("error: [Errno")
    assert err.count("\n") == 1
    code, out, err = run_command("launch.storage", "push", str(dataset), ADDRESS, "more")
    assert (code, out) == (2, "")
    assert err.startswith("error: usage: python -m launch.storage push DIR gs://")
