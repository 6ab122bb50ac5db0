"""Batches: every row once an epoch, in an order that the step alone decides."""

import itertools

import numpy as np
import pytest

from common.errors import UsageError
from data_pipeline.dataset.examples import Examples
from data_pipeline.dataset.packing import Rows
from trainer.input import memory as trainer_input
from trainer.input.distribution import distribute
from trainer.input.evaluation import evaluation_batches
from trainer.input.memory import Bucket, InMemoryData
from trainer.tasks.translation import FEATURES

EOS = 3


def numbered_rows(count: int, length: int = 4, first: int = 1) -> Rows:
    """Rows that can be told apart: row i holds first + i everywhere, on both sides."""
    ids = np.repeat(np.arange(first, first + count, dtype=np.int32)[:, np.newaxis], length, 1)
    ones = np.full_like(ids, 1)
    return Rows(dict(zip(FEATURES, (ids, ones, ids, ones), strict=True)))


def one_bucket(count: int, batch_rows: int, seed: int = 1) -> InMemoryData:
    return InMemoryData([Bucket(numbered_rows(count), batch_rows)], seed)


def take(dataset, count: int) -> list[np.ndarray]:
    """The numbers of the rows of each batch; checks that all features agree."""
    result = []
    for batch in dataset.take(count).as_numpy_iterator():
        assert tuple(batch) == FEATURES
        np.testing.assert_array_equal(batch["source"], batch["target"])
        assert (batch["source_segments"] == 1).all() and batch["source"].dtype == np.int32
        assert (batch["source"] == batch["source"][:, :1]).all()
        result.append(batch["source"][:, 0])
    return result


@pytest.mark.parametrize("count", [1, 2, 3, 17, 100])
def test_an_epoch_is_a_permutation(count):
    """All rows once, in each of three epochs, each in another order."""
    epochs = take(one_bucket(count, count).dataset(0), 3)
    for epoch in epochs:
        assert sorted(epoch) == list(range(1, count + 1))
    if count > 3:
        assert not np.array_equal(epochs[0], epochs[1])
        assert not np.array_equal(epochs[1], epochs[2])
        assert not np.array_equal(epochs[0], sorted(epochs[0]))


def test_batches_may_cross_epochs():
    """10 rows in batches of 4: 5 batches are two epochs, and the third holds parts of both."""
    data = one_bucket(10, 4)
    rows = np.concatenate(take(data.dataset(0), 5))
    for epoch in rows[:10], rows[10:]:
        assert sorted(epoch) == list(range(1, 11))
    assert not np.array_equal(rows[:10], rows[10:])
    assert data.batches_per_epoch == 2


def test_seeds_decide_the_order():
    first, again, other = (take(one_bucket(50, 50, seed).dataset(0), 1)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def three_buckets() -> InMemoryData:
    """8 rows of length 4 by 4, 12 of length 6 by 3, 5 of length 9 by 1: 11 batches an epoch."""
    return InMemoryData(
        [
            Bucket(numbered_rows(8, 4, 100), 4),
            Bucket(numbered_rows(12, 6, 200), 3),
            Bucket(numbered_rows(5, 9, 300), 1),
        ],
        seed=1,
    )


def test_buckets():
    """Each epoch has every bucket's batches, and so every row once; buckets come mixed."""
    data = three_buckets()
    assert data.batches_per_epoch == 11
    everything = [*range(100, 108), *range(200, 212), *range(300, 305)]
    epochs = []
    for first in (0, 11):
        batches = take(data.dataset(first), 11)
        assert sorted(len(batch) for batch in batches) == [1] * 5 + [3] * 4 + [4] * 2
        assert sorted(np.concatenate(batches)) == everything
        epochs.append(batches)
    orders = [[len(batch) for batch in batches] for batches in epochs]
    assert orders[0] != orders[1]  # which bucket comes when
    assert orders[0] not in (sorted(orders[0]), sorted(orders[0])[::-1])
    rows = [[r for b in batches for r in b if r >= 300] for batches in epochs]
    assert rows[0] != rows[1]  # and the order inside a bucket


def test_a_bucket_whose_rows_do_not_fill_its_batches():
    """7 rows by 3 are 2 batches an epoch: each 7 rows in a row of the stream are all of them."""
    data = InMemoryData(
        [Bucket(numbered_rows(7, 4, 100), 3), Bucket(numbered_rows(4, 6, 200), 2)], seed=1
    )
    assert data.batches_per_epoch == 4
    # Which batch of the bucket comes first in an epoch is shuffled, so look at whole epochs: 7
    # epochs are 42 rows, six times all of them.
    rows = np.concatenate([b for b in take(data.dataset(0), 28) if b[0] < 200])
    assert sorted(rows) == sorted([*range(100, 107)] * 6)


@pytest.mark.parametrize("make", [lambda: one_bucket(10, 4), three_buckets])
def test_position_is_a_function_of_the_step(make):
    """What starts at step k goes on as if it had started at 0."""
    data = make()
    whole = take(data.dataset(0), 20)
    for step in (1, 7, 13):
        resumed = take(data.dataset(step), 20 - step)
        for ours, expected in zip(resumed, whole[step:], strict=True):
            np.testing.assert_array_equal(ours, expected)


def two_buckets() -> InMemoryData:
    """Batches of 4 and of 8 rows, which 2 and 4 replicas can share."""
    return InMemoryData(
        [Bucket(numbered_rows(12, 4, 100), 4), Bucket(numbered_rows(24, 6, 200), 8)], seed=1
    )


@pytest.mark.parametrize("make", [lambda: one_bucket(10, 4), two_buckets])
def test_replicas_share_the_global_batch(make):
    """The parts of 4 replicas, on one worker or on two, are the batch of one replica."""
    data = make()
    whole = take(data.dataset(2), 6)
    together = take(data.dataset(2, replicas=4, first=0, local=4), 24)
    workers = [take(data.dataset(2, replicas=4, first=first, local=2), 12) for first in (0, 2)]
    for step, expected in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate(together[4 * step : 4 * step + 4]), expected)
        parts = [part for worker in workers for part in worker[2 * step : 2 * step + 2]]
        np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_distribute(two_replicas):
    """Each replica gets its part of the batch of the step."""
    data = two_buckets()
    iterator = distribute(data, two_replicas, first_step=3)
    for expected in take(data.dataset(3), 4):
        parts = two_replicas.experimental_local_results(next(iterator)["source"])
        assert [len(part) for part in parts] == [len(expected) // 2] * 2
        np.testing.assert_array_equal(np.concatenate(parts)[:, 0], expected)


def tokens_of(batches) -> int:
    return sum(int((batch["target"] > 0).sum()) for batch in batches)


def test_training_data_packed(make_pairs, tiny_config):
    """An epoch holds every token once, and the counts that the log reports are right."""
    lengths = np.random.default_rng(0).integers(1, 18, [200, 2])
    pairs = make_pairs(lengths)
    config = tiny_config(data={"row_length": 16}, train={"batch_tokens": 16})
    data = trainer_input.training_data(pairs, config, EOS, replicas=1)
    fits = lengths[lengths.max(1) <= 15]
    assert data.left_out() == len(lengths) - len(fits) > 0
    batches = list(data.dataset(0).take(data.batches_per_epoch).as_numpy_iterator())
    assert tokens_of(batches) == (fits[:, 1] + 1).sum()
    assert all(batch["source"].shape == (1, 16) for batch in batches)
    rows = data.batches_per_epoch
    assert data.fill_rate() == pytest.approx((fits + 1).sum() / (2 * 16 * rows), rel=1e-9)


def test_training_data_bucketed(make_pairs, tiny_config):
    """Rows of a bucket times its length are at most batch_tokens; empty buckets are left away."""
    lengths = [(3, 2)] * 64 + [(5, 7)] * 32 + [(20, 31)] * 8
    config = tiny_config(
        data={"batching": "bucketed", "buckets": (4, 8, 16, 32)}, train={"batch_tokens": 64}
    )
    data = trainer_input.training_data(make_pairs(lengths), config, EOS, replicas=2)
    shapes = [(bucket.batch_rows, bucket.rows.length) for bucket in data.buckets]
    assert shapes == [(16, 4), (8, 8), (2, 32)]
    assert data.batches_per_epoch == 4 + 4 + 4 and data.left_out() == 0
    batches = list(data.dataset(0).take(12).as_numpy_iterator())
    assert tokens_of(batches) == sum(target + 1 for _, target in lengths)
    held = sum(source + target + 2 for source, target in lengths)
    assert data.fill_rate() == pytest.approx(held / (2 * (64 * 4 + 32 * 8 + 8 * 32)), rel=1e-9)


def test_too_few_long_pairs_take_in_the_next_longest(make_pairs, tiny_config):
    """Two rows of 32 would be half a batch; one pair is that long, so the next one joins it."""
    lengths = [(3, 2)] * 64 + [(n, 5) for n in range(8, 15)] + [(20, 31)]
    config = tiny_config(
        data={"batching": "bucketed", "buckets": (4, 16, 32)}, train={"batch_tokens": 128}
    )
    data = trainer_input.training_data(make_pairs(lengths), config, EOS, replicas=1)
    assert [(b.rows.length, len(b.rows)) for b in data.buckets] == [(4, 64), (14, 6), (32, 2)]
    # As many rows as of 16, whatever the number of replicas: 128 // 14 is 9.
    assert [b.batch_rows for b in data.buckets] == [32, 8, 4]
    again = trainer_input.training_data(make_pairs(lengths), config, EOS, replicas=4)
    assert [b.batch_rows for b in again.buckets] == [32, 8, 4]
    assert data.left_out() == 0


def test_too_long_pairs_are_counted_when_the_last_bucket_is_empty(make_pairs, tiny_config):
    """The log's "too long and left out" is right, whichever buckets hold rows."""
    config = tiny_config(
        data={"batching": "bucketed", "buckets": (4, 8)}, train={"batch_tokens": 64}
    )
    pairs = make_pairs([(3, 2)] * 20 + [(30, 30)] * 5)
    assert trainer_input.training_data(pairs, config, EOS, replicas=1).left_out() == 5


def test_one_row_only(make_pairs, tiny_config, one_device):
    """A single short pair makes batches of it without end."""
    pairs = make_pairs([(2, 3)])
    data = trainer_input.training_data(pairs, tiny_config(), EOS, replicas=2)
    assert data.batches_per_epoch == 1 and data.buckets[0].batch_rows == 4
    iterator = distribute(data, one_device, first_step=0)
    for batch in itertools.islice(iterator, 3):
        assert batch["source"].shape == (4, 16)
        assert (batch["target"].numpy()[:, :3] == pairs.tokens["target"]).all()


@pytest.mark.parametrize(
    ("batch_tokens", "replicas", "message"),
    [
        (48, 2, "makes 3 rows of 16 tokens, which 2 replica\\(s\\) cannot share"),
        (15, 1, "makes 0 rows of 16 tokens, which 1 replica\\(s\\) cannot share"),
        (16, 4, "use a multiple of 64"),
    ],
)
def test_batches_that_cannot_be_shared(make_pairs, tiny_config, batch_tokens, replicas, message):
    config = tiny_config(train={"batch_tokens": batch_tokens})
    with pytest.raises(UsageError, match=message):
        trainer_input.training_data(make_pairs([(2, 3)]), config, EOS, replicas)


@pytest.mark.parametrize("batching", ["packed", "bucketed"])
def test_nothing_fits(make_pairs, tiny_config, batching):
    """The message names the setting that decides it."""
    config = tiny_config(data={"batching": batching, "row_length": 8, "buckets": (4, 8)})
    setting = "row_length" if batching == "packed" else "buckets"
    with pytest.raises(UsageError, match=f"all 2 training examples .* --config.data.{setting}"):
        trainer_input.training_data(make_pairs([(9, 3), (1, 12)]), config, EOS, 1)


@pytest.mark.parametrize("replicas", [1, 2])
def test_evaluation_covers_everything_once(
    make_pairs, tiny_config, one_device, two_replicas, replicas
):
    """Every sentence once, too long ones cut, the last batch filled up with empty rows."""
    strategy = one_device if replicas == 1 else two_replicas
    lengths = np.random.default_rng(0).integers(1, 20, [45, 2])
    pairs = make_pairs(lengths)
    batches = evaluation_batches(pairs, tiny_config(), EOS, strategy)
    rows: dict[str, list[np.ndarray]] = {name: [] for name in FEATURES}
    for batch in batches:
        for name, value in batch.items():
            parts = strategy.experimental_local_results(value)
            assert [part.shape for part in parts] == [(4 // replicas, 16)] * replicas
            rows[name].extend(np.concatenate(parts))
    for name in ("source", "target"):
        found = sorted(
            tuple(ids[segments == segment])
            for ids, segments in zip(rows[name], rows[f"{name}_segments"], strict=True)
            for segment in range(1, segments.max() + 1)
        )
        wanted = sorted((*pairs.example(i)[name][:15], EOS) for i in range(len(pairs)))
        assert found == wanted
    empty = [not segments.any() for segments in rows["target_segments"]]
    assert len(empty) % 4 == 0 and sum(empty) < 4
    assert empty == sorted(empty)  # only at the end


@pytest.mark.parametrize(
    ("lengths", "wanted"),
    [
        ([4] * 16 + [9] * 1 + [30] * 8, (8, 32)),  # one of 9 tokens does not fill rows of 16
        ([4] * 16 + [9] * 8 + [30] * 1, (8, 32)),  # nor does one of 30: rows of 16 become 32
        ([4] * 16 + [9] * 8, (8, 16)),
        ([30], (32,)),
        ([99], (32,)),  # nothing fits: training_data says so
    ],
)
def test_rare_lengths_share_a_bucket(lengths, wanted):
    """Else their few sentences would be repeated until they fill a batch."""
    offsets = np.concatenate([[0], np.cumsum(np.array(lengths) - 1)])
    tokens = np.ones(offsets[-1], np.int32)
    names = ("source", "target")
    pairs = Examples(dict.fromkeys(names, tokens), dict.fromkeys(names, offsets))
    assert trainer_input._worthwhile_buckets(pairs, (8, 16, 32), 128) == wanted
