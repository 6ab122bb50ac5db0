"""Checks a dataset directory and shows what is in it.

    python -m data_pipeline.inspect DIR [--samples=5]

Verifies every checksum and parses every record; exit code 2 and one line if something is damaged.
"""

import os

# As in data_pipeline.main: nothing here computes, so TensorFlow has nothing to announce.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from data_pipeline.errors import UsageError, run_app
from data_pipeline.manifest import Manifest, SideInfo
from data_pipeline.progress import drop_table, new_table, split_table
from data_pipeline.records import (
    Pairs,
    Tokenizer,
    load_manifest,
    load_tokenizer,
    read_pairs,
    verify,
)

_SAMPLES = flags.DEFINE_integer("samples", 5, "How many pairs of each split to show.")


def inspect(directory: str, samples: int, console: Console) -> None:
    """Verifies a dataset and prints its statistics.

    Args:
        directory: the dataset directory.
        samples: how many pairs of each split to show as text and pieces.
        console: where to print.

    Raises:
        UsageError: not a dataset, or a damaged one.
    """
    manifest = load_manifest(directory)
    verify(manifest)
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    pairs = {split: read_pairs(manifest, split) for split in manifest.splits}
    console.print(
        f"{directory}: every checksum and record is right; vocabulary {manifest.vocab_size:,} "
        f"({manifest.model_type}), fingerprint {manifest.fingerprint[:12]}",
        soft_wrap=True,
    )
    console.print(split_table(manifest))
    console.print(drop_table(manifest))
    console.print(length_table(manifest, pairs, tokenizer))
    for split, of_split in pairs.items():
        _print_samples(split, of_split, samples, tokenizer, console)


def length_table(manifest: Manifest, pairs: dict[str, Pairs], tokenizer: Tokenizer) -> Table:
    """Returns the table of sentence lengths and rare pieces, one row a split and side."""
    table = new_table("tokens a sentence, and the share of unknown and byte pieces")
    table.add_column("split")
    table.add_column("side")
    for column in ("mean", "p50", "p95", "max", "unknown", "bytes"):
        table.add_column(column, justify="right")
    is_byte = tokenizer.byte_mask()
    for split, info in manifest.splits.items():
        of_split = pairs[split]
        for lang, side, tokens in (
            (manifest.source_lang, info.source, of_split.source_tokens),
            (manifest.target_lang, info.target, of_split.target_tokens),
        ):
            unknown = float(np.mean(tokens == manifest.unk_id)) if len(tokens) else 0.0
            in_bytes = float(np.mean(is_byte[tokens])) if len(tokens) else 0.0
            table.add_row(
                split,
                lang,
                f"{side.tokens / max(info.kept, 1):.1f}",
                str(percentile(side, 0.50)),
                str(percentile(side, 0.95)),
                str(side.max_length),
                f"{unknown:.3%}",
                f"{in_bytes:.3%}",
            )
    return table


def percentile(side: SideInfo, share: float) -> int:
    """Returns the smallest length that at least `share` of the sentences do not exceed."""
    total = sum(count for _, count in side.lengths)
    seen = 0
    for length, count in side.lengths:
        seen += count
        if seen >= share * total:
            return length
    return 0


def _print_samples(
    split: str, pairs: Pairs, samples: int, tokenizer: Tokenizer, console: Console
) -> None:
    """Prints evenly spaced pairs as text and as pieces."""
    count = min(samples, len(pairs))
    if count < 1:
        return
    console.print(f"{split}:")
    for index in np.linspace(0, len(pairs) - 1, count, dtype=int):
        for ids in pairs.pair(index):
            # The text may hold what rich takes for markup.
            console.print(f"  {tokenizer.decode([ids])[0]}", markup=False, soft_wrap=True)
            pieces = " ".join(tokenizer.pieces(ids))
            console.print(f"    {pieces}", markup=False, style="dim", soft_wrap=True)
        console.print()


def main(argv: list[str]) -> int:
    """Inspects the directory named on the command line; returns the exit code."""
    if len(argv) != 2:
        raise UsageError("expected one dataset directory: python -m data_pipeline.inspect DIR")
    inspect(argv[1], _SAMPLES.value, Console(highlight=False))
    return 0


if __name__ == "__main__":
    run_app(main)
