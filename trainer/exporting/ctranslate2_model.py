"""A translation model as CTranslate2 reads it: a fast engine without TensorFlow.

The architecture has to be one that CTranslate2 can express: the paper's, pre- or post-norm, with
any of the activations.
"""

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.errors import UsageError
from configs.schema import ModelConfig
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.decoding.options import MAX_SOURCE
from trainer.model.encodings import sinusoidal_positions

QUANTIZATIONS = ("float32", "float16", "int8")
_POSITIONS = 2 * MAX_SOURCE
_EPSILON = 1e-6
_NEVER = ("<pad>", "<unk>", "<s>")


def check(config: ModelConfig) -> None:
    """Refuse a model that CTranslate2 cannot express.

    Raises:
        UsageError: with the fields that it cannot.
    """
    wanted = {
        "positions": ("sinusoidal",),
        "norm": ("post", "pre"),
        "norm_kind": ("layer",),
        "kv_heads": (0, config.heads),
        "qk_norm": (False,),
        "attention_window": (0,),
        "share_layers": (False,),
    }
    wrong = [
        f"model.{name}={getattr(config, name)}"
        for name, values in wanted.items()
        if getattr(config, name) not in values
    ]
    if wrong:
        raise UsageError(
            f"CTranslate2's Transformer has no {', '.join(wrong)}; export with --format=saved_model"
        )


def specification(model: Any, tokenizers: tuple[Tokenizer, Tokenizer]) -> Any:
    """Return the model as a `ctranslate2.specs.TransformerSpec`."""
    from ctranslate2.specs import TransformerSpec, common_spec

    config = model.config
    activations = {
        "relu": common_spec.Activation.RELU,
        "gelu": common_spec.Activation.GELU,
        "swiglu": common_spec.Activation.SWISH,
    }
    spec = TransformerSpec.from_config(
        (config.encoder_layers, config.decoder_layers),
        config.heads,
        pre_norm=config.norm == "pre",
        activation=activations[config.activation],
        ffn_glu=config.activation == "swiglu",
    )
    places = tf.range(_POSITIONS)[tf.newaxis]  # [1, L]
    positions = sinusoidal_positions(places, config.width)[0].numpy()  # [L, D]
    embeddings = (spec.encoder.embeddings[0], model.source_embedding)
    for target, layer in (embeddings, (spec.decoder.embeddings, model.target_embedding)):
        target.weight = _values(layer.embeddings)
    for side, layers, norm in (
        (spec.encoder, model.encoder.layers, model.encoder_norm),
        (spec.decoder, model.decoder.layers, model.decoder_norm),
    ):
        side.position_encodings.encodings = positions
        if norm is not None:
            _set_norm(side.layer_norm, norm)
        for target, layer in zip(side.layer, layers, strict=True):
            _set_layer(target, layer)
    kernel = model.softmax.kernel if model.softmax is not None else None
    spec.decoder.projection.weight = (
        _values(model.target_embedding.embeddings) if kernel is None else _values(kernel).T.copy()
    )
    for register, tokenizer in zip(
        (spec.register_source_vocabulary, spec.register_target_vocabulary), tokenizers, strict=True
    ):
        register(tokenizer.pieces(range(tokenizer.vocab_size)))
    spec.config.add_source_eos = True
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<s>", "</s>", "<unk>"
    spec.config.decoder_start_token = "<s>"
    spec.config.layer_norm_epsilon = _EPSILON
    return spec


def _values(variable: Any) -> np.ndarray:
    return np.asarray(variable, np.float32)


def _set_norm(target: Any, norm: Any) -> None:
    target.gamma, target.beta = _values(norm.gamma), _values(norm.beta)


def _set_linear(target: Any, *layers: Any) -> None:
    """Set one projection to those of the layers side by side; CTranslate2 stores [out, in]."""
    target.weight = np.concatenate([_values(layer.kernel).T for layer in layers])
    if layers[0].use_bias:
        target.bias = np.concatenate([_values(layer.bias) for layer in layers])


def _set_layer(target: Any, layer: Any) -> None:
    own = layer.attention
    _set_linear(target.self_attention.linear[0], own.query, own.key, own.value)
    _set_linear(target.self_attention.linear[1], own.output_projection)
    _set_norm(target.self_attention.layer_norm, layer.around_attention.norm)
    if layer.reads_memory:
        cross = layer.cross_attention
        _set_linear(target.attention.linear[0], cross.query)
        _set_linear(target.attention.linear[1], cross.key, cross.value)
        _set_linear(target.attention.linear[2], cross.output_projection)
        _set_norm(target.attention.layer_norm, layer.around_cross.norm)
    _set_linear(target.ffn.linear_0, layer.feed_forward.inner)
    if layer.feed_forward.gated is not None:
        _set_linear(target.ffn.linear_0_noact, layer.feed_forward.gated)
    _set_linear(target.ffn.linear_1, layer.feed_forward.outer)
    _set_norm(target.ffn.layer_norm, layer.around_feed_forward.norm)


def save(
    model: Any, tokenizers: tuple[Tokenizer, Tokenizer], directory: str, quantization: str
) -> int:
    """Write a model for CTranslate2 and return the bytes of its weights.

    Args:
        model: a trained `trainer.model.transformer.Transformer`.
        tokenizers: of the source and of the target.
        directory: to write; local.
        quantization: one of `QUANTIZATIONS`.
    """
    spec = specification(model, tokenizers)
    spec.validate()
    spec.optimize(quantization=quantization)
    os.makedirs(directory, exist_ok=True)
    spec.save(directory)
    return os.path.getsize(os.path.join(directory, "model.bin"))


class Engine:
    """Translates with an exported model, as `trainer.decoding` would.

    Args:
        directory: written by `save`.
        tokenizers: of the source and of the target.
        threads: of the CPU.
    """

    def __init__(self, directory: str, tokenizers: tuple[Tokenizer, Tokenizer], threads: int = 0):
        import ctranslate2

        target = tokenizers[1]
        pieces = target.pieces(range(target.vocab_size))
        self._ids = {piece: number for number, piece in enumerate(pieces)}
        self._translator = ctranslate2.Translator(directory, device="cpu", intra_threads=threads)
        self._source, self._target = tokenizers

    def translate(
        self, lines: Sequence[str], beam_size: int, length_penalty: float, most: int
    ) -> tuple[list[str], float]:
        """Return a translation of each line, and the seconds it took.

        Args:
            lines: the text.
            beam_size: 1 for greedy search.
            length_penalty: scores are divided by length ** this.
            most: tokens of a translation, at most.
        """
        pieces = [self._source.pieces(ids) for ids in self._source.encode(lines)]
        began = time.monotonic()
        most = min(most, MAX_SOURCE)
        results = self._translator.translate_batch(
            pieces,
            beam_size=beam_size,
            length_penalty=length_penalty,
            max_decoding_length=most,
            max_batch_size=64,
            suppress_sequences=[[piece] for piece in _NEVER],
        )
        seconds = time.monotonic() - began
        ids = [[self._ids[piece] for piece in result.hypotheses[0]] for result in results]
        texts = self._target.decode(ids)
        lines = [" ".join(text.split()) for text in texts]
        return [one if line else "" for line, one in zip(pieces, lines, strict=True)], seconds
