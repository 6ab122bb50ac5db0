"""The trainer's own programs, traced for one TPU chip and exported as StableHLO.

TPUStrategy compiles the function that it runs on every replica. Here a one-device strategy, which
stands for one of many replicas, traces that function and turns each reduction over replicas into an
XLA all-reduce, and each gather into a mark that `launch.compiler.compiler` makes an all-gather of.
The exported program holds all of a train step: forward, backward, all-reduce, clipping and update.
"""

import linecache
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops
from tensorflow.python.distribute import one_device_strategy

from launch.compiler.compiler import ALL_GATHER
from trainer.model.attention import optimize_for_tpu
from trainer.model.dropout import use_device_generator
from trainer.optim.loss_scale import LossScale
from trainer.optim.optimizer import Optimizer
from trainer.step import Steps

_LIBRARIES = ("site-packages", "dist-packages")
_NO_TENSOR = (tf.resource, tf.variant)
_HOST_CALLS = ("PyFunc", "PyFuncStateless", "EagerPyFunc", "Print", "PrintV2")


class _OneOfMany(tf.distribute.Strategy):
    """One replica that reduces as one of many."""

    def __init__(self, replicas: int):
        super().__init__(_OneOfManyExtended(self, replicas))


class _OneOfManyExtended(one_device_strategy.OneDeviceExtended):
    def __init__(self, strategy, replicas: int):
        super().__init__(strategy, "/device:CPU:0")
        self._replicas = replicas

    @property
    def _num_replicas_in_sync(self):
        return self._replicas

    def _reduce_to(self, reduce_op, value, destinations, options):
        if self._replicas == 1:
            return value
        if reduce_op != tf.distribute.ReduceOp.SUM:
            raise NotImplementedError(f"reduction {reduce_op}")
        return gen_xla_ops.xla_all_reduce(
            input=value,
            group_assignment=tf.constant([list(range(self._replicas))]),
            reduce_op="Add",
            mode="CrossReplica",
        )

    def _gather_to_implementation(self, value, destinations, axis, options):
        # TensorFlow has an operation for XLA's all-reduce, but none for its all-gather.
        if axis != 0:
            raise NotImplementedError(f"gather along axis {axis}")
        (gathered,) = gen_xla_ops.xla_custom_call_v2(
            operands=[value],
            call_target_name=ALL_GATHER,
            backend_config="",
            has_side_effect=False,
            result_dtypes=[value.dtype],
            result_shapes=[[self._replicas * value.shape[0], *value.shape[1:]]],
        )
        return gathered


@dataclass(frozen=True)
class Problem:
    """Something that a TPU cannot do.

    Attributes:
        what: a description, with the operation.
        line: the Python line that made it, as "file:line in function: text"; "" if unknown.
    """

    what: str
    line: str

    def __str__(self) -> str:
        return f"{self.what}, made by {self.line}" if self.line else self.what


class Program:
    """A function with static shapes.

    Args:
        name: "train", "evaluate" or "decode".
        function: a function of int32 tensors.
        shapes: the shapes of its arguments.
        trips: iterations of its loop; 1 without a loop.
        inside: the body of the loop as a separate program, used only to find Python lines, which
            TensorFlow does not keep for a loop's operations.
    """

    def __init__(
        self, name: str, function, shapes: list[tuple[int, int]], trips: int = 1, inside=None
    ):
        self.name, self.trips, self.shapes, self._inside = name, trips, shapes, inside
        self._function = tf.function(function, jit_compile=True, autograph=False)
        self._specs = [tf.TensorSpec(shape, tf.int32) for shape in shapes]
        graph = self._function.get_concrete_function(*self._specs).graph
        self._operations = [
            {operation.name: operation for operation in one.get_operations()}
            for one in graphs_of(graph, set())
        ]

    def problems(self) -> list[Problem]:
        """Return what a TPU forbids, as far as the graph shows it."""
        inside = self._inside.problems() if self._inside else []
        return inside + [
            Problem(f"{what} ({operation.type} {operation.name})", line_of(operation))
            for operations in self._operations
            for operation in operations.values()
            if (what := forbidden(operation))
        ]

    def stablehlo(self) -> bytes:
        """Return the program as a portable StableHLO artifact.

        Raises:
            ExportError: if TensorFlow cannot compile an operation.
        """
        export = self._function.experimental_get_compiler_ir(*self._specs)
        try:
            return export(stage="stablehlo_serialized")
        except (ValueError, tf.errors.OpError) as error:
            raise ExportError(self._explain(str(error))) from error

    def line(self, name: str) -> str:
        """Return the Python line of an operation with the compiler's name for it; "" if unknown.

        For an operation of the backward pass, it is the line of the forward operation.
        """
        if "gradient_tape/" in name:
            forward = name.replace("gradient_tape/", "")
            if found := self._line(forward.rpartition("/")[0]) or self._line(forward):
                return f"{found} (backward)"
        return self._line(name) or (self._inside.line(name) if self._inside else "")

    def _line(self, name: str) -> str:
        called = name.count("StatefulPartitionedCall/")
        parts = re.sub(r"^.*;", "", name).split("/")
        # Prefer called functions, and the longest part of the name that exists.
        graphs = self._operations[1:] + self._operations[:1] if called else self._operations
        for start in range(len(parts)):
            for operations in graphs:
                if found := operations.get("/".join(parts[start:])):
                    return line_of(found)
        return ""

    def _explain(self, message: str) -> Problem:
        node = re.search(r"\{\{node (?:\S+/)?([^\s/]+)\}\}", message)
        full = re.search(r"\{\{node (\S+?)\}\}", message)
        line = (self.line(full[1]) if full else "") or (self.line(node[1]) if node else "")
        return Problem(" ".join(message.split("The op is created at")[0].split())[:300], line)


class ExportError(Exception):
    """TensorFlow cannot export a program as StableHLO; the argument is a `Problem`."""

    @property
    def problem(self) -> Problem:
        return self.args[0]


class Programs:
    """The programs that a training run compiles for its chips.

    Args:
        config: `configs.schema.Config`.
        task: see `trainer.tasks.base.Task`.
        replicas: chips that share a global batch.
        precision: a Keras dtype policy.
        tpu: whether the chips are TPUs, not GPUs.
    """

    def __init__(self, config, task, replicas: int, precision: str, *, tpu: bool):
        keras.config.set_dtype_policy(precision)
        self.config, self.task, self._features = config, task, task.FEATURES
        self._strategy = _OneOfMany(replicas)
        with self._strategy.scope():
            self.model = task.build_model()
            optimizer = Optimizer(
                config.optimizer,
                config.train.steps,
                self.model.trainable_variables,
                shard=config.train.shard_optimizer,
            )
            scale = LossScale(precision == "mixed_float16")
            if tpu:
                optimize_for_tpu(self.model)
            fast = config.train.fast_dropout
            if fast == "on" or (fast == "auto" and tpu):
                use_device_generator(self.model)
            self._steps = Steps(
                self._strategy, task, self.model, optimizer, scale, config, jit_compile=False
            )

    @property
    def parameters(self) -> int:
        """The number of trainable weights."""
        return sum(int(weight.shape.num_elements()) for weight in self._weights)

    @property
    def _weights(self) -> list[tf.Variable]:
        return [variable.value for variable in self.model.trainable_variables]

    def train(self, rows: int, length: int) -> Program:
        """Return a train step on `rows` rows of `length` tokens per side, in micro-batches."""

        def step(*features):
            batch = dict(zip(self._features, features, strict=True))
            return self._strategy.run(self._steps.replica_step, args=(batch,))

        def micro_batch(*features):
            batch = dict(zip(self._features, features, strict=True))
            return self._steps.micro_gradients(batch, tf.zeros([2], tf.int32), tf.ones([]))

        parts, inside = self.config.train.micro_batches, None
        if parts > 1:
            inside = Program("train", micro_batch, [(rows // parts, length)] * len(self._features))
        return Program("train", step, [(rows, length)] * len(self._features), parts, inside)

    def evaluate(self, rows: int, length: int) -> Program:
        """Return the forward pass of an evaluation batch, up to its sums, not reduced."""

        def sums(*features):
            return self._steps.replica_forward(dict(zip(self._features, features, strict=True)))

        return Program("evaluate", sums, [(rows, length)] * len(self._features))

    def decode(self, rows: int, length: int) -> Program:
        """Return what a user runs, such as the search for translations, to the last position."""
        made = self.task.decoding(self.model, rows, length)
        return Program("decode", made.function, list(made.shapes), made.trips)


def line_of(operation: tf.Operation) -> str:
    """Return the innermost Python line, outside of libraries, that made an operation; or ""."""
    frames = [
        frame
        for frame in operation.traceback or ()
        if not any(library in frame.filename for library in _LIBRARIES)
    ]
    if not frames:
        return ""
    frame = frames[-1]
    text = linecache.getline(frame.filename, frame.lineno).strip()
    return f"{os.path.relpath(frame.filename)}:{frame.lineno} in {frame.name}: {text}"


def forbidden(operation: tf.Operation) -> str | None:
    """Return why a TPU cannot run an operation; None if it can, as far as the graph shows."""
    if operation.type in _HOST_CALLS:
        return "call to the host inside the step"
    if any(tensor.dtype == tf.string for tensor in (*operation.inputs, *operation.outputs)):
        return "text, which a TPU cannot hold"
    known = all(_is_static(tensor) for tensor in operation.inputs)
    if operation.traceback and known and not all(map(_is_static, operation.outputs)):
        return "dynamic shape: its size depends on the data"
    return None


def _is_static(tensor: tf.Tensor) -> bool:
    return tensor.dtype in _NO_TENSOR or tensor.shape.is_fully_defined()


def graphs_of(graph, seen: set[str]) -> Iterator[tf.Graph]:
    """Yield a graph and the graphs of all functions that it calls."""
    yield graph
    for operation in graph.get_operations():
        for attribute in operation.node_def.attr.values():
            for name in (attribute.func.name, *(one.name for one in attribute.list.func)):
                if name and name not in seen:
                    seen.add(name)
                    yield from graphs_of(graph._get_function(name).graph, seen)
