"""Every test process has eight virtual CPU devices, so that eight replicas fit on any machine."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # on a machine with GPUs the tests run as on one without
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_XLA_FLAGS"] = ""  # no cache of compiled programs: tests compile what they test

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 8
)


@pytest.fixture(autouse=True)
def _float32_policy():
    """A test may set Keras' dtype policy; the next one starts with float32 again."""
    yield
    keras.config.set_dtype_policy("float32")
