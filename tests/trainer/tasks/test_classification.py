"""The classifier's own: class weights, the confusion matrix, classifying lines."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from data_pipeline.dataset.tokenizer import Tokenizer, train
from tests.trainer.worker_script import EOS, VOCAB, task_of
from trainer.decoding.classifying import Confusion, TextClassifier
from trainer.metrics.pictures import draw_confusion
from trainer.model.encoder_classifier import EncoderClassifier
from trainer.tasks.classification import Classification


def test_class_weights(tiny_config, seeded):
    """Balanced: the loss of training is the weighted mean, evaluation counts all alike."""
    config = tiny_config(train={"class_weights": "balanced", "label_smoothing": 0.0})
    task = task_of(dataclasses.replace(config, task="classification"))
    np.testing.assert_allclose(task.class_weights, [2.0, 1.0, 2 / 3])  # of 1, 2 and 3 texts
    model = task.build_model()
    rows = [[5, 6, EOS, 7, EOS, 0], [8, 9, 10, 11, 12, EOS]]
    batch = {
        "text": tf.constant(rows),
        "text_segments": tf.constant([[1, 1, 1, 2, 2, 0], [1] * 6]),
        "labels": tf.constant([[1, 0, 0, 3, 0, 0], [2, 0, 0, 0, 0, 0]]),
    }
    logits = model(batch["text"], batch["text_segments"]).numpy()
    of_texts = logits[[0, 0, 1], [0, 3, 0]]  # [texts, classes]
    nll = -np.log(np.exp(of_texts) / np.exp(of_texts).sum(-1, keepdims=True))
    nll = nll[np.arange(3), [0, 2, 1]]
    trained = task.sums(model, batch, None, training=True)
    assert float(trained["loss"]) == pytest.approx(nll @ [2.0, 2 / 3, 1.0], rel=1e-5)
    assert float(trained["weight"]) == pytest.approx(2 + 2 / 3 + 1)
    sums = {key: float(x) for key, x in task.sums(model, batch, None, training=False).items()}
    assert (sums["examples"], sums["weight"], sums["tokens"]) == (3.0, 3.0, 11.0)
    right = of_texts.argmax(-1) == [0, 2, 1]
    metrics = task.metrics(sums, None)
    assert metrics["accuracy"] == pytest.approx(right.mean())
    assert metrics["nll"] == pytest.approx(nll.mean(), rel=1e-5)


def test_one_class_is_refused(tiny_config):
    with pytest.raises(UsageError, match="has only the class good, and a classifier needs two"):
        Classification(tiny_config(), VOCAB, ("good",), {})


def test_confusion():
    """By hand; the class that nothing is of, and nothing is taken for, does not count."""
    labels = ("a", "b", "a class with a long name", "none")
    true, predicted = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 1])
    found = Confusion.of(labels, true, predicted)
    np.testing.assert_array_equal(found.counts[:3, :3], [[2, 1, 0], [0, 1, 0], [0, 1, 0]])
    np.testing.assert_allclose(found.precision, [1, 1 / 3, 0, 0])
    np.testing.assert_allclose(found.recall, [2 / 3, 1, 0, 0])
    np.testing.assert_allclose(found.f1, [0.8, 0.5, 0, 0])
    assert found.macro_f1 == pytest.approx((0.8 + 0.5 + 0) / 3)
    lines = found.table().splitlines()
    assert lines[1].split() == ["a", "2", "1", "0", "0", "3", "1.000", "0.667", "0.800"]
    assert lines[3].startswith("a class with a  ") and len({len(line) for line in lines}) == 1
    picture = draw_confusion(found.counts, labels)
    assert picture[:4] == b"\x89PNG"
    assert tf.io.decode_png(picture).shape[-1] == 4


def test_the_picture_of_many_classes_stays_small():
    labels = [f"class {number}" for number in range(1000)]
    height, width, _ = tf.io.decode_png(draw_confusion(np.eye(1000, dtype=int), labels)).shape
    assert height < 4000 and width < 4000


def test_texts_come_back_in_order(tiny_config, seeded):
    """Whatever the packing, and as one at a time; an empty line and one that is cut too."""
    tokenizer = Tokenizer(train(["a b c d e f g"], 0, "char"))
    model = EncoderClassifier(tiny_config().model, tokenizer.vocab_size, 3)
    classifier = TextClassifier(model, tokenizer, 16)
    rng = np.random.default_rng(0)
    texts = ["", "a b" * 20, *(" ".join(rng.choice(list("abcdefg"), n)) for n in range(1, 8))]
    together, cut = classifier.probabilities(texts)
    assert cut == 1 and together.shape == (9, 3)
    alone = np.concatenate([classifier.probabilities([text])[0] for text in texts])
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    np.testing.assert_allclose(together.sum(axis=1), 1.0, rtol=1e-5)
