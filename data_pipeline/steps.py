"""The two Beam pipelines of the job: text to clean shards, clean shards to records.

An element is a chunk of lines or a shard, never a sentence. Between the pipelines the tokenizer is
trained. What a step has to tell the driver (counts, errors, file checksums) goes through JSON files
in the work directory, so it works on any runner.
"""

import hashlib
import itertools
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from tensorflow.io import gfile

from data_pipeline import files, progress
from data_pipeline.cleaning import (
    DUPLICATE,
    TOO_MANY_TOKENS,
    CleaningRules,
    normalize_text,
    reject_reason,
)
from data_pipeline.errors import UsageError
from data_pipeline.records import (
    describe_file,
    length_histogram,
    load_tokenizer,
    raw_text_name,
    shard_name,
    write_shard,
)
from data_pipeline.sources import Chunk, Source

COUNTS_FILE = "counts.json"
ERRORS_FILE = "errors.json"
SHARDS_FILE = "shards.json"
PAIRS_IN = "pairs_in"

_COUNTS = "counts"
_ERRORS = "errors"
# Beam holds the chunks in memory until they are grouped; level 1 makes them a third of the size
# at a small part of the time of cleaning.
_COMPRESSION = 1
_ENCODE_BATCH = 10_000


def clean_text_path(work_dir: str, shard: int) -> str:
    """Returns the file with the clean text of a training shard: key, source, target a line."""
    return os.path.join(work_dir, f"train-{shard:05d}.txt")


def pair_key(seed: int, source: str, target: str) -> str:
    """Returns the pair's place in the global shuffle: 16 hexadecimal digits.

    It depends on nothing but the seed and the pair, so the order of the records does not depend
    on the workers, and equal pairs meet in one shard.
    """
    text = f"{seed}\t{source}\t{target}".encode()
    return hashlib.blake2b(text, digest_size=8).hexdigest()


class ReadChunks(beam.DoFn):
    """(position, source) -> (position, chunk); input errors go to the errors output."""

    def process(self, element: tuple[int, Source]) -> Iterator[Any]:
        """Yields the chunks of one source."""
        position, source = element
        try:
            for chunk in source.chunks():
                yield position, chunk
        except UsageError as error:
            yield TaggedOutput(_ERRORS, (position, 0, str(error)))


class CleanChunk(beam.DoFn):
    """(position, chunk) -> (shard, compressed lines), with counts and errors on the side."""

    def __init__(self, rules: CleaningRules, num_shards: int, seed: int):
        """Sets the limits, the number of training shards and the seed of the shuffle."""
        self._rules = rules
        self._num_shards = num_shards
        self._seed = seed

    def process(self, element: tuple[int, Chunk]) -> Iterator[Any]:
        """Normalises, filters and partitions the pairs of a chunk."""
        position, chunk = element
        try:
            pairs = chunk.pairs()
        except UsageError as error:
            yield TaggedOutput(_ERRORS, (position, chunk.first_line, str(error)))
            return
        counts = Counter({PAIRS_IN: len(pairs)})
        shards: dict[int, list[str]] = {}
        for raw_source, raw_target in pairs:
            source, target = normalize_text(raw_source), normalize_text(raw_target)
            reason = reject_reason(source, target, self._rules)
            if reason:
                counts[reason] += 1
                continue
            key = pair_key(self._seed, source, target)
            # Normalised text has no tab and no newline.
            line = f"{key}\t{source}\t{target}"
            shards.setdefault(int(key, 16) % self._num_shards, []).append(line)
        for shard, lines in shards.items():
            yield shard, zlib.compress("\n".join(lines).encode(), _COMPRESSION)
        for name, count in counts.items():
            yield TaggedOutput(_COUNTS, (f"train/{name}", count))
        progress.tick(len(pairs))


class MergeShard(beam.DoFn):
    """(shard, compressed lines of all chunks) -> a sorted file without duplicates, and counts."""

    def __init__(self, work_dir: str):
        """Sets where the clean text goes."""
        self._work_dir = work_dir

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[tuple[str, int]]:
        """Writes the clean text of a shard."""
        shard, blocks = element
        lines: list[bytes] = []
        for block in blocks:
            lines += zlib.decompress(block).split(b"\n")
        # Sorted by key, which is the shuffle; equal pairs become neighbours.
        lines.sort()
        unique = [line for line, _ in itertools.groupby(lines)]
        files.write_bytes(clean_text_path(self._work_dir, shard), b"\n".join(unique) + b"\n")
        yield f"train/{DUPLICATE}", len(lines) - len(unique)


class CopyHeldOut(beam.DoFn):
    """(split, sources) -> the raw text files of valid or test, and counts; nothing is dropped."""

    def __init__(self, work_dir: str, langs: tuple[str, str]):
        """Sets where the text goes and the names of its languages."""
        self._work_dir = work_dir
        self._langs = langs

    def process(self, element: tuple[str, Sequence[Source]]) -> Iterator[Any]:
        """Writes the raw text of a split in the order of its sources."""
        split, sources = element
        count, place = 0, (0, 0)
        paths = [os.path.join(self._work_dir, raw_text_name(split, lang)) for lang in self._langs]
        temporary = [files.temporary_name(path) for path in paths]
        try:
            with gfile.GFile(temporary[0], "wb") as left, gfile.GFile(temporary[1], "wb") as right:
                # GFile makes the file at the first write, and there may be no line to write.
                left.write(b"")
                right.write(b"")
                for position, source in enumerate(sources):
                    for chunk in source.chunks():
                        place = (position, chunk.first_line)
                        pairs = chunk.pairs()
                        for file, side in zip((left, right), zip(*pairs, strict=True), strict=True):
                            file.write("".join(f"{text}\n" for text in side).encode())
                        count += len(pairs)
        except UsageError as error:
            yield TaggedOutput(_ERRORS, (*place, str(error)))
            return
        for name, path in zip(temporary, paths, strict=True):
            gfile.rename(name, path, overwrite=True)
        yield TaggedOutput(_COUNTS, (f"{split}/{PAIRS_IN}", count))
        progress.tick(count)


def build_cleaning(
    pipeline: beam.Pipeline,
    train: Sequence[Source],
    held_out: Sequence[tuple[str, Sequence[Source]]],
    rules: CleaningRules,
    num_shards: int,
    seed: int,
    langs: tuple[str, str],
    work_dir: str,
    share_work: bool,
) -> None:
    """Adds the first pipeline: sources to clean shards and raw text in the work directory.

    Args:
        pipeline: gets the steps.
        train: sources of the training split.
        held_out: (split, sources) for valid and test.
        rules: limits of the filters.
        num_shards: number of training shards.
        seed: of the shuffle.
        langs: source and target language.
        work_dir: where the results go: text files, `COUNTS_FILE` and `ERRORS_FILE`.
        share_work: whether several workers shall clean the chunks of one file.
    """
    read = (
        pipeline
        | "Train" >> beam.Create(list(enumerate(train)))
        | "Read" >> beam.ParDo(ReadChunks()).with_outputs(_ERRORS, main="chunks")
    )
    # Only then is it worth moving the text: without it, reading and cleaning are one stage.
    chunks = read.chunks | "Share" >> beam.Reshuffle() if share_work else read.chunks
    clean = chunks | "Clean" >> beam.ParDo(CleanChunk(rules, num_shards, seed)).with_outputs(
        _COUNTS, _ERRORS, main="shards"
    )
    duplicates = (
        clean.shards | "Group" >> beam.GroupByKey() | "Merge" >> beam.ParDo(MergeShard(work_dir))
    )
    copied = (
        pipeline
        | "Held out" >> beam.Create(list(held_out))
        | "Copy" >> beam.ParDo(CopyHeldOut(work_dir, langs)).with_outputs(_COUNTS, _ERRORS)
    )
    (
        (clean[_COUNTS], duplicates, copied[_COUNTS])
        | "Counts" >> beam.Flatten()
        | "Add up" >> beam.CombinePerKey(sum)
        | "List counts" >> beam.combiners.ToList()
        | "Write counts" >> beam.Map(_write_list, os.path.join(work_dir, COUNTS_FILE))
    )
    (
        (read[_ERRORS], clean[_ERRORS], copied[_ERRORS])
        | "Errors" >> beam.Flatten()
        | "List errors" >> beam.combiners.ToList()
        | "Write errors" >> beam.Map(_write_list, os.path.join(work_dir, ERRORS_FILE))
    )


def _write_list(values: list[Any], path: str) -> None:
    files.write_json(path, values)


@dataclass(frozen=True)
class ShardJob:
    """One shard to encode.

    Attributes:
        split: train, valid or test.
        shard: its number.
        num_shards: how many the split has.
    """

    split: str
    shard: int
    num_shards: int


class EncodeShard(beam.DoFn):
    """ShardJob -> a TFRecord file, and what `dataset.json` says about it."""

    def __init__(self, work_dir: str, tokenizer_path: str, max_tokens: int, langs: tuple[str, str]):
        """Sets the directory of input and output, the model, the limit and the languages."""
        self._work_dir = work_dir
        self._tokenizer_path = tokenizer_path
        self._max_tokens = max_tokens
        self._langs = langs

    def setup(self) -> None:
        """Loads the tokenizer once a worker."""
        self._tokenizer = load_tokenizer(self._tokenizer_path)

    def process(self, job: ShardJob) -> Iterator[dict[str, Any]]:
        """Encodes a shard."""
        is_train = job.split == "train"
        texts = self._clean_text(job.shard) if is_train else self._raw_text(job.split)
        lengths: tuple[list[int], list[int]] = ([], [])
        dropped = 0

        def encoded() -> Iterator[tuple[list[int], list[int]]]:
            nonlocal dropped
            while batch := list(itertools.islice(texts, _ENCODE_BATCH)):
                sides = [self._tokenizer.encode(side) for side in zip(*batch, strict=True)]
                for pair in zip(*sides, strict=True):
                    if is_train and max(map(len, pair)) > self._max_tokens:
                        dropped += 1
                        continue
                    for side, ids in zip(lengths, pair, strict=True):
                        side.append(len(ids))
                    yield pair
                progress.tick(len(batch))

        name = shard_name(job.split, job.shard, job.num_shards)
        info = write_shard(os.path.join(self._work_dir, name), encoded())
        raw_text = [] if is_train else self._describe_raw_text(job.split, info.records)
        yield {
            "split": job.split,
            "shard": job.shard,
            "file": asdict(info),
            "dropped": {TOO_MANY_TOKENS: dropped},
            "source_lengths": length_histogram(lengths[0]),
            "target_lengths": length_histogram(lengths[1]),
            "raw_text": raw_text,
        }

    def _describe_raw_text(self, split: str, lines: int) -> list[dict[str, Any]]:
        names = [raw_text_name(split, lang) for lang in self._langs]
        paths = [os.path.join(self._work_dir, name) for name in names]
        return [
            asdict(describe_file(path, name, lines))
            for path, name in zip(paths, names, strict=True)
        ]

    def _clean_text(self, shard: int) -> Iterator[tuple[str, str]]:
        path = clean_text_path(self._work_dir, shard)
        # A shard that no pair fell into has no text.
        if gfile.exists(path):
            with files.open_binary(path) as file:
                for line in file:
                    _, source, target = line.decode().rstrip("\n").split("\t")
                    yield source, target

    def _raw_text(self, split: str) -> Iterator[tuple[str, str]]:
        paths = [os.path.join(self._work_dir, raw_text_name(split, lang)) for lang in self._langs]
        with files.open_binary(paths[0]) as sources, files.open_binary(paths[1]) as targets:
            for source, target in zip(sources, targets, strict=True):
                yield source.decode(), target.decode()


def build_encoding(
    pipeline: beam.Pipeline,
    jobs: Sequence[ShardJob],
    tokenizer_path: str,
    max_tokens: int,
    langs: tuple[str, str],
    work_dir: str,
) -> None:
    """Adds the second pipeline: clean text to records, and `SHARDS_FILE` about them.

    Args:
        pipeline: gets the steps.
        jobs: the shards of all splits.
        tokenizer_path: the trained model.
        max_tokens: longer training pairs are dropped and counted.
        langs: source and target language.
        work_dir: holds the text and gets the records.
    """
    (
        pipeline
        | "Shards" >> beam.Create(list(jobs))
        | "Encode" >> beam.ParDo(EncodeShard(work_dir, tokenizer_path, max_tokens, langs))
        | "List shards" >> beam.combiners.ToList()
        | "Write shards" >> beam.Map(_write_list, os.path.join(work_dir, SHARDS_FILE))
    )
