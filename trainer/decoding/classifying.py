"""Classifying texts: probabilities of every class, and what became of a split."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import Examples
from data_pipeline.dataset.tokenizer import EOS_ID, Tokenizer
from trainer.decoding.devices import decoding_device

_POSITIONS = 8192  # tokens that are classified at a time, at most
_MOST_COLUMNS = 12  # of classes in a table; more do not fit on a screen
_LONGEST_NAME = 14


def class_probabilities(model: Any, text: tf.Tensor, segments: tf.Tensor) -> tf.Tensor:
    """Return the probabilities of the classes, float32 [B, L, C], at each text's first token.

    Not by tf.nn.softmax: over two classes it crashes the compiler of TPU v5e (libtpu 0.0.42).

    Args:
        model: `trainer.model.encoder_classifier.EncoderClassifier`.
        text: int32 [B, L].
        segments: int32 [B, L].
    """
    return tf.exp(tf.nn.log_softmax(model(text, segments)))


class TextClassifier:
    """Classifies texts with one model, several in a row.

    Args:
        model: `trainer.model.encoder_classifier.EncoderClassifier`.
        tokenizer: of its vocabulary.
        row_length: tokens of a row; longer texts are cut.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, row_length: int):
        self._tokenizer, self._length = tokenizer, row_length
        self._device = decoding_device(model)
        shape = tf.TensorSpec([None, row_length], tf.int32)
        self._probabilities = tf.function(
            lambda text, segments: class_probabilities(model, text, segments),
            input_signature=[shape, shape],
            autograph=False,
        )

    def probabilities(
        self, texts: Sequence[str], between: Callable[[], Any] | None = None
    ) -> tuple[np.ndarray, int]:
        """Return the probabilities of the classes, and how many texts were cut.

        Args:
            texts: to classify.
            between: called after every batch; what it raises ends the work.

        Returns:
            float32 [texts, classes], and the number of texts that are longer than a row.
        """
        ids = self._tokenizer.encode(texts)
        # Their numbers travel in the place of labels, so that they are found again in the rows.
        examples = Examples.of_lists({"text": ids}, np.arange(len(ids)))
        rows = packing.pack(examples, self._length, EOS_ID, truncate=True)
        text, segments, labels = rows.arrays.values()  # [R, L] each
        found: list[np.ndarray] = []
        size = max(1, _POSITIONS // self._length)
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            with tf.device(self._device):
                result = self._probabilities(tf.constant(text[part]), tf.constant(segments[part]))
            found.append(result.numpy()[labels[part] > 0])  # [texts of the part, classes]
            if between:
                between()
        ordered = np.concatenate(found)[np.argsort(labels[labels > 0])]
        return ordered, sum(len(one) + 1 > self._length for one in ids)


@dataclass(frozen=True)
class Confusion:
    """How often each class was taken for which.

    Attributes:
        labels: names of the classes.
        counts: int64 [true class, predicted class].
    """

    labels: Sequence[str]
    counts: np.ndarray

    @classmethod
    def of(cls, labels: Sequence[str], true: np.ndarray, predicted: np.ndarray) -> "Confusion":
        """Count pairs of true and predicted classes, int [texts] each."""
        counts = np.zeros([len(labels), len(labels)], np.int64)
        np.add.at(counts, (true, predicted), 1)
        return cls(labels, counts)

    @property
    def precision(self) -> np.ndarray:
        """Of what is predicted, the share that is right, float64 [classes]; 0 for nothing."""
        return np.diag(self.counts) / np.maximum(1, self.counts.sum(axis=0))

    @property
    def recall(self) -> np.ndarray:
        """Of what there is, the share that is found, float64 [classes]; 0 for nothing."""
        return np.diag(self.counts) / np.maximum(1, self.counts.sum(axis=1))

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall, float64 [classes]; 0 where both are."""
        total = self.counts.sum(axis=0) + self.counts.sum(axis=1)
        return 2 * np.diag(self.counts) / np.maximum(1, total)

    @property
    def macro_f1(self) -> float:
        """The mean of `f1` over the classes that occur, true or predicted."""
        occurs = self.counts.sum(axis=0) + self.counts.sum(axis=1) > 0
        return float(self.f1[occurs].mean()) if occurs.any() else 0.0

    def table(self) -> str:
        """Return the counts, a line a true class, and precision, recall and F1 of each."""
        names = [name[:_LONGEST_NAME] for name in self.labels]
        columns: dict[str, list[str]] = {"true \\ predicted": names}
        if len(names) <= _MOST_COLUMNS:
            for name, column in zip(names, self.counts.T, strict=True):
                columns[name] = [f"{count:,}" for count in column]
        columns["texts"] = [f"{count:,}" for count in self.counts.sum(axis=1)]
        scores = {"precision": self.precision, "recall": self.recall, "F1": self.f1}
        for name, values in scores.items():
            columns[name] = [f"{value:.3f}" for value in values]
        widths = [max(map(len, (name, *cells))) for name, cells in columns.items()]
        lines = [list(columns), *zip(*columns.values(), strict=True)]
        return "\n".join(
            "  ".join(
                [cells[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
            )
            for cells in lines
        )
