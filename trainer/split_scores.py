"""What a trained model achieves on a split: the metrics of its loss, scores and samples."""

from collections.abc import Callable
from typing import Any

from data_pipeline.dataset.examples import read_examples
from data_pipeline.dataset.manifest import Manifest
from trainer.checkpoints.model_dir import LoadedModel
from trainer.input.evaluation import evaluation_batches
from trainer.step import Steps
from trainer.tasks.base import Scores
from trainer.validation import total_metrics


class SplitScorer:
    """Scores a model on one split.

    Args:
        loaded: the model; its weights may change between two calls of `score`.
        manifest: of the dataset.
        split: "valid" or "test".
        quick: see `Task.scorer`.
    """

    def __init__(self, loaded: LoadedModel, manifest: Manifest, split: str, *, quick: bool):
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
