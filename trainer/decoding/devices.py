"""Where a model decodes: on the devices that hold its weights, which it reads there once."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

HOST = "/device:CPU:0"


def decoding_device(model: Any) -> str | None:
    """Return the device that holds the model's weights, to decode there; None for a TPU.

    Beside a training on virtual CPU devices TensorFlow would take the GPU, if there is one.
    """
    device = model.trainable_variables[0].value.device
    return device if tf.DeviceSpec.from_string(device).device_type in ("CPU", "GPU") else None


def decoding_devices(model: Any) -> list[str]:
    """Return all devices of this process that hold the model's weights; for a TPU, its host."""
    if decoding_device(model) is None:
        return [HOST]
    return [copy.device for copy in _copies(model.trainable_variables[0])]


def weights_on(device: str, variables: Sequence[keras.Variable]) -> list[tf.Tensor]:
    """Return the values of the variables, on a device.

    Of a variable with copies on several devices it reads the one that is there.
    """
    with tf.device(device):
        values = []
        for variable in variables:
            copies = _copies(variable)
            here = [copy for copy in copies if copy.device == device]
            values.append(tf.identity((here or copies)[0]))
        return values


def given_weights(function: Callable, variables: Sequence[keras.Variable]) -> Callable:
    """Return function(weights, *arguments) that computes with these weights.

    A graph that reads a variable is bound to the device of one of its copies; this one runs on any
    device, and reads nothing while it runs.
    """

    def call(weights: Sequence[tf.Tensor], *arguments):
        with keras.StatelessScope(list(zip(variables, weights, strict=True))):
            return function(*arguments)

    return call


def _copies(variable: keras.Variable) -> Sequence[tf.Variable]:
    """Return the variable's copies on the devices of this process: one without a strategy."""
    return getattr(variable.value, "values", (variable.value,))
