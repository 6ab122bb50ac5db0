"""Predict times, speeds, scaling and cost from a compiled program and a chip's data.

No prediction was compared with a run on a TPU. For one step on one chip:

    compute   = FLOPs of the matrix products / peak bfloat16 FLOP/s
    memory    = bytes of HBM that the scheduled operations read and write / HBM bandwidth
    roofline  = max(compute, memory)                  the bound for any schedule
    schedule  = sum of the compiler's cycle estimates / clock
    step      = max(roofline, schedule) + all-reduce  the prediction

The all-reduce is added in full: the compiler puts all gradients into one operation, which starts
after the last gradient, so nothing overlaps it. The prediction leaves out waiting for input, the
host's work between steps, evaluation and checkpoints. MFU counts the FLOPs of
`Task.program_flops`, for full rows; the trainer reports less, because it does not
count padding, nor attention between the sentences of a packed row.
"""

from dataclasses import dataclass

from launch.tpu_compiler.chips import Chip, Slice, slices
from launch.tpu_compiler.compiler import Compiled

_GRADIENT_BYTES = {"float32": 4, "bfloat16": 2}  # by `train.reduce_dtype`
SCALING = (8, 16, 32, 64, 128, 256)  # chips


@dataclass(frozen=True)
class Speed:
    """The time of one run of a program on one chip, without communication, in seconds.

    Attributes:
        compute: for the matrix products, at the chip's peak.
        memory: for the HBM traffic, at the chip's bandwidth.
        schedule: by the compiler's estimates.
        hbm_bytes: the HBM traffic, in bytes.
    """

    compute: float
    memory: float
    schedule: float
    hbm_bytes: float

    @property
    def roofline(self) -> float:
        return max(self.compute, self.memory)

    @property
    def seconds(self) -> float:
        """The prediction."""
        return max(self.roofline, self.schedule)


def speed_of(program: Compiled, chip: Chip) -> Speed:
    """Return the predicted times of a program that compiled."""
    cycles = sum(one.cycles * one.times for one in program.operations)
    hbm = sum(one.hbm_bytes * one.times for one in program.operations)
    return Speed(
        program.product_flops / chip.peak_flops, hbm / chip.hbm_bandwidth, cycles / chip.clock, hbm
    )


@dataclass(frozen=True)
class Scale:
    """A slice with the same rows on every chip.

    Attributes:
        chips: number of chips.
        batch_tokens: target positions of the global batch.
        all_reduce: seconds.
        step: seconds, including the all-reduce.
        tokens_per_second: target positions of all chips per second.
        efficiency: speed per chip relative to a single chip.
    """

    chips: int
    batch_tokens: int
    all_reduce: float
    step: float
    tokens_per_second: float
    efficiency: float


def scale(
    tpu: Slice,
    speed: Speed,
    parameters: int,
    tokens_per_chip: int,
    reduce_dtype: str = "float32",
) -> Scale:
    """Predict a train step on a slice.

    Args:
        tpu: the slice.
        speed: of the train step on one chip.
        parameters: number of trainable weights, whose gradients are reduced.
        tokens_per_chip: target positions in a chip's share of the batch.
        reduce_dtype: `train.reduce_dtype`.
    """
    all_reduce = tpu.all_reduce_seconds(_GRADIENT_BYTES[reduce_dtype] * parameters)
    step = speed.seconds + all_reduce
    tokens = tokens_per_chip * tpu.chips
    return Scale(tpu.chips, tokens, all_reduce, step, tokens / step, speed.seconds / step)


def scaling(
    tpu: Slice,
    speed: Speed,
    parameters: int,
    tokens_per_chip: int,
    reduce_dtype: str = "float32",
) -> list[Scale]:
    """Predict train steps on 8 to 256 chips of the same generation."""
    return [
        scale(one, speed, parameters, tokens_per_chip, reduce_dtype)
        for one in slices(tpu.chip)
        if one.chips in SCALING
    ]


def cost(tpu: Slice, step_seconds: float, steps: int, usd_per_chip_hour: float) -> float:
    """Return the US dollars that the steps alone cost."""
    return steps * step_seconds / 3600 * tpu.chips * usd_per_chip_hour


def input_bytes_per_second(rows: int, length: int, tpu: Slice, step_seconds: float) -> float:
    """Return what each host has to deliver: source, target and the segments of both, int32."""
    return 4 * 4 * rows * length * tpu.chips / tpu.hosts / step_seconds
