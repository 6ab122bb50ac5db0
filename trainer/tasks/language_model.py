"""Prediction of the next token of running text, by a decoder alone."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from configs.schema import Config
from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import read_examples
from data_pipeline.dataset.manifest import Manifest, SplitInfo
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.decoding.generation import TextGenerator
from trainer.decoding.options import SamplingOptions
from trainer.model.decoder_only import DecoderOnly
from trainer.tasks import flops, losses
from trainer.tasks.base import Batch, DataFacts, Decoding, Scorer, Scores, Task
from trainer.tasks.chunks import chunked_sums
from trainer.tasks.tpu_losses import token_sums_and_gradients

_SAMPLES = 8  # pieces of documents that are continued from their start
_PROMPT = 16  # tokens of each that are given
_LENGTH = 160  # tokens that are written
_TEMPERATURE = 0.8


class LanguageModel(Task):
    """Prediction of each token from those before it; see `trainer.tasks.base.Task`.

    A row holds pieces of documents. Attention stays inside each, or with
    `data.attend_across_documents` goes over all that is before a token in the row.

    Args:
        config: `configs.schema.Config`.
        vocab_size: pieces of the vocabulary.
    """

    DATASET = "language_model"
    FEATURES = packing.features(("text",))
    SUMS = ("loss", "nll", "correct", "tokens", "positions")
    DIVISOR = "tokens"
    EXAMPLES = "documents"
    UNIT = "target token"
    RATES: ClassVar = {"target_tokens_per_second": "tokens"}
    BEST: ClassVar = {
        "bits_per_byte": False,
        "bits_per_character": False,
        "token_accuracy": True,
        "loss": False,
        "nll": False,
        "perplexity": False,
    }
    SCORES = ()
    OUTPUTS = "samples"

    def __init__(self, config: Config, vocab_size: int):
        self.config, self.vocab_size = config, vocab_size

    @classmethod
    def from_data(cls, config: Config, data: DataFacts) -> "LanguageModel":
        return cls(config, data.vocab_sizes["text"])

    def build_model(self) -> DecoderOnly:
        return DecoderOnly(
            self.config.model, self.vocab_size, remat=self.config.train.remat == "layers"
        )

    def sums(self, model, batch: Batch, rng, *, training: bool) -> dict[str, tf.Tensor]:
        """Run the model on a batch; see `Task.sums`.

        Returns:
            those of `losses.token_sums`, and "positions", all of them with padding.
        """
        text, segments = batch["text"], batch["text_segments"]  # [B, L]
        if self.config.data.attend_across_documents:
            segments = tf.cast(segments > 0, tf.int32)
        weights = tf.cast(segments > 0, tf.float32)
        smoothing = self.config.train.label_smoothing if training else 0.0
        at_once = functools.partial(token_sums_and_gradients, label_smoothing=smoothing)
        result = chunked_sums(
            functools.partial(losses.token_sums, label_smoothing=smoothing),
            losses.SUMS,
            model.hidden(text, segments, rng=rng),
            model.projection,
            text,
            weights,
            training=training,
            chunk_tokens=self.config.train.loss_chunk_tokens,
            at_once=at_once if model.on_tpu else None,
        )
        result["positions"] = tf.cast(tf.size(weights), tf.float32)
        return result

    def metrics(self, sums: Mapping[str, float], split: SplitInfo) -> dict[str, float]:
        """Return the metrics per token, see `losses.token_metrics`, and bits of information.

        "bits_per_byte" and "bits_per_character" spread what all tokens of the split cost, ends of
        documents included, over the bytes and characters of its text. So they are comparable
        whatever the vocabulary. For a part of a split they are estimates, by its tokens.
        """
        result = losses.token_metrics(sums)
        bits = split.sequences["text"].tokens * result["nll"] / math.log(2)
        result["bits_per_byte"] = bits / max(1, split.text_bytes)
        result["bits_per_character"] = bits / max(1, split.characters)
        return result

    def progress(self, metrics: Mapping[str, float]) -> str:
        return f"loss {metrics['loss']:.4f}  accuracy {metrics['token_accuracy']:.3f}"

    def summary(self, metrics: Mapping[str, float]) -> str:
        return (
            f"loss {metrics['loss']:.4f}  perplexity {metrics['perplexity']:.2f}  "
            f"bits per byte {metrics['bits_per_byte']:.3f}"
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
        """Return a function that goes on from the first tokens of some pieces of a split."""
        del quick, strategy
        tokenizer, room = tokenizers["text"], self.config.data.longest_row
        count = min(_PROMPT, room // 2)
        pieces = read_examples(manifest, split)
        (lengths,) = pieces.lengths()
        long_enough = np.flatnonzero(lengths > count)
        chosen = long_enough[:: max(1, len(long_enough) // _SAMPLES)][:_SAMPLES]
        begins = [pieces.example(index)["text"][:count] for index in chosen]
        prompts = np.stack(begins) if begins else np.zeros([1, 0], np.int32)  # [samples, tokens]
        generator = TextGenerator(model, SamplingOptions(temperature=_TEMPERATURE), room)

        def score(between: Callable[[], Any] | None) -> Scores:
            found = generator.generate(prompts, min(_LENGTH, room - prompts.shape[1]))
            if between:
                between()
            written = tokenizer.decode([row[row > 0] for row in found])
            samples = [
                {"prompt": prompt, "continuation": text}
                for prompt, text in zip(tokenizer.decode(prompts.tolist()), written, strict=True)
            ]
            whole = np.concatenate([prompts, found], axis=1)  # a character may have begun in one
            lines = tokenizer.decode([row[row > 0] for row in whole])
            lines = [line.replace("\n", "\\n") for line in lines]
            return Scores(metrics={}, summary="", details="", outputs=lines, samples=samples)

        return score

    def train_flops(self, split: SplitInfo, longest_row: int) -> float:
        """Return the mean FLOPs of training a token."""
        tokens, pairs = flops.tokens_and_pairs(split.sequences["text"], longest_row, 0)
        if self.config.data.attend_across_documents:
            pairs = tokens * longest_row
        forward = flops.language_model_flops(
            self.config.model, self.vocab_size, tokens=tokens, pairs=pairs
        )
        return 3.0 * forward / tokens

    def program_flops(self, rows: int, length: int, *, training: bool) -> float:
        """Return the FLOPs of a step on full rows; see `Task.program_flops`."""
        forward = flops.language_model_flops(
            self.config.model,
            self.vocab_size,
            tokens=float(rows * length),
            pairs=float(rows * length**2),
        )
        return (3.0 if training else 1.0) * forward

    def decoding(self, model, rows: int, length: int) -> Decoding:
        """Return the sampling of `trainer.generate`, of whole rows."""
        generator = TextGenerator(model, SamplingOptions(), length)

        def write(written):  # of one argument: a program has no optional ones
            return generator.fill(written)

        return Decoding(write, [(rows, length)], length)

    def usage(self, python: str, model_dir: str) -> str:
        return f"to write more:      {python} -m trainer.generate --model_dir={model_dir}"
