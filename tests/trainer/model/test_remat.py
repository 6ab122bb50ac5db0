"""Layers that are computed again in the backward pass give the same step."""

import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.worker_script import task_of
from trainer.model.dropout import step_rng
from trainer.model.seeds import seeded_weights

BATCH = [np.array([[5, 6, 7, 3, 8, 3]]), np.array([[1, 1, 1, 1, 2, 2]])]


def gradients(strategy, config, remat: bool, jit_compile: bool):
    """Logits and gradients of a model with dropout, on the first replica; products in the graph."""
    config.train.remat = "layers" if remat else "none"
    with strategy.scope(), seeded_weights(0):
        model = task_of(config).build_model()

    @tf.function(jit_compile=jit_compile or None, autograph=False)
    def compute(*features):
        with tf.GradientTape() as tape:
            logits = model(*features, rng=step_rng(1, 2, 3))
            loss = tf.reduce_sum(logits**2)
        variables = [variable.value for variable in model.trainable_variables]
        return logits, [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]

    @tf.function(autograph=False)
    def run(*features):
        return strategy.run(lambda *part: compute(*part), args=features)

    sequences = 2 if config.task == "translation" else 1
    features = [tf.constant(array, tf.int32) for array in BATCH * sequences]
    results = [
        strategy.experimental_local_results(value)[0].numpy()
        for value in tf.nest.flatten(run(*features))
    ]
    graph = str(run.get_concrete_function(*features).graph.as_graph_def())
    return results, graph.count('op: "BatchMatMulV2"')


@pytest.mark.parametrize(
    ("task", "replicas", "jit_compile"),
    [
        ("translation", 1, True),
        pytest.param("translation", 1, False, marks=pytest.mark.slow),
        pytest.param("translation", 2, False, marks=pytest.mark.slow),
        ("language_model", 1, False),
        ("classification", 1, False),
    ],
)
def test_the_same_gradients(tiny_config, one_device, two_replicas, task, replicas, jit_compile):
    """To rounding, with dropout, which draws the same masks again, and T5's learned biases."""
    rates = {"dropout": 0.2, "attention_dropout": 0.2}
    config = tiny_config(
        model={"encoder_layers": 2, "decoder_layers": 2, "positions": "t5", **rates}
    )
    config.task = task
    strategy = one_device if replicas == 1 else two_replicas
    (kept, few), (again, more) = (
        gradients(strategy, config, remat, jit_compile) for remat in (False, True)
    )
    assert more > few  # it does compute them again
    assert len(kept) == len(again) > 30
    for one, other in zip(kept, again, strict=True):  # biases of keys have none but rounding
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=2e-5)
    assert sum(np.abs(one).max() > 0.01 for one in kept) > 25
