"""Where a model looks: the attention weights of all layers on one example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import Examples
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.model.attention import recorded_weights
from trainer.tasks.base import Task


@dataclass(frozen=True)
class AttentionMap:
    """The attention weights of one kind, on one example.

    Attributes:
        kind: "encoder", "decoder" or "cross" attention.
        weights: float32 [layers, heads, query, key]; the last axis sums to 1.
        queries: the piece at each query position.
        keys: the piece at each key position.
    """

    kind: str
    weights: np.ndarray
    queries: Sequence[str]
    keys: Sequence[str]


def attention_maps(
    model: keras.Model,
    task: Task,
    example: Mapping[str, Sequence[int] | np.ndarray],
    tokenizers: Mapping[str, Tokenizer],
    *,
    closing_id: int | None,
    label: int | None = None,
) -> list[AttentionMap]:
    """Run a model on one example, without dropout, and return where it looks.

    Args:
        model: of the task.
        task: what the model learns.
        example: sequence -> its token ids, without the closing token.
        tokenizers: sequence -> its tokenizer, for the pieces.
        closing_id: as in `Manifest.closing_id`.
        label: of the example, for a task with labels.

    Returns:
        One map for each kind of attention that the model has; none for a model whose layers are
        not in the stacks `encoder` and `decoder`.
    """
    labels = None if label is None else [label]
    examples = Examples.of_lists({name: [ids] for name, ids in example.items()}, labels)
    lengths = {name: len(ids) + (closing_id is not None) for name, ids in example.items()}
    rows = packing.one_per_row(examples, (max(lengths.values()),), closing_id)[0]
    batch = {name: tf.constant(array) for name, array in rows.arrays.items()}
    with recorded_weights() as recorded:
        task.sums(model, batch, None, training=False)
    kinds = _kinds(model)
    if len(kinds) != len(recorded):
        return []
    pieces = {
        name: tokenizers[name].pieces(rows.arrays[name][0, : lengths[name]]) for name in example
    }
    first, *_, last = [*example, *example]
    shifted = ["<s>", *pieces[last][:-1]]  # what a decoder reads
    places = {
        "encoder": (pieces[first], pieces[first]),
        "decoder": (shifted, shifted),
        "cross": (shifted, pieces[first]),
    }
    maps = []
    for kind, (queries, keys) in places.items():
        found = [w for w, its_kind in zip(recorded, kinds, strict=True) if its_kind == kind]
        if found:
            weights = np.stack([w.numpy()[0, :, : len(queries), : len(keys)] for w in found])
            maps.append(AttentionMap(kind, weights, queries, keys))
    return maps


def _kinds(model: keras.Model) -> list[str]:
    """Return the kind of every attention of a model, in the order in which they run."""
    kinds = []
    for name in ("encoder", "decoder"):
        for layer in getattr(model, name).layers if hasattr(model, name) else ():
            kinds += [name, "cross"] if layer.reads_memory else [name]
    return kinds
