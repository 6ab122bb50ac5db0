"""Compiles the programs of a training run for a Cloud TPU, with no TPU, and tells what to expect.

    python -m launch.preflight --config=configs/transformer_base.py --tpu=v5e-8
    python -m launch.preflight --config=configs/transformer_base.py --tpu=v5e-8 --data_dir=DATA \
        --find_batch --usd_per_chip_hour=1.2 --json

The model, the optimizer and the train step are the trainer's own, with the batch that a chip of
that slice gets. TensorFlow exports them as StableHLO, and the TPU's compiler, which needs no TPU,
says what they need. The times are predictions: docs/preflight.md has the formulas.

Exit codes: 0 everything compiles and fits; 2 bad usage; 3 something does not compile or fit.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from absl import flags
from ml_collections import config_flags

import trainer
from configs import schema
from data_pipeline.errors import UsageError, no_arguments, run_app
from data_pipeline.records import Manifest, load_manifest
from launch.tpu_model import batch, chips, compiler, predict, report
from launch.tpu_model.compiler import Compiled

DOES_NOT_FIT = 3
PROGRAMS = ("train", "evaluate", "decode")
_BOS_ID = 2
_DECODE_ON_HOST = (
    "note: evaluation during training decodes on the host's CPU; decode is what a chip would need"
)
_BUCKETS = "note: batching is bucketed, and only the longest bucket was compiled"
_EMPTY = "note: positions, not tokens: multiply by the fill rate of your rows"

FLAGS = flags.FLAGS
_TPU = flags.DEFINE_string("tpu", None, "Accelerator type, such as v5e-8, v4-8, v5p-8 or v6e-8.")
_PRECISION = flags.DEFINE_enum(
    "precision", "mixed_bfloat16", ["float32", "mixed_bfloat16"], "Dtype policy."
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Dataset directory: its vocabularies are taken, and its reading is measured."
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", 32_000, "Pieces of a joint vocabulary, without --data_dir.", lower_bound=8
)
_PROGRAMS = flags.DEFINE_list(
    "programs", list(PROGRAMS), "Which to compile; the prediction is made from train."
)
_JSON = flags.DEFINE_bool("json", False, "Write the report as JSON.")
_FIND_BATCH = flags.DEFINE_bool(
    "find_batch", False, "Look for the largest batch that fits; compiles several times more."
)
_USD = flags.DEFINE_float(
    "usd_per_chip_hour", None, "Price of a chip for an hour, for the cost of the run.", 0.0
)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, with a one-line error for a configuration field that does not exist."""
    try:
        config_flags.DEFINE_config_file(
            "config", None, "File with get_config(); configs/schema.py lists the fields."
        )
        return FLAGS(argv)
    except KeyError as error:  # what ml_collections raises
        message = f"--config: {error.args[0]}; configs/schema.py lists the fields"
        raise UsageError(message) from error
    except SyntaxError as error:
        raise UsageError(f"--config: {error.filename} is not Python: {error}") from error


def _config() -> tuple[str, schema.Config]:
    config = FLAGS.config
    if config is None:
        raise UsageError("give --config=FILE, such as --config=configs/transformer_base.py")
    path = config_flags.get_config_filename(FLAGS["config"])
    if not isinstance(config, schema.Config):
        raise UsageError(
            f"--config={path}: no such file, or its get_config() does not return a "
            "configs.schema.Config"
        )
    try:
        schema.validate(config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return os.path.splitext(os.path.basename(path))[0], config


class Preflight:
    """One configuration on one slice.

    Args:
        config: validated.
        task: see `trainer.task`.
        tpu: `launch.tpu_model.chips.Slice`.
        precision: a Keras dtype policy.

    Attributes:
        rows: of a chip's share of the batch.
        length: tokens a side of a row.

    Raises:
        UsageError: the batch cannot be shared out over the chips.
    """

    def __init__(self, config, task, tpu: chips.Slice, precision: str):
        # Here, so that bad usage and a missing compiler are told before TensorFlow's seconds.
        from launch.tpu_model.programs import Programs
        from trainer.input import batch_rows

        self.config, self.tpu, self.vocab_size = config, tpu, task.target_vocab_size
        self.length = config.data.longest_row
        self.rows = batch_rows(config.train, self.length, tpu.chips) // tpu.chips
        self.programs = Programs(config, task, tpu.chips, precision)
        self.problems: list[str] = []

    def run(self, names: Sequence[str] = PROGRAMS) -> dict[str, Any]:
        """Compiles programs, two or more at a time; what `report.text` reads."""
        rows, length, config = self.rows, self.length, self.config
        decoded = max(1, config.decode.batch_tokens // length)
        evaluated = rows // config.train.micro_batches
        analytic = {
            "train": predict.step_flops(config, self.vocab_size, rows, length),
            "evaluate": predict.forward_flops(config, self.vocab_size, evaluated, length),
        }
        with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 1)) as pool:
            traces: dict[str, Callable[[], Any]] = {
                "train": lambda: self.programs.train(rows, length),
                "evaluate": lambda: self.programs.evaluate(evaluated, length),
                "decode": lambda: self.programs.decode(decoded, length),
            }
            jobs = [self._start(pool, traces[name]) for name in names]
            facts: dict[str, Any] = {}
            prediction: dict[str, Any] = {}
            for program, job in jobs:
                compiled = job.result()
                if compiled.dynamic and not compiled.error:
                    self._note_dynamic(program, compiled)
                name = program.name
                found = report.program_facts(compiled, self.tpu, analytic.get(name))
                if compiled.needs:
                    found["largest_arrays"] = report.largest_arrays(compiled.error, program.line)
                else:
                    found["line"] = self._failing_line(program, compiled)
                facts[name] = found
                if name == "train" and not compiled.error:
                    prediction = self._predict(program, compiled, analytic["train"])
        fits = all(found["fits"] for found in facts.values()) and not self.problems
        return {
            "tpu": self.tpu.name,
            "chips": self.tpu.chips,
            "layout": "x".join(map(str, self.tpu.layout)),
            "hosts": self.tpu.hosts,
            "rows_per_chip": rows,
            "row_length": length,
            "batch_tokens": rows * length * self.tpu.chips,
            "parameters": self.programs.parameters,
            "vocab_size": self.vocab_size,
            "fits": fits,
            "programs": facts,
            "problems": self.problems,
            "prediction": prediction,
        }

    def _start(self, pool: ThreadPoolExecutor, trace: Callable[[], Any]):
        """Traces and exports a program here, and has it compiled beside what comes next."""
        from launch.tpu_model.programs import ExportError

        program = trace()
        job: Future[Compiled] = Future()
        problems = program.problems()
        self.problems += [f"{program.name}: {problem}" for problem in problems]
        if problems:
            job.set_result(Compiled(error=str(problems[0])))
            return program, job
        try:
            artifact = program.stablehlo()
        except ExportError as error:
            job.set_result(Compiled(error=str(error.problem)))
            return program, job
        replicas = self.tpu.chips if program.name == "train" else 1
        return program, pool.submit(
            compiler.compile_program, artifact, self.tpu, trips=program.trips, replicas=replicas
        )

    def _note_dynamic(self, program, compiled: Compiled) -> None:
        for name in sorted(set(compiled.dynamic)):
            where = program.line(name)
            self.problems.append(
                f"{program.name}: dynamic shape ({name})" + (f", made by {where}" if where else "")
            )

    @staticmethod
    def _failing_line(program, compiled: Compiled) -> str:
        """The Python line of the first operation that the compiler's error names."""
        for name in compiler.operations_in(compiled.error):
            if line := program.line(name):
                return line
        return ""

    def _predict(self, program, compiled: Compiled, analytic: float) -> dict[str, Any]:
        tpu, tokens = self.tpu, self.rows * self.length
        speed = predict.speed_of(compiled, tpu.chip)
        here = predict.scale(tpu, speed, self.programs.parameters, tokens)
        peak = tpu.chip.peak_flops
        per_host = tokens * tpu.chips / tpu.hosts / here.step
        return {
            "step_seconds": here.step,
            "all_reduce_seconds": here.all_reduce,
            "tokens_per_second": here.tokens_per_second,
            "tokens_per_second_per_chip": here.tokens_per_second / tpu.chips,
            "mfu": analytic / here.step / peak,
            "roofline_tokens_per_second_per_chip": tokens / speed.roofline,
            "roofline_mfu": analytic / speed.roofline / peak,
            "input_tokens_per_second_per_host": per_host,
            "input_bytes_per_second_per_host": predict.input_bytes_per_second(
                self.rows, self.length, tpu, here.step
            ),
            "slowest": report.slowest(compiled, program.line),
            "scaling": [
                asdict(one) for one in predict.scaling(tpu, speed, self.programs.parameters, tokens)
            ],
        }

    def largest_batch(self) -> dict[str, Any]:
        """The most rows a chip for which the train step fits."""

        def compile_rows(rows: int) -> Compiled:
            _say(f"compiling {rows} rows a chip ...")
            program = self.programs.train(rows, self.length)
            return compiler.compile_program(program.stablehlo(), self.tpu, trips=program.trips)

        found = batch.find_largest(
            compile_rows,
            self.rows,
            self.tpu.chip.hbm_gib * 2**30,
            self.config.train.micro_batches,
        )
        tokens = found.fits * self.length * self.tpu.chips
        return {**asdict(found), "batch_tokens": tokens}


def measured_input(manifest: Manifest, config: schema.Config, seconds: float = 3.0) -> float:
    """Target positions a second that this machine reads, one process, with its batches thrown away.

    Args:
        manifest: of the dataset.
        config: with the layout of the batches.
        seconds: how long it is measured.
    """
    from trainer.input import load_training_data

    data = load_training_data(manifest, config, replicas=1)
    batches = iter(data.dataset(0))
    next(batches)
    began, positions = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        positions += int(next(batches)["target"].shape.num_elements())
    return positions / (time.perf_counter() - began)


def _add_cost(facts: dict[str, Any], tpu: chips.Slice, steps: int, usd: float) -> None:
    found = facts["prediction"]
    total = predict.cost(tpu, found["step_seconds"], steps, usd)
    found |= {
        "steps": steps,
        "hours": steps * found["step_seconds"] / 3600,
        "usd": total,
        "usd_per_billion_tokens": total / (steps * facts["batch_tokens"]) * 1e9,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    """Flags to report."""
    no_arguments(argv)
    name, config = _config()
    if not _TPU.value:
        raise UsageError("give --tpu=TYPE, such as --tpu=v5e-8")
    tpu = chips.parse(_TPU.value)
    if not _PROGRAMS.value or not set(_PROGRAMS.value) <= set(PROGRAMS):
        raise UsageError(f"--programs={','.join(_PROGRAMS.value)}: of {','.join(PROGRAMS)}")
    compiler.check_installed()
    manifest = load_manifest(_DATA_DIR.value) if _DATA_DIR.value else None
    from trainer import model_dir
    from trainer.task import Translation

    size = _VOCAB_SIZE.value
    task = (
        model_dir.facts_of(config, manifest, _PRECISION.value).task()
        if manifest
        else Translation(config, size, size, joint=True, bos_id=_BOS_ID)
    )
    preflight = Preflight(config, task, tpu, _PRECISION.value)
    _say(f"compiling {', '.join(_PROGRAMS.value)} for {tpu.name}; minutes for large models ...")
    facts = {"config": name, "precision": _PRECISION.value, **preflight.run(_PROGRAMS.value)}
    if manifest and facts["prediction"]:
        facts["prediction"]["measured_input_tokens_per_second"] = measured_input(manifest, config)
    if _USD.value is not None and facts["prediction"]:
        _add_cost(facts, tpu, config.train.steps, _USD.value)
    if _FIND_BATCH.value and not facts["problems"]:
        facts["largest_batch"] = preflight.largest_batch()
    facts["notes"] = [_EMPTY, _DECODE_ON_HOST]
    if config.data.batching != "packed":
        facts["notes"].append(_BUCKETS)
    facts["preflight_seconds"] = time.monotonic() - trainer.STARTED
    print(json.dumps(facts) if _JSON.value else report.text(facts), flush=True)
    return 0 if facts["fits"] else DOES_NOT_FIT


if __name__ == "__main__":
    run_app(main, parse_flags)
