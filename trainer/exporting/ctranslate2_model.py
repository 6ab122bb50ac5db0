"""A translation model as CTranslate2 reads it: a fast engine without TensorFlow.

The architecture has to be one that CTranslate2 can express: the paper's, pre- or post-norm, with
any of the activations.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from common.errors import UsageError
from common.files import write_bytes, write_json
from configs.schema import ModelConfig
from trainer.decoding.options import SearchOptions
from trainer.decoding.scoring import Tokenizers
from trainer.exporting.ctranslate2_engine import FACTS_FILE, FORMAT, POSITIONS, SIDES
from trainer.model.encodings import sinusoidal_positions

QUANTIZATIONS = ("float32", "float16", "int8")
_EPSILON = 1e-6

# Fields of the configuration that change shapes, or nothing in a trained model.
_ANY_VALUE = {
    "width",
    "feed_forward",
    "heads",
    "attention_block",
    "encoder_layers",
    "decoder_layers",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "max_positions",
    "tied_embeddings",
    "pooling",
}
# Values of the others that `specification` expresses.
_ALLOWED = {"activation": ("relu", "gelu", "swiglu"), "norm": ("post", "pre")}


def check(config: ModelConfig) -> None:
    """Refuse a model that CTranslate2 cannot express.

    A field that this file does not know must have its default: so a new variant of the model is
    refused until somebody has thought about it.

    Raises:
        UsageError: with the fields that it cannot.
    """
    wrong = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        allowed: tuple = _ALLOWED.get(field.name, (field.default,))
        if field.name == "kv_heads":
            allowed = (0, config.heads)
        if field.name not in _ANY_VALUE and value not in allowed:
            wrong.append(f"model.{field.name}={value}")
    if wrong:
        raise UsageError(
            f"CTranslate2's Transformer has no {', '.join(wrong)}; export with --format=saved_model"
        )


def specification(model: Any, tokenizers: Tokenizers) -> Any:
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
        # The attention that is returned is of the layer that `forced.cross_attention` takes.
        alignment_layer=max(0, config.decoder_layers - 2),
        alignment_heads=config.heads,
    )
    places = tf.range(POSITIONS)[tf.newaxis]  # [1, L]
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
    model: Any,
    tokenizers: Tokenizers,
    directory: str,
    quantization: str,
    options: SearchOptions,
    facts: Mapping[str, Any],
) -> int:
    """Write a model with its tokenizers for CTranslate2; return the bytes of its weights.

    Args:
        model: a trained `trainer.model.transformer.Transformer`.
        tokenizers: of the source and of the target.
        directory: to write; local.
        quantization: one of `QUANTIZATIONS`.
        options: how the model searches, wherever it is loaded.
        facts: "languages" of the two sides, and whatever else is to be told.
    """
    spec = specification(model, tokenizers)
    spec.validate()
    spec.optimize(quantization=quantization)
    os.makedirs(directory, exist_ok=True)
    spec.save(directory)
    hashes = {}
    for side, tokenizer in zip(SIDES, tokenizers, strict=True):
        content = tokenizer.serialized()
        write_bytes(os.path.join(directory, f"{side}.model"), content)
        hashes[side] = hashlib.sha256(content).hexdigest()
    written = {"format": FORMAT, "decode": dataclasses.asdict(options), "tokenizers": hashes}
    write_json(os.path.join(directory, FACTS_FILE), {**facts, **written})
    return os.path.getsize(os.path.join(directory, "model.bin"))
