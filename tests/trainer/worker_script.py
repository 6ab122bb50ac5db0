"""A run of a tiny Transformer, in the process of a test or as one of several workers.

    TF_CONFIG=... python tests/trainer/worker_script.py RUNS.npz RESULT.npz

RUNS.npz holds what `save_runs` puts there, RESULT.npz what `load_results` reads.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

from configs import schema
from data_pipeline.dataset.examples import Examples
from data_pipeline.dataset.manifest import SEQUENCES
from trainer.distributed.strategy import make_strategy
from trainer.input.distribution import distribute
from trainer.input.memory import training_data
from trainer.model.seeds import seeded_weights
from trainer.optim.loss_scale import LossScale
from trainer.optim.optimizer import Optimizer
from trainer.step import Steps
from trainer.tasks.base import DataFacts, Task
from trainer.tasks.lookup import make_task, task_class

VOCAB, EOS = 30, 3
LABELS = ("few", "some", "many")

Result = dict[str, np.ndarray]


def task_of(config: schema.Config) -> Task:
    """The task of a configuration, on data of `VOCAB` tokens and `LABELS`."""
    dataset = task_class(config.task).DATASET
    labels = LABELS if dataset == "classification" else ()
    sizes = dict.fromkeys(SEQUENCES[dataset], VOCAB)
    counts = dict(zip(labels, (1, 2, 3), strict=False))
    return make_task(config, DataFacts(dataset, sizes, True, labels, counts))


def closing_id(config: schema.Config) -> int | None:
    """As in `Manifest.closing_id`."""
    return None if task_class(config.task).DATASET == "language_model" else EOS


def make_steps(strategy, config, *, jit_compile: bool = False, weights_seed: int = 3) -> Steps:
    """Steps of a fresh model; the same initial weights every time."""
    task = task_of(config)
    with strategy.scope():
        with seeded_weights(weights_seed):
            model = task.build_model()
        optimizer = Optimizer(
            config.optimizer,
            config.train.steps,
            model.trainable_variables,
            jit_compile=jit_compile,
            shard=config.train.shard_optimizer,
        )
        loss_scale = LossScale(keras.config.dtype_policy().name == "mixed_float16")
    return Steps(strategy, task, model, optimizer, loss_scale, config, jit_compile=jit_compile)


def train_run(steps: Steps, examples: Examples, count: int) -> Result:
    """Trains `count` steps, one a call, on the batches that a run on `examples` begins with.

    Returns:
        float32 [count] each: the sums and norms of every step; and "weight/0", "weight/1" ... the
        final weights, of the first replica of this worker.
    """
    replicas = steps.strategy.num_replicas_in_sync
    data = training_data(examples, steps.config, closing_id(steps.config), replicas)
    iterator = distribute(data, steps.strategy, first_step=0)
    calls = [steps.train(iterator, tf.constant(1)) for _ in range(count)]
    result = {
        key: np.array([call[key].numpy() for call in calls])
        for key in calls[0]
        if not key.endswith("_seconds")
    }
    for number, variable in enumerate(steps.model.trainable_variables):
        copies = steps.strategy.experimental_local_results(variable.value)
        for copy in copies[1:]:
            np.testing.assert_array_equal(copies[0], copy, err_msg=variable.path)
        result[f"weight/{number}"] = copies[0].numpy()
    return result


def save_runs(
    path,
    runs: list[tuple[schema.Config, Examples]],
    count: int,
    policy: str = "float32",
    *,
    jit_compile: bool = False,
) -> None:
    """What the workers shall run, one after the other: `count` steps of each."""
    arrays = {}
    for number, (_, examples) in enumerate(runs):
        for name, tokens in examples.tokens.items():
            arrays[f"{number}/{name}_tokens"] = tokens
            arrays[f"{number}/{name}_offsets"] = examples.offsets[name]
        if examples.labels is not None:
            arrays[f"{number}/labels"] = examples.labels
    configs = json.dumps([schema.to_dict(config) for config, _ in runs])
    facts = {"configs": configs, "count": count, "policy": policy, "jit_compile": jit_compile}
    np.savez(path, **facts, **arrays)  # type: ignore[arg-type]  # NumPy's stub: bool


def load_results(path) -> list[Result]:
    """One result of `train_run` for each configuration."""
    with np.load(path) as arrays:
        results: list[Result] = []
        for name in arrays.files:
            number, key = name.split("/", 1)
            if int(number) == len(results):
                results.append({})
            results[int(number)][key] = arrays[name]
    return results


def _work(runs_path: str, result_path: str) -> None:
    strategy, _ = make_strategy("multi_worker", timeout_seconds=100)
    runs = np.load(runs_path)
    configs = [schema.from_dict(values) for values in json.loads(str(runs["configs"]))]
    count, jit_compile = int(runs["count"]), bool(runs["jit_compile"])
    keras.config.set_dtype_policy(str(runs["policy"]))
    worker = strategy.cluster_resolver.task_id
    arrays = {}
    for number, config in enumerate(configs):
        # Other initial weights on every worker: those of the first one, the chief, must count.
        steps = make_steps(strategy, config, jit_compile=jit_compile, weights_seed=3 + worker)
        names = SEQUENCES[config.task]
        examples = Examples(
            {name: runs[f"{number}/{name}_tokens"] for name in names},
            {name: runs[f"{number}/{name}_offsets"] for name in names},
            runs[f"{number}/labels"] if steps.task.DATASET == "classification" else None,
        )
        for key, value in train_run(steps, examples, count).items():
            arrays[f"{number}/{key}"] = value
    np.savez(result_path, **arrays)  # type: ignore[arg-type]  # NumPy's stub: bool


if __name__ == "__main__":
    _work(*sys.argv[1:])
