"""What every kind of training input does alike: it never ends, and replicas share it."""

import tensorflow as tf


def endless(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same batches, in an order that nothing changes, known never to end.

    Without an end for sure: else every step of several workers would ask around whether each of
    them still has a batch.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.autotune.enabled = False
    options.deterministic = True
    infinite = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return dataset.apply(infinite).with_options(options)


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
