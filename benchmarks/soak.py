"""What the soak tools share: a small training, and the faults of `benchmarks.chaos`."""

import os
import random
import re
import sys
import time
from collections.abc import Callable

from benchmarks import same_run
from benchmarks.victim import PHASES, Hit, Times, Victim, expected_codes
from common.errors import UsageError

SMALL = (
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


def leg_command(leg: str) -> list[str]:
    """The command that trains on a leg such as "4" or "2w"."""
    match = re.fullmatch(r"([1-9][0-9]*)(w?)", leg)
    if not match:
        raise UsageError(f"--legs: {leg!r} is neither replicas, such as 4, nor workers, such as 2w")
    if match[2]:
        return [sys.executable, "-m", "launch.local", f"--workers={match[1]}", "--"]
    return [sys.executable, "-m", "trainer.main", f"--num_virtual_devices={match[1]}"]


def disturb(
    make: Callable[[], Victim], model_dir: str, faults: list[str], times: Times, dice: random.Random
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
