"""Kills a training again and again, and compares it with one that nobody disturbs.

    python -m benchmarks.chaos --kills=50
    python -m benchmarks.chaos --terms=20 --workers=2
    python -m benchmarks.chaos --kills=5 --data_dir=DATA -- --config=configs/mine.py \\
        --config.train.steps=2000 --config.train.checkpoint_every=50

Runs the training once undisturbed and once under SIGKILLs and SIGTERMs, each at a random moment of
one of its phases: at the start, while it compiles, in a step, in an evaluation, while a checkpoint
is being written, while one is being renamed into place. Which phase was hit is told from what the
training prints and from its files, looked at while the process is held still (Linux). After each
fault it is started again with the same command. At the end all tensors of both must be the same bit
by bit, all losses equal, and nothing may be left half written. With several workers a signal goes
to one of them or to the launcher.

Without --data_dir, a tiny model is trained on the built-in corpus, with dropout and a moving
average of the weights; flags after -- change that. Your own training must be bit-identical when it
runs twice undisturbed: on a GPU that takes TF_DETERMINISTIC_OPS=1 in the environment.

Exit codes: 0 the same; 1 not the same, or a run ended as it should not; 2 bad usage.
"""

import os
import random
import shutil
import sys
import tempfile
import time

from absl import flags

from benchmarks import same_run, soak
from benchmarks.victim import Victim
from common.errors import UsageError, run_app

_KILLS = flags.DEFINE_integer("kills", 0, "SIGKILLs.", lower_bound=0)
_TERMS = flags.DEFINE_integer("terms", 0, "SIGTERMs, to which the answer must be code 42.", 0)
_WORKERS = flags.DEFINE_integer("workers", 1, "Worker processes.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 1, "Decides phases and moments.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Dataset directory. Default: makes a small one.")
_WORK_DIR = flags.DEFINE_string(
    "work_dir", None, "Gets dataset and both model directories, and keeps them."
)

_STEPS_A_FAULT = 30


def main(argv: list[str]) -> int:
    """Both runs, and the comparison."""
    faults = ["SIGKILL"] * _KILLS.value + ["SIGTERM"] * _TERMS.value
    if not faults:
        raise UsageError("nothing to do: give --kills=N, --terms=N or both")
    dice = random.Random(_SEED.value)
    dice.shuffle(faults)
    work_dir = _WORK_DIR.value or tempfile.mkdtemp(prefix="chaos-")
    data_dir = _DATA_DIR.value or os.path.join(work_dir, "data")
    if _DATA_DIR.value is None:
        soak.prepare(data_dir)
    steps = 24 * (1 + _STEPS_A_FAULT * len(faults) // 24)
    small = [] if _DATA_DIR.value else [*soak.SMALL, f"--config.train.steps={steps}"]
    arguments = [*small, *argv[1:]]
    model_dirs = {name: os.path.join(work_dir, name) for name in ("undisturbed", "disturbed")}
    for path in model_dirs.values():
        shutil.rmtree(path, ignore_errors=True)

    def start(name: str) -> Victim:
        paths = [f"--data_dir={data_dir}", f"--model_dir={model_dirs[name]}"]
        return Victim(soak.command(_WORKERS.value, [*paths, *arguments]), model_dirs[name])

    print(f"undisturbed run, into {model_dirs['undisturbed']} ...", flush=True)
    began = time.monotonic()
    victim = start("undisturbed")
    if victim.finish() != 0:
        print("".join(victim.lines[-20:]))
        print(f"error: the undisturbed run ended with code {victim.code}", file=sys.stderr)
        return 1
    print(f"{time.monotonic() - began:.0f} s, {victim.times}; now with {len(faults)} faults")
    done, wrong = soak.disturb(
        lambda: start("disturbed"), model_dirs["disturbed"], faults, victim.times, dice
    )
    found = same_run.differences(model_dirs["undisturbed"], model_dirs["disturbed"])
    for difference in found:
        print(f"DIFFERENT: {difference}")
    if found or wrong:
        print(f"not the same: {len(found)} differences, {wrong} wrong ends; see {work_dir}")
        return 1
    print(
        f"identical after {done} faults: step {same_run.newest(model_dirs['disturbed'])}, "
        "every tensor bit by bit, every evaluation, every training loss"
    )
    if done < len(faults):
        raise UsageError(
            f"the training was done after {done} of {len(faults)} faults; give it more steps, as "
            f"in --config.train.steps={2 * same_run.newest(model_dirs['disturbed'])} after --"
        )
    if _WORK_DIR.value is None:
        shutil.rmtree(work_dir)
    return 0


def parse_flags(argv: list[str]) -> list[str]:
    """Parses what stands before "--"; returns the program's name and what stands after it."""
    end = argv.index("--") if "--" in argv else len(argv)
    rest = flags.FLAGS(argv[:end])
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; flags of the trainer come after --")
    return [argv[0], *argv[end + 1 :]]


if __name__ == "__main__":
    run_app(main, parse_flags)
