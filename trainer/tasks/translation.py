"""Translation of sentences by an encoder and a decoder."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import tensorflow as tf

from common.errors import UsageError
from configs.schema import Config
from data_pipeline.dataset import packing
from data_pipeline.dataset.manifest import Manifest, SplitInfo
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.decoding import scoring
from trainer.decoding.beam import BeamSearch
from trainer.decoding.options import search_options
from trainer.decoding.predictor import TranslationPredictor
from trainer.decoding.search import Decoder
from trainer.model.positions import positions_in_segments
from trainer.model.transformer import Transformer
from trainer.tasks import flops, losses
from trainer.tasks.base import Batch, DataFacts, Decoding, Scorer, Scores, Task
from trainer.tasks.chunks import chunked_sums
from trainer.tasks.tpu_losses import token_sums_and_gradients

FEATURES = packing.features(("source", "target"))


class Translation(Task):
    """Translation of one sequence of token ids into another; see `trainer.tasks.base.Task`.

    Args:
        config: `configs.schema.Config`.
        source_vocab_size: pieces of the source vocabulary.
        target_vocab_size: pieces of the target vocabulary.
        joint: whether both are one vocabulary.

    Raises:
        UsageError: the configuration shares embeddings that two vocabularies cannot share.
    """

    DATASET = "translation"
    FEATURES = FEATURES
    SUMS = (*losses.SUMS, "source_tokens", "positions")
    DIVISOR = "tokens"
    EXAMPLES = "pairs"
    UNIT = "target token"
    RATES: ClassVar = {
        "target_tokens_per_second": "tokens",
        "source_tokens_per_second": "source_tokens",
    }
    BEST: ClassVar = {
        "bleu": True,
        "chrf": True,
        "token_accuracy": True,
        "loss": False,
        "nll": False,
        "perplexity": False,
    }
    SCORES = ("bleu", "chrf")
    OUTPUTS = "translations"

    def __init__(
        self, config: Config, source_vocab_size: int, target_vocab_size: int, *, joint: bool
    ):
        if config.model.tied_embeddings == "all" and not joint:
            raise UsageError(
                "--config.model.tied_embeddings is 'all', but the dataset has two vocabularies, "
                "which cannot share one embedding; set it to 'target' or 'none', or make the "
                "dataset with data_pipeline.main --joint_vocabulary"
            )
        self.config = config
        self.source_vocab_size = source_vocab_size
        self.target_vocab_size = self.vocab_size = target_vocab_size
        self.joint = joint

    @classmethod
    def from_data(cls, config: Config, data: DataFacts) -> "Translation":
        sizes = data.vocab_sizes
        return cls(config, sizes["source"], sizes["target"], joint=data.joint_vocabulary)

    def build_model(self) -> Transformer:
        return Transformer(
            self.config.model,
            self.source_vocab_size,
            self.target_vocab_size,
            joint=self.joint,
            remat=self.config.train.remat == "layers",
        )

    def sums(self, model, batch: Batch, rng, *, training: bool) -> dict:
        """Run the model on a batch.

        Args:
            model: from `build_model`.
            batch: `FEATURES`, int32 [B, L] each.
            rng: int32 [2], the dropout seed, or None.
            training: whether "loss" is what training minimises: with label smoothing, and R-Drop
                or SimCut if the configuration asks for it.

        Returns:
            `SUMS`, float32 scalars: those of `losses.token_sums`, "source_tokens"
            and "positions", the target positions with padding.
        """
        weights = tf.cast(batch["target_segments"] > 0, tf.float32)  # [B, T]
        train = self.config.train
        smoothing = train.label_smoothing if training else 0.0
        function = functools.partial(losses.token_sums, label_smoothing=smoothing)
        at_once = functools.partial(token_sums_and_gradients, label_smoothing=smoothing)
        passes, kept = self._passes(training), (None, None)
        features = [tf.concat([batch[name]] * passes, axis=0) for name in FEATURES]  # [P B, L]
        if training and train.rdrop_alpha:
            function = functools.partial(
                losses.rdrop_sums, label_smoothing=smoothing, alpha=train.rdrop_alpha
            )
        elif training and train.simcut_alpha:
            function = functools.partial(
                losses.simcut_sums, label_smoothing=smoothing, alpha=train.simcut_alpha
            )
            kept = self._kept(batch, rng)
        result = chunked_sums(
            function,
            losses.SUMS,
            model.hidden(*features, rng=rng, kept=kept),  # [P B, T, D]
            model.projection,
            batch["target"],
            weights,
            passes=passes,
            training=training,
            chunk_tokens=self.config.train.loss_chunk_tokens,
            at_once=at_once if model.on_tpu else None,
        )
        source = tf.cast(batch["source_segments"] > 0, tf.float32)
        result["source_tokens"] = tf.reduce_sum(source)
        result["positions"] = tf.cast(tf.size(weights), tf.float32)
        return result

    def _passes(self, training: bool) -> int:
        train = self.config.train
        return 2 if training and (train.rdrop_alpha or train.simcut_alpha) else 1

    def _kept(self, batch: Batch, rng) -> tuple[tf.Tensor, tf.Tensor]:
        """Return which embeddings SimCut keeps, bool [2 B, S] and [2 B, T]: all in the first half.

        Which ones it cuts follows from `rng`, int32 [2], as dropout does. The token that opens a
        target sentence stays; that of padding does not matter.
        """
        kept = []
        for stream, side in enumerate(("source", "target")):
            segments = batch[f"{side}_segments"]
            seed = tf.random.experimental.stateless_fold_in(rng, -1 - stream, alg="philox")
            draws = tf.random.stateless_uniform(tf.shape(segments), seed, alg="philox")
            stays = draws >= self.config.train.simcut_rate
            if side == "target":
                stays |= positions_in_segments(segments) == 0
            kept.append(tf.concat([tf.ones_like(stays), stays], axis=0))
        return kept[0], kept[1]

    def metrics(self, sums: Mapping[str, float], split: SplitInfo) -> dict[str, float]:
        """Return the metrics per target token, see `losses.token_metrics`."""
        return losses.token_metrics(sums)

    def progress(self, metrics: Mapping[str, float]) -> str:
        return f"loss {metrics['loss']:.4f}  accuracy {metrics['token_accuracy']:.3f}"

    def summary(self, metrics: Mapping[str, float]) -> str:
        return (
            f"loss {metrics['loss']:.4f}  perplexity {metrics['perplexity']:.2f}  "
            f"accuracy {metrics['token_accuracy']:.3f}"
        )

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
        """Return a function that translates the raw text of a split and counts BLEU and chrF."""
        decode = self.config.decode
        beam_size = decode.validation_beam_size if quick else 0
        decoder = Decoder(model, search_options(decode, beam_size), strategy=strategy)
        limit = decode.validation_sentences if quick else 0
        source, target = tokenizers["source"], tokenizers["target"]

        def score(between: Callable[[], Any] | None) -> Scores:
            metrics, rows = scoring.score_split(
                manifest, split, (source, target), decoder, limit, between
            )
            return Scores(
                metrics=metrics,
                summary=f"BLEU {metrics['bleu']:.2f}  chrF {metrics['chrf']:.2f}",
                details=f"on {len(rows):,} sentences, {metrics['signature']}",
                outputs=[translation for _, _, translation in rows],
                samples=[
                    {"source": source, "reference": reference, "translation": translation}
                    for source, reference, translation in rows
                ],
            )

        return score

    def train_flops(self, split: SplitInfo, longest_row: int) -> float:
        """Return the mean FLOPs of training a target token; R-Drop and SimCut take two passes."""
        return self._passes(True) * flops.train_flops_of_split(
            self.config.model, self.target_vocab_size, split, longest_row
        )

    def program_flops(self, rows: int, length: int, *, training: bool) -> float:
        """Return the FLOPs of a step on full rows; see `Task.program_flops`."""
        tokens, pairs = float(rows * length), float(rows * length**2)
        forward = flops.translation_flops(
            self.config.model,
            self.vocab_size,
            source_tokens=tokens,
            target_tokens=tokens,
            source_pairs=pairs,
            target_pairs=pairs,
            cross_pairs=pairs,
        )
        return self._passes(training) * (3.0 if training else 1.0) * forward

    def decoding(self, model, rows: int, length: int) -> Decoding:
        """Return the search of `trainer.evaluate`."""
        options = search_options(self.config.decode)
        longest = options.longest(length)
        beam = BeamSearch(TranslationPredictor([model]), options)

        def search(source):
            return beam.run(source, tf.fill([rows], longest), longest)

        return Decoding(search, [(rows, length)], longest)

    def usage(self, python: str, model_dir: str) -> str:
        return (
            f"to translate:       echo 'Today is Monday.' | "
            f"{python} -m trainer.translate --model_dir={model_dir}"
        )
