"""What the trainer has to know about translation, and all it knows about it."""

import tensorflow as tf

from trainer import losses
from trainer.model.transformer import Transformer

FEATURES = ("source", "source_segments", "target", "target_segments")


class Translation:
    """Sequence-to-sequence translation of token ids.

    Args:
        config: `configs.schema.Config`.
        vocab_size: size of the joint vocabulary.
        bos_id: token that opens a target sentence.
    """

    SUMS = ("loss", "nll", "correct", "tokens", "source_tokens", "positions")

    def __init__(self, config, vocab_size: int, bos_id: int):
        self.config = config
        self.vocab_size = vocab_size
        self.bos_id = bos_id

    def build_model(self) -> Transformer:
        return Transformer(self.config.model, self.vocab_size, self.bos_id)

    def sums(self, model, batch: dict[str, tf.Tensor], rng, *, smoothed: bool) -> dict:
        """Runs the model on a batch.

        Args:
            model: what `build_model` gave.
            batch: `FEATURES`, int32 [B, L] each.
            rng: int32 [2], the dropout seed, or None.
            smoothed: whether "loss" has label smoothing.

        Returns:
            `SUMS`, float32 scalars: those of `losses.token_sums`, "source_tokens", and
            "positions", the target positions with padding.
        """
        logits = model(*(batch[name] for name in FEATURES), rng=rng)
        weights = tf.cast(batch["target_segments"] > 0, tf.float32)
        smoothing = self.config.train.label_smoothing if smoothed else 0.0
        result = losses.token_sums(logits, batch["target"], weights, smoothing)
        source = tf.cast(batch["source_segments"] > 0, tf.float32)
        result["source_tokens"] = tf.reduce_sum(source)
        result["positions"] = tf.cast(tf.size(weights), tf.float32)
        return result
