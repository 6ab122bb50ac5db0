"""Rows that are cut into pieces anew in each epoch."""

import dataclasses

import numpy as np
import pytest

from common.errors import UsageError
from data_pipeline.dataset.examples import load_tokenizers, read_examples
from data_pipeline.dataset.tokenizer import UNK_ID
from trainer.input.load import load_training_data
from trainer.input.resampled import resampled_data
from trainer.tasks.translation import FEATURES


@pytest.fixture
def config(tiny_config):
    return tiny_config(
        data={"row_length": 32, "sampling_alpha": 0.1}, train={"batch_tokens": 128, "seed": 5}
    )


@pytest.fixture
def data(manifest, config):
    return load_training_data(manifest, config, 1)


def sentences(rows, models) -> list[tuple[str, str]]:
    """The pairs of text in the rows, sorted."""
    found = []
    for source, source_segments, target, target_segments in zip(
        *(rows[name] for name in FEATURES), strict=True
    ):
        for number in range(1, source_segments.max() + 1):
            sides = source[source_segments == number], target[target_segments == number]
            found.append(
                tuple(
                    models[name].decode([side])[0]
                    for name, side in zip(("source", "target"), sides, strict=True)
                )
            )
    return sorted(found)


def batches(data, count: int, first_step: int = 0, **share) -> list[dict[str, np.ndarray]]:
    return list(data.dataset(first_step, **share).take(count).as_numpy_iterator())


def assert_same(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for name in FEATURES:
            np.testing.assert_array_equal(one[name], other[name])


def test_the_same_sentences_in_other_pieces(manifest, data):
    models = load_tokenizers(manifest)
    examples = read_examples(manifest, "train")
    ids = {name: np.split(examples.tokens[name], examples.offsets[name][1:-1]) for name in models}
    expected = sorted(zip(*(models[name].decode(ids[name]) for name in models), strict=True))
    epochs = [data.rows(epoch).arrays for epoch in (0, 1, 2, 1)]
    for rows in epochs:
        assert sentences(rows, models) == expected
    assert_same([epochs[3]], [epochs[1]])
    tokens = [np.count_nonzero(rows["target"]) for rows in epochs[:3]]
    assert len({rows["target"].tobytes() for rows in epochs}) == 3
    assert min(tokens) > len(examples.tokens["target"]) + len(examples)  # the best has the fewest


def test_an_epoch_holds_every_row_once(data):
    steps = data.batches_per_epoch
    made = batches(data, 3 * steps)
    for epoch in range(3):
        rows = data.rows(epoch).arrays["source"]
        seen = np.concatenate(
            [batch["source"] for batch in made[epoch * steps : (epoch + 1) * steps]]
        )
        assert len(seen) == steps * data.batch_rows
        known = {row.tobytes() for row in rows}
        assert {row.tobytes() for row in seen} <= known
        assert len({row.tobytes() for row in seen}) == min(len(known), len(seen))


def test_a_batch_follows_from_seed_and_step(manifest, config, data):
    steps = data.batches_per_epoch
    whole = batches(data, 2 * steps + 1)
    again = load_training_data(manifest, config, 1)
    for first in (1, steps, steps + 1, 2 * steps):
        assert_same(batches(again, len(whole) - first, first), whole[first:])
    other = dataclasses.replace(data, seed=6)
    assert (batches(other, 1)[0]["source"] != whole[0]["source"]).any()


def test_replicas_share_a_batch(data):
    """Parts 0 and 1 of the first worker, and part 1 of the second of two, join to whole batches."""
    steps = data.batches_per_epoch + 2
    whole = batches(data, steps)
    both = batches(data, 2 * steps, replicas=2, first=0, local=2)
    second = batches(data, steps, replicas=2, first=1, local=1)
    for step, batch in enumerate(whole):
        for name in FEATURES:
            joined = np.concatenate([both[2 * step][name], both[2 * step + 1][name]])
            np.testing.assert_array_equal(joined, batch[name])
    assert_same(second, both[1::2])


def test_what_cannot_be_cut(manifest, config):
    examples = read_examples(manifest, "train")
    bucketed = dataclasses.replace(config.data, batching="bucketed")
    with pytest.raises(UsageError, match="is for pairs and labelled texts in packed rows"):
        load_training_data(manifest, dataclasses.replace(config, data=bucketed), 1)
    tiny = dataclasses.replace(config.data, row_length=2)
    with pytest.raises(UsageError, match="all 40 training examples are longer than a row"):
        load_training_data(manifest, dataclasses.replace(config, data=tiny), 1)
    examples.tokens["target"][3] = UNK_ID
    with pytest.raises(UsageError, match="the target vocabulary has no pieces for some of it"):
        resampled_data(examples, manifest, config, 1)
