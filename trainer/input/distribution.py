"""tf.data pipelines as training needs them: without an end, and shared by the replicas.

Importing this turns off tf.data's autotuning for the datasets, one a device, that tf.distribute
adds to every input. There is nothing to tune in them, and tuning makes iterators slow to destroy:
the tuning thread may miss its cancellation and sleep on, about as long as the iterator has lived,
up to 60 s. Whatever destroys the iterator waits for it: the process at its end, or Python's garbage
collector in the middle of a step. No public option reaches those datasets.
"""

from collections.abc import Iterator

import tensorflow as tf

# It has no public name.
from tensorflow.python.data.ops import multi_device_iterator_ops

from trainer.input.protocol import TrainingData

_create_device_dataset = multi_device_iterator_ops._create_device_dataset


def _create_untuned_device_dataset(*arguments) -> tf.data.Dataset:
    return untuned(_create_device_dataset(*arguments))


multi_device_iterator_ops._create_device_dataset = _create_untuned_device_dataset


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Return the dataset without autotuning, so that its iterators are destroyed at once."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def endless(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Declare that an endless dataset is infinite, and keep its order deterministic.

    Otherwise every step of several workers would ask whether each of them still has a batch.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.deterministic = True
    infinite = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return untuned(dataset.apply(infinite).with_options(options))


def distribute(data: TrainingData, strategy: tf.distribute.Strategy, first_step: int) -> Iterator:
    """Return a distributed iterator over the batches of `data` that starts at `first_step`."""
    replicas = strategy.num_replicas_in_sync

    def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
        local = replicas // context.num_input_pipelines
        return data.dataset(first_step, replicas, context.input_pipeline_id * local, local)

    return iter(strategy.distribute_datasets_from_function(pipeline))
