"""Forced decoding: scores and aligns given translations instead of searching for one.

Axis letters: B batch, S source length, T target length, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline.dataset.tokenizer import EOS_ID
from trainer.decoding.options import MAX_SOURCE
from trainer.model.attention import recorded_weights

_BATCH_TOKENS = 4096  # target positions in a batch
_MULTIPLE = 16  # lengths are padded to multiples of it, so that few graphs are made


@dataclass(frozen=True)
class Forced:
    """What the model says about a given translation.

    Attributes:
        token_log_probabilities: float32 [tokens], natural logarithms, the end token's last.
        attention: float32 [tokens, source tokens], where each target token looks; both with their
            end tokens; each row sums to 1.
    """

    token_log_probabilities: np.ndarray
    attention: np.ndarray

    @property
    def log_probability(self) -> float:
        """Of the whole translation."""
        return float(np.sum(self.token_log_probabilities, dtype=np.float64))


def cross_attention(weights: Sequence[tf.Tensor], layers: int) -> tf.Tensor:
    """Return the attention to the source that aligns words best: of the last layer but one.

    Args:
        weights: of all attentions of a decoder, in the order in which they ran (and perhaps those
            of an encoder before): self-attention and cross-attention of each layer.
        layers: of the decoder.

    Returns:
        float32 [B, T, S], the mean over the heads (Garg et al. 2019, section 4).
    """
    return tf.reduce_mean(weights[-2 * layers :][1::2][max(0, layers - 2)], axis=1)


class ForcedDecoder:
    """Runs models over given translations.

    Args:
        models: `trainer.model.transformer.Transformer`; the probabilities of several are averaged.
    """

    def __init__(self, models: Sequence[Any]):
        self._models = list(models)
        signature = [tf.TensorSpec([None, None], tf.int32)] * 2
        self._function = tf.function(self.forward, input_signature=signature, autograph=False)

    def score(self, sources: Sequence[list[int]], targets: Sequence[list[int]]) -> list[Forced]:
        """Return what the model says about each pair, in order.

        Args:
            sources: token ids without special tokens; the tail of a very long one is cut.
            targets: token ids without special tokens.
        """
        sources = [ids[: MAX_SOURCE - 1] for ids in sources]
        longest = [max(len(s), len(t)) + 1 for s, t in zip(sources, targets, strict=True)]
        order = sorted(range(len(longest)), key=lambda number: longest[number])
        results: dict[int, Forced] = {}
        while order:
            width = longest[order[-1]] + -longest[order[-1]] % _MULTIPLE
            rows = max(1, _BATCH_TOKENS // width)
            chunk, order = order[-rows:], order[:-rows]
            source = self._pad([sources[number] for number in chunk], width)
            target = self._pad([targets[number] for number in chunk], width)
            log_p, attention = self._function(tf.constant(source), tf.constant(target))
            lengths = (target > 0).sum(axis=1), (source > 0).sum(axis=1)
            for number, row, looks, *size in zip(
                chunk, log_p.numpy(), attention.numpy(), *lengths, strict=True
            ):
                results[number] = Forced(row[: size[0]], looks[: size[0], : size[1]])
        return [results[number] for number in range(len(longest))]

    def _pad(self, sentences: Sequence[list[int]], width: int) -> np.ndarray:
        rows = np.zeros([len(sentences), width], np.int32)
        for row, ids in zip(rows, sentences, strict=True):
            row[: len(ids) + 1] = [*ids, EOS_ID]
        return rows

    def forward(self, source: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """int32 [B, S] and [B, T] to log probabilities [B, T] and attention [B, T, S]."""
        segments = [tf.cast(ids > 0, tf.int32) for ids in (source, target)]
        results, looks = [], []
        for model in self._models:
            with recorded_weights() as weights:
                logits = model(source, segments[0], target, segments[1])  # [B, T, V]
            log_p = tf.nn.log_softmax(tf.cast(logits, tf.float32))
            results.append(tf.gather(log_p, target, batch_dims=2))  # [B, T]
            looks.append(cross_attention(weights, len(model.decoder.layers)))
        log_p = tf.reduce_logsumexp(tf.stack(results), 0) - tf.math.log(float(len(results)))
        return log_p, tf.reduce_mean(tf.stack(looks), 0)
