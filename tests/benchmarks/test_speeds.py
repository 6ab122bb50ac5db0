"""Speeds of a run, and what the pictures cost."""

import pytest

from benchmarks import speeds


def line(split, step, time, **more):
    return {"split": split, "step": step, "time": time, **more}


def test_speeds_leave_out_the_first_step_and_count_all_of_the_time_after_it():
    fast = {"step_seconds": 0.5, "target_tokens_per_second": 200.0}
    slow = {"step_seconds": 1.0, "target_tokens_per_second": 50.0}
    found = speeds.speeds(
        [
            line("train", 1, 100.0, spent={"evaluation": 0.0}),
            line("train", 11, 105.0, **fast),
            line("valid", 11, 108.0),
            line("train", 21, 118.0, **slow),
            line("test", 21, 125.0, spent={"evaluation": 10.0}),
        ]
    )
    assert found["steps"] == pytest.approx((1000 + 500) / 15)
    assert found["all"] == pytest.approx(1500 / 25)
    assert found["evaluation_seconds"] == 10.0


def test_cost_compares_medians():
    runs = {
        "pictures": [{"steps": 99.0, "all": 49.0}, {"steps": 101.0, "all": 47.0}],
        "nopictures": [{"steps": 100.0, "all": 50.0}],
    }
    assert speeds.compare(runs) == pytest.approx({"steps": 0.0, "all": 0.04})
