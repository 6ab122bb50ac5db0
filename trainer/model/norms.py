"""Normalisation over the last axis, and the constants of DeepNorm."""

from dataclasses import dataclass

import keras

from configs.schema import ModelConfig


def normalization(kind: str, size: int, name: str) -> keras.layers.Layer:
    """Return a normalisation of the last axis, with its weights.

    It computes in float32 in every precision.

    Args:
        kind: "layer" (Ba et al. 2016, Layer Normalization) subtracts the mean and divides by the
            standard deviation; "rms" (Zhang and Sennrich 2019, Root Mean Square Layer
            Normalization, section 4) divides by the root mean square and has no bias.
        size: of the last axis.
        name: of the layer.
    """
    classes = {"layer": keras.layers.LayerNormalization, "rms": keras.layers.RMSNormalization}
    layer = classes[kind](epsilon=1e-6, name=name)
    layer.build([None, size])
    return layer


def final_norm(config: ModelConfig, name: str) -> keras.layers.Layer | None:
    """Return what follows the last layer of a stack: with pre-norm its output is a bare sum."""
    return normalization(config.norm_kind, config.width, name) if config.norm == "pre" else None


@dataclass(frozen=True)
class Scales:
    """What DeepNorm (Wang et al. 2022, DeepNet) multiplies by; 1 for the other norms.

    Attributes:
        shortcut: alpha, on the shortcut of every residual connection.
        gain: beta, on the initial weights of values, attention outputs and feed-forward layers.
    """

    shortcut: float = 1.0
    gain: float = 1.0


UNSCALED = Scales()


def stack_scales(
    config: ModelConfig, encoder_layers: int, decoder_layers: int
) -> tuple[Scales, Scales]:
    """Return what the encoder and the decoder of a model multiply by, whatever its norm is."""
    if config.norm == "deepnorm":
        return deepnorm_scales(encoder_layers, decoder_layers)
    return UNSCALED, UNSCALED


def deepnorm_scales(encoder_layers: int, decoder_layers: int) -> tuple[Scales, Scales]:
    """Return the constants of an encoder and of a decoder (figure 2 of the paper).

    Args:
        encoder_layers: N, 0 for a model without an encoder.
        decoder_layers: M, 0 for a model without a decoder.
    """
    n, m = encoder_layers, decoder_layers
    if n and m:
        encoder = Scales(0.81 * (n**4 * m) ** (1 / 16), 0.87 * (n**4 * m) ** (-1 / 16))
        return encoder, Scales((3 * m) ** 0.25, (12 * m) ** -0.25)
    alone = Scales((2 * (n + m)) ** 0.25, (8 * (n + m)) ** -0.25)
    return alone, alone
