"""The usual Keras recipe as a contender: layers of Keras, `model.fit`, padded batches.

Post-norm encoder and decoder from `keras.layers.MultiHeadAttention`, masks from
`Embedding(mask_zero=True)`, sinusoidal positions, an embedding for each side and a Dense softmax
(nothing is tied, so there are more parameters than in ours), no label smoothing and no clipping.
Sentences are shuffled and padded to the longest of their batch.
"""

import keras
import numpy as np
import tensorflow as tf

from benchmarks.comparison import Meter, Setting, target_tokens
from configs.schema import ModelConfig, OptimizerConfig
from data_pipeline.dataset.examples import Examples


class PositionalEmbedding(keras.layers.Layer):
    """Scaled embedding plus sinusoids (Attention Is All You Need, 3.4 and 3.5).

    int32 [B, L], 0 for padding, to [B, L, width], with the mask of what is not padding.
    """

    def __init__(self, vocab_size: int, width: int, longest: int):
        super().__init__()
        self.supports_masking = True
        self.width = width
        self.embedding = keras.layers.Embedding(vocab_size, width, mask_zero=True)
        wave = 10_000.0 ** (-np.arange(width // 2) / (width // 2))
        angle = np.arange(longest)[:, np.newaxis] * wave
        self.positions = np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)

    def compute_mask(self, inputs, previous_mask=None):
        return self.embedding.compute_mask(inputs)

    def call(self, inputs):
        x = self.embedding(inputs) * self.width**0.5
        positions = tf.constant(self.positions)[: tf.shape(inputs)[1]]  # [L, width]
        return x + tf.cast(positions, x.dtype)


class TokenCount(keras.metrics.Metric):
    """How many targets are not padding, exactly."""

    def __init__(self, name: str = "tokens"):
        super().__init__(name=name)
        self.total = self.add_variable((), "zeros", dtype="int64", name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(tf.math.count_nonzero(y_true))

    def result(self):
        return keras.ops.convert_to_tensor(self.total)


class InverseSqrt(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a decay with the square root of the step."""

    def __init__(self, config: OptimizerConfig):
        self.config = config

    def __call__(self, step):
        number = keras.ops.cast(step, "float32") + 1.0
        warm_up = float(self.config.warmup_steps)
        decay = keras.ops.sqrt(warm_up / keras.ops.maximum(number, warm_up))
        return self.config.learning_rate * keras.ops.minimum(number / warm_up, 1.0) * decay


def build_model(config: ModelConfig, vocab_size: int, longest: int) -> keras.Model:
    """Source int32 [B, S] and shifted target int32 [B, T] to float32 logits [B, T, V]."""
    layers = keras.layers

    def around(x, y):
        return layers.LayerNormalization(epsilon=1e-6)(x + layers.Dropout(config.dropout)(y))

    def attention(x, memory, *, causal=False):
        attend = layers.MultiHeadAttention(
            config.heads, config.width // config.heads, dropout=config.attention_dropout
        )
        return around(x, attend(x, memory, use_causal_mask=causal))

    def feed_forward(x):
        inner = layers.Dense(config.feed_forward, activation="relu")(x)
        return around(x, layers.Dense(config.width)(inner))

    source = keras.Input([None], dtype="int32", name="source")
    shifted = keras.Input([None], dtype="int32", name="shifted")
    memory = PositionalEmbedding(vocab_size, config.width, longest)(source)
    memory = layers.Dropout(config.dropout)(memory)
    for _ in range(config.encoder_layers):
        memory = feed_forward(attention(memory, memory))
    x = PositionalEmbedding(vocab_size, config.width, longest)(shifted)
    x = layers.Dropout(config.dropout)(x)
    for _ in range(config.decoder_layers):
        x = feed_forward(attention(attention(x, x, causal=True), memory))
    logits = layers.Dense(vocab_size, dtype="float32")(x)
    return keras.Model([source, shifted], logits)


def dataset(
    pairs: Examples, batch_tokens: int, bos_id: int, eos_id: int, seed: int, length: int | None
) -> tf.data.Dataset:
    """Shuffled sentences, `batch_tokens` target tokens a batch on average, without end.

    Args:
        pairs: the corpus.
        batch_tokens: target tokens, padding not counted.
        bos_id: opens what the decoder reads.
        eos_id: closes every sentence.
        seed: of the order.
        length: pads every batch to that many tokens; None for its longest sentence.

    Returns:
        ((source, shifted), target), int32 [B, S], [B, T] and [B, T], 0 for padding.
    """
    sides = [
        tf.RaggedTensor.from_row_splits(tokens, pairs.offsets[name])
        for name, tokens in pairs.tokens.items()
    ]

    def example(source, target):
        target = tf.concat([target, [eos_id]], 0)
        shifted = tf.concat([[bos_id], target[:-1]], 0)
        return (tf.concat([source, [eos_id]], 0), shifted), target

    sentences = max(1, round(batch_tokens * len(pairs) / target_tokens(pairs)))
    data = tf.data.Dataset.from_tensor_slices(tuple(sides))
    data = data.shuffle(len(pairs), seed=seed).repeat()
    data = data.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    shapes = (([length], [length]), [length])
    return data.padded_batch(sentences, shapes).prefetch(tf.data.AUTOTUNE)


class MeterCallback(keras.callbacks.Callback):
    """Tells the meter of every step; `fit` itself is left alone."""

    def __init__(self, meter: Meter):
        super().__init__()
        self._meter = meter
        self._tokens = 0.0

    def on_train_batch_end(self, batch: int, logs=None):
        tokens, self._tokens = logs["tokens"] - self._tokens, logs["tokens"]
        if batch == 0:
            self._meter.first_step(logs["loss"])
            self._meter.describe(
                parameters=self.model.count_params(),
                version=f"TensorFlow {tf.__version__}, Keras {keras.__version__}",
            )
        elif not self._meter.after_step(round(tokens), logs["loss"]):
            self.model.stop_training = True


def train(setting: Setting, meter: Meter) -> None:
    """Train until the meter says stop. Losses are means of all steps so far, as `fit` has them."""
    config, manifest = setting.config, setting.manifest
    keras.utils.set_random_seed(config.train.seed)
    keras.config.set_dtype_policy(setting.precision)
    offsets = (setting.pairs.offsets["source"], setting.pairs.offsets["target"])
    longest = int(max(np.diff(side).max() for side in offsets)) + 1
    model = build_model(config.model, manifest.tokenizers["target"].vocab_size, longest)
    adam = keras.optimizers.Adam(
        InverseSqrt(config.optimizer),
        config.optimizer.beta_1,
        config.optimizer.beta_2,
        config.optimizer.epsilon,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile(adam, loss, metrics=[TokenCount()])
    batches = dataset(
        setting.pairs,
        config.train.batch_tokens,
        manifest.bos_id,
        manifest.eos_id,
        config.train.seed,
        # "auto" means XLA where there is a GPU, which would compile anew for every other length.
        longest if model.jit_compile else None,
    )
    model.fit(batches, steps_per_epoch=2**31, verbose=0, callbacks=[MeterCallback(meter)])
