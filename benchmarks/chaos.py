"""Kills a training again and again, and compares it with one that nobody disturbs.

    python -m benchmarks.chaos --kills=50
    python -m benchmarks.chaos --terms=20 --workers=2
    python -m benchmarks.chaos --kills=5 --data_dir=DATA -- --config=configs/mine.py \
        --config.train.steps=2000 --config.train.checkpoint_every=50

Runs the training once undisturbed and once under SIGKILLs and SIGTERMs, each at a random moment of
one of its phases: at the start, while it compiles, in a step, in an evaluation, while a checkpoint
is being written, while one is being renamed into place. Which phase was hit is told from what the
training prints and from its files, looked at while the process is held still (Linux). After each
fault it is started again with the same command. At the end all tensors of both must be the same bit
by bit, all losses equal, and nothing may be left half written. With several workers a signal goes
to one of them or to the launcher.

Without flags of your own after --, a tiny model is trained on the built-in corpus, with dropout and
a moving average of the weights. Your own training must be bit-identical when it runs twice
undisturbed: on a GPU that takes TF_DETERMINISTIC_OPS=1 in the environment.

Exit codes: 0 the same; 1 not the same, or a run ended as it should not; 2 bad usage.
"""

import os
import random
import shutil
import sys
import tempfile
import time

from absl import flags

from benchmarks import same_run
from benchmarks.victim import PHASES, Hit, Times, Victim, expected_codes
from data_pipeline.errors import UsageError, run_app

_KILLS = flags.DEFINE_integer("kills", 0, "SIGKILLs.", lower_bound=0)
_TERMS = flags.DEFINE_integer("terms", 0, "SIGTERMs, to which the answer must be code 42.", 0)
_WORKERS = flags.DEFINE_integer("workers", 1, "Worker processes.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 1, "Decides phases and moments.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Dataset directory. Default: makes a small one.")
_WORK_DIR = flags.DEFINE_string(
    "work_dir", None, "Gets dataset and both model directories, and keeps them."
)

_STEPS_A_FAULT = 20
_SMALL = (
    "--config.model.dropout=0.1",
    "--config.model.width=32",
    "--config.model.feed_forward=64",
    "--config.model.heads=2",
    "--config.model.encoder_layers=1",
    "--config.model.decoder_layers=1",
    "--config.optimizer.ema_decay=0.9",
    "--config.data.row_length=64",
    "--config.train.batch_tokens=2048",
    "--config.train.steps_per_loop=2",
    "--config.train.checkpoint_every=4",
    "--config.train.evaluate_every=24",
    "--config.train.keep_best=2",
    "--config.decode.validation_sentences=40",
    "--jit_compile=off",
)


def prepare(directory: str) -> None:
    """Makes a small dataset of the built-in corpus, unless it is there."""
    from data_pipeline import pipeline

    if not os.path.exists(os.path.join(directory, "dataset.json")):
        settings = pipeline.Settings(
            train=("builtin:train?size=2000",),
            valid=("builtin:valid?size=40",),
            test=("builtin:test?size=20",),
            source_lang="en",
            target_lang="de",
            output_dir=directory,
            vocab_size=1000,
            row_length=64,
        )
        pipeline.prepare(settings)


def command(workers: int, arguments: list[str]) -> list[str]:
    """What trains: the trainer, or several under the launcher, which is not to restart them."""
    if workers == 1:
        return [sys.executable, "-m", "trainer.main", *arguments]
    launcher = [sys.executable, "-m", "launch.local", f"--workers={workers}", "--max_restarts=0"]
    return [*launcher, "--", *arguments]


def disturb(
    make, model_dir: str, faults: list[str], times: Times, dice: random.Random
) -> tuple[int, int]:
    """Trains to the end, with a fault in each of the first starts.

    Args:
        make: starts the training, returns a `Victim`.
        model_dir: of the run.
        faults: "SIGKILL" or "SIGTERM", one a start.
        times: how long the phases take.
        dice: decides phases and moments.

    Returns:
        the number of faults, fewer than wanted where the training was done before; and the number
        of starts that ended as they should not.
    """
    hits: list[tuple[Hit, int, float]] = []  # with steps lost, seconds
    wrong = 0
    # Each phase as often as any other, in random order.
    phases = [PHASES[index % len(PHASES)] for index in range(len(faults))]
    dice.shuffle(phases)
    for number, (fault, phase) in enumerate(zip(faults, phases, strict=True), start=1):
        began = time.monotonic()
        victim = make()
        hit = victim.strike(fault, phase, times, dice)
        if hit is None:
            code = victim.finish()
            print(f"the training ended with code {code} before fault {number}", flush=True)
            if code == 0:
                break
            return _report(hits, victim, wrong + 1)
        saved, seconds = same_run.newest(model_dir), time.monotonic() - began
        hits.append((hit, max(0, hit.step - saved), seconds))
        wrong_end = verdict(fault, hit, victim.code)
        if wrong_end:
            wrong += 1
            print("".join(victim.lines[-20:]))
        print(
            f"{number:>4}/{len(faults)}  {fault} to {hit.target} in {hit.phase:<10}  "
            f"step {hit.step:>5}  code {victim.code:>4}  newest checkpoint {saved:>5}  "
            f"{hit.left} files left  {seconds:.1f} s{wrong_end}",
            flush=True,
        )
    victim = make()
    wrong += victim.finish() != 0
    return _report(hits, victim, wrong)


def verdict(fault: str, hit: Hit, code: int | None) -> str:
    """What is wrong with the end of a struck training; "" for nothing."""
    if not hit.ended:
        return "  WRONG: it did not end, and was killed"
    expected = expected_codes(fault, hit)
    return "" if code in expected else f"  WRONG: ended with {code}, not {sorted(expected)}"


def _report(hits: list[tuple[Hit, int, float]], last: Victim, wrong: int) -> tuple[int, int]:
    if last.code != 0:
        print("".join(last.lines[-20:]))
        print(f"the last start ended with code {last.code}, not 0")
    print(f"\n{'phase':<12} faults  left files  steps lost: mean, most  mean seconds")
    for phase in PHASES:
        rows = [row for row in hits if row[0].phase == phase]
        if rows:
            lost = [row[1] for row in rows]
            print(
                f"{phase:<12} {len(rows):>6}  {sum(row[0].left > 0 for row in rows):>10}  "
                f"{sum(lost) / len(rows):>16.1f}, {max(lost):>4}  "
                f"{sum(row[2] for row in rows) / len(rows):>12.1f}"
            )
    return len(hits), wrong


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
        prepare(data_dir)
    steps = 24 * (1 + _STEPS_A_FAULT * len(faults) // 24)
    arguments = argv[1:] or [*_SMALL, f"--config.train.steps={steps}"]
    model_dirs = {name: os.path.join(work_dir, name) for name in ("undisturbed", "disturbed")}
    for path in model_dirs.values():
        shutil.rmtree(path, ignore_errors=True)

    def start(name: str) -> Victim:
        paths = [f"--data_dir={data_dir}", f"--model_dir={model_dirs[name]}"]
        return Victim(command(_WORKERS.value, [*paths, *arguments]), model_dirs[name])

    print(f"undisturbed run, into {model_dirs['undisturbed']} ...", flush=True)
    began = time.monotonic()
    victim = start("undisturbed")
    if victim.finish() != 0:
        print("".join(victim.lines[-20:]))
        print(f"error: the undisturbed run ended with code {victim.code}", file=sys.stderr)
        return 1
    print(f"{time.monotonic() - began:.0f} s, {victim.times}; now with {len(faults)} faults")
    done, wrong = disturb(
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
