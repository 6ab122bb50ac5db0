"""Logits are float32 products of half-precision factors, and so are their gradients."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.model.embeddings import float32_logits, token_embedding

X, V, D = (2, 3), 40, 256


def factors(dtype, transposed: bool):
    """Random tensors of a dtype, and the same numbers in float64."""
    rng = np.random.default_rng(0)
    x = tf.cast(rng.normal(size=[*X, D]), dtype)
    matrix = tf.cast(rng.normal(size=[V, D] if transposed else [D, V]), dtype)
    wide = tf.cast(x, tf.float64).numpy(), tf.cast(matrix, tf.float64).numpy()
    return x, matrix, *wide


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("jit_compile", [True, None])
@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float16])
def test_logits_and_gradients_equal_numpy(dtype, jit_compile, transposed):
    """Values as exact as float32 sums are, also of bfloat16; its own rounding would be 2^-8."""
    x, matrix, wide_x, wide_matrix = factors(dtype, transposed)
    of_logits = np.random.default_rng(1).normal(size=[*X, V]).astype(np.float32)

    @tf.function(jit_compile=jit_compile)
    def compute(x, matrix):
        with tf.GradientTape() as tape:
            tape.watch([x, matrix])
            logits = float32_logits(x, matrix, transposed=transposed)
            loss = tf.reduce_sum(logits * of_logits)
        return logits, *tape.gradient(loss, [x, matrix])

    logits, of_x, of_matrix = compute(x, matrix)
    assert logits.dtype == tf.float32 and logits.shape == (*X, V)
    assert of_x.dtype == of_matrix.dtype == dtype
    kernel = wide_matrix.T if transposed else wide_matrix
    np.testing.assert_allclose(logits, wide_x @ kernel, rtol=1e-5, atol=5e-5)
    tolerance = {tf.float32: 1e-4, tf.float16: 0.02, tf.bfloat16: 0.15}[dtype]
    np.testing.assert_allclose(tf.cast(of_x, tf.float32), of_logits @ kernel.T, atol=tolerance)
    expected = wide_x.reshape(-1, D).T @ of_logits.reshape(-1, V)
    expected = expected.T if transposed else expected
    np.testing.assert_allclose(tf.cast(of_matrix, tf.float32), expected, atol=tolerance)


@pytest.mark.parametrize("jit_compile", [True, None])
def test_xla_multiplies_half_precision_factors(jit_compile):
    """Also in the body of a loop. Without XLA there is no such product, and factors are cast."""

    def compute(x, matrix):
        def body(i, total):
            return i + 1, total + float32_logits(x, matrix, transposed=True)

        start = tf.constant(0), tf.zeros([*X, V])
        return tf.while_loop(lambda i, _: i < 2, body, start)[1]

    x, matrix, *_ = factors(tf.bfloat16, True)
    function = tf.function(compute, jit_compile=jit_compile, autograph=False)
    graph = function.get_concrete_function(x, matrix).graph
    definitions = graph.as_graph_def().library.function
    products = [
        node.attr["Ta" if node.op == "BatchMatMulV3" else "T"].type
        for function in definitions
        for node in function.node_def
        if "MatMul" in node.op
    ]
    assert products == [(tf.bfloat16 if jit_compile else tf.float32).as_datatype_enum]
    once = float32_logits(x, matrix, transposed=True)
    np.testing.assert_allclose(function(x, matrix), 2 * once, rtol=1e-5, atol=1e-4)


def test_any_number_of_rows():
    """The shape is known as far as that of the input is."""
    signature = [tf.TensorSpec([None, None, D], tf.bfloat16), tf.TensorSpec([V, D], tf.bfloat16)]
    function = tf.function(
        lambda x, table: float32_logits(x, table, transposed=True), input_signature=signature
    )
    x, matrix, *_ = factors(tf.bfloat16, True)
    assert function.get_concrete_function().output_shapes.as_list() == [None, None, V]
    np.testing.assert_array_equal(function(x, matrix), float32_logits(x, matrix, transposed=True))


def test_token_embedding(seeded):
    """Standard deviation 1 / sqrt(width), to 5 standard errors; built from the start."""
    table = token_embedding(500, 64, "tokens").embeddings
    assert table.shape == (500, 64) and table.path == "tokens/embeddings"
    deviation = float(np.std(table.numpy()))
    assert abs(deviation - 1 / 8) < 5 * (1 / 8) / np.sqrt(2 * 500 * 64)
