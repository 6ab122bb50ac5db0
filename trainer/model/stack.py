"""A stack of Transformer layers: the body of an encoder, a decoder or a language model.

Axis letters: B batch, L length, S length of what the encoder read, T decoded length, K hypotheses,
G heads of keys and values, H size of a head, D width.
"""

from dataclasses import replace

import keras
import tensorflow as tf

from configs.schema import ModelConfig
from trainer.model.encodings import Sight, sinusoidal_positions
from trainer.model.layers import TransformerLayer
from trainer.model.norms import UNSCALED, Scales

Cache = list[dict[str, tf.Tensor]]
"""For each layer what `TransformerLayer.step` reads."""


class Stack:
    """Layers that a model owns: NAME_0, NAME_1 and so on are attributes of the model.

    With `share_layers` there is one layer, which runs again and again (Dehghani et al. 2019,
    Universal Transformers, section 2.1, without halting): before each pass the encoding of the
    pass is added, so that the layer knows where it is.

    This is no Keras layer: the layers keep their names and places in checkpoints.

    Args:
        model: gets the attributes.
        config: of the model.
        name: of the layers, before the number.
        depth: passes from input to output.
        cross_attention: whether the layers attend to an encoder's output.
        scales: DeepNorm's.
        remat: whether the backward pass computes each layer again, in place of keeping what it
            needs of the forward pass (Chen et al. 2016, Training Deep Nets with Sublinear Memory
            Cost, section 4).
    """

    def __init__(
        self,
        model: keras.Model,
        config: ModelConfig,
        name: str,
        depth: int,
        *,
        cross_attention: bool = False,
        scales: Scales = UNSCALED,
        remat: bool = False,
    ):
        self.config, self.remat = config, remat
        count = 1 if config.share_layers else depth
        made = [
            TransformerLayer(
                config, cross_attention=cross_attention, scales=scales, name=f"{name}_{number}"
            )
            for number in range(count)
        ]
        for layer in made:  # a checkpoint follows attributes; it does not look into lists
            setattr(model, layer.name, layer)
        self.layers = made * depth if config.share_layers else made

    def __call__(
        self,
        x: tf.Tensor,
        sight: Sight,
        rng: tf.Tensor | None = None,
        memory: tf.Tensor | None = None,
        cross_sight: Sight | None = None,
    ) -> tf.Tensor:
        """Run all layers on whole rows.

        Args:
            x: [B, L, D], the embeddings.
            sight: of self-attention, the same in all layers.
            rng: int32 [2], the seed of this step's dropout; None switches dropout off.
            memory: [B, S, D], the encoder's output, with cross-attention only.
            cross_sight: of the attention to `memory`.

        Returns:
            [B, L, D].
        """
        for depth, layer in enumerate(self.layers):
            x, layer_rng = self._begin_pass(x, depth), rng
            if self.config.share_layers and rng is not None:  # other masks in every pass
                layer_rng = tf.random.experimental.stateless_fold_in(rng, depth, alg="philox")
            run = _recomputed if self.remat else _run
            x = run(layer, x, memory, layer_rng, sight, cross_sight)
        return x

    def start_cache(
        self,
        batch: tf.Tensor | int,
        length: tf.Tensor | int,
        beams: int,
        memory: tf.Tensor | None = None,
    ) -> Cache:
        """Return an empty cache that holds the keys and values of the encoder's output.

        Args:
            batch: B.
            length: T, how many positions will be decoded at most.
            beams: K, hypotheses of each row.
            memory: [B, S, D], with cross-attention only.
        """
        cache = []
        for layer in self.layers:
            size = self.config.width // self.config.heads
            shape = [batch, layer.attention.kv_heads, length * beams, size]
            empty = tf.zeros(shape, layer.compute_dtype)  # [B, G, T * K, H]
            entry = {"key": empty, "value": empty}
            if memory is not None:
                keys, values = layer.cross_attention.keys_and_values(memory)  # [B, G, S, H]
                entry |= {"memory_key": keys, "memory_value": values}
            cache.append(entry)
        return cache

    def step(
        self,
        x: tf.Tensor,
        cache: Cache,
        position: tf.Tensor,
        sight: Sight,
        cross_sight: Sight | None = None,
    ) -> tuple[tf.Tensor, Cache]:
        """Run all layers on one position; see `TransformerLayer.step`.

        Returns:
            [B, K, D], and the new cache.
        """
        updated = []
        for depth, (layer, entry) in enumerate(zip(self.layers, cache, strict=True)):
            x = self._begin_pass(x, depth)
            x, entry = layer.step(x, entry, position, sight, cross_sight)
            updated.append(entry)
        return x, updated

    def _begin_pass(self, x: tf.Tensor, depth: int) -> tf.Tensor:
        if not self.config.share_layers:
            return x
        encoding = sinusoidal_positions(tf.constant([[depth]]), self.config.width)  # [1, 1, D]
        return x + tf.cast(encoding, x.dtype)


def _run(layer: TransformerLayer, x, memory, rng, sight: Sight, cross_sight) -> tf.Tensor:
    return layer(x, memory, rng, sight=sight, cross_sight=cross_sight)


def _recomputed(layer: TransformerLayer, x, memory, rng, sight: Sight, cross_sight) -> tf.Tensor:
    """Like `_run`, but keep only the arguments for the backward pass.

    What has a gradient must be an argument of the recomputed function; masks must not be, since
    TensorFlow looks for the gradient of every argument.
    """
    arguments = [x, *(tensor for tensor in (memory, sight.bias) if tensor is not None)]
    variables = layer.trainable_variables

    def run(x, *others):
        rest = list(others)
        read = None if memory is None else rest.pop(0)
        bias = None if sight.bias is None else rest.pop(0)
        with keras.StatelessScope(list(zip(variables, rest, strict=True))):
            return _run(layer, x, read, rng, replace(sight, bias=bias), cross_sight)

    return tf.recompute_grad(run)(*arguments, *(variable.value for variable in variables))
