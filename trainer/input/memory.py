"""From a dataset directory to batches: position is a function of the step.

Nothing here remembers where it was. The global batch of step s is computed from (seed, s) alone,
so a run that stopped at s goes on with exactly the batches it would have seen, and the batch does
not depend on how many replicas or workers share it.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from common.errors import UsageError
from data_pipeline.dataset import examples as records
from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import Examples
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.verify import check_sizes
from trainer.input import distribution as batches
from trainer.input.rows import StreamedData


@dataclass(frozen=True)
class Bucket:
    """Rows of one length, and how many of them make a global batch."""

    rows: packing.Rows
    batch_rows: int

    def arrays(self) -> dict[str, np.ndarray]:
        """Feature -> int32 [R, L]."""
        return dict(self.rows.arrays)


@dataclass(frozen=True)
class TrainingData:
    """The training split in batches of static shapes, from memory.

    Attributes:
        buckets: the rows.
        seed: decides their order.
        too_long: sentence pairs that no row holds.
        origin: where the rows come from, for people.
    """

    buckets: list[Bucket]
    seed: int
    too_long: int = 0
    origin: str = "in memory"

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and tokens a side of the global batches."""
        return [(bucket.batch_rows, bucket.rows.length) for bucket in self.buckets]

    @property
    def batches_per_epoch(self) -> int:
        return sum(self._batches(bucket) for bucket in self.buckets)

    @staticmethod
    def _batches(bucket: Bucket) -> int:
        return max(1, round(len(bucket.rows) / bucket.batch_rows))

    def fill_rate(self) -> float:
        """Share of positions in the rows, both sides together, that are not padding."""
        sizes = [bucket.rows.size for bucket in self.buckets]
        rates = [bucket.rows.fill_rate() for bucket in self.buckets]
        return float(np.average(rates, weights=sizes))

    def left_out(self) -> int:
        """Sentence pairs that are longer than the longest row."""
        return self.too_long

    def dataset(self, first_step: int, replicas: int = 1, first: int = 0, local: int = 1):
        """Batches from `first_step` on, without end.

        Each step is `local` elements, one a replica of this worker, which are the parts `first`,
        `first` + 1, ... of the `replicas` equal parts of the global batch.

        Returns:
            tf.data.Dataset of the rows' features, int32 [batch_rows / replicas, L] each.
        """
        tensors = [
            {name: tf.constant(array) for name, array in bucket.arrays().items()}
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
        return batches.endless(numbers.map(element, num_parallel_calls=1).prefetch(2 * local))

    def _shuffled(self, positions, size: int, stream: int):
        """Maps positions in an endless stream to indices: each epoch one permutation of `size`."""
        epochs = positions // size
        same = tf.ones_like(epochs)
        seeds = tf.stack([same * self.seed, epochs, same * stream], axis=-1)  # [n, 3]
        # The raw op: its wrapper in tf.random.experimental pads a matrix of seeds wrongly.
        return tf.raw_ops.RandomIndexShuffle(
            index=positions % size, seed=seeds, max_index=tf.constant(size - 1, tf.int64), rounds=4
        )

    def distribute(self, strategy: tf.distribute.Strategy, first_step: int):
        """A distributed iterator that starts with the batch of `first_step`."""
        return batches.distribute(self, strategy, first_step)

    def check(self, step: int, steps: int = 1) -> None:
        """Nothing: it was all checked when it was read."""


def load_training_data(
    manifest: Manifest, config, replicas: int, *, skip_corrupt: bool = False
) -> TrainingData | StreamedData:
    """The training split of a dataset: streamed if it has rows as `config.data` wants them.

    Args:
        manifest: of the dataset.
        config: `configs.schema.Config`.
        replicas: that share a global batch.
        skip_corrupt: of `StreamedData`; without streaming, damage is always an error.

    Raises:
        UsageError: a file is missing or damaged, nothing fits, or a batch cannot be shared out.
    """
    check_sizes(manifest)
    data, info = config.data, manifest.splits["train"].rows
    if info and info.rows and data.batching == "packed" and data.row_length == info.row_length:
        size = batch_rows(config.train, data.row_length, replicas)
        return StreamedData(manifest, info, size, config.train.seed, skip_corrupt)
    if data.batching != "packed":
        reason = f"read into memory: batching is {data.batching}"
    else:
        found = f"rows of {info.row_length}" if info else "no packed rows"
        reason = (
            f"packed in memory: the dataset has {found}; data_pipeline.main "
            f"--row_length={data.row_length} writes rows that need not fit into memory"
        )
    pairs = records.read_examples(manifest, "train")
    made = training_data(pairs, config, manifest.eos_id, replicas)
    return dataclasses.replace(made, origin=reason)


def training_data(pairs: Examples, config, eos_id: int, replicas: int) -> TrainingData:
    """Lays the training split out in rows, packed or bucketed as `config.data` says.

    Raises:
        UsageError: when nothing fits, or a batch cannot be shared out equally.
    """
    data = config.data
    # Also what evaluation needs, which comes later.
    batch_rows(config.train, data.longest_row, replicas)
    if data.batching == "packed":
        layouts, setting = [packing.pack(pairs, data.row_length, eos_id)], "row_length"
    else:
        lengths = _worthwhile_buckets(pairs, data.buckets, config.train.batch_tokens)
        layouts, setting = packing.one_a_row(pairs, lengths, eos_id), "buckets"
    too_long = sum(rows.left_out for rows in layouts)
    layouts = [rows for rows in layouts if len(rows)]
    if not layouts:
        raise UsageError(
            f"all {len(pairs)} training pairs are longer than a row; raise --config.data.{setting}"
        )
    buckets = [Bucket(rows, batch_rows(config.train, rows.length, replicas)) for rows in layouts]
    return TrainingData(buckets, config.train.seed, too_long)


def _worthwhile_buckets(
    pairs: Examples, lengths: tuple[int, ...], batch_tokens: int
) -> tuple[int, ...]:
    """Leaves out a bucket that would not fill half a batch: its sentences go into the next one.

    Otherwise the few sentences of a rare length would be repeated until they fill a batch, and
    count many times in every epoch. Where the longest is left with too few, the bucket before it
    ends earlier, so that its longest sentences make up for them.
    """
    longest = pairs.lengths().max(axis=0) + 1
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


def batch_rows(train, row_length: int, replicas: int) -> int:
    """Rows in a global batch of at most `train.batch_tokens` positions a side.

    Raises:
        UsageError: when not every micro-batch of every replica gets the same number of rows, at
            least one.
    """
    rows = train.batch_tokens // row_length
    parts = replicas * train.micro_batches
    if rows < 1 or rows % parts:
        each = f" of {train.micro_batches} micro-batches" if train.micro_batches > 1 else ""
        raise UsageError(
            f"--config.train.batch_tokens={train.batch_tokens} makes {rows} rows of {row_length} "
            f"tokens, which {replicas} replica(s){each} cannot share equally; use a multiple of "
            f"{row_length * parts}"
        )
    return rows


def evaluation_batches(pairs: Examples, config, eos_id: int, strategy: tf.distribute.Strategy):
    """The whole split once, in order, packed; the last batch is filled up with empty rows.

    Returns:
        a distributed dataset of the rows' features, int32 [batch rows of a replica, longest row].
    """
    rows = packing.pack(pairs, config.data.longest_row, eos_id, truncate=True)
    replicas = strategy.num_replicas_in_sync
    # One micro-batch at a time: more may not fit into memory.
    size = batch_rows(config.train, rows.length, replicas) // config.train.micro_batches
    missing = -len(rows) % size
    arrays = {name: np.pad(array, [[0, missing], [0, 0]]) for name, array in rows.arrays.items()}

    def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = tf.data.Dataset.from_tensor_slices(arrays)
        dataset = dataset.batch(size // replicas, drop_remainder=True)
        return batches.untuned(
            dataset.shard(context.num_input_pipelines, context.input_pipeline_id)
        )

    return strategy.distribute_datasets_from_function(pipeline)
