"""The preprocessing job: parallel text in, dataset directory out.

`prepare` is the whole job: copy what is held out, clean and shuffle the rest, train the tokenizer,
encode and pack, assemble the shards, publish. Everything is made in a work directory inside the
dataset directory; only when it is complete do the files get their final names, `dataset.json` last.
A job that was killed finds in that directory what it had done, and goes on from there.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from common import files
from common.errors import UsageError
from data_pipeline.dataset import tfds_metadata
from data_pipeline.dataset.manifest import MANIFEST_FILE, SCHEMA_VERSION, Manifest, load_manifest
from data_pipeline.dataset.tokenizer import check_model
from data_pipeline.dataset.verify import check_sizes
from data_pipeline.job import Job
from data_pipeline.progress import Display
from data_pipeline.runners.local import Runner
from data_pipeline.settings import Settings
from data_pipeline.sources.spec import Source, parse_spec, split_weight

WORK_DIR = "_incomplete"

_PLAN_FILE = "plan.json"
_REJECTED_FILE = "train.rejected.tsv"
# What this job may leave under a final name, if it is killed while it publishes.
_OWN_FILES = re.compile(
    r"(train|valid|test|train-rows)-\d{5}-of-\d{5}\.tfrecord|(valid|test)\.[^.]+\.txt"
    r"|tokenizer(\.source|\.target)?\.model|train\.rejected\.tsv|features\.json|dataset_info\.json"
)


def prepare(settings: Settings, beam_args: Sequence[str] = ()) -> Manifest:
    """Makes the dataset directory, or finds it made already.

    Args:
        settings: what to do.
        beam_args: options for Beam, such as `--direct_num_workers=2`.

    Returns:
        The manifest of the finished dataset.

    Raises:
        UsageError: bad input or settings, or the directory holds another dataset. Nothing is left
            behind then. The storage fails, a full disk perhaps: what is done stays for the next
            start, and makes no dataset.
    """
    import tensorflow as tf

    started = time.monotonic()
    display = Display()
    runner = _make_runner(beam_args)  # tells of a misspelled option even if nothing is to do
    sources = _parse(settings)
    inputs = {
        split: [_fingerprint(*source) for source in of_split] for split, of_split in sources.items()
    }
    if settings.tokenizer:
        inputs["tokenizer"] = [check_model(path).sha256 for path in settings.tokenizer]
    finished = _find_finished(settings, inputs)
    if finished:
        display.say(f"{settings.output_dir}: already finished with these settings, nothing to do")
        return finished

    try:
        with contextlib.ExitStack() as undo:
            work_dir = _make_work_dir(settings, inputs, display, undo)
            manifest = Job(settings, runner, work_dir, display).run(sources, inputs)
            undo.pop_all()
        _publish(manifest, work_dir, settings.keep_rejected)
    except (tf.errors.OpError, OSError) as error:
        raise UsageError(
            f"--output_dir={settings.output_dir}: {getattr(error, 'message', error)}; mend that "
            "and start the same command again, which goes on with what is done"
        ) from error
    for split in manifest.splits.values():
        for warning in split.warnings:
            display.warn(warning)
    display.summary(manifest, time.monotonic() - started)
    return manifest


def _parse(settings: Settings) -> dict[str, list[tuple[Source, float]]]:
    """Returns split -> (source, weight)."""
    parsed: dict[str, list[tuple[Source, float]]] = {}
    for split, specs in settings.specs().items():
        parsed[split] = []
        for text in specs:
            weight, spec = split_weight(text)
            if weight != 1 and split != "train":
                raise UsageError(f"--{split}={text}: only --train takes a weight")
            sources = parse_spec(spec, settings.source_lang, settings.target_lang)
            parsed[split] += [(source, weight) for source in sources]
    return parsed


def _fingerprint(source: Source, weight: float) -> str:
    return source.fingerprint() + (f" weight={weight}" if weight != 1 else "")


def _make_runner(beam_args: Sequence[str]) -> Runner:
    """A loop in this process, or Beam if there are options for it."""
    if not beam_args:
        return Runner()
    # Importing Beam takes seconds, and warns of optional parts that are not installed.
    logging.disable(logging.WARNING)
    try:
        from data_pipeline.runners.beam import BeamRunner
    finally:
        logging.disable(logging.NOTSET)
    return BeamRunner(beam_args)


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
        f"the {'text of ' * (split != 'tokenizer')}{split} is another"
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


def _make_work_dir(
    settings: Settings,
    inputs: Mapping[str, Sequence[str]],
    display: Display,
    undo: contextlib.ExitStack,
) -> str:
    """Makes a work directory, or takes the one that a killed job with the same plan has left.

    Bad input removes it again, and the output directory if that was made for it; being
    interrupted does not.
    """
    import tensorflow as tf

    work_dir = os.path.join(settings.output_dir, WORK_DIR)
    existed = tf.io.gfile.exists(settings.output_dir)
    plan = {"schema": SCHEMA_VERSION, "settings": settings.recorded(), "inputs": dict(inputs)}
    plan_path = os.path.join(work_dir, _PLAN_FILE)
    try:
        if tf.io.gfile.exists(plan_path) and files.read_json(plan_path) == plan:
            display.say(f"{work_dir}: goes on with what an interrupted job has left")
        else:
            files.remove_tree(work_dir)
            for name in ("", "raw", "blocks", "text", "records", "rows", "rejected", "results"):
                tf.io.gfile.makedirs(os.path.join(work_dir, name))
            files.write_json(plan_path, plan)
    except tf.errors.OpError as error:
        raise UsageError(f"{work_dir}: cannot be made ({error.message})") from error

    def clean_up(kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and issubclass(kind, UsageError):
            files.remove_tree(work_dir if existed else settings.output_dir)

    undo.push(clean_up)
    return work_dir


def _publish(manifest: Manifest, work_dir: str, keep_rejected: bool) -> None:
    """Gives the finished files their names, `dataset.json` last, and removes what is not theirs.

    If this is killed, there is no `dataset.json`, and the work directory tells the next run that
    what it finds may be replaced.
    """
    from tensorflow.io import gfile

    directory = manifest.directory
    names = [info.file for info in dict.fromkeys(manifest.tokenizers.values())]
    for split in manifest.splits.values():
        names += [file.name for file in split.all_files()]
    names += tfds_metadata.write(manifest, work_dir)
    if keep_rejected:
        folder = os.path.join(work_dir, "rejected")
        # A job that was killed may have left half a file, under a temporary name.
        parts = [name for name in sorted(gfile.listdir(folder)) if not files.is_temporary(name)]
        paths = [os.path.join(folder, name) for name in parts]
        files.join(paths, os.path.join(work_dir, _REJECTED_FILE))
        names.append(_REJECTED_FILE)
    # From here on the work directory cannot be gone on with.
    gfile.remove(os.path.join(work_dir, _PLAN_FILE))
    files.remove(os.path.join(directory, MANIFEST_FILE))
    for name in gfile.listdir(directory):
        if _OWN_FILES.fullmatch(name):
            gfile.remove(os.path.join(directory, name))
    for name in names:
        gfile.rename(os.path.join(work_dir, name), os.path.join(directory, name), overwrite=True)
    manifest.save()
    files.remove_tree(work_dir)
