"""Cloud TPU chips and slices: names, memory, bandwidths, and the time of an all-reduce."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from common.errors import UsageError
from launch.compiler.hlo import Operation
from trainer.metrics import flops

# Latency from a chip to its neighbour; "How to Scale Your Model" (DeepMind, 2025).
_HOP_SECONDS = 1e-6

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8")


@dataclass(frozen=True)
class Chip:
    """One chip of a TPU generation.

    Attributes:
        name: name of the generation in accelerator types.
        memory_gib: memory that programs can use, in GiB, according to the compiler. The data sheets
            say 32, 16, 95 and 32, of which the system takes a part.
        bandwidth: bytes/s of that memory (Cloud TPU documentation).
        link_bandwidth: bytes/s of one link to a neighbour in one direction: the documented
            bandwidth of a chip, divided by its links and by both directions.
        units: what one chip adds to the number in an accelerator type: 2 if it counts TensorCores.
        wraps: an axis of a slice is a ring, not a line, if its length is a multiple of this.
        layouts: layouts of the slices that Google offers.
        chips_per_host: chips on each host of a multi-host slice.
        megacore: both cores of a chip are one device.
    """

    name: str
    memory_gib: float
    bandwidth: float
    link_bandwidth: float
    units: int
    wraps: int
    layouts: tuple[str, ...]
    chips_per_host: int
    megacore: bool = False

    @property
    def memory(self) -> int:
        """Bytes that a program can use."""
        return int(self.memory_gib * 2**30)

    @property
    def peak_flops(self) -> float:
        """bfloat16 FLOP/s."""
        return flops.peak_flops([f"{self.name}-8"], "bfloat16") or math.nan

    @property
    def clock(self) -> float:
        """Cycles/s: the peak divided by twice the multiply-adds per cycle."""
        per_cycle = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2}
        return self.peak_flops / (2 * per_cycle[self.name])

    def seconds(self, operation: Operation) -> float:
        """Return the compiler's own estimate for one execution of an operation."""
        return operation.cycles / self.clock


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 30.75, 1.228e12, 50e9, 2, 4, _SOLID, 4, megacore=True),
        Chip("v5e", 15.75, 0.819e12, 50e9, 1, 16, _FLAT, 4),
        Chip("v5p", 95.74, 2.765e12, 100e9, 2, 4, _SOLID, 4),
        Chip("v6e", 31.25, 1.640e12, 100e9, 1, 16, _FLAT, 4),
    )
}


@dataclass(frozen=True)
class Slice:
    """Connected chips, each of which is one replica.

    Attributes:
        chip: the kind of chip.
        layout: chips along each axis, such as (2, 4).
        EXTRA: the extra of this project that installs the compiler.
        PACKAGES: modules that the extra brings.
        ENVIRONMENT: environment variables of the compiler's process.
    """

    chip: Chip
    layout: tuple[int, ...]

    EXTRA: ClassVar[str] = "preflight"
    PACKAGES: ClassVar[tuple[str, ...]] = ("jax", "libtpu")
    # Without these, libtpu looks for a TPU on this machine and complains that there is none.
    ENVIRONMENT: ClassVar[dict[str, str]] = {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # compilers side by side
        "JAX_PLATFORMS": "cpu",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }

    @property
    def chips(self) -> int:
        return math.prod(self.layout)

    @property
    def name(self) -> str:
        """The accelerator type."""
        return f"{self.chip.name}-{self.chips * self.chip.units}"

    @property
    def layout_text(self) -> str:
        """How the chips are connected, for the report."""
        return "x".join(map(str, self.layout))

    @property
    def topology(self) -> dict[str, Any]:
        """Arguments of JAX's `get_topology_desc`; the compiler's name is such as "v5e:2x4"."""
        one_chip = {"chip_config_name": "megacore"} if self.chip.megacore else {}
        bounds = {"chips_per_host_bounds": [1, 1, 1]} if self.layout == (1, 1) else {}
        name = f"{self.chip.name}:{self.layout_text}"
        return {"platform": "tpu", "topology_name": name, **one_chip, **bounds}

    @property
    def hosts(self) -> int:
        """Number of machines; one can hold up to 8 chips of v5e and v6e."""
        if self.chip.units == 1 and self.chips <= 8:
            return 1
        return max(1, self.chips // self.chip.chips_per_host)

    def all_reduce_seconds(self, size: float) -> float:
        """Return the time to sum `size` bytes over all chips and to give each of them the sum.

        A reduce-scatter and an all-gather run over all axes at once, each axis with a share of the
        bytes that suits its bandwidth (two directions for a ring, one for a line):

            2 * size * (n - 1) / n / sum over axes of (1 or 2) * link bandwidth
            + 2 * 1 us * sum over axes of (length - 1, or half the length of a ring)
        """
        axes = [length for length in self.layout if length > 1]
        if not axes:
            return 0.0
        rings = [length % self.chip.wraps == 0 for length in axes]
        bandwidth = sum(self.chip.link_bandwidth * (2 if ring else 1) for ring in rings)
        hops = sum(
            length / 2 if ring else length - 1 for length, ring in zip(axes, rings, strict=True)
        )
        share = (self.chips - 1) / self.chips
        return 2 * size * share / bandwidth + 2 * hops * _HOP_SECONDS

    def sizes(self) -> "list[Slice]":
        """Return the slices of this chip in all sizes, the smallest first."""
        return slices(self.chip)


def slices(chip: Chip) -> list[Slice]:
    """Return all slices of a generation, the smallest first."""
    return [Slice(chip, tuple(map(int, layout.split("x")))) for layout in chip.layouts]


def parse(accelerator_type: str) -> Slice:
    """Return the slice of an accelerator type, such as "v5e-8", "v5litepod-8" or "v5p-8".

    The number counts chips for v5e and v6e; for v4 and v5p it counts TensorCores, two per chip.

    Raises:
        UsageError: if the type does not exist, or the compiler does not know it.
    """
    generation, _, number = accelerator_type.partition("-")
    chip = CHIPS.get(generation.replace("v5litepod", "v5e"))
    if chip is None:
        raise UsageError(
            f"--tpu={accelerator_type}: the generations are {', '.join(CHIPS)}; give one with a "
            "size, such as v5e-8"
        )
    found = {str(one.chips * chip.units): one for one in slices(chip)}
    if number not in found:
        counted = "chips" if chip.units == 1 else "TensorCores, two per chip"
        raise UsageError(
            f"--tpu={accelerator_type}: the sizes of {chip.name} are {', '.join(found)}, in "
            f"{counted}"
        )
    return found[number]
