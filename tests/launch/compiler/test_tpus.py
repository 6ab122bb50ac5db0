"""Accelerator types, and the time of an all-reduce, by hand."""

import itertools

import pytest

from common.errors import UsageError
from launch.compiler import tpus


@pytest.mark.parametrize(
    ("name", "topology", "count", "hosts", "full_name"),
    [
        ("v5e-8", "v5e:2x4", 8, 1, "v5e-8"),
        ("v5litepod-4", "v5e:2x2", 4, 1, "v5e-4"),
        ("v5e-16", "v5e:4x4", 16, 4, "v5e-16"),
        ("v6e-1", "v6e:1x1", 1, 1, "v6e-1"),
        ("v6e-256", "v6e:16x16", 256, 64, "v6e-256"),
        ("v4-8", "v4:2x2x1", 4, 1, "v4-8"),
        ("v4-512", "v4:4x8x8", 256, 64, "v4-512"),
        ("v5p-8", "v5p:2x2x1", 4, 1, "v5p-8"),
        ("v5p-16", "v5p:2x2x2", 8, 2, "v5p-16"),
    ],
)
def test_accelerator_types(name, topology, count, hosts, full_name):
    tpu = tpus.parse(name)
    assert (tpu.topology["topology_name"], tpu.chips, tpu.hosts, tpu.name) == (
        topology,
        count,
        hosts,
        full_name,
    )


@pytest.mark.parametrize("name", ["v5e", "v5e-7", "v4-4", "v3-8", "v5p-8-spot", "", "tpu-8"])
def test_unknown_accelerator_types_are_refused(name):
    with pytest.raises(UsageError, match=r"sizes of|the generations are"):
        tpus.parse(name)


def test_the_layouts_of_a_generation_double():
    for chip in tpus.CHIPS.values():
        counts = [one.chips for one in tpus.slices(chip)]
        assert counts[-1] == 256
        assert all(b in (2 * a, 4 * a) for a, b in itertools.pairwise(counts))


@pytest.mark.parametrize(
    ("name", "gigahertz"), [("v4", 1.05), ("v5e", 1.50), ("v5p", 1.75), ("v6e", 1.75)]
)
def test_clocks(name, gigahertz):
    assert tpus.CHIPS[name].clock == pytest.approx(gigahertz * 1e9, rel=0.005)


def test_all_reduce_by_hand():
    """8 GB on v5e: links of 50 GB/s, 2 axes; lines of 2x4, rings of 16x16."""
    lines = tpus.parse("v5e-8").all_reduce_seconds(8e9)
    assert lines == pytest.approx(2 * 8e9 * 7 / 8 / 100e9 + 2 * (1 + 3) * 1e-6, rel=1e-12)
    rings = tpus.parse("v5e-256").all_reduce_seconds(8e9)
    assert rings == pytest.approx(2 * 8e9 * 255 / 256 / 200e9 + 2 * (8 + 8) * 1e-6, rel=1e-12)


def test_all_reduce_leaves_out_axes_of_one_chip():
    """v4-8 is 2x2x1: 2 lines of links of 50 GB/s."""
    assert tpus.parse("v4-8").all_reduce_seconds(4e9) == pytest.approx(
        2 * 4e9 * 3 / 4 / 100e9 + 2 * 2 * 1e-6, rel=1e-12
    )
    assert tpus.parse("v5e-1").all_reduce_seconds(4e9) == 0.0
