"""Continuing texts: against the model's own probabilities, windows, ends, and seeds."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from trainer.decoding.generation import TextGenerator
from trainer.decoding.options import SamplingOptions
from trainer.model.decoder_only import DecoderOnly
from trainer.model.seeds import seeded_weights

ROOM, VOCAB = 12, 30


@pytest.fixture(scope="module")
def model(tiny_config) -> DecoderOnly:
    with seeded_weights(3):
        made = DecoderOnly(tiny_config(model={"norm": "pre"}).model, VOCAB)
    rng = np.random.default_rng(3)
    for variable in made.trainable_variables:
        variable.assign(variable.numpy() + rng.normal(0, 0.2, variable.shape))
    return made


def generator(model, **options) -> TextGenerator:
    return TextGenerator(model, SamplingOptions(**options), ROOM)


def likeliest(model, tokens) -> int:
    """The next token after `tokens`, by a whole forward pass; no special one but the end."""
    text = np.array([[*tokens, 4]], np.int32)
    logits = model(text, np.ones_like(text))[0, -1].numpy()
    logits[[0, 1, 2]] = -np.inf
    return int(logits.argmax())


def test_greedy_equals_whole_passes(model):
    """From a document's start, from a prompt, and past the end of the row: half of it stays."""
    for prompt in ([], [5, 9, 11]):
        found = generator(model, top_k=1).generate(np.array([prompt], np.int32), 30)[0]
        tokens, start = list(prompt), 0
        for token in found:
            if len(tokens) - start == ROOM:
                start = len(tokens) - ROOM // 2
            expected = likeliest(model, tokens[start:])
            if expected == 3:
                break
            assert token == expected
            tokens.append(expected)
        assert len(tokens) > len(prompt) + 2
        assert not found[len(tokens) - len(prompt) :].any()


def test_streaming_and_other_rows_change_nothing(model):
    prompts = np.array([[5, 6]] * 3, np.int32)
    made = generator(model, temperature=1.5, top_p=0.9, samples=3)
    whole = made.generate(prompts, 25)
    parts = list(made.stream(prompts, 25, at_once=4))
    np.testing.assert_array_equal(parts[-1], whole)
    assert [part.shape[1] for part in parts[:3]] == [4, 8, 10]
    for before, after in itertools.pairwise(parts):
        np.testing.assert_array_equal(after[:, : before.shape[1]], before)
    (alone,) = made.generate(prompts[:1], 25)
    np.testing.assert_array_equal(alone, whole[0, : len(alone)])
    assert not whole[0, len(alone) :].any()
    assert len({tuple(row) for row in whole}) == 3
    other = generator(model, temperature=1.5, top_p=0.9, seed=2).generate(prompts[:1], 25)
    assert other.tolist() != whole[:1].tolist()


def test_a_long_prompt_counts_from_its_end(model):
    """Of 40 tokens the model sees the last half row."""
    long = np.random.default_rng(0).integers(4, VOCAB, [1, 40]).astype(np.int32)
    found = generator(model, top_k=1).generate(long, 3)
    expected = generator(model, top_k=1).generate(long[:, -ROOM // 2 :], 3)
    np.testing.assert_array_equal(found, expected)


def test_fill_for_an_accelerator(model):
    """All shapes static, compiled by XLA; what is given stays."""
    written = np.zeros([2, ROOM], np.int32)
    written[:, :2] = 5, 9
    made = generator(model, top_k=1)
    found = tf.function(made.fill, jit_compile=True, autograph=False)(tf.constant(written)).numpy()
    np.testing.assert_array_equal(found[:, :2], written[:, :2])
    expected = made.generate(written[:1, :2], ROOM - 2)[0]
    np.testing.assert_array_equal(found[0, 2 : 2 + len(expected)], expected)
