"""Optimizers on gradients that are already summed over replicas and workers.

Keras' own optimizers sum over the replicas inside `apply`, after clipping and after the check for
finite numbers, which makes both wrong on more than one replica; and they cannot skip a step there.
Here the train step reduces, and one factor for all gradients says everything else: the division by
the tokens, the clipping, the loss scale and, if it is 0, that the step is skipped.
"""

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import Any, Protocol

import keras
import tensorflow as tf

from configs.schema import OptimizerConfig
from trainer.distributed.strategy import compiles_itself, function_options
from trainer.optim.adafactor import Adafactor
from trainer.optim.adam import Adam
from trainer.optim.lion import Lion
from trainer.optim.muon import Muon
from trainer.optim.schedule import Schedule
from trainer.optim.sharding import Sharded, Slices, held, local, norm_of_all


class Rule(Protocol):
    """How one weight changes. To add an optimizer, write such a class and name it in `_RULES`.

    A skipped step has an `applied` and a rate of 0 and gradients of 0, and must change nothing, bit
    for bit: moving averages then decay by a factor of exactly 1.

    Attributes:
        slot_shapes: name -> for each weight the shape of what is kept about it, zeros at first;
            (1,) where nothing is.
    """

    slot_shapes: dict[str, list[tuple[int, ...]]]

    def numbers(self, rate: tf.Tensor, number: tf.Tensor, applied: tf.Tensor) -> tuple[Any, ...]:
        """Return what is the same for all weights in a step, for `update`.

        Args:
            rate: learning rate, float32 scalar, 0 in a skipped step.
            number: of this update, counted from 1, float32 scalar.
            applied: 1.0, or 0.0 in a skipped step.
        """

    def update(self, variable: Any, gradient: Any, slots: dict[str, Any], *numbers: Any) -> None:
        """Change a weight and its slots, on one replica.

        Args:
            variable: tf.Variable, float32.
            gradient: float32, of its shape.
            slots: name -> tf.Variable.
            numbers: what `numbers` returned.
        """

    def update_norm(
        self, slots: dict[str, list[tf.Variable]], rate: tf.Tensor, number: tf.Tensor
    ) -> tf.Tensor:
        """Return the Euclidean norm of the last change, weight decay aside; float32 scalar.

        NaN if the slots do not tell. `rate` and `number` are those of the last update.
        """


_RULES: dict[str, Callable[[OptimizerConfig, list[keras.Variable]], Rule]] = {
    "adam": Adam,
    "adamw": Adam,
    "adafactor": Adafactor,
    "lion": Lion,
    "muon": Muon,
}


class Optimizer(tf.Module):
    """Update weights, and keep what that takes: slots, counters, the moving average.

    Make it in the scope of the strategy.

    Args:
        config: which rule and schedule, and their numbers.
        steps: of the whole run, for the schedule.
        variables: the trainable variables, float32.
        jit_compile: compile the update with XLA, as one program on each replica.
        shard: keep a slice of slots and average on each replica, where there are several; see
            `trainer.optim.sharding`. For rules that look at one number of a weight at a time.

    Attributes:
        iterations: int64, train steps made. Schedule, data and dropout follow it.
        updates: int64, how many of them changed the weights; skipped steps did not.
        slots: name -> one variable, or `Sharded`, per weight.
        averages: the moving average of the weights, one per weight, as in `slots`; empty without.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        steps: int,
        variables: list[keras.Variable],
        *,
        jit_compile: bool = False,
        shard: bool = False,
    ):
        super().__init__()
        self.config = config
        self.schedule = Schedule(config, steps)
        self.iterations = state_variable(tf.zeros([], tf.int64))
        self.updates = state_variable(tf.zeros([], tf.int64))
        self._rule = _RULES[config.name](config, variables)
        shard = shard and tf.distribute.get_strategy().num_replicas_in_sync > 1
        self._slices = Slices(variables) if shard else None
        make = Sharded if shard else _zeros
        self.slots = {
            name: [make(shape) for shape in shapes]
            for name, shapes in self._rule.slot_shapes.items()
        }
        averaged = variables if config.ema_decay else []
        self.averages = [make(tuple(variable.shape)) for variable in averaged]
        self.reset_averages(variables)
        options = function_options(tf.distribute.get_strategy(), jit_compile)
        update = tf.function(self._update_replica, **options)
        self._trace_update = update.get_concrete_function  # no function in checkpoints

    def apply(
        self, variables: list[keras.Variable], gradients: list[tf.Tensor], factor: tf.Tensor
    ) -> None:
        """Make one step; call it in replica context, the same on every replica.

        Args:
            variables: those given to the constructor.
            gradients: dense float32, summed over all replicas.
            factor: float32 scalar that every gradient is multiplied by; 0 skips the step, even
                where gradients are not finite: weights, slots and average stay as they are.
        """
        applied = tf.cast(factor > 0.0, tf.float32)  # not for NaN either
        factor = tf.where(factor > 0.0, factor, 0.0)
        rate = self.schedule(self.iterations) * applied
        number = tf.cast(self.updates + 1, tf.float32)
        numbers = self._rule.numbers(rate, number, applied)
        # The average follows faster at the start, where the weights are still far from good.
        ema_decay = tf.minimum(self.config.ema_decay, (1.0 + number) / (10.0 + number))
        follow = applied * (1.0 - ema_decay)
        values = [variable.value for variable in variables]
        context, changed = tf.distribute.get_replica_context(), values
        if self._slices:
            changed, gradients = self._slices.variables, self._slices.take(gradients)
            for variable, value in zip(changed, self._slices.take(values), strict=True):
                variable.assign(value)
        context.merge_call(self._update_all, args=(changed, gradients, factor, numbers, follow))
        if self._slices:
            context.merge_call(_assign_all, args=(values, self._slices.gather()))
        self.updates.assign_add(tf.cast(applied, tf.int64))
        self.iterations.assign_add(1)

    def _update_all(self, strategy, variables, *arguments) -> None:
        arguments = (variables, self._local_slots(), local(self.averages), *arguments)
        if compiles_itself(strategy):
            update = self._update_replica
            strategy.extended.update(variables[0], lambda _, *own: update(*own), args=arguments)
            return
        # Its variables are arguments: it is traced once for all devices.
        traced = self._trace_update(*_of_replica(0, strategy, arguments))
        first = strategy.experimental_local_results(variables[0])
        devices = [variable.device for variable in first]

        def update_own(variable, *own):
            # The strategy has picked the device's own tensors, but not its variables.
            traced(*_of_replica(devices.index(variable.device), strategy, own))

        strategy.extended.update(variables[0], update_own, args=arguments)

    def _update_replica(self, variables, slots, averages, gradients, factor, numbers, follow):
        for index, (variable, gradient) in enumerate(zip(variables, gradients, strict=True)):
            gradient = tf.math.multiply_no_nan(gradient, factor)
            own_slots = {name: slot[index] for name, slot in slots.items()}
            self._rule.update(variable, gradient, own_slots, *numbers)
            if averages:
                averages[index].assign_sub(follow * (averages[index] - variable))

    def update_norm(self) -> tf.Tensor:
        """Return the Euclidean norm of what the last step changed, float32 scalar.

        Weight decay is not in it. NaN for optimizers whose slots do not tell: all but Adam and
        AdamW. After a skipped step, which changed nothing, about that of the update before.
        """
        number = tf.cast(tf.maximum(self.updates, 1), tf.float32)
        rate = self.schedule(self.iterations - 1)
        norm = self._rule.update_norm(self._local_slots(), rate, number)
        return norm_of_all(norm) if self._slices else norm

    def _local_slots(self) -> dict[str, list[tf.Variable]]:
        return {name: local(slot) for name, slot in self.slots.items()}

    @property
    def replica_bytes(self) -> int:
        """What a replica keeps: slots, average and, sharded, its slices of the weights."""
        kept = local(itertools.chain(*self.slots.values(), self.averages))
        kept += self._slices.variables if self._slices else []
        return sum(one.dtype.size * math.prod(one.shape) for one in kept)

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Let a single worker read slots and averages inside; all workers must enter it."""
        return held(itertools.chain(*self.slots.values(), self.averages))

    def swap_averages(self, variables) -> None:
        """Exchange the weights and their moving average, if there is one, on every replica.

        Not to be called inside a step.
        """
        if not self.averages:
            return
        with held(self.averages):
            averages = [average.numpy() for average in self.averages]
        for variable, average, new in zip(variables, self.averages, averages, strict=True):
            value = variable.numpy()
            variable.assign(new)
            average.assign(value)

    def reset_averages(self, variables) -> None:
        """Start the moving average, if there is one, anew from the present weights."""
        if self.averages:
            for variable, average in zip(variables, self.averages, strict=True):
                average.assign(variable.numpy())


def state_variable(value) -> tf.Variable:
    """Return a variable of the run, not of the model; call it in the scope of the strategy."""
    # Replicas all compute the same new value; taking the first one's needs no communication.
    return tf.Variable(
        value, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
    )


def _zeros(shape: tuple[int, ...]) -> tf.Variable:
    return state_variable(tf.zeros(shape))


def _of_replica(index: int, strategy, values: Any) -> Any:
    """Return nested values with what one replica has of those that have several copies."""

    def pick(value):
        copies = strategy.experimental_local_results(value)
        return copies[index if len(copies) > 1 else 0]

    return tf.nest.map_structure(pick, values)


def _assign_all(strategy, variables, values) -> None:
    for variable, value in zip(variables, values, strict=True):
        strategy.extended.update(variable, lambda one, new: one.assign(new), args=(value,))
