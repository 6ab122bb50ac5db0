"""GPUs by name, and the time of an all-reduce, by hand."""

import pytest

from common.errors import UsageError
from launch.compiler import gpus


def test_names_and_machines():
    assert gpus.parse("h100-8").hosts == 1
    many = gpus.parse("a100-32")
    assert (many.name, many.hosts, many.topology["topology"]) == ("a100-32", 4, "1x4x8")
    assert [one.chips for one in many.sizes()] == [1, 2, 4, 8, 16, 32, 64, 128, 256]


@pytest.mark.parametrize("name", ["h100", "h100-3", "h100-512", "b100-8", "", "-8"])
def test_unknown_gpus_are_refused(name):
    with pytest.raises(UsageError, match="give one of a100, h100, h200, l4 with a number of GPUs"):
        gpus.parse(name)


def test_figures():
    """Every GPU has a peak; descriptions hold plain numbers."""
    peaks = {name: gpu.peak_flops / 1e12 for name, gpu in gpus.GPUS.items()}
    assert peaks == {"a100": 312.0, "h100": 989.4, "h200": 989.4, "l4": 121.0}
    assert gpus.GPUS["h100"].memory == (81_559 - 2048) * 2**20
    description = gpus.GPUS["l4"].description
    assert "shared_memory_per_core: 102400\n" in description
    assert "shared_memory_per_block_optin: 101376\n" in description
    assert "cuda_compute_capability { major: 8 minor: 9 }" in description


def test_all_reduce_by_hand():
    """8 GB over the NVLinks of 8 H100s; over 4 machines, an eighth of it on each network card."""
    assert gpus.parse("h100-1").all_reduce_seconds(8e9) == 0.0
    one = gpus.parse("h100-8").all_reduce_seconds(8e9)
    assert one == pytest.approx(2 * 8e9 * 7 / 8 / 450e9, rel=1e-12)
    four = gpus.parse("h100-32").all_reduce_seconds(8e9)
    assert four == pytest.approx(one + 2 * 1e9 * 3 / 4 / 50e9, rel=1e-12)
