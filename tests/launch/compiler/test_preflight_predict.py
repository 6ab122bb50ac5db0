"""The reading of compiled programs and the predictions, on numbers that can be checked by hand."""

import re
from types import SimpleNamespace

import pytest

from launch.compiler import batch, compiler, gpus, hlo, predict, report, tpus

# Scheduled HLO as the TPU compiler writes it, cut down. S(1) is on-chip memory.
HLO = """HloModule step, is_scheduled=true

%fused_computation (param_0: f32[8,128]) -> f32[8,128] {
  %param_0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %add.1 = f32[8,128]{1,0:T(8,128)} add(%param_0, %param_0), CYCLES(999)
}

%body (p: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %p = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %element = f32[8,128]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %fusion.2 = f32[8,128]{1,0:T(8,128)} fusion(%element), NAME(while/Add), CYCLES(100)
}

%condition (p: (s32[], f32[8,128])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  ROOT %less = pred[]{:T(512)} compare(%p.1, %p.1), CYCLES(1)
}

ENTRY %main (a: f32[8,128], b: bf16[16,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0:T(8,128)} parameter(0)
  %b = bf16[16,128]{1,0:T(8,128)(2,1)} parameter(1)
  %copy-start = (bf16[16,128]{1,0:T(8,128)S(1)}, bf16[16,128]{1,0}, u32[]) copy-start(%b)
  %copy-done = bf16[16,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %fusion = (f32[8,128]{1,0}, f32[4]{0:S(1)}) fusion(%a, %copy-done), NAME(MatMul), CYCLES(5000)
  %while.1 = (s32[], f32[8,128]{1,0}) while(%tuple), condition=%condition, body=%body
}
"""
HLO = re.sub(r"NAME\((.*?)\)", r'metadata={op_name="\1"}', HLO)
HLO = re.sub(r"CYCLES\((.*?)\)", r'backend_config={"flags":[],"estimated_cycles":"\1"}', HLO)


def test_operations_of_a_scheduled_program():
    found = hlo.operations(HLO, trips=7)
    product = next(one for one in found if one.name == "MatMul")
    assert (product.cycles, product.times) == (5000, 1)
    assert product.memory_bytes == 2 * 8 * 128 * 4  # reads a, writes the first result
    inner = next(one for one in found if one.name == "while/Add")
    assert (inner.cycles, inner.times, inner.memory_bytes) == (100, 7, 2 * 8 * 128 * 4)
    assert sum(one.cycles * one.times for one in found) == 5000 + 7 * (100 + 1)
    # The transfer of b to on-chip memory reads it from HBM once.
    assert sum(one.memory_bytes for one in found if one.cycles == 0) == 16 * 128 * 2


def test_a_trip_count_in_the_text_comes_first():
    known = HLO.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert {one.times for one in hlo.operations(known, trips=7)} == {1, 3}


def test_a_condition_that_compares_with_a_constant_shows_the_trips():
    """As of the loop over chunks of the loss, for which the TPU's compiler writes no count."""
    compared = HLO.replace(
        "compare(%p.1, %p.1)", "compare(%p.1, %constant.5), direction=LT"
    ).replace("  ROOT %less", "  %constant.5 = s32[]{:T(128)} constant(12)\n  ROOT %less")
    assert {one.times for one in hlo.operations(compared, trips=7)} == {1, 12}
    other = compared.replace("direction=LT", "direction=GE")
    assert {one.times for one in hlo.operations(other, trips=7)} == {1, 7}


# As the GPU's compiler writes it: products in fused computations, one inside of another.
GPU_HLO = """HloModule step, is_scheduled=true

%nested (p.1: bf16[16,64], p.2: bf16[64,32]) -> bf16[16,32] {
  %p.1 = bf16[16,64]{1,0} parameter(0)
  %p.2 = bf16[64,32]{1,0} parameter(1)
  ROOT %dot = bf16[16,32]{1,0} dot(%p.1, %p.2), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%gemm (p.3: bf16[16,64], p.4: bf16[64,32]) -> bf16[16,32] {
  %p.3 = bf16[16,64]{1,0} parameter(0)
  %p.4 = bf16[64,32]{1,0} parameter(1)
  %inner = bf16[16,32]{1,0} fusion(%p.3, %p.4), kind=kCustom, calls=%nested
  ROOT %negate = bf16[16,32]{1,0} negate(%inner), metadata={op_name="a/MatMul"}
}

ENTRY %main (a: bf16[16,64], b: bf16[64,32]) -> f32[1000] {
  %a = bf16[16,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  %fusion = bf16[16,32]{1,0} fusion(%a, %b), kind=kCustom, calls=%gemm
  %all-reduce-start = f32[1000]{0} all-reduce-start(%fusion), to_apply=%sum
  ROOT %all-reduce-done = f32[1000]{0} all-reduce-done(%all-reduce-start)
}
"""


def test_products_and_collectives_of_a_gpu_program():
    product, reduction = hlo.operations(GPU_HLO, trips=1)
    assert (product.name, product.flops) == ("a/MatMul", 2 * 16 * 64 * 32)
    assert product.memory_bytes == 2 * (16 * 64 + 64 * 32 + 16 * 32)
    assert (reduction.flops, reduction.memory_bytes) == (0, 4000)
    assert hlo.collectives(GPU_HLO, trips=1) == {"all-reduce": {"count": 1, "bytes": 4000}}


# The first parameter is read in two slices; the second one whole, though a slice of it is read too.
SLICES_HLO = """HloModule step, is_scheduled=true

%fused (p.1: f32[8,100], p.2: f32[50]) -> f32[1] {
  %p.1 = f32[8,100]{1,0} parameter(0)
  %p.2 = f32[50]{0} parameter(1)
  %flat = f32[800]{0} bitcast(%p.1)
  %slice.1 = f32[1]{0} slice(%flat), slice={[0:1]}
  %slice.2 = f32[10]{0} dynamic-slice(%flat, %p.2), dynamic_slice_sizes={10}
  %slice.3 = f32[5]{0} slice(%p.2), slice={[0:5]}
  ROOT %add = f32[1]{0} add(%slice.1, %slice.2)
}

ENTRY %main (a: f32[8,100], b: f32[50]) -> f32[1] {
  %a = f32[8,100]{1,0} parameter(0)
  %b = f32[50]{0} parameter(1)
  %slice = f32[20]{0} slice(%b), slice={[0:20]}
  ROOT %fusion = f32[1]{0} fusion(%a, %b), kind=kLoop, calls=%fused
}
"""


def test_of_what_is_sliced_only_the_slice_is_read():
    one, fusion = hlo.operations(SLICES_HLO, trips=1)
    assert one.memory_bytes == 2 * 4 * 20
    assert fusion.memory_bytes == 4 * (1 + 1 + 10 + 50)


def a_program(**fields) -> compiler.Compiled:
    return compiler.Compiled(
        arguments=2**30,
        outputs=2**29,
        aliased=2**29,
        temporaries=2**31,
        code=2**20,
        product_flops=197e9,  # 1 ms on v5e
        operations=(
            hlo.Operation("a", cycles=1.5e6, memory_bytes=819e6, times=2),
            hlo.Operation("b", cycles=1.5e6, memory_bytes=0.0, flops=989.4e9),
        ),
        **fields,
    )


def test_speed():
    speed = predict.speed_of(a_program(), tpus.CHIPS["v5e"])
    assert speed.compute == pytest.approx(1e-3)
    assert speed.memory == pytest.approx(2e-3)
    assert speed.roofline == speed.memory
    assert speed.schedule == pytest.approx(3e-3, rel=0.005)
    assert speed.seconds == speed.schedule


def test_speed_on_a_gpu():
    """One operation moves 819 MB twice, at 3.35 TB/s; the other is a millisecond of products."""
    speed = predict.speed_of(a_program(), gpus.GPUS["h100"])
    assert speed.compute == pytest.approx(197 / 989.4 * 1e-3)
    assert speed.memory == pytest.approx(2 * 819e6 / 3.35e12)
    assert speed.schedule == pytest.approx(speed.memory + 1e-3)


def test_scaling_adds_the_all_reduce():
    tpu = tpus.parse("v5e-8")
    speed = predict.Speed(compute=1e-3, memory=2e-3, schedule=6e-3, memory_bytes=0.0)
    rows = predict.scaling(tpu, speed, 10_000_000, 1000, "float32", shard=False)
    assert [one.chips for one in rows] == [8, 16, 32, 64, 128, 256]
    first = rows[0]
    assert first.all_reduce == pytest.approx(2 * 40e6 * 7 / 8 / 100e9 + 8e-6)
    assert first.step == pytest.approx(6e-3 + first.all_reduce)
    assert first.tokens_per_second == pytest.approx(8000 / first.step)
    assert first.efficiency == pytest.approx(6e-3 / first.step)


def test_the_gather_of_slices_is_half_an_all_reduce():
    speed = predict.Speed(compute=1e-3, memory=2e-3, schedule=6e-3, memory_bytes=0.0)
    found = predict.scale(gpus.parse("h100-8"), speed, 10_000_000, 1000, "bfloat16", shard=True)
    assert found.all_reduce == pytest.approx(2 * 20e6 * 7 / 8 / 450e9)
    assert found.gather == pytest.approx(40e6 * 7 / 8 / 450e9)
    assert found.step == pytest.approx(6e-3 + found.all_reduce + found.gather)


def test_facts_of_a_program():
    facts = report.program_facts(a_program(), tpus.parse("v5e-8"), 197e9)
    assert facts["fits"]
    assert facts["memory"]["needed"] == 3 * 2**30 + 2**20
    assert facts["memory"]["available"] == int(15.75 * 2**30)
    assert facts["flops_per_byte"] == pytest.approx(197e9 / (2 * 819e6))
    large = compiler.Compiled(temporaries=16 * 2**30)
    assert not report.program_facts(large, tpus.parse("v5e-8"), None)["fits"]


OUT_OF_MEMORY = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent error.
Ran out of memory in memory space hbm. Used 15.77G of 15.75G hbm. Exceeded hbm capacity by 22.83M.

  Largest program allocations in hbm:

  1. Size: 8.82G
     Operator: op_name="StatefulPartitionedCall/transformer_1/MatMul"
     Shape: f32[4589,64,8000]{2,1,0:T(8,128)}
     ==========================

  2. Size: 144.00M
     Shape: bf16[4589,4,64,64]{0,3,2,1:T(8,128)(2,1)}
     ==========================
"""


def test_an_error_for_memory_is_understood():
    used, available = compiler.memory_error(OUT_OF_MEMORY)
    assert used == pytest.approx(15.77 * 2**30, abs=1)
    assert available == 15.75 * 2**30
    assert compiler.allocations_in(OUT_OF_MEMORY) == [
        (int(8.82 * 2**30), "StatefulPartitionedCall/transformer_1/MatMul"),
        (144 * 2**20, ""),
    ]
    other = "the total memory required for HLO temporaries (22.19G) exceeds available HBM (15.75G)."
    assert compiler.memory_error(other) == (int(22.19 * 2**30), int(15.75 * 2**30))
    assert compiler.memory_error("INTERNAL: used 3 of 4") is None


def test_operations_of_another_error():
    message = 'RET_CHECK failure %XlaAllReduce.7 = f32[] all-reduce(), metadata={op_name="a/Sum"}'
    assert compiler.operations_in(message) == ["a/Sum", "XlaAllReduce"]


@pytest.mark.parametrize(("bend", "scratch"), [(0.0, 0), (0.3, 0), (0.0, 300)])
@pytest.mark.parametrize("multiple", [1, 4])
def test_the_largest_batch_is_found(bend, scratch, multiple):
    """Memory of 100 + 7 a row, and more than a straight line where it bends; 1,000 are there. Where
    any number of rows takes scratch memory too, the first try tells too much a row."""
    tried = []

    def compile_rows(rows):
        tried.append(rows)
        assert rows % multiple == 0
        need = int(100 + scratch + 7 * rows * (1 + bend * rows / 100))
        if need > 1000:
            return compiler.Compiled(error="too much", needs=need)
        return compiler.Compiled(arguments=100, temporaries=need - 100)

    found = batch.find_largest(compile_rows, rows=8, available=1000, multiple=multiple)
    left = 900 - scratch
    most = max(r for r in range(multiple, 200, multiple) if 7 * r * (1 + bend * r / 100) <= left)
    assert found.fits <= most < found.too_many
    assert found.fits >= most - max(multiple, most / 16) - 1
    assert len(tried) == len(set(tried)) <= 6
    assert found.tried.keys() == set(tried)


def test_no_batch_fits():
    found = batch.find_largest(
        lambda rows: compiler.Compiled(error="too much", needs=2000), 8, 1000, multiple=1
    )
    assert (found.fits, found.too_many) == (0, 1)


def test_another_error_ends_the_search():
    with pytest.raises(batch.SearchError, match=r"8 rows per chip .* no such operation"):
        batch.find_largest(lambda rows: compiler.Compiled(error="no such operation"), 8, 1000, 1)


def test_slowest_lines_are_summed():
    program = SimpleNamespace(
        operations=[
            hlo.Operation(n, cycles=c, memory_bytes=0)
            for n, c in zip("aab", (1, 2, 7), strict=True)
        ]
    )
    assert report.slowest(program, tpus.CHIPS["v5e"], {"a": "x.py:1", "b": ""}.get) == [
        {"line": "(moves and conversions of the compiler)", "share": 0.7},
        {"line": "x.py:1", "share": 0.3},
    ]
