"""Steps that are computed twice: planted bit flips are found and named, clean steps are not."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from common.errors import RetryError, UsageError
from tests.trainer.test_step import distributed, random_batches, weights
from tests.trainer.worker_script import make_steps
from trainer.metrics.reporter import Reporter
from trainer.replay import check_possible

KINDS = {
    "gradient": "the gradient of target_embedding/",
    "weight": "the weight ",
    "activation": "the ",  # the sum of the losses or, where it rounds to the same, a gradient
    "batch": "source of the batch ",
}
# Step, place in the tensor, and bit.
FLIPS = [(1, 0, 0), (2, 5, 31), (3, 17, 22), (2, 40, 12), (4, 3, 1)]


class Planter:
    """Flips one bit of one tensor while a step is computed the second time.

    Attributes:
        plan: int32 [4], a variable: kind, step, place and bit of the flip.
    """

    def __init__(self, steps, monkeypatch):
        self.plan = tf.Variable([-1, 0, 0, 0], dtype=tf.int32)
        self._iterations = steps.optimizer.iterations
        self._again = False
        compute, compare, encode = steps._gradients, steps.replay.compare, steps.model.encode
        compute_again = steps._replica_gradients
        weight = steps.model.trainable_variables[0].value
        copy = steps.replay._copy

        def gradients(values, batch, rng, scale):
            if not self._again:
                return compute(values, batch, rng, scale)
            weight.assign(self.flip("weight", weight))
            # Not the function of the first time, which is traced without flips.
            sums, found = compute_again(values, batch, rng, scale)
            return sums, [self.flip("gradient", found[0]), *found[1:]]

        def encoded(*arguments, **options):
            output = encode(*arguments, **options)
            if not self._again:
                return output
            return output + tf.stop_gradient(self.flip("activation", output) - output)

        def compared(*arguments):
            self._again = True
            result = compare(*arguments)
            self._again = False
            return result

        def copied(batch):
            batch = copy(batch)
            return {**batch, "source": self.flip("batch", batch["source"])}

        traced_once = steps._traced_once
        monkeypatch.setattr(
            steps,
            "_traced_once",
            lambda batch: dataclasses.replace(traced_once(batch), gradients=gradients),
        )
        monkeypatch.setattr(steps.model, "encode", encoded)
        monkeypatch.setattr(steps.replay, "compare", compared)
        monkeypatch.setattr(steps.replay, "_copy", copied)

    def flip(self, kind, tensor):
        """The tensor, with a bit flipped if that is planned for this kind and step."""
        wanted = [list(KINDS).index(kind), tf.cast(self._iterations + 1, tf.int32)]
        here = tf.reduce_all(self.plan[:2] == tf.stack(wanted))
        flat = tf.reshape(tensor, [-1])
        bits = flat if flat.dtype == tf.int32 else tf.bitcast(flat, tf.int32)
        at = tf.one_hot(self.plan[2] % tf.size(bits), tf.size(bits), dtype=tf.int32)
        mask = at * tf.bitwise.left_shift(1, self.plan[3]) * tf.cast(here, tf.int32)
        return tf.reshape(tf.bitcast(tf.bitwise.bitwise_xor(bits, mask), flat.dtype), tensor.shape)


def verdicts_of(steps, batches):
    iterator = distributed(steps.strategy, batches)
    return steps.train(iterator, tf.constant(len(batches)))["replay"].numpy()


def test_20_flips_of_20_are_found_named_and_not_applied(
    rows_of, tiny_config, one_device, monkeypatch
):
    steps = make_steps(one_device, tiny_config(train={"replay_every": 1}))
    planter = Planter(steps, monkeypatch)
    batches = random_batches(rows_of, 4)
    named = []
    for kind_number, (kind, start) in enumerate(KINDS.items()):
        for step, place, bit in FLIPS:
            planter.plan.assign([-1, 0, 0, 0])
            steps.optimizer.iterations.assign(step - 1)
            before = weights(steps)
            planter.plan.assign([kind_number, step, place, bit])
            verdicts = verdicts_of(steps, batches[:1])
            texts = steps.replay.describe(verdicts, step)
            assert len(texts) == 1, (kind, step, place, bit)
            assert texts[0].startswith(f"step {step}, worker 0: {start}"), texts
            if kind == "weight":  # the flip is in memory; the step changed nothing else
                flipped = before[0].reshape(-1).view(np.int32)
                flipped[place % flipped.size] ^= np.int32(np.uint32(1 << bit).astype(np.int32))
            for one, other in zip(before, weights(steps), strict=True):
                np.testing.assert_array_equal(one, other)
            named.append(texts[0])
            if kind == "weight":
                weight = steps.model.trainable_variables[0]
                flipped[place % flipped.size] ^= np.int32(np.uint32(1 << bit).astype(np.int32))
                weight.assign(before[0])
    assert len(named) == 20


@pytest.mark.slow
def test_clean_steps_are_clean_and_the_same_as_without(rows_of, tiny_config, two_replicas):
    batches = random_batches(rows_of, 6)
    plain = make_steps(two_replicas, tiny_config(model={"dropout": 0.1}))
    for _ in range(2):
        plain.train(distributed(two_replicas, batches[:3]), tf.constant(3))
    config = tiny_config(model={"dropout": 0.1}, train={"replay_every": 2})
    steps = make_steps(two_replicas, config)
    for _ in range(2):
        verdicts = verdicts_of(steps, batches[:3])
        assert verdicts.shape == (3, 2, 3)
        assert not verdicts.any()
    for one, other in zip(weights(plain), weights(steps), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_replica_whose_weights_differ_is_found(rows_of, tiny_config, two_replicas):
    steps = make_steps(two_replicas, tiny_config(train={"replay_every": 2}))
    batches = random_batches(rows_of, 2)
    copy = two_replicas.experimental_local_results(steps.model.trainable_variables[3].value)[1]
    copy.assign(copy + 1e-3)
    verdicts = verdicts_of(steps, batches)
    assert not verdicts[0].any()  # no replay is due
    name = steps.model.trainable_variables[3].path
    assert steps.replay.describe(verdicts, 2) == [
        f"step 2, worker 0, replica {replica}: the weight {name} differs from other replicas'"
        for replica in (0, 1)
    ]


def test_most_replicas_are_right(tiny_config, one_device):
    """Of three replicas the one that disagrees is named; verdicts by hand."""
    replay = make_steps(one_device, tiny_config(train={"replay_every": 1})).replay
    replay._replicas = 3
    prints = np.zeros([3, 2, 2], np.float32)
    prints[1, 1, 0] = 7
    verdict = replay.verdict(tf.zeros([3, 2]), tf.constant(prints)).numpy()
    np.testing.assert_array_equal(verdict, [[0, 0, 0], [0, 0, 2], [0, 0, 0]])


def test_gpus_need_deterministic_operations(one_device, monkeypatch):
    check_possible(one_device)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    monkeypatch.delenv("TF_DETERMINISTIC_OPS", raising=False)
    with pytest.raises(UsageError, match="needs TF_DETERMINISTIC_OPS=1"):
        check_possible(one_device)
    monkeypatch.setenv("TF_DETERMINISTIC_OPS", "1")
    check_possible(one_device)


def test_the_run_ends_and_says_where(tiny_config, one_device):
    steps = make_steps(one_device, tiny_config(train={"replay_every": 1}))
    reporter = Reporter.__new__(Reporter)
    reporter._replay = steps.replay
    reporter._check_replays(np.zeros([3, 1, 3]), step=9)
    verdicts = np.zeros([3, 1, 3])
    verdicts[1, 0] = [1, 2, 0]
    with pytest.raises(RetryError, match=r"wrong numbers: step 8, worker 0: source of the batch"):
        reporter._check_replays(verdicts, step=9)
