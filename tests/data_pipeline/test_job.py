"""The stages of the job: what is kept, where it goes, and going on after a kill."""

import collections
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common.errors import UsageError
from data_pipeline import job, stages
from data_pipeline.dataset.examples import load_tokenizers, read_examples
from data_pipeline.dataset.verify import verify
from data_pipeline.job import prepare
from data_pipeline.workdir import WORK_DIR
from tests.commands import run_command

ROOT = Path(__file__).resolve().parents[2]


def texts(manifest, split: str = "train") -> list[tuple[str, str]]:
    source, target = load_tokenizers(manifest).values()
    pairs = read_examples(manifest, split)
    sides = [pairs.example(i).values() for i in range(len(pairs))]
    return list(
        zip(source.decode([s for s, _ in sides]), target.decode([t for _, t in sides]), strict=True)
    )


def row_texts(manifest) -> list[tuple[str, str]]:
    """The pairs in the packed rows, in order."""
    from data_pipeline.dataset.rows import find_blocks, read_block

    source, target = load_tokenizers(manifest).values()
    info = manifest.splits["train"].rows
    found = []
    blocks = find_blocks(manifest, info)
    for index in range(len(blocks)):
        block = read_block(blocks, index, info)
        for row in range(len(block["source"])):
            for segment in range(1, block["source_segments"][row].max() + 1):
                ids = [
                    block[side][row][block[f"{side}_segments"][row] == segment]
                    for side in ("source", "target")
                ]
                assert all(side[-1] == manifest.eos_id for side in ids)
                found.append((source.decode([ids[0]])[0], target.decode([ids[1]])[0]))
    return found


def contents(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir() if path.is_file()}


def test_shards_and_rows_are_balanced(make_settings, tmp_path, monkeypatch):
    """600 pairs in 7 partitions and 4 shards: 150 each, and blocks of 2 rows dealt out evenly."""
    monkeypatch.setattr(job, "PARTITION_PAIRS", 100)
    monkeypatch.setattr(job, "BLOCK_ROWS", 2)
    manifest = prepare(make_settings(tmp_path / "out", num_shards=4, row_length=64))
    train = manifest.splits["train"]
    assert [file.records for file in train.files] == [150] * 4
    info = train.rows
    in_files = [file.records for file in info.files]
    assert sum(in_files) == info.rows and max(in_files) - min(in_files) <= 3
    assert all(records % 2 == 0 for records in in_files[:-1])
    assert [len(blocks) for blocks in info.blocks] == [16 * -(-n // 2) for n in in_files]
    assert [file.bytes for file in info.files] == [n * info.record_bytes for n in in_files]
    assert sorted(row_texts(manifest)) == sorted(texts(manifest))
    verify(manifest)


def test_partitions_do_not_change_the_records(make_settings, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "PARTITION_PAIRS", 50)
    manifest = prepare(make_settings(tmp_path / "out"))
    assert manifest.splits["train"].files == dataset.splits["train"].files


def test_rows_hold_what_the_manifest_says(dataset):
    info = dataset.splits["train"].rows
    pairs = row_texts(dataset)
    assert sorted(pairs) == sorted(texts(dataset))
    assert info.left_out == 0
    held = read_examples(dataset, "train")
    assert info.tokens["source"] == len(held.tokens["source"]) + 600
    assert info.tokens["target"] == len(held.tokens["target"]) + 600
    assert info.fill_rate == sum(info.tokens.values()) / (info.rows * 512)


def test_rows_are_shuffled(make_settings, tmp_path):
    """Packing sorts by length; the rows must not stay in that order."""
    manifest = prepare(make_settings(tmp_path / "out", row_length=16))
    lengths = [len(source.split()) for source, _ in row_texts(manifest)]
    first, last = np.mean(lengths[:100]), np.mean(lengths[-100:])
    assert abs(first - last) < 1.5, (first, last)


def test_pairs_too_long_for_a_row_are_counted(make_settings, tmp_path):
    manifest = prepare(make_settings(tmp_path / "out", row_length=16))
    train = manifest.splits["train"]
    held = read_examples(manifest, "train")
    longest = held.lengths().max(axis=0) + 1
    assert train.rows.left_out == (longest > 16).sum() > 0
    assert len(row_texts(manifest)) == 600 - train.rows.left_out


def test_no_rows(make_settings, tmp_path):
    manifest = prepare(make_settings(tmp_path / "out", row_length=0))
    assert manifest.splits["train"].rows is None
    assert not list((tmp_path / "out").glob("train-rows-*"))


def test_near_duplicates_of_the_first_source_stay(make_settings, tmp_path, sentences, write_text):
    good = sentences(50)
    copies = [(f"{a[:-1]} !", b) for a, b in good[:10]] + [(a.upper(), b) for a, b in good[10:15]]
    copies += good[15:18]
    specs = [write_text(tmp_path / "in", "b", good), write_text(tmp_path / "in", "a", copies)]
    kept = prepare(make_settings(tmp_path / "one", train=tuple(specs), vocab_size=310))
    assert kept.splits["train"].dropped == {"duplicate": 3, "near_duplicate": 15}
    assert sorted(texts(kept)) == sorted(good)
    kept = prepare(make_settings(tmp_path / "two", train=tuple(specs[::-1]), vocab_size=310))
    assert sorted(texts(kept)) == sorted(copies + good[18:])
    settings = {"train": tuple(specs), "vocab_size": 310}
    kept = prepare(
        make_settings(tmp_path / "three", disable_filters=("near_duplicate",), **settings)
    )
    assert kept.splits["train"].dropped == {"duplicate": 3}
    kept = prepare(
        make_settings(
            tmp_path / "four", disable_filters=("near_duplicate", "duplicate"), **settings
        )
    )
    assert kept.splits["train"].dropped == {} and kept.splits["train"].kept == 68
    assert sorted(texts(kept)) == sorted(good + copies)
    # Equal pairs do not stay neighbours.
    in_order = texts(kept)
    assert sum(a == b for a, b in itertools.pairwise(in_order)) <= 1


def test_test_sentences_leave_the_training_text(make_settings, tmp_path, sentences, write_text):
    """Source sentences of valid and test, but for case and punctuation."""
    good = sentences(100)
    valid = [(good[3][0].upper(), "anders"), ("unseen words", "x")]
    test = [(f"{good[7][0][:-1]}", "y")]
    settings = make_settings(
        tmp_path / "out",
        train=(write_text(tmp_path / "in", "train", good),),
        valid=(write_text(tmp_path / "in", "valid", valid),),
        test=(write_text(tmp_path / "in", "test", test),),
        vocab_size=310,
        keep_rejected=True,
    )
    manifest = prepare(settings)
    contaminated = [pair for pair in good if pair[0] in (good[3][0], good[7][0])]
    assert manifest.splits["train"].dropped == {"contaminated": len(contaminated)}
    rejected = (tmp_path / "out" / "train.rejected.tsv").read_text().splitlines()
    assert sorted(rejected) == sorted("\t".join(("contaminated", *pair)) for pair in contaminated)
    assert texts(manifest, "valid")[0] == valid[0]


def test_weights(make_settings, tmp_path, sentences, write_text):
    """2.25 of one source, 1 of another, half of a third."""
    groups = [sentences(200, 5), sentences(100, 6), sentences(200, 7)]
    specs = [
        prefix + write_text(tmp_path / "in", f"train{i}", group)
        for i, (prefix, group) in enumerate(zip(("2.25*", "", "0.5*"), groups, strict=True))
    ]
    manifest = prepare(make_settings(tmp_path / "out", train=tuple(specs)))
    train = manifest.splits["train"]
    counts = collections.Counter(texts(manifest))
    often, once, half = ([counts[pair] for pair in group] for group in groups)
    assert set(often) == {2, 3} and 30 <= often.count(3) <= 70
    assert set(once) == {1}
    assert set(half) == {0, 1} and 70 <= half.count(1) <= 130
    assert train.pairs_in == 500 == train.kept + sum(train.dropped.values())
    assert train.dropped == {"weight": half.count(0)}
    assert train.repeated == 200 + often.count(3)
    assert sum(file.records for file in train.files) == train.records == sum(counts.values())
    assert collections.Counter(row_texts(manifest)) == counts
    verify(manifest)


def test_sampled_segmentations_are_in_the_rows(make_settings, tmp_path):
    manifest = prepare(make_settings(tmp_path / "out", segmentations=3, row_length=128))
    counts = collections.Counter(row_texts(manifest))
    left_out = manifest.splits["train"].rows.left_out
    assert sum(counts.values()) == 1800 - left_out and set(counts.values()) <= {1, 2, 3}
    assert left_out < 10 and len(texts(manifest)) == 600
    best = len(read_examples(manifest, "train").tokens["source"]) + 600
    # Sampling takes other, longer segmentations too.
    assert manifest.splits["train"].rows.tokens["source"] > 3.05 * best
    again = prepare(make_settings(tmp_path / "again", segmentations=3, row_length=128))
    assert again.fingerprint == manifest.fingerprint


def test_augmentation_changes_a_share_of_the_rows(make_settings, tmp_path, dataset):
    """The rows hold the perturbed examples; records and fingerprints of other datasets stay."""
    shares = ("upper:0.25", "no_final_punctuation:0.25")
    manifest = prepare(make_settings(tmp_path / "out", augment=shares))
    plain, found = (collections.Counter(row_texts(one)) for one in (dataset, manifest))
    assert sorted(texts(manifest)) == sorted(texts(dataset))
    changed = found - plain
    capitals = [pair for pair in changed.elements() if pair[0] == pair[0].upper()]
    assert all(target == target.upper() for _, target in capitals)
    assert 0.17 < len(capitals) / plain.total() < 0.33
    again = prepare(make_settings(tmp_path / "again", augment=shares))
    assert again.fingerprint == manifest.fingerprint != dataset.fingerprint
    assert "augment" not in dataset.settings
    of_steps = ("upper:0.05", "title:0.55", "typos:0.30", "no_final_punctuation:0.10")
    make_settings(tmp_path / "x", augment=of_steps)  # 1, but for rounding
    twice = ("upper:0.1", "upper:0.2")
    for wrong in (("upper",), ("lower:0.1",), ("upper:2",), ("upper:0.6", "typos:0.6"), twice):
        with pytest.raises(UsageError, match="--augment="):
            make_settings(tmp_path / "x", augment=wrong)


def test_separate_and_given_vocabularies(make_settings, tmp_path, dataset):
    separate = prepare(make_settings(tmp_path / "separate", joint_vocabulary=False, vocab_size=290))
    source, target = separate.tokenizers.values()
    assert (source.file, target.file) == ("tokenizer.source.model", "tokenizer.target.model")
    assert source.sha256 != target.sha256
    assert sorted(texts(separate)) == sorted(texts(dataset))
    given = tuple(str(tmp_path / "separate" / info.file) for info in (source, target))
    again = prepare(make_settings(tmp_path / "given", joint_vocabulary=False, tokenizer=given))
    assert again.fingerprint == separate.fingerprint
    with pytest.raises(UsageError, match="expected two models"):
        make_settings(tmp_path / "x", joint_vocabulary=False, tokenizer=given[:1])


@pytest.mark.parametrize("stage", ["clean", "merge", "encode", "shard"])
def test_goes_on_where_it_was_killed(make_settings, dataset, tmp_path, monkeypatch, stage, capsys):
    """Interrupted after every stage: the finished parts are not done again; the bytes are equal."""

    class Stop(BaseException):
        pass

    done = []
    original = job.Job._map

    def stop_after(self, label, *arguments, **options):
        result = original(self, label, *arguments, **options)
        done.append(label)
        if label == stage and not stopped:
            stopped.append(label)
            raise Stop
        return result

    stopped: list[str] = []
    monkeypatch.setattr(job.Job, "_map", stop_after)
    with pytest.raises(Stop):
        prepare(make_settings(tmp_path / "out"))
    assert (tmp_path / "out" / WORK_DIR / "plan.json").exists()
    cleaned = []
    monkeypatch.setattr(stages.CleanTask, "run", lambda *_: cleaned.append(1))
    prepare(make_settings(tmp_path / "out"))
    assert "continues from what an interrupted job has left" in capsys.readouterr().out
    assert not cleaned
    assert contents(tmp_path / "out") == contents(dataset.directory)
    assert not (tmp_path / "out" / WORK_DIR).exists()


def test_another_plan_starts_anew(make_settings, dataset, tmp_path):
    work_dir = tmp_path / "out" / WORK_DIR
    (work_dir / "results").mkdir(parents=True)
    (work_dir / "plan.json").write_text(json.dumps({"schema": 1}))
    (work_dir / "results" / "clean-000000.json").write_text("nonsense")
    prepare(make_settings(tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(dataset.directory)


def test_killed_by_signal(make_settings, tmp_path):
    """SIGKILL at several moments, then to the end: the bytes of an undisturbed run."""
    flags = [
        "--train=builtin:train?size=4000",
        "--valid=builtin:valid?size=50",
        "--vocab_size=1500",
        "--num_shards=2",
    ]

    def start(directory: Path) -> subprocess.Popen:
        command = [sys.executable, "-m", "data_pipeline.main", *flags, f"--output_dir={directory}"]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)

    def finish(directory: Path) -> None:
        code, _, error = run_command("data_pipeline.main", *flags, f"--output_dir={directory}")
        assert code == 0, error

    finish(tmp_path / "whole")
    work_dir = tmp_path / "out" / WORK_DIR
    for stage in ("clean", "encode"):
        process = start(tmp_path / "out")
        deadline = time.monotonic() + 300
        while not list(work_dir.glob(f"results/{stage}*")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    finish(tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_opens_with_tensorflow_datasets(dataset):
    """Every split, with the text that came in and the ids of the records."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(dataset.directory)
    assert {name: info.num_examples for name, info in builder.info.splits.items()} == {
        "train": 600,
        "valid": 20,
        "test": 30,
    }
    for split in ("train", "valid", "test"):
        examples = list(tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)))
        found = [(ex["en"].decode(), ex["de"].decode()) for ex in examples]
        assert sorted(found) == sorted(texts(dataset, split))
        pairs = read_examples(dataset, split)
        by_text = dict(zip(texts(dataset, split), range(len(pairs)), strict=True))
        for pair, example in zip(found, examples, strict=True):
            source, target = pairs.example(by_text[pair]).values()
            assert example["source_ids"].tolist() == source.tolist()
            assert example["target_ids"].tolist() == target.tolist()
    supervised = builder.as_dataset(split="valid", as_supervised=True)
    source, _ = next(iter(tfds.as_numpy(supervised)))
    assert source.decode() in {source for source, _ in texts(dataset, "valid")}
