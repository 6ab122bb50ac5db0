"""Pictures of what a model does, as PNG images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from common.figures import new_figure, png
from trainer.metrics.attention_maps import AttentionMap
from trainer.model.encodings import sinusoidal_positions

_MOST_HEADS = 8  # drawn of each layer
_MOST_LAYERS = 6
_MOST_LABELS = 40  # named on an axis; more would make a picture that nobody can open
_MOST_NUMBERS = 30  # classes of a confusion matrix with numbers in its cells
_WEIGHTS = "Blues"  # white for 0
_SIGNED = "RdBu_r"


def draw_attention(found: AttentionMap, title: str) -> bytes:
    """Draw the attention weights of all layers and heads: a row a layer, a column a head.

    Args:
        found: what to draw; of many layers and heads only some are drawn, spread evenly.
        title: the line above the picture.

    Returns:
        A PNG image.
    """
    layers = _spread(found.weights.shape[0], _MOST_LAYERS)
    heads = _spread(found.weights.shape[1], _MOST_HEADS)
    queries, keys = len(found.queries), len(found.keys)
    # All panels are one image: Matplotlib takes seconds for dozens of axes.
    grid = np.full((len(layers) * (queries + 1) - 1, len(heads) * (keys + 1) - 1), np.nan)
    for row, layer in enumerate(layers):
        for column, head in enumerate(heads):
            top, left = row * (queries + 1), column * (keys + 1)
            grid[top : top + queries, left : left + keys] = found.weights[layer, head]
    margin, cell = 0.9, 0.115  # inches
    width, height = margin + 0.3 + cell * grid.shape[1], margin + 0.5 + cell * grid.shape[0]
    with new_figure(width, height, layout=None) as figure:
        place = (margin / width, margin / height, 1 - (margin + 0.3) / width)
        axis = figure.add_axes((*place, 1 - (margin + 0.5) / height))
        axis.imshow(grid, cmap=_WEIGHTS, vmin=0.0, vmax=1.0, aspect="auto")
        axis.spines[:].set_visible(False)
        axis.tick_params(length=0, labelsize=5, pad=1)
        axis.set_xticks(*_ticks(len(heads), found.keys), rotation=90)
        axis.set_yticks(*_ticks(len(layers), found.queries))
        for column, head in enumerate(heads):
            middle = column * (keys + 1) + keys / 2
            axis.text(middle, -1.2, f"head {head + 1}", ha="center", fontsize=7)
        for row, layer in enumerate(layers):
            middle = row * (queries + 1) + queries / 2
            text = f"layer {layer + 1}"
            axis.text(grid.shape[1] + 0.3, middle, text, va="center", rotation=270, fontsize=7)
        figure.suptitle(title, fontsize=9)
        return png(figure)


def _ticks(panels: int, pieces: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the places and the texts of the labels of some panels side by side."""
    places = [
        panel * (len(pieces) + 1) + position
        for panel in range(panels)
        for position in range(len(pieces))
    ]
    return places, list(pieces) * panels


def draw_one_head(found: AttentionMap, layer: int, head: int, title: str) -> bytes:
    """Draw the attention weights of one head, large; return a PNG image."""
    width, height = 0.33 * len(found.keys) + 1.6, 0.3 * len(found.queries) + 1.3
    with new_figure(max(3.0, width), max(2.4, height)) as figure:
        axis = figure.subplots()
        drawn = axis.imshow(found.weights[layer, head], cmap=_WEIGHTS, vmin=0.0, vmax=1.0)
        axis.tick_params(length=0, labelsize=9)
        axis.set_xticks(range(len(found.keys)), found.keys, rotation=90)
        axis.set_yticks(range(len(found.queries)), found.queries)
        axis.set_xlabel("looked at")
        axis.set_ylabel("looking")
        figure.colorbar(drawn, ax=axis, shrink=0.8)
        axis.set_title(title, fontsize=10)
        return png(figure)


def draw_positions(width: int, length: int) -> bytes:
    """Draw the sinusoidal encoding of positions, and how alike the positions are.

    Args:
        width: D of the model.
        length: positions to draw.

    Returns:
        A PNG image.
    """
    encoding = sinusoidal_positions(tf.range(length)[tf.newaxis], width)[0].numpy()  # [L, D]
    likeness = encoding @ encoding.T / (width / 2)  # [L, L], 1 on the diagonal
    with new_figure(10.0, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        drawn = left.imshow(encoding, cmap=_SIGNED, aspect="auto", vmin=-1, vmax=1)
        left.set_title("encoding of each position", fontsize=10)
        left.set_xlabel("dimension: sines, then cosines")
        left.set_ylabel("position")
        figure.colorbar(drawn, ax=left)
        drawn = right.imshow(likeness, cmap=_SIGNED, vmin=-1, vmax=1)
        right.set_title("dot product of two positions", fontsize=10)
        right.set_xlabel("position")
        figure.colorbar(drawn, ax=right)
        return png(figure)


def draw_schedule(schedules: dict[str, Any], steps: int) -> bytes:
    """Draw learning rates over the steps of a run.

    Args:
        schedules: label -> a function of the number of finished steps.
        steps: of the whole run.

    Returns:
        A PNG image.
    """
    at = np.unique(np.linspace(0, steps - 1, min(steps, 400), dtype=int))
    with new_figure(6.5, 2.8) as figure:
        axis = figure.subplots()
        for label, schedule in schedules.items():
            rates = np.asarray(schedule(tf.constant(at)))
            axis.plot(at + 1, np.broadcast_to(rates, at.shape), label=label)
        axis.set_xlabel("step")
        axis.set_ylabel("learning rate")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
        return png(figure)


def draw_confusion(counts: np.ndarray, labels: Sequence[str]) -> bytes:
    """Draw a confusion matrix, each row as shares of its true class.

    Args:
        counts: int [true class, predicted class].
        labels: names of the classes.

    Returns:
        A PNG image.
    """
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    named = _spread(len(labels), _MOST_LABELS)
    size = 0.45 * min(len(labels), _MOST_LABELS) + 2.0
    with new_figure(size + 0.6, size) as figure:
        axis = figure.subplots()
        drawn = axis.imshow(shares, cmap=_WEIGHTS, vmin=0.0, vmax=1.0)
        axis.set_xticks(named, [labels[index] for index in named], rotation=90)
        axis.set_yticks(named, [labels[index] for index in named])
        axis.set_xlabel("predicted")
        axis.set_ylabel("true")
        axis.tick_params(length=0, labelsize=8)
        if len(labels) <= _MOST_NUMBERS:
            for row, column in np.argwhere(counts):
                color = "white" if shares[row, column] > 0.5 else "black"
                text = f"{counts[row, column]:,}"
                axis.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
        figure.colorbar(drawn, ax=axis, shrink=0.8)
        return png(figure)


def _spread(count: int, most: int) -> Sequence[int]:
    """Return at most `most` of the numbers below `count`, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most), dtype=int)).tolist()
