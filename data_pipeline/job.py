"""The steps between parallel text and a complete work directory."""

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tensorflow.io import gfile

from common import files
from common.errors import UsageError
from data_pipeline import encoding
from data_pipeline import stages as steps
from data_pipeline.cleaning.alignment import alignment_warning
from data_pipeline.cleaning.cleaner import Cleaner
from data_pipeline.dataset import packing, rows
from data_pipeline.dataset.examples import shard_name
from data_pipeline.dataset.manifest import (
    FileInfo,
    Manifest,
    RowsInfo,
    SequenceInfo,
    SplitInfo,
    TokenizerInfo,
)
from data_pipeline.dataset.tokenizer import (
    JOINT_FILE,
    SOURCE_FILE,
    TARGET_FILE,
    check_model,
    train,
)
from data_pipeline.held_out import copy_held_out, encode_held_out
from data_pipeline.progress import Display, tick
from data_pipeline.runners.local import Runner, Task
from data_pipeline.settings import DROP_REASONS, Settings
from data_pipeline.sources.spec import Source

HELD_OUT = ("valid", "test")
# Pairs of training text that one worker encodes at a time: enough to pack tightly, and few enough
# for its memory.
PARTITION_PAIRS = 50_000
# Rows that are read and checked together: some 100 to 300 KB.
BLOCK_ROWS = 128

Sources = Mapping[str, Sequence[tuple[Source, float]]]


class Job:
    """The steps between the input and a complete work directory."""

    def __init__(self, settings: Settings, runner: Runner, work_dir: str, display: Display):
        """Sets what to do, who does the work, where, and who shows it."""
        self._settings = settings
        self._runner = runner
        self._work_dir = work_dir
        self._results = os.path.join(work_dir, "results")
        self._display = display
        Cleaner(settings.rules())  # tells here what a filter lacks
        self._tokenizers: dict[str, TokenizerInfo]

    def run(self, sources: Sources, inputs: Mapping[str, Sequence[str]]) -> Manifest:
        """Does all steps and returns what `dataset.json` will say."""
        held_out = self._copy_held_out(sources)
        cleaned = self._clean(sources["train"])
        partitions = self._merge(cleaned)
        self._make_tokenizers(partitions)
        train_split = self._encode(cleaned, partitions)
        settings = self._settings
        return Manifest(
            directory=settings.output_dir,
            task="translation",
            languages=settings.languages,
            tokenizers=self._tokenizers,
            splits={"train": train_split, **self._encode_held_out(held_out)},
            settings=settings.recorded(),
            inputs=inputs,
        )

    def _map(self, label: str, task: Task, items: Sequence[Any], small: bool = False) -> list[Any]:
        do = self._runner.map_small if small else self._runner.map
        return do(label, task, items, self._results)

    def _remove(self, name: str) -> None:
        """Removes what the next step has used up; an interrupted job may have done it before."""
        files.remove_tree(self._path(name))

    def _path(self, *names: str) -> str:
        return os.path.join(self._work_dir, *names)

    def _copy_held_out(self, sources: Sources) -> dict[str, dict[str, Any]]:
        """Copies the text of valid and test; returns split -> counts."""
        found, forms = {}, set()
        for split in HELD_OUT:
            if split in sources:
                found[split], of_split = copy_held_out(
                    split,
                    [source for source, _ in sources[split]],
                    self._settings.languages,
                    self._work_dir,
                )
                forms |= of_split
                if not found[split]["pairs"]:
                    specs = ", ".join(self._settings.specs()[split])
                    raise UsageError(f"--{split}: no lines in {specs}")
        files.write_bytes(self._path(steps.HELD_OUT_FILE), "\n".join(sorted(forms)).encode())
        return found

    def _clean(self, sources: Sequence[tuple[Source, float]]) -> dict[str, Any]:
        """Cleans the training text; returns counts and the names of the blocks."""
        settings = self._settings
        items: list[Any] = [(n, *source) for n, source in enumerate(sources)]
        task = steps.CleanTask(
            self._work_dir, settings.rules(), settings.seed, settings.keep_rejected
        )
        with self._display.phase("read and clean", "pairs"):
            label = "clean"
            if self._runner.shares_work:
                names = self._map("read", steps.ReadTask(self._work_dir), items, small=True)
                label = "clean-chunk"
                items = [
                    (n, name, weight)
                    for (n, _, weight), of_source in zip(items, names, strict=True)
                    for name in of_source
                ]
            results = self._map(label, task, items)
        self._remove("raw")
        total: dict[str, Any] = {
            part: sum((Counter(result[part]) for result in results), Counter())
            for part in ("counts", "changed", "align")
        }
        if not total["counts"][steps.PAIRS_IN]:
            raise UsageError(f"--train: no lines in {', '.join(settings.train)}")
        self._check_left(total["counts"])
        blocks = itertools.chain.from_iterable(result["blocks"] for result in results)
        return {**total, "blocks": tuple(blocks)}

    def _check_left(self, counts: Counter) -> None:
        """Raises `UsageError` if every training pair was dropped."""
        dropped = {reason: counts[reason] for reason in DROP_REASONS if counts[reason]}
        if sum(dropped.values()) == counts["pairs_in"]:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
            raise UsageError(
                f"--train: none of the {counts['pairs_in']} pairs is left after cleaning "
                f"({reasons}); look at the input with --keep_rejected, raise --max_tokens or "
                "--max_length_ratio, or switch a filter off with --disable_filters"
            )

    def _merge(self, cleaned: Mapping[str, Any]) -> int:
        """Merges the blocks into partitions, adds to the counts; returns how many there are."""
        counts = cleaned["counts"]
        lines = counts[steps.PAIRS_IN] - sum(counts[reason] for reason in DROP_REASONS)
        partitions = -(-lines // PARTITION_PAIRS)
        task = steps.MergeTask(
            self._work_dir,
            cleaned["blocks"],
            partitions,
            self._settings.filters,
            self._settings.keep_rejected,
        )
        with self._display.phase("merge and dedupe", "lines"):
            for result in self._map("merge", task, range(partitions)):
                counts.update(result["counts"])
        self._remove("blocks")
        return partitions

    def _make_tokenizers(self, partitions: int) -> None:
        """Trains the vocabulary on a sample of the clean text, or takes the given one."""
        settings = self._settings
        names = (JOINT_FILE,) if settings.joint_vocabulary else (SOURCE_FILE, TARGET_FILE)
        with self._display.phase("tokenizer", "sentences"):
            for number, name in enumerate(names):
                if not gfile.exists(self._path(name)):
                    sides = (0, 1) if settings.joint_vocabulary else (number,)
                    files.write_bytes(self._path(name), self._model(number, partitions, sides))
        infos = []
        for name in (names[0], names[-1]):
            tokenizer = check_model(self._path(name))
            infos.append(
                TokenizerInfo(name, tokenizer.sha256, tokenizer.vocab_size, tokenizer.model_type)
            )
        self._tokenizers = dict(zip(settings.languages, infos, strict=True))

    def _model(self, number: int, partitions: int, sides: Sequence[int]) -> bytes:
        settings = self._settings
        if settings.tokenizer:
            check_model(settings.tokenizer[number])
            return files.read_bytes(settings.tokenizer[number])
        return train(
            self._sample(partitions, sides),
            settings.vocab_size,
            settings.model_type,
            settings.character_coverage,
            byte_fallback=settings.byte_fallback,
            user_symbols=settings.user_symbols,
        )

    def _sample(self, partitions: int, sides: Sequence[int]) -> Iterator[str]:
        """Yields the sides of the first pairs in the shuffled order, which is a uniform sample."""
        paths = (self._path("text", f"{number:06d}") for number in range(partitions))
        lines = itertools.chain.from_iterable(map(files.read_lines, paths))
        for line in itertools.islice(lines, self._settings.tokenizer_sample):
            pair = line.split("\t")[1:]
            for side in sides:
                yield pair[side]
                tick(1)

    def _encode(self, cleaned: Mapping[str, Any], partitions: int) -> SplitInfo:
        """Encodes, packs and assembles the training split."""
        settings = self._settings
        counts = cleaned["counts"]
        largest = max(info.vocab_size for info in self._tokenizers.values())
        task = encoding.EncodeTask(
            self._work_dir,
            {name: self._path(info.file) for name, info in self._tokenizers.items()},
            settings.languages,
            settings.max_tokens,
            settings.row_length,
            "uint16" if largest <= 1 << 16 else "int32",
            settings.segmentations,
            settings.sampling_alpha,
            settings.seed,
            settings.keep_rejected,
        )
        left = counts["pairs_in"] - sum(counts[reason] for reason in DROP_REASONS)
        with self._display.phase("encode and pack", "pairs", total=left):
            results = self._map("encode", task, range(partitions))
        for result in results:
            counts[encoding.TOO_MANY_TOKENS] += result[encoding.TOO_MANY_TOKENS]
        self._check_left(counts)
        with self._display.phase("assemble shards", "records"):
            pair_files = self._assemble_pairs(results)
            row_info = self._assemble_rows(results, task.token_dtype)
        kept = sum(result["kept"] for result in results)
        warning = alignment_warning(cleaned["align"], "train")
        return SplitInfo(
            files=pair_files,
            pairs_in=counts["pairs_in"],
            kept=kept,
            dropped={reason: counts[reason] for reason in DROP_REASONS if counts[reason]},
            sequences={
                name: SequenceInfo.of_histogram(
                    itertools.chain.from_iterable(result["lengths"][name] for result in results)
                )
                for name in settings.languages
            },
            changed={name: count for name, count in cleaned["changed"].items() if count},
            repeated=sum(result["records"] for result in results) - kept,
            rows=row_info,
            warnings=(warning,) if warning else (),
        )

    def _assemble_pairs(self, results: Sequence[Mapping[str, Any]]) -> tuple[FileInfo, ...]:
        """Deals the records out in equal numbers, in their order."""
        paths = [self._path("records", f"{number:06d}") for number in range(len(results))]
        ends = [
            np.cumsum(np.frombuffer(files.read_bytes(f"{path}.sizes"), np.int64)) for path in paths
        ]
        total, shards = sum(map(len, ends)), self._settings.num_shards
        items = []
        for shard in range(shards):
            first, last = shard * total // shards, (shard + 1) * total // shards
            spans = encoding.spans_of(paths, ends, first, last)
            items.append((shard_name("train", shard, shards), last - first, spans))
        found = self._map("shard", encoding.AssembleTask(self._work_dir), items, small=True)
        return tuple(FileInfo(**result["file"]) for result in found)

    def _assemble_rows(
        self, results: Sequence[Mapping[str, Any]], token_dtype: str
    ) -> RowsInfo | None:
        """Deals the packed rows out, in whole blocks."""
        settings = self._settings
        if not settings.row_length:
            return None
        features = packing.features(tuple(settings.languages))
        size = rows.record_bytes(features, settings.row_length, token_dtype)
        paths = [self._path("rows", f"{number:06d}") for number in range(len(results))]
        ends = [np.arange(1, result["rows"] + 1) * size for result in results]
        total, shards = sum(map(len, ends)), settings.num_shards
        blocks = -(-total // BLOCK_ROWS)
        items = []
        for shard in range(shards):
            first, last = (
                min(total, i * blocks // shards * BLOCK_ROWS) for i in (shard, shard + 1)
            )
            spans = encoding.spans_of(paths, ends, first, last)
            items.append((shard_name("train-rows", shard, shards), last - first, spans))
        task = encoding.AssembleTask(self._work_dir, size, BLOCK_ROWS)
        found = self._map("rows", task, items, small=True)
        return RowsInfo(
            features=features,
            row_length=settings.row_length,
            rows=total,
            left_out=sum(result["left_out"] for result in results),
            tokens={
                name: sum(result["row_tokens"][name] for result in results)
                for name in settings.languages
            },
            token_dtype=token_dtype,
            record_bytes=size,
            block_rows=BLOCK_ROWS,
            files=tuple(FileInfo(**result["file"]) for result in found),
            blocks=tuple(result["blocks"] for result in found),
        )

    def _encode_held_out(self, held_out: Mapping[str, Mapping[str, Any]]) -> dict[str, SplitInfo]:
        """Encodes valid and test."""
        models = {name: self._path(info.file) for name, info in self._tokenizers.items()}
        splits = {}
        for split, found in held_out.items():
            info, raw_text, sequences = encode_held_out(
                split, self._settings.languages, self._work_dir, models
            )
            warning = alignment_warning(found["align"], split)
            splits[split] = SplitInfo(
                files=(info,),
                pairs_in=found["pairs"],
                kept=info.records,
                dropped={},
                sequences=sequences,
                raw_text=raw_text,
                warnings=(warning,) if warning else (),
            )
        return splits
