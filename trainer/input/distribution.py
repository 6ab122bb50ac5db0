"""What every kind of training input does alike: it never ends, and replicas share it.

Importing this turns tf.data's autotuning off for what tf.distribute adds to every input, a dataset
for each device. There is nothing to tune there, and it makes iterators slow to destroy: the thread
that tunes may miss that it is cancelled and sleep on, for about as long as the iterator has lived
and at most 60 s. Whoever destroys the iterator waits for it, be it the process at its end or
Python's garbage collector in the middle of a step. No public option reaches those datasets.
"""

import tensorflow as tf

# There is no public name for it.
from tensorflow.python.data.ops import multi_device_iterator_ops

_create_device_dataset = multi_device_iterator_ops._create_device_dataset


def _create_untuned_device_dataset(*arguments) -> tf.data.Dataset:
    return untuned(_create_device_dataset(*arguments))


multi_device_iterator_ops._create_device_dataset = _create_untuned_device_dataset


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same without autotuning: its sizes are given, and its iterators are destroyed at once."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def endless(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same batches, in an order that nothing changes, known never to end.

    Without an end for sure: else every step of several workers would ask around whether each of
    them still has a batch.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.deterministic = True
    infinite = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return untuned(dataset.apply(infinite).with_options(options))


def distribute(data, strategy: tf.distribute.Strategy, first_step: int):
    """A distributed iterator over the batches of `data`, from the one of `first_step` on.

    Args:
        data: has `dataset(first_step, replicas, first, local)`.
        strategy: a tf.distribute strategy.
        first_step: any.
    """
    replicas = strategy.num_replicas_in_sync

    def pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
        local = replicas // context.num_input_pipelines
        return data.dataset(first_step, replicas, context.input_pipeline_id * local, local)

    return iter(strategy.distribute_datasets_from_function(pipeline))
