"""The compilers for TPUs and GPUs: opt-in, as they take minutes and the extras for preflight."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import schema, transformer_tiny
from launch.compiler import compiler, gpus, predict, programs, report, run, tpus
from trainer.tasks.lookup import make_task_without_data
from trainer.tasks.translation import Translation

pytestmark = [pytest.mark.preflight, pytest.mark.timeout(3600)]

VOCAB, LENGTH = 512, 64
MODEL = {"width": 128, "feed_forward": 256, "heads": 2, "encoder_layers": 1, "decoder_layers": 1}
_FLAGS = ("--tpu=v6e-4", "--vocab_size=512", "--json")
_ROOT = Path(__file__).parents[3]


def make(target, task_class=Translation, **train):
    config = schema.from_dict(
        {"model": MODEL, "data": {"row_length": LENGTH}, "train": train, "decode": {}}
    )
    task = task_class(config, VOCAB, VOCAB, joint=True)
    tpu = isinstance(target, tpus.Slice)
    return programs.Programs(config, task, target.chips, "mixed_bfloat16", tpu=tpu)


def test_memory_flops_and_a_batch_that_is_too_large():
    """Sizes, against what is known of the program; 2 and 4 micro-batches do what 1 does."""
    tpu = tpus.parse("v5e-4")
    made = make(tpu)
    small = compiler.compile_program(made.train(8, LENGTH).stablehlo(), tpu)
    assert not small.error
    # float32 weights and two slots of Adam, four features; all but the latter are updated in place.
    state = 3 * 4 * made.parameters
    assert small.arguments == pytest.approx(state + 4 * 4 * 8 * LENGTH, rel=0.05)
    assert small.aliased == pytest.approx(state, rel=0.05)
    analytic = made.task.program_flops(8, LENGTH, training=True)
    assert small.product_flops == pytest.approx(analytic, rel=0.05)
    assert predict.speed_of(small, tpu.chip).schedule > 0

    large = compiler.compile_program(made.train(60_000, LENGTH).stablehlo(), tpu)
    assert large.available == tpu.chip.memory
    assert large.needs > large.available
    assert not large.operations

    made = make(tpu, micro_batches=4)
    program = made.train(8, LENGTH)
    parts = compiler.compile_program(program.stablehlo(), tpu, trips=program.trips)
    assert parts.product_flops == pytest.approx(analytic, rel=0.05)
    assert {one.times for one in parts.operations} == {1, 4}


def test_memory_flops_and_collectives_on_gpus():
    """The same sizes as for a TPU, FLOPs of the formula in StableHLO and in what was compiled."""
    target = gpus.parse("h100-8")
    made = make(target, micro_batches=2)
    program = made.train(8, LENGTH)
    found = compiler.compile_program(program.stablehlo(), target, trips=program.trips)
    assert not found.error
    state = 3 * 4 * made.parameters
    assert found.arguments == pytest.approx(state + 4 * 4 * 8 * LENGTH, rel=0.05)
    assert found.aliased == pytest.approx(state, rel=0.05)
    analytic = made.task.program_flops(8, LENGTH, training=True)
    assert found.product_flops == pytest.approx(analytic, rel=0.05)
    compiled = sum(one.flops * one.times for one in found.operations)
    assert compiled == pytest.approx(analytic, rel=0.1)
    assert found.collectives["all-reduce"]["bytes"] == pytest.approx(4 * made.parameters, rel=0.01)
    assert predict.speed_of(found, target.chip).schedule > 0


def test_optimizer_state_in_slices_on_gpus():
    """An eighth of Adam's two slots and of a third array, for the slice of the weights."""
    target = gpus.parse("h100-8")
    made = make(target, shard_optimizer=True)
    found = compiler.compile_program(made.train(8, LENGTH).stablehlo(), target)
    assert not found.error
    state = 4 * made.parameters
    assert found.arguments == pytest.approx(state * (1 + 3 / 8) + 4 * 4 * 8 * LENGTH, rel=0.02)
    assert found.collectives["all-reduce"]["bytes"] == pytest.approx(state, rel=0.01)
    assert found.collectives["all-gather"]["bytes"] == pytest.approx(state, rel=0.01)


@pytest.mark.parametrize("name", ["a100-8", "h200-1", "l4-4"])
def test_every_gpu_compiles_and_a_batch_that_is_too_large_does_not_fit(name):
    target = gpus.parse(name)
    made = make(target)
    for rows, fits in ((8, True), (2_000_000, False)):
        program = made.evaluate(rows, LENGTH)
        found = compiler.compile_program(program.stablehlo(), target, replicas=1)
        assert not found.error
        assert report.program_facts(found, target, None)["fits"] == fits


@pytest.mark.parametrize("name", ["language_model", "classification"])
def test_the_other_tasks(name):
    """Every program fits v5e, with the FLOPs of the formula."""
    config = schema.from_dict(
        {"task": name, "model": MODEL, "data": {"row_length": LENGTH}}
        | {"train": {"batch_tokens": 8 * 8 * LENGTH}, "decode": {"batch_tokens": 8 * LENGTH}}
    )
    task = make_task_without_data(config, VOCAB)
    facts = run.Preflight(config, task, tpus.parse("v5e-8"), "mixed_bfloat16").run()
    assert facts["fits"] and not facts["problems"]
    for program in ("train", "evaluate"):
        found = facts["programs"][program]["flops"]
        assert found["products"] == pytest.approx(found["analytic"], rel=0.05)


def test_memory_is_what_the_compiler_refuses_by():
    """What a program needs, of one that just fits, predicts what the compiler says of a larger one.

    Nearly all of an evaluation step's memory is logits, which grow in a straight line.
    """
    config = transformer_tiny.get_config()
    config.data.row_length = LENGTH
    config.model.encoder_layers = config.model.decoder_layers = 1
    tpu = tpus.parse("v5e-4")
    task = Translation(config, 8000, 8000, joint=True)
    made = programs.Programs(config, task, tpu.chips, "mixed_bfloat16", tpu=True)

    def compiled(rows):
        return compiler.compile_program(made.evaluate(rows, LENGTH).stablehlo(), tpu, replicas=1)

    fits, refused = compiled(7950), compiled(8500)
    available = tpu.chip.memory
    assert not fits.error
    assert 0.95 * available < fits.memory < available
    assert refused.available == available
    assert refused.needs == pytest.approx(fits.memory * 8500 / 7950, rel=0.05)


@pytest.mark.parametrize("name", ["v4-8", "v5e-8", "v5p-8", "v6e-8"])
def test_every_generation_has_the_memory_of_the_table(name):
    tpu = tpus.parse(name)
    made = make(tpu)
    program = made.evaluate(4_000_000, LENGTH)
    large = compiler.compile_program(program.stablehlo(), tpu, replicas=1)
    assert large.available == pytest.approx(tpu.chip.memory, abs=2**20)


def test_the_command(tmp_path):
    (tmp_path / "small.py").write_text(
        f"from configs.schema import from_dict\ndef get_config():\n"
        f"    return from_dict({{'model': {MODEL}, 'data': {{'row_length': 64}}}})\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "launch.preflight", f"--config={tmp_path}/small.py", *_FLAGS],
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert set(facts["programs"]) == {"train", "evaluate", "decode"}
    for name in ("train", "evaluate"):
        found = facts["programs"][name]["flops"]
        assert found["products"] == pytest.approx(found["analytic"], rel=0.05)
    prediction = facts["prediction"]
    # At the roofline 1 is what a program has that only computes.
    assert 0 < prediction["mfu"] < prediction["roofline_mfu"] <= 1 + 1e-9
    assert not facts["problems"]
