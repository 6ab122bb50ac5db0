"""Stages: the batches of one dataset after another, from any step."""

import collections

import numpy as np
import pytest

from common.errors import UsageError
from trainer.input.memory import training_data
from trainer.input.stages import Stage, StagedData, fingerprint, load_stages, read_stages


def _batches(data, count: int, first_step: int = 0, **share) -> list[np.ndarray]:
    dataset = data.dataset(first_step, **share).take(count)
    return [batch["target"] for batch in dataset.as_numpy_iterator()]


def _assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def parts(make_pairs, tiny_config):
    """Two datasets in batches of four rows."""
    return [
        training_data(make_pairs([(5, 5)] * 40, seed=seed), tiny_config(), 3, 1) for seed in (1, 2)
    ]


@pytest.fixture
def staged(parts, manifest) -> StagedData:
    """Five batches of the first, then the second."""
    return StagedData([Stage(manifest, 5), Stage(manifest, None)], parts)


def test_one_dataset_after_another(parts, staged):
    expected = _batches(parts[0], 5) + _batches(parts[1], 7)
    _assert_same(_batches(staged, 12), expected)
    for step in (0, 3, 5, 9):
        _assert_same(_batches(staged, 12 - step, step), expected[step:])
    assert staged.shapes == parts[1].shapes


def _pairs(batches: list[np.ndarray]) -> collections.Counter:
    """How often each target is in batches of rows of two targets, of five tokens and the end."""
    targets = [row[start : start + 6] for batch in batches for row in batch for start in (0, 6)]
    return collections.Counter(map(tuple, targets))


def test_pairs_are_counted_by_stage(make_pairs, staged):
    """Five batches of eight: every pair of each stage once, whole or gone on in the middle."""
    whole = _batches(staged, 10)
    gone_on = whole[:3] + _batches(staged, 7, first_step=3)
    for batches in (whole, gone_on):
        for seed, first in ((1, 0), (2, 5)):
            pairs = make_pairs([(5, 5)] * 40, seed=seed).tokens["target"].reshape(40, 5)
            expected = collections.Counter((*pair, 3) for pair in pairs)
            assert _pairs(batches[first : first + 5]) == expected


def test_replicas_share_the_same_batches(staged):
    whole = _batches(staged, 8)
    shares = [_batches(staged, 16, replicas=4, first=first, local=2) for first in (0, 2)]
    for step, batch in enumerate(whole):
        found = [share[2 * step + part] for share in shares for part in range(2)]
        np.testing.assert_array_equal(np.concatenate(found), batch)


def test_checks_look_at_the_batches_of_their_own_stage(staged, parts, monkeypatch):
    looked = []
    for number, part in enumerate(parts):
        monkeypatch.setattr(
            type(part), "check", lambda self, step, steps=1: looked.append((self.seed, step, steps))
        )
        object.__setattr__(part, "seed", number)
    staged.check(3, 4)
    staged.check(6)
    assert looked == [(0, 3, 2), (1, 0, 2), (1, 1, 1)]


def test_what_a_configuration_may_say(manifest, manifest_of_two, tiny_config):
    here = manifest.directory
    config = tiny_config(data={"stages": f"{here}:4,{here}:9"})
    stages = read_stages(config, manifest)
    assert [stage.end for stage in stages] == [4, 9, None]
    assert fingerprint(stages) != fingerprint(stages[1:]) != manifest.fingerprint
    assert fingerprint(stages[2:]) == manifest.fingerprint
    for text, words in (
        (here, "must be DIRECTORY:STEP"),
        (f"{here}:9,{here}:9", "rising steps"),
        (f"{here}:many", "must be DIRECTORY:STEP"),
        (f"{manifest_of_two.directory}:4", "another source vocabulary"),
        ("nowhere:4", "nowhere"),
    ):
        with pytest.raises(UsageError, match=words):
            read_stages(tiny_config(data={"stages": text}), manifest)


def test_stages_of_other_shapes_are_refused(manifest, tiny_config, monkeypatch, make_pairs):
    config = tiny_config(data={"batching": "bucketed", "buckets": (8, 16)})
    shapes = iter([[(8, 8)], [(8, 8), (4, 16)]])
    monkeypatch.setattr(
        "trainer.input.load.load_training_data",
        lambda *_, **__: type("Data", (), {"shapes": next(shapes)}),
    )
    with pytest.raises(UsageError, match="batching=packed"):
        load_stages([Stage(manifest, 4), Stage(manifest, None)], config, 1)
