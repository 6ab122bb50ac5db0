"""The training split in memory, packed or in buckets of similar length."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from common.errors import UsageError
from configs.schema import Config
from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import Examples
from trainer.input.batch_size import batch_rows
from trainer.input.distribution import endless


@dataclass(frozen=True)
class Bucket:
    """Rows of one length, and how many of them make a global batch."""

    rows: packing.Rows
    batch_rows: int


@dataclass(frozen=True)
class InMemoryData:
    """Rows in memory in batches; see `trainer.input.protocol.TrainingData`.

    Attributes:
        buckets: the rows, by length.
        seed: decides their order.
        too_long: examples that no row holds.
        origin: where the rows come from, for people.
    """

    buckets: list[Bucket]
    seed: int
    too_long: int = 0
    origin: str = "in memory"

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [(bucket.batch_rows, bucket.rows.length) for bucket in self.buckets]

    @property
    def batches_per_epoch(self) -> int:
        return sum(self._batches(bucket) for bucket in self.buckets)

    @staticmethod
    def _batches(bucket: Bucket) -> int:
        return max(1, round(len(bucket.rows) / bucket.batch_rows))

    def fill_rate(self) -> float:
        sizes = [bucket.rows.size for bucket in self.buckets]
        rates = [bucket.rows.fill_rate() for bucket in self.buckets]
        return float(np.average(rates, weights=sizes))

    def left_out(self) -> int:
        return self.too_long

    def dataset(
        self, first_step: int, replicas: int = 1, first: int = 0, local: int = 1
    ) -> tf.data.Dataset:
        tensors = [
            {name: tf.constant(array) for name, array in bucket.rows.arrays.items()}
            for bucket in self.buckets
        ]
        counts = [self._batches(bucket) for bucket in self.buckets]
        ends = np.cumsum(counts)

        def take(index: int, batch_number, part):
            bucket = self.buckets[index]
            size = bucket.batch_rows // replicas
            start = batch_number * bucket.batch_rows + tf.cast(part, tf.int64) * size
            rows = self._shuffled(start + tf.range(size, dtype=tf.int64), len(bucket.rows), index)
            batch = {name: tf.gather(array, rows) for name, array in tensors[index].items()}
            return tf.nest.map_structure(
                lambda x: tf.ensure_shape(x, [size, bucket.rows.length]), batch
            )

        def element(number):
            step, part = number // local, first + number % local
            if len(self.buckets) == 1:
                return take(0, step, part)
            epoch = step // self.batches_per_epoch
            # Which of the epoch's batches this is; bucket b owns the numbers before ends[b].
            slot = self._shuffled(step[tf.newaxis], self.batches_per_epoch, len(counts))[0]
            which = tf.searchsorted(tf.constant(ends), slot[tf.newaxis], side="right")[0]
            branches = []
            for index, count in enumerate(counts):
                number_in_bucket = epoch * count + slot - int(ends[index] - count)
                branches.append(
                    lambda index=index, number=number_in_bucket: take(index, number, part)
                )
            return tf.switch_case(which, branches)

        numbers = tf.data.Dataset.counter(tf.constant(first_step * local, tf.int64), dtype=tf.int64)
        return endless(numbers.map(element, num_parallel_calls=1).prefetch(2 * local))

    def _shuffled(self, positions, size: int, stream: int):
        """Map positions in an endless stream to indices: every epoch is a permutation of `size`."""
        epochs = positions // size
        same = tf.ones_like(epochs)
        seeds = tf.stack([same * self.seed, epochs, same * stream], axis=-1)  # [n, 3]
        # The raw op: its wrapper in tf.random.experimental pads a matrix of seeds wrongly.
        return tf.raw_ops.RandomIndexShuffle(
            index=positions % size, seed=seeds, max_index=tf.constant(size - 1, tf.int64), rounds=4
        )

    def check(self, step: int, steps: int = 1) -> None:
        """Do nothing: everything was checked when it was read."""


def training_data(
    examples: Examples, config: Config, closing_id: int | None, replicas: int
) -> InMemoryData:
    """Lay the training split out in rows, packed or bucketed as `config.data` says.

    Args:
        examples: all examples of the split.
        config: the configuration.
        closing_id: the token that packing adds to every sequence (`Manifest.closing_id`).
        replicas: replicas that share a global batch.

    Raises:
        UsageError: nothing fits, or a batch cannot be shared equally.
    """
    data = config.data
    # Checks what evaluation needs too, which comes later.
    batch_rows(config.train, data.longest_row, replicas)
    if data.batching == "packed":
        layouts, setting = [packing.pack(examples, data.row_length, closing_id)], "row_length"
    else:
        closing_tokens = 0 if closing_id is None else 1
        lengths = _worthwhile_buckets(
            examples, data.buckets, config.train.batch_tokens, closing_tokens
        )
        layouts, setting = packing.one_per_row(examples, lengths, closing_id), "buckets"
    too_long = sum(rows.left_out for rows in layouts)
    layouts = [rows for rows in layouts if len(rows)]
    if not layouts:
        raise UsageError(
            f"all {len(examples)} training examples are longer than a row; "
            f"raise --config.data.{setting}"
        )
    given = (data.row_length,) if data.batching == "packed" else data.buckets
    buckets = []
    for rows in layouts:
        # One that ends earlier than it was told to has as many rows as if it did not.
        length = next(length for length in given if length >= rows.length)
        buckets.append(Bucket(rows, batch_rows(config.train, length, replicas)))
    return InMemoryData(buckets, config.train.seed, too_long)


def _worthwhile_buckets(
    examples: Examples, lengths: tuple[int, ...], batch_tokens: int, closing_tokens: int = 1
) -> tuple[int, ...]:
    """Leave out a bucket that would not fill half a batch: its sentences go into the next one.

    Otherwise the few sentences of a rare length would be repeated until they fill a batch, and
    count many times in every epoch. If the longest bucket has too few, the one before it ends
    earlier, so that its longest sentences fill the longest bucket up.
    """
    longest = examples.lengths().max(axis=0) + closing_tokens
    longest = np.sort(longest[longest <= lengths[-1]])

    def enough(sentences: int, length: int) -> bool:
        return 2 * sentences * length >= batch_tokens

    kept: list[int] = []
    taken = 0  # sentences in the buckets that are kept
    for length in lengths:
        held = int(np.searchsorted(longest, length, side="right"))
        if enough(held - taken, length):
            kept.append(length)
            taken = held
    if taken < len(longest):
        missing = -(-batch_tokens // (2 * lengths[-1]))
        shorter = int(longest[-missing]) - 1 if missing <= len(longest) else 0
        before = kept[-2] if len(kept) > 1 else 0
        kept = [*kept[:-1], *([shorter] if shorter > before else []), lengths[-1]]
    return tuple(kept) or lengths[-1:]
