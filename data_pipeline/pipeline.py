"""The preprocessing job: parallel text in, dataset directory out.

`prepare` is the whole job: read and clean (Beam), train the tokenizer (here), encode and write
(Beam), publish. Everything is made in a work directory inside the dataset directory; only when it
is complete do the files get their final names, `dataset.json` last.
"""

import contextlib
import heapq
import itertools
import logging
import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from data_pipeline import files
from data_pipeline.cleaning import REASONS, CleaningRules
from data_pipeline.errors import UsageError
from data_pipeline.manifest import MANIFEST_FILE, TOKENIZER_FILE
from data_pipeline.progress import Display
from data_pipeline.records import (
    FileInfo,
    Manifest,
    SideInfo,
    SplitInfo,
    check_sizes,
    load_manifest,
)
from data_pipeline.settings import Settings
from data_pipeline.sources import Source, parse_spec
from data_pipeline.tokenizer import train

if TYPE_CHECKING:
    from data_pipeline.runner import Runner

WORK_DIR = "_incomplete"
HELD_OUT = ("valid", "test")

# What this job may leave under a final name, if it is killed while it publishes.
_OWN_FILES = re.compile(r"(train|valid|test)-\d{5}-of-\d{5}\.tfrecord|(valid|test)\.[^.]+\.txt")


def prepare(settings: Settings, beam_args: Sequence[str] = ()) -> Manifest:
    """Makes the dataset directory, or finds it made already.

    Args:
        settings: what to do.
        beam_args: options for Beam, such as `--direct_num_workers=2`.

    Returns:
        The manifest of the finished dataset.

    Raises:
        UsageError: bad input or settings, or the directory holds another dataset. Nothing is left
            behind then.
    """
    started = time.monotonic()
    display = Display()
    # A misspelled option is told even if there is nothing to do.
    runner = _make_runner(beam_args) if beam_args else None
    sources = {
        split: [
            source
            for spec in specs
            for source in parse_spec(spec, settings.source_lang, settings.target_lang)
        ]
        for split, specs in settings.specs().items()
    }
    inputs = {split: [source.fingerprint() for source in of] for split, of in sources.items()}
    finished = _find_finished(settings, inputs)
    if finished:
        display.say(f"{settings.output_dir}: already finished with these settings, nothing to do")
        return finished

    with contextlib.ExitStack() as undo:
        work_dir = _make_work_dir(settings.output_dir, undo)
        runner = runner or _make_runner(())
        counts = _clean(settings, sources, runner, work_dir, display)
        _train_tokenizer(settings, work_dir, display)
        splits = _encode(settings, counts, runner, work_dir, display)
        manifest = Manifest(
            directory=settings.output_dir,
            source_lang=settings.source_lang,
            target_lang=settings.target_lang,
            vocab_size=settings.vocab_size,
            model_type=settings.model_type,
            tokenizer_sha256=files.sha256(os.path.join(work_dir, TOKENIZER_FILE)),
            splits=splits,
            settings=settings.recorded(),
            inputs=inputs,
        )
        undo.pop_all()
    _publish(manifest, work_dir)
    display.summary(manifest, time.monotonic() - started)
    return manifest


def _make_runner(beam_args: Sequence[str]) -> "Runner":
    """Imports Beam, which takes seconds and warns of optional parts that are not installed."""
    logging.disable(logging.WARNING)
    try:
        from data_pipeline.runner import Runner
    finally:
        logging.disable(logging.NOTSET)
    return Runner(beam_args)


def _find_finished(settings: Settings, inputs: Mapping[str, Sequence[str]]) -> Manifest | None:
    """Returns the finished dataset if there is one and it is what the settings ask for."""
    from tensorflow.io import gfile

    directory = settings.output_dir
    if not gfile.exists(directory):
        return None
    if not gfile.isdir(directory):
        raise UsageError(f"{directory}: is a file; --output_dir must name a directory")
    if not gfile.exists(os.path.join(directory, MANIFEST_FILE)):
        names = [name.rstrip("/") for name in gfile.listdir(directory)]
        # A killed run leaves its work directory; anything else belongs to somebody else.
        if names and WORK_DIR not in names:
            raise UsageError(
                f"{directory}: holds files but no dataset ({names[0]}, ...); name a new directory"
            )
        return None
    if settings.overwrite:
        return None
    manifest = load_manifest(directory)
    wanted = settings.recorded()
    # Of the inputs the content counts, not the place.
    different = [
        f"{name} was {manifest.settings.get(name)!r}, now {value!r}"
        for name, value in wanted.items()
        if name not in inputs and manifest.settings.get(name) != value
    ]
    different += [
        f"the text of {split} is another"
        for split in sorted({*inputs, *manifest.inputs})
        if list(inputs.get(split, ())) != list(manifest.inputs.get(split, ()))
    ]
    if different:
        raise UsageError(
            f"{directory}: holds a dataset made with other settings ({'; '.join(different)}); "
            "name another directory, or replace it with --overwrite"
        )
    check_sizes(manifest)
    return manifest


def _make_work_dir(output_dir: str, undo: contextlib.ExitStack) -> str:
    """Makes an empty work directory; `undo` removes it, and `output_dir` if that was made too."""
    import tensorflow as tf

    work_dir = os.path.join(output_dir, WORK_DIR)
    existed = tf.io.gfile.exists(output_dir)
    try:
        _remove_tree(work_dir)
        tf.io.gfile.makedirs(work_dir)
    except tf.errors.OpError as error:
        raise UsageError(f"{work_dir}: cannot be made ({error.message})") from error
    if not existed:
        undo.callback(_remove_tree, output_dir)
    undo.callback(_remove_tree, work_dir)
    return work_dir


def _remove_tree(directory: str) -> None:
    from tensorflow.io import gfile

    if gfile.exists(directory):
        gfile.rmtree(directory)


def _clean(
    settings: Settings,
    sources: Mapping[str, Sequence[Source]],
    runner: "Runner",
    work_dir: str,
    display: Display,
) -> dict[str, Counter]:
    """Runs the first pipeline. Returns split -> {"pairs_in": n, reason: n}."""
    from data_pipeline import steps

    with display.phase("read and clean", "pairs"):
        runner.run(
            lambda pipeline: steps.build_cleaning(
                pipeline,
                train=sources["train"],
                held_out=[(split, sources[split]) for split in HELD_OUT if split in sources],
                rules=CleaningRules(settings.max_tokens, settings.max_length_ratio),
                num_shards=settings.num_shards,
                seed=settings.seed,
                langs=settings.langs,
                work_dir=work_dir,
                share_work=runner.shares_work,
            )
        )
    errors = files.read_json(os.path.join(work_dir, steps.ERRORS_FILE))
    if errors:
        # The first one in the order of the input, whichever worker met it.
        raise UsageError(min(errors)[-1])
    counts: dict[str, Counter] = {split: Counter() for split in sources}
    for name, count in files.read_json(os.path.join(work_dir, steps.COUNTS_FILE)):
        split, _, reason = name.partition("/")
        counts[split][reason] += count
    for split, found in counts.items():
        if not found[steps.PAIRS_IN]:
            raise UsageError(f"--{split}: no lines in {', '.join(settings.specs()[split])}")
    _check_left(counts["train"])
    return counts


def _check_left(counts: Counter) -> None:
    """Raises `UsageError` if every training pair was dropped."""
    dropped = {reason: counts[reason] for reason in REASONS if counts[reason]}
    if sum(dropped.values()) == counts["pairs_in"]:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
        raise UsageError(
            f"--train: none of the {counts['pairs_in']} pairs is left after cleaning ({reasons}); "
            "look at the input, or raise --max_tokens or --max_length_ratio"
        )


def _train_tokenizer(settings: Settings, work_dir: str, display: Display) -> None:
    """Trains the joint vocabulary on a sample of the clean text and writes the model."""
    with display.phase("train tokenizer", "sentences"):
        model = train(
            _sample(settings, work_dir),
            settings.vocab_size,
            settings.model_type,
            settings.character_coverage,
        )
    files.write_bytes(os.path.join(work_dir, TOKENIZER_FILE), model)


def _sample(settings: Settings, work_dir: str) -> Iterator[str]:
    """Yields both sides of the pairs with the lowest shuffle keys.

    The shards are sorted by key, so merging them gives a uniform sample whose order does not
    depend on the number of shards.
    """
    from tensorflow.io import gfile

    from data_pipeline.progress import tick
    from data_pipeline.steps import clean_text_path

    with contextlib.ExitStack() as opened:
        paths = [clean_text_path(work_dir, shard) for shard in range(settings.num_shards)]
        shards = [
            opened.enter_context(files.open_binary(path)) for path in paths if gfile.exists(path)
        ]
        for line in itertools.islice(heapq.merge(*shards), settings.tokenizer_sample):
            yield from line.decode().rstrip("\n").split("\t")[1:]
            tick(2)


def _encode(
    settings: Settings,
    counts: Mapping[str, Counter],
    runner: "Runner",
    work_dir: str,
    display: Display,
) -> dict[str, SplitInfo]:
    """Runs the second pipeline. Returns what `dataset.json` says about the splits."""
    from data_pipeline import steps

    num_shards = {split: settings.num_shards if split == "train" else 1 for split in counts}
    jobs = [
        steps.ShardJob(split, shard, number)
        for split, number in num_shards.items()
        for shard in range(number)
    ]
    total = sum(
        found[steps.PAIRS_IN] - sum(found[reason] for reason in REASONS)
        for found in counts.values()
    )
    with display.phase("encode and write", "pairs", total=total):
        runner.run(
            lambda pipeline: steps.build_encoding(
                pipeline,
                jobs=jobs,
                tokenizer_path=os.path.join(work_dir, TOKENIZER_FILE),
                max_tokens=settings.max_tokens,
                langs=settings.langs,
                work_dir=work_dir,
            )
        )
    shards = files.read_json(os.path.join(work_dir, steps.SHARDS_FILE))
    shards.sort(key=lambda shard: shard["shard"])
    by_split = {
        split: [shard for shard in shards if shard["split"] == split] for split in num_shards
    }
    for split, of_split in by_split.items():
        for shard in of_split:
            counts[split].update(shard["dropped"])
    _check_left(counts["train"])
    return {split: _split_info(counts[split], of_split) for split, of_split in by_split.items()}


def _split_info(counts: Counter, shards: Sequence[Mapping[str, Any]]) -> SplitInfo:
    """Adds up what the shards of a split report."""
    infos = tuple(FileInfo(**shard["file"]) for shard in shards)
    return SplitInfo(
        files=infos,
        pairs_in=counts["pairs_in"],
        kept=sum(info.records for info in infos),
        dropped={reason: counts[reason] for reason in REASONS if counts[reason]},
        source=_side_info([shard["source_lengths"] for shard in shards]),
        target=_side_info([shard["target_lengths"] for shard in shards]),
        raw_text=tuple(FileInfo(**file) for shard in shards for file in shard["raw_text"]),
    )


def _side_info(histograms: Sequence[Sequence[tuple[int, int]]]) -> SideInfo:
    lengths: dict[int, int] = defaultdict(int)
    for length, count in itertools.chain(*histograms):
        lengths[length] += count
    return SideInfo(
        tokens=sum(length * count for length, count in lengths.items()),
        max_length=max(lengths, default=0),
        lengths=tuple(sorted(lengths.items())),
    )


def _publish(manifest: Manifest, work_dir: str) -> None:
    """Gives the finished files their names, `dataset.json` last, and removes what is not theirs.

    If this is killed, there is no `dataset.json`, and the work directory tells the next run that
    what it finds may be replaced.
    """
    from tensorflow.io import gfile

    directory = manifest.directory
    if gfile.exists(os.path.join(directory, MANIFEST_FILE)):
        gfile.remove(os.path.join(directory, MANIFEST_FILE))
    for name in gfile.listdir(directory):
        if _OWN_FILES.fullmatch(name):
            gfile.remove(os.path.join(directory, name))
    names = [TOKENIZER_FILE]
    for split in manifest.splits.values():
        names += [file.name for file in (*split.files, *split.raw_text)]
    for name in names:
        gfile.rename(os.path.join(work_dir, name), os.path.join(directory, name), overwrite=True)
    manifest.save()
    gfile.rmtree(work_dir)
