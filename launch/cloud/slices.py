"""Cloud TPU accelerator types: their chips, their hosts and the image for their machines."""

import re
from dataclasses import dataclass

from common.errors import UsageError

EXAMPLES = "v5litepod-8, v6e-8, v5p-8 or v4-8"


@dataclass(frozen=True)
class _Family:
    """A generation of TPUs.

    Attributes:
        cores: TensorCores per chip if the number in the type counts those; 1 if it counts chips.
        host_chips: chips of the largest single-host slice.
        image: runtime version for TensorFlow from pip. TensorFlow's own images end with 2.18.
        pod_image: runtime version for multi-host slices; it runs TensorFlow's server on each host.
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
    """A TPU slice.

    Attributes:
        accelerator_type: its name in the Cloud TPU API.
        chips: the number of chips.
        single_host: whether one machine holds all the chips.
        image: runtime version of the machines.
    """

    accelerator_type: str
    chips: int
    single_host: bool
    image: str

    @property
    def replicas(self) -> int:
        """Devices that TensorFlow sees: the cores of v2 and v3, the chips of later ones."""
        return 2 * self.chips if self.accelerator_type.startswith(("v2-", "v3-")) else self.chips


def parse(accelerator_type: str, flag: str = "accelerator_type") -> Slice:
    """Return the slice of an accelerator type.

    Args:
        accelerator_type: its name in the Cloud TPU API.
        flag: that gives it, for messages.

    Raises:
        UsageError: if there is no such type, or the Cloud TPU API does not offer it.
    """
    match = re.fullmatch(r"(v\d+[a-z]*)-(\d+)", accelerator_type)
    if match and match[1] in ("v5e", "v5lite"):
        raise UsageError(f"--{flag}={accelerator_type}: Cloud TPU calls it v5litepod-{match[2]}")
    if accelerator_type.startswith(("tpu7", "v7")):
        raise UsageError(
            f"--{flag}={accelerator_type}: the Cloud TPU API ends with v6e; later TPUs "
            "are available only through Compute Engine and Kubernetes Engine"
        )
    family = _FAMILIES.get(match[1]) if match else None
    if match is None or family is None:
        raise UsageError(f"--{flag}={accelerator_type} is unknown; give one such as {EXAMPLES}")
    chips, rest = divmod(int(match[2]), family.cores)
    # Flat slices have 1, 4, 8, 16 ... chips; of the others the smallest is a whole host.
    is_flat = family.cores == 1
    wrong = chips & (chips - 1) or chips == 2 if is_flat else rest or chips % family.host_chips
    if not chips or wrong:
        sizes = "1, 4, 8, 16 ..." if is_flat else f"multiples of {family.host_chips * family.cores}"
        raise UsageError(
            f"--{flag}={accelerator_type}: no slice has that size; {match[1]} has {sizes}"
        )
    single = chips <= family.host_chips
    return Slice(accelerator_type, chips, single, family.image if single else family.pod_image)
