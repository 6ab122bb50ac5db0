"""Predict times, speeds and scaling from a compiled program and a chip's data.

A chip is a TPU chip or a GPU. No prediction was compared with a run on one. For one step on one
chip:

    compute   = FLOPs of the matrix products / peak bfloat16 FLOP/s
    memory    = bytes of memory that the scheduled operations move / its bandwidth
    roofline  = max(compute, memory)                  the bound for any schedule
    schedule  = sum over the scheduled operations of
                the compiler's cycle estimate / clock           for TPUs
                max(FLOPs / peak, bytes / bandwidth)            for GPUs
    step      = max(roofline, schedule) + all-reduce  the prediction
                + gather of the float32 weights with `train.shard_optimizer`: half an all-reduce

Both are added in full: the all-reduce starts after the last gradient, and the gather of the updated
weights after the update, so nothing overlaps them. The prediction leaves out waiting for input, the
host's work between steps, evaluation and checkpoints.
MFU counts the FLOPs of `Task.program_flops`, for full rows; the trainer reports less, because it
does not count padding, nor attention between the sentences of a packed row.
"""

from dataclasses import dataclass

from launch.compiler.compiler import Compiled
from launch.compiler.target import Chip, Target

_GRADIENT_BYTES = {"float32": 4, "bfloat16": 2}  # by `train.reduce_dtype`
SCALING = (8, 16, 32, 64, 128, 256)  # chips


@dataclass(frozen=True)
class Speed:
    """The time of one run of a program on one chip, without communication, in seconds.

    Attributes:
        compute: for the matrix products, at the chip's peak.
        memory: for the memory traffic, at the chip's bandwidth.
        schedule: operation by operation.
        memory_bytes: the memory traffic, in bytes.
    """

    compute: float
    memory: float
    schedule: float
    memory_bytes: float

    @property
    def roofline(self) -> float:
        return max(self.compute, self.memory)

    @property
    def seconds(self) -> float:
        """The prediction."""
        return max(self.roofline, self.schedule)


def speed_of(program: Compiled, chip: Chip) -> Speed:
    """Return the predicted times of a program that compiled."""
    schedule = sum(chip.seconds(one) * one.times for one in program.operations)
    traffic = sum(one.memory_bytes * one.times for one in program.operations)
    return Speed(
        program.product_flops / chip.peak_flops, traffic / chip.bandwidth, schedule, traffic
    )


@dataclass(frozen=True)
class Scale:
    """A number of chips with the same rows on each.

    Attributes:
        chips: number of chips.
        batch_tokens: target positions of the global batch.
        all_reduce: seconds.
        gather: seconds in which the chips get the weights that the others updated.
        step: seconds, including both.
        tokens_per_second: target positions of all chips per second.
        efficiency: speed per chip relative to a single chip.
    """

    chips: int
    batch_tokens: int
    all_reduce: float
    gather: float
    step: float
    tokens_per_second: float
    efficiency: float


def scale(
    target: Target,
    speed: Speed,
    parameters: int,
    tokens_per_chip: int,
    reduce_dtype: str,
    *,
    shard: bool,
) -> Scale:
    """Predict a train step on connected chips.

    Args:
        target: the chips.
        speed: of the train step on one chip.
        parameters: number of trainable weights, whose gradients are reduced.
        tokens_per_chip: target positions in a chip's share of the batch.
        reduce_dtype: `train.reduce_dtype`.
        shard: `train.shard_optimizer`.
    """
    all_reduce = target.all_reduce_seconds(_GRADIENT_BYTES[reduce_dtype] * parameters)
    # An all-reduce is a reduce-scatter and, with the same bytes on the same links, an all-gather.
    gather = target.all_reduce_seconds(4 * parameters) / 2 if shard else 0.0
    step = speed.seconds + all_reduce + gather
    tokens = tokens_per_chip * target.chips
    return Scale(
        target.chips, tokens, all_reduce, gather, step, tokens / step, speed.seconds / step
    )


def scaling(
    target: Target,
    speed: Speed,
    parameters: int,
    tokens_per_chip: int,
    reduce_dtype: str,
    *,
    shard: bool,
) -> list[Scale]:
    """Predict train steps on 8 to 256 chips of the same kind."""
    return [
        scale(one, speed, parameters, tokens_per_chip, reduce_dtype, shard=shard)
        for one in target.sizes()
        if one.chips in SCALING
    ]
