"""Sums over chunks of tokens against the same sums over all logits at once."""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf

from trainer.model.embeddings import Projection
from trainer.tasks import losses
from trainer.tasks.chunks import chunked_sums
from trainer.tasks.tpu_losses import token_sums_and_gradients

B, T, D, V = 3, 5, 8, 11


@pytest.fixture
def tokens():
    """int32 targets [B, T], and weights that leave out the end of two rows."""
    targets = np.random.default_rng(0).integers(0, V, [B, T]).astype(np.int32)
    weights = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]], np.float32)
    return targets, weights


def states(passes: int, dtype) -> tuple[tf.Tensor, tf.Tensor]:
    """Hidden states [passes B, T, D] and a float32 matrix [V, D], whose values a half can hold."""
    rng = np.random.default_rng(1)
    hidden = tf.cast(rng.normal(size=[passes * B, T, D]), dtype)
    return hidden, tf.cast(tf.cast(rng.normal(size=[V, D]), dtype), tf.float32)


def with_gradients(sums_of, hidden, matrix, factor: float = 1.0):
    """The sums, and the gradients of `factor` times the loss."""
    with tf.GradientTape() as tape:
        tape.watch([hidden, matrix])
        sums = sums_of(hidden, matrix)
        loss = sums["loss"] * factor
    return sums, [tf.convert_to_tensor(one) for one in tape.gradient(loss, [hidden, matrix])]


def assert_same(chunked, whole, rtol: float, sums_rtol: float = 1e-6) -> None:
    (sums, gradients), (expected, expected_gradients) = chunked, whole
    assert list(sums) == list(expected) == list(losses.SUMS)
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=sums_rtol, err_msg=name)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs, np.float32)
        np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.abs(theirs).max())


@pytest.mark.parametrize("chunk_tokens", [0, 1, 4, 15, 100])
@pytest.mark.parametrize(
    ("function", "passes"),
    [
        (functools.partial(losses.token_sums, label_smoothing=0.1), 1),
        (functools.partial(losses.rdrop_sums, label_smoothing=0.1, alpha=5.0), 2),
        (functools.partial(losses.simcut_sums, label_smoothing=0.1, alpha=3.0), 2),
    ],
)
def test_sums_and_gradients(tokens, chunk_tokens, function, passes):
    """Chunks that fill, that do not, one that holds all, and none."""
    targets, weights = tokens
    hidden, matrix = states(passes, tf.float32)

    def chunked(hidden, matrix):
        return chunked_sums(
            function,
            losses.SUMS,
            hidden,
            Projection(matrix, True),
            targets,
            weights,
            passes=passes,
            training=True,
            chunk_tokens=chunk_tokens,
        )

    def whole(hidden, matrix):
        logits = tf.matmul(hidden, matrix, transpose_b=True)
        return function(logits, np.tile(targets, [passes, 1]), np.tile(weights, [passes, 1]))

    arguments = (hidden, matrix, 0.25)
    assert_same(with_gradients(chunked, *arguments), with_gradients(whole, *arguments), 2e-6)


def traced(tokens, hidden, matrix, factor, *, transposed, jit_compile, **options):
    """`with_gradients` of smoothed sums over chunks, in a traced function; matrix is [V, D]."""
    function = functools.partial(losses.token_sums, label_smoothing=0.1)

    @tf.function(jit_compile=jit_compile, autograph=False)
    def run(hidden, matrix):
        def chunked(hidden, matrix):
            projection = Projection(matrix if transposed else tf.transpose(matrix), transposed)
            arguments = function, losses.SUMS, hidden, projection, *tokens
            return chunked_sums(*arguments, training=True, **options)

        return with_gradients(chunked, hidden, matrix, factor)

    return run(hidden, matrix)


@pytest.mark.parametrize("chunk_tokens", [0, 4])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize(
    ("dtype", "rtol", "sums_rtol"),
    [("float32", 2e-6, 1e-6), ("bfloat16", 8e-3, 1e-3), ("float16", 1e-3, 1e-4)],
)
def test_the_order_for_tpus(tokens, chunk_tokens, transposed, dtype, rtol, sums_rtol):
    """Two equal logits are the highest of some tokens: only the first is the argmax."""
    targets, weights = tokens
    hidden, matrix = states(1, tf.as_dtype(dtype))
    matrix = tf.concat([matrix[:5], matrix[:4], matrix[9:]], axis=0)
    best = np.argmax(np.asarray(tf.cast(hidden, tf.float32)) @ np.asarray(matrix).T, axis=-1)
    assert (best < 4).any()
    targets = np.where(best < 4, best, targets)
    targets[2] = np.where(best[2] < 4, best[2] + 5, targets[2])
    targets = targets.astype(np.int32)
    whole = functools.partial(losses.token_sums, label_smoothing=0.1)

    on_tpu = traced(
        (targets, weights),
        hidden,
        matrix,
        0.25,
        transposed=transposed,
        jit_compile=True,
        chunk_tokens=chunk_tokens,
        at_once=functools.partial(token_sums_and_gradients, label_smoothing=0.1),
    )
    expected, gradients = with_gradients(
        lambda hidden, matrix: whole(tf.matmul(hidden, matrix, transpose_b=True), targets, weights),
        tf.cast(hidden, tf.float32),
        matrix,
        0.25,
    )
    assert 0 < expected["correct"] < expected["tokens"]
    gradients[0] = tf.cast(gradients[0], hidden.dtype)
    assert_same(on_tpu, (expected, gradients), rtol, sums_rtol)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [("bfloat16", 8e-3), ("float16", 1e-3)])
def test_half_precision(tokens, dtype, rtol, jit_compile):
    """The sums are those of float32 logits, and the gradients are rounded once or twice."""
    targets, weights = tokens
    hidden, matrix = states(1, tf.as_dtype(dtype))
    function = functools.partial(losses.token_sums, label_smoothing=0.1)

    scale = 2.0**20  # more than float16 holds
    options = {"transposed": False, "jit_compile": jit_compile, "chunk_tokens": 4}

    def whole(hidden, matrix):
        return function(tf.matmul(hidden, matrix, transpose_b=True), targets, weights)

    expected, gradients = with_gradients(whole, tf.cast(hidden, tf.float32), matrix, scale)
    sums, ours = traced(tokens, hidden, matrix, scale, **options)
    assert np.isinf(np.asarray(ours[0], np.float32)).any() == (dtype == "float16")
    if dtype == "bfloat16":
        gradients[0] = tf.cast(gradients[0], hidden.dtype)
        assert_same((sums, ours), (expected, gradients), rtol)
    np.testing.assert_allclose(
        ours[1], gradients[1], rtol=rtol, atol=rtol * np.abs(gradients[1]).max()
    )


def test_small_float16_gradients_are_not_lost():
    """Of a logit that is far below the target's: 2e-9, which float16 cannot hold."""
    hidden = tf.constant([[[1.0, 0.0]]], tf.float16)
    matrix = tf.constant([[20.0, 0.0], [0.0, 1.0]])  # logits 20 and 0
    with tf.GradientTape() as tape:
        tape.watch(matrix)
        loss = chunked_sums(
            functools.partial(losses.token_sums, label_smoothing=0.0),
            losses.SUMS,
            hidden,
            Projection(matrix, True),
            tf.zeros([1, 1], tf.int32),
            tf.ones([1, 1]),
            training=True,
            chunk_tokens=1,
        )["loss"]
    gradient = tape.gradient(loss, matrix).numpy()[1, 0]
    assert gradient == pytest.approx(np.exp(-20.0), rel=0.05)
    assert gradient < 2.0**-25


def test_evaluation(tokens):
    """The same sums, without the work for gradients."""
    targets, weights = tokens
    hidden, matrix = states(1, tf.float32)
    function = functools.partial(losses.token_sums, label_smoothing=0.0)

    @tf.function(autograph=False)
    def sums_of(training: bool):
        return chunked_sums(
            function,
            losses.SUMS,
            hidden,
            Projection(matrix, True),
            targets,
            weights,
            training=training,
            chunk_tokens=4,
        )

    for name, value in sums_of(True).items():
        np.testing.assert_allclose(sums_of(False)[name], value, rtol=1e-6, err_msg=name)


def test_no_matrix_of_all_logits(tokens):
    """No tensor of a training step has as many numbers as all logits together."""
    targets, weights = np.tile(tokens[0], [8, 1]), np.tile(tokens[1], [8, 1])

    @tf.function(jit_compile=True, autograph=False)
    def step(hidden, matrix):
        return with_gradients(
            lambda hidden, matrix: chunked_sums(
                functools.partial(losses.token_sums, label_smoothing=0.1),
                losses.SUMS,
                hidden,
                Projection(matrix, True),
                targets,
                weights,
                training=True,
                chunk_tokens=20,
            ),
            hidden,
            matrix,
        )

    hidden, matrix = tf.ones([8 * B, T, D]), tf.ones([1000, D])
    text = step.experimental_get_compiler_ir(hidden, matrix)(stage="optimized_hlo")
    shapes = re.findall(r"f32\[([0-9,]+)\]", text)
    largest = max(np.prod([int(size) for size in shape.split(",")]) for shape in shapes)
    assert largest == 20 * 1000
