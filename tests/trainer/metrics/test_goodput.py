"""The ledger of a run's wall-clock time."""

import json
import time

import pytest

from trainer.metrics import goodput
from trainer.metrics.goodput import PARTS, Ledger
from trainer.metrics.writer import MetricsWriter


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """One time, at place 0, for both clocks: Unix time is later by 1,000 seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: now[0] + 1000.0)
    return now


def _parts(**seconds) -> dict[str, float]:
    return dict.fromkeys(PARTS, 0.0) | seconds


def test_every_second_is_in_one_part(clock):
    ledger = Ledger(began=90.0)
    with ledger.during("steps"):
        clock[0] += 7
        with ledger.during("evaluation"):
            clock[0] += 5
        clock[0] += 1
    clock[0] += 2
    ledger.move(3.0, "steps", "input")
    assert ledger.spent() == _parts(start=12.0, steps=5.0, input=3.0, evaluation=5.0)
    assert goodput.goodput(ledger.spent()) == 0.2
    assert goodput.summary(ledger.spent(), cores=4) == (
        "25.0 s: steps 20%, input 12%, evaluation 20%, start 48%; 0.03 core-hours on 4 cores"
    )


def test_a_killed_start_and_the_next(clock):
    lines = [
        {"step": 10, "time": 1060.0, "spent": _parts(start=4.0, steps=6.0)},
        {"step": 10, "time": 1065.0, "spent": _parts(start=4.0, steps=6.0, evaluation=5.0)},
        {"step": 14, "time": 1075.0, "spent": _parts(start=4.0, steps=12.0, evaluation=9.0)},
        {"step": 14, "time": 1080.0},  # as older versions wrote them
    ]
    ledger = Ledger(began=98.0)  # 1,098 of Unix time
    ledger.resume(lines, 10, started=1050.0)
    expected = _parts(start=6.0, steps=6.0, evaluation=5.0, repeated=10.0, down=23.0)
    assert ledger.spent() == expected and sum(expected.values()) == 1100.0 - 1050.0


def test_killed_before_the_first_line(clock):
    ledger = Ledger(began=98.0)
    ledger.resume([], 0, started=1050.0)
    assert ledger.spent() == _parts(start=2.0, down=48.0)


def test_going_back_in_one_start(clock, tmp_path):
    ledger = Ledger(began=100.0)
    writer = MetricsWriter(str(tmp_path), 0, ledger=ledger)
    with ledger.during("steps"):
        clock[0] += 4
    writer.write("train", 4, {"loss": 2.0})
    with ledger.during("steps"):
        clock[0] += 3
    writer.write("train", 7, {"loss": 1.0})
    writer.rewind(4)
    writer.write("train", 5, {"loss": 1.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 5]
    assert lines[0]["spent"] == _parts(steps=4.0) and lines[0]["goodput"] == 1.0
    assert lines[1]["spent"] == _parts(steps=4.0, repeated=3.0)
    assert lines[1]["goodput"] == round(4 / 7, 4)
