"""The batches of an evaluation."""

import numpy as np
import tensorflow as tf

from configs.schema import Config, TrainConfig
from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import Examples
from trainer.input.distribution import untuned

POSITIONS = 8_192
"""Positions of a side that a replica evaluates at a time, at most."""


def _rows_of_a_replica(train: TrainConfig, rows: packing.Rows, replicas: int) -> int:
    """Return the rows that a replica evaluates at a time.

    No more than in training, where gradients need memory too. But the training may have had more
    devices than this process, and a split may be small.
    """
    in_training = train.batch_tokens // (replicas * train.micro_batches)
    fitting = max(1, min(in_training, POSITIONS) // rows.length)
    return max(1, min(fitting, -(-len(rows) // replicas)))


def evaluation_batches(
    examples: Examples, config: Config, closing_id: int | None, strategy: tf.distribute.Strategy
) -> tf.distribute.DistributedDataset:
    """Return a split once, in order, packed; empty rows fill up the last batch.

    Args:
        examples: all examples of the split.
        config: the configuration.
        closing_id: the token that packing adds to every sequence (`Manifest.closing_id`).
        strategy: the replicas share each batch.

    Returns:
        A distributed dataset of features, int32 [rows of a replica, longest row] each.
    """
    rows = packing.pack(examples, config.data.longest_row, closing_id, truncate=True)
    replicas = strategy.num_replicas_in_sync
    size = replicas * _rows_of_a_replica(config.train, rows, replicas)
    missing = -len(rows) % size
    arrays = {name: np.pad(array, [[0, missing], [0, 0]]) for name, array in rows.arrays.items()}

    def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = tf.data.Dataset.from_tensor_slices(arrays)
        dataset = dataset.batch(size // replicas, drop_remainder=True)
        return untuned(dataset.shard(context.num_input_pipelines, context.input_pipeline_id))

    return strategy.distribute_datasets_from_function(pipeline)
