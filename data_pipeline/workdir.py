"""Where a dataset is made: the output directory and the work directory inside it.

Everything is made in `_incomplete`. When it is complete, the files get their final names,
`dataset.json` last. A job that was killed leaves its plan and its results there, and the next one
with the same plan continues from them.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence

from common import files, lock
from common.errors import UsageError
from data_pipeline.dataset import tfds_metadata
from data_pipeline.dataset.manifest import MANIFEST_FILE, SCHEMA_VERSION, Manifest, load_manifest
from data_pipeline.dataset.verify import check_sizes
from data_pipeline.progress import Display
from data_pipeline.settings import Settings

WORK_DIR = "_incomplete"

_PLAN_FILE = "plan.json"
_REJECTED_FILE = "train.rejected.tsv"
# What this job may leave under a final name, if it is killed while it publishes.
_OWN_FILES = re.compile(
    r"(train|valid|test|train-rows)-\d{5}-of-\d{5}\.tfrecord|(valid|test)\.[^.]+\.txt"
    r"|tokenizer(\.source|\.target)?\.model|train\.rejected\.tsv|features\.json|dataset_info\.json"
    r"|label\.labels\.txt"
)


def find_finished(settings: Settings, inputs: Mapping[str, Sequence[str]]) -> Manifest | None:
    """Return the finished dataset if there is one and it is what the settings ask for.

    Raises:
        UsageError: the directory holds something else.
    """
    from tensorflow.io import gfile

    directory = settings.output_dir
    if not gfile.exists(directory):
        return None
    if not gfile.isdir(directory):
        raise UsageError(f"{directory}: is a file; --output_dir must name a directory")
    if not gfile.exists(os.path.join(directory, MANIFEST_FILE)):
        names = [name.rstrip("/") for name in gfile.listdir(directory)]
        names = [name for name in names if not files.is_temporary(name)]  # of a lock, perhaps
        # A killed run leaves its work directory; anything else belongs to somebody else.
        if names and WORK_DIR not in names and set(names) != {lock.FILE}:
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
        "the tokenizer is another" if split == "tokenizer" else f"the text of {split} is another"
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


@contextlib.contextmanager
def work_directory(
    settings: Settings, inputs: Mapping[str, Sequence[str]], display: Display, shares_work: bool
) -> Iterator[str]:
    """Make the work directory, or take the one that a killed job with the same plan has left.

    A job whose workers share the cleaning of a file (`Runner.shares_work`) leaves other parts than
    one that does not, and neither can continue from the other's.

    Bad input removes it again, and the output directory if it was made for this job; being
    interrupted does not.

    Raises:
        UsageError: it cannot be written.
    """
    import tensorflow as tf

    work_dir = os.path.join(settings.output_dir, WORK_DIR)
    plan = {"schema": SCHEMA_VERSION, "settings": settings.recorded(), "inputs": dict(inputs)}
    plan["shares_work"] = shares_work
    plan_path = os.path.join(work_dir, _PLAN_FILE)
    with files.storage_errors(f"{work_dir} cannot be made"):
        if tf.io.gfile.exists(plan_path) and files.read_json(plan_path) == plan:
            display.say(f"{work_dir}: continues from what an interrupted job has left")
        else:
            files.remove_tree(work_dir)
            for name in ("", "raw", "blocks", "text", "records", "rows", "rejected", "results"):
                tf.io.gfile.makedirs(os.path.join(work_dir, name))
            files.write_json(plan_path, plan)
    try:
        yield work_dir
    except UsageError:
        files.remove_tree(work_dir)
        raise


def publish(manifest: Manifest, work_dir: str, keep_rejected: bool) -> None:
    """Give the finished files their names, `dataset.json` last, and remove what is not theirs.

    If this is killed, there is no `dataset.json`, and the work directory tells the next run that
    it may replace what it finds.
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
    # From here on no job can continue from the work directory.
    gfile.remove(os.path.join(work_dir, _PLAN_FILE))
    files.remove(os.path.join(directory, MANIFEST_FILE))
    for name in gfile.listdir(directory):
        if _OWN_FILES.fullmatch(name) or (files.is_temporary(name) and name.endswith(lock.FILE)):
            gfile.remove(os.path.join(directory, name))
    for name in names:
        gfile.rename(os.path.join(work_dir, name), os.path.join(directory, name), overwrite=True)
    manifest.save()
    files.remove_tree(work_dir)
