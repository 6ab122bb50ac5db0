"""The description of a slice to create, and the Cloud TPU request for it.

The queued resource, the node and the folder in the bucket all have the name that the user gave, so
the launcher needs no other record to find them again.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError
from launch.cloud import buckets, slices

AGENT = Path(__file__).with_name("agent.py")
LABEL = {"launched-by": "transformer-pipeline"}
FOLDER_KEY = "transformer-job"
"""The key of the node's metadata that holds the address of the folder in the bucket."""

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_ZONE = re.compile(r"[a-z]+(-[a-z]+)+\d+-[a-z]")


def check_name(name: str) -> None:
    """Raise `UsageError` unless Cloud TPU accepts the name."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"--name={name}: use at most 40 lower-case letters, digits and hyphens, a letter first"
        )


@dataclass(frozen=True)
class Spec:
    """What `create` asks for.

    Attributes:
        name: of the queued resource, the node and the folder.
        project: the Google Cloud project.
        zone: the Google Cloud zone.
        accelerator_type: type and size of the slice.
        spot: whether it is cheaper and can be preempted.
        image: runtime version of the machines.
        folder: gs:// address of the folder, without a trailing slash.
        service_account: whose rights the machines have; "" for the project's default account.
    """

    name: str
    project: str
    zone: str
    accelerator_type: str
    spot: bool
    image: str
    folder: str
    service_account: str = ""

    def __post_init__(self):
        check_name(self.name)
        if not _ZONE.fullmatch(self.zone):
            raise UsageError(f"--zone={self.zone} is not a zone; give one such as us-central1-a")
        if not self.project:
            raise UsageError("--project=... is missing; give the id of the Google Cloud project")
        buckets.split(self.folder)

    @property
    def slice(self) -> slices.Slice:
        return slices.parse(self.accelerator_type)

    @property
    def price_class(self) -> str:
        return "spot" if self.spot else "on demand"

    @property
    def parent(self) -> str:
        return f"projects/{self.project}/locations/{self.zone}"

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1)


def from_json(text: str | bytes) -> Spec:
    """Return the spec that `Spec.to_json` wrote."""
    return Spec(**json.loads(text))


def request_body(spec: Spec) -> dict:
    """Return the queued resource in the JSON of the Cloud TPU API, version 2."""
    account = {"email": spec.service_account} if spec.service_account else {}
    node = {
        "acceleratorType": spec.accelerator_type,
        "runtimeVersion": spec.image,
        # The machines install packages, and the project may have no NAT.
        "networkConfig": {"enableExternalIps": True},
        "serviceAccount": {**account, "scope": ["https://www.googleapis.com/auth/cloud-platform"]},
        "labels": LABEL,
        "metadata": {
            FOLDER_KEY: spec.folder,
            "startup-script": AGENT.read_text(encoding="utf-8"),
        },
    }
    tpu = {"nodeSpec": [{"parent": spec.parent, "nodeId": spec.name, "node": node}]}
    return {"tpu": tpu, **({"spot": {}} if spec.spot else {})}
