"""Whether two model directories hold the same run: what `benchmarks.chaos` decides by."""

import itertools
import os
import re

import numpy as np
import tensorflow as tf

from trainer.checkpoints import files
from trainer.reporting.records import read_metrics

# The elapsed time may differ, and so may a counter of TensorFlow's own.
_FREE_TENSORS = re.compile(r"state/seconds/|save_counter/|_CHECKPOINTABLE_OBJECT_GRAPH")
_FREE_METRICS = {"time", "evaluate_seconds", "goodput", "spent"}
_NAMES = re.compile(r"ckpt-\d+\.(json|index|data-\d{5}-of-\d{5})")


def differences(whole: str, other: str) -> list[str]:
    """Say, for people, what differs between an undisturbed run and another that went as far.

    Compared are all tensors of the newest checkpoint, bit by bit, except the elapsed time; the
    evaluations in metrics.jsonl, and in the manifests of checkpoints that both have; and training
    losses, where both have lines of the same steps. What is damaged, lost or left half written in
    `other` is a difference too.
    """
    found = _leftovers(other)
    if not found:
        found = [*_tensors(whole, other), *_evaluations(whole, other), *_log(whole, other)]
    return found


def newest(model_dir: str) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    return max(files.steps(os.path.join(model_dir, "checkpoints")), default=0)


def _leftovers(model_dir: str) -> list[str]:
    directory = os.path.join(model_dir, "checkpoints")
    found = [
        f"{name} is left in {directory}"
        for name in sorted(os.listdir(directory))
        if not _NAMES.fullmatch(name)
    ]
    found += [f"checkpoint {step} is unfinished" for step in files.unfinished(directory)]
    for step in files.steps(directory):
        try:
            files.verified(directory, step)
        except files.DamageError as error:
            found.append(f"checkpoint {step}: {error}")
    with open(os.path.join(model_dir, "metrics.jsonl"), "rb") as file:
        if not file.read().endswith(b"\n"):  # `read_metrics` leaves it out
            found.append("the last line of metrics.jsonl is half written")
    for folder, _, names in os.walk(model_dir):
        found += [f"{folder}/{name} is left" for name in names if name.endswith(".incomplete")]
    return found


def _tensors(whole: str, other: str) -> list[str]:
    steps = [newest(whole), newest(other)]
    if steps[0] != steps[1]:
        return [f"the newest checkpoints are of steps {steps[0]} and {steps[1]}"]
    readers = [
        tf.train.load_checkpoint(os.path.join(path, "checkpoints", f"ckpt-{steps[0]}"))
        for path in (whole, other)
    ]
    names = [
        {name for name in reader.get_variable_to_shape_map() if not _FREE_TENSORS.search(name)}
        for reader in readers
    ]
    found = [f"{name} is in one checkpoint only" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        ours, theirs = (np.asarray(reader.get_tensor(name)) for reader in readers)
        if ours.tobytes() != theirs.tobytes():
            apart = np.max(np.abs(ours.astype(np.float64) - theirs))
            found.append(f"{name} differs, by {apart:.3g} at most")
    return found


def read_log(model_dir: str, split: str) -> list[dict]:
    """Return the lines of metrics.jsonl of a split."""
    return [line for line in read_metrics(model_dir) if line["split"] == split]


def _evaluations(whole: str, other: str) -> list[str]:
    found = []
    for split in ("valid", "test"):
        ours, theirs = (
            [
                {key: value for key, value in line.items() if key not in _FREE_METRICS}
                for line in read_log(path, split)
            ]
            for path in (whole, other)
        )
        if ours != theirs:
            found.append(f"the {split} lines of metrics.jsonl differ: {ours} and {theirs}")
    manifests = [
        {
            one.step: {k: v for k, v in one.metrics.items() if k not in _FREE_METRICS}
            for one in files.read_manifests(os.path.join(path, "checkpoints"))
        }
        for path in (whole, other)
    ]
    return found + [
        f"the manifests of checkpoint {step} have other metrics"
        for step in sorted(manifests[0].keys() & manifests[1].keys())
        if manifests[0][step] != manifests[1][step]
    ]


def _log(whole: str, other: str) -> list[str]:
    """Compare the training lines. Every start and every stop adds lines of its own."""
    steps = [line["step"] for line in read_log(other, "train")]
    found = [
        f"metrics.jsonl has training step {after} twice or in the wrong place"
        for before, after in itertools.pairwise(steps)
        if after <= before
    ]
    ours, theirs = _intervals(whole), _intervals(other)
    lost = sorted({end for _, end in ours} - set(steps))
    found += [f"metrics.jsonl has lost the line of training step {step}" for step in lost]
    return found + [
        f"the loss of steps {first + 1} to {last} is {theirs[first, last]}, not {loss}"
        for (first, last), loss in ours.items()
        if theirs.get((first, last), loss) != loss
    ]


def _intervals(model_dir: str) -> dict[tuple[int, int], float]:
    """Map (step before, last step) of each training line to its mean loss."""
    lines = read_log(model_dir, "train")
    before = [0, *(line["step"] for line in lines)]
    return {(first, line["step"]): line["loss"] for first, line in zip(before, lines, strict=False)}
