"""The train step by itself: clipping, skipped steps, dropout and what it reports.

Whole runs on other numbers of replicas, workers and micro-batches, and compiled ones, are in
test_topologies.py.
"""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.worker_script import EOS, VOCAB, make_steps
from trainer.input.distribution import distribute
from trainer.input.memory import training_data
from trainer.model.dropout import step_rng
from trainer.optim.loss_scale import INITIAL, LossScale
from trainer.optim.optimizer import Optimizer
from trainer.step import Steps

LENGTH = 12


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


def weights(steps: Steps) -> list[np.ndarray]:
    return [variable.numpy() for variable in steps.model.trainable_variables]


def train(steps: Steps, batches, per_call: int = 1) -> list[dict[str, float]]:
    """The sums of each call, over all batches."""
    iterator = distributed(steps.strategy, batches)
    calls = [steps.train(iterator, tf.constant(per_call)) for _ in range(len(batches) // per_call)]
    not_sums = {"bad", "step_seconds", "input_seconds"}
    return [{key: float(sums[key]) for key in sums if key not in not_sums} for sums in calls]


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
        float(steps.task.sums(steps.model, half, step_rng(5, 0, replica), training=True)["loss"])
        for replica in range(2)
    )
    assert abs(first - second) > 0.01 * first
    (sums,) = train(steps, [batch])
    assert sums["loss"] == pytest.approx(first + second, rel=1e-5)


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
    expected = {key: sum(call[key] for call in sums) for key in total if "_norm" not in key}
    expected |= {key: sums[-1][key] for key in total if key in ("parameter_norm", "update_norm")}
    expected |= {"gradient_norm": sum(call["gradient_norm"] for call in sums)}
    expected |= {"loss_scale": 1.0}
    assert_same(([expected], single), ([total], weights(steps)), rtol=1e-6)


def test_the_model_is_traced_once_for_all_replicas(rows_of, tiny_config, two_replicas, monkeypatch):
    steps = make_steps(two_replicas, tiny_config())
    sums_of, traces = steps.task.sums, []

    def noted(*arguments, **options):
        traces.append(arguments)
        return sums_of(*arguments, **options)

    monkeypatch.setattr(steps.task, "sums", noted)
    train(steps, random_batches(rows_of, 2))
    assert len(traces) == 1


class Scalar(keras.Model):
    """One weight vector."""

    def __init__(self):
        super().__init__()
        self.vector = self.add_weight(shape=[2], initializer="zeros", name="vector")
        self.built = True


class LinearTask:
    """A loss with gradients that can be done by hand: the sum of x . w over the rows."""

    SUMS = ("loss", "tokens")
    DIVISOR = "tokens"

    def sums(self, model, batch, rng, *, training):
        del rng, training
        x = tf.cast(batch["x"], tf.float32)
        return {
            "loss": tf.reduce_sum(x * model.vector),
            "tokens": tf.cast(tf.reduce_sum(batch["tokens"]), tf.float32),
        }


def linear_steps(strategy, config, *, dynamic: bool = False) -> Steps:
    with strategy.scope():
        model = Scalar()
        optimizer = Optimizer(config.optimizer, 10, model.trainable_variables)
        loss_scale = LossScale(dynamic)
    return Steps(strategy, LinearTask(), model, optimizer, loss_scale, config, jit_compile=False)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_a_huge_gradient_on_one_replica(tiny_config, two_replicas, clip_norm):
    """(30, 40) of 1 token and (0, 0.5) of 9 more are (3, 4.05) a token: that norm is clipped.

    Clipping each replica's own gradient, or the mean of the replicas' means, ends elsewhere.
    """
    config = tiny_config(optimizer={"clip_norm": clip_norm, "epsilon": 1e-6})
    steps = linear_steps(two_replicas, config)
    batch = {"x": np.array([[30.0, 40.0], [0.0, 0.5]]), "tokens": np.array([1, 9])}
    sums = steps.train(distributed(two_replicas, [batch]), tf.constant(1))
    gradient = np.array([3.0, 4.05])
    norm = np.sqrt((gradient**2).sum())
    assert float(sums["gradient_norm"]) == pytest.approx(norm, rel=1e-6)
    assert float(sums["tokens"]) == 10
    applied = gradient / norm if clip_norm else gradient
    # Adam's first momentum is 1 - beta_1 of the gradient it was given.
    momentum = steps.optimizer.slots["momentum"][0].numpy()
    np.testing.assert_allclose(momentum, (1 - config.optimizer.beta_1) * applied, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "replicas", "gradient"),
    [("bfloat16", 2, 0.4), ("float32", 2, 0.4001), ("bfloat16", 1, 0.4001)],
)
def test_gradients_reduced_in_half_precision(
    tiny_config, one_device, two_replicas, dtype, replicas, gradient
):
    """bfloat16 rounds 1.001 to 1; what is not reduced is not rounded."""
    strategy = one_device if replicas == 1 else two_replicas
    config = tiny_config(train={"reduce_dtype": dtype})
    steps = linear_steps(strategy, config)
    batch = {"x": np.array([[1.001, 2.0], [3.0, 5.0]]), "tokens": np.array([1, 9])}
    sums = steps.train(distributed(strategy, [batch]), tf.constant(1))
    assert float(sums["tokens"]) == 10
    momentum = steps.optimizer.slots["momentum"][0].numpy()
    expected = (1 - config.optimizer.beta_1) * np.array([gradient, 0.7])
    np.testing.assert_allclose(momentum, expected, rtol=1e-6)


@pytest.mark.parametrize("replicas", [1, 4])
def test_a_step_is_traced_once_for_all_replicas(tiny_config, make_pairs, replicas):
    """And not inlined for several, where TensorFlow would optimise each copy."""
    strategy = tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(replicas)])
    config = tiny_config(optimizer={"ema_decay": 0.9})
    steps, examples = make_steps(strategy, config), make_pairs([(5, 6)] * 20)
    data = training_data(examples, config, EOS, replicas)
    iterator = distribute(data, strategy, first_step=0)
    graph = steps.train.get_concrete_function(iterator, tf.constant(1)).graph.as_graph_def()
    parts = ["replica_gradients", "decision", "update_replica"]
    parts += ["_packed", "_unpacked"] if replicas > 1 else []
    for part in parts:
        (found,) = (one for one in graph.library.function if f"_{part}_" in one.signature.name)
        assert found.attr["_noinline"].b == (replicas > 1)
        calls = [
            node
            for one in graph.library.function
            for node in one.node_def
            if node.attr["f"].func.name == found.signature.name
        ]
        assert len(calls) == replicas


def linear_batch(infinite: bool = False) -> dict[str, np.ndarray]:
    """A row for each of two replicas; `infinite`: the second one's gradient is."""
    x = [[1.0, 2.0], [3.0, np.inf if infinite else 5.0]]
    return {"x": np.array(x), "tokens": np.array([1, 9])}


def state_of(steps: Steps) -> list[np.ndarray]:
    """Weights, slots and moving average, every replica's copy of them."""
    slots = [variable for slot in steps.optimizer.slots.values() for variable in slot]
    values = [variable.value for variable in steps.model.trainable_variables]
    local = steps.strategy.experimental_local_results
    variables = [*values, *slots, *steps.optimizer.averages]
    return [copy.numpy() for variable in variables for copy in local(variable)]


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_an_overflow_on_one_replica_skips_the_step_on_all(tiny_config, two_replicas, name):
    """Good, overflow, good: as two good steps, at half the scale."""
    config = tiny_config(optimizer={"name": name, "ema_decay": 0.9})
    steps = linear_steps(two_replicas, config, dynamic=True)
    batches = [linear_batch(infinite) for infinite in (False, True, False)]
    iterator = distributed(two_replicas, batches)
    states, calls = [state_of(steps)], []
    for _ in batches:
        calls.append(steps.train(iterator, tf.constant(1)))
        states.append(state_of(steps))
    assert len(states[0]) == 2 * (4 if name == "adamw" else 5)  # weights, slots, average
    for before, after in zip(states[1], states[2], strict=True):
        np.testing.assert_array_equal(after, before)
    weights_before, weights_after = states[2][:2], states[3][:2]
    assert all((a != b).all() for a, b in zip(weights_before, weights_after, strict=True))
    np.testing.assert_array_equal(weights_after[0], weights_after[1])
    assert [float(call["skipped"]) for call in calls] == [0, 1, 0]
    assert [float(call["loss_scale"]) for call in calls] == [INITIAL, INITIAL / 2, INITIAL / 2]
    # (1 + 3, 2 + 5) / 10, and 0 for a step that there was not.
    norms = [float(call["gradient_norm"]) for call in calls]
    assert norms == pytest.approx([np.hypot(0.4, 0.7), 0, np.hypot(0.4, 0.7)], rel=1e-6)
    counters = steps.optimizer.iterations, steps.optimizer.updates
    assert [int(counter.numpy()) for counter in counters] == [3, 2]
    for variable in (steps.loss_scale.scale, steps.loss_scale.good_steps):
        first, second = two_replicas.experimental_local_results(variable)
        assert first.numpy() == second.numpy()


def test_an_overflow_without_a_loss_scale_is_seen(tiny_config, two_replicas):
    """The step is bad, with a norm that is not finite; the weights stay good."""
    steps = linear_steps(two_replicas, tiny_config(optimizer={"clip_norm": 1.0}))
    before = state_of(steps)
    batch = linear_batch(infinite=True)
    sums = steps.train(distributed(two_replicas, [batch]), tf.constant(1))
    ((_, norm, bad),) = sums["bad"].numpy()
    assert bad == 1 and not np.isfinite(norm)
    assert float(sums["skipped"]) == 1 and float(sums["loss_scale"]) == 1
    for old, new in zip(before, state_of(steps), strict=True):
        np.testing.assert_array_equal(new, old)


def test_the_loss_scale_changes_nothing_else(rows_of, tiny_config, one_device):
    """It is a power of two: in float32 every bit stays the same."""
    config = tiny_config(optimizer={"clip_norm": 0.5, "epsilon": 1e-6})
    batches = random_batches(rows_of, 3)
    plain, scaled = make_steps(one_device, config), make_steps(one_device, config)
    scaled.loss_scale = LossScale(True)
    sums, scaled_sums = train(plain, batches), train(scaled, batches)
    assert [call.pop("loss_scale") for call in sums] == [1.0] * 3
    assert [call.pop("loss_scale") for call in scaled_sums] == [INITIAL] * 3
    assert scaled_sums == sums
    for one, other in zip(weights(plain), weights(scaled), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_a_call_reports(rows_of, tiny_config, two_replicas):
    """Times, and norms as NumPy has them."""
    config = tiny_config(optimizer={"epsilon": 1e-6}, train={"step_times": True})
    steps = make_steps(two_replicas, config)
    iterator = distributed(two_replicas, random_batches(rows_of, 4))
    steps.train(iterator, tf.constant(1))  # traces
    before = weights(steps)
    for count in (1, 2):
        start = time.time()
        sums = {
            key: value.numpy() for key, value in steps.train(iterator, tf.constant(count)).items()
        }
        took = time.time() - start
        step_seconds = sums["step_seconds"]
        assert step_seconds.shape == (count,) and step_seconds.dtype == np.float64
        assert (step_seconds > 0).all() and step_seconds.sum() <= took
        assert 0 <= sums["input_seconds"] <= step_seconds.sum()
        if count == 1:
            pairs = zip(before, weights(steps), strict=True)
            change = np.concatenate([np.ravel(new - old) for old, new in pairs])
            assert sums["update_norm"] == pytest.approx(np.linalg.norm(change), rel=1e-5)
    parameters = np.concatenate([np.ravel(weight) for weight in weights(steps)])
    assert sums["parameter_norm"] == pytest.approx(np.linalg.norm(parameters), rel=1e-6)
    assert sums["loss_scale"] == 1 and sums["skipped"] == 0


def test_evaluation_has_no_dropout_and_no_smoothing(rows_of, tiny_config, two_replicas):
    """The sums over both replicas are those of the whole batch at once."""
    config = tiny_config(model={"dropout": 0.5}, train={"label_smoothing": 0.3})
    batches = random_batches(rows_of, 1)
    steps = make_steps(two_replicas, config)
    sums = steps.evaluate(next(distributed(two_replicas, batches)))
    expected = steps.task.sums(steps.model, batches[0], None, training=False)
    assert sums.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(sums[key], value, rtol=1e-5, err_msg=key)
    assert float(sums["loss"]) == float(sums["nll"])
