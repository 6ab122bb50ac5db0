"""The form of a whole step's forward and backward pass that TPUs compute fastest."""

import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.worker_script import task_of
from trainer.model.attention import optimize_for_tpu
from trainer.model.dropout import step_rng
from trainer.model.seeds import seeded_weights

TOKENS = np.array([[5, 6, 7, 3, 8, 3], [9, 9, 3, 0, 0, 0]], np.int32)
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0]], np.int32)


def sums_and_gradients(config, *, on_tpu: bool) -> tuple[dict[str, float], list[np.ndarray]]:
    """The sums of a batch in training, and the gradients of all weights."""
    with seeded_weights(0):
        task = task_of(config)
        model = task.build_model()
    if on_tpu:
        optimize_for_tpu(model)
    names = ("source", "target") if config.task == "translation" else ("text",)
    batch = {name: tf.constant(TOKENS) for name in names}
    batch |= {f"{name}_segments": tf.constant(SEGMENTS) for name in names}

    @tf.function(jit_compile=True, autograph=False)
    def compute():
        with tf.GradientTape() as tape:
            sums = task.sums(model, batch, step_rng(1, 2, 3), training=True)
        variables = [variable.value for variable in model.trainable_variables]
        gradients = tape.gradient(sums["loss"], variables)
        return sums, [tf.convert_to_tensor(one) for one in gradients]

    sums, gradients = compute()
    text = compute.experimental_get_compiler_ir()(stage="hlo")
    layers = config.model.decoder_layers + (config.task == "translation")
    assert text.count("opt-barrier") == (layers if on_tpu else 0)
    return sums, [one.numpy() for one in gradients]


@pytest.mark.parametrize("task", ["translation", "language_model"])
@pytest.mark.parametrize(
    ("model", "remat"),
    [
        ({}, "none"),
        ({"attention_dropout": 0.2}, "none"),
        ({"activation": "swiglu", "norm": "pre"}, "layers"),
    ],
)
def test_the_same_step(tiny_config, task, model, remat):
    config = tiny_config(model={"decoder_layers": 2, "dropout": 0.2, **model})
    config.task = task
    config.train.remat = remat
    config.train.label_smoothing = 0.1
    expected, others = sums_and_gradients(config, on_tpu=False)
    sums, gradients = sums_and_gradients(config, on_tpu=True)
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-6, err_msg=name)
    assert len(gradients) == len(others) > 15
    for one, other in zip(gradients, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * np.abs(other).max() + 1e-6)
