"""Requests that TensorFlow Serving sends to a SavedModel when it loads it.

Without them the first users wait while TensorFlow optimises the graphs. The file holds records of
the protocol message `tensorflow.serving.PredictionLog`. Its package, tensorflow-serving-api, needs
a build of TensorFlow that is not always ours, so these few fields are written here.
"""

import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

_FILE = ("assets.extra", "tf_serving_warmup_requests")
# Numbers of the fields in prediction_log.proto, predict.proto and model.proto.
_PREDICT_LOG, _REQUEST, _MODEL_SPEC, _INPUTS, _SIGNATURE_NAME = 6, 1, 1, 2, 3
_KEY, _VALUE = 1, 2  # of an entry of a map


def _field(number: int, content: bytes) -> bytes:
    """Return a field of bytes, text or a message, as protocol buffers write it."""
    size, length = [], len(content)
    while length > 127:
        size.append(length % 128 + 128)
        length //= 128
    return bytes([number * 8 + 2, *size, length]) + content


def prediction_log(signature: str, inputs: Mapping[str, Any]) -> bytes:
    """Return a serialised `PredictionLog` with one request.

    Args:
        signature: the name of the signature.
        inputs: name -> what `tf.make_tensor_proto` takes.
    """
    request = _field(_MODEL_SPEC, _field(_SIGNATURE_NAME, signature.encode()))
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(_INPUTS, _field(_KEY, name.encode()) + _field(_VALUE, tensor))
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def write(directory: str, requests: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the requests into a SavedModel.

    Args:
        directory: of the SavedModel.
        requests: signature -> the inputs of a request to it.
    """
    path = os.path.join(directory, *_FILE)
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as writer:
        for signature, inputs in requests.items():
            writer.write(prediction_log(signature, inputs))
