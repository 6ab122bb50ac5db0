"""Every test process has four virtual CPU devices, so that two replicas fit on any machine."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # on a machine with GPUs the tests run as on one without
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


@pytest.fixture(autouse=True)
def _float32_policy():
    """A test may set Keras' dtype policy; the next one starts with float32 again."""
    yield
    keras.config.set_dtype_policy("float32")
