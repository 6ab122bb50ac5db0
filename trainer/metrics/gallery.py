"""What TensorBoard shows of a model besides numbers: pictures, histograms, embeddings."""

import time
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf
from tensorboard.plugins.histogram import metadata

from data_pipeline.dataset import packing
from data_pipeline.dataset.examples import Examples
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.metrics import boards, pictures
from trainer.metrics.attention_maps import attention_maps
from trainer.metrics.writer import MetricsWriter, image
from trainer.tasks.base import Task

LARGEST_SHARE = 0.02
"""Of the training time, for everything here together."""
_FIRST_HISTOGRAMS, _FIRST_PICTURES = 0.4, 2.0  # guesses, in seconds
_BUCKETS = 30  # of a histogram
_SHOWN = 2  # examples whose attention is drawn
_SHORTEST, _LONGEST = 4, 40  # tokens drawn of an example
_EMBEDDINGS = 5000  # pieces in the projector


class Gallery:
    """Shows how a model changes, after evaluations, for at most a small share of the time.

    What would take more than `LARGEST_SHARE` of the training time so far is left out. So is what
    would leave too little of the whole run's share for the last evaluation, which matters most:
    a run of a few minutes has some histograms on the way, and pictures at its end.

    Args:
        writer: gets everything.
        task: what the model learns.
        model: as it is when `add` is called.
        tokenizers: sequence -> its tokenizer.
        examples: some of the validation split, the same each time.
        closing_id: as in `Manifest.closing_id`.
        device: where the model's weights are; not a TPU, which runs compiled programs only.
        schedule: a function of the number of finished steps.
        steps: of the whole run.
        seconds: returns the training time so far.
    """

    def __init__(
        self,
        writer: MetricsWriter,
        task: Task,
        model: keras.Model,
        tokenizers: Mapping[str, Tokenizer],
        examples: Examples,
        *,
        closing_id: int | None,
        device: str,
        schedule: Callable,
        steps: int,
        seconds: Callable[[], float],
    ):
        self._writer, self._task, self._model = writer, task, model
        self._tokenizers, self._closing_id, self._device = tokenizers, closing_id, device
        self._schedule, self._steps, self._seconds = schedule, steps, seconds
        lengths = examples.lengths()  # [sequences, n]
        order = np.argsort(lengths.max(axis=0) > _LONGEST, kind="stable")  # short ones first
        chosen = [i for i in order if lengths[:, i].min() >= _SHORTEST][:_SHOWN]
        self._examples = [(_start(examples, i), _label(examples, i)) for i in chosen]
        self._spent = 0.0
        self._histograms_take, self._pictures_take = _FIRST_HISTOGRAMS, _FIRST_PICTURES
        self._before: dict[str, np.ndarray] = {}
        self._drawn = False

    def add(self, step: int) -> None:
        """Show the model as it is now, as far as there is time for it."""
        share, ends = LARGEST_SHARE * self._seconds(), step >= self._steps
        left = share - self._spent
        if not ends:
            last = self._histograms_take + self._pictures_take
            left = min(left, share * self._steps / max(1, step) - self._spent - last)
        if not self._examples or left < self._histograms_take:
            return
        with_pictures = left >= self._histograms_take + self._pictures_take
        self._histograms_take = self._show(step, self._add_weights)
        if with_pictures:
            self._pictures_take = self._show(step, self._add_pictures)
        if ends and (embeddings := self._embeddings()):
            self._writer.board_files("valid", boards.projector_files(*embeddings))

    def _show(self, step: int, draw: Callable[[], None]) -> float:
        """Call a function that writes summaries; return the seconds that it took."""
        began = time.monotonic()
        with tf.device(self._device):
            self._writer.show("valid", step, draw)
        took = time.monotonic() - began
        self._spent += took
        return took

    def _add_pictures(self) -> None:
        if not self._drawn:
            self._add_start()
        self._add_attention()

    def _add_start(self) -> None:
        """Show what does not change."""
        width = getattr(getattr(self._model, "config", None), "width", None)
        if width:
            image("positions", pictures.draw_positions(width, 64))
        image("schedule", pictures.draw_schedule({"learning rate": self._schedule}, self._steps))
        tf.summary.graph(self._graph())
        self._drawn = True

    def _graph(self) -> tf.Graph:
        """Return the graph of the loss of the shown examples, named by the layers."""

        @tf.function(autograph=False)
        def loss(batch):
            return self._task.sums(self._model, batch, None, training=False)["loss"]

        return loss.get_concrete_function(self._batch()).graph

    def _add_attention(self) -> None:
        for number, (example, label) in enumerate(self._examples, start=1):
            maps = attention_maps(
                self._model,
                self._task,
                example,
                self._tokenizers,
                closing_id=self._closing_id,
                label=label,
            )
            for one in maps:
                step = tf.summary.experimental.get_step()
                title = f"{one.kind} attention, example {number}, step {step:,}"
                picture = pictures.draw_attention(one, title)
                image(f"attention/{one.kind}/{number}", picture)
                self._writer.pictures({f"attention-{one.kind}-{number}.png": picture})

    def _add_weights(self) -> None:
        """Show the distributions of weights and gradients, and how far the weights have moved."""
        names = _names(self._model)
        moved = []
        variables = self._model.trainable_variables
        for variable, gradient in zip(variables, self._gradients(), strict=True):
            if len(variable.shape) < 2:
                continue  # biases and norms: too many charts
            name, value = names[id(variable)], variable.numpy()
            _histogram(f"weights/{name}", value)
            _histogram(f"gradients/{name}", gradient)
            if name in self._before and (size := np.linalg.norm(value)) > 0:
                moved.append(np.linalg.norm(value - self._before[name]) / size)
            self._before[name] = value
        if moved:
            tf.summary.histogram("update_to_weight", moved)

    def _batch(self) -> dict[str, tf.Tensor]:
        """Return the shown examples as a batch."""
        ids = {name: [example[name] for example, _ in self._examples] for name in self._tokenizers}
        labels = [label for _, label in self._examples if label is not None]
        examples = Examples.of_lists(ids, labels or None)
        rows = packing.pack(examples, _SHOWN * (_LONGEST + 1), self._closing_id)
        return {name: tf.constant(array) for name, array in rows.arrays.items()}

    def _gradients(self) -> list[np.ndarray]:
        """Return the gradients of the loss of the shown examples, without dropout."""
        batch = self._batch()
        with tf.GradientTape() as tape:
            loss = self._task.sums(self._model, batch, None, training=False)["loss"]
        values = [variable.value for variable in self._model.trainable_variables]
        zero = tf.UnconnectedGradients.ZERO
        found = tape.gradient(loss, values, unconnected_gradients=zero)
        return [tf.convert_to_tensor(gradient).numpy() for gradient in found]

    def _embeddings(self) -> tuple[list[str], np.ndarray] | None:
        """Return the first pieces of the last sequence's vocabulary, and their vectors.

        None for a model without a table of embeddings.
        """
        *_, tokenizer = self._tokenizers.values()
        layers = self._model._flatten_layers()
        tables = {
            layer.name: layer for layer in layers if isinstance(layer, keras.layers.Embedding)
        }
        table = tables.get("target_embedding", tables.get("embedding"))
        if table is None:
            return None
        vectors = table.embeddings.numpy()[:_EMBEDDINGS]
        return tokenizer.pieces(range(len(vectors))), vectors


def _names(layer: keras.Layer, prefix: str = "") -> dict[int, str]:
    """Return id of a variable -> its name, with those of the layers around it.

    The paths that Keras gives do not have them, as layers here are built before they are called.
    """
    found: dict[int, str] = {}
    for child in layer._flatten_layers(recursive=False, include_self=False):
        found = _names(child, f"{prefix}{child.name}/") | found
    own = {id(variable): f"{prefix}{variable.name}" for variable in layer.trainable_variables}
    return own | found


def _start(examples: Examples, index: int) -> dict[str, np.ndarray]:
    return {name: ids[:_LONGEST] for name, ids in examples.example(index).items()}


def _label(examples: Examples, index: int) -> int | None:
    return None if examples.labels is None else int(examples.labels[index])


def _histogram(name: str, values: np.ndarray) -> None:
    """Write a histogram; tf.summary.histogram takes 240 bytes a value on the way."""
    kind = metadata.create_summary_metadata(display_name=None, description=None)
    tf.summary.write(name, tf.constant(buckets_of(values)), metadata=kind)


def buckets_of(values: np.ndarray) -> np.ndarray:
    """Return float64 [buckets, 3]: left edge, right edge and count; of the finite values alone."""
    finite = values[np.isfinite(values)].astype(np.float64)
    counts, edges = np.histogram(finite, _BUCKETS)
    return np.stack([edges[:-1], edges[1:], counts], axis=1)
