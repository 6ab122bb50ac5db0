"""The whole job on thousands of random dirty corpora, against a plain model of what it promises.

The model reads each pair as a person would, one at a time and with the obvious function of the
standard library; the job works on arrays, chunks, partitions and shards. They must agree on every
pair: what is kept, what is dropped and why, what `dataset.json` counts, what every file holds.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings

from common import lock
from common.errors import UsageError
from data_pipeline import job
from data_pipeline.dataset.verify import verify
from data_pipeline.job import prepare
from data_pipeline.progress import Display
from data_pipeline.runners.local import Runner
from data_pipeline.settings import Settings
from data_pipeline.sources import chunk as chunks
from data_pipeline.workdir import WORK_DIR
from tests.data_pipeline.dirty_corpora import Pair, held_out_inputs, options, sizes, train_inputs
from tests.data_pipeline.plain_model import (
    CHANGES,
    Model,
    Spelling,
    read_pair,
    read_records,
    read_rows,
)

# `make test-all` runs 2,000.
EXAMPLES = int(os.environ.get("TEST_EXAMPLES", "300"))


@pytest.fixture(scope="module")
def models(tmp_path_factory, sentences, write_text) -> list[Spelling]:
    """A joint model and another one."""
    directory = tmp_path_factory.mktemp("models")
    found = []
    for seed in range(2):
        spec = write_text(directory / f"text{seed}", "a", sentences(300, seed))
        fields = {"train": (spec,), "valid": (), "test": (), "row_length": 0, "vocab_size": 300}
        made = prepare(
            Settings(
                source_lang="en",
                target_lang="de",
                output_dir=str(directory / f"data{seed}"),
                **fields,
            )
        )
        found.append(Spelling(made.path(made.tokenizers["source"])))
    return found


@pytest.fixture
def place(monkeypatch):
    """A directory, in memory if possible; the job shows nothing, which would take half its time."""
    monkeypatch.setattr(Display, "summary", lambda *_: None)
    monkeypatch.setattr(Display, "phase", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(Display, "say", lambda *_: None)
    for name in ("PARTITION_PAIRS", "BLOCK_ROWS"):
        monkeypatch.setattr(job, name, getattr(job, name))
    monkeypatch.setattr(chunks, "CHUNK_LINES", chunks.CHUNK_LINES)
    monkeypatch.setattr(Runner, "shares_work", Runner.shares_work)
    # One at a time writes here, so there is nobody to wait for.
    monkeypatch.setattr(lock, "_SETTLE_SECONDS", 0.0)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(train_inputs, held_out_inputs, held_out_inputs, options, sizes)
def test_any_corpus(models, place, train, valid, test, option, size):
    job.PARTITION_PAIRS, chunks.CHUNK_LINES, job.BLOCK_ROWS, Runner.shares_work = size
    directory = place / "example"
    directory.mkdir()
    try:
        _check(models, directory, train, {"valid": valid, "test": test}, option)
    finally:
        shutil.rmtree(directory)


def _check(models, directory: Path, train, others, option) -> None:
    written = [of_source.write(directory / f"train{i}") for i, of_source in enumerate(train)]
    held = {name: made.write(directory / name) for name, made in others.items() if made}
    if not option["row_length"]:
        option = {**option, "segmentations": 1}
    joint = option["joint_vocabulary"]
    out = directory / "out"
    set_up = Settings(
        train=tuple(spec for spec, _ in written),
        **{name: (held[name][0],) if name in held else () for name in ("valid", "test")},
        source_lang="en",
        target_lang="de",
        output_dir=str(out),
        tokenizer=tuple(model.path for model in models[: 2 - joint]),
        **option,
    )
    loaded = [models[0], models[0 if joint else 1]]
    held_out = {name: found for name, (_, found) in held.items()}
    texts = [found for _, found in written]
    model = Model(texts, [of_source.weight for of_source in train], held_out, set_up, loaded)
    unreadable = not model.pairs_in or not all(held_out.values())
    event("refused" if unreadable or not model.kept else "made")
    if unreadable or not model.kept:
        expected = "no lines in" if unreadable else "is left after cleaning"
        with pytest.raises(UsageError, match=expected):
            prepare(set_up)
        assert not out.exists()
        return
    manifest = prepare(set_up)
    _check_train(manifest.splits["train"], out, model, set_up, loaded)
    _check_rows(manifest.splits["train"], out, model, set_up, loaded)
    assert set(manifest.splits) == {"train", *held_out}
    for name, found in held_out.items():
        _check_held_out(manifest.splits[name], out, name, found, loaded)
    verify(manifest)
    _check_second_run(manifest, out, set_up)


def _check_train(split, out: Path, model: Model, set_up: Settings, models) -> None:
    assert split.pairs_in == model.pairs_in == split.kept + sum(split.dropped.values())
    assert (split.dropped, split.kept) == (dict(+model.dropped), model.kept)
    assert split.changed == dict(+model.changed)
    assert split.records == model.records.total() == sum(file.records for file in split.files)
    counts = [file.records for file in split.files]
    assert len(counts) == set_up.num_shards and max(counts) - min(counts) <= 1
    shards = [read_records(out / file.name) for file in split.files]
    assert list(map(len, shards)) == counts
    found = Counter(read_pair(record, models) for record in itertools.chain(*shards))
    assert found == model.records
    if set_up.keep_rejected:
        lines = (out / "train.rejected.tsv").read_bytes().decode().split("\n")
        assert lines.pop() == ""
        assert Counter(tuple(line.split("\t")) for line in lines) == model.rejected
    else:
        assert not (out / "train.rejected.tsv").exists()


def _check_rows(split, out: Path, model: Model, set_up: Settings, models) -> None:
    info = split.rows
    if not set_up.row_length:
        assert info is None
        return
    counts = [file.records for file in info.files]
    assert len(counts) == set_up.num_shards and sum(counts) == info.rows
    blocks = [-(-count // info.block_rows) for count in counts]
    assert max(blocks) - min(blocks) <= 1
    found = Counter(read_rows(out, info, models))
    wanted = Counter()
    fit = 0
    for pair, count in model.records.items():
        spelled = tuple(CHANGES["white_space"](text) for text in pair)
        wanted[spelled] += count * set_up.segmentations
        ids = [model.encode(text) for model, text in zip(models, pair, strict=True)]
        fit += count * (max(map(len, ids)) < set_up.row_length)
    assert found <= wanted
    assert found.total() + info.left_out == wanted.total()
    if set_up.segmentations == 1:
        assert found.total() == fit


def _check_held_out(split, out: Path, name: str, found: list[Pair], models) -> None:
    assert (split.pairs_in, split.kept, split.dropped) == (len(found), len(found), {})
    for lang, side in zip(("en", "de"), zip(*found, strict=True), strict=True):
        text = "".join(f"{line}\n" for line in side)
        assert (out / f"{name}.{lang}.txt").read_bytes().decode() == text
    records = [record for file in split.files for record in read_records(out / file.name)]
    assert len(records) == len(found)
    for record, pair in zip(records, found, strict=True):
        for lang, side, text, model in zip(
            ("en", "de"), ("source", "target"), pair, models, strict=True
        ):
            assert record[lang].bytes_list.value[0].decode() == text
            clean = text
            for step in ("control_characters", "nfc", "white_space"):
                clean = CHANGES[step](clean)
            ids = list(record[f"{side}_ids"].int64_list.value)
            assert model.decode(ids) == clean


def _check_second_run(manifest, out: Path, set_up: Settings) -> None:
    """It finds everything done: nothing is made and no file is touched."""
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert WORK_DIR not in before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "Job", None)
        assert prepare(set_up).fingerprint == manifest.fingerprint
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
