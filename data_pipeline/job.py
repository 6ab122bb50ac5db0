"""The data job: text in, dataset directory out.

`prepare` is the whole job: copy what is held out, clean and shuffle the rest, train the tokenizer,
encode and pack, assemble the shards, publish. `Job` has the stages between the input and a complete
work directory; the workers' part of them is in `stages` and `assembly`.
"""

import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from common import files, lock
from common.errors import UsageError
from data_pipeline import stages
from data_pipeline.assembly import AssembleTask, spans_of
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
from data_pipeline.dataset.tokenizer import EOS_ID
from data_pipeline.encoder import Encoder
from data_pipeline.held_out import check_known_labels, copy_held_out, encode_held_out
from data_pipeline.progress import Display
from data_pipeline.runners.local import Runner, Task
from data_pipeline.settings import DROP_REASONS, Settings
from data_pipeline.sources.spec import Source, parse_spec, split_weight
from data_pipeline.vocabulary import given_tokenizers, make_tokenizers
from data_pipeline.workdir import find_finished, publish, work_directory

HELD_OUT = ("valid", "test")
# Training examples that one worker encodes at a time: enough to pack tightly, and few enough for
# its memory.
PARTITION_PAIRS = 50_000
PARTITION_BYTES = 64 << 20
# Rows that are read and checked together: some 100 to 300 KB.
BLOCK_ROWS = 128
_MOST_LABELS = 65_535  # the rows hold their numbers, from 1 on, in 16 bits

Sources = Mapping[str, Sequence[tuple[Source, float]]]


def prepare(settings: Settings, beam_args: Sequence[str] = ()) -> Manifest:
    """Make the dataset directory, or find it made already.

    Args:
        settings: what to do.
        beam_args: options for Beam, such as `--direct_num_workers=2`.

    Returns:
        The manifest of the finished dataset.

    Raises:
        UsageError: bad input or settings, or the directory holds another dataset or is in use by
            another job; nothing is left behind then. Or the storage fails, perhaps a full disk:
            then what is done stays for the next start, and is no dataset yet.
        tf.errors.OpError: the storage does not answer (`files.passing_errors`); likewise.
    """
    import tensorflow as tf

    started = time.monotonic()
    display = Display()
    runner = _make_runner(beam_args)  # reports a misspelled option even if nothing is to do
    sources = _parse(settings)
    inputs = {
        split: [_fingerprint(*source) for source in of_split] for split, of_split in sources.items()
    }
    if settings.tokenizer:
        inputs["tokenizer"] = [model.sha256 for model in given_tokenizers(settings)]
    finished = find_finished(settings, inputs)
    if finished:
        display.say(f"{settings.output_dir}: already finished with these settings, nothing to do")
        return finished

    try:
        with lock.held(settings.output_dir):
            with work_directory(settings, inputs, display, runner.shares_work) as work_dir:
                manifest = Job(settings, runner, work_dir, display).run(sources, inputs)
            publish(manifest, work_dir, settings.keep_rejected)
    except files.passing_errors():
        raise
    except (tf.errors.OpError, OSError) as error:
        raise UsageError(
            f"--output_dir={settings.output_dir}: {getattr(error, 'message', error)}; fix that "
            "and start the same command again, which continues from what is done"
        ) from error
    for split in manifest.splits.values():
        for warning in split.warnings:
            display.warn(warning)
    display.summary(manifest, time.monotonic() - started)
    return manifest


def _parse(settings: Settings) -> dict[str, list[tuple[Source, float]]]:
    """Return split -> (source, weight)."""
    parsed: dict[str, list[tuple[Source, float]]] = {}
    for split, specs in settings.specs().items():
        parsed[split] = []
        for text in specs:
            weight, spec = split_weight(text)
            if weight != 1 and split != "train":
                raise UsageError(f"--{split}={text}: only --train takes a weight")
            sources = parse_spec(
                spec,
                *settings.languages.values(),
                task=settings.task,
                documents=settings.documents,
            )
            parsed[split] += [(source, weight) for source in sources]
            if len(parsed[split]) > stages.MOST_SOURCES:
                raise UsageError(
                    f"--{split}: {len(parsed[split]):,} files or more; the most are "
                    f"{stages.MOST_SOURCES:,}: join some of them"
                )
    return parsed


def _fingerprint(source: Source, weight: float) -> str:
    return source.fingerprint() + (f" weight={weight}" if weight != 1 else "")


def _make_runner(beam_args: Sequence[str]) -> Runner:
    """Return a loop in this process, or Beam if there are options for it."""
    if not beam_args:
        return Runner()
    # Importing Beam takes seconds, and warns of optional parts that are not installed.
    logging.disable(logging.WARNING)
    try:
        from data_pipeline.runners.beam import BeamRunner
    finally:
        logging.disable(logging.NOTSET)
    return BeamRunner(beam_args)


class Job:
    """The stages between the input and a complete work directory."""

    def __init__(self, settings: Settings, runner: Runner, work_dir: str, display: Display):
        """Set what to do, who does the work, where, and who shows it."""
        self._settings = settings
        self._runner = runner
        self._work_dir = work_dir
        self._results = os.path.join(work_dir, "results")
        self._display = display
        Cleaner(settings.rules())  # reports here what a filter lacks

    def run(self, sources: Sources, inputs: Mapping[str, Sequence[str]]) -> Manifest:
        """Do all stages and return what `dataset.json` will say."""
        settings = self._settings
        held_out = self._copy_held_out(sources)
        cleaned = self._clean(sources["train"])
        labels = self._find_labels(cleaned["labels"], held_out)
        partitions = self._merge(cleaned)
        with self._display.phase("tokenizer", "sentences"):
            tokenizers = make_tokenizers(settings, self._work_dir, partitions)
        encoder = Encoder(
            settings.task,
            settings.languages,
            {name: self._path(info.file) for name, info in tokenizers.items()},
            labels,
            settings.row_length,
        )
        train_split = self._encode(cleaned, partitions, encoder, tokenizers)
        encoder.load()
        splits = {
            split: encode_held_out(split, encoder, self._work_dir, found)
            for split, found in held_out.items()
        }
        return Manifest(
            directory=settings.output_dir,
            task=settings.task,
            languages=settings.languages,
            tokenizers=tokenizers,
            splits={"train": train_split, **splits},
            labels=labels,
            settings=settings.recorded(),
            inputs=inputs,
        )

    def _map(self, label: str, task: Task, items: Sequence[Any], small: bool = False) -> list[Any]:
        do = self._runner.map_small if small else self._runner.map
        return do(label, task, items, self._results)

    def _remove(self, name: str) -> None:
        """Remove what the next stage has used up; an interrupted job may have done so before."""
        files.remove_tree(self._path(name))

    def _path(self, *names: str) -> str:
        return os.path.join(self._work_dir, *names)

    def _copy_held_out(self, sources: Sources) -> dict[str, dict[str, Any]]:
        """Copy the text of valid and test; return split -> counts."""
        found, forms = {}, set()
        for split in HELD_OUT:
            if split in sources:
                found[split], of_split = copy_held_out(
                    split,
                    [source for source, _ in sources[split]],
                    tuple(self._settings.languages.values()),
                    self._settings.labelled,
                    self._work_dir,
                )
                forms |= of_split
                if not found[split]["pairs"]:
                    specs = ", ".join(self._settings.specs()[split])
                    raise UsageError(f"--{split}: no lines in {specs}")
        files.write_bytes(self._path(stages.HELD_OUT_FILE), "\n".join(sorted(forms)).encode())
        return found

    def _clean(self, sources: Sequence[tuple[Source, float]]) -> dict[str, Any]:
        """Clean the training text; return counts and the names of the blocks."""
        settings = self._settings
        items: list[Any] = [(n, *source) for n, source in enumerate(sources)]
        task = stages.CleanTask(
            self._work_dir,
            settings.rules(),
            settings.labelled,
            settings.seed,
            settings.keep_rejected,
        )
        with self._display.phase("read and clean", settings.unit):
            label = "clean"
            if self._runner.shares_work:
                names = self._map("read", stages.ReadTask(self._work_dir), items, small=True)
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
            for part in ("counts", "changed", "align", "labels")
        }
        if not total["counts"][stages.PAIRS_IN]:
            raise UsageError(f"--train: no lines in {', '.join(settings.train)}")
        self._check_left(total["counts"])
        blocks = itertools.chain.from_iterable(result["blocks"] for result in results)
        return {**total, "blocks": tuple(blocks)}

    def _find_labels(
        self, counts: Counter, held_out: Mapping[str, Mapping[str, Any]]
    ) -> tuple[str, ...]:
        """Return the classes of the training text; `UsageError` if nothing can be learned."""
        labels = tuple(sorted(counts))
        if self._settings.labelled and len(labels) < 2:
            raise UsageError(
                f"--train: every example has the label {labels[0]!r}; a classifier needs two "
                "labels or more"
            )
        if len(labels) > _MOST_LABELS:
            raise UsageError(
                f"--train: {len(labels):,} different labels, such as {labels[0]!r}; the most are "
                f"{_MOST_LABELS:,}: a line holds the text, a tab and the label"
            )
        for split, found in held_out.items():
            specs = ", ".join(self._settings.specs()[split])
            check_known_labels(split, found["labels"], labels, specs)
        return labels

    def _check_left(self, counts: Counter) -> None:
        """Raise `UsageError` if every training example was dropped."""
        dropped = {reason: counts[reason] for reason in DROP_REASONS if counts[reason]}
        if sum(dropped.values()) == counts["pairs_in"]:
            reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
            raise UsageError(
                f"--train: none of the {counts['pairs_in']} {self._settings.unit} is left after "
                f"cleaning ({reasons}); look at the input with --keep_rejected, raise "
                "--max_tokens, --max_length_ratio or the weight of a source, or switch a filter "
                "off with --disable_filters"
            )

    def _merge(self, cleaned: Mapping[str, Any]) -> int:
        """Merge the blocks into partitions, add to the counts; return how many there are."""
        counts = cleaned["counts"]
        lines = counts[stages.PAIRS_IN] - sum(counts[reason] for reason in DROP_REASONS)
        partitions = max(
            -(-lines // PARTITION_PAIRS), -(-counts.pop(stages.BYTES) // PARTITION_BYTES)
        )
        task = stages.MergeTask(
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

    def _encode(
        self,
        cleaned: Mapping[str, Any],
        partitions: int,
        encoder: Encoder,
        tokenizers: Mapping[str, TokenizerInfo],
    ) -> SplitInfo:
        """Encode, pack and assemble the training split."""
        settings = self._settings
        counts = cleaned["counts"]
        largest = max(info.vocab_size for info in tokenizers.values())
        task = stages.EncodeTask(
            self._work_dir,
            encoder,
            settings.max_tokens,
            settings.row_length,
            "uint16" if largest <= 1 << 16 else "int32",
            None if settings.task == "language_model" else EOS_ID,
            settings.segmentations,
            settings.sampling_alpha,
            settings.augmentation,
            settings.seed,
            settings.keep_rejected,
        )
        left = counts[stages.PAIRS_IN] - sum(counts[reason] for reason in DROP_REASONS)
        with self._display.phase("encode and pack", settings.unit, total=left):
            results = self._map("encode", task, range(partitions))
        for result in results:
            counts[stages.TOO_MANY_TOKENS] += result[stages.TOO_MANY_TOKENS]
        self._check_left(counts)
        with self._display.phase("assemble shards", "records"):
            pair_files = self._assemble_pairs(results)
            row_info = self._assemble_rows(results, task.token_dtype)
        kept = sum(result["kept"] for result in results)
        labels = {
            label: sum(result["labels"][number] for result in results)
            for number, label in enumerate(encoder.labels)
        }
        return SplitInfo(
            files=pair_files,
            pairs_in=counts[stages.PAIRS_IN],
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
            labels=labels,
            characters=sum(result["text"][0] for result in results),
            text_bytes=sum(result["text"][1] for result in results),
            warnings=tuple(self._warnings(cleaned, row_info, labels)),
        )

    def _warnings(
        self, cleaned: Mapping[str, Any], info: RowsInfo | None, labels: Mapping[str, int]
    ) -> Iterator[str]:
        """Yield what looks wrong with the training split."""
        misaligned = alignment_warning(cleaned["align"], "train")
        if misaligned:
            yield misaligned
        if info and not info.rows:
            yield f"train: no example fits into a row of {info.row_length}; raise --row_length"
        tokens = sum(info.tokens.values()) if info else 0
        if info and self._settings.task == "language_model" and tokens < info.row_length:
            yield (
                f"train: has {tokens:,} tokens, fewer than a row of {info.row_length}; add text, "
                "or lower --row_length"
            )
        rare = [label for label, count in labels.items() if count < 2]
        if rare:
            yield (
                f"train: the label {rare[0]!r} has {labels[rare[0]] or 'no'} example; "
                f"{len(rare)} of {len(labels)} labels are as rare; add examples, or merge labels"
            )

    def _assemble_pairs(self, results: Sequence[Mapping[str, Any]]) -> tuple[FileInfo, ...]:
        """Deal the records out in equal numbers, in their order."""
        paths = [self._path(stages.PAIR_RECORDS, f"{number:06d}") for number in range(len(results))]
        ends = [
            np.cumsum(np.frombuffer(files.read_bytes(f"{path}.sizes"), np.int64)) for path in paths
        ]
        total, shards = sum(map(len, ends)), self._settings.num_shards
        items = []
        for shard in range(shards):
            first, last = shard * total // shards, (shard + 1) * total // shards
            spans = spans_of(paths, ends, first, last)
            items.append((shard_name("train", shard, shards), last - first, spans))
        found = self._map("shard", AssembleTask(self._work_dir), items, small=True)
        return tuple(FileInfo(**result["file"]) for result in found)

    def _assemble_rows(
        self, results: Sequence[Mapping[str, Any]], token_dtype: str
    ) -> RowsInfo | None:
        """Deal the packed rows out, in whole blocks."""
        settings = self._settings
        if not settings.row_length:
            return None
        features = packing.features(tuple(settings.languages), settings.labelled)
        size = rows.record_bytes(features, settings.row_length, token_dtype)
        paths = [self._path(stages.ROW_RECORDS, f"{number:06d}") for number in range(len(results))]
        ends = [np.arange(1, result["rows"] + 1) * size for result in results]
        total, shards = sum(map(len, ends)), settings.num_shards
        blocks = -(-total // BLOCK_ROWS)
        items = []
        for shard in range(shards):
            first, last = (
                min(total, i * blocks // shards * BLOCK_ROWS) for i in (shard, shard + 1)
            )
            spans = spans_of(paths, ends, first, last)
            items.append((shard_name("train-rows", shard, shards), last - first, spans))
        task = AssembleTask(self._work_dir, size, BLOCK_ROWS)
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
