"""Verdicts, reports and exit codes, with another compiler in the place of the TPU's."""

import copy
import functools
import json
import sys
from types import SimpleNamespace

import pytest

from common.errors import UsageError
from configs import schema
from launch.compiler import compiler, hlo, report, run, tpus
from tests.commands import run_command
from trainer.tasks.translation import Translation

CONFIG = {
    "model": {"width": 16, "feed_forward": 24, "heads": 2, "encoder_layers": 1}
    | {"decoder_layers": 1},
    "data": {"row_length": 8},
    "train": {"batch_tokens": 64},
    "decode": {"beam_size": 2, "batch_tokens": 16},
}
_CONFIG_FILE = f"""
from configs.schema import from_dict

def get_config():
    return from_dict({CONFIG})
"""


@pytest.fixture(scope="module")
def shared():
    """A preflight on v5e-4, with 2 rows of 8 tokens per chip; it traces each program once."""
    config = schema.from_dict(CONFIG)
    task = Translation(config, 32, 32, joint=True)
    made = run.Preflight(config, task, tpus.parse("v5e-4"), "mixed_bfloat16")
    for name in run.PROGRAMS:
        setattr(made.programs, name, functools.cache(getattr(made.programs, name)))
    return made


@pytest.fixture
def make(shared, monkeypatch):
    """Makes that preflight. Each program needs `hbm` bytes, and has one operation of a million
    cycles."""

    def make(hbm=2**20):
        def compile_program(artifact, target, *, trips=1, replicas=None):
            if hbm > target.chip.memory:
                return compiler.Compiled(error="RESOURCE_EXHAUSTED", needs=hbm)
            operation = hlo.Operation("ResourceApplyAdam", 1e6, 1e6)
            return compiler.Compiled(temporaries=hbm, product_flops=1e9, operations=(operation,))

        monkeypatch.setattr(compiler, "compile_program", compile_program)
        made = copy.copy(shared)
        made.problems = []
        return made

    return make


def as_text(facts) -> str:
    rest = {"config": "small", "precision": "mixed_bfloat16", "notes": [], "preflight_seconds": 1.0}
    return report.text(rest | facts)


def test_a_run_that_fits(make):
    facts = make().run()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["fits"]
    assert (facts["target"], facts["chips"], facts["rows_per_chip"]) == ("v5e-4", 4, 2)
    assert facts["batch_tokens"] == 64
    assert set(facts["programs"]) == set(run.PROGRAMS)
    found = facts["prediction"]
    step = 1e6 / tpus.CHIPS["v5e"].clock + found["all_reduce_seconds"]
    assert found["step_seconds"] == pytest.approx(step)
    assert found["tokens_per_second"] == pytest.approx(64 / step)
    assert found["input_tokens_per_second_per_host"] == pytest.approx(64 / step)
    assert found["gather_seconds"] == 0.0
    assert "trainer/optim/adam.py" in found["slowest"][0]["line"]
    assert found["slowest"][0]["share"] == 1.0
    text = as_text(facts)
    assert "train     fits: 0.00 of 15.75 GiB a chip" in text
    assert "\n      256 " in text  # the last line of the scaling table
    assert "fits; this took 1 s" in text


def test_a_run_that_does_not_fit(make):
    facts = make(hbm=20 * 2**30).run(["train"])
    assert not facts["fits"]
    assert not facts["prediction"]
    assert "train     DOES NOT FIT: needs 20.00 of 15.75 GiB" in as_text(facts)


def test_the_largest_batch(make, monkeypatch):
    made = make()
    stub = SimpleNamespace(stablehlo=lambda: b"program", trips=1)
    rows = []
    monkeypatch.setattr(made.programs, "train", lambda *shape: rows.append(shape) or stub)

    def compile_program(artifact, target, *, trips):
        need = rows[-1][0] * 2**30
        error = "RESOURCE_EXHAUSTED" if need > 15.75 * 2**30 else ""
        return compiler.Compiled(error=error, needs=need if error else 0, temporaries=need)

    monkeypatch.setattr(compiler, "compile_program", compile_program)
    found = made.largest_batch()
    assert (found["fits"], found["too_many"]) == (15, 16)
    assert found["batch_tokens"] == 15 * 8 * 4
    assert {length for _, length in rows} == {8}


def test_what_a_tpu_forbids_is_not_compiled(make, monkeypatch):
    made = make()
    monkeypatch.setattr("launch.compiler.programs._HOST_CALLS", ("XlaRngBitGenerator",))
    facts = made.run(["train", "evaluate"])
    assert not facts["fits"]
    assert "call to the host" in facts["programs"]["train"]["error"]
    line = "in _device_bytes: _, random_bytes = gen_xla_ops.xla_rng_bit_generator("
    assert any(line in one and "trainer/model/dropout.py" in one for one in facts["problems"])
    assert facts["programs"]["evaluate"]["fits"]  # it has no dropout
    assert "DOES NOT COMPILE" in as_text(facts)


def test_a_batch_that_the_chips_cannot_share_is_refused():
    config = schema.from_dict(CONFIG)
    task = Translation(config, 32, 32, joint=True)
    with pytest.raises(UsageError, match=r"8 rows of 8 tokens, which 16 replica\(s\) cannot"):
        run.Preflight(config, task, tpus.parse("v5e-16"), "float32")


def test_optimizer_state_in_slices_is_refused_for_tpus():
    config = schema.from_dict({**CONFIG, "train": {"batch_tokens": 64, "shard_optimizer": True}})
    task = Translation(config, 32, 32, joint=True)
    with pytest.raises(UsageError, match=r"shard_optimizer is for .*, not for TPUs; leave it out"):
        run.Preflight(config, task, tpus.parse("v5e-4"), "float32")


def test_cost_by_hand():
    facts = {"batch_tokens": 1000, "chips": 16, "prediction": {"step_seconds": 0.5}}
    run.add_cost(facts, steps=7200, usd=1.2)
    assert facts["prediction"]["hours"] == pytest.approx(1.0)
    assert facts["prediction"]["usd"] == pytest.approx(16 * 1.2)
    assert facts["prediction"]["usd_per_billion_tokens"] == pytest.approx(16 * 1.2 / 7.2e6 * 1e9)


def test_input_by_hand(make):
    """16 chips on 4 hosts, 10 rows of 100 tokens a chip: of each, every feature is an int32."""
    made = make()
    made.target, made.rows, made.length = tpus.parse("v5e-16"), 10, 100
    compiled = compiler.Compiled(operations=(hlo.Operation("a", cycles=1e6, memory_bytes=1e6),))
    for features in (4, 2):
        made.task = SimpleNamespace(FEATURES="abcd"[:features])
        found = made._predict(SimpleNamespace(line=lambda name: ""), compiled, 1.0)
        of_a_step = features * 4 * 10 * 100 * 16 / 4
        in_a_second = of_a_step / found["step_seconds"]
        assert found["input_bytes_per_second_per_host"] == pytest.approx(in_a_second)


def test_a_missing_compiler_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    wanted = "install the extra preflight: pip install -c requirements/preflight.txt -e '.[cpu"
    if sys.version_info < (3, 11):
        wanted = "needs Python 3.11"
    with pytest.raises(UsageError) as error:
        compiler.check_installed(tpus.parse("v5e-4"))
    assert wanted in str(error.value)


def test_a_compiler_that_dies_is_told(monkeypatch):
    monkeypatch.setattr(compiler.sys, "executable", "false")
    found = compiler.compile_program(b"", tpus.parse("v5e-4"))
    assert "died with code 1" in found.error


def test_exit_code_of_what_does_not_fit(tmp_path, monkeypatch):
    (tmp_path / "small.py").write_text(_CONFIG_FILE)
    large = compiler.Compiled(error="too large", needs=2**40)
    monkeypatch.setattr(compiler, "check_installed", lambda target: None)
    monkeypatch.setattr(compiler, "compile_program", lambda *_, **__: large)
    arguments = ["--tpu=v5e-4", "--vocab_size=32", "--json", "--programs=train"]
    code, out, _ = run_command("launch.preflight", f"--config={tmp_path}/small.py", *arguments)
    assert code == 3
    facts = json.loads(out)
    assert not facts["fits"]
    assert facts["programs"]["train"]["memory"]["needed"] == 2**40


def test_bad_usage_is_one_line():
    arguments = ["--config=configs/transformer_tiny.py", "--tpu=v5e-8", "--programs=serve"]
    code, out, err = run_command("launch.preflight", *arguments)
    assert (code, out) == (2, "")
    assert err == "error: --programs=serve: give some of train,evaluate,decode\n"
