import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from data_pipeline.dataset import examples as records
from data_pipeline.dataset.examples import (
    describe_file,
    load_tokenizers,
    read_examples,
    read_raw_text,
    write_examples,
)
from data_pipeline.dataset.manifest import FileInfo, Manifest, load_manifest
from data_pipeline.dataset.verify import verify


def write_ids(path: Path, pairs: list[tuple[list[int], list[int]]]) -> FileInfo:
    """Writes records of these ids, with their numbers for text."""
    texts = [b"text %d" % i for i in range(len(pairs))]
    source, target = zip(*pairs, strict=True)
    sizes = write_examples(
        str(path), {"en": texts, "de": texts}, {"source": source, "target": target}
    )
    assert sizes.sum() == path.stat().st_size
    return describe_file(str(path), path.name, len(sizes))


@pytest.fixture
def copy(dataset: Manifest, tmp_path: Path) -> Path:
    """A copy of the dataset to damage."""
    return Path(shutil.copytree(dataset.directory, tmp_path / "copy"))


def test_round_trip(dataset, tmp_path):
    pairs = [([5, 6, 7], [300]), ([], [4, 4]), ([304] * 1000, []), ([9], [8])]
    infos = tuple(
        write_ids(tmp_path / name, part) for name, part in (("a", pairs[:3]), ("b", pairs[3:]))
    )
    assert [(info.name, info.records) for info in infos] == [("a", 3), ("b", 1)]
    assert [info.bytes for info in infos] == [(tmp_path / name).stat().st_size for name in "ab"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    split = dataclasses.replace(dataset.splits["valid"], files=infos, kept=4)
    manifest = dataclasses.replace(dataset, directory=str(tmp_path), splits={"valid": split})
    read = read_examples(manifest, "valid")
    assert len(read) == 4
    assert [tuple(side.tolist() for side in read.example(i).values()) for i in range(4)] == pairs
    assert read.tokens["source"].dtype == read.tokens["target"].dtype == np.int32
    assert read.offsets["source"].tolist() == [0, 3, 3, 1003, 1004]
    assert read.offsets["target"].dtype == np.int64


def test_record_is_an_example_with_int64_lists(dataset):
    shard = Path(dataset.directory) / dataset.splits["train"].files[0].name
    (raw,) = tf.data.TFRecordDataset(str(shard)).take(1)
    example = tf.train.Example.FromString(raw.numpy())
    assert sorted(example.features.feature) == ["de", "en", "source_ids", "target_ids"]
    first = read_examples(dataset, "train").example(0)
    for side, ids in first.items():
        assert list(example.features.feature[f"{side}_ids"].int64_list.value) == ids.tolist()
    tokenizer = load_tokenizers(dataset)["target"]
    for lang, text in zip(("en", "de"), tokenizer.decode(list(first.values())), strict=True):
        assert example.features.feature[lang].bytes_list.value[0].decode() == text


def test_records_do_not_remember_the_one_before(tmp_path, monkeypatch):
    """All are made with one message, batch after batch; each equals one made afresh."""
    monkeypatch.setattr(records, "_WRITE_BATCH", 3)
    texts = [["long text " * 9, "", "ä", "x", "y"], ["a", "b", "", "c", "d"]]
    ids = [[[1, 2, 300], [], [7], [8, 9], [1]], [[], [4, 5], [6], [], [70000]]]
    write_examples(
        str(tmp_path / "a"),
        {lang: [t.encode() for t in side] for lang, side in zip(("en", "de"), texts, strict=True)},
        dict(zip(("source", "target"), ids, strict=True)),
    )
    found = [raw.numpy() for raw in tf.data.TFRecordDataset(str(tmp_path / "a"))]
    for i, raw in enumerate(found):
        expected = tf.train.Example()
        for lang, side in zip(("en", "de"), texts, strict=True):
            expected.features.feature[lang].bytes_list.value.append(side[i].encode())
        for name, side in zip(("source_ids", "target_ids"), ids, strict=True):
            # Also an empty list is there.
            expected.features.feature[name].int64_list.value.extend(side[i])
            expected.features.feature[name].int64_list.SetInParent()
        assert raw == expected.SerializeToString(deterministic=True)
    assert len(found) == 5


def test_many_batches_keep_order(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_PARSE_BATCH", 7)
    pairs = [([i % 300 + 4] * (i % 5), [i % 300 + 4]) for i in range(100)]
    info = write_ids(tmp_path / "a", pairs)
    split = dataclasses.replace(dataset.splits["valid"], files=(info,), kept=100)
    manifest = dataclasses.replace(dataset, directory=str(tmp_path), splits={"valid": split})
    read = read_examples(manifest, "valid")
    assert [tuple(side.tolist() for side in read.example(i).values()) for i in range(100)] == pairs


def test_manifest(dataset):
    manifest = load_manifest(dataset.directory)
    assert manifest == dataset
    assert manifest.task == "translation"
    assert manifest.languages == {"source": "en", "target": "de"}
    assert (manifest.pad_id, manifest.unk_id, manifest.bos_id, manifest.eos_id) == (0, 1, 2, 3)
    assert manifest.joint_vocabulary and manifest.tokenizers["source"].vocab_size == 305
    assert [tokenizer.vocab_size for tokenizer in load_tokenizers(manifest).values()] == [305, 305]
    assert len(manifest.fingerprint) == 64
    value = json.loads((Path(dataset.directory) / "dataset.json").read_text())
    assert value["schema_version"] == 3
    assert value["fingerprint"] == manifest.fingerprint
    assert value["tokenizer"]["source"]["sha256"] == manifest.tokenizers["source"].sha256
    train = value["splits"]["train"]
    assert train["pairs_in"] == train["kept"] + sum(train["dropped"].values()) == 600
    assert train["source_tokens"] == sum(n * count for n, count in train["source_lengths"])
    assert sum(count for _, count in train["target_lengths"]) == 600
    verify(manifest)


def test_raw_text(dataset):
    assert [len(side) for side in read_raw_text(dataset, "test").values()] == [30, 30]
    with pytest.raises(UsageError, match="raw text is kept for valid and test, not train"):
        read_raw_text(dataset, "train")
    with pytest.raises(UsageError, match="has no split 'dev', only train, valid, test"):
        read_examples(dataset, "dev")


def test_not_a_dataset(copy, tmp_path):
    with pytest.raises(UsageError, match=r"no such dataset directory; make one with python -m"):
        load_manifest(str(tmp_path / "nowhere"))
    (copy / "dataset.json").unlink()
    with pytest.raises(UsageError, match=r"it has no dataset\.json; make one with python -m"):
        load_manifest(str(copy))


def test_other_schema_version(copy):
    path = copy / "dataset.json"
    path.write_text(path.read_text().replace('"schema_version": 3', '"schema_version": 99'))
    with pytest.raises(UsageError, match="has schema version 99 but this program reads 3"):
        load_manifest(str(copy))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def delete(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip, empty, delete])
@pytest.mark.parametrize(
    "name",
    [
        "dataset.json",
        "tokenizer.model",
        "train-00001-of-00003.tfrecord",
        "test-00000-of-00001.tfrecord",
        "valid.en.txt",
        "test.de.txt",
    ],
)
def test_damage_is_told_in_one_line(copy, name: str, damage: Callable[[Path], None]):
    damage(copy / name)
    with pytest.raises(UsageError) as caught:
        verify(load_manifest(str(copy)))
    message = str(caught.value)
    assert name in message and "\n" not in message
    assert "again" in message or "make one" in message


def test_damage_of_any_byte_of_the_manifest_is_found(copy):
    path = copy / "dataset.json"
    whole = path.read_bytes()
    loaded = load_manifest(str(copy))
    for place in range(0, len(whole), 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            # White space may change; nothing that it says may.
            assert load_manifest(str(copy)) == loaded
        except UsageError as error:
            assert "dataset.json" in str(error)


def test_swapped_shards_are_found(copy, dataset):
    first, second = (copy / file.name for file in dataset.splits["train"].files[:2])
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(UsageError, match=r"train-00000-of-00003\.tfrecord"):
        read_examples(load_manifest(str(copy)), "train")


def test_records_that_do_not_parse(dataset, tmp_path):
    path = tmp_path / "a"
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(b"not an example")
    info = records.describe_file(str(path), "a", 1)
    split = dataclasses.replace(dataset.splits["valid"], files=(info,), kept=1)
    manifest = dataclasses.replace(dataset, directory=str(tmp_path), splits={"valid": split})
    with pytest.raises(UsageError, match="split 'valid' cannot be parsed"):
        read_examples(manifest, "valid")


def test_wrong_number_of_records(dataset, tmp_path):
    info: FileInfo = write_ids(tmp_path / "a", [([5], [6])])
    split = dataclasses.replace(dataset.splits["valid"], files=(info,), kept=2)
    manifest = dataclasses.replace(dataset, directory=str(tmp_path), splits={"valid": split})
    with pytest.raises(UsageError, match="has 1 records but the manifest says 2"):
        read_examples(manifest, "valid")
