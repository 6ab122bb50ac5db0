"""Classification of texts by an encoder."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from common.errors import UsageError
from configs.schema import Config
from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import LABEL, read_raw_text
from data_pipeline.dataset.manifest import Manifest, SplitInfo
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.decoding.classifying import Confusion, TextClassifier, class_probabilities
from trainer.metrics import pictures
from trainer.model.encoder_classifier import EncoderClassifier
from trainer.tasks import flops, losses
from trainer.tasks.base import Batch, DataFacts, Decoding, Scorer, Scores, Task


class Classification(Task):
    """Which class a text is of; see `trainer.tasks.base.Task`.

    Args:
        config: `configs.schema.Config`.
        vocab_size: pieces of the vocabulary.
        labels: names of the classes.
        counts: label -> training texts; empty unless `train.class_weights` needs them.

    Raises:
        UsageError: there are not two classes to tell apart.
    """

    DATASET = "classification"
    FEATURES = packing.features(("text",), labelled=True)
    SUMS = ("loss", "nll", "correct", "weight", "examples", "tokens", "positions")
    DIVISOR = "weight"
    EXAMPLES = "texts"
    UNIT = "token"
    RATES: ClassVar = {"tokens_per_second": "tokens", "examples_per_second": "examples"}
    BEST: ClassVar = {"accuracy": True, "macro_f1": True, "loss": False, "nll": False}
    SCORES = ("macro_f1",)
    OUTPUTS = "predictions"

    def __init__(
        self,
        config: Config,
        vocab_size: int,
        labels: tuple[str, ...],
        counts: Mapping[str, int],
    ):
        if len(labels) < 2:
            raise UsageError(
                f"the dataset has only the class {', '.join(labels)}, and a classifier needs two; "
                "make one with data_pipeline.main --task=classification of text with more labels"
            )
        self.config, self.vocab_size, self.labels = config, vocab_size, labels
        self.class_weights = np.ones(len(labels), np.float32)
        if config.train.class_weights == "balanced":
            found = np.array([counts.get(label, 0) for label in labels], np.float64)
            weights = found.sum() / (len(labels) * np.maximum(found, 1))
            self.class_weights = weights.astype(np.float32)

    @classmethod
    def from_data(cls, config: Config, data: DataFacts) -> "Classification":
        return cls(config, data.vocab_sizes["text"], data.labels, data.label_counts)

    def build_model(self) -> EncoderClassifier:
        return EncoderClassifier(
            self.config.model,
            self.vocab_size,
            len(self.labels),
            remat=self.config.train.remat == "layers",
        )

    def sums(self, model, batch: Batch, rng, *, training: bool) -> dict[str, tf.Tensor]:
        """Run the model on a batch; see `Task.sums`.

        Returns:
            "loss", "nll" and "correct", in training weighted by the class; "weight", the sum of
            these weights; "examples"; "tokens"; and "positions", tokens and padding.
        """
        logits = model(batch["text"], batch["text_segments"], rng=rng)  # [B, L, C]
        is_first = tf.cast(batch["labels"] > 0, tf.float32)  # [B, L], 1 once a text
        classes = tf.maximum(batch["labels"] - 1, 0)  # [B, L]
        weights, smoothing = is_first, 0.0
        if training:
            weights = is_first * tf.gather(tf.constant(self.class_weights), classes)
            smoothing = self.config.train.label_smoothing
        result = losses.token_sums(logits, classes, weights, smoothing)
        tokens = tf.cast(batch["text_segments"] > 0, tf.float32)
        return {
            **{name: result[name] for name in ("loss", "nll", "correct")},
            "weight": result["tokens"],
            "examples": tf.reduce_sum(is_first),
            "tokens": tf.reduce_sum(tokens),
            "positions": tf.cast(tf.size(tokens), tf.float32),
        }

    def metrics(self, sums: Mapping[str, float], split: SplitInfo) -> dict[str, float]:
        """Return means over texts: "loss", "nll" (nats) and "accuracy"; and "fill_rate"."""
        del split
        weight = sums["weight"] or 1.0  # 0 where only damaged data was skipped
        return {
            "loss": sums["loss"] / weight,
            "nll": sums["nll"] / weight,
            "accuracy": sums["correct"] / weight,
            "fill_rate": sums["tokens"] / sums["positions"],
        }

    def progress(self, metrics: Mapping[str, float]) -> str:
        return self.summary(metrics)

    def summary(self, metrics: Mapping[str, float]) -> str:
        return f"loss {metrics['loss']:.4f}  accuracy {metrics['accuracy']:.4f}"

    def scorer(
        self,
        model,
        manifest: Manifest,
        split: str,
        tokenizers: Mapping[str, Tokenizer],
        *,
        quick: bool,
        strategy: tf.distribute.Strategy,
    ) -> Scorer:
        """Return a function that classifies the raw text of a split: F1 and a confusion matrix."""
        del quick, strategy
        raw = read_raw_text(manifest, split)
        texts, names = raw["text"], raw[LABEL]
        number = {label: index for index, label in enumerate(self.labels)}
        true = np.array([number[name] for name in names], np.int64)
        classifier = self.classifier(model, tokenizers)

        def score(between: Callable[[], Any] | None) -> Scores:
            probabilities, cut = classifier.probabilities(texts, between)
            predicted = probabilities.argmax(axis=1)
            found = Confusion.of(self.labels, true, predicted)
            guesses = [self.labels[index] for index in predicted]
            certain = probabilities.max(axis=1)
            return Scores(
                metrics={
                    "macro_f1": found.macro_f1,
                    "confusion_matrix": found.counts.tolist(),
                    "cut_texts": cut,
                },
                summary=f"macro-F1 {found.macro_f1:.4f}",
                details=f"on {len(texts):,} texts",
                outputs=guesses,
                samples=[
                    {"text": text, "label": name, "predicted": f"{guess} ({share:.2f})"}
                    for text, name, guess, share in zip(texts, names, guesses, certain, strict=True)
                ],
                table=found.table(),
                pictures={"confusion_matrix": pictures.draw_confusion(found.counts, self.labels)},
            )

        return score

    def classifier(self, model, tokenizers: Mapping[str, Tokenizer]) -> TextClassifier:
        """Return what classifies texts with a model."""
        length = self.config.data.longest_row
        return TextClassifier(model, tokenizers["text"], length)

    def train_flops(self, split: SplitInfo, longest_row: int) -> float:
        """Return the mean FLOPs of training a token."""
        tokens, pairs = flops.tokens_and_pairs(split.sequences["text"], longest_row, 1)
        forward = flops.classifier_flops(
            self.config.model, len(self.labels), tokens=tokens, pairs=pairs
        )
        return 3.0 * forward / tokens

    def program_flops(self, rows: int, length: int, *, training: bool) -> float:
        """Return the FLOPs of a step on full rows; see `Task.program_flops`."""
        forward = flops.classifier_flops(
            self.config.model,
            len(self.labels),
            tokens=float(rows * length),
            pairs=float(rows * length**2),
        )
        return (3.0 if training else 1.0) * forward

    def decoding(self, model, rows: int, length: int) -> Decoding:
        """Return the probabilities of `trainer.classify`."""

        def classify(text, segments):
            return class_probabilities(model, text, segments)

        return Decoding(classify, [(rows, length)] * 2, 1)

    def usage(self, python: str, model_dir: str) -> str:
        return (
            f"to classify:        echo 'Today is Monday.' | "
            f"{python} -m trainer.classify --model_dir={model_dir}"
        )
