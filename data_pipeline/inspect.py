"""Check a dataset directory and show what is in it.

    python -m data_pipeline.inspect DIR [--samples=5] [--noverify] [--pictures=DIR2]

It verifies every checksum and parses every record and packed row; damage ends it with exit code 2
and one line. With --noverify it is quick whatever the size: it compares the sizes of the files,
trusts the counts of dataset.json, and looks at the first records only.
"""

import os

# As in data_pipeline.main: nothing here computes, so TensorFlow has nothing to announce.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools
from collections.abc import Iterator

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from common.errors import UsageError, run_app
from data_pipeline import pictures
from data_pipeline.dataset.examples import (
    Examples,
    load_tokenizers,
    read_first_examples,
)
from data_pipeline.dataset.manifest import Manifest, RowsInfo, load_manifest
from data_pipeline.dataset.rows import find_blocks, read_block
from data_pipeline.dataset.tokenizer import Tokenizer
from data_pipeline.dataset.verify import check_sizes, verify_split
from data_pipeline.pictures import length_reached
from data_pipeline.progress import (
    drop_table,
    label_table,
    new_table,
    plain_console,
    split_table,
    unit_of,
    vocabulary_line,
)

_SAMPLES = flags.DEFINE_integer(
    "samples", 5, "How many examples of each split to show.", lower_bound=0
)
_VERIFY = flags.DEFINE_bool(
    "verify", True, "Check every checksum, record and packed row; off: the sizes of the files."
)
_PICTURES = flags.DEFINE_string(
    "pictures", "", "Directory for pictures of the lengths and the packing."
)

# Records of a split that are looked at without --verify.
_FIRST_EXAMPLES = 10_000
_BINS = 10
_SHARE_IN_CLOSED_BINS = 0.99
_BAR_WIDTH = 24
_PIECES_SHOWN = 8
# Gowda and May 2020 advise the largest vocabulary of which 95 % of the pieces are seen so often.
_RARE = 100
_ROWS_DRAWN = 16

Tokenizers = dict[str, Tokenizer]


def inspect(
    directory: str,
    samples: int,
    console: Console,
    verify: bool = True,
    picture_directory: str = "",
) -> None:
    """Check a dataset and print its statistics.

    Args:
        directory: the dataset directory.
        samples: how many examples of each split to show as text and pieces.
        console: where to print.
        verify: whether to check every checksum, record and packed row.
        picture_directory: gets pictures, if it is not empty.

    Raises:
        UsageError: not a dataset, or a damaged one; or a picture cannot be written.
    """
    manifest = load_manifest(directory)
    if verify:
        pairs = {split: verify_split(manifest, split) for split in manifest.splits}
        verdict = "every checksum and record is right"
    else:
        check_sizes(manifest)
        pairs = {s: read_first_examples(manifest, s, _FIRST_EXAMPLES) for s in manifest.splits}
        verdict = "the files have the right sizes (their content was not checked)"
    tokenizers = load_tokenizers(manifest)
    console.print(
        f"{directory}: {verdict}; {vocabulary_line(manifest)}, "
        f"fingerprint {manifest.fingerprint[:12]}",
        soft_wrap=True,
    )
    for table in _tables(manifest, pairs, tokenizers):
        console.print(table)
    for name, split in manifest.splits.items():
        for warning in split.warnings:
            console.print(f"WARNING: {warning}", style="bold yellow", soft_wrap=True)
        _print_samples(name, pairs[name], samples, manifest, tokenizers, console)
    if picture_directory:
        for path in pictures.draw(manifest, *_packing(manifest), picture_directory):
            console.print(f"drawn: {path}", soft_wrap=True)


def _tables(
    manifest: Manifest, pairs: dict[str, Examples], tokenizers: Tokenizers
) -> Iterator[Table]:
    yield split_table(manifest)
    yield drop_table(manifest)
    rows = manifest.splits["train"].rows
    if rows:
        yield rows_table(rows, unit_of(manifest))
    if manifest.labels:
        yield label_table(manifest)
    yield length_table(manifest, pairs, tokenizers)
    yield bar_table(manifest)
    yield vocabulary_table(manifest, pairs["train"], tokenizers)
    yield piece_table(manifest, pairs["train"], tokenizers)


def rows_table(info: RowsInfo, unit: str) -> Table:
    """Return the table of the packed rows."""
    table = new_table("packed rows of train")
    positions = max(1, info.rows * info.row_length)
    cells = (
        ("rows", f"{info.rows:,}"),
        ("tokens a row", str(info.row_length)),
        *((f"{name} full", f"{count / positions:.1%}") for name, count in info.tokens.items()),
        ("together", f"{info.fill_rate:.1%}"),
        (f"{unit} left out (longer than a row)", f"{info.left_out:,}"),
    )
    for column, _ in cells:
        table.add_column(column, justify="right")
    table.add_row(*(cell for _, cell in cells))
    return table


def length_table(manifest: Manifest, pairs: dict[str, Examples], tokenizers: Tokenizers) -> Table:
    """Return the table of sentence lengths and rare pieces, one row a split and side."""
    table = new_table("tokens an example, share of unknown and byte pieces")
    table.add_column("split")
    table.add_column("side")
    for column in ("mean", "p50", "p95", "max", "unknown", "bytes"):
        table.add_column(column, justify="right")
    byte_masks = {name: tokenizer.byte_mask() for name, tokenizer in tokenizers.items()}
    for split, info in manifest.splits.items():
        of_split = pairs[split]
        for name, side in info.sequences.items():
            tokens, is_byte = of_split.tokens[name], byte_masks[name]
            unknown = float(np.mean(tokens == manifest.unk_id)) if len(tokens) else 0.0
            in_bytes = float(np.mean(is_byte[tokens])) if len(tokens) else 0.0
            table.add_row(
                split,
                manifest.languages[name],
                f"{side.tokens / max(info.records, 1):.1f}",
                str(length_reached(side, 0.50)),
                str(length_reached(side, 0.95)),
                str(side.max_length),
                f"{unknown:.3%}",
                f"{in_bytes:.3%}",
            )
    return table


def bar_table(manifest: Manifest) -> Table:
    """Return the histogram of the sentence lengths of train, source and target side by side."""
    train = manifest.splits["train"]
    # The last bin is open, so that a few very long sentences do not squeeze the others.
    reach = max(length_reached(side, _SHARE_IN_CLOSED_BINS) for side in train.sequences.values())
    width = 1 + reach // (_BINS - 1)
    table = new_table("number of examples of train by length in tokens")
    table.add_column("tokens", justify="right")
    counts = np.zeros([_BINS, len(train.sequences)], np.int64)
    for column, (name, side) in enumerate(train.sequences.items()):
        table.add_column(manifest.languages[name], min_width=_BAR_WIDTH, no_wrap=True)
        table.add_column("", justify="right")
        for length, count in side.lengths:
            counts[min(length // width, _BINS - 1), column] += count
    for i, both in enumerate(counts):
        first = width * i
        closed = f"{first}-{first + width - 1}" if width > 1 else str(first)
        cells = [closed if i < _BINS - 1 else f"{first} or more"]
        for count in both:
            cells += [bar(count / max(1, counts.max()), _BAR_WIDTH), f"{count:,}"]
        table.add_row(*cells)
    return table


def bar(share: float, width: int) -> str:
    """Return a bar of block characters.

    Args:
        share: from 0 to 1.
        width: characters of a full bar. Whatever is not nothing gets an eighth of one at least.
    """
    eighths = max(round(share * width * 8), 1 if share > 0 else 0)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def vocabulary_table(manifest: Manifest, train: Examples, tokenizers: Tokenizers) -> Table:
    """Return the table of how much of each vocabulary the training text uses."""
    table = new_table(f"vocabulary in {_extent(manifest, train)}")
    table.add_column("side")
    for column in ("pieces", "used", f"used fewer than {_RARE} times"):
        table.add_column(column, justify="right")
    rows = _piece_counts(manifest, train, tokenizers)
    if manifest.joint_vocabulary and len(rows) > 1:
        rows.append(("both", rows[0][1] + rows[1][1], rows[0][2]))
    for side, counts, tokenizer in rows:
        # Bytes and specials are there for what training text does not have.
        counts = counts[_is_ordinary(manifest, tokenizer)]
        used, rare = int(np.sum(counts > 0)), int(np.sum((counts > 0) & (counts < _RARE)))
        table.add_row(
            side, f"{len(counts):,}", f"{used:,}", f"{rare:,} ({rare / max(used, 1):.0%})"
        )
    return table


def piece_table(manifest: Manifest, train: Examples, tokenizers: Tokenizers) -> Table:
    """Return the table of the most and the least frequent pieces of each side, with counts."""
    table = new_table(f"most and least frequent pieces of {_extent(manifest, train)}")
    columns = []
    for lang, counts, tokenizer in _piece_counts(manifest, train, tokenizers):
        order = np.argsort(-counts, kind="stable")
        used = order[(counts[order] > 0) & _is_ordinary(manifest, tokenizer)[order]]
        for title, ids in (
            (f"{lang} most", used[:_PIECES_SHOWN]),
            (f"{lang} least", used[::-1][:_PIECES_SHOWN]),
        ):
            table.add_column(title, no_wrap=True)
            table.add_column("", justify="right")
            columns += [tokenizer.pieces(ids), [f"{counts[i]:,}" for i in ids]]
    for cells in itertools.zip_longest(*columns, fillvalue=""):
        table.add_row(*cells)
    return table


def _piece_counts(
    manifest: Manifest, pairs: Examples, tokenizers: Tokenizers
) -> list[tuple[str, np.ndarray, Tokenizer]]:
    """Return (language, int64 [vocab_size] counts, tokenizer) of each side."""
    return [
        (
            manifest.languages[name],
            np.bincount(pairs.tokens[name], minlength=tokenizer.vocab_size),
            tokenizer,
        )
        for name, tokenizer in tokenizers.items()
    ]


def _is_ordinary(manifest: Manifest, tokenizer: Tokenizer) -> np.ndarray:
    """Return bool [vocab_size]: false for bytes and specials."""
    mask = ~tokenizer.byte_mask()
    mask[[manifest.pad_id, manifest.unk_id, manifest.bos_id, manifest.eos_id]] = False
    return mask


def _extent(manifest: Manifest, train: Examples) -> str:
    """Return how much of the training split something was counted in."""
    records = manifest.splits["train"].records
    return (
        "train"
        if len(train) == records
        else f"the first {len(train):,} {unit_of(manifest)} of train"
    )


def _print_samples(
    split: str,
    pairs: Examples,
    samples: int,
    manifest: Manifest,
    tokenizers: Tokenizers,
    console: Console,
) -> None:
    """Print evenly spaced examples as text and as pieces."""
    count = min(samples, len(pairs))
    if count < 1:
        return
    console.print(f"{split}:")
    for index in np.linspace(0, len(pairs) - 1, count, dtype=int):
        for name, ids in pairs.example(index).items():
            tokenizer = tokenizers[name]
            console.print(f"  {tokenizer.decode([ids])[0]}", soft_wrap=True)
            pieces = " ".join(tokenizer.pieces(ids)).replace("\n", "⏎")
            console.print(f"    {pieces}", style="dim", soft_wrap=True)
        if pairs.labels is not None:
            console.print(f"  = {manifest.labels[pairs.labels[index]]}", soft_wrap=True)
        console.print()


def _packing(manifest: Manifest) -> tuple[dict[str, np.ndarray] | None, str]:
    """Return the first packed rows, which are shuffled, and a title for their picture."""
    info = manifest.splits["train"].rows
    if not info or not info.rows:
        return None, ""
    first = read_block(find_blocks(manifest, info), 0, info)
    block = {name: rows[:_ROWS_DRAWN] for name, rows in first.items()}
    return block, (
        f"Packed rows: one colour for each example, padding is white "
        f"({min(info.rows, _ROWS_DRAWN)} of {info.rows:,} rows; overall {info.fill_rate:.1%} full)"
    )


def main(argv: list[str]) -> int:
    """Inspect the directory named on the command line; return the exit code."""
    if len(argv) != 2:
        raise UsageError("expected one dataset directory: python -m data_pipeline.inspect DIR")
    inspect(argv[1], _SAMPLES.value, plain_console(), _VERIFY.value, _PICTURES.value)
    return 0


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
