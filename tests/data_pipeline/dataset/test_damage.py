"""Files of a finished dataset, damaged in every way: told in one line, or without any effect.

Each damage is done to a real dataset, which is then read as a training run reads it, and as
`data_pipeline.inspect` does. One of two things must follow: a `UsageError` that names the file, or
the very batches, texts and ids that the undamaged files give.
"""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from configs.schema import Config, DataConfig, TrainConfig
from data_pipeline import job
from data_pipeline.dataset.examples import load_tokenizers, read_examples, read_raw_text
from data_pipeline.dataset.manifest import Manifest, load_manifest
from data_pipeline.dataset.verify import verify
from data_pipeline.job import prepare
from tests.commands import run_command
from trainer.input.load import load_training_data
from trainer.input.rows import StreamedData

ROOT = Path(__file__).resolve().parents[3]
ROW_LENGTH, BLOCK_ROWS, BATCH_ROWS = 64, 8, 5
# For people and for tensorflow_datasets; nothing of ours reads them.
UNREAD = {"dataset_info.json", "features.json", "train.rejected.tsv"}

Files = dict[str, bytes]


def list_damages(name: str, files: Files, older: Files, record_bytes: int) -> dict[str, Files]:
    """Kind of damage -> the files that it changes; None in the place of one that is deleted."""
    data, rng = files[name], random.Random(name)
    size = len(data)

    def patched(start: int, new: bytes) -> bytes:
        return data[:start] + new + data[start + len(new) :]

    def flipped(place: int) -> bytes:
        return patched(place, bytes([data[place] ^ 1 << rng.randrange(8)]))

    middle = rng.randrange(1, size - 1)
    found = {
        "empty": b"",
        "cut by a byte": data[:-1],
        "cut": data[:middle],
        "longer by a byte": data + b"\n",
        "twice": data * 2,
        "first bit": flipped(0),
        "last bit": flipped(size - 1),
        "a bit": flipped(middle),
        "another bit": flipped(rng.randrange(size)),
        "zeros": patched(middle, bytes(min(64, size - middle))),
        "only zeros": bytes(size),
        "two halves swapped": data[size // 2 :] + data[: size // 2],
        "deleted": None,
    }
    if name in older:
        found["older"] = older[name]
    if name.startswith("train-rows"):
        block = BLOCK_ROWS * record_bytes
        for what, unit in (("rows", record_bytes), ("blocks", block)):
            first, second = sorted(rng.sample(range(size // unit), 2))
            a, b = (data[i * unit : (i + 1) * unit] for i in (first, second))
            found[f"two {what} swapped"] = (
                data[: first * unit]
                + b
                + data[(first + 1) * unit : second * unit]
                + a
                + data[(second + 1) * unit :]
            )
            found[f"one of the {what} twice"] = patched(second * unit, a)
        # One bit in each part of a frame: length, its checksum, record, checksum.
        for part, place in (("length", 1), ("checksum", 9), ("record", 40), ("end", -1)):
            found[f"a bit of a {part}"] = flipped(place + rng.randrange(1, size // block) * block)
    damages = {kind: {name: new} for kind, new in found.items()}
    suffix = name.rpartition(".")[2]
    others = [other for other in files if other != name and other.endswith(suffix)]
    for other in others[:2]:
        damages[f"swapped with {other}"] = {name: files[other], other: data}
    return {
        kind: changed
        for kind, changed in damages.items()
        if any(new != files[file] for file, new in changed.items())
    }


def list_changed_numbers(manifest: bytes, count: int) -> dict[str, Files]:
    """`dataset.json` with one value changed each, still valid JSON."""
    places: list[tuple] = []

    def walk(value, place: tuple) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            if isinstance(item, dict | list):
                walk(item, (*place, key))
            else:
                places.append((*place, key))

    walk(json.loads(manifest), ())
    damages = {}
    for place in random.Random(0).sample(places, count):
        changed = json.loads(manifest)
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        old = inner[place[-1]]
        if isinstance(old, bool) or old is None:
            inner[place[-1]] = 1
        else:
            inner[place[-1]] = old + 1 if isinstance(old, int | float) else old + "1"
        text = json.dumps(changed, indent=1, ensure_ascii=False) + "\n"
        damages["/".join(map(str, place))] = {"dataset.json": text.encode()}
    return damages


@dataclass(frozen=True)
class Dataset:
    """A finished dataset, and what a training run sees of it.

    Attributes:
        directory: where it is.
        files: name -> content.
        older: the same of a dataset made of other text.
        record_bytes: of a packed row.
        data: the training split; its files are opened anew by each pass over `batches`.
        batches: one epoch.
        seen: what `read` gave while it was whole.
    """

    directory: Path
    files: Files
    older: Files
    record_bytes: int
    data: StreamedData
    batches: tf.data.Dataset
    seen: list

    def damage(self, changed: Files) -> None:
        """Changes files; `repair` undoes it."""
        for name, new in changed.items():
            if new is None:
                (self.directory / name).unlink()
            else:
                (self.directory / name).write_bytes(new)

    def repair(self, changed: Files) -> None:
        for name in changed:
            (self.directory / name).write_bytes(self.files[name])


def contents(directory: str) -> Files:
    return {path.name: path.read_bytes() for path in sorted(Path(directory).iterdir())}


def config() -> Config:
    return Config(
        data=DataConfig(row_length=ROW_LENGTH),
        train=TrainConfig(batch_tokens=BATCH_ROWS * ROW_LENGTH),
    )


def read(directory: Path, data: StreamedData, batches: tf.data.Dataset) -> list:
    """Everything that a training run and an evaluation read, as a list of arrays and texts."""
    manifest = load_manifest(str(directory))
    load_training_data(manifest, config(), 1)
    seen: list = [tokenizer.sha256 for tokenizer in load_tokenizers(manifest).values()]
    for split in manifest.splits:
        examples = read_examples(manifest, split)
        seen += [*examples.tokens.values(), *examples.offsets.values()]
    for split in ("valid", "test"):
        seen += read_raw_text(manifest, split).values()
    number = 0
    try:
        for batch in batches.as_numpy_iterator():
            number += 1
            seen += [array for _, array in sorted(batch.items())]
    except tf.errors.OpError:
        data.check(number)  # as the training loop does
        raise
    return seen


def assert_same(seen: list, wanted: list) -> None:
    assert len(seen) == len(wanted)
    for value, other in zip(seen, wanted, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, make_settings, sentences, write_text) -> Dataset:
    directory = tmp_path_factory.mktemp("damage")
    pairs = sentences(160, 20)
    options = {
        "row_length": ROW_LENGTH,
        "num_shards": 2,
        "joint_vocabulary": False,
        "keep_rejected": True,
        "vocab_size": 290,
    }
    made: list[Manifest] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "BLOCK_ROWS", BLOCK_ROWS)
        for name, train in (("new", pairs[:120] + pairs[:3]), ("older", pairs[30:])):
            spec = write_text(directory / "text", name, train)
            made.append(prepare(make_settings(directory / name, train=(spec,), **options)))
    manifest = made[0]
    data = load_training_data(manifest, config(), 1)
    assert isinstance(data, StreamedData)
    info = data.info
    # So small that an epoch takes several.
    data = StreamedData(manifest, info, BATCH_ROWS, data.seed, buffer_rows=2 * BLOCK_ROWS)
    assert info.rows > 40
    batches = data.dataset(0).take(-(-info.rows // BATCH_ROWS))
    seen = read(directory / "new", data, batches)
    files, older = (contents(one.directory) for one in made)
    return Dataset(directory / "new", files, older, info.record_bytes, data, batches, seen)


def told(action: Callable[[], object]) -> str | None:
    """The message of the `UsageError` that an action raises, or None."""
    try:
        action()
    except UsageError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def check(whole: Dataset, kind: str, changed: Files) -> None:
    """Damages the dataset, reads it and repairs it."""
    whole.damage(changed)
    try:
        result: list = []

        def train() -> None:
            result.extend(read(whole.directory, whole.data, whole.batches))

        def inspect() -> None:
            verify(load_manifest(str(whole.directory)))

        messages = [told(train), told(inspect)]
        if messages == [None, None]:
            assert set(changed) <= UNREAD or is_same_json(whole, changed), "not noticed"
            assert_same(result, whole.seen)
            return
        for message in messages:
            assert message, "noticed by one of two readers only"
            named = [name for name in whole.files if name in message]
            if changed == {"dataset.json": whole.older["dataset.json"]}:
                # A whole file: that the others are not its own is all that can be told.
                assert named, message
            else:
                assert set(named) & set(changed), message
    except Exception as error:
        raise AssertionError(f"{kind}: {sorted(changed)}: {error!r}") from error
    finally:
        whole.repair(changed)


def is_same_json(whole: Dataset, changed: Files) -> bool:
    """Whether `dataset.json` says the same in other white space."""
    try:
        return all(
            json.loads(new) == json.loads(whole.files[name]) for name, new in changed.items()
        )
    except (TypeError, ValueError):
        return False


@pytest.mark.slow
def test_damaged_files(whole):
    """Every kind of damage to every file, some 240."""
    count = 0
    for name in whole.files:
        for kind, changed in list_damages(
            name, whole.files, whole.older, whole.record_bytes
        ).items():
            check(whole, kind, changed)
            count += 1
    assert count >= 200
    assert contents(str(whole.directory)) == whole.files


def test_changed_values(whole):
    """`dataset.json` is valid JSON, but something in it is another."""
    for kind, changed in list_changed_numbers(whole.files["dataset.json"], 60).items():
        check(whole, kind, changed)


def test_what_the_checks_rest_on(whole):
    """Reading the whole dataset twice gives the same, and every kind of file is there."""
    assert_same(read(whole.directory, whole.data, whole.batches), whole.seen)
    assert set(whole.files) == UNREAD | {
        "dataset.json",
        "tokenizer.source.model",
        "tokenizer.target.model",
        *(f"{split}.{lang}.txt" for split in ("valid", "test") for lang in ("en", "de")),
        *(f"{split}-00000-of-00001.tfrecord" for split in ("valid", "test")),
        *(
            f"{split}-0000{shard}-of-00002.tfrecord"
            for split in ("train", "train-rows")
            for shard in (0, 1)
        ),
    }


@pytest.mark.parametrize("module", ["data_pipeline.inspect", "trainer.main"])
def test_commands(whole, tmp_path, module):
    """One line and exit code 2."""
    directory = tmp_path / "damaged"
    shutil.copytree(whole.directory, directory)
    path = directory / "train-rows-00001-of-00002.tfrecord"
    path.write_bytes(path.read_bytes()[:-100])
    arguments = [str(directory)]
    if module == "trainer.main":
        arguments = [
            "--strategy=one_device",
            f"--config={ROOT / 'configs' / 'demo.py'}",
            f"--config.data.row_length={ROW_LENGTH}",
            "--config.model.tied_embeddings=target",
            f"--data_dir={directory}",
            f"--model_dir={tmp_path / 'model'}",
        ]
    code, _, error = run_command(module, *arguments)
    assert code == 2, error
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert line.startswith(f"error: {path}: has ")
    assert line.endswith("make it again with data_pipeline.main --overwrite")
