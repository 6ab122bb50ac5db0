"""Peaks of the hardware against data sheets, and measured ones."""

import resource

import pytest
import tensorflow as tf

from trainer.metrics import flops


@pytest.mark.parametrize(
    ("name", "float32", "bfloat16", "float16"),
    [
        ("Tesla V100-SXM2-16GB", 15.7, None, 125),
        ("Tesla T4", 8.1, None, 65),
        ("NVIDIA A10", 62.5, 125, 125),
        ("NVIDIA A100-SXM4-80GB", 156, 312, 312),
        ("A100-SXM4-40GB", 156, 312, 312),
        ("NVIDIA L40S", 183, 362, 362),
        ("NVIDIA GeForce RTX 4090", 82.6, 165.2, 165.2),
        ("NVIDIA H100 80GB HBM3", 494.7, 989.4, 989.4),
        ("NVIDIA H100 PCIe", 378, 756, 756),
        ("NVIDIA H200", 494.7, 989.4, 989.4),
        ("NVIDIA B200", 1100, 2250, 2250),
        ("v2-8", 22.5, 22.5, None),
        ("v3-32", 61.5, 61.5, None),
        ("v4-8", 275, 275, None),
        ("v5litepod-8", 197, 197, None),
        ("v5p-8", 459, 459, None),
        ("v6e-8", 918, 918, None),
    ],
)
def test_peak_of_known_devices(name, float32, bfloat16, float16):
    precisions = {"float32": float32, "mixed_bfloat16": bfloat16, "float16": float16}
    for precision, teraflops in precisions.items():
        one = flops.peak_flops([name], precision)
        assert one == (None if teraflops is None else pytest.approx(teraflops * 1e12))
        eight = flops.peak_flops([name] * 8, precision)
        assert eight == (None if teraflops is None else pytest.approx(8 * teraflops * 1e12))


@pytest.mark.parametrize(
    "name",
    [
        "",
        "unknown",
        "NVIDIA A10G",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA L40",
        "NVIDIA H20",
        "v7-8",
        "v5litepod",
    ],
)
def test_no_peak_is_guessed(name):
    assert flops.peak_flops([name], "float32") is None
    assert flops.peak_flops(["NVIDIA H200", name], "float32") is None


def test_no_peak_without_devices_or_for_other_precisions():
    assert flops.peak_flops([], "float32") is None
    assert flops.peak_flops(["NVIDIA H200"], "float64") is None
    assert flops.peak_flops(["v4-8"], "float64") is None


def test_every_peak_in_the_table_is_plausible():
    """Half precision is about twice TF32, and no name stands for two devices."""
    names = [name for names in flops._GPU_PEAKS for name in names]
    assert len(names) == len(set(names))
    for float32, bfloat16, float16 in flops._GPU_PEAKS.values():
        if bfloat16 is None:
            assert float16 / float32 == pytest.approx(8, rel=0.01)  # T4, V100: no TF32
        else:
            assert bfloat16 == float16 == pytest.approx(2 * float32, rel=0.03)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "float16"])
def test_measured_peak_is_measured_once(precision):
    flops.measured_peak.cache_clear()
    peak = flops.measured_peak(precision, seconds=0.02, size=64)
    assert 0 < peak < 1e15  # FLOP/s
    assert flops.measured_peak(precision, seconds=0.02, size=64) == peak
    assert flops.measured_peak.cache_info().misses == 1


def sizes_measured(monkeypatch, flops_per_second: float) -> tuple[list[int], float]:
    """Sizes of the products on a machine of that speed under a made-up clock, and the rate."""
    sizes, now = [], [0.0]

    def seconds_of(_, matrix):
        sizes.append(matrix.shape[0])
        duration = 2 * matrix.shape[0] ** 3 / flops_per_second
        now[0] += duration
        return duration

    with monkeypatch.context() as patch:
        patch.setattr(flops, "_seconds_of", seconds_of)
        patch.setattr(flops.time, "perf_counter", lambda: now[0])
        rate = flops._product_rate(None, "float32", seconds=0.5, largest=2048)
    return sizes, rate


def test_measurement_grows_with_the_speed_of_the_machine(monkeypatch):
    """At 200 GFLOP/s 2048 rows take 86 ms; at 1 GFLOP/s 512 would take 0.27 s."""
    sizes, rate = sizes_measured(monkeypatch, 2e11)
    assert sorted(set(sizes)) == [256, 512, 1024, 2048]
    assert sizes == sorted(sizes)
    assert rate == pytest.approx(2e11)
    sizes, rate = sizes_measured(monkeypatch, 1e9)
    assert set(sizes) == {256}
    assert rate == pytest.approx(1e9)


def test_measured_peak_without_xla(monkeypatch):
    """A TensorFlow that cannot compile for the CPU still has its own kernels."""

    def rate(jit_compile, *_):
        if jit_compile:
            raise tf.errors.UnimplementedError(None, None, "no XLA")
        return 5.0

    flops.measured_peak.cache_clear()
    monkeypatch.setattr(flops, "_product_rate", rate)
    assert flops.measured_peak("float32", seconds=0.0) == 5.0
    flops.measured_peak.cache_clear()


def test_peak_memory_is_the_resident_set(monkeypatch):
    monkeypatch.setattr(flops.sys, "platform", "linux")
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 1024 * usage <= flops.peak_memory_bytes() < 2**40
    assert flops.peak_memory_bytes() > 100 * 2**20  # TensorFlow alone is more
    monkeypatch.setattr(flops.sys, "platform", "darwin")
    assert flops.peak_memory_bytes() < 1024 * usage


def test_peak_memory_is_that_of_the_fullest_gpu(monkeypatch):
    peaks = {"GPU:0": {"current": 1, "peak": 5}, "GPU:1": {"current": 2, "peak": 9}}
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda _: ["one", "two"])
    monkeypatch.setattr(tf.config.experimental, "get_memory_info", peaks.__getitem__)
    assert flops.peak_memory_bytes() == 9
