"""The weights for other programs: safetensors, with names that say what they are.

A name is the path of the attributes in `trainer.model`, such as
"encoder_0.attention.query.kernel". A weight that has several places, such as an embedding
that is tied to another one, is written once, under the first.
"""

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np


def named_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Return name -> variable of all trainable weights."""
    names: dict[int, str] = {}
    _name(model, "", names)
    return {names[id(variable)]: variable for variable in model.trainable_variables}


def _name(value: Any, path: str, names: dict[int, str]) -> None:
    """Name the weights of a layer, or of a list of layers: first those of its parts."""
    if isinstance(value, list | tuple):
        for number, part in enumerate(value):
            _name(part, f"{path}{number}.", names)
    elif isinstance(value, keras.Layer):
        for key, part in vars(value).items():
            if not key.startswith("_"):
                _name(part, f"{path}{key}.", names)
        for variable in value.trainable_variables:  # those left are its own
            names.setdefault(id(variable), path + variable.name)


def save(model: keras.Model, directory: str, facts: Mapping[str, str]) -> list[tuple[str, tuple]]:
    """Write model.safetensors, in float32; return the names and shapes of what is in it.

    Args:
        model: trained.
        directory: that exists; local.
        facts: goes into the file's metadata.
    """
    from safetensors.numpy import save_file

    weights = {
        name: np.ascontiguousarray(np.asarray(variable, np.float32))
        for name, variable in named_variables(model).items()
    }
    save_file(weights, os.path.join(directory, "model.safetensors"), dict(facts))
    return [(name, value.shape) for name, value in weights.items()]
