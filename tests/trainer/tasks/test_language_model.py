"""The language model's own: bits, attention across documents, FLOPs."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from data_pipeline.dataset.manifest import SequenceInfo, SplitInfo
from tests.trainer.worker_script import task_of
from trainer.tasks import flops

SUMS = {"loss": 90.0, "nll": 80.0, "correct": 5.0, "tokens": 40.0, "positions": 50.0}


@pytest.fixture
def make_task(tiny_config):
    """Returns a language model; `across` lets attention cross documents."""

    def make(across: bool = False):
        config = tiny_config(data={"attend_across_documents": across})
        return task_of(dataclasses.replace(config, task="language_model"))

    return make


def split_of(lengths, characters=0, text_bytes=0) -> SplitInfo:
    sequences = {"text": SequenceInfo.of_histogram((length, 1) for length in lengths)}
    kept = len(lengths)
    return SplitInfo((), kept, kept, {}, sequences, characters=characters, text_bytes=text_bytes)


def test_bits(make_task):
    """2 nats a token; the split's 100 tokens stand for 180 bytes and 160 characters."""
    split = split_of([60, 40], characters=160, text_bytes=180)
    metrics = make_task().metrics(SUMS, split)
    assert metrics["bits_per_byte"] == pytest.approx(200 / math.log(2) / 180)
    assert metrics["bits_per_character"] == pytest.approx(200 / math.log(2) / 160)
    assert metrics["perplexity"] == pytest.approx(math.exp(2))


@pytest.mark.parametrize("across", [False, True])
def test_attention_across_documents(make_task, seeded, across):
    """The first document of a row changes the loss of the second one only if that sees it."""
    task = make_task(across)
    model = task.build_model()
    segments = np.array([[1, 1, 1, 2, 2, 2, 0, 0]], np.int32)
    nll = []
    for first in (5, 6):
        text = np.array([[first, 7, 3, 8, 9, 3, 0, 0]], np.int32)
        both = {"text": tf.constant(text), "text_segments": tf.constant(segments)}
        alone = {
            "text": tf.constant(text[:, :3]),
            "text_segments": tf.constant(segments[:, :3]),
        }
        sums = [task.sums(model, batch, None, training=False) for batch in (both, alone)]
        assert (float(sums[0]["tokens"]), float(sums[0]["positions"])) == (6.0, 8.0)
        nll.append(float(sums[0]["nll"]) - float(sums[1]["nll"]))  # of the second document
    assert (abs(nll[0] - nll[1]) > 1e-3) == across


def test_train_flops(make_task):
    """Of pieces of 2 and 4 tokens: 6 tokens, 20 pairs; across documents a row of 16 each."""
    split = split_of([2, 4])
    config = make_task().config.model
    for across, pairs in ((False, 20.0), (True, 96.0)):
        forward = flops.language_model_flops(config, 30, tokens=6.0, pairs=pairs)
        assert make_task(across).train_flops(split, 16) == pytest.approx(3 * forward / 6)
    with pytest.raises(UsageError, match="no text that fits into a row"):
        make_task().train_flops(split, 1)
