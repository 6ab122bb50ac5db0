"""Which evaluation is the best so far, where the metric ties."""

from types import SimpleNamespace

import pytest

from trainer.checkpoints.saver import RunState
from trainer.validation import Validation


@pytest.fixture
def validation(one_device) -> Validation:
    """Only what decides on the best so far."""
    task = SimpleNamespace(BEST={"bleu": True})
    steps = SimpleNamespace(task=task, strategy=one_device)
    config = SimpleNamespace(best_metric="bleu")
    return Validation(config, steps, None, [], None, RunState(), None, None, print)


def test_of_equal_values_the_lower_loss_is_better(validation, capsys):
    """A metric that is 0 throughout neither keeps the first checkpoint nor ends the run."""
    state = validation._state
    losses, better = (3.0, 2.5, 2.7, 2.0), []
    for step, loss in enumerate(losses, start=1):
        better.append(validation._note(step, {"bleu": 0.0, "loss": loss}))
    assert better == [True, True, False, True]
    assert int(state.best_step.numpy()) == 4 and float(state.best_loss.numpy()) == 2.0
    assert int(state.evaluations_since_best.numpy()) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert "best_metric=bleu does not tell their checkpoints apart" in warning
    assert validation._note(5, {"bleu": 1.0, "loss": 9.0})
    assert not validation._note(6, {"bleu": 0.5, "loss": 0.1})
