"""Pictures of a dataset, drawn with Matplotlib."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from common import files
from common.figures import new_figure, png
from data_pipeline.dataset.manifest import Manifest, SequenceInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LENGTHS_FILE = "lengths.png"
PACKING_FILE = "packing.png"

# Paul Tol's "light" scheme, made to be told apart by the colour-blind too, under black text.
_COLOURS = (
    "#77AADD",
    "#EE8866",
    "#EEDD88",
    "#44BB99",
    "#FFAABB",
    "#BBCC33",
    "#99DDFF",
    "#AAAA00",
)
_PADDING = "#FFFFFF"
_LINES = ("#4477AA", "#CC6677")  # of his "bright" and "muted" schemes
_LARGEST_SHARE_SHOWN = 0.999  # of the sentences: one very long one must not squeeze the others
# A sentence gets its number if it is at least this part of the row wide.
_ROOM_FOR_NUMBER = 0.05


def draw_lengths(manifest: Manifest, directory: str) -> str:
    """Draw the histogram of sentence lengths of each split.

    Args:
        manifest: of the dataset.
        directory: gets the picture; local or remote.

    Returns:
        The path of the picture.
    """
    with new_figure(width=8.0, height=1.0 + 1.9 * len(manifest.splits)) as figure:
        axes = figure.subplots(len(manifest.splits), 1, squeeze=False, sharex=True)[:, 0]
        limit = 1
        for axis, (split, info) in zip(axes, manifest.splits.items(), strict=True):
            for (name, side), colour in zip(info.sequences.items(), _LINES, strict=False):
                edges, heights = _histogram(side, info.records)
                mean = side.tokens / max(1, info.records)
                label = f"{manifest.languages[name]}: mean {mean:.1f}, longest {side.max_length}"
                axis.stairs(heights, edges, color=colour, alpha=0.25, fill=True)
                axis.stairs(heights, edges, color=colour, linewidth=1.5, label=label)
                limit = max(limit, length_reached(side, _LARGEST_SHARE_SHOWN))
            axis.set_title(f"{split}: {info.records:,} records", loc="left", fontsize=11)
            axis.set_ylabel("% of sentences")
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(frameon=False)
        figure.align_ylabels(axes)
        axes[-1].set_xlim(0, limit + 1)
        axes[-1].set_xlabel("tokens a sentence, without specials")
        return _save(figure, os.path.join(directory, LENGTHS_FILE))


def draw_packing(
    block: dict[str, np.ndarray], languages: Mapping[str, str], title: str, directory: str
) -> str:
    """Draw packed rows, sequences side by side: one colour for each example, padding white.

    Args:
        block: feature -> int32 [rows, row_length], the rows to draw.
        languages: sequence -> its language.
        title: the line above the picture.
        directory: gets the picture; local or remote.

    Returns:
        The path of the picture.
    """
    rows = len(next(iter(block.values())))
    with new_figure(width=11.0, height=1.5 + 0.27 * rows) as figure:
        axes = figure.subplots(1, len(languages), sharey=True, squeeze=False)[0]
        for axis, (name, lang) in zip(axes, languages.items(), strict=True):
            _draw_side(axis, block[f"{name}_segments"])
            axis.set_title(f"{name} ({lang})", loc="left", fontsize=11)
            axis.set_xlabel("position in the row, in tokens")
        axes[0].set_ylabel("row")
        figure.suptitle(title, fontsize=12)
        return _save(figure, os.path.join(directory, PACKING_FILE))


def _draw_side(axis: "Axes", segments: np.ndarray) -> None:
    """Draw int32 [rows, row_length] segment ids."""
    from matplotlib.colors import to_rgb

    palette = np.array([to_rgb(colour) for colour in (_PADDING, *_COLOURS)])
    colours = np.where(segments > 0, 1 + (segments - 1) % len(_COLOURS), 0)
    rows, length = segments.shape
    axis.imshow(
        palette[colours], extent=(0, length, rows, 0), aspect="auto", interpolation="nearest"
    )
    for row in range(rows):
        axis.axhline(row, color="white", linewidth=2.5)
        for number in range(1, segments[row].max() + 1):
            places = np.flatnonzero(segments[row] == number)
            axis.vlines(places[0], row, row + 1, color="white", linewidth=0.8)
            if len(places) >= _ROOM_FOR_NUMBER * length:
                middle = (places[0] + places[-1] + 1) / 2
                axis.text(middle, row + 0.54, str(number), ha="center", va="center", fontsize=8)
    axis.set_yticks(np.arange(rows) + 0.5, [str(row + 1) for row in range(rows)])
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left", "bottom"]].set_edgecolor("#999999")


def _histogram(side: SequenceInfo, records: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the edges of the bins, one a length, and the share of each in percent."""
    heights = np.zeros(side.max_length + 1)
    for length, count in side.lengths:
        heights[length] = 100 * count / max(1, records)
    return np.arange(len(heights) + 1) - 0.5, heights


def length_reached(side: SequenceInfo, share: float) -> int:
    """Return the smallest length that at least `share` of the sentences do not exceed."""
    total = sum(count for _, count in side.lengths)
    seen = 0
    for length, count in side.lengths:
        seen += count
        if seen >= share * total:
            return length
    return 0


def _save(figure: "Figure", path: str) -> str:
    from tensorflow.io import gfile

    directory = os.path.dirname(path)
    with files.storage_errors(
        f"--pictures={directory} cannot be written", "name another directory"
    ):
        gfile.makedirs(directory or ".")
        files.write_bytes(path, png(figure))
    return path


def draw(
    manifest: Manifest, block: dict[str, np.ndarray] | None, title: str, directory: str
) -> Sequence[str]:
    """Draw all pictures of a dataset; returns their paths.

    Args:
        manifest: of the dataset.
        block: as `draw_packing` takes it, or None if the dataset has no packed rows.
        title: of the picture of packing.
        directory: gets the pictures.
    """
    paths = [draw_lengths(manifest, directory)]
    if block:
        paths.append(draw_packing(block, manifest.languages, title, directory))
    return paths
