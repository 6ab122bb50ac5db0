"""What an accelerator type of Cloud TPU means: chips, hosts, and the image for its machines."""

import re
from dataclasses import dataclass

from common.errors import UsageError

EXAMPLES = "v5litepod-8, v6e-8, v5p-8 or v4-8"


@dataclass(frozen=True)
class _Family:
    """A generation of TPUs.

    Attributes:
        cores: TensorCores a chip, where the number in the type counts those; 1 where it counts
            chips.
        host_chips: chips of the largest slice on one host.
        image: of its machines, for a TensorFlow from pip. TensorFlow's own images end with 2.18.
        pod_image: of the machines of a slice of several hosts; it runs TensorFlow's server on each.
    """

    cores: int
    host_chips: int
    image: str
    pod_image: str


_OLD = ("tpu-ubuntu2204-base", "tpu-vm-tf-2.18.0-pod")
_PJRT_POD = "tpu-vm-tf-2.18.0-pod-pjrt"
_FAMILIES = {
    "v2": _Family(2, 4, *_OLD),
    "v3": _Family(2, 4, *_OLD),
    "v4": _Family(2, 4, *_OLD),
    "v5litepod": _Family(1, 8, "v2-alpha-tpuv5-lite", _PJRT_POD),
    "v5p": _Family(2, 4, "v2-alpha-tpuv5", _PJRT_POD),
    "v6e": _Family(1, 8, "v2-alpha-tpuv6e", _PJRT_POD),
}


@dataclass(frozen=True)
class Slice:
    """A slice of TPU.

    Attributes:
        accelerator_type: its name in the Cloud TPU API.
        chips: number of its chips.
        single_host: whether one machine holds them all.
        image: runtime version of the machines.
    """

    accelerator_type: str
    chips: int
    single_host: bool
    image: str


def parse(accelerator_type: str) -> Slice:
    """The slice of an accelerator type.

    Raises:
        UsageError: if there is no such type, or this API does not offer it.
    """
    match = re.fullmatch(r"(v\d+[a-z]*)-(\d+)", accelerator_type)
    if match and match[1] in ("v5e", "v5lite"):
        raise UsageError(
            f"--accelerator_type={accelerator_type}: Cloud TPU calls it v5litepod-{match[2]}"
        )
    if accelerator_type.startswith(("tpu7", "v7")):
        raise UsageError(
            f"--accelerator_type={accelerator_type}: the Cloud TPU API ends with v6e; later TPUs "
            "are offered through Compute Engine and Kubernetes Engine only"
        )
    family = _FAMILIES.get(match[1]) if match else None
    if match is None or family is None:
        raise UsageError(
            f"--accelerator_type={accelerator_type} is not known; it is like {EXAMPLES}"
        )
    chips, rest = divmod(int(match[2]), family.cores)
    # Sizes are 1, 2, 4 ... chips; where the number counts cores, a whole host is the least.
    if rest or chips < (1 if family.cores == 1 else family.host_chips):
        raise UsageError(
            f"--accelerator_type={accelerator_type}: there is no slice of that size; the smallest "
            f"is {match[1]}-{1 if family.cores == 1 else family.host_chips * family.cores}"
        )
    single = chips <= family.host_chips
    return Slice(accelerator_type, chips, single, family.image if single else family.pod_image)
