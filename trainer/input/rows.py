"""Packed rows, read from the files of a dataset while training runs.

The order is shuffled twice. Each epoch reads the blocks in a different order; consecutive blocks
with `BUFFER_ROWS` rows together form a buffer, whose rows are shuffled again:

    blocks of an epoch    7 2 | 5 0 | 3 6 | 1 4 | 8      8 is the last one, which may be smaller
    buffers                 0     1     2     3   4
    rows in buffer 1      rows of 5 and 0, mixed

So the place of every row in this order, and with it the global batch of step s, follows from
(seed, s) alone, and a run that starts at any step reads the buffer it needs and none before it.
TensorFlow operations do all the work: Python threads would share one lock with the training.
"""

from dataclasses import dataclass

import tensorflow as tf

from data_pipeline.dataset import rows as packed_rows
from data_pipeline.dataset.manifest import Manifest, RowsInfo
from trainer.input.distribution import endless

BUFFER_ROWS = 4096  # of 256 tokens a sequence: 16 MB for a pair; three buffers are in memory
_READERS = 16  # blocks read at a time, because a bucket in the cloud answers slowly


def _permutation(size, seed: int, stream) -> tf.Tensor:
    """Return int64 [size], the numbers below `size` in an order set by seed and stream."""
    seeds = tf.stack([tf.constant(seed, tf.int64), tf.cast(stream, tf.int64)])
    keys = tf.random.stateless_uniform(
        tf.reshape(size, [1]), seeds, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    return tf.cast(tf.argsort(keys, stable=True), tf.int64)


@dataclass(frozen=True)
class StreamedData:
    """Packed rows from files in batches; see `trainer.input.protocol.TrainingData`.

    Attributes:
        manifest: of the dataset.
        info: of its packed rows.
        batch_rows: rows of a global batch.
        seed: decides the order.
        skip_corrupt: leave the rows of a damaged block empty instead of stopping.
        buffer_rows: rows that are shuffled together.
    """

    manifest: Manifest
    info: RowsInfo
    batch_rows: int
    seed: int
    skip_corrupt: bool = False
    buffer_rows: int = BUFFER_ROWS

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [(self.batch_rows, self.info.row_length)]

    @property
    def origin(self) -> str:
        return f"{self.info.rows:,} packed rows, read from {len(self.info.files)} files as needed"

    @property
    def batches_per_epoch(self) -> int:
        return max(1, round(self.info.rows / self.batch_rows))

    def fill_rate(self) -> float:
        return self.info.fill_rate

    def left_out(self) -> int:
        return self.info.left_out

    def dataset(
        self, first_step: int, replicas: int = 1, first: int = 0, local: int = 1
    ) -> tf.data.Dataset:
        size = self.batch_rows // replicas
        first_position = first_step * self.batch_rows

        @tf.autograph.experimental.do_not_convert
        def rows_of_buffer(number):
            """Return this worker's rows of a buffer, in order: feature -> int32 [n, L], n >= 0."""
            epoch, buffer = number // self._buffers, number % self._buffers
            begin = buffer * self._buffer_rows
            count = tf.minimum(self.info.rows - begin, self._buffer_rows)
            places = tf.range(count)
            positions = epoch * self.info.rows + begin + places
            part = positions % self.batch_rows // size
            mine = (positions >= first_position) & (part >= first) & (part < first + local)
            order = tf.boolean_mask(_permutation(count, self.seed, number), mine)
            # Of its blocks, those with one of these rows: not all where many workers share them.
            blocks, which = tf.unique(order // self.info.block_rows, tf.int64)
            records = tf.map_fn(
                self._read_block,
                tf.gather(self._blocks(epoch, buffer), blocks),
                parallel_iterations=_READERS,
                fn_output_signature=tf.TensorSpec([self.info.block_rows], tf.string),
            )
            # Only the last block can be smaller, so what it lacks stands at the end.
            places = which * self.info.block_rows + order % self.info.block_rows
            records = tf.reshape(records, [-1])  # [blocks * block_rows]
            records = tf.gather(records, places)
            return packed_rows.parse(records, self.info)

        buffers = tf.data.Dataset.counter(self._buffer_of(first_position), dtype=tf.int64)
        # One buffer is read while another is consumed.
        rows = buffers.map(rows_of_buffer, num_parallel_calls=1).prefetch(1)
        return endless(rows.rebatch(size, drop_remainder=True).prefetch(2 * local))

    def check(self, step: int, steps: int = 1) -> None:
        buffer = self._buffer_of(step * self.batch_rows)
        # And the next ones: a batch may span several, and later ones may have been read ahead.
        after = self._buffer_of((step + steps + 1) * self.batch_rows) + 2
        blocks = packed_rows.find_blocks(self.manifest, self.info)
        for number in tf.range(buffer, after, dtype=tf.int64):
            for block in self._blocks(number // self._buffers, number % self._buffers).numpy():
                packed_rows.read_block(blocks, int(block), self.info)

    @property
    def _buffer_rows(self) -> int:
        return max(1, self.buffer_rows // self.info.block_rows) * self.info.block_rows

    @property
    def _buffers(self) -> int:
        """Buffers in an epoch."""
        return -(-self.info.rows // self._buffer_rows)

    def _buffer_of(self, position: int) -> int:
        """Return the buffer, counted over all epochs, that holds a position of the order."""
        epoch, place = divmod(position, self.info.rows)
        return epoch * self._buffers + place // self._buffer_rows

    def _blocks(self, epoch, buffer) -> tf.Tensor:
        """Return int64 [n], the blocks of a buffer; a smaller last block ends the epoch."""
        full = self.info.rows // self.info.block_rows
        blocks = _permutation(full, self.seed, -1 - epoch)  # another stream than the buffers'
        if full * self.info.block_rows < self.info.rows:
            blocks = tf.concat([blocks, [full]], axis=0)
        size = self._buffer_rows // self.info.block_rows
        return blocks[buffer * size : (buffer + 1) * size]

    def _read_block(self, block) -> tf.Tensor:
        """Return string [block_rows], the records of a block; "" for what a smaller one lacks."""
        info, blocks = self.info, packed_rows.find_blocks(self.manifest, self.info)
        path = tf.constant(blocks.paths)[tf.constant(blocks.file)[block]]
        begin, rows = tf.constant(blocks.begin)[block], tf.constant(blocks.rows)[block]
        records = packed_rows.read_records(
            path, begin, rows, info.record_bytes, up_to_damage=self.skip_corrupt
        )
        written = tf.constant(blocks.digests)[block]
        found = tf.fingerprint(tf.strings.reduce_join(records)[tf.newaxis])[0]
        fits = tf.reduce_all(found == written)
        last = begin + rows * info.record_bytes - 1
        place = tf.strings.join([path, ", bytes ", tf.as_string(begin), " to ", tf.as_string(last)])
        if self.skip_corrupt:
            records = tf.cond(fits, lambda: records, lambda: self._empty(rows, place))
        else:
            tf.debugging.Assert(fits, [place])
        return tf.concat([records, tf.fill([info.block_rows - tf.size(records)], "")], axis=0)

    def _empty(self, rows, place) -> tf.Tensor:
        """Return string [rows], records of empty rows, with a warning on standard error."""
        record = packed_rows.empty_record(
            self.info.features, self.info.row_length, self.info.token_dtype
        )
        note = tf.print(
            tf.strings.join(["warning: ", place, " are damaged; their rows are left empty"])
        )
        with tf.control_dependencies([note]):
            return tf.fill([rows], record)
