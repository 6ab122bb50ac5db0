"""What the launcher knows without asking anybody: types, names, and that it has no credentials."""

import pytest

from common.errors import UsageError
from launch.cloud import buckets, slices
from launch.cloud.service import Service
from launch.cloud.spec import Spec

NAME = "mine"
ZONE = "us-central1-a"
FOLDER = "gs://bucket/jobs/mine"


@pytest.mark.parametrize(
    ("name", "chips", "single", "image"),
    [
        ("v2-8", 4, True, "tpu-ubuntu2204-base"),
        ("v3-32", 16, False, "tpu-vm-tf-2.18.0-pod"),
        ("v4-8", 4, True, "tpu-ubuntu2204-base"),
        ("v4-16", 8, False, "tpu-vm-tf-2.18.0-pod"),
        ("v5litepod-1", 1, True, "v2-alpha-tpuv5-lite"),
        ("v5litepod-8", 8, True, "v2-alpha-tpuv5-lite"),
        ("v5litepod-16", 16, False, "tpu-vm-tf-2.18.0-pod-pjrt"),
        ("v5p-8", 4, True, "v2-alpha-tpuv5"),
        ("v6e-8", 8, True, "v2-alpha-tpuv6e"),
        ("v6e-64", 64, False, "tpu-vm-tf-2.18.0-pod-pjrt"),
    ],
)
def test_accelerator_types(name, chips, single, image):
    found = slices.parse(name)
    assert found == slices.Slice(name, chips, single, image)
    assert found.replicas == chips * (2 if name[:2] in ("v2", "v3") else 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-8", "calls it v5litepod-8"),
        ("tpu7x-8", "ends with v6e"),
        ("a100", "is unknown; give one such as v5litepod-8"),
        ("v9-8", "is unknown"),
        ("v4-4", "v4 has multiples of 8"),
        ("v6e-0", "v6e has 1, 4, 8, 16"),
    ],
)
def test_accelerator_types_that_do_not_exist(name, message):
    with pytest.raises(UsageError, match=message):
        slices.parse(name)


@pytest.mark.parametrize(
    ("field", "value"), [("name", "Mine_1"), ("zone", "us-central1"), ("folder", "s3://x/y")]
)
def test_specs_that_cannot_be(field, value):
    values = {"name": NAME, "zone": ZONE, "folder": FOLDER, field: value}
    with pytest.raises(UsageError, match=value):
        Spec(values["name"], "p", values["zone"], "v6e-8", True, "x", values["folder"])


def test_no_credentials(monkeypatch, tmp_path):
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("TPU_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(UsageError, match="gcloud auth application-default login, or use --dry_run"):
        Service()
    with pytest.raises(UsageError, match=buckets.LOG_IN):
        buckets.make_client()
