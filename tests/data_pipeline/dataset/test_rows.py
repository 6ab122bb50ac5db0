"""Packed rows in files: the format, reading a block, and what damage is told."""

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from data_pipeline.dataset import rows
from data_pipeline.dataset.examples import describe_file, shard_name
from data_pipeline.dataset.manifest import Manifest, RowsInfo, TokenizerInfo
from data_pipeline.dataset.packing import Rows, features

LENGTH, BLOCK = 6, 4
FEATURES = features(("source", "target"))


def random_rows(count: int, vocab: int = 60_000) -> Rows:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, vocab, [count, LENGTH]).astype(np.int32) for _ in range(2)]
    segments = [rng.integers(0, 5, [count, LENGTH]).astype(np.int32) for _ in range(2)]
    return Rows(dict(zip(FEATURES, (ids[0], segments[0], ids[1], segments[1]), strict=True)))


def write(directory, packed: Rows, counts, token_dtype: str = "uint16"):
    """Writes files of so many rows each; returns a manifest (never saved) and the RowsInfo."""
    records = rows.serialize_rows(packed, token_dtype)
    size = rows.record_bytes(FEATURES, LENGTH, token_dtype)
    files, blocks, start = [], [], 0
    for shard, count in enumerate(counts):
        path = directory / shard_name("train-rows", shard, len(counts))
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records[start : start + count]:
                writer.write(record)
        start += count
        files.append(describe_file(str(path), path.name, count))
        blocks.append(rows.describe_blocks(str(path), size, BLOCK))
    info = RowsInfo(
        features=FEATURES,
        row_length=LENGTH,
        rows=start,
        left_out=0,
        tokens={"source": 0, "target": 0},
        token_dtype=token_dtype,
        record_bytes=size,
        block_rows=BLOCK,
        files=tuple(files),
        blocks=tuple(blocks),
    )
    tokenizer = TokenizerInfo("tokenizer.model", "", 60_000, "unigram")
    names = ("source", "target")
    languages = dict(zip(names, ("en", "de"), strict=True))
    tokenizers = dict.fromkeys(names, tokenizer)
    return Manifest(str(directory), "translation", languages, tokenizers, {}), info


def read(manifest: Manifest, info: RowsInfo, index: int) -> dict[str, np.ndarray]:
    return rows.read_block(rows.find_blocks(manifest, info), index, info)


def test_the_digest_is_farmhash64():
    """Its stable form: the number of "" is a constant of the algorithm (k2 of farmhash.h)."""
    assert rows.block_digest(b"") == (0x9AE16A3B2F90404F).to_bytes(8, "little").hex()
    assert rows.block_digest(b"a" * 100) != rows.block_digest(b"a" * 99 + b"b")


@pytest.mark.parametrize(("token_dtype", "vocab"), [("uint16", 65_536), ("int32", 250_000)])
def test_all_blocks_are_all_rows(tmp_path, token_dtype, vocab):
    """3 + 0 + 2 blocks, the last one with 1 row; every record has the size that is foretold."""
    packed = random_rows(17, vocab)
    manifest, info = write(tmp_path, packed, [12, 0, 5], token_dtype)
    assert [file.bytes for file in info.files] == [n * info.record_bytes for n in (12, 0, 5)]
    assert [len(digests) for digests in info.blocks] == [48, 0, 32]
    blocks = [read(manifest, info, index) for index in range(5)]
    assert [len(block["source"]) for block in blocks] == [4, 4, 4, 4, 1]
    for name in FEATURES:
        found = np.concatenate([block[name] for block in blocks])
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, packed.arrays[name])
    with pytest.raises(IndexError):
        read(manifest, info, 5)


def test_others_can_read_the_files(tmp_path):
    """They are TFRecord files of Examples with little-endian numbers."""
    packed = random_rows(4)
    manifest, info = write(tmp_path, packed, [4])
    (path,) = (manifest.path(file) for file in info.files)
    for row, record in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator()):
        features = tf.train.Example.FromString(record).features.feature
        assert sorted(features) == sorted(FEATURES)
        (ids,) = features["target"].bytes_list.value
        assert np.frombuffer(ids, "<u2").tolist() == packed.arrays["target"][row].tolist()
    assert rows.serialize_rows(packed, "uint16") == rows.serialize_rows(packed, "uint16")


def test_a_number_too_large_for_its_type():
    with pytest.raises(ValueError, match="source holds 65536, which uint16 cannot"):
        one = np.ones([1, 2], np.int32)
        arrays = {**dict.fromkeys(FEATURES, one), "source": 65_536 * one}
        rows.serialize_rows(Rows(arrays), "uint16")


def damaged(tmp_path, damage):
    """Reads block 4 (the second one of the second file) after `damage(its path)`."""
    manifest, info = write(tmp_path, random_rows(20), [12, 8])
    path = tmp_path / info.files[1].name
    damage(path)
    with pytest.raises(UsageError) as error:
        read(manifest, info, 4)
    assert "\n" not in str(error.value)
    begin = 4 * info.record_bytes
    return str(error.value), f"{path}, bytes {begin} to {2 * begin - 1} (rows 4 to 7): "


def test_a_flipped_bit(tmp_path):
    def flip(path):
        data = bytearray(path.read_bytes())
        data[len(data) - 30] ^= 1
        path.write_bytes(data)

    message, place = damaged(tmp_path, flip)
    assert message.startswith(place + "its checksum does not fit; the dataset is damaged: make it")
    assert message.endswith("trainer.main --skip_corrupt_data")


def test_a_truncated_file(tmp_path):
    message, place = damaged(tmp_path, lambda path: path.write_bytes(path.read_bytes()[:-7]))
    kept = 4 * rows.record_bytes(FEATURES, LENGTH, "uint16") - 7
    assert message.startswith(f"{place}the file ends after {kept} of these bytes; the dataset")


def test_swapped_files(tmp_path):
    """Every record is whole, and yet it is another one."""
    other = shard_name("train-rows", 0, 2)

    def swap(path):
        path.write_bytes((tmp_path / other).read_bytes()[: path.stat().st_size])

    message, place = damaged(tmp_path, swap)
    assert message.startswith(place + "its checksum does not fit")


def test_a_missing_file(tmp_path):
    message, _ = damaged(tmp_path, lambda path: path.unlink())
    assert "train-rows-00001-of-00002.tfrecord: no such file; the dataset is damaged" in message


def test_rows_of_another_length(tmp_path):
    """The digest fits, the content does not: an error all the same."""
    manifest, info = write(tmp_path, random_rows(4), [4])
    wrong = RowsInfo(**{**vars(info), "row_length": LENGTH + 1})
    with pytest.raises(UsageError, match="these are not packed rows"):
        read(manifest, wrong, 0)
