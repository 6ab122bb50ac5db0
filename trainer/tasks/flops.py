"""FLOPs of the models, by their mathematics. A multiply-add is two FLOPs."""

import numpy as np

from common.errors import UsageError
from configs.schema import ModelConfig
from data_pipeline.dataset.manifest import SequenceInfo, SplitInfo


def translation_flops(
    config: ModelConfig,
    vocab_size: int,
    *,
    source_tokens: float,
    target_tokens: float,
    source_pairs: float,
    target_pairs: float,
    cross_pairs: float,
) -> float:
    """Return the FLOPs of one forward pass of `trainer.model.transformer.Transformer`.

    The matrix products count: two FLOPs per token for each weight of the matrices that the
    token goes through (Kaplan et al. 2020, section 2.1), and 4 D for each (query, key) pair of a
    layer, D the width: 2 D for the logit over all heads, 2 D for the weighted value. The causal
    mask brings no discount. Embedding look-ups, biases, norms, softmax and dropout count nothing.

    Args:
        config: sizes of the model.
        vocab_size: V, of the target: rows of the softmax matrix, tied or not.
        source_tokens: tokens of the encoder, end-of-sentence tokens included.
        target_tokens: tokens of the decoder, likewise.
        source_pairs: (query, key) pairs of the encoder's self-attention, in one layer.
        target_pairs: pairs of the decoder's self-attention.
        cross_pairs: pairs of the decoder's attention to the encoder.
    """
    queries, keys, _ = _matrices(config)
    encoder_layer = layer_flops(config, source_tokens, source_pairs)
    decoder_layer = layer_flops(config, target_tokens, target_pairs)
    # Attention to the encoder's output: its keys and values are those of the source.
    decoder_layer += 2.0 * (queries * target_tokens + keys * source_tokens)
    decoder_layer += 4.0 * config.width * cross_pairs
    layers = config.encoder_layers * encoder_layer + config.decoder_layers * decoder_layer
    return layers + 2.0 * config.width * vocab_size * target_tokens


def language_model_flops(
    config: ModelConfig, vocab_size: int, *, tokens: float, pairs: float
) -> float:
    """Return the FLOPs of one forward pass of `trainer.model.decoder_only.DecoderOnly`.

    See `translation_flops`. `pairs` are the (query, key) pairs of one layer.
    """
    layers = config.decoder_layers * layer_flops(config, tokens, pairs)
    return layers + 2.0 * config.width * vocab_size * tokens


def classifier_flops(config: ModelConfig, classes: int, *, tokens: float, pairs: float) -> float:
    """Return the FLOPs of one forward pass of `trainer.model.encoder_classifier`.

    See `translation_flops`. The mean is a product too, of 2 D FLOPs a pair.
    """
    layers = config.encoder_layers * layer_flops(config, tokens, pairs)
    pooling = 2.0 * config.width * pairs if config.pooling == "mean" else 0.0
    return layers + pooling + 2.0 * config.width * classes * tokens


def layer_flops(config: ModelConfig, tokens: float, pairs: float) -> float:
    """Return the FLOPs of self-attention and feed-forward of one layer, forward."""
    return 2.0 * sum(_matrices(config)) * tokens + 4.0 * config.width * pairs


def _matrices(config: ModelConfig) -> tuple[int, int, int]:
    """Return the weights in one layer's matrices.

    Of queries and output, of keys and values, and of the feed-forward layer.
    """
    kv_width = config.width // config.heads * (config.kv_heads or config.heads)
    products = 3 if config.activation == "swiglu" else 2
    feed_forward = products * config.width * config.feed_forward
    return 2 * config.width**2, 2 * config.width * kv_width, feed_forward


def train_flops_of_split(
    config: ModelConfig, vocab_size: int, split: SplitInfo, longest_row: int | None = None
) -> float:
    """Return the mean FLOPs of training per target token, over all pairs of a split.

    Training takes three times the forward pass: the backward pass has two products for each of the
    forward pass, one for either factor. The optimizer counts nothing, nor does anything that is
    computed twice to save memory.

    A sentence includes its end-of-sentence token and attends to itself and its translation.
    Padding, and the other sentences of a packed row, are no useful work and count nothing.

    The manifest counts lengths, and not which source goes with which target. The longest is taken
    to go with the longest, and so on down. That is near the truth, as translations of long
    sentences are long, and matters only for the attention from one side to the other and for
    `longest_row`.

    Args:
        config: sizes of the model.
        vocab_size: V, of the target.
        split: of the manifest.
        longest_row: leaves out pairs of which a side is longer than that, its end-of-sentence
            token included, as the input does (`DataConfig.longest_row`); None to keep all.

    Raises:
        UsageError: there is no pair to count.
    """
    lengths, ends = [], []
    for side in split.sequences.values():
        histogram = np.array(side.lengths, np.int64).reshape(-1, 2)
        lengths.append(histogram[:, 0] + 1.0)
        ends.append(np.cumsum(histogram[:, 1]))  # sentences up to this length
    both = np.union1d(*ends)  # between two of these all sentences of a side are of one length
    source, target = (of[np.searchsorted(end, both)] for of, end in zip(lengths, ends, strict=True))
    count = np.diff(both, prepend=0)
    if longest_row is not None:
        kept = np.maximum(source, target) <= longest_row
        source, target, count = source[kept], target[kept], count[kept]
    if not len(target):
        raise UsageError(
            "the training split has no sentence pair that fits into a row; check the dataset, "
            "or raise data.row_length"
        )
    target_tokens = float(count @ target)
    flops = 3.0 * translation_flops(
        config,
        vocab_size,
        source_tokens=float(count @ source),
        target_tokens=target_tokens,
        source_pairs=float(count @ source**2),
        target_pairs=float(count @ target**2),
        cross_pairs=float(count @ (source * target)),
    )
    return flops / target_tokens


def tokens_and_pairs(
    info: SequenceInfo, longest_row: int, closing_tokens: int
) -> tuple[float, float]:
    """Return the tokens of a split, and the (query, key) pairs of their self-attention.

    Args:
        info: the lengths of the examples, each of which sees itself only.
        longest_row: leaves out what is longer, as the input does.
        closing_tokens: tokens that packing adds to every example.

    Raises:
        UsageError: there is nothing to count.
    """
    histogram = np.array(info.lengths, np.float64).reshape(-1, 2)
    lengths, counts = histogram[:, 0] + closing_tokens, histogram[:, 1]
    kept = (lengths <= longest_row) & (lengths > 0)
    if not kept.any():
        raise UsageError(
            "the training split has no text that fits into a row; check the dataset, or raise "
            "data.row_length"
        )
    lengths, counts = lengths[kept], counts[kept]
    return float(counts @ lengths), float(counts @ lengths**2)
