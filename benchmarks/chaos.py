"""Kill a training again and again, and compare it with one that nobody disturbs.

    python -m benchmarks.chaos --kills=50
    python -m benchmarks.chaos --terms=20 --workers=2
    python -m benchmarks.chaos --kills=5 --data_dir=DATA -- --config=configs/mine.py \\
        --config.train.steps=2000 --config.train.checkpoint_every=50

Runs the training once undisturbed and once under SIGKILLs and SIGTERMs, each at a random moment of
one of its phases: at the start, while it compiles, in a step, in an evaluation, while a checkpoint
is written, or while one is renamed into place. Which phase was hit is told from the files of the
training, looked at while the process is stopped (Linux). After each fault it is started again with
the same command. At the end all tensors of both runs must be the same bit by bit, all losses equal,
and nothing may be left half written. With several workers a signal goes to one of them or to the
launcher.

Without --data_dir, a tiny model is trained on the built-in corpus, with dropout and a moving
average of the weights; flags after -- change that. Your own training must be bit-identical when it
runs twice undisturbed: on a GPU that takes TF_DETERMINISTIC_OPS=1 in the environment.

Exit codes: 0 the same; 1 not the same, or a run ended as it should not; 2 bad usage.
"""

import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable

from absl import flags

from benchmarks import same_run, small
from benchmarks.victim import PHASES, Hit, Times, Victim, verdict
from common.errors import UsageError, run_app, split_arguments

_KILLS = flags.DEFINE_integer("kills", 0, "SIGKILLs.", lower_bound=0)
_TERMS = flags.DEFINE_integer("terms", 0, "SIGTERMs, after which the code must be 42.", 0)
_WORKERS = flags.DEFINE_integer("workers", 1, "Worker processes.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 1, "Decides phases and moments.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Dataset directory. Default: makes a small one.")
_WORK_DIR = flags.DEFINE_string(
    "work_dir", None, "Gets the dataset and both model directories, and keeps them."
)

_STEPS_PER_FAULT = 30
_SMALL = (
    *small.FLAGS,
    "--config.model.dropout=0.1",
    "--config.optimizer.ema_decay=0.9",
    "--config.train.steps_per_loop=2",
    "--config.train.checkpoint_every=4",
    "--config.train.evaluate_every=24",
    "--config.train.keep_best=2",
    "--config.decode.validation_sentences=40",
)


def disturb(
    start: Callable[[], Victim],
    model_dir: str,
    faults: list[str],
    times: Times,
    dice: random.Random,
) -> tuple[list[Hit], int]:
    """Train to the end, with a fault in each of the first starts.

    Args:
        start: starts the training.
        model_dir: of the run.
        faults: "SIGKILL" or "SIGTERM", one per start.
        times: how long the phases take.
        dice: decides phases and moments.

    Returns:
        The faults, fewer than wanted if the training was done before; and the number of starts that
        ended as they should not.
    """
    hits: list[Hit] = []
    wrong = 0
    # Each phase as often as any other, in random order.
    phases: list[str] = []
    while len(phases) < len(faults):
        phases += dice.sample(PHASES, len(PHASES))
    phases = phases[: len(faults)]
    print("        fault    phase       step  code  newest checkpoint  files left  seconds")
    for number, (fault, phase) in enumerate(zip(faults, phases, strict=True), start=1):
        began = time.monotonic()
        victim = start()
        hit = victim.strike(fault, phase, times, dice)
        if hit is None:  # it was done, or failed by itself
            print(f"{number:>4}/{len(faults)}  not struck: it had ended with code {victim.code}")
            wrong += victim.code != 0
            break
        hits.append(hit)
        wrong_end = verdict(fault, hit, victim.code)
        print(
            f"{number:>4}/{len(faults)}  {fault} to {hit.target} in {hit.phase:<10}  "
            f"{hit.step:>5}  {victim.code:>4}  {same_run.newest(model_dir):>5}  {hit.left:>3}  "
            f"{time.monotonic() - began:.1f}{wrong_end}",
            flush=True,
        )
        if wrong_end:
            wrong += 1
            print(victim.output())
    victim = start()
    if victim.finish() != 0:
        wrong += 1
        print(f"{victim.output()}the last start ended with code {victim.code}, not 0")
    counts = {phase: sum(hit.phase == phase for hit in hits) for phase in PHASES}
    print("faults by phase:", ", ".join(f"{count} {phase}" for phase, count in counts.items()))
    return hits, wrong


def main(argv: list[str]) -> int:
    """Run both, and compare."""
    faults = ["SIGKILL"] * _KILLS.value + ["SIGTERM"] * _TERMS.value
    if not faults:
        raise UsageError("nothing to do: give --kills=N, --terms=N or both")
    dice = random.Random(_SEED.value)
    dice.shuffle(faults)
    work_dir = _WORK_DIR.value or tempfile.mkdtemp(prefix="chaos-")
    os.makedirs(work_dir, exist_ok=True)
    data_dir, arguments = _DATA_DIR.value, argv[1:]
    if data_dir is None:
        data_dir = os.path.join(work_dir, "data")
        small.prepare(data_dir)
        steps = 24 * (1 + _STEPS_PER_FAULT * len(faults) // 24)
        arguments = [*_SMALL, f"--config.train.steps={steps}", *arguments]
    on = "1" if _WORKERS.value == 1 else f"{_WORKERS.value}w"
    whole, disturbed = (os.path.join(work_dir, name) for name in ("undisturbed", "disturbed"))
    for path in (whole, disturbed):
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            os.remove(f"{path}.log")

    def start(model_dir: str) -> Victim:
        paths = [f"--data_dir={data_dir}", f"--model_dir={model_dir}"]
        return Victim(small.command(on, [*paths, *arguments]), model_dir)

    print(f"undisturbed run, into {whole} ...", flush=True)
    victim = start(whole)
    times = victim.measure()
    if victim.code != 0:
        print(victim.output())
        print(f"error: the undisturbed run ended with code {victim.code}", file=sys.stderr)
        return 1
    print(f"{times.whole:.0f} s, {times}; now with {len(faults)} faults")
    hits, wrong = disturb(lambda: start(disturbed), disturbed, faults, times, dice)
    found = same_run.differences(whole, disturbed)
    for difference in found:
        print(f"DIFFERENT: {difference}")
    if found or wrong:
        print(f"not the same: {len(found)} differences, {wrong} wrong ends; see {work_dir}")
        return 1
    print(
        f"identical after {len(hits)} faults: step {same_run.newest(disturbed)}, "
        "every tensor bit by bit, every evaluation, every training loss"
    )
    if len(hits) < len(faults):
        raise UsageError(
            f"the training was done after {len(hits)} of {len(faults)} faults; give it more steps, "
            f"as in --config.train.steps={2 * same_run.newest(disturbed)} after --"
        )
    if _WORK_DIR.value is None:
        shutil.rmtree(work_dir)
    return 0


def parse_flags(argv: list[str]) -> list[str]:
    """Parse what stands before "--"; return the program's name and what stands after it."""
    own, trainer_flags = split_arguments(argv)
    rest = flags.FLAGS(own)
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; flags of the trainer come after --")
    return [argv[0], *trainer_flags]


if __name__ == "__main__":
    run_app(main, parse_flags)
