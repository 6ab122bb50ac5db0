"""Where the training runs: one device, or all GPUs of this machine."""

import tensorflow as tf

from data_pipeline.records import UsageError

STRATEGIES = ("one_device", "mirrored")


def make_strategy(name: str, num_virtual_devices: int = 0) -> tuple[tf.distribute.Strategy, str]:
    """The distribution strategy of that name, and a line that says what it runs on.

    Args:
        name: one of `STRATEGIES`.
        num_virtual_devices: splits the CPU into so many devices, each a replica of "mirrored";
            0 for none. For tests and demonstrations: it makes nothing faster.

    Raises:
        UsageError: for a strategy that does not exist or that this machine cannot run.
    """
    if name not in STRATEGIES:
        raise UsageError(
            f"--strategy={name} is not known; this version runs {' and '.join(STRATEGIES)}"
        )
    gpus = tf.config.list_logical_devices("GPU") if not num_virtual_devices else []
    if name == "one_device":
        if num_virtual_devices > 1:
            raise UsageError(
                "--num_virtual_devices is for --strategy=mirrored; --strategy=one_device uses one"
            )
        device = gpus[0].name if gpus else "/device:CPU:0"
        return tf.distribute.OneDeviceStrategy(device), f"one device, {device}"
    if num_virtual_devices:
        return _virtual_cpus(num_virtual_devices)
    if gpus:
        return tf.distribute.MirroredStrategy(), f"{len(gpus)} replicas, one a GPU"
    strategy = tf.distribute.MirroredStrategy(["/device:CPU:0"])
    return strategy, "1 replica on the CPU: this machine has no GPU that TensorFlow can use"


def _virtual_cpus(count: int) -> tuple[tf.distribute.Strategy, str]:
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or []) < count:
        split = [tf.config.LogicalDeviceConfiguration()] * count
        try:
            tf.config.set_logical_device_configuration(cpu, split)
        except RuntimeError as error:
            raise UsageError(
                f"the CPU cannot be split any more in this process: {error}"
            ) from error
    devices = [f"/device:CPU:{i}" for i in range(count)]
    return tf.distribute.MirroredStrategy(devices), f"{count} replicas on virtual CPU devices"
