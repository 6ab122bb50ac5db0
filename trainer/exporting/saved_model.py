"""Models as SavedModels: strings in and strings out, for TensorFlow's own loaders.

The tokenizer is inside (`trainer.exporting.graph_text`), and so is the search. A process that loads
the model needs TensorFlow and TensorFlow Text, and nothing of this project.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline.dataset.tokenizer import EOS_ID, PAD_ID
from trainer.checkpoints.model_dir import LoadedModel
from trainer.decoding.beam import BeamSearch
from trainer.decoding.classifying import class_probabilities
from trainer.decoding.forced import ForcedDecoder
from trainer.decoding.generation import TextGenerator
from trainer.decoding.options import MAX_SOURCE, SamplingOptions, SearchOptions, search_options
from trainer.decoding.predictor import TranslationPredictor
from trainer.decoding.scoring import Tokenizers
from trainer.exporting import warmup
from trainer.exporting.graph_text import GraphTokenizer, collapse_spaces

_TEXTS = tf.TensorSpec([None], tf.string, "text")
_COLDEST = 1e-6  # a temperature at which the likeliest token is certain


class TranslationModule(tf.Module):
    """A translation model, its tokenizers and the search.

    Args:
        model: a trained `trainer.model.transformer.Transformer`.
        tokenizers: of the source and of the target.
        options: how to search.
    """

    def __init__(self, model: Any, tokenizers: Tokenizers, options: SearchOptions):
        super().__init__()
        self.model = model
        self._source, self._target = (GraphTokenizer(one) for one in tokenizers)
        self._options = options
        self._search = BeamSearch(
            TranslationPredictor([model], watches=options.coverage_penalty > 0), options
        )
        self._forced = ForcedDecoder([model])

    def signatures(self) -> dict[str, Any]:
        """Return signature -> function."""
        return {"translate": self.translate, "score": self.score}

    def warmup_requests(self) -> dict[str, Mapping[str, Any]]:
        """Return signature -> the inputs of a request."""
        return {
            "translate": {"text": ["1 2 3"]},
            "score": {"text": ["1 2 3"], "translation": ["1 2 3"]},
        }

    @tf.function(input_signature=[_TEXTS], autograph=False)
    def translate(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Translate text.

        Args:
            text: string [B], a sentence each.

        Returns:
            "translation", string [B], "score", float32 [B], the normalised log probability, and
            "cut", bool [B], whether the longest length was reached.
        """
        source = self._source.encode_closed(text, MAX_SOURCE)  # [B, S]
        size = tf.reduce_sum(tf.cast(source > 0, tf.int32), axis=1)  # [B], with the end token
        limit = tf.cast(tf.cast(size, tf.float32) * self._options.max_length_ratio, tf.int32)
        limit = tf.maximum(1, limit + self._options.max_length_offset)
        source = tf.where(size[:, tf.newaxis] > 1, source, PAD_ID)  # no empty lines
        found = self._search.run(source, limit, tf.reduce_max(limit))
        best = found.tokens[:, 0]  # [B, T]
        kept = (best != EOS_ID) & (best != PAD_ID)
        # Single bytes are pieces too, so a model can spell a line feed.
        translation = collapse_spaces(self._target.decode(tf.ragged.boolean_mask(best, kept)))
        empty = size == 1
        return {
            "translation": tf.where(empty, "", translation),
            "score": tf.where(empty, 0.0, found.scores[:, 0]),
            "cut": ~empty & ~found.ended[:, 0],
        }

    @tf.function(
        input_signature=[_TEXTS, tf.TensorSpec([None], tf.string, "translation")],
        autograph=False,
    )
    def score(self, text: tf.Tensor, translation: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return "log_probability", float32 [B], of given translations, and "tokens", int32 [B]."""
        source = self._source.encode_closed(text, MAX_SOURCE)  # [B, S]
        target = self._target.encode_closed(translation, MAX_SOURCE)  # [B, T]
        log_p, _ = self._forced.forward(source, target)
        counts = target > 0
        return {
            "log_probability": tf.reduce_sum(tf.where(counts, log_p, 0.0), axis=1),
            "tokens": tf.reduce_sum(tf.cast(counts, tf.int32), axis=1),
        }


class LanguageModule(tf.Module):
    """A language model and its tokenizer.

    Args:
        model: a trained `trainer.model.decoder_only.DecoderOnly`.
        tokenizer: of its vocabulary.
        row_length: tokens that the model sees at most.
    """

    def __init__(self, model: Any, tokenizer: Any, row_length: int):
        super().__init__()
        self.model, self._room = model, row_length
        self._tokenizer = GraphTokenizer(tokenizer)
        self._generator = TextGenerator(model, SamplingOptions(), row_length)

    def signatures(self) -> dict[str, Any]:
        """Return signature -> function."""
        return {"generate": self.generate}

    def warmup_requests(self) -> dict[str, Mapping[str, Any]]:
        """Return signature -> the inputs of a request."""
        inputs = {
            "prompt": ["1 2 3"],
            "length": np.int32(8),
            "temperature": np.float32(1),
            "seed": np.int32(1),
        }
        return {"generate": inputs}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.string, "prompt"),
            tf.TensorSpec([], tf.int32, "length"),
            tf.TensorSpec([], tf.float32, "temperature"),
            tf.TensorSpec([], tf.int32, "seed"),
        ],
        autograph=False,
    )
    def generate(self, prompt, length, temperature, seed) -> dict[str, tf.Tensor]:
        """Continue texts to the end of the row that the model sees, at most.

        Args:
            prompt: string [B]; of one that does not fit into the row, the end is read.
            length: int32, tokens to write at most.
            temperature: float32, below 1 for likelier text, 0 for the likeliest token each time.
            seed: int32; another one writes another text.

        Returns:
            "text", string [B], the prompts with what follows, and "tokens", int32 [B], the number
            of tokens written.
        """
        ids = self._tokenizer.encode(prompt)  # [B, (P)]
        size = tf.cast(ids.row_lengths(), tf.int32)  # [B]
        # As `TextGenerator.stream` does, only the last half stays of what fills the row.
        first = tf.where(size >= self._room, size - self._room // 2, 0)
        kept = tf.ragged.range(size) >= first[:, tf.newaxis]
        size -= first
        written = tf.ragged.boolean_mask(ids, kept).to_tensor(shape=[None, self._room])  # [B, T]
        uniform = tf.random.stateless_uniform(tf.shape(written), [seed, 0])
        stop = tf.minimum(self._room, tf.reduce_max(size) + length)
        temperature = tf.maximum(temperature, _COLDEST)
        found = self._generator.fill(written, uniform, stop, temperature)
        place = tf.range(self._room)
        here = (found > 0) & (place < (size + length)[:, tf.newaxis])  # [B, T]
        # What the row had no room for stands before it.
        before = tf.ragged.boolean_mask(ids, ~kept)
        ids = tf.concat([before, tf.ragged.boolean_mask(found, here)], axis=1)
        tokens = tf.reduce_sum(tf.cast(here, tf.int32), axis=1) - size
        return {"text": self._tokenizer.decode(ids), "tokens": tokens}


class ClassifierModule(tf.Module):
    """A classifier, its tokenizer and its labels.

    Args:
        model: a trained `trainer.model.encoder_classifier.EncoderClassifier`.
        tokenizer: of its vocabulary.
        labels: names of the classes.
        row_length: tokens of the longest text; what is longer is cut.
    """

    def __init__(self, model: Any, tokenizer: Any, labels: Sequence[str], row_length: int):
        super().__init__()
        self.model, self._labels = model, list(labels)
        self._tokenizer = GraphTokenizer(tokenizer)
        self._longest = row_length

    def signatures(self) -> dict[str, Any]:
        """Return signature -> function."""
        return {"classify": self.classify}

    def warmup_requests(self) -> dict[str, Mapping[str, Any]]:
        """Return signature -> the inputs of a request."""
        return {"classify": {"text": ["1 2 3"]}}

    @tf.function(input_signature=[_TEXTS], autograph=False)
    def classify(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classify texts.

        Args:
            text: string [B].

        Returns:
            "label", string [B], the likeliest class; "classes", string [B, C], the names of all,
            and "probabilities", float32 [B, C].
        """
        ids = self._tokenizer.encode_closed(text, self._longest)  # [B, L]
        segments = tf.cast(ids > 0, tf.int32)
        probabilities = class_probabilities(self.model, ids, segments)[:, 0]  # [B, C]
        labels = tf.constant(self._labels)
        return {
            "label": tf.gather(labels, tf.argmax(probabilities, axis=1)),
            "classes": tf.broadcast_to(labels, tf.shape(probabilities)),
            "probabilities": probabilities,
        }


Module = TranslationModule | LanguageModule | ClassifierModule


def module_of(loaded: LoadedModel) -> Module:
    """Return what is saved of a trained model, whatever its task."""
    facts, tokenizers = loaded.facts, loaded.tokenizers
    row_length = facts.config.data.longest_row
    if facts.config.task == "translation":
        both = (tokenizers["source"], tokenizers["target"])
        return TranslationModule(loaded.model, both, search_options(facts.config.decode))
    if facts.config.task == "language_model":
        return LanguageModule(loaded.model, tokenizers["text"], row_length)
    return ClassifierModule(loaded.model, tokenizers["text"], facts.labels, row_length)


def save(module: Module, directory: str) -> None:
    """Write a SavedModel with warm-up requests; its first signature is the default too."""
    signatures = module.signatures()
    default = next(iter(signatures.values()))
    tf.saved_model.save(module, directory, signatures={"serving_default": default, **signatures})
    warmup.write(directory, module.warmup_requests())
