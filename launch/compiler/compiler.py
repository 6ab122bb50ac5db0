"""Compile a StableHLO program for a TPU or a GPU with their own compilers, without either.

`compile_program` runs this module as a separate process, for three reasons: it needs JAX with
libtpu or the CUDA plugin (the extras `preflight` and `preflight-gpu`) but no TensorFlow; a program
that the compiler cannot handle may crash it; and several processes use several cores. Most of the
JAX functions that it calls are not public, hence the pinned versions.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from common.errors import UsageError
from launch.compiler import hlo

if TYPE_CHECKING:  # it imports TensorFlow
    from launch.compiler.target import Target

ALL_GATHER = "all_gather_of_replicas"
"""A custom call that stands for XLA's all-gather along axis 0, among all replicas."""

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm|\({_SIZE}\) exceeds available HBM \({_SIZE}\)")


@dataclass(frozen=True)
class Compiled:
    """The compiler's report on a program. Sizes are in bytes, for one chip.

    Attributes:
        error: why compilation failed; "" if it succeeded.
        dynamic: TensorFlow operations whose results have no static shape.
        needs, available: memory needed and available if the program does not fit; otherwise 0.
        arguments, outputs, aliased, temporaries, code: memory of the program. Aliased memory is
            counted both in `arguments` and in `outputs`.
        product_flops: FLOPs of all matrix products, as exported.
        compiler_flops: FLOPs of all operations by the compiler's count, with each loop run once; 0
            for GPUs, whose compiler does not count.
        collectives: kind -> "count" and "bytes" of the results, in one run.
        operations: the scheduled operations that take time or memory traffic.
    """

    error: str = ""
    dynamic: tuple[str, ...] = ()
    needs: int = 0
    available: int = 0
    arguments: int = 0
    outputs: int = 0
    aliased: int = 0
    temporaries: int = 0
    code: int = 0
    product_flops: float = 0.0
    compiler_flops: float = 0.0
    collectives: dict[str, dict[str, int]] = field(default_factory=dict)
    operations: tuple[hlo.Operation, ...] = ()

    @property
    def memory(self) -> int:
        """All memory that the program needs, in bytes, even if it does not fit."""
        if self.needs:
            return self.needs
        return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


def check_installed(target: "Target") -> None:
    """Raise `UsageError` if the compiler for a target is not installed."""
    missing = [name for name in target.PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return
    if sys.version_info < (3, 11):
        raise UsageError("launch.preflight needs Python 3.11, because the compilers do")
    raise UsageError(
        f"launch.preflight needs {' and '.join(missing)}; install the extra {target.EXTRA}: "
        f"pip install -c requirements/preflight.txt -e '.[cpu,{target.EXTRA}]'"
    )


def compile_program(
    stablehlo: bytes, target: "Target", *, trips: int = 1, replicas: int | None = None
) -> Compiled:
    """Compile a program in a separate process.

    Args:
        stablehlo: a portable artifact.
        target: the chips to compile for.
        trips: iterations of the program's loop, if it has one.
        replicas: chips that run it; by default all of the target.
    """
    with tempfile.TemporaryDirectory() as directory:
        job: dict[str, Any] = {
            "program": os.path.join(directory, "program"),
            "result": os.path.join(directory, "result.json"),
            "topology": target.topology,
            "replicas": replicas or target.chips,
            "trips": trips,
        }
        with open(job["program"], "wb") as file:
            file.write(stablehlo)
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        paths = filter(None, [os.environ.get("PYTHONPATH")])
        done = subprocess.run(
            [sys.executable, "-m", "launch.compiler.compiler", json.dumps(job)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([root, *paths]), **target.ENVIRONMENT},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            return Compiled(error=f"the compiler died with code {done.returncode}: {last}")
        with open(job["result"]) as file:
            return from_json(json.load(file))


def from_json(values: dict[str, Any]) -> Compiled:
    """Return the result that the process wrote."""
    operations = tuple(hlo.Operation(**one) for one in values.pop("operations", ()))
    dynamic = tuple(values.pop("dynamic", ()))
    return Compiled(**values, dynamic=dynamic, operations=operations)


def memory_error(message: str) -> tuple[int, int] | None:
    """Return the bytes needed and available; None if the message is about something else."""
    found = _USED.search(message)
    if not found:
        return None
    used, used_unit, there, there_unit = [group for group in found.groups() if group is not None]
    return int(float(used) * _UNITS[used_unit]), int(float(there) * _UNITS[there_unit])


def allocations_in(message: str) -> list[tuple[int, str]]:
    """Return the size and the TensorFlow operation ("" if unknown) of each large array.

    Args:
        message: the compiler's error for a program that does not fit, which lists the largest
            arrays first. Sizes are in bytes.
    """
    found = []
    for part in re.split(r"\n\s+\d+\. (?=Size: )", message)[1:]:
        size = re.match(rf"Size: {_SIZE}", part)
        name = re.search(r'Operator: op_name="([^"]*)"', part)
        if size:
            found.append((int(float(size[1]) * _UNITS[size[2]]), name[1] if name else ""))
    return found


def operations_in(message: str) -> list[str]:
    """Return the TensorFlow operations that the compiler's message may mean, likeliest first."""
    named = re.findall(r'op_name="([^"]+)"', message)
    return named + [name.split(".")[0] for name in re.findall(r"%([\w.\-/]+)", message)]


def _main(job: dict[str, Any]) -> None:
    import numpy as np
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax.experimental import topologies
    from jaxlib.mlir.dialects import stablehlo

    with open(job["program"], "rb") as file:
        program = file.read()
    devices = topologies.get_topology_desc(**job["topology"]).devices[: job["replicas"]]
    with mlir.make_ir_context() as context:
        module = stablehlo.deserialize_portable_artifact(context, program)
        _drop_copies(module.operation)
        _make_gathers(module.operation, len(devices))
        found = _Walk(module, job["trips"])
        build = compiler.get_compile_options(
            num_replicas=len(devices),
            num_partitions=1,
            device_assignment=np.array([[device.id] for device in devices]),
        )
        result: dict[str, Any] = {"dynamic": found.dynamic, "product_flops": found.flops}
        try:
            executable = devices[0].client.compile(
                module, xla_client.DeviceList(tuple(devices)), build
            )
        except Exception as error:  # the compiler raises the same type for everything
            needs, available = memory_error(str(error)) or (0, 0)
            result |= {"error": str(error), "needs": needs, "available": available}
        else:
            counts = job["topology"]["platform"] == "tpu"  # the other compiler counts no FLOPs
            costs = executable.cost_analysis() if counts else {}
            result |= _measurements(executable, job["trips"], costs)
    with open(job["result"], "w") as file:
        json.dump(result, file)


class _Walk:
    """Walks through a module before compilation, starting at its main function.

    Attributes:
        flops: FLOPs of the matrix products of one run.
        dynamic: TensorFlow operations whose results have no static shape.
    """

    def __init__(self, module, trips: int):
        self.trips = trips
        self.flops = 0.0
        self.dynamic: list[str] = []
        self._functions = {str(one.attributes["sym_name"]): one for one in module.body.operations}
        self._visit(self._functions['"main"'], 1)

    def _visit(self, operation, times: int) -> None:
        if operation.name == "stablehlo.while":
            times *= self._trips(operation.regions[0]) or self.trips
        for region in operation.regions:
            for block in region.blocks:
                for inner in block.operations:
                    self._visit(inner.operation, times)
        if operation.name == "func.call":
            callee = str(operation.attributes["callee"]).removeprefix("@")
            self._visit(self._functions[f'"{callee}"'], times)
        if operation.name in ("stablehlo.dot_general", "stablehlo.dot"):
            self.flops += times * _product_flops(operation)
        if any("?" in str(value.type) for value in operation.results):
            self.dynamic.append(_label(operation))

    def _trips(self, condition) -> int:
        """Return the trips of a loop that counts to a constant; 0 if its condition names none."""
        bounds = set()
        for block in condition.blocks:
            for inner in block.operations:
                operation = inner.operation
                if operation.name == "func.call":
                    callee = str(operation.attributes["callee"]).removeprefix("@")
                    bounds.add(self._trips(self._functions[f'"{callee}"'].regions[0]))
                if operation.name == "stablehlo.compare":
                    bounds |= {_constant(operand) for operand in operation.operands}
        bounds.discard(0)
        return bounds.pop() if len(bounds) == 1 else 0


def _constant(value) -> int:
    """Return the integer that a value always is; 0 if it is none."""
    found = re.search(r"stablehlo.constant dense<(\d+)> : tensor<i\d+>", str(value.owner))
    return int(found[1]) if found else 0


def _drop_copies(operation) -> None:
    """Remove mhlo.copy, with which TensorFlow marks reads of variables; it is not StableHLO."""
    for region in operation.regions:
        for block in region.blocks:
            for inner in list(block.operations):
                _drop_copies(inner.operation)
    if operation.name == "mhlo.copy":
        operation.results[0].replace_all_uses_with(operation.operands[0])
        operation.erase()


def _make_gathers(operation, replicas: int) -> None:
    """Make an all-gather of each custom call that stands for one."""
    import numpy as np
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo

    for region in operation.regions:
        for block in region.blocks:
            for inner in list(block.operations):
                _make_gathers(inner.operation, replicas)
    if operation.name != "stablehlo.custom_call":
        return
    if ir.StringAttr(operation.attributes["call_target_name"]).value == ALL_GATHER:
        groups = ir.DenseIntElementsAttr.get(np.arange(replicas, dtype=np.int64)[None])
        with ir.InsertionPoint(operation), operation.location:
            gathered = stablehlo.AllGatherOp(
                [operation.results[0].type], [operation.operands[0]], 0, groups
            )
        operation.results[0].replace_all_uses_with(gathered.results[0])
        operation.erase()


def _product_flops(operation) -> int:
    left, result = operation.operands[0].type.shape, operation.results[0].type.shape
    if operation.name == "stablehlo.dot":
        terms = left[-1]
    else:
        numbers = str(operation.attributes["dot_dimension_numbers"])
        dimensions = re.search(r"lhs_contracting_dimensions = \[([\d, ]*)\]", numbers)
        terms = 1
        for dimension in dimensions[1].split(",") if dimensions else []:
            terms *= left[int(dimension)]
    elements = 1
    for size in result:
        elements *= size
    return 2 * terms * elements


def _label(operation) -> str:
    """Return the name of the TensorFlow operation, from the location."""
    names = re.findall(r'"([^"]+)"', str(operation.location))
    return names[0] if names else operation.name


def _measurements(executable, trips: int, costs) -> dict[str, Any]:
    memory = executable.get_compiled_memory_stats()
    costs = costs[0] if isinstance(costs, list) else costs
    text = executable.hlo_modules()[0].to_string()
    operations = hlo.operations(text, trips)
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "compiler_flops": costs.get("flops", 0.0),
        "collectives": hlo.collectives(text, trips),
        "operations": [asdict(one) for one in operations if one.cycles or one.memory_bytes],
    }


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
