"""The contenders train, on the corpus and at the size they say; the measuring counts right."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import rounds, train_throughput
from benchmarks.comparison import Meter, Setting, fitting_pairs, target_tokens
from common.errors import UsageError
from configs.schema import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from data_pipeline.dataset import packing
from data_pipeline.dataset import tokenizer as tokenizers
from data_pipeline.dataset.examples import (
    Examples,
    describe_file,
    raw_text_name,
    read_examples,
    shard_name,
    write_examples,
)
from data_pipeline.dataset.manifest import (
    Manifest,
    SequenceInfo,
    SplitInfo,
    TokenizerInfo,
    length_histogram,
    load_manifest,
)
from trainer.tasks.translation import Translation

_ROOT = Path(__file__).parents[2]
BOS, EOS = 2, 3


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    """A dataset directory of 40 training pairs and 8 for validation."""
    directory = tmp_path_factory.mktemp("dataset")
    words = ["red", "old", "dog", "cat", "man", "sees", "alte", "Hund", "Katze", "Mann", "mag"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, rng.integers(2, 7))) for _ in range(96)]
    model = tokenizers.train(texts, vocab_size=280)
    (directory / tokenizers.JOINT_FILE).write_bytes(model)
    tokenizer = tokenizers.Tokenizer(model)
    info = TokenizerInfo(tokenizers.JOINT_FILE, tokenizer.sha256, 280, "unigram")
    splits, names = {}, ("source", "target")
    for name, lines in (("train", texts[:80]), ("valid", texts[80:])):
        raw_text, ids, infos = [], [], []
        for lang, side in (("en", lines[::2]), ("de", lines[1::2])):
            path = directory / raw_text_name(name, lang)
            path.write_text("".join(f"{line}\n" for line in side), encoding="utf-8")
            raw_text.append(describe_file(str(path), path.name, len(side)))
            ids.append(tokenizer.encode(side))
            lengths = [len(sentence) for sentence in ids[-1]]
            infos.append(SequenceInfo.of_histogram(length_histogram(lengths)))
        path = directory / shard_name(name, 0, 1)
        write_examples(
            str(path),
            {
                lang: [line.encode() for line in lines[side::2]]
                for side, lang in enumerate(("en", "de"))
            },
            dict(zip(names, ids, strict=True)),
        )
        shard = describe_file(str(path), path.name, len(lines) // 2)
        files = () if name == "train" else tuple(raw_text)
        sequences = dict(zip(names, infos, strict=True))
        splits[name] = SplitInfo((shard,), len(lines) // 2, len(lines) // 2, {}, sequences, files)
    languages = {"source": "en", "target": "de"}
    Manifest(str(directory), "translation", languages, dict.fromkeys(names, info), splits).save()
    return load_manifest(str(directory))


@pytest.fixture(scope="module")
def setting(manifest) -> Setting:
    """A very small model on the 40 pairs of the test corpus."""
    config = Config(
        model=ModelConfig(
            width=16, feed_forward=32, heads=2, encoder_layers=1, decoder_layers=2, dropout=0.1
        ),
        data=DataConfig(row_length=64),
        optimizer=OptimizerConfig(learning_rate=0.02, warmup_steps=2, clip_norm=1.0),
        train=TrainConfig(batch_tokens=256, steps_per_loop=4, seed=1),
    )
    pairs = fitting_pairs(read_examples(manifest, "train"), config.data.row_length)
    return Setting(manifest, pairs, config, "float32", variant="")


class _Pipe:
    """The other end of a meter: as many rounds as asked for, of a step or more each."""

    def __init__(self, turns: int):
        self.turns, self.messages = turns, []

    def send(self, message):
        self.messages.append(message)

    def recv(self):
        self.turns -= 1
        return 1e-9 if self.turns >= 0 else None


def _train(train, setting: Setting, turns: int) -> tuple[dict, list[dict]]:
    """What a contender reports when it is warm, and of each turn."""
    pipe = _Pipe(turns)
    train(setting, Meter(pipe, started=0.0))
    warm, *reports = pipe.messages
    assert len(reports) == turns and all(math.isfinite(turn["loss"]) for turn in reports)
    return warm, reports


def _vocab(setting: Setting) -> int:
    return setting.manifest.tokenizers["target"].vocab_size


def _parameters(setting: Setting) -> int:
    vocab = _vocab(setting)
    task = Translation(setting.config, vocab, vocab, joint=True)
    model = task.build_model()
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


def test_fitting_pairs_leaves_out_the_long_ones_whole():
    pairs = Examples(
        {"source": np.arange(9), "target": np.arange(10, 16)},
        {"source": np.array([0, 2, 6, 9]), "target": np.array([0, 3, 4, 6])},
    )
    kept = fitting_pairs(pairs, 4)
    assert [[list(side) for side in kept.example(i).values()] for i in range(len(kept))] == [
        [[0, 1], [10, 11, 12]],
        [[6, 7, 8], [14, 15]],
    ]
    assert target_tokens(kept) == 7
    assert fitting_pairs(pairs, 5) is pairs


def test_meter_counts_only_what_lies_inside_a_round():
    pipe = _Pipe(2)
    meter = Meter(pipe, started=0.0)
    meter.describe(parameters=5)
    meter.first_step(9.0)
    assert meter.after_step(100, 8.0) and meter.after_step(100, 8.0) and not pipe.messages
    assert meter.after_step(100, 8.0)  # the end of the warm-up
    assert meter.after_step(7, 3.0)  # a round
    assert not meter.after_step(30, 2.0, steps=2)
    warm, first, second = pipe.messages
    assert warm["parameters"] == 5 and warm["first_loss"] == 9.0
    assert (first["tokens"], first["steps"], first["loss"]) == (7, 1, 3.0)
    assert (second["tokens"], second["steps"], second["loss"]) == (30, 2, 2.0)


def test_summary_is_the_median_of_the_rounds():
    turns = [{"tokens": tokens, "seconds": 2.0} for tokens in (10, 50, 20)]
    summary = rounds.summarise({"name": "a", "rounds": turns})
    assert (summary["tokens_per_second"], summary["min"], summary["max"]) == (10.0, 5.0, 25.0)


def test_ours_counts_the_tokens_of_its_batches(setting):
    from benchmarks import ours
    from trainer.input import memory as trainer_input

    warm, reports = _train(ours.train, dataclasses.replace(setting, variant="off"), turns=6)
    data = trainer_input.training_data(setting.pairs, setting.config, EOS, 1)
    batches = iter(data.dataset(0))
    held = [int(np.count_nonzero(next(batches)["target"])) for _ in range(10)]
    assert all(turn["steps"] == 1 for turn in reports)
    assert [turn["tokens"] for turn in reports] == held[4:]  # the first, and three to warm up
    assert warm["parameters"] == _parameters(setting)
    assert warm["flops_per_token"] > 3 * 2 * 16 * _vocab(setting)  # the softmax alone
    assert warm["peak_flops"] > 0
    rows = packing.pack(setting.pairs, 64, EOS)
    assert np.count_nonzero(rows.arrays["target"]) == target_tokens(setting.pairs)
    assert reports[-1]["loss"] < warm["first_loss"] - 0.3


def test_keras_fit_trains_on_the_corpus(setting):
    from benchmarks.peers import keras_fit

    warm, reports = _train(keras_fit.train, dataclasses.replace(setting, variant="fit"), turns=40)
    pairs = setting.pairs
    sentences = round(256 * len(pairs) / target_tokens(pairs))
    mean = sum(turn["tokens"] for turn in reports) / len(reports)
    assert mean == pytest.approx(sentences * target_tokens(pairs) / len(pairs), rel=0.03)
    # Of all steps so far, as fit reports it.
    assert reports[-1]["loss"] < warm["first_loss"] - 0.3
    # Two tables and the softmax's with its bias are not shared; the last norms are as in ours.
    vocab = _vocab(setting)
    assert warm["parameters"] == _parameters(setting) + 2 * vocab * 16 + vocab


def test_keras_batches_hold_each_pair_once_an_epoch(setting):
    from benchmarks.peers import keras_fit

    pairs = setting.pairs
    one_a_batch = keras_fit.dataset(pairs, 1, BOS, EOS, 1, None).take(len(pairs))
    tokens = 0
    for (source, shifted), target in one_a_batch:
        assert source[0, -1] == EOS and target[0, -1] == EOS and shifted[0, 0] == BOS
        np.testing.assert_array_equal(shifted[0, 1:], target[0, :-1])
        tokens += int(np.count_nonzero(target))
    assert tokens == target_tokens(pairs)
    ((source, _), _), *_ = keras_fit.dataset(pairs, 256, BOS, EOS, 1, 50).take(1)
    assert source.shape[1] == 50


def test_torch_batches_hold_the_corpus(setting):
    pytest.importorskip("torch")
    from benchmarks.peers.torch_transformer import Batches

    pairs = setting.pairs
    for multiple in (1, 8):
        batches = Batches(pairs, 256, multiple, BOS, EOS, seed=1)
        for _ in range(2):
            epoch = batches.epoch()
            assert sorted(np.concatenate(epoch)) == list(range(len(pairs)))
            tokens = 0
            for indices in epoch:
                (source, shifted, target), count = batches.collate(indices)
                assert 0 < target.numel() <= 256
                assert source.shape[1] % multiple == target.shape[1] % multiple == 0
                assert (shifted[:, 0] == BOS).all()
                inside = target[:, 1:] != 0
                assert (shifted[:, 1:][inside] == target[:, :-1][inside]).all()
                assert ((shifted == 0) == (target == 0)).all()
                tokens += count
            assert tokens == target_tokens(pairs)
        shapes = {tuple(batches.collate(batch)[0][0].shape) for batch in batches.shapes()}
        assert {tuple(batches.collate(batch)[0][0].shape) for batch in batches.epoch()} == shapes


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_torch_trains_a_model_of_our_size(setting, precision):
    pytest.importorskip("torch")
    from benchmarks.peers import torch_transformer

    setting = dataclasses.replace(setting, precision=precision, variant="eager")
    warm, reports = _train(torch_transformer.train, setting, turns=30)
    assert warm["first_loss"] == pytest.approx(math.log(280), rel=0.2)
    assert reports[-1]["loss"] < warm["first_loss"] - 0.5
    # The one difference: a normalisation, 2 x width, at the end of encoder and decoder.
    ours = _parameters(setting)
    assert warm["parameters"] == ours + 4 * 16
    assert warm["parameters"] == pytest.approx(ours, rel=0.01)


def test_torch_loss_ignores_padding_and_future(setting):
    torch = pytest.importorskip("torch")
    from benchmarks.peers.torch_transformer import Batches, Translator

    model = Translator(setting.config, _vocab(setting), 64).eval()
    batches = Batches(setting.pairs, 64, 1, BOS, EOS, seed=1)
    (batch, _) = batches.collate(batches.epoch()[0][:1])
    padded = [torch.nn.functional.pad(tensor, (0, 5)) for tensor in batch]
    with torch.no_grad():
        assert model(*padded).item() == pytest.approx(model(*batch).item(), abs=1e-5)
        # What only the last position reads must not matter once its target does not count.
        source, shifted, target = batch
        target[:, -1] = 0
        loss = model(source, shifted, target).item()
        shifted[:, -1] += 1
        assert model(source, shifted, target).item() == pytest.approx(loss, abs=1e-6)


def test_bad_flags_are_told_in_one_line(setting):
    with pytest.raises(UsageError, match=r"--batch_tokens=100 .* --row_length=64"):
        train_throughput.make_config("tiny", 100, 64)
    with pytest.raises(UsageError, match="--peers: 'jax' is not known"):
        train_throughput.make_contenders(setting, ["auto"], ["jax"])
    config = train_throughput.make_config("base", 4096, 64)
    assert (config.model.width, config.model.dropout, config.optimizer.clip_norm) == (512, 0.1, 1.0)


def test_a_contender_that_cannot_run_is_told_of(setting):
    absent = rounds.Contender("absent", "benchmarks.peers.no_such_peer", setting)
    (result,) = rounds.measure([absent], rounds=1, seconds=0.1)
    assert result == {
        "name": "absent",
        "missing": "benchmarks.peers.no_such_peer is not installed",
    }


@pytest.mark.slow
def test_the_command_prints_a_table_and_json(manifest):
    command = [sys.executable, "-m", "benchmarks.train_throughput", "--json", "--ours=off"]
    command += [f"--data_dir={manifest.directory}", "--batch_tokens=256", "--seconds=0.01"]
    command += ["--peers=keras_fit", "--rounds=2"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert any(line.startswith("ours_off ") and " 1.00 " in line for line in lines)
    ours, fit = json.loads(last)["results"]
    assert [len(ours["rounds"]), len(fit["rounds"])] == [2, 2]
    speeds = [turn["tokens"] / turn["seconds"] for turn in fit["rounds"]]
    assert fit["tokens_per_second"] == pytest.approx(sum(speeds) / 2)
