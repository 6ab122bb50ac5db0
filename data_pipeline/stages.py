"""What the workers do: read, clean, merge, encode.

Every stage is a task of `runners.local.Runner.map`. Text and records travel from stage to stage as
files in the work directory; a stage's result is a small value for the driver: counts and file
names.

    read       a source            -> raw chunks (only where several workers share the cleaning)
    clean      a chunk             -> a block of clean lines, sorted by shuffle key
    merge      a range of keys     -> a partition: its lines from all blocks, without duplicates
    encode     a partition         -> its records and packed rows

`assembly` makes the shards of that. A line is a pair of texts, a text and its label, or a document,
its fields separated by tabs.
"""

import dataclasses
import os
import pickle
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from common import files
from common.errors import UsageError
from data_pipeline import progress, shuffle
from data_pipeline.assembly import write_records
from data_pipeline.cleaning.alignment import alignment_counts
from data_pipeline.cleaning.cleaner import FILTERS, Cleaned, Cleaner
from data_pipeline.cleaning.filters import CleaningRules
from data_pipeline.cleaning.folding import fold
from data_pipeline.dataset import packing, rows
from data_pipeline.dataset.examples import Examples, write_examples
from data_pipeline.dataset.manifest import length_histogram
from data_pipeline.dataset.normalization import normalize_text
from data_pipeline.dataset.perturbation import perturb
from data_pipeline.encoder import Encoded, Encoder
from data_pipeline.sources.chunk import Chunk
from data_pipeline.sources.spec import Source

PAIRS_IN = "pairs_in"
# Bytes of clean text, which decide on the number of partitions.
BYTES = "bytes"
# Dropping reasons of their own: what a source with a weight below 1 leaves out, what is found where
# the whole corpus is known, and what is found after tokenising.
WEIGHT = "weight"
DUPLICATE = "duplicate"
NEAR_DUPLICATE = "near_duplicate"
TOO_MANY_TOKENS = "too_many_tokens"

RAW, BLOCKS, TEXT, REJECTED = "raw", "blocks", "text", "rejected"
PAIR_RECORDS, ROW_RECORDS = "records", "rows"
HELD_OUT_FILE = "held_out.txt"

_FILTER_NAMES = tuple(FILTERS)
# A line of a block is: number of the source, copy, tab, the fields.
_POSITION_DIGITS = 5
MOST_SOURCES = 10**_POSITION_DIGITS


def rejected_lines(reasons: Sequence[str], examples: Sequence[Sequence[str]]) -> bytes:
    """Return lines of `--keep_rejected`: the reason and the fields, with tabs as spaces."""
    return "".join(
        f"{reason}\t" + "\t".join(field.replace("\t", " ") for field in fields) + "\n"
        for reason, fields in zip(reasons, examples, strict=True)
    ).encode()


def check_labels(chunk: Chunk, labels: list[str]) -> list[str]:
    """Return the labels of a chunk, normalised; `UsageError` if one is empty."""
    labels = [normalize_text(label) for label in labels]
    if "" in labels:
        line = chunk.first_line + labels.index("")
        raise UsageError(
            f"{chunk.paths[-1]}, line {line}: has no label behind the tab; add it, or delete the "
            "line"
        )
    return labels


def _fields(line: bytes) -> list[str]:
    """Return the copy and the fields of a line of a block."""
    return line[_POSITION_DIGITS:].decode().rstrip("\n").split("\t")


@dataclass(frozen=True)
class ReadTask:
    """A source -> raw chunks in files.

    Attributes:
        work_dir: gets the chunks.
    """

    work_dir: str

    def setup(self) -> None:
        """Load nothing."""

    def run(self, item: tuple[int, Source, float]) -> list[str]:
        """Read (position, source, weight); return the names of the files."""
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
        labelled: whether the last column holds labels.
        seed: of the shuffle.
        keep_rejected: whether to write what is dropped.
    """

    work_dir: str
    rules: CleaningRules
    labelled: bool
    seed: int
    keep_rejected: bool

    def setup(self) -> None:
        """Build the cleaner."""
        held_out = files.read_bytes(os.path.join(self.work_dir, HELD_OUT_FILE)).decode()
        self._cleaner = Cleaner(self.rules, frozenset(held_out.split("\n")) - {""})

    def run(self, item: tuple[int, Source | str, float]) -> dict[str, Any]:
        """Clean (position, source or name of a raw chunk, weight)."""
        position, source, weight = item
        total: dict[str, Counter] = {
            part: Counter() for part in ("counts", "changed", "align", "labels")
        }
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
            return
        for number, chunk in enumerate(source.chunks()):
            yield f"{position:05d}-{number:06d}", chunk

    def _clean(
        self, position: int, weight: float, name: str, chunk: Chunk
    ) -> dict[str, dict[str, int]]:
        raw = chunk.columns()
        labels = check_labels(chunk, raw.pop()) if self.labelled else None
        cleaned = self._cleaner.clean(*raw)
        reasons = Counter(cleaned.reason[cleaned.reason >= 0].tolist())
        counts = Counter({_FILTER_NAMES[reason]: count for reason, count in reasons.items()})
        counts[PAIRS_IN] = len(raw[0])
        counts[WEIGHT], counts[BYTES] = self._write_block(position, weight, name, cleaned, labels)
        if self.keep_rejected:
            dropped = np.flatnonzero(cleaned.reason >= 0)
            columns = [*raw, labels] if labels else raw
            lines = rejected_lines(
                [_FILTER_NAMES[cleaned.reason[i]] for i in dropped],
                [[column[i] for column in columns] for i in dropped],
            )
            files.write_bytes(os.path.join(self.work_dir, REJECTED, f"clean-{name}"), lines)
        progress.tick(len(raw[0]))
        kept = np.flatnonzero(cleaned.reason < 0).tolist()
        return {
            "counts": counts,
            "changed": cleaned.changed,
            "align": alignment_counts(*raw) if len(raw) == 2 else {},
            "labels": Counter(labels[i] for i in kept) if labels else {},
        }

    def _write_block(
        self, position: int, weight: float, name: str, cleaned: Cleaned, labels: list[str] | None
    ) -> tuple[int, int]:
        """Write what is kept, `weight` times.

        Returns:
            How many examples were left out for a low weight, and the bytes written.
        """
        kept = np.flatnonzero(cleaned.reason < 0).tolist()
        columns = [*cleaned.texts, labels] if labels else cleaned.texts
        of_forms = [*cleaned.forms, labels] if labels else cleaned.forms
        forms = ["\t".join([column[i] for column in of_forms]) for i in kept]
        texts = ["\t".join([column[i] for column in columns]) for i in kept]
        keys, lines, left_out = [], [], 0
        for copy in range(int(np.ceil(weight))):
            of_copy = shuffle.make_keys(self.seed, copy, forms)
            start = f"{position:0{_POSITION_DIGITS}d}{copy}\t"
            here = [f"{start}{text}\n".encode() for text in texts]
            if copy + 1 > weight:
                # The last digits of a key are as random as the first, which make the order.
                share = (of_copy & np.uint64(0xFFFFFFFF)).astype(np.float64) / 2.0**32
                chosen = share < weight - copy
                of_copy, here = of_copy[chosen], [here[i] for i in np.flatnonzero(chosen)]
                if copy == 0:
                    left_out = len(kept) - len(here)
            keys.append(of_copy)
            lines += here
        shuffle.write_block(os.path.join(self.work_dir, BLOCKS, name), np.concatenate(keys), lines)
        return left_out, sum(map(len, lines))


@dataclass(frozen=True)
class MergeTask:
    """A range of keys -> the lines of a partition, in their final order, and counts.

    A line of a partition is: copy, tab, the fields.

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
        """Load nothing."""

    def run(self, partition: int) -> dict[str, Any]:
        """Merge one range."""
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
        # A second copy was not in the input, so it is not counted.
        originals = [(reason, fields[1:]) for reason, fields in dropped if fields[0] == "0"]
        if self.keep_rejected:
            lines_out = rejected_lines(
                [reason for reason, _ in originals], [fields for _, fields in originals]
            )
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
        """Return the reason for which each line is dropped; sort lines with equal keys."""
        drop: list[str | None] = [None] * len(lines)
        equal = keys[1:] == keys[:-1]
        tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal)).tolist()
        # By the number of the source: what was named first is kept.
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


@dataclass
class EncodeTask:
    """A partition of clean text -> its records, its packed rows, and counts.

    Attributes:
        work_dir: has the text and gets the records.
        encoder: of the task.
        max_tokens: pairs or texts with more tokens are dropped; documents are cut in any case.
        row_length: of the packed rows; 0 for none.
        token_dtype: of the packed rows.
        closing_id: as in `packing.pack`.
        segmentations: the rows hold each example so many times, in sampled segmentations; 1 for
            once, in the best one.
        sampling_alpha: exponent of the sampling; 0 draws all segmentations alike.
        augmentation: kind of perturbation -> share of the examples in the rows.
        seed: of the order of the rows, the sampling and the perturbations.
        keep_rejected: whether to write what is dropped.
    """

    work_dir: str
    encoder: Encoder
    max_tokens: int
    row_length: int
    token_dtype: str
    closing_id: int | None
    segmentations: int
    sampling_alpha: float
    augmentation: Mapping[str, float]
    seed: int
    keep_rejected: bool

    def setup(self) -> None:
        """Load the tokenizers."""
        self.encoder.load()

    def run(self, partition: int) -> dict[str, Any]:
        """Encode a partition."""
        text = files.read_bytes(os.path.join(self.work_dir, TEXT, f"{partition:06d}"))
        lines = text.split(b"\n")[:-1]
        width = lines[0].count(b"\t") + 1 if lines else 1
        fields = text.replace(b"\n", b"\t").split(b"\t")[:-1]
        copies, columns = fields[::width], [fields[i::width] for i in range(1, width)]
        if not lines:
            copies, columns = [], [[]] * (len(self.encoder.languages) + bool(self.encoder.labels))
        encoded = self.encoder.encode(columns, normalized=True)
        fits = np.ones(len(encoded), bool)
        if self.encoder.task != "language_model":
            fits = encoded.lengths().max(axis=0) <= self.max_tokens
        # A second copy was not in the input, so it is not counted.
        is_input = np.array([copy == b"0" for copy in copies], bool)
        fitting_lines = np.zeros(len(lines), bool)
        fitting_lines[encoded.line[fits]] = True
        dropped = np.flatnonzero(is_input & ~fitting_lines)
        if self.keep_rejected:
            rejected = [[column[i].decode() for column in columns] for i in dropped]
            path = os.path.join(self.work_dir, REJECTED, f"tokens-{partition:06d}")
            files.write_bytes(path, rejected_lines([TOO_MANY_TOKENS] * len(rejected), rejected))
        encoded = encoded.take(fits)
        path = os.path.join(self.work_dir, PAIR_RECORDS, f"{partition:06d}")
        sizes = write_examples(path, encoded.texts, encoded.ids, encoded.labels)
        files.write_bytes(f"{path}.sizes", sizes.tobytes())
        progress.tick(len(lines))
        return {
            "records": len(sizes),
            "kept": int((is_input & fitting_lines).sum()),
            TOO_MANY_TOKENS: len(dropped),
            "lengths": {
                name: length_histogram(of_name)
                for name, of_name in zip(encoded.ids, encoded.lengths(), strict=True)
            },
            "labels": np.bincount(
                np.array(encoded.labels or [], np.int64), minlength=len(self.encoder.labels)
            ).tolist(),
            "text": (encoded.characters, encoded.text_bytes),
            **(self._write_rows(partition, encoded) if self.row_length else {}),
        }

    def _write_rows(self, partition: int, encoded: Encoded) -> dict[str, Any]:
        """Pack the examples and write the rows, shuffled: packing has sorted them by length."""
        if self.augmentation:
            encoded = self._perturbed(encoded)
        examples = encoded.examples()
        if self.segmentations > 1:
            examples = self._sampled(encoded)
        packed = packing.pack(examples, self.row_length, self.closing_id)
        order = np.random.Generator(np.random.PCG64([self.seed, partition])).permutation(
            len(packed)
        )
        packed = packed.take(order)
        path = os.path.join(self.work_dir, ROW_RECORDS, f"{partition:06d}")
        write_records(path, rows.serialize_rows(packed, self.token_dtype))
        return {
            "rows": len(packed),
            "left_out": packed.left_out,
            "row_tokens": packed.tokens(),
        }

    def _perturbed(self, encoded: Encoded) -> Encoded:
        """Return the examples with a share of them perturbed, in text and token ids."""
        texts = {name: list(column) for name, column in encoded.texts.items()}
        ids = {name: list(column) for name, column in encoded.ids.items()}
        symbols = {symbol for model in self.encoder.models.values() for symbol in model.symbols}
        kinds, shares = list(self.augmentation), list(self.augmentation.values())
        for number, example in enumerate(zip(*encoded.texts.values(), strict=True)):
            originals = [text.decode() for text in example]
            draw = random.Random(f"{self.seed} {originals[0]}")
            (kind,) = draw.choices([*kinds, ""], [*shares, max(0.0, 1 - sum(shares))])
            if kind:
                changed = perturb(originals, kind, str(self.seed), sorted(symbols))
                for key, name, text in zip(texts, ids, changed, strict=True):
                    (ids[name][number],) = self.encoder.models[name].encode([text])
                    texts[key][number] = normalize_text(text).encode()
        return dataclasses.replace(encoded, texts=texts, ids=ids)

    def _sampled(self, encoded: Encoded) -> Examples:
        """Return the examples in sampled segmentations; sample n of the sides go together."""
        ids = {}
        for (name, model), texts in zip(
            self.encoder.models.items(), encoded.texts.values(), strict=True
        ):
            samples = model.sample(
                [text.decode() for text in texts],
                self.segmentations,
                self.sampling_alpha,
                self.seed,
            )
            ids[name] = [sample[n] for n in range(self.segmentations) for sample in samples]
        labels = encoded.labels and encoded.labels * self.segmentations
        return Examples.of_lists(ids, labels)
