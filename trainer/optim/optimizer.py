"""Adam, AdamW and Adafactor on gradients that are already reduced over replicas and workers.

Why not Keras' own: it sums over the replicas inside `apply`, after clipping and after its finite
check, which makes both wrong on more than one replica, and it cannot leave out a step there. Here
the train step reduces, and one factor for all gradients says everything else: the division by the
tokens, the clipping, the loss scale, and, if it is 0, that the step is skipped.
"""

from collections.abc import Callable

import keras
import tensorflow as tf

from trainer.optim.schedule import Schedule

# Adafactor's constants, all from Shazeer and Stern 2018: section 9, and T5's smallest factored
# size. They have no place in the configuration: nobody tunes them.
_DECAY_EXPONENT = 0.8
_SQUARE_EPSILON = 1e-30
_SMALLEST_SCALE = 1e-3
_CLIPPING_THRESHOLD = 1.0
_SMALLEST_FACTORED = 128


class Optimizer(tf.Module):
    """Updates weights, and keeps what that takes: slots, counters, the moving average.

    Make it in the scope of the strategy.

    Args:
        config: `configs.schema.OptimizerConfig`.
        steps: of the whole run, for the schedule.
        variables: the trainable variables (Keras variables, float32).

    Attributes:
        iterations: int64, train steps made. Schedule, data and dropout follow it.
        updates: int64, the steps of them that changed the weights; less when some were skipped.
        slots: name -> one variable per weight.
        averages: the moving average of the weights, one variable per weight; empty without.
    """

    def __init__(self, config, steps: int, variables: list[keras.Variable]):
        super().__init__()
        self.config = config
        self.schedule = Schedule(config, steps)
        self.iterations = state_variable(tf.zeros([], tf.int64))
        self.updates = state_variable(tf.zeros([], tf.int64))
        shapes = [tuple(variable.shape) for variable in variables]
        if config.name == "adafactor":
            rows = [shape[:-1] if _factored(shape) else (1,) for shape in shapes]
            columns = [shape[:-2] + shape[-1:] if _factored(shape) else (1,) for shape in shapes]
            whole = [(1,) if _factored(shape) else shape for shape in shapes]
            self.slots = {"row": _zeros(rows), "column": _zeros(columns), "square": _zeros(whole)}
        else:
            self.slots = {"momentum": _zeros(shapes), "velocity": _zeros(shapes)}
        self.averages = (
            [state_variable(variable.value) for variable in variables] if config.ema_decay else []
        )

    def apply(self, variables, gradients: list[tf.Tensor], factor: tf.Tensor) -> None:
        """One step; call it in replica context, the same on every replica.

        Args:
            variables: those given to the constructor.
            gradients: dense float32, summed over all replicas.
            factor: float32 scalar that every gradient is multiplied by; 0 skips the step, even
                where gradients are not finite: weights, slots and average stay as they are.
        """
        applied = tf.cast(factor > 0.0, tf.float32)  # not for NaN either
        factor = tf.where(factor > 0.0, factor, 0.0)
        # A skipped step has a rate of 0 and lets every average decay by a factor of 1.
        rate = self.schedule(self.iterations) * applied
        number = tf.cast(self.updates + 1, tf.float32)
        config = self.config
        rule: Callable[..., None]
        if config.name == "adafactor":
            rule, numbers = _adafactor, (rate, 1.0 - applied * number**-_DECAY_EXPONENT)
        else:
            betas = [1.0 - applied * (1.0 - beta) for beta in (config.beta_1, config.beta_2)]
            decay = rate * config.weight_decay if config.name == "adamw" else None
            rate *= _adam_correction(config, number)
            rule, numbers = _adam, (rate, *betas, config.epsilon, decay)
        # The average follows faster at the start, where the weights are still far from good.
        follow = applied * (1.0 - tf.minimum(config.ema_decay, (1.0 + number) / (10.0 + number)))
        gradients = [tf.math.multiply_no_nan(gradient, factor) for gradient in gradients]
        values = [variable.value for variable in variables]
        tf.distribute.get_replica_context().merge_call(
            self._update_all, args=(values, gradients, numbers, follow), kwargs={"rule": rule}
        )
        self.updates.assign_add(tf.cast(applied, tf.int64))
        self.iterations.assign_add(1)

    def _update_all(self, strategy, variables, gradients, numbers, follow, rule) -> None:
        for index, (variable, gradient) in enumerate(zip(variables, gradients, strict=True)):
            slots = {name: slot[index] for name, slot in self.slots.items()}
            strategy.extended.update(variable, rule, args=(gradient, slots, *numbers))
            if self.averages:
                average = self.averages[index]
                strategy.extended.update(average, _move_average, args=(variable, follow))

    def update_norm(self) -> tf.Tensor:
        """Euclidean norm of what the last step changed, float32 scalar, from the slots.

        Weight decay is not in it. Only Adam and AdamW keep what it takes; NaN for Adafactor.
        After a skipped step, which changed nothing, it is about that of the update before.
        """
        if self.config.name == "adafactor":
            return tf.constant(float("nan"))
        number = tf.cast(tf.maximum(self.updates, 1), tf.float32)
        rate = self.schedule(self.iterations - 1) * _adam_correction(self.config, number)
        squares = [
            tf.nn.l2_loss(momentum / (tf.sqrt(velocity) + self.config.epsilon))
            for momentum, velocity in zip(
                self.slots["momentum"], self.slots["velocity"], strict=True
            )
        ]
        return rate * tf.sqrt(2.0 * tf.add_n(squares))

    def swap_averages(self, variables) -> None:
        """Exchanges the weights and their moving average, if there is one, on every replica.

        Not inside a step.
        """
        if not self.averages:
            return
        for variable, average in zip(variables, self.averages, strict=True):
            value = variable.numpy()
            variable.assign(average.numpy())
            average.assign(value)

    def reset_averages(self, variables) -> None:
        """Lets the moving average, if there is one, begin with the weights as they are."""
        if self.averages:
            for variable, average in zip(variables, self.averages, strict=True):
                average.assign(variable.numpy())


def state_variable(value) -> tf.Variable:
    """A variable that belongs to the run, not to the model; make it in the strategy's scope."""
    # Replicas all compute the same new value; taking the first one's needs no communication.
    return tf.Variable(
        value, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
    )


def _zeros(shapes) -> list[tf.Variable]:
    return [state_variable(tf.zeros(shape)) for shape in shapes]


def _adam_correction(config, number: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(1.0 - config.beta_2**number) / (1.0 - config.beta_1**number)


def _adam(variable, gradient, slots, rate, beta_1, beta_2, epsilon, decay) -> None:
    """Adam (Kingma and Ba 2015, end of section 2), AdamW (Loshchilov and Hutter 2019)."""
    if decay is not None and len(variable.shape) > 1:  # not biases and norms
        variable.assign_sub(decay * variable)
    # One pass over memory. The bias correction, which it takes from the powers, is in the rate.
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=slots["momentum"].handle,
        v=slots["velocity"].handle,
        beta1_power=tf.zeros([]),
        beta2_power=tf.zeros([]),
        lr=rate,
        beta1=beta_1,
        beta2=beta_2,
        epsilon=epsilon,
        grad=gradient,
    )


def _factored(shape) -> bool:
    return len(shape) >= 2 and min(shape[-2:]) >= _SMALLEST_FACTORED


def _adafactor(variable, gradient, slots, rate, decay) -> None:
    """Adafactor without momentum (Shazeer and Stern 2018, algorithms 4 to 6).

    The rate is relative: it is multiplied by the root mean square of the weights.
    """
    square = tf.square(gradient) + _SQUARE_EPSILON

    def moved(slot, new):
        slot.assign(decay * slot + (1.0 - decay) * new)
        return tf.maximum(slot, _SQUARE_EPSILON)  # 0 before the first update

    if _factored(variable.shape):
        row = moved(slots["row"], tf.reduce_mean(square, -1))  # [..., R]
        column = moved(slots["column"], tf.reduce_mean(square, -2))  # [..., C]
        row /= tf.reduce_mean(row, -1, keepdims=True)
        update = gradient * tf.math.rsqrt(row)[..., tf.newaxis]  # [..., R, C]
        update *= tf.math.rsqrt(column)[..., tf.newaxis, :]
    else:
        update = gradient * tf.math.rsqrt(moved(slots["square"], square))
    update /= tf.maximum(1.0, _root_mean_square(update) / _CLIPPING_THRESHOLD)
    scale = tf.maximum(_root_mean_square(variable), _SMALLEST_SCALE)
    variable.assign_sub(rate * scale * update)


def _root_mean_square(x) -> tf.Tensor:
    return tf.sqrt(tf.reduce_mean(tf.square(x)))


def _move_average(average, variable, follow) -> None:
    average.assign_sub(follow * (average - variable))
