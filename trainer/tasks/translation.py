"""What the trainer has to know about translation, and all it knows about it."""

import tensorflow as tf

from common.errors import UsageError
from trainer.model.transformer import Transformer
from trainer.tasks import losses

FEATURES = ("source", "source_segments", "target", "target_segments")


class Translation:
    """Sequence-to-sequence translation of token ids.

    Args:
        config: `configs.schema.Config`.
        source_vocab_size: pieces of the source vocabulary.
        target_vocab_size: pieces of the target vocabulary.
        joint: whether both are one vocabulary.
        bos_id: token that opens a target sentence.

    Raises:
        UsageError: the configuration shares embeddings that two vocabularies cannot share.
    """

    SUMS = ("loss", "nll", "correct", "tokens", "source_tokens", "positions", "empty_rows")

    def __init__(
        self, config, source_vocab_size: int, target_vocab_size: int, *, joint: bool, bos_id: int
    ):
        if config.model.tied_embeddings == "all" and not joint:
            raise UsageError(
                "--config.model.tied_embeddings is 'all', but the dataset has two vocabularies, "
                "which cannot share one embedding; set it to 'target' or 'none', or make the "
                "dataset with data_pipeline.main --joint_vocabulary"
            )
        self.config = config
        self.source_vocab_size = source_vocab_size
        self.target_vocab_size = target_vocab_size
        self.joint = joint
        self.bos_id = bos_id

    def build_model(self) -> Transformer:
        return Transformer(
            self.config.model,
            self.source_vocab_size,
            self.target_vocab_size,
            joint=self.joint,
            bos_id=self.bos_id,
        )

    def sums(self, model, batch: dict[str, tf.Tensor], rng, *, training: bool) -> dict:
        """Runs the model on a batch.

        Args:
            model: what `build_model` gave.
            batch: `FEATURES`, int32 [B, L] each.
            rng: int32 [2], the dropout seed, or None.
            training: whether "loss" is what training minimises: with label smoothing, and with
                R-Drop if the configuration says so.

        Returns:
            `SUMS`, float32 scalars: those of `losses.token_sums`, "source_tokens",
            "positions", the target positions with padding, and "empty_rows", rows of padding only.
        """
        weights = tf.cast(batch["target_segments"] > 0, tf.float32)  # [B, T]
        train = self.config.train
        if training and train.rdrop_alpha:
            result = self._rdrop_sums(model, batch, weights, rng)
        else:
            logits = model(*(batch[name] for name in FEATURES), rng=rng)
            smoothing = train.label_smoothing if training else 0.0
            result = losses.token_sums(logits, batch["target"], weights, smoothing)
        source = tf.cast(batch["source_segments"] > 0, tf.float32)
        result["source_tokens"] = tf.reduce_sum(source)
        result["positions"] = tf.cast(tf.size(weights), tf.float32)
        result["empty_rows"] = tf.reduce_sum(1.0 - tf.reduce_max(weights, axis=1))
        return result

    def _rdrop_sums(self, model, batch, weights, rng) -> dict[str, tf.Tensor]:
        """Two passes with other dropout masks: the mean of their sums, and what parts them."""
        twice = {name: tf.concat([batch[name]] * 2, axis=0) for name in FEATURES}  # [2 B, L]
        logits = model(*(twice[name] for name in FEATURES), rng=rng)
        both = tf.concat([weights, weights], axis=0)
        train = self.config.train
        result = losses.token_sums(logits, twice["target"], both, train.label_smoothing)
        result = {key: 0.5 * value for key, value in result.items()}
        first, second = tf.split(logits, 2)  # [B, T, V] each
        divergence = losses.symmetric_divergence(first, second, weights)
        result["loss"] += 0.25 * train.rdrop_alpha * divergence
        return result
