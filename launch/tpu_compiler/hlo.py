"""Read from a compiled TPU program how long its operations take, by the compiler's estimates.

The compiler schedules with a cost model and writes its estimate to each operation
("estimated_cycles"). What it does not estimate, such as transfers that overlap other work, counts
as nothing here. The layout in a shape says where the array is: S(1) is on-chip memory, no S is HBM.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*?)\)(?:,|$)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
# These move no data. Of a transfer only the end counts, not the start.
_MOVES_NOTHING = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while"}
_MOVES_NOTHING |= {"after-all", "partition-id", "replica-id", "call", "conditional"}
_LIMIT = 1e9  # cycles; the compiler writes a larger number when it has no estimate


@dataclass
class Operation:
    """A scheduled operation.

    Attributes:
        name: the TensorFlow operation that it comes from.
        cycles: the estimate for one execution.
        hbm_bytes: bytes that one execution reads from and writes to HBM.
        times: executions in one run of the program.
    """

    name: str
    cycles: float
    hbm_bytes: float
    times: int = 1


@dataclass
class _Computation:
    operations: list[Operation] = field(default_factory=list)
    loops: list[tuple[str, str, int | None]] = field(default_factory=list)


def hbm_bytes(shape: str) -> int:
    """Return the bytes in HBM of a shape or a tuple of shapes."""
    total = 0
    for dtype, sizes, layout in _SHAPE.findall(shape):
        if "S(" not in layout:
            elements = math.prod(int(size) for size in sizes.split(",") if size)
            total += elements * _BYTES.get(dtype, 0)
    return total


def operations(text: str, trips: int) -> list[Operation]:
    """Return the scheduled operations of a program.

    Args:
        text: an optimized and scheduled HLO module.
        trips: iterations of a loop for which the text does not say the number.
    """
    computations, entry = _parse(text)
    return list(_flatten(computations, entry, 1, trips)) if entry else []


def _flatten(computations, name: str, times: int, trips: int) -> Iterator[Operation]:
    computation = computations[name]
    for operation in computation.operations:
        operation.times = times
        yield operation
    for condition, body, known in computation.loops:
        for inner in (condition, body):
            yield from _flatten(computations, inner, times * (known or trips), trips)


def _parse(text: str) -> tuple[dict[str, _Computation], str | None]:
    computations: dict[str, _Computation] = {}
    entry = None
    shapes: dict[str, str] = {}
    current = _Computation()
    for line in text.splitlines():
        if not line.startswith(" "):
            if found := _COMPUTATION.match(line):
                current = computations[found[2]] = _Computation()
                shapes = {}
                entry = found[2] if found[1] else entry
            continue
        if not (found := _INSTRUCTION.match(line)):
            continue
        name, shape, opcode, operands = found.groups()
        shapes[name] = shape
        if opcode == "while" and (loop := _LOOP.search(line)):
            known = _TRIPS.search(line)
            current.loops.append((loop[1], loop[2], int(known[1]) if known else None))
        elif opcode not in _MOVES_NOTHING and not opcode.endswith("-start"):
            cycles = _CYCLES.search(line)
            label = _OP_NAME.search(line)
            current.operations.append(
                Operation(
                    label[1] if label else "",
                    min(float(cycles[1]), _LIMIT) if cycles else 0.0,
                    _traffic(shape, opcode, operands, shapes),
                )
            )
    return computations, entry


def _traffic(shape: str, opcode: str, operands: str, shapes: dict[str, str]) -> float:
    if opcode.endswith("-done"):  # a transfer, with at least one side in HBM
        return max(hbm_bytes(shape.replace("S(1)", "")), hbm_bytes(shape))
    read = sum(hbm_bytes(shapes.get(name, "")) for name in _OPERAND.findall(operands))
    return hbm_bytes(shape) + read
