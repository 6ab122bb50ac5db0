"""Stages: the batches of one dataset after another, from any step."""

import numpy as np
import pytest

from common.errors import UsageError
from trainer import loop
from trainer.input.memory import training_data
from trainer.input.stages import Stage, StagedData, fingerprint, load_stages, read_stages
from trainer.metrics.flops import Hardware
from trainer.run import assemble


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


@pytest.mark.slow
def test_a_run_stopped_in_a_stage_goes_on_there(manifest, tiny_config, one_device, tmp_path):
    """The same weights, bit for bit; and other weights than without the stage."""

    def run(name: str, steps: int, stages: str):
        config = tiny_config(
            model={"dropout": 0.1},
            data={"stages": stages},
            train={"steps": steps, "steps_per_loop": 1, "checkpoint_every": 3},
            decode={"validation_sentences": 2},
        )
        made = assemble(
            config,
            manifest,
            str(tmp_path / name),
            one_device,
            "float32",
            False,
            Hardware(1, "float32"),
            pictures=False,
        )
        assert loop.train(made) == 0
        return made

    stages = f"{manifest.directory}:4"
    whole = run("whole", 8, stages)
    assert f"steps 1 to 4: {manifest.directory}, 40 examples" in whole.data.origin
    run("parts", 3, stages)
    parts = run("parts", 8, stages)
    plain = run("plain", 8, "")
    different = 0
    for one, other, third in zip(
        whole.model.weights, parts.model.weights, plain.model.weights, strict=True
    ):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
        different += not np.array_equal(one.numpy(), third.numpy())
    assert different > 10
    with pytest.raises(UsageError, match=r"other data|other settings"):
        run("parts", 8, f"{manifest.directory}:5")
