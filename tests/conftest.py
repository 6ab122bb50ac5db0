"""Every test process has eight virtual CPU devices, so that eight replicas fit on any machine."""

import itertools
import os
import signal

os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # on a machine with GPUs the tests run as on one without
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_XLA_FLAGS"] = ""  # no cache of compiled programs: tests compile what they test

import keras
import pytest
import tensorflow as tf

# Under nohup SIGHUP is ignored, and the processes that tests start would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 8
)


_strategies = itertools.count(1)
_init_strategy = tf.distribute.MirroredStrategy.__init__


def _init_with_groups_of_its_own(self, *args, **kwargs):
    """TensorFlow names the groups of devices that reduce together by numbers from 1 in every
    strategy; in one process, groups of different sizes need different numbers."""
    tf.distribute.MirroredStrategy._collective_key_base = 1000 * next(_strategies)
    _init_strategy(self, *args, **kwargs)


tf.distribute.MirroredStrategy.__init__ = _init_with_groups_of_its_own


@pytest.fixture(autouse=True)
def _float32_policy():
    """A test may set Keras' dtype policy; the next one starts with float32 again."""
    yield
    keras.config.set_dtype_policy("float32")
