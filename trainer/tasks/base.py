"""What a task is: the seam between the training engine and what is learned.

The engine (strategies, train step, micro-batches, precision, checkpoints, input, metrics, loop)
trains any task that has the members of `Task`. To add one:

1.  Write `trainer/tasks/NAME.py` with a class that has these members (translation.py is the model
    to follow), and a model in `trainer/model/` if none of those there fits.
2.  Add the class to `TASKS` in `trainer/tasks/lookup.py`.
3.  Write a configuration with `task="NAME"` in `configs/`.

A batch is a dictionary of int32 arrays [rows, length] with the features of the dataset
(`data_pipeline.dataset.packing.features`): for every sequence of an example its token ids and its
segment ids, which number the examples of a packed row from 1 and are 0 for padding.

The replicas and micro-batches of a step see different parts of the batch, so a task never divides.
It returns sums, the engine adds them up over all parts, and divides loss and gradients once, by the
sum that the task names. So any number of replicas and micro-batches gives the same update.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import keras
import tensorflow as tf

from configs.schema import Config
from data_pipeline.dataset.manifest import Manifest, SplitInfo
from data_pipeline.dataset.tokenizer import Tokenizer

Batch = Mapping[str, tf.Tensor]


@dataclass(frozen=True)
class DataFacts:
    """What a task knows of its dataset when it builds a model.

    Attributes:
        task: the task that the dataset was made for.
        vocab_sizes: sequence -> number of token ids.
        joint_vocabulary: whether all sequences share one vocabulary.
        labels: names of the classes; () without labels.
        label_counts: label -> training examples; empty where it does not matter.
    """

    task: str
    vocab_sizes: Mapping[str, int]
    joint_vocabulary: bool
    labels: tuple[str, ...]
    label_counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """What a model achieves on a split, beyond the metrics of its loss.

    Attributes:
        metrics: for metrics.jsonl; the numbers named by `Task.SCORES` and whatever else is to be
            kept, such as the signature of a score.
        summary: the scores in a few words, for the console.
        details: what they were counted on, for the console.
        outputs: what the model produced, one line an example.
        samples: examples to show: label -> text, such as source, reference and translation.
        table: a text of several lines with the details, for the console and TensorBoard; or "".
        pictures: title -> a PNG image, for TensorBoard.
    """

    metrics: Mapping[str, Any]
    summary: str
    details: str
    outputs: Sequence[str]
    samples: Sequence[Mapping[str, str]]
    table: str = ""
    pictures: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoding:
    """The inference program of a task, as users run it on an accelerator.

    Attributes:
        function: of int32 tensors of the shapes; compiled by XLA, all shapes static.
        shapes: of its arguments.
        trips: iterations of its loop; 1 without a loop.
    """

    function: Callable
    shapes: Sequence[tuple[int, int]]
    trips: int


Scorer = Callable[[Callable[[], Any] | None], Scores]
"""Scores a model as it is now. Its argument is called after every batch, equally often on all
workers, unless it is None; what that raises ends the work."""


class Task(Protocol):
    """What is learned.

    Attributes:
        DATASET: the task of the datasets that it learns from, a key of `manifest.SEQUENCES`.
        FEATURES: the features of a row, see `packing.features`.
        SUMS: names of the sums that `sums` returns.
        DIVISOR: the sum that divides the loss and the gradients, such as "tokens".
        EXAMPLES: what the examples are called, such as "pairs".
        UNIT: the name of a unit of work, such as "target token"; `RATES` begins with it.
        RATES: metric -> sum: rates to report, per second. The first one counts units, whose cost
            `train_flops` says.
        BEST: metric -> whether higher is better, of all metrics that `train.best_metric` may name;
            the first one is the task's own choice.
        SCORES: the numbers among the metrics of a `Scorer`, which all workers learn.
        OUTPUTS: folder of the model directory that holds the outputs of evaluations.
        vocab_size: of what is predicted or read last, for reports.
    """

    DATASET: ClassVar[str]
    FEATURES: ClassVar[tuple[str, ...]]
    SUMS: ClassVar[tuple[str, ...]]
    DIVISOR: ClassVar[str]
    EXAMPLES: ClassVar[str]
    UNIT: ClassVar[str]
    RATES: ClassVar[Mapping[str, str]]
    BEST: ClassVar[Mapping[str, bool]]
    SCORES: ClassVar[tuple[str, ...]]
    OUTPUTS: ClassVar[str]
    vocab_size: int

    @classmethod
    def from_data(cls, config: Config, data: DataFacts) -> "Task":
        """Return the task for a configuration and a dataset.

        Raises:
            UsageError: the configuration does not fit the dataset.
        """
        ...

    def build_model(self) -> keras.Model:
        """Return a new model, built, with random weights.

        The engine calls it in the scope of its strategy, with Keras' dtype policy and seed set.
        TensorBoard draws attention if the layers are in stacks called `encoder` and `decoder`
        (`trainer.model.stack`), and embeddings if there is a `keras.layers.Embedding`.
        """
        ...

    def sums(
        self, model: keras.Model, batch: Batch, rng: tf.Tensor | None, *, training: bool
    ) -> dict[str, tf.Tensor]:
        """Run the model on a part of a batch.

        This is traced and perhaps compiled by XLA: static shapes, no Python side effects.

        Args:
            model: from `build_model`.
            batch: features, int32 [rows, length] each.
            rng: int32 [2], the seed of dropout; None for no dropout.
            training: whether "loss" is what training minimises, regularisation included.

        Returns:
            float32 scalars named as in `SUMS`. "loss" is the one whose gradient trains the model.
        """
        ...

    def metrics(self, sums: Mapping[str, float], split: SplitInfo) -> dict[str, float]:
        """Return the metrics for metrics.jsonl: quotients of the sums over many steps or batches.

        Args:
            sums: named as in `SUMS`. They may all be 0, where only damaged data was skipped.
            split: of the manifest, the one that they were counted on.
        """
        ...

    def progress(self, metrics: Mapping[str, float]) -> str:
        """Return the metrics of a report of training in a few words, for the console."""
        ...

    def summary(self, metrics: Mapping[str, float]) -> str:
        """Return the metrics of an evaluation in a few words, for the console."""
        ...

    def scorer(
        self,
        model: keras.Model,
        manifest: Manifest,
        split: str,
        tokenizers: Mapping[str, Tokenizer],
        *,
        quick: bool,
        strategy: tf.distribute.Strategy,
    ) -> Scorer:
        """Return a function that scores the model on a split and takes samples.

        All workers call it at the same point of the program, and may share the work.

        Args:
            model: from `build_model`; its weights may change between two calls of the scorer.
            manifest: of the dataset.
            split: "valid" or "test".
            tokenizers: sequence -> its tokenizer.
            quick: score as during training, on fewer examples or with a simpler search.
            strategy: of the workers.
        """
        ...

    def train_flops(self, split: SplitInfo, longest_row: int) -> float:
        """Return the mean FLOPs of training one unit of a split.

        Args:
            split: of the manifest.
            longest_row: longer sequences are left out.
        """
        ...

    def program_flops(self, rows: int, length: int, *, training: bool) -> float:
        """Return the FLOPs that the program of a step on full rows does, by its formula.

        Every token of a row is multiplied with every other one, masked or not.

        Args:
            rows: of the batch.
            length: tokens of a row, of each sequence.
            training: of a train step; if not, of an evaluation.
        """
        ...

    def decoding(self, model: keras.Model, rows: int, length: int) -> Decoding:
        """Return the program that makes something of `rows` rows of `length` tokens.

        It translates, writes or classifies, to the last position.
        """
        ...

    def usage(self, python: str, model_dir: str) -> str:
        """Return the line that tells the user how to try the trained model.

        Args:
            python: the interpreter, to begin a command with.
            model_dir: the model directory.
        """
        ...
