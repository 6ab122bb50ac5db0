"""Read from a compiled program what its operations cost, and its collectives.

The TPU's compiler schedules with a cost model and writes its estimate to each operation
("estimated_cycles"). What it does not estimate, such as transfers that overlap other work, counts
as nothing here. The layout in a shape says where the array is: S(1) is a TPU's
on-chip memory, no S is the device's memory. On GPUs there are no estimates; FLOPs of products count
with the operation that they were fused into.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*?)\)(?:,|$)")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NUMBER = re.compile(r"\bconstant\((\d+)\)")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_SHAPE = re.compile(r"([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
_OPERAND = re.compile(r"%([\w.\-]+)")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
# These move no data. Of a transfer only the end counts, not the start.
_MOVES_NOTHING = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while"}
_MOVES_NOTHING |= {"after-all", "partition-id", "replica-id", "call", "conditional"}
_SLICES = {"slice", "dynamic-slice"}  # they read of an array what they return
_COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"}
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_LIMIT = 1e9  # cycles; the compiler writes a larger number when it has no estimate


@dataclass
class Operation:
    """A scheduled operation.

    Attributes:
        name: the TensorFlow operation that it comes from.
        cycles: the estimate for one execution.
        memory_bytes: bytes that one execution reads from and writes to memory.
        flops: of the matrix products that one execution does, on a GPU.
        times: executions in one run of the program.
    """

    name: str
    cycles: float
    memory_bytes: float
    flops: float = 0.0
    times: int = 1


@dataclass
class _Computation:
    operations: list[tuple[Operation, str]] = field(default_factory=list)  # and what it calls
    loops: list[tuple[str, str, int | None]] = field(default_factory=list)
    collectives: list[tuple[str, int]] = field(default_factory=list)
    products: float = 0.0  # FLOPs of its own matrix products
    calls: list[str] = field(default_factory=list)  # computations fused into its operations
    label: str = ""  # the TensorFlow operation of its result
    sliced: dict[int, int] = field(default_factory=dict)  # parameter -> bytes, if it reads slices
    below: int | None = None  # if its result is whether a number is below this constant
    _names: dict[str, int] = field(default_factory=dict)  # of the parameters
    _whole: set[int] = field(default_factory=set)  # parameters that are read whole

    def read(self, name: str, shape: str, opcode: str, operands: str) -> None:
        """Note what an instruction reads of the parameters."""
        if opcode == "parameter":
            self._names[name] = int(operands)
            return
        first, *others = _OPERAND.findall(operands) or [""]
        number = self._names.get(first)
        if number is not None and opcode == "bitcast":
            self._names[name] = number
        elif number is not None and opcode in _SLICES and number not in self._whole:
            self.sliced[number] = self.sliced.get(number, 0) + memory_bytes(shape)
        else:
            others.append(first)
        for other in self._names.keys() & set(others):
            self._whole.add(self._names[other])
            self.sliced.pop(self._names[other], None)


def memory_bytes(shape: str) -> int:
    """Return the bytes in memory of a shape or a tuple of shapes."""
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
        trips: iterations of a loop whose number the text does not show.
    """
    computations, entry = _parse(text)
    found = []
    for name, times in _executed(computations, entry, 1, trips) if entry else ():
        for operation, called in computations[name].operations:
            operation.times = times
            if called:
                operation.flops += _products(computations, called)
                operation.name = operation.name or computations[called].label
            found.append(operation)
    return found


def collectives(text: str, trips: int) -> dict[str, dict[str, int]]:
    """Return how often each kind of collective runs, and the bytes of all its results.

    Args:
        text: as for `operations`.
        trips: as for `operations`.
    """
    computations, entry = _parse(text)
    found: dict[str, dict[str, int]] = {}
    for name, times in _executed(computations, entry, 1, trips) if entry else ():
        for kind, size in computations[name].collectives:
            one = found.setdefault(kind, {"count": 0, "bytes": 0})
            one["count"] += times
            one["bytes"] += times * size
    return found


def _executed(computations, name: str, times: int, trips: int) -> Iterator[tuple[str, int]]:
    """Yield the computations that are run, with their number of runs."""
    yield name, times
    for condition, body, known in computations[name].loops:
        # Loops of TensorFlow count up from 0.
        inside = times * (known or computations[condition].below or trips)
        for inner in (condition, body):
            yield from _executed(computations, inner, inside, trips)


def _products(computations, name: str) -> float:
    """Return the FLOPs of all matrix products in a fused computation."""
    one = computations[name]
    return one.products + sum(_products(computations, inner) for inner in one.calls)


def _parse(text: str) -> tuple[dict[str, _Computation], str | None]:
    computations: dict[str, _Computation] = {}
    entry = None
    shapes: dict[str, str] = {}
    numbers: dict[str, int] = {}
    current = _Computation()
    for line in text.splitlines():
        if not line.startswith(" "):
            if found := _COMPUTATION.match(line):
                current = computations[found[2]] = _Computation()
                shapes, numbers = {}, {}
                entry = found[2] if found[1] else entry
            continue
        if not (found := _INSTRUCTION.match(line)):
            continue
        name, shape, opcode, operands = found.groups()
        shapes[name] = shape
        current.read(name, shape, opcode, operands)
        called = _CALLS.search(line)
        label = _OP_NAME.search(line)
        products = _product_flops(shape, operands, shapes, line) if opcode == "dot" else 0.0
        current.products += products
        current.calls += [called[1]] if called else []
        if opcode == "constant" and (number := _NUMBER.search(line)):
            numbers[name] = int(number[1])
        if found.group(0).lstrip().startswith("ROOT"):
            current.label = label[1] if label else current.label
            if opcode == "compare" and "direction=LT" in line:
                current.below = numbers.get(_OPERAND.findall(operands)[1])
        kind = opcode.removesuffix("-done")  # whose shape is that of the result alone
        if kind in _COLLECTIVES:
            current.collectives.append((kind, memory_bytes(shape)))
        if opcode == "while" and (loop := _LOOP.search(line)):
            known = _TRIPS.search(line)
            current.loops.append((loop[1], loop[2], int(known[1]) if known else None))
        elif opcode not in _MOVES_NOTHING and not opcode.endswith("-start"):
            cycles = _CYCLES.search(line)
            fused = computations.get(called[1]) if called else None
            operation = Operation(
                label[1] if label else "",
                min(float(cycles[1]), _LIMIT) if cycles else 0.0,
                _traffic(shape, opcode, operands, shapes, fused),
                products,
            )
            current.operations.append((operation, called[1] if called else ""))
    return computations, entry


def _product_flops(shape: str, operands: str, shapes: dict[str, str], line: str) -> float:
    """Return twice the multiply-adds of a product, from its result and its left operand."""
    left = _SHAPE.match(shapes.get((_OPERAND.findall(operands) or [""])[0], ""))
    summed, result = _CONTRACTED.search(line), _SHAPE.match(shape)
    if not (left and summed and result):
        return 0.0
    sizes = [int(size) for size in left[2].split(",") if size]
    terms = math.prod(sizes[int(axis)] for axis in summed[1].split(",") if axis)
    return 2.0 * terms * math.prod(int(size) for size in result[2].split(",") if size)


def _traffic(
    shape: str, opcode: str, operands: str, shapes: dict[str, str], fused: _Computation | None
) -> float:
    if opcode.endswith("-done"):  # a transfer, with at least one side in memory
        return max(memory_bytes(shape.replace("S(1)", "")), memory_bytes(shape))
    if opcode in _SLICES:
        return 2 * memory_bytes(shape)
    sliced = fused.sliced if fused else {}
    read = sum(
        sliced.get(number, memory_bytes(shapes.get(name, "")))
        for number, name in enumerate(_OPERAND.findall(operands))
    )
    return memory_bytes(shape) + read
