"""Packed rows whose sentences are cut into pieces anew in each epoch.

Subword regularisation (Kudo 2018, section 3): a model that sees a sentence in many segmentations
learns what a word is made of. The epochs are packed one by one while training runs, in memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from common.errors import UsageError
from configs.schema import Config
from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import Examples, load_tokenizers
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.tokenizer import UNK_ID, Tokenizer
from trainer.input.batch_size import batch_rows
from trainer.input.distribution import endless


@dataclass(frozen=True)
class ResampledData:
    """Rows in sampled segmentations, in batches; see `trainer.input.protocol.TrainingData`.

    Every epoch has the batches of the first one. Where its sentences need more rows than that, a
    few of its rows, drawn anew, stay out; where they need fewer, a few come twice.

    Attributes:
        texts: sequence -> the normalised text of each example.
        models: sequence -> its tokenizer, a unigram model.
        labels: the class of each example, or None.
        row_length: tokens of a sequence in a row.
        closing_id: the token that packing adds to every sequence.
        batch_rows: rows of a global batch.
        alpha: as of `Tokenizer.sample`.
        seed: decides the segmentations and the order.
    """

    texts: Mapping[str, Sequence[str]]
    models: Mapping[str, Tokenizer]
    labels: np.ndarray | None
    row_length: int
    closing_id: int
    batch_rows: int
    alpha: float
    seed: int

    @property
    def shapes(self) -> list[tuple[int, int]]:
        return [(self.batch_rows, self.row_length)]

    @property
    def batches_per_epoch(self) -> int:
        return max(1, round(len(self._first) / self.batch_rows))

    @property
    def origin(self) -> str:
        return f"cut into pieces anew in each epoch, with data.sampling_alpha={self.alpha:g}"

    def fill_rate(self) -> float:
        return self._first.fill_rate()

    def left_out(self) -> int:
        return self._first.left_out

    def rows(self, epoch: int) -> packing.Rows:
        """Return the rows of an epoch, counted from 0, as packing leaves them."""
        ids = {}
        for name, texts in self.texts.items():
            samples = self.models[name].sample(texts, 1, self.alpha, self.seed, first=epoch)
            ids[name] = [sample for (sample,) in samples]
        examples = Examples.of_lists(ids, self.labels)
        return packing.pack(examples, self.row_length, self.closing_id)

    def dataset(
        self, first_step: int, replicas: int = 1, first: int = 0, local: int = 1
    ) -> tf.data.Dataset:
        steps, size = self.batches_per_epoch, self.batch_rows // replicas
        names = list(self._first.arrays)

        def batches(epoch):
            """Return this worker's rows of an epoch, int32 [steps, local, size, L] a feature."""
            rows = self.rows(int(epoch))
            draw = np.random.Generator(np.random.PCG64([self.seed, int(epoch)]))
            order = np.resize(draw.permutation(len(rows)), [steps, replicas, size])
            mine = order[:, first : first + local]
            return [rows.arrays[name][mine].astype(np.int32) for name in names]

        def of_epoch(epoch):
            arrays = tf.numpy_function(batches, [epoch], [tf.int32] * len(names), stateful=False)
            shape = [steps, local, size, self.row_length]
            features = {
                name: tf.reshape(tf.ensure_shape(array, shape), [steps * local, *shape[2:]])
                for name, array in zip(names, arrays, strict=True)
            }
            begin = tf.where(epoch == first_step // steps, first_step % steps * local, 0)
            return tf.data.Dataset.from_tensor_slices(features).skip(tf.cast(begin, tf.int64))

        epochs = tf.data.Dataset.counter(first_step // steps, dtype=tf.int64)
        # The next epoch is made while one is trained on.
        nested = epochs.map(of_epoch, num_parallel_calls=1).prefetch(1)
        return endless(nested.flat_map(lambda batches: batches).prefetch(2 * local))

    def check(self, step: int, steps: int = 1) -> None:
        """Do nothing: everything was checked when it was read."""

    @cached_property
    def _first(self) -> packing.Rows:
        return self.rows(0)


def resampled_data(
    examples: Examples, manifest: Manifest, config: Config, replicas: int
) -> ResampledData:
    """Return the training split to cut anew, from its examples.

    Raises:
        UsageError: the task, the batching or a tokenizer does not allow it, nothing fits into a
            row, or a batch cannot be shared equally.
    """
    if manifest.closing_id is None or config.data.batching != "packed":
        raise UsageError(
            "--config.data.sampling_alpha is for pairs and labelled texts in packed rows: set it "
            "to 0, or --config.data.batching=packed"
        )
    models = load_tokenizers(manifest)
    texts = {}
    for name, model in models.items():
        if np.any(examples.tokens[name] == UNK_ID):
            raise UsageError(
                f"--config.data.sampling_alpha needs the whole text, and the {name} vocabulary has "
                "no pieces for some of it; set it to 0, or train a vocabulary with byte fallback"
            )
        lists = np.split(examples.tokens[name], examples.offsets[name][1:-1])
        texts[name] = model.decode(lists)
    made = ResampledData(
        texts,
        models,
        examples.labels,
        config.data.row_length,
        manifest.closing_id,
        batch_rows(config.train, config.data.row_length, replicas),
        config.data.sampling_alpha,
        config.train.seed,
    )
    if not made.fill_rate():
        raise UsageError(
            f"all {len(examples)} training examples are longer than a row; raise "
            "--config.data.row_length"
        )
    return made
