"""What a trained model achieves on a split: the metrics of its loss, scores and samples."""

from collections.abc import Callable
from typing import Any

from common.errors import UsageError
from data_pipeline.dataset.examples import read_examples
from data_pipeline.dataset.manifest import Manifest
from trainer.checkpoints.model_dir import LoadedModel, RunFacts
from trainer.input.evaluation import evaluation_batches
from trainer.step import Steps
from trainer.tasks.base import Scores
from trainer.validation import total_metrics


def check_dataset(manifest: Manifest, facts: RunFacts) -> None:
    """Check that a dataset is of the task, the vocabularies and the labels of a model.

    Raises:
        UsageError: it is not.
    """
    directory = manifest.directory
    if manifest.task != facts.data_task:
        raise UsageError(
            f"{directory} is a dataset for {manifest.task}, and the model is for "
            f"{facts.data_task}; name one that was made for it"
        )
    for sequence, info in facts.tokenizers.items():
        if manifest.tokenizers[sequence].sha256 != info.sha256:
            raise UsageError(
                f"{directory} was made with another {sequence} vocabulary than the model; prepare "
                f"it again with --tokenizer={info.file}, of the model directory, or score its own "
                "model"
            )
    if list(manifest.labels) != list(facts.labels):
        raise UsageError(
            f"{directory} has the labels {', '.join(manifest.labels)}, and the model knows "
            f"{', '.join(facts.labels)}; the numbers of both must agree"
        )


class SplitScorer:
    """Scores a model on one split.

    Args:
        loaded: the model; its weights may change between two calls of `score`.
        manifest: of the dataset.
        split: "valid" or "test".
        quick: see `Task.scorer`.

    Raises:
        UsageError: the dataset does not fit the model.
    """

    def __init__(self, loaded: LoadedModel, manifest: Manifest, split: str, *, quick: bool):
        check_dataset(manifest, loaded.facts)
        self._info = manifest.split(split)
        config, strategy = loaded.facts.config, loaded.strategy
        self._steps = Steps(
            strategy, loaded.task, loaded.model, None, None, config, jit_compile=False
        )
        examples = read_examples(manifest, split)
        self._batches = evaluation_batches(examples, config, manifest.closing_id, strategy)
        self._scorer = loaded.task.scorer(
            loaded.model, manifest, split, loaded.tokenizers, quick=quick, strategy=strategy
        )

    def score(self, between: Callable[[], Any] | None = None) -> tuple[dict[str, float], Scores]:
        """Return the metrics of the model as it is now, and its scores.

        Args:
            between: called after every batch; what it raises ends the work.

        Raises:
            UsageError: the split is empty.
        """
        metrics = total_metrics(self._steps, self._batches, self._info, between)
        return metrics, self._scorer(between)
