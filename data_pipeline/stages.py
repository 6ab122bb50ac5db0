"""What the workers do: read, clean, merge, encode, assemble.

Every step is a task of `runner.Runner.map`. Text and records travel from step to step as files in
the work directory; a step's result is a small value for the driver: counts and file names.

    read       a source            -> raw chunks (only where several workers share the cleaning)
    clean      a chunk             -> a block of clean lines, sorted by shuffle key
    merge      a range of keys     -> a partition: its lines from all blocks, without duplicates
    encode     a partition         -> its records and packed rows
    assemble   a number of a shard -> the shard, with equal shares of all records and rows
"""

import os
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow.io import gfile

from common import files
from data_pipeline import progress, shuffle
from data_pipeline.cleaning.alignment import alignment_counts
from data_pipeline.cleaning.cleaner import FILTERS, Cleaned, Cleaner
from data_pipeline.cleaning.filters import CleaningRules
from data_pipeline.cleaning.folding import fold
from data_pipeline.sources.chunk import Chunk
from data_pipeline.sources.spec import Source

PAIRS_IN = "pairs_in"
# Dropping reasons of their own: what a source with a weight below 1 leaves out, and what is found
# where the whole corpus is known, and after tokenising.
WEIGHT = "weight"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near_duplicate"
TOO_MANY_TOKENS = "too_many_tokens"

RAW, BLOCKS, TEXT, REJECTED = "raw", "blocks", "text", "rejected"
HELD_OUT_FILE = "held_out.txt"

_FILTER_NAMES = tuple(FILTERS)
# A line of a block is: number of the source, copy, tab, source text, tab, target text.
_POSITION_DIGITS = 5


def rejected_lines(reasons: Sequence[str], pairs: Sequence[Sequence[str]]) -> bytes:
    """Returns lines of `--keep_rejected`: reason, source, target, with tabs as spaces."""
    return "".join(
        f"{reason}\t" + "\t".join(side.replace("\t", " ") for side in pair) + "\n"
        for reason, pair in zip(reasons, pairs, strict=True)
    ).encode()


def _fields(line: bytes) -> list[str]:
    """Returns copy, source and target of a line of a block."""
    return line[_POSITION_DIGITS:].decode().rstrip("\n").split("\t")


@dataclass(frozen=True)
class ReadTask:
    """A source -> raw chunks in files.

    Attributes:
        work_dir: gets the chunks.
    """

    work_dir: str

    def setup(self) -> None:
        """Nothing to load."""

    def run(self, item: tuple[int, Source, float]) -> list[str]:
        """Reads (position, source, weight); returns the names of the files."""
        position, source, _ = item
        names = []
        for number, chunk in enumerate(source.chunks()):
            names.append(f"{position:05d}-{number:06d}")
            path = os.path.join(self.work_dir, RAW, names[-1])
            files.write_bytes(path, pickle.dumps(chunk))
        return names


@dataclass
class CleanTask:
    """Chunks -> blocks of clean lines, counts, and evidence of bad alignment.

    Attributes:
        work_dir: has `HELD_OUT_FILE` and raw chunks, and gets the blocks.
        rules: the filters.
        seed: of the shuffle.
        keep_rejected: whether to write what is dropped.
    """

    work_dir: str
    rules: CleaningRules
    seed: int
    keep_rejected: bool

    def setup(self) -> None:
        """Builds the cleaner."""
        held_out = files.read_bytes(os.path.join(self.work_dir, HELD_OUT_FILE)).decode()
        self._cleaner = Cleaner(self.rules, frozenset(held_out.split("\n")) - {""})

    def run(self, item: tuple[int, Source | str, float]) -> dict[str, Any]:
        """Cleans (position, source or name of a raw chunk, weight)."""
        position, source, weight = item
        total: dict[str, Counter] = {"counts": Counter(), "changed": Counter(), "align": Counter()}
        blocks = []
        for name, chunk in self._chunks(position, source):
            for part, counts in self._clean(position, weight, name, chunk).items():
                total[part].update(counts)
            blocks.append(name)
        return {**total, "blocks": blocks}

    def _chunks(self, position: int, source: Source | str) -> Iterator[tuple[str, Chunk]]:
        if isinstance(source, str):
            path = os.path.join(self.work_dir, RAW, source)
            yield source, pickle.loads(files.read_bytes(path))
            gfile.remove(path)
            return
        for number, chunk in enumerate(source.chunks()):
            yield f"{position:05d}-{number:06d}", chunk

    def _clean(
        self, position: int, weight: float, name: str, chunk: Chunk
    ) -> dict[str, dict[str, int]]:
        raw = chunk.columns()
        cleaned = self._cleaner.clean(*raw)
        reasons = Counter(cleaned.reason[cleaned.reason >= 0].tolist())
        counts = Counter({_FILTER_NAMES[reason]: count for reason, count in reasons.items()})
        counts[PAIRS_IN] = len(raw[0])
        counts[WEIGHT] = self._write_block(position, weight, name, cleaned)
        if self.keep_rejected:
            dropped = np.flatnonzero(cleaned.reason >= 0)
            lines = rejected_lines(
                [_FILTER_NAMES[cleaned.reason[i]] for i in dropped],
                [(raw[0][i], raw[1][i]) for i in dropped],
            )
            files.write_bytes(os.path.join(self.work_dir, REJECTED, f"clean-{name}"), lines)
        progress.tick(len(raw[0]))
        return {"counts": counts, "changed": cleaned.changed, "align": alignment_counts(*raw)}

    def _write_block(self, position: int, weight: float, name: str, cleaned: Cleaned) -> int:
        """Writes the kept pairs, `weight` times; returns how many were left out for a low one."""
        kept = np.flatnonzero(cleaned.reason < 0).tolist()
        forms = [f"{cleaned.source_forms[i]}\t{cleaned.target_forms[i]}" for i in kept]
        pairs = [f"{cleaned.source[i]}\t{cleaned.target[i]}\n" for i in kept]
        keys, lines, left_out = [], [], 0
        for copy in range(int(np.ceil(weight))):
            of_copy = shuffle.make_keys(self.seed, copy, forms)
            here = [f"{position:0{_POSITION_DIGITS}d}{copy}\t{pair}".encode() for pair in pairs]
            if copy + 1 > weight:
                # The last digits of a key are as random as the first, which make the order.
                share = (of_copy & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2.0**32
                chosen = share < weight - copy
                of_copy, here = of_copy[chosen], [here[i] for i in np.flatnonzero(chosen)]
                left_out += (copy == 0) * (len(kept) - len(here))
            keys.append(of_copy)
            lines += here
        shuffle.write_block(os.path.join(self.work_dir, BLOCKS, name), np.concatenate(keys), lines)
        return left_out


@dataclass(frozen=True)
class MergeTask:
    """A range of keys -> the lines of a partition, in their final order, and counts.

    A line of a partition is: copy, source, target.

    Attributes:
        work_dir: has the blocks and gets the partitions.
        blocks: names of all blocks.
        partitions: how many ranges there are.
        filters: may hold `DUPLICATE` and `NEAR_DUPLICATE`.
        keep_rejected: whether to write what is dropped.
    """

    work_dir: str
    blocks: tuple[str, ...]
    partitions: int
    filters: tuple[str, ...]
    keep_rejected: bool

    def setup(self) -> None:
        """Nothing to load."""

    def run(self, partition: int) -> dict[str, Any]:
        """Merges one range."""
        keys, lines = self._read(partition)
        drop = self._duplicates(keys, lines)
        kept = np.flatnonzero([reason is None for reason in drop])
        keys = keys[kept]
        # Equal keys are left if duplicates are allowed: they must not stay neighbours.
        repeats = np.arange(len(keys)) - np.searchsorted(keys, keys)
        places = keys + repeats.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        order = np.argsort(places, kind="stable")
        text = b"".join([lines[i][_POSITION_DIGITS:] for i in kept[order]])
        files.write_bytes(os.path.join(self.work_dir, TEXT, f"{partition:06d}"), text)
        dropped = [(reason, _fields(lines[i])) for i, reason in enumerate(drop) if reason]
        # A second copy of a pair is no input pair: it is not counted.
        originals = [(reason, fields[1:]) for reason, fields in dropped if fields[0] == "0"]
        if self.keep_rejected:
            lines_out = rejected_lines([r for r, _ in originals], [pair for _, pair in originals])
            path = os.path.join(self.work_dir, REJECTED, f"merge-{partition:06d}")
            files.write_bytes(path, lines_out)
        progress.tick(len(lines))
        return {"counts": Counter(reason for reason, _ in originals)}

    def _read(self, partition: int) -> tuple[np.ndarray, list[bytes]]:
        ranges = [
            shuffle.read_range(
                os.path.join(self.work_dir, BLOCKS, name), partition, self.partitions
            )
            for name in self.blocks
        ]
        keys = np.concatenate([np.zeros(0, np.uint64), *(keys for keys, _ in ranges)])
        lines = [line for _, of_block in ranges for line in of_block]
        order = np.argsort(keys, kind="stable")
        return keys[order], [lines[i] for i in order]

    def _duplicates(self, keys: np.ndarray, lines: list[bytes]) -> list[str | None]:
        """Returns the reason for which each line is dropped; sorts lines with equal keys."""
        drop: list[str | None] = [None] * len(lines)
        equal = keys[1:] == keys[:-1]
        tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal)).tolist()
        # By the number of the source: what was named first stays.
        in_order = sorted((int(keys[i]), lines[i]) for i in tied)
        lines_of = [line for _, line in in_order]
        texts = [tuple(_fields(line)[1:]) for line in lines_of]
        sides = [fold(list(side)) for side in zip(*texts, strict=True)]
        forms = list(zip(*sides, strict=True))
        seen_texts: set[tuple[str, ...]] = set()
        # Form -> the text that had it first.
        first_texts: dict[tuple[str, ...], tuple[str, ...]] = {}
        for n, i in enumerate(tied):
            lines[i] = lines_of[n]
            if n and in_order[n][0] != in_order[n - 1][0]:
                seen_texts, first_texts = set(), {}
            first = first_texts.setdefault(forms[n], texts[n])
            if texts[n] in seen_texts and DUPLICATE in self.filters:
                drop[i] = DUPLICATE
            elif texts[n] != first and NEAR_DUPLICATE in self.filters:
                drop[i] = NEAR_DUPLICATE
            seen_texts.add(texts[n])
        return drop
