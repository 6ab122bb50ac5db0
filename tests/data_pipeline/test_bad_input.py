"""Bad input and settings: one line that says what, where and how to fix it, and nothing left."""

import gzip
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from common import files
from common.errors import UsageError
from data_pipeline.job import prepare


def bad_inputs(directory: Path, write_text: Callable[..., str]) -> dict[str, tuple[dict, str]]:
    """Returns name -> (settings, pattern of the message) for every kind of bad input."""
    directory.mkdir()
    good = b"".join(b"the dog %d\n" % i for i in range(50))
    inputs = {
        "good": good,
        "short": good[: good.rindex(b"\n", 0, -1) + 1],
        "latin1": good + "Häuser\n".encode("latin-1"),
        "empty": b"",
        "blank": b"\n" * 50,
        "no_tab": b"a\tb\nc\n",
    }
    path = {name: directory / name for name in inputs}
    for name, content in inputs.items():
        path[name].write_bytes(content)
    (directory / "cut.gz").write_bytes(gzip.compress(good)[:-10])

    def text(source: str, target: str) -> tuple[str, ...]:
        return (f"text:{directory / source},{directory / target}",)

    long = [("the dog sees the cat " * 9, "der Hund sieht die Katze " * 9)] * 3
    return {
        "sides": ({"train": text("good", "short")}, r"good has 50 lines but .*short has 49"),
        "sides of test": ({"test": text("short", "good")}, r"short has 49 lines but .* has 50"),
        "missing": ({"valid": text("good", "nowhere")}, r"nowhere: no such file"),
        "empty": ({"train": text("empty", "empty")}, r"--train: no lines in text:"),
        "empty test": ({"test": text("empty", "empty")}, r"--test: no lines in text:"),
        "blank": (
            {"train": text("blank", "blank")},
            r"none of the 50 pairs is left after cleaning \(empty: 50\)",
        ),
        "all long": (
            {
                "train": (write_text(directory, "long", long),),
                "max_tokens": 19,
                "vocab_size": 280,
                "model_type": "bpe",
            },
            r"none of the 3 pairs is left .*duplicate: 2, too_many_tokens: 1",
        ),
        "utf-8": ({"train": text("latin1", "latin1")}, r"latin1, line 51: not valid UTF-8"),
        "utf-8 of valid": (
            {"valid": text("latin1", "latin1")},
            r"latin1, line 51: not valid UTF-8 \(byte 0xe4\)",
        ),
        "no tab": ({"train": (f"tsv:{path['no_tab']}",)}, r"no_tab, line 2: no tab"),
        "gzip": ({"train": text("cut.gz", "good")}, r"cut\.gz: damaged gzip file"),
        "scheme": ({"train": ("json:a",)}, r"known ones start with text:, tsv:, .*builtin:"),
        "vocabulary": ({"vocab_size": 9000}, r"--vocab_size=9000 .* largest possible is \d+"),
        "small vocabulary": ({"vocab_size": 262}, r"--vocab_size=262 is less than the \d+"),
    }


BAD_INPUTS = [
    "sides",
    "sides of test",
    "missing",
    "empty",
    "empty test",
    "blank",
    "all long",
    "utf-8",
    "utf-8 of valid",
    "no tab",
    "gzip",
    "scheme",
    "vocabulary",
    "small vocabulary",
]


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input(name, make_settings, tmp_path, write_text):
    changed, message = bad_inputs(tmp_path / "in", write_text)[name]
    with pytest.raises(UsageError) as caught:
        prepare(make_settings(tmp_path / "out", **changed))
    assert re.search(message, str(caught.value)), str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": ()}, "--train is missing"),
        ({"output_dir": ""}, "--output_dir is missing"),
        ({"source_lang": "../en"}, "is not a language name"),
        ({"target_lang": "en"}, "are both 'en'"),
        ({"vocab_size": 200}, "--vocab_size=200: must be at least 261"),
        ({"num_shards": 0}, "--num_shards=0: must be at least 1"),
        ({"num_shards": 100_000}, "--num_shards=100000: must be at most 99999"),
        ({"max_tokens": 0}, "--max_tokens=0: must be at least 1"),
        ({"vocab_size": 4, "byte_fallback": False}, "--vocab_size=4: must be at least 5"),
        ({"vocab_size": 10**10}, "--vocab_size=10000000000: must be at most 16777216"),
        ({"seed": -1}, "--seed=-1: must be at least 0"),
        ({"character_coverage": 1.5}, "--character_coverage=1.5: expected"),
        ({"character_coverage": 0.9}, "--character_coverage=0.9: expected 0.98 <= x"),
        ({"max_length_ratio": float("nan")}, "--max_length_ratio=nan: must be at least 1"),
        ({"row_length": 10**12}, "--row_length=1000000000000: must be at most 1048576"),
        ({"source_lang": "source_ids"}, "'source_ids' is not a language name"),
        (
            {"enable_filters": ("language",), "disable_filters": ("language",)},
            "'language' is in --enable_filters and in --disable_filters",
        ),
        ({"model_type": "word"}, "--model_type=word: expected unigram or bpe"),
    ],
)
def test_bad_settings(make_settings, changed, message):
    with pytest.raises(UsageError, match=message):
        make_settings(**{"output_dir": "unused", **changed})


@pytest.mark.parametrize(
    ("beam_args", "message"),
    [
        (["--num_shrads=3"], "unknown flag '--num_shrads=3': neither"),
        (["stray"], "unexpected argument 'stray'; flags are written --name=value"),
        (["--direct_num_workers=-1"], "--direct_num_workers=-1: expected 0 .one per core. or more"),
        (["--direct_num_workers=many"], "invalid int value: 'many'"),
        (["--runner=NoSuchRunner"], "Unexpected pipeline runner"),
    ],
)
def test_bad_beam_options(make_settings, tmp_path, beam_args, message):
    with pytest.raises(UsageError, match=message):
        prepare(make_settings(tmp_path / "out"), beam_args)
    assert not (tmp_path / "out").exists()


def test_an_outage_keeps_what_is_done(make_settings, tmp_path, monkeypatch, corpus):
    """It is no bad input: the next start goes on, and its result is that of an undisturbed one."""
    path = tmp_path / "more.tsv"
    path.write_text("one more dog\tnoch ein Hund\n")
    settings = make_settings(tmp_path / "out", train=(corpus["train"], f"tsv:{path}"))
    whole = files.open_binary

    def fail(name):
        if name == str(path):
            raise tf.errors.UnavailableError(None, None, "503")
        return whole(name)

    monkeypatch.setattr(files, "open_binary", fail)
    with pytest.raises(tf.errors.UnavailableError):
        prepare(settings)
    assert list((tmp_path / "out" / "_incomplete" / "results").glob("clean-*"))
    monkeypatch.setattr(files, "open_binary", whole)
    assert prepare(settings).splits["train"].kept == 601


def test_what_a_killed_lock_leaves_is_nobody_elses(make_settings, tmp_path):
    (tmp_path / "_incomplete-abcdef012345-in_use.json").write_text("{")
    assert prepare(make_settings(tmp_path)).splits["train"].kept == 600
    assert not list(tmp_path.glob("_incomplete*"))


@pytest.mark.parametrize("name", ["utf-8", "utf-8 of valid", "sides"])
def test_bad_input_found_by_another_worker(name, make_settings, tmp_path, write_text):
    # Threads behind gRPC see what processes see (nothing of the driver), and start sooner.
    workers = ["--direct_num_workers=2", "--direct_running_mode=multi_threading"]
    changed, message = bad_inputs(tmp_path / "in", write_text)[name]
    with pytest.raises(UsageError) as caught:
        prepare(make_settings(tmp_path / "out", **changed), workers)
    assert re.search(message, str(caught.value))
