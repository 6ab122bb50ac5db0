"""Training in stages: other datasets for the first steps, such as a mix before clean text.

`data.stages` names them. The batch of a step follows from the seed and the step as without stages,
so a run that stops in the middle of a stage goes on exactly there.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from common.errors import UsageError
from configs.schema import Config
from data_pipeline.dataset.manifest import Manifest, load_manifest
from trainer.input import load
from trainer.input.distribution import endless
from trainer.input.protocol import TrainingData

_DIGITS = 19  # a number of so many may not fit into 64 bits; no step has them


@dataclass(frozen=True)
class Stage:
    """A dataset and the batches that come from it.

    Attributes:
        manifest: of the dataset.
        end: the first batch, counted from 0, that is of the next stage; None for the last stage.
    """

    manifest: Manifest
    end: int | None


def read_stages(config: Config, last: Manifest) -> list[Stage]:
    """Return the stages of a run in order; `last` is the dataset of --data_dir.

    Raises:
        UsageError: `data.stages` is not written as its comment says, or a dataset there is not of
            the task and the vocabularies of `last`.
    """
    stages: list[Stage] = []
    for text in config.data.stages.split(",") if config.data.stages else []:
        directory, _, number = text.rpartition(":")
        end = int(number) if number.isdecimal() and len(number) < _DIGITS else 0
        if not directory or end <= (stages[-1].end or 0 if stages else 0):
            raise UsageError(
                f"--config.data.stages={config.data.stages}: {text!r} must be DIRECTORY:STEP, with "
                "rising steps, such as data/mix:4000"
            )
        manifest = load_manifest(directory)
        if (manifest.task, manifest.labels) != (last.task, last.labels):
            raise UsageError(
                f"--config.data.stages: {directory} is not of the task and labels of "
                f"{last.directory}"
            )
        for name, tokenizer in last.tokenizers.items():
            if manifest.tokenizers[name].sha256 != tokenizer.sha256:
                raise UsageError(
                    f"--config.data.stages: {directory} has another {name} vocabulary than "
                    f"{last.directory}; make it with data_pipeline.main "
                    f"--tokenizer={last.path(tokenizer)}"
                )
        stages.append(Stage(manifest, end))
    return [*stages, Stage(last, None)]


def fingerprint(stages: Sequence[Stage]) -> str:
    """Return what changes with the data of any stage; the dataset's own if there is only one."""
    if len(stages) == 1:
        return stages[0].manifest.fingerprint
    texts = [f"{stage.manifest.fingerprint} {stage.end}" for stage in stages]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def load_stages(
    stages: Sequence[Stage], config: Config, replicas: int, *, skip_corrupt: bool = False
) -> TrainingData:
    """Return the training data of all stages; see `load.load_training_data`.

    Raises:
        UsageError: as there, or batches of two stages differ in shape.
    """
    parts = [
        load.load_training_data(stage.manifest, config, replicas, skip_corrupt=skip_corrupt)
        for stage in stages
    ]
    for stage, part in zip(stages, parts, strict=True):
        if part.shapes != parts[-1].shapes:
            raise UsageError(
                f"--config.data.stages: {stage.manifest.directory} gives batches of "
                f"{part.shapes}, {stages[-1].manifest.directory} of {parts[-1].shapes}; stages "
                "need --config.data.batching=packed"
            )
    return StagedData(stages, parts) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class StagedData:
    """One dataset after another; see `trainer.input.protocol.TrainingData`.

    An epoch, the fill rate and what is left out are those of the last stage.

    Attributes:
        stages: their datasets and ends.
        parts: the batches of each, counted from 0 in each.
    """

    stages: Sequence[Stage]
    parts: Sequence[TrainingData]

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return self.parts[-1].shapes

    @property
    def batches_per_epoch(self) -> int:
        return self.parts[-1].batches_per_epoch

    @property
    def origin(self) -> str:
        lines = []
        for (first, end), stage, part in zip(self._spans(), self.stages, self.parts, strict=True):
            pairs = stage.manifest.splits["train"].kept
            until = f"to {end:,}" if end else "on"
            epochs = f", {(end - first) / part.batches_per_epoch:.1f} epochs" if end else ""
            lines.append(
                f"steps {first + 1:,} {until}: {stage.manifest.directory}, {pairs:,} examples"
                f"{epochs}, {part.origin}"
            )
        return "\n             ".join(lines)

    def fill_rate(self) -> float:
        return self.parts[-1].fill_rate()

    def left_out(self) -> int:
        return self.parts[-1].left_out()

    def dataset(
        self, first_step: int, replicas: int = 1, first: int = 0, local: int = 1
    ) -> tf.data.Dataset:
        datasets = []
        for (begin, end), part in zip(self._spans(), self.parts, strict=True):
            if end is None or end > first_step:
                start = max(begin, first_step)
                batches = part.dataset(start - begin, replicas, first, local)
                datasets.append(batches if end is None else batches.take((end - start) * local))
        whole = datasets[0]
        for dataset in datasets[1:]:
            whole = whole.concatenate(dataset)
        return endless(whole)

    def check(self, step: int, steps: int = 1) -> None:
        for (begin, end), part in zip(self._spans(), self.parts, strict=True):
            start, stop = max(begin, step), step + steps
            stop = stop if end is None else min(stop, end)
            if start < stop:
                part.check(start - begin, stop - start)

    def _spans(self) -> list[tuple[int, int | None]]:
        """Return the first batch of each stage, and the first of the next one or None."""
        ends = [stage.end for stage in self.stages]
        return list(zip([0, *(end or 0 for end in ends[:-1])], ends, strict=True))
