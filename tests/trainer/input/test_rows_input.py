"""Rows read from files: every row once an epoch, in an order that the step alone decides."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from data_pipeline.dataset import packing, rows
from data_pipeline.dataset.examples import describe_file, shard_name
from data_pipeline.dataset.manifest import SEQUENCES, Manifest, RowsInfo, TokenizerInfo
from data_pipeline.dataset.packing import Rows
from trainer.input.distribution import distribute
from trainer.input.rows import StreamedData
from trainer.tasks.translation import FEATURES

LENGTH, BLOCK = 4, 3


def numbered_rows(count: int) -> Rows:
    """Row i holds 1 + i everywhere, on both sides."""
    ids = np.repeat(np.arange(1, 1 + count, dtype=np.int32)[:, np.newaxis], LENGTH, 1)
    ones = np.ones_like(ids)
    return Rows(dict(zip(FEATURES, (ids, ones, ids, ones), strict=True)))


@pytest.fixture
def streamed(tmp_path):
    """Returns StreamedData of numbered rows in files of so many rows each, in blocks of 3."""

    def make(counts, batch_rows: int, buffer_rows: int = 6, seed: int = 1, **fields):
        packed = numbered_rows(sum(counts))
        records = rows.serialize_rows(packed, "uint16")
        size, start, files, blocks = rows.record_bytes(FEATURES, LENGTH, "uint16"), 0, [], []
        for shard, count in enumerate(counts):
            path = tmp_path / shard_name("train-rows", shard, len(counts))
            with tf.io.TFRecordWriter(str(path)) as writer:
                for record in records[start : start + count]:
                    writer.write(record)
            start += count
            files.append(describe_file(str(path), path.name, count))
            blocks.append(rows.describe_blocks(str(path), size, BLOCK))
        tokens = start * LENGTH
        info = RowsInfo(
            features=FEATURES,
            row_length=LENGTH,
            rows=start,
            left_out=2,
            tokens={"source": tokens, "target": tokens // 2},
            token_dtype="uint16",
            record_bytes=size,
            block_rows=BLOCK,
            files=tuple(files),
            blocks=tuple(blocks),
        )
        tokenizer = TokenizerInfo("tokenizer.model", "", 30, "unigram")
        manifest = Manifest(
            str(tmp_path),
            "translation",
            {"source": "en", "target": "de"},
            {"source": tokenizer, "target": tokenizer},
            {},
        )
        return StreamedData(manifest, info, batch_rows, seed, buffer_rows=buffer_rows, **fields)

    return make


def take(dataset, count: int) -> list[np.ndarray]:
    """The numbers of the rows of each batch; checks that all features agree."""
    result = []
    for batch in dataset.take(count).as_numpy_iterator():
        assert sorted(batch) == sorted(FEATURES)
        np.testing.assert_array_equal(batch["source"], batch["target"])
        np.testing.assert_array_equal(batch["source_segments"], batch["source"] > 0)
        assert (batch["source"] == batch["source"][:, :1]).all()
        assert batch["source"].dtype == np.int32
        result.append(batch["source"][:, 0])
    return result


def test_the_features_are_those_of_the_task():
    assert packing.features(SEQUENCES["translation"]) == FEATURES


@pytest.mark.parametrize(
    "counts", [[1], [2], [3], [4], [5, 0], [6, 1], [9, 0, 8], [12, 12, 6], [60, 39, 1]]
)
def test_an_epoch_is_a_permutation(streamed, counts):
    """All rows once, in each of three epochs; also with a small last block and empty files."""
    count = sum(counts)
    epochs = take(streamed(counts, batch_rows=count).dataset(0), 3)
    for epoch in epochs:
        assert sorted(epoch) == list(range(1, count + 1))
    if count > 6:
        assert not np.array_equal(epochs[0], epochs[1])
        assert not np.array_equal(epochs[1], epochs[2])
        assert not np.array_equal(epochs[0], sorted(epochs[0]))


def test_the_two_shuffles(streamed):
    """A buffer of 6 rows is two blocks, in another order; over time, any two."""
    data = streamed([30], batch_rows=30)
    neighbours = set()
    for epoch in take(data.dataset(0), 40):
        for buffer in np.split(epoch, 5):
            blocks = sorted({(row - 1) // BLOCK for row in buffer})
            assert len(blocks) == 2
            assert sorted(buffer) == [3 * b + n for b in blocks for n in (1, 2, 3)]
            neighbours.add(tuple(blocks))
    assert len(neighbours) > 40  # of the 45 pairs of 10 blocks
    assert (
        len({tuple(np.argsort(b)) for e in take(data.dataset(0), 40) for b in np.split(e, 5)}) > 90
    )


def test_seeds_decide_the_order(streamed):
    first, again, other = (take(streamed([50], 50, seed=n).dataset(0), 1)[0] for n in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_fewer_rows_than_a_batch(streamed):
    """5 rows in batches of 8: five batches are all rows eight times."""
    data = streamed([5], batch_rows=8)
    batches = take(data.dataset(0), 5)
    assert data.batches_per_epoch == 1
    assert sorted(np.concatenate(batches)) == sorted([*range(1, 6)] * 8)


def test_fewer_rows_than_a_buffer(streamed):
    """One buffer an epoch, in another order each time."""
    data = streamed([20], batch_rows=10, buffer_rows=4096)
    batches = take(data.dataset(0), 4)
    assert sorted(np.concatenate(batches[:2])) == sorted(np.concatenate(batches[2:]))
    assert not np.array_equal(np.concatenate(batches[:2]), np.concatenate(batches[2:]))


@pytest.mark.parametrize("buffer_rows", [1, 6, 100])
def test_position_is_a_function_of_the_step(streamed, buffer_rows):
    """What starts at step k goes on as if it had started at 0: seeking is walking there."""
    data = streamed([12, 9, 2], batch_rows=4, buffer_rows=buffer_rows)
    whole = take(data.dataset(0), 40)
    for step in (1, 5, 6, 13, 29):
        resumed = take(data.dataset(step), 40 - step)
        for ours, expected in zip(resumed, whole[step:], strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_seeking_far_reads_one_buffer_only(streamed, monkeypatch):
    """Step a million of 8 rows each: the pipeline begins with the buffer that has it."""
    data = streamed([12, 9, 2], batch_rows=8)
    position = 8 * 10**6
    epoch, place = divmod(position, 23)
    assert data._buffer_of(position) == epoch * 4 + place // 6
    two = take(data.dataset(10**6), 6)  # 48 rows: two epochs and a part
    assert min(np.bincount(np.concatenate(two))[1:]) >= 1


@pytest.mark.parametrize(("replicas", "workers"), [(1, 1), (2, 1), (4, 1), (2, 2), (4, 2), (4, 4)])
def test_replicas_share_the_global_batch(streamed, replicas, workers):
    """The parts of all replicas, on however many workers, are the batch of one replica."""
    data = streamed([12, 9, 2], batch_rows=8)
    whole = take(data.dataset(2), 9)
    local = replicas // workers
    parts = [
        take(data.dataset(2, replicas, worker * local, local), 9 * local)
        for worker in range(workers)
    ]
    for step, expected in enumerate(whole):
        ours = [part for of in parts for part in of[step * local : (step + 1) * local]]
        assert [len(part) for part in ours] == [8 // replicas] * replicas
        np.testing.assert_array_equal(np.concatenate(ours), expected)


def test_a_worker_without_a_row_in_a_buffer(streamed):
    """Batches of 8 on 8 workers, buffers of 3 rows: most buffers have nothing for a worker."""
    data = streamed([12, 9, 2], batch_rows=8, buffer_rows=3)
    parts = [take(data.dataset(1, 8, worker, 1), 5) for worker in range(8)]
    for step, expected in enumerate(take(data.dataset(1), 5)):
        np.testing.assert_array_equal(np.concatenate([part[step] for part in parts]), expected)


def test_a_worker_reads_the_blocks_that_it_needs(streamed, monkeypatch):
    """Of a buffer of 8 blocks, those with rows of its own: with two workers, not all of them."""
    data = streamed([48], batch_rows=2, buffer_rows=24)
    read_block, read = StreamedData._read_block, []

    def noted(self, block):
        noted_block = tf.numpy_function(lambda x: read.append(int(x)) or x, [block], tf.int64)
        return read_block(self, tf.ensure_shape(noted_block, []))

    monkeypatch.setattr(StreamedData, "_read_block", noted)
    needed = []
    for worker in range(2):
        read.clear()
        rows_of_buffer = np.concatenate(take(data.dataset(0, 2, worker, 1), 12))
        needed.append({(int(row) - 1) // BLOCK for row in rows_of_buffer})
        # The next buffer is read ahead, but after this one.
        assert sorted(read[: len(needed[-1])]) == sorted(needed[-1])
    assert len(needed[0] | needed[1]) == 8 and min(map(len, needed)) < 8


def test_distribute(streamed, two_replicas, one_device):
    """Each replica gets its part of the batch of the step; shapes are static."""
    data = streamed([12, 9, 2], batch_rows=8)
    expected = take(data.dataset(3), 4)
    for strategy in (two_replicas, one_device):
        replicas = strategy.num_replicas_in_sync
        iterator = distribute(data, strategy, first_step=3)
        shape = iterator.element_spec["source"]
        shapes = [spec.shape for spec in getattr(shape, "_value_specs", [shape])]
        assert shapes == [(8 // replicas, LENGTH)] * replicas
        for rows_of_step in expected:
            parts = strategy.experimental_local_results(next(iterator)["source"])
            np.testing.assert_array_equal(np.concatenate(parts)[:, 0], rows_of_step)
    assert data.dataset(0).cardinality() == tf.data.INFINITE_CARDINALITY


def test_facts(streamed):
    data = streamed([12, 9, 2], batch_rows=8)
    assert data.batches_per_epoch == 3 and data.shapes == [(8, 4)] and data.left_out() == 2
    assert data.fill_rate() == pytest.approx(0.75, abs=0.01)


def flip(data: StreamedData, row: int) -> str:
    """Flips a bit of a row of the first file; returns the file's name."""
    path = data.manifest.path(data.info.files[0])
    with open(path, "r+b") as file:
        file.seek(row * data.info.record_bytes + 40)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))
    return path


@pytest.mark.parametrize("replicas", [1, 2])
def test_damage_is_found(streamed, one_device, two_replicas, replicas):
    """Reading fails where the block is needed, and `check` says which one it was."""
    data = streamed([12, 9, 2], batch_rows=2)
    whole = take(data.dataset(0), 12)
    step = next(n for n, batch in enumerate(whole) if set(batch) & {4, 5, 6})
    path = flip(data, 4)
    strategy = one_device if replicas == 1 else two_replicas
    iterator = distribute(data, strategy, 0)
    reached = 0
    with pytest.raises(tf.errors.OpError):
        while reached < 12:
            next(iterator)
            reached += 1
    assert step - 3 <= reached <= step  # its buffer has three batches
    size = data.info.record_bytes
    with pytest.raises(UsageError) as error:
        data.check(reached)
    assert str(error.value).startswith(
        f"{path}, bytes {3 * size} to {6 * size - 1} (rows 3 to 5): its checksum does not fit; "
    )


def test_no_damage_where_it_is_not(streamed):
    """`check` of steps far from the damaged block finds nothing."""
    data = streamed([300], batch_rows=3, buffer_rows=3)
    far = next(n for n, batch in enumerate(take(data.dataset(0), 100)) if set(batch) & {4, 5, 6})
    flip(data, 4)
    data.check((far + 50) % 100)
    with pytest.raises(UsageError):
        data.check(far)


@pytest.mark.parametrize("skip", [False, True])
def test_a_file_that_is_gone(streamed, skip):
    """An error, and no endless wait, with skip_corrupt too."""
    data = streamed([12], batch_rows=12, skip_corrupt=skip)
    tf.io.gfile.remove(data.manifest.path(data.info.files[0]))
    with pytest.raises(tf.errors.NotFoundError):
        take(data.dataset(0), 1)
    with pytest.raises(UsageError, match="no such file"):
        data.check(0)


def test_a_file_that_shrank(streamed):
    """Of 12 rows only the first block of three is left."""
    data = streamed([12], batch_rows=12)
    with open(data.manifest.path(data.info.files[0]), "r+b") as file:
        file.truncate(3 * data.info.record_bytes + 20)
    with pytest.raises(tf.errors.DataLossError):
        take(data.dataset(0), 1)
    with pytest.raises(UsageError, match=r"the file ends after (20|0) of these bytes"):
        data.check(0)
    (rows_left,) = take(dataclasses.replace(data, skip_corrupt=True).dataset(0), 1)
    assert sorted(rows_left) == [0] * 9 + [1, 2, 3]


def test_swapped_files(streamed):
    """Every record is whole, but it is another one: the digest tells, where a frame does not."""
    data = streamed([6, 6], batch_rows=12)
    first, second = (data.manifest.path(file) for file in data.info.files)
    tf.io.gfile.copy(second, first, overwrite=True)
    with pytest.raises(tf.errors.OpError):
        take(data.dataset(0), 1)
    with pytest.raises(UsageError, match=r"rows-00000-of-00002.* its checksum does not fit"):
        data.check(0)
    (found,) = take(dataclasses.replace(data, skip_corrupt=True).dataset(0), 1)
    assert sorted(found) == [0] * 6 + [7, 8, 9, 10, 11, 12]


def test_skipping_damage(streamed, capfd):
    """The rows of the block, and no others, are empty; the rest keeps its place."""
    data = streamed([12, 9, 2], batch_rows=23)
    (before,) = take(data.dataset(0), 1)
    path = flip(data, 4)
    data = dataclasses.replace(data, skip_corrupt=True)
    (after,) = take(data.dataset(0), 1)
    np.testing.assert_array_equal(after, np.where((before >= 4) & (before <= 6), 0, before))
    size = data.info.record_bytes
    expected = f"warning: {path}, bytes {3 * size} to {6 * size - 1} are damaged; their rows"
    assert expected in capfd.readouterr().err
