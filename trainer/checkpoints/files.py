"""Checkpoints as files: what makes one, whether it is intact, which ones stay.

The checkpoint of step 500 is what TensorFlow writes, ckpt-500.index and ckpt-500.data-*, and
ckpt-500.json, its manifest, which is written last, under a temporary name, and renamed. Without a
manifest it does not count. The listing of the directory says what there is, and no other file must
be kept in step with it, so this works on object stores too, where a directory cannot be renamed
atomically.
"""

import contextlib
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import tensorflow as tf

from common import files as storage
from common.console import warn
from common.errors import UsageError
from common.files import list_names

_MANIFEST = re.compile(r"ckpt-(\d+)\.json")
_PART = re.compile(
    r"ckpt-(\d+)(?:\.|_temp).*(?<!\.damaged)"
)  # _temp: TensorFlow's, while it writes
_DAMAGED = ".damaged"
_CURE = "fix that and start again"

Facts = dict[str, dict[str, Any]]
"""What a checkpoint depends on: "model", its shape and vocabularies, and "run", all else that may
not change when a run goes on. Name -> value each."""


class DamageError(Exception):
    """A checkpoint is not what was written; the message says what is wrong with it."""


@dataclass(frozen=True)
class Checkpoint:
    """What the manifest of a checkpoint holds.

    Attributes:
        path: the prefix of its files, as TensorFlow wants it.
        step: steps made.
        time: when it was written, Unix seconds.
        files: name -> {"bytes", "sha256"} of each file.
        metrics: of the evaluation at this step, finite numbers; empty if there was none.
        averages: whether it holds a moving average of the weights, which is then what was
            evaluated.
        facts: what it depends on.
        extra: whether a stop made it, at a step at which no checkpoint was due.
    """

    path: str
    step: int
    time: float
    files: dict[str, dict[str, Any]]
    metrics: dict[str, float]
    averages: bool
    facts: Facts
    extra: bool = False


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: those that one of these rules keeps.

    Attributes:
        newest: number of newest checkpoints of those that a run without stops has too.
        best: number of best ones by `metric`, of those that were evaluated.
        every_hours: hours from each one that stays to the next, beginning with the first; 0 for
            none.
        metric: a metric of the validation split.
        higher: whether a higher value of it is better.
    """

    newest: int = 5
    best: int = 1
    every_hours: float = 0.0
    metric: str = "bleu"
    higher: bool = True

    def select(self, checkpoints: list[Checkpoint]) -> set[int]:
        """Return the steps of those that stay."""
        by_step = sorted(checkpoints, key=lambda one: one.step)
        kept = {one.step for one in without_extra(by_step)[-self.newest :]}
        kept |= {one.step for one in ranked(by_step, self.metric, self.higher)[: self.best]}
        last = -math.inf
        for one in by_step if self.every_hours else []:
            if one.time - last >= 3600 * self.every_hours:
                kept.add(one.step)
                last = one.time
        return kept


def without_extra(checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """Return the checkpoints, by rising step, that a run without stops would have, and the newest.

    So a run that was stopped keeps, and averages, what an undisturbed one does.
    """
    return [one for one in checkpoints if not one.extra or one is checkpoints[-1]]


def ranked(checkpoints: list[Checkpoint], metric: str, higher: bool) -> list[Checkpoint]:
    """Return those that have the metric, the best first; of equals, the one with the lower loss.

    Args:
        checkpoints: in any order.
        metric: a metric of the validation split.
        higher: whether a higher value is better.
    """
    sign = -1 if higher else 1
    scored = [one for one in checkpoints if metric in one.metrics]

    def rank(one: Checkpoint) -> tuple[float, float, int]:
        return sign * one.metrics[metric], one.metrics.get("loss", 0.0), one.step

    return sorted(scored, key=rank)


def prefix(directory: str, step: int) -> str:
    """Return the path of a checkpoint, without the suffixes of its files."""
    return os.path.join(directory, f"ckpt-{step}")


def check_path(path: str) -> None:
    """Refuse a path of checkpoints that TensorFlow could write, but not read again.

    Its readers look for the files with a glob, in which `[` and a backslash do not stand for
    themselves. (`*` and `?` match themselves.)

    Raises:
        UsageError: the path has one of them.
    """
    found = re.search(r"[\[\\]", path)
    if found:
        raise UsageError(
            f"{path}: TensorFlow cannot read checkpoints from a path with {found[0]}; rename the "
            "directory"
        )


def _names(directory: str) -> list[str]:
    """Return the names in a directory, if it exists; `UsageError` if that fails for good."""
    with storage.storage_errors(f"{directory} cannot be read", _CURE):
        return list_names(directory)


def steps(directory: str) -> list[int]:
    """Return the steps of the checkpoints that have a manifest, rising.

    Raises:
        UsageError: the directory cannot be read.
    """
    matches = (_MANIFEST.fullmatch(name) for name in _names(directory))
    return sorted(int(match[1]) for match in matches if match)


def unfinished(directory: str) -> list[int]:
    """Return the steps that have files but no manifest, rising."""
    matches = (_PART.fullmatch(name) for name in _names(directory))
    return sorted({int(match[1]) for match in matches if match} - set(steps(directory)))


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def describe_files(directory: str, step: int) -> dict[str, dict[str, Any]]:
    """Return the sizes and checksums of the files of a checkpoint, read back from storage."""
    start = f"ckpt-{step}."
    names = sorted(
        name for name in _names(directory) if name.startswith((f"{start}index", f"{start}data-"))
    )
    return {name: _describe(os.path.join(directory, name)) for name in names}


def _describe(path: str) -> dict[str, Any]:
    return {"bytes": tf.io.gfile.stat(path).length, "sha256": storage.sha256(path)}


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    """Tell a missing file of a checkpoint from one that cannot be read."""
    with storage.storage_errors(f"{path} cannot be read", _CURE):
        try:
            yield
        except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError) as error:
            raise DamageError(f"{os.path.basename(path)} is missing") from error


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that a manifest can hold: numbers that are finite."""
    return {
        name: value
        for name, value in metrics.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def write_manifest(checkpoint: Checkpoint) -> None:
    """Write the manifest; from now on the checkpoint counts."""
    values = asdict(checkpoint)
    del values["path"]  # the directory may move
    text = json.dumps({**values, "sha256": _digest(values)}, indent=1) + "\n"
    storage.write_bytes(f"{checkpoint.path}.json", text.encode(), alone=True)


def read_manifest(directory: str, step: int) -> Checkpoint:
    """Read a manifest, and check that it is what was written.

    Raises:
        DamageError: it is not.
        UsageError: it cannot be read.
    """
    path = prefix(directory, step)
    name = f"ckpt-{step}.json"
    with _reading(f"{path}.json"), tf.io.gfile.GFile(f"{path}.json", "rb") as file:
        content = file.read()
    try:
        values = json.loads(content)
        expected = values.pop("sha256")
        if expected != _digest(values):
            raise DamageError(f"{name} has another checksum than when it was written")
        checkpoint = Checkpoint(path=path, **values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamageError(f"{name} is no manifest") from error
    if checkpoint.step != step:
        raise DamageError(f"{name} is the manifest of step {checkpoint.step}")
    return checkpoint


def verified(directory: str, step: int) -> Checkpoint:
    """Return a checkpoint after checking that every byte is as it was written.

    Raises:
        DamageError: it is not.
        UsageError: it cannot be read, for want of a permission or of the network.
    """
    checkpoint = read_manifest(directory, step)
    for name, expected in checkpoint.files.items():
        path = os.path.join(directory, name)
        with _reading(path):
            found = _describe(path)
        if found["bytes"] != expected["bytes"]:
            raise DamageError(f"{name} has {found['bytes']:,} bytes, not {expected['bytes']:,}")
        if found != expected:
            raise DamageError(f"{name} has another checksum than when it was written")
    return checkpoint


def first_intact(directory: str, order: list[int]) -> tuple[Checkpoint | None, dict[int, str]]:
    """Return the first intact checkpoint, and warn about each damaged one before it.

    Args:
        directory: of the checkpoints.
        order: steps to look at.

    Returns:
        The checkpoint, or None if all are damaged; and step -> what is wrong with those before it.

    Raises:
        UsageError: one cannot be read.
    """
    damaged: dict[int, str] = {}
    for step in order:
        try:
            return verified(directory, step), damaged
        except DamageError as error:
            damaged[step] = str(error)
            warn(f"checkpoint {prefix(directory, step)} is damaged ({error}); not used")
    return None, damaged


def check_remains(directory: str) -> None:
    """Check that a run may start in a directory without any manifest.

    Raises:
        UsageError: it holds damaged checkpoints, or some of an earlier version.
    """
    names = _names(directory)
    if "checkpoint" in names:
        raise UsageError(
            f"{directory} holds checkpoints of an earlier version of this program, which have no "
            "manifests; take another --model_dir"
        )
    if any(name.endswith(_DAMAGED) for name in names):
        raise UsageError(
            f"{directory} holds nothing but damaged checkpoints; bring back a copy of an intact "
            "one, or delete the directory to start anew"
        )


def _parts(directory: str, step: int) -> list[str]:
    """Return the paths of the files of a checkpoint that are there, its manifest among them."""
    matches = (_PART.fullmatch(name) for name in _names(directory))
    return [
        os.path.join(directory, match[0]) for match in matches if match and int(match[1]) == step
    ]


def remove(directory: str, step: int) -> None:
    """Delete the files of a checkpoint, the manifest first; those set aside stay."""
    storage.remove(f"{prefix(directory, step)}.json")
    for path in _parts(directory, step):
        if tf.io.gfile.isdir(path):
            storage.remove_tree(path)
        else:
            storage.remove(path)


def set_aside(directory: str, step: int) -> None:
    """Rename the files of a damaged checkpoint to *.damaged."""
    for path in _parts(directory, step):
        tf.io.gfile.rename(path, path + _DAMAGED, overwrite=True)


def read_manifests(directory: str) -> list[Checkpoint]:
    """Return all intact manifests, by step, without checking the files they describe."""
    checkpoints = []
    for step in steps(directory):
        with contextlib.suppress(DamageError):  # reported when it is about to be used
            checkpoints.append(read_manifest(directory, step))
    return checkpoints


def clean(directory: str, keep: Keep) -> None:
    """Delete what no rule keeps, and what killed runs left unfinished.

    A checkpoint with a damaged manifest stays, and does not count.
    """
    checkpoints = read_manifests(directory)
    kept = keep.select(checkpoints)
    dropped = [one.step for one in checkpoints if one.step not in kept]
    for step in dropped + unfinished(directory):
        remove(directory, step)
    # On an object store a rename is a copy and a deletion, and a run can be killed between them.
    for name in _names(directory):
        if name.endswith(".json.incomplete"):
            storage.remove(os.path.join(directory, name))


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the differing facts, "a 1 -> 2; b 3 -> 4", of those that both sides know."""
    new = json.loads(json.dumps(new))  # tuples become lists, as in the manifest
    changed = (name for name in old if name in new and old[name] != new[name])
    return "; ".join(f"{name} {old[name]!r} -> {new[name]!r}" for name in changed)
