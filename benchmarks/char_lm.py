"""Our language model beside one in PyTorch: loss and speed, on the same rows in the same order.

    pip install torch==2.13.0
    python -m benchmarks.char_lm --train=text:train.txt --valid=text:valid.txt

Both train all steps, in turns of some steps each, so that other work on the machine slows both.
The first turn, which compiles, is not timed. The result is one JSON line.
"""

import contextlib
import dataclasses
import importlib.util
import json
import multiprocessing
import statistics
import sys
import tempfile
import time

from absl import flags

from common.console import say_on_stderr
from common.errors import UsageError, no_arguments, run_app
from configs import char_lm
from configs.schema import Config

_TRAIN = flags.DEFINE_string("train", None, "SPEC of the training text.", required=True)
_VALID = flags.DEFINE_string("valid", None, "SPEC of the validation text.", required=True)
_STEPS = flags.DEFINE_integer("steps", 400, "Steps that both train.", 20)
_TURN = flags.DEFINE_integer("turn", 20, "Steps of a turn.", 1)
_SEED = flags.DEFINE_integer("seed", 1, "Of the weights of both.", 0)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 4e-3, "Peak, of both.", 0.0)

CONTENDERS = ("ours", "torch")


def config_of(steps: int, learning_rate: float, seed: int) -> Config:
    """Return configs/char_lm.py with the positions of the peer."""
    config = char_lm.get_config()
    config.model.positions, config.model.max_positions = "learned", config.data.row_length
    config.train.steps, config.train.seed = steps, seed
    config.optimizer = dataclasses.replace(config.optimizer, learning_rate=learning_rate)
    return config


def train_ours(connection, data_dir: str, config: Config) -> None:
    """Train as trainer.main does, in the turns that the connection asks for."""
    import tensorflow as tf

    from benchmarks import ours
    from data_pipeline.dataset.manifest import load_manifest
    from trainer.input.distribution import distribute

    manifest = load_manifest(data_dir)
    with tempfile.TemporaryDirectory() as model_dir:
        run = ours.build(config, manifest, model_dir)
        iterator = distribute(run.data, run.strategy, 0)
        while steps := connection.recv():
            began = time.perf_counter()
            tokens = float(run.steps.train(iterator, tf.constant(steps))["tokens"])
            connection.send((tokens, time.perf_counter() - began))
        parameters = sum(v.numpy().size for v in run.model.trainable_variables)
        connection.send((ours.validate(run, manifest)["nll"], parameters))


def train_torch(connection, data_dir: str, config: Config) -> None:
    """Train the peer on the same batches, in the turns that the connection asks for."""
    import numpy as np

    from benchmarks.peers.torch_gpt import Trainer
    from data_pipeline.dataset import packing
    from data_pipeline.dataset.examples import read_examples
    from data_pipeline.dataset.manifest import load_manifest
    from trainer.input.load import load_training_data

    manifest = load_manifest(data_dir)
    batches = iter(load_training_data(manifest, config, 1).dataset(0))
    trainer = Trainer(config, manifest.tokenizers["text"].vocab_size, manifest.bos_id)
    while steps := connection.recv():
        began, tokens = time.perf_counter(), 0
        for _ in range(steps):
            text = next(batches)["text"].numpy()
            trainer.step(text)
            tokens += int(np.count_nonzero(text))
        connection.send((tokens, time.perf_counter() - began))
    rows = packing.one_per_row(
        read_examples(manifest, "valid"), (config.data.row_length,), manifest.closing_id
    )[0]
    text = rows.arrays["text"]
    total = sum(trainer.loss(text[i : i + 16]) for i in range(0, len(text), 16))
    connection.send((total / int(np.count_nonzero(text)), trainer.parameters))


def compare(data_dir: str, config: Config, turn: int) -> dict:
    """Train both and return their numbers."""
    context = multiprocessing.get_context("spawn")
    connections, processes = {}, []
    for name in CONTENDERS:
        connections[name], theirs = context.Pipe()
        target = {"ours": train_ours, "torch": train_torch}[name]
        process = context.Process(target=target, args=(theirs, data_dir, config), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    left = config.train.steps
    while left:
        steps = min(turn, left)
        for name, connection in connections.items():
            connection.send(steps)
            tokens, seconds = connection.recv()
            speeds[name].append(tokens / seconds)
        left -= steps
        say_on_stderr(
            f"{config.train.steps - left} steps, tokens/s: "
            + ", ".join(f"{name} {of_name[-1]:,.0f}" for name, of_name in speeds.items())
        )
    result = {}
    for name, connection in connections.items():
        connection.send(0)
        nll, parameters = connection.recv()
        result[name] = {
            "valid_nll": round(nll, 4),
            "tokens_per_second": round(statistics.median(speeds[name][1:] or speeds[name])),
            "parameters": parameters,
        }
    for process in processes:
        process.join()
    ours, torch = result["ours"], result["torch"]
    return {
        "seed": config.train.seed,
        "steps": config.train.steps,
        "batch_tokens": config.train.batch_tokens,
        **result,
        "loss_ratio": round(ours["valid_nll"] / torch["valid_nll"], 4),
        "speed_ratio": round(ours["tokens_per_second"] / torch["tokens_per_second"], 3),
    }


def main(argv: list[str]) -> None:
    """Prepare the text as characters, train both, print."""
    no_arguments(argv)
    if importlib.util.find_spec("torch") is None:
        raise UsageError("PyTorch is not installed; pip install torch==2.13.0")
    from data_pipeline import job

    config = config_of(_STEPS.value, _LEARNING_RATE.value, _SEED.value)
    with tempfile.TemporaryDirectory() as data_dir:
        settings = job.Settings(
            train=(_TRAIN.value,),
            valid=(_VALID.value,),
            test=(),
            source_lang="en",
            target_lang="de",
            output_dir=data_dir,
            task="language_model",
            documents="file",
            model_type="char",
            row_length=config.data.row_length,
        )
        with contextlib.redirect_stdout(sys.stderr):
            job.prepare(settings)
        print(json.dumps(compare(data_dir, config, _TURN.value)), flush=True)


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
