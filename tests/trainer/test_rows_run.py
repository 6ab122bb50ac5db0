"""Runs on a dataset with packed rows: what is read how, damage, and the counts in the log."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from data_pipeline.dataset import examples as records
from data_pipeline.dataset import packing, rows
from data_pipeline.dataset.examples import describe_file, shard_name
from data_pipeline.dataset.manifest import Manifest, RowsInfo, load_manifest
from trainer import loop
from trainer.input import memory as trainer_input
from trainer.input.load import load_training_data
from trainer.input.rows import StreamedData
from trainer.metrics import flops
from trainer.run import assemble

LENGTH, BLOCK = 16, 4


@pytest.fixture
def with_rows(manifest, tmp_path) -> Manifest:
    """The dataset of 40 pairs, packed into rows of 16, in two files."""
    directory = tmp_path / "data"
    shutil.copytree(manifest.directory, directory)
    packed = packing.pack(records.read_examples(manifest, "train"), LENGTH, manifest.eos_id)
    size = rows.record_bytes(tuple(packed.arrays), LENGTH, "uint16")
    half = len(packed) // 2 // BLOCK * BLOCK
    files, blocks = [], []
    for shard, (begin, end) in enumerate(((0, half), (half, len(packed)))):
        path = directory / shard_name("train-rows", shard, 2)
        part = packed.take(np.arange(begin, end))
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in rows.serialize_rows(part, "uint16"):
                writer.write(record)
        files.append(describe_file(str(path), path.name, end - begin))
        blocks.append(rows.describe_blocks(str(path), size, BLOCK))
    info = RowsInfo(
        features=tuple(packed.arrays),
        row_length=LENGTH,
        rows=len(packed),
        left_out=packed.left_out,
        tokens=packed.tokens(),
        token_dtype="uint16",
        record_bytes=size,
        block_rows=BLOCK,
        files=tuple(files),
        blocks=tuple(blocks),
    )
    train = dataclasses.replace(manifest.splits["train"], rows=info)
    splits = {**manifest.splits, "train": train}
    dataclasses.replace(manifest, directory=str(directory), splits=splits).save()
    return load_manifest(str(directory))


def test_rows_are_streamed(with_rows, tiny_config, monkeypatch):
    """The records are not read at all, and an epoch holds the same rows as packing in memory."""
    pairs = records.read_examples(with_rows, "train")
    monkeypatch.setattr(records, "read_examples", None)
    config = tiny_config(train={"batch_tokens": LENGTH})
    data = load_training_data(with_rows, config, 1)
    assert isinstance(data, StreamedData)
    assert data.origin == f"{data.info.rows:,} packed rows, read from 2 files as needed"
    memory = trainer_input.training_data(pairs, config, with_rows.eos_id, 1)
    assert data.batches_per_epoch == memory.batches_per_epoch == data.info.rows
    assert data.left_out() == memory.left_out() and data.shapes == memory.shapes == [(1, LENGTH)]
    assert data.fill_rate() == pytest.approx(memory.fill_rate(), abs=1e-12)
    epochs = [
        sorted(
            tuple(np.concatenate([value[0] for _, value in sorted(batch.items())]).tolist())
            for batch in of.dataset(0).take(data.info.rows).as_numpy_iterator()
        )
        for of in (data, memory)
    ]
    assert epochs[0] == epochs[1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"row_length": 32},
            "packed in memory: the dataset has rows of 16; data_pipeline.main --row_length=32 ",
        ),
        ({"batching": "bucketed"}, "read into memory: batching is bucketed"),
    ],
)
def test_other_rows_are_made_in_memory(with_rows, tiny_config, fields, reason):
    """And the log says why."""
    config = tiny_config(data=fields, train={"batch_tokens": 256})
    data = load_training_data(with_rows, config, 1)
    assert isinstance(data, trainer_input.InMemoryData) and data.origin.startswith(reason)


@pytest.mark.parametrize("fields", [{"row_length": 8}, {"batching": "bucketed", "buckets": (8,)}])
def test_rows_shorter_than_the_pieces_of_documents(with_rows, tiny_config, fields):
    """Nearly all pieces are as long as a row, and would be left out."""
    documents = dataclasses.replace(with_rows, task="language_model")
    config = tiny_config(data=fields, train={"batch_tokens": 256})
    with pytest.raises(UsageError, match=r"^rows of 8 tokens: the documents of .* of up to 16, wh"):
        load_training_data(documents, config, 1)


def test_a_dataset_without_rows(manifest, tiny_config):
    data = load_training_data(manifest, tiny_config(), 1)
    assert data.origin.startswith("packed in memory: the dataset has no packed rows; data_pipe")


def test_sizes_are_checked_at_the_start(with_rows, tiny_config):
    path = with_rows.path(with_rows.splits["train"].rows.files[1])
    with open(path, "ab") as file:
        file.write(b"more")
    with pytest.raises(UsageError, match=r"train-rows-00001-of-00002\.tfrecord: has .* but was"):
        load_training_data(with_rows, tiny_config(), 1)


def train(manifest, config, strategy, directory, *, skip: bool = False) -> list[dict]:
    """Trains; returns the metrics of training."""
    hardware = flops.Hardware(strategy.num_replicas_in_sync, "float32")
    run = assemble(
        config, manifest, str(directory), strategy, "float32", False, hardware,
        skip_corrupt_data=skip,
    )  # fmt: skip
    assert loop.train(run) == 0
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == "train"]


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_run_on_damaged_data(
    with_rows, tiny_config, one_device, two_replicas, tmp_path, capfd, replicas
):
    """It ends with one line that names the place, or goes on and counts the rows."""
    info = with_rows.splits["train"].rows
    assert info.rows == 19
    config = tiny_config(train={"steps": 5, "evaluate_every": 9, "batch_tokens": LENGTH * 20})
    strategy = one_device if replicas == 1 else two_replicas
    path = with_rows.path(info.files[0])
    with open(path, "r+b") as file:
        file.seek(5 * info.record_bytes + 50)
        file.write(b"\xff\xfe\xfd")
    with pytest.raises(UsageError) as error:
        train(with_rows, config, strategy, tmp_path / "first")
    begin, end = 4 * info.record_bytes, 8 * info.record_bytes - 1
    assert str(error.value).startswith(
        f"{path}, bytes {begin} to {end} (rows 4 to 7): its checksum does not fit; the dataset"
    )
    assert "\n" not in str(error.value)
    metrics = train(with_rows, config, strategy, tmp_path / "second", skip=True)
    # 5 steps of 20 rows are 5 epochs of 19 and 5 rows more.
    assert 4 * 5 <= sum(line["corrupt_rows"] for line in metrics) <= 4 * 6
    assert "corrupt rows left empty" in capfd.readouterr().out
