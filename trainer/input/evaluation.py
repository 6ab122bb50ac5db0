"""The batches of an evaluation."""

import numpy as np
import tensorflow as tf

from configs.schema import Config
from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import Examples
from trainer.input.distribution import untuned
from trainer.input.protocol import batch_rows


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
    # As large as a micro-batch of training: more may not fit into memory.
    size = batch_rows(config.train, rows.length, replicas) // config.train.micro_batches
    missing = -len(rows) % size
    arrays = {name: np.pad(array, [[0, missing], [0, 0]]) for name, array in rows.arrays.items()}

    def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
        dataset = tf.data.Dataset.from_tensor_slices(arrays)
        dataset = dataset.batch(size // replicas, drop_remainder=True)
        return untuned(dataset.shard(context.num_input_pipelines, context.input_pipeline_id))

    return strategy.distribute_datasets_from_function(pipeline)
