"""The train step: one replica and two give the same numbers, compiled or not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from trainer.model.dropout import step_rng
from trainer.optimizer import make_optimizer
from trainer.step import Steps
from trainer.task import Translation

VOCAB, LENGTH = 30, 12


def random_batches(rows_of, count: int):
    """Batches of 4 rows: the first two are full of tokens and the last two hold 2 or 3."""
    rng = np.random.default_rng(0)

    def sentence(length):
        return rng.integers(4, VOCAB, length).tolist()

    batches = []
    for _ in range(count):
        rows = [[(sentence(5), sentence(5)), (sentence(4), sentence(5))] for _ in range(2)]
        rows += [[(sentence(2), sentence(n))] for n in rng.integers(1, 3, 2)]
        batches.append(rows_of(rows, LENGTH))
    return batches


def distributed(strategy, batches):
    """An iterator over global batches, each split over the replicas in order."""
    replicas = strategy.num_replicas_in_sync
    arrays = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}

    def pipeline(_):
        dataset = tf.data.Dataset.from_tensor_slices(arrays).unbatch()
        return dataset.batch(len(next(iter(batches[0].values()))) // replicas, drop_remainder=True)

    return iter(strategy.distribute_datasets_from_function(pipeline))


def make_steps(strategy, config, *, jit_compile=False) -> Steps:
    """Steps of a fresh model; the same initial weights every time."""
    keras.utils.set_random_seed(3)
    task = Translation(config, VOCAB, 2)
    with strategy.scope():
        model = task.build_model()
        optimizer = make_optimizer(config.optimizer, config.train.steps)
        optimizer.build(model.trainable_variables)
    return Steps(strategy, task, model, optimizer, config, jit_compile=jit_compile)


def weights(steps: Steps) -> list[np.ndarray]:
    return [variable.numpy() for variable in steps.model.trainable_variables]


def train(steps: Steps, batches, per_call: int = 1) -> list[dict[str, float]]:
    """The sums of each call, over all batches."""
    iterator = distributed(steps.strategy, batches)
    calls = [steps.train(iterator, tf.constant(per_call)) for _ in range(len(batches) // per_call)]
    return [{key: float(value) for key, value in sums.items()} for sums in calls]


def assert_same(ours, others, rtol=2e-5):
    """Sums of every call, and final weights."""
    for one, other in zip(ours[0], others[0], strict=True):
        assert one == pytest.approx(other, rel=rtol)
    for one, other in zip(ours[1], others[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol)


def test_two_replicas_equal_one(rows_of, tiny_config, one_device, two_replicas):
    """Five clipped steps on shares of which one has five times the tokens of the other."""
    config = tiny_config(optimizer={"clip_norm": 0.5, "epsilon": 1e-6})
    batches = random_batches(rows_of, 5)
    tokens = [(batch["target"] > 0).reshape(2, -1).sum(1) for batch in batches]
    assert all(first >= 4 * second for first, second in tokens)
    one, two = make_steps(one_device, config), make_steps(two_replicas, config)
    before = weights(one)
    sums, other_sums = train(one, batches), train(two, batches)
    assert [call["tokens"] for call in sums] == [sum(pair) for pair in tokens]
    assert all(call["gradient_norm"] > 0.5 for call in sums)  # clipping is active
    assert_same((sums, weights(one)), (other_sums, weights(two)))
    assert max(np.abs(a - b).max() for a, b in zip(before, weights(one), strict=True)) > 0.01
    for variable in two.model.trainable_variables:
        first, second = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second)


def test_replicas_draw_different_masks(rows_of, tiny_config, two_replicas):
    """Both get the same rows: with the same masks, their losses would be the same too."""
    config = tiny_config(model={"dropout": 0.3}, train={"seed": 5})
    half = {name: array[:2] for name, array in random_batches(rows_of, 1)[0].items()}
    batch = {name: np.concatenate([array, array]) for name, array in half.items()}
    steps = make_steps(two_replicas, config)
    first, second = (
        float(steps.task.sums(steps.model, half, step_rng(5, 0, replica), smoothed=True)["loss"])
        for replica in range(2)
    )
    assert abs(first - second) > 0.01 * first
    (sums,) = train(steps, [batch])
    assert sums["loss"] == pytest.approx(first + second, rel=1e-5)


def test_compiled_equals_not_compiled(rows_of, tiny_config, one_device):
    """Dropout too: XLA draws the same masks."""
    config = tiny_config(model={"dropout": 0.2}, optimizer={"epsilon": 1e-6})
    batches = random_batches(rows_of, 2)
    results = []
    for jit_compile in (False, True):
        steps = make_steps(one_device, config, jit_compile=jit_compile)
        results.append((train(steps, batches), weights(steps)))
    assert_same(*results)


def test_one_call_of_four_steps_equals_four_calls_of_one(rows_of, tiny_config, one_device):
    """Dropout follows the step, not the call; the sums of a call are those of its steps."""
    config = tiny_config(model={"dropout": 0.2})
    batches = random_batches(rows_of, 4)
    steps = make_steps(one_device, config)
    variables = [*steps.model.trainable_variables, *steps.optimizer.variables]
    before = [variable.numpy() for variable in variables]
    sums, single = train(steps, batches), weights(steps)
    assert int(steps.optimizer.iterations.numpy()) == 4
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    (total,) = train(steps, batches, per_call=4)
    assert int(steps.optimizer.iterations.numpy()) == 4
    expected = {key: sum(call[key] for call in sums) for key in total}
    assert_same(([expected], single), ([total], weights(steps)), rtol=1e-6)


class Scalar(keras.Model):
    """One weight vector."""

    def __init__(self):
        super().__init__()
        self.vector = self.add_weight(shape=[2], initializer="zeros", name="vector")
        self.built = True


class LinearTask:
    """A loss with gradients that can be done by hand: the sum of x . w over the rows."""

    SUMS = ("loss", "tokens")

    def sums(self, model, batch, rng, *, smoothed):
        del rng, smoothed
        x = tf.cast(batch["x"], tf.float32)
        return {
            "loss": tf.reduce_sum(x * model.vector),
            "tokens": tf.cast(tf.reduce_sum(batch["tokens"]), tf.float32),
        }


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_huge_gradient_on_one_replica(tiny_config, two_replicas, clip_norm):
    """(30, 40) of 1 token and (0, 0.5) of 9 more are (3, 4.05) a token: that norm is clipped.

    Clipping each replica's own gradient, or the mean of the replicas' means, ends elsewhere.
    """
    config = tiny_config(optimizer={"clip_norm": clip_norm, "epsilon": 1e-6})
    with two_replicas.scope():
        model = Scalar()
        optimizer = make_optimizer(config.optimizer, 10)
        optimizer.build(model.trainable_variables)
    steps = Steps(two_replicas, LinearTask(), model, optimizer, config, jit_compile=False)
    batch = {"x": np.array([[30.0, 40.0], [0.0, 0.5]]), "tokens": np.array([1, 9])}
    sums = steps.train(distributed(two_replicas, [batch]), tf.constant(1))
    gradient = np.array([3.0, 4.05])
    norm = np.sqrt((gradient**2).sum())
    assert float(sums["gradient_norm"]) == pytest.approx(norm, rel=1e-6)
    assert float(sums["tokens"]) == 10
    applied = gradient / norm if clip_norm else gradient
    # Adam's first momentum is 1 - beta_1 of the gradient it was given.
    momentum = optimizer._momentums[0].numpy()
    np.testing.assert_allclose(momentum, (1 - config.optimizer.beta_1) * applied, rtol=1e-5)


def test_evaluation_has_no_dropout_and_no_smoothing(rows_of, tiny_config, two_replicas):
    """The sums over both replicas are those of the whole batch at once."""
    config = tiny_config(model={"dropout": 0.5}, train={"label_smoothing": 0.3})
    batches = random_batches(rows_of, 1)
    steps = make_steps(two_replicas, config)
    sums = steps.evaluate(next(distributed(two_replicas, batches)))
    expected = steps.task.sums(steps.model, batches[0], None, smoothed=False)
    assert sums.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(sums[key], value, rtol=1e-5, err_msg=key)
    assert float(sums["loss"]) == float(sums["nll"])


def test_mixed_bfloat16_trains(rows_of, tiny_config, one_device):
    """float32 weights, finite numbers, and a loss that falls on a batch seen again."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    steps = make_steps(one_device, tiny_config(optimizer={"warmup_steps": 1}))
    sums = train(steps, random_batches(rows_of, 1) * 8)
    assert all(np.isfinite(list(call.values())).all() for call in sums)
    assert sums[-1]["loss"] < 0.9 * sums[0]["loss"]
    assert {variable.dtype for variable in steps.model.trainable_variables} == {"float32"}
