"""Compile the programs of one configuration for one target, and collect the facts to report."""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from common.console import say_on_stderr
from configs import schema
from data_pipeline.dataset.manifest import Manifest
from launch.compiler import batch, compiler, predict, report
from launch.compiler.compiler import Compiled
from launch.compiler.target import Target

PROGRAMS = ("train", "evaluate", "decode")
_INPUT_SECONDS = 3.0  # that `measured_input` reads


class Preflight:
    """One configuration on one kind of hardware.

    Args:
        config: validated.
        task: see `trainer.tasks.base.Task`.
        target: the chips to compile for.
        precision: a Keras dtype policy.

    Attributes:
        rows: rows in a chip's share of the batch.
        length: tokens per side of a row.

    Raises:
        UsageError: if the batch cannot be divided among the chips, or the trainer would refuse to
            shard the optimizer's state on them.
    """

    def __init__(self, config, task, target: Target, precision: str):
        # Imported late: TensorFlow takes seconds, and bad usage should be reported before.
        from launch.compiler.programs import Programs
        from trainer.input.batch_size import batch_rows
        from trainer.optim import sharding

        self.config, self.target, self.task = config, target, task
        self.length = config.data.longest_row
        self.rows = batch_rows(config.train, self.length, target.chips) // target.chips
        tpu = target.topology["platform"] == "tpu"
        if config.train.shard_optimizer:
            sharding.check_possible(tpu=tpu)
        self.programs = Programs(config, task, target.chips, precision, tpu=tpu)
        self.problems: list[str] = []

    def run(self, names: Sequence[str] = PROGRAMS) -> dict[str, Any]:
        """Compile programs, several at a time; return the facts that `report.text` shows."""
        rows, length, config = self.rows, self.length, self.config
        decoded = max(1, config.decode.batch_tokens // length)
        evaluated = rows // config.train.micro_batches
        analytic = {
            "train": self.task.program_flops(rows, length, training=True),
            "evaluate": self.task.program_flops(evaluated, length, training=False),
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
                found = report.program_facts(compiled, self.target, analytic.get(name))
                if compiled.needs:
                    found["largest_arrays"] = report.largest_arrays(compiled.error, program.line)
                else:
                    found["line"] = self._failing_line(program, compiled)
                facts[name] = found
                if name == "train" and not compiled.error:
                    prediction = self._predict(program, compiled, analytic["train"])
        fits = all(found["fits"] for found in facts.values()) and not self.problems
        return {
            "target": self.target.name,
            "chips": self.target.chips,
            "layout": self.target.layout_text,
            "hosts": self.target.hosts,
            "rows_per_chip": rows,
            "row_length": length,
            "batch_tokens": rows * length * self.target.chips,
            "parameters": self.programs.parameters,
            "vocab_size": self.task.vocab_size,
            "fits": fits,
            "programs": facts,
            "problems": self.problems,
            "prediction": prediction,
        }

    def _start(self, pool: ThreadPoolExecutor, trace: Callable[[], Any]):
        """Trace and export a program, and start its compilation in the background."""
        from launch.compiler.programs import ExportError

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
        replicas = self.target.chips if program.name == "train" else 1
        return program, pool.submit(
            compiler.compile_program, artifact, self.target, trips=program.trips, replicas=replicas
        )

    def _note_dynamic(self, program, compiled: Compiled) -> None:
        for name in sorted(set(compiled.dynamic)):
            where = program.line(name)
            self.problems.append(
                f"{program.name}: dynamic shape ({name})" + (f", made by {where}" if where else "")
            )

    @staticmethod
    def _failing_line(program, compiled: Compiled) -> str:
        """Return the Python line of the first operation that the compiler's error names."""
        for name in compiler.operations_in(compiled.error):
            if line := program.line(name):
                return line
        return ""

    def _predict(self, program, compiled: Compiled, analytic: float) -> dict[str, Any]:
        target, tokens = self.target, self.rows * self.length
        speed = predict.speed_of(compiled, target.chip)
        train = self.config.train
        reduced = self.programs.parameters, tokens, train.reduce_dtype
        here = predict.scale(target, speed, *reduced, shard=train.shard_optimizer)
        peak = target.chip.peak_flops
        per_host = tokens * target.chips / target.hosts / here.step
        return {
            "step_seconds": here.step,
            "all_reduce_seconds": here.all_reduce,
            "gather_seconds": here.gather,
            "tokens_per_second": here.tokens_per_second,
            "tokens_per_second_per_chip": here.tokens_per_second / target.chips,
            "mfu": analytic / here.step / peak,
            "roofline_tokens_per_second_per_chip": tokens / speed.roofline,
            "roofline_mfu": analytic / speed.roofline / peak,
            "input_tokens_per_second_per_host": per_host,
            # Of every feature of the task an int32 a position.
            "input_bytes_per_second_per_host": 4 * len(self.task.FEATURES) * per_host,
            "slowest": report.slowest(compiled, target.chip, program.line),
            "scaling": [
                asdict(one)
                for one in predict.scaling(target, speed, *reduced, shard=train.shard_optimizer)
            ],
        }

    def largest_batch(self) -> dict[str, Any]:
        """Return the most rows per chip for which the train step fits.

        Raises:
            SearchError: it does not compile for a reason other than memory.
        """
        from launch.compiler.programs import ExportError

        def compile_rows(rows: int) -> Compiled:
            say_on_stderr(f"compiling {rows} rows per chip ...")
            program = self.programs.train(rows, self.length)
            try:
                exported = program.stablehlo()
            except ExportError as error:
                return Compiled(error=str(error))
            return compiler.compile_program(exported, self.target, trips=program.trips)

        found = batch.find_largest(
            compile_rows,
            self.rows,
            self.target.chip.memory,
            self.config.train.micro_batches,
        )
        tokens = found.fits * self.length * self.target.chips
        return {**asdict(found), "batch_tokens": tokens}


def measured_input(manifest: Manifest, config: schema.Config) -> float:
    """Return the target positions per second that one process on this machine reads.

    Args:
        manifest: the dataset's.
        config: the layout of the batches.
    """
    from trainer.input.load import load_training_data

    data = load_training_data(manifest, config, replicas=1)
    batches = iter(data.dataset(0))
    next(batches)
    began, positions = time.perf_counter(), 0
    while time.perf_counter() - began < _INPUT_SECONDS:
        positions += int(next(iter(next(batches).values())).shape.num_elements())
    return positions / (time.perf_counter() - began)


def add_cost(facts: dict[str, Any], steps: int, usd: float) -> None:
    """Add the hours and the cost of `steps` steps alone, at `usd` per chip and hour."""
    found = facts["prediction"]
    hours = steps * found["step_seconds"] / 3600
    total = hours * facts["chips"] * usd
    found |= {
        "steps": steps,
        "hours": hours,
        "usd": total,
        "usd_per_billion_tokens": total / (steps * facts["batch_tokens"]) * 1e9,
    }
