"""Peak FLOP/s and peak memory of the hardware.

The peak is what model FLOPs utilisation (MFU; Chowdhery et al. 2022, PaLM, appendix B) compares
with: the FLOP/s that the model's mathematics needs at the measured speed, over the peak. The FLOPs
of the models are in `trainer.tasks.flops`.
"""

import functools
import re
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow as tf

# Dense peaks in TFLOP/s (float32, bfloat16, float16), from NVIDIA's data sheets and architecture
# white papers. Where those give numbers for structured sparsity only, half of them. From Ampere
# on float32 is TF32, which TensorFlow uses for products of float32 unless told otherwise. The
# GeForce cards' half precisions are those that accumulate in float32, as TensorFlow does. None:
# the tensor cores do not have that type. Names are compared whole: "A100-SXM4-40GB MIG 1g.5gb" and
# "RTX 4090 Laptop GPU" are slower than what they are called after.
_GPU_PEAKS: dict[tuple[str, ...], tuple[float, float | None, float]] = {
    ("V100-SXM2-16GB", "V100-SXM2-32GB"): (15.7, None, 125.0),
    ("V100-PCIE-16GB", "V100-PCIE-32GB"): (14.0, None, 112.0),
    ("T4",): (8.1, None, 65.0),
    ("A10",): (62.5, 125.0, 125.0),
    (
        "A100-SXM4-40GB",
        "A100-SXM4-80GB",
        "A100-PCIE-40GB",
        "A100-PCIE-80GB",
        "A100 80GB PCIe",
    ): (156.0, 312.0, 312.0),
    ("L4",): (60.0, 121.0, 121.0),
    ("L40S",): (183.0, 362.0, 362.0),
    ("RTX 3090",): (35.6, 71.0, 71.0),
    ("RTX 4090",): (82.6, 165.2, 165.2),
    ("H100 80GB HBM3", "H200"): (494.7, 989.4, 989.4),  # SXM
    ("H100 NVL", "H200 NVL"): (417.5, 835.5, 835.5),
    ("H100 PCIe",): (378.0, 756.0, 756.0),
    ("B200",): (1100.0, 2250.0, 2250.0),
}
_GPU_PRECISIONS = ("float32", "bfloat16", "float16")

# bfloat16 peaks in TFLOP/s of what TensorFlow calls one TPU device, from the Cloud TPU
# documentation. A chip of v2 (45) and v3 (123) is two devices, one a core; from v4 on it is one.
_TPU_PEAKS = {
    "v2": 22.5,
    "v3": 61.5,
    "v4": 275.0,
    "v5litepod": 197.0,
    "v5e": 197.0,
    "v5p": 459.0,
    "v6e": 918.0,
}


@dataclass(frozen=True)
class Hardware:
    """The devices of a training, as far as their peak goes.

    Args:
        replicas: on all workers.
        precision: a Keras policy.
        tpu_type: accelerator type of the TPU, such as "v5litepod-8"; None without one.
    """

    replicas: int
    precision: str
    tpu_type: str | None = None

    def peak(self) -> float | None:
        """Return the FLOP/s of all replicas together, if known; on a CPU measured, in a second.

        Workers are assumed to have the same devices. On CPUs a worker is a replica, and virtual
        devices share one: `measured_peak` counts once for each worker.
        """
        if self.tpu_type:
            return peak_flops([self.tpu_type] * self.replicas, self.precision)
        gpus = gpu_names()
        if gpus:
            return peak_flops([gpus[0]] * self.replicas, self.precision)
        virtual = len(tf.config.list_logical_devices("CPU"))
        return measured_peak(self.precision) * max(1, self.replicas // virtual)


def gpu_names() -> list[str]:
    """Return the names of this process's GPUs, such as "NVIDIA H200", by number."""
    gpus = tf.config.get_visible_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return [detail.get("device_name", "unknown") for detail in details]


def peak_flops(devices: Sequence[str], precision: str) -> float | None:
    """Return the peak FLOP/s of several devices together, as their makers state it.

    Args:
        devices: for each device its name: of `gpu_names`, or a TPU's accelerator type, such as
            "v5litepod-8", as often as TensorFlow sees devices of it.
        precision: dtype of the matrix products, "float32", "bfloat16" or "float16", or a Keras
            policy, such as "mixed_bfloat16". float32 stands for TF32 on NVIDIA GPUs that have it,
            and for the bfloat16 peak on TPUs, which multiply float32 in bfloat16 passes.

    Returns:
        None if there is no device, or one whose peak is not known for that precision.
    """
    dtype = precision.removeprefix("mixed_")
    peaks = [_tpu_peak(device, dtype) or _gpu_peak(device, dtype) for device in devices]
    known = [peak * 1e12 for peak in peaks if peak is not None]
    return sum(known) if known and len(known) == len(peaks) else None


def _tpu_peak(accelerator_type: str, dtype: str) -> float | None:
    version = re.fullmatch(r"(v\w+)-\d+", accelerator_type)
    if version is None or dtype not in ("float32", "bfloat16"):
        return None
    return _TPU_PEAKS.get(version[1])


def _gpu_peak(name: str, dtype: str) -> float | None:
    for maker in ("NVIDIA ", "Tesla ", "GeForce "):
        name = name.removeprefix(maker)
    if dtype not in _GPU_PRECISIONS:
        return None
    for names, peaks in _GPU_PEAKS.items():
        if name in names:
            return peaks[_GPU_PRECISIONS.index(dtype)]
    return None


@functools.cache
def measured_peak(precision: str, seconds: float = 1.0, size: int = 2048) -> float:
    """Return the FLOP/s that this CPU reaches in a large matrix product in TensorFlow.

    CPU makers state no comparable peak, so this measurement stands in for it. All cores take part,
    so it is the peak of the machine, however many virtual devices it is split into. The first call
    measures and later ones return its result; make it before training keeps the cores busy.

    Args:
        precision: a dtype or a Keras policy, see `peak_flops`.
        seconds: about how long it may take. The quicker of XLA and TensorFlow's own kernels
            counts; each gets half the time.
        size: rows and columns of the largest matrices; smaller ones come first, and the largest
            are left out where they would take too long.
    """
    dtype = precision.removeprefix("mixed_")
    with tf.device("/device:CPU:0"):
        rate = _product_rate(None, dtype, seconds / 2, size)
        try:
            return max(rate, _product_rate(True, dtype, seconds / 2, size))
        except tf.errors.OpError:  # a build without XLA for CPUs, as the one for TPUs
            return rate


def _product_rate(jit_compile: bool | None, dtype: str, seconds: float, largest: int) -> float:
    """Return the FLOP/s of the best product of square matrices of 256, 512, ... rows."""
    product = tf.function(
        lambda left, right: tf.linalg.matmul(left, right), jit_compile=jit_compile, autograph=False
    )
    deadline = time.perf_counter() + seconds
    size, best = min(256, largest), 0.0
    while True:
        matrix = tf.cast(tf.random.stateless_normal([size, size], seed=[0, 0]), dtype)
        _seconds_of(product, matrix)  # tracing, compilation, warm-up
        quickest = min(_seconds_of(product, matrix) for _ in range(3))
        # Twice the size is 8 times the work, to be done at least four times.
        room = deadline - time.perf_counter() > 8 * 4 * quickest
        if size == largest or not room:
            break
        best = max(best, 2.0 * size**3 / quickest)
        size = min(2 * size, largest)
    while time.perf_counter() + quickest < deadline:
        quickest = min(quickest, _seconds_of(product, matrix))
    return max(best, 2.0 * size**3 / quickest)


def _seconds_of(product: Callable[..., tf.Tensor], matrix: tf.Tensor) -> float:
    start = time.perf_counter()
    product(matrix, matrix)[0, 0].numpy()  # waits for the result, and copies one number of it
    return time.perf_counter() - start


def peak_memory_bytes() -> int:
    """Return the most memory that this process has held so far, in bytes.

    With GPUs: what TensorFlow had in use on the fullest of this process' GPUs, since that one runs
    out first; memory that it has reserved and not used is not in it. Without GPUs, with a TPU
    also: the resident set of the process on the host.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        infos = [
            tf.config.experimental.get_memory_info(f"GPU:{number}") for number in range(len(gpus))
        ]
        return max(info["peak"] for info in infos)
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
