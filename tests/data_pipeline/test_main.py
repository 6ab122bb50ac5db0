"""The whole job, in this process where possible."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UsageError
from data_pipeline import job, vocabulary
from data_pipeline.dataset.examples import load_tokenizers, read_examples, read_raw_text
from data_pipeline.dataset.manifest import Manifest, load_manifest
from data_pipeline.dataset.normalization import normalize_text
from data_pipeline.dataset.verify import verify
from data_pipeline.job import prepare
from tests.commands import own_lines, run_command

ROOT = Path(__file__).resolve().parents[2]


def contents(directory: str | Path) -> dict[str, bytes]:
    """Returns name -> bytes of every file below a directory."""
    root = Path(directory)
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def decoded(manifest: Manifest, split: str) -> list[tuple[str, str]]:
    """Returns the text of the records of a split."""
    tokenizer = load_tokenizers(manifest)["source"]
    pairs = read_examples(manifest, split)
    return [tuple(tokenizer.decode(list(pairs.example(i).values()))) for i in range(len(pairs))]


def run_main(*arguments: str) -> subprocess.CompletedProcess:
    """Runs the command."""
    return subprocess.run(
        [sys.executable, "-m", "data_pipeline.main", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def error_line(*arguments: str) -> str:
    """Run the command in this process; return its one line on standard error, with code 2."""
    code, _, error = run_command("data_pipeline.main", *arguments)
    assert code == 2, error
    (line,) = error.splitlines()
    assert line.startswith("error: ")
    return line


def test_records_hold_the_text(dataset, sentences):
    train = sentences(600, 0)
    assert sorted(decoded(dataset, "train")) == sorted(train)
    assert decoded(dataset, "train") != train  # it is shuffled
    for seed, split in ((1, "valid"), (2, "test")):
        expected = sentences({"valid": 20, "test": 30}[split], seed)
        assert decoded(dataset, split) == expected  # in order
        assert list(zip(*read_raw_text(dataset, split).values(), strict=True)) == expected


def test_directory_holds_the_contract_and_nothing_else(dataset):
    assert sorted(contents(dataset.directory)) == [
        "dataset.json",
        "dataset_info.json",
        "features.json",
        "test-00000-of-00001.tfrecord",
        "test.de.txt",
        "test.en.txt",
        "tokenizer.model",
        "train-00000-of-00003.tfrecord",
        "train-00001-of-00003.tfrecord",
        "train-00002-of-00003.tfrecord",
        "train-rows-00000-of-00003.tfrecord",
        "train-rows-00001-of-00003.tfrecord",
        "train-rows-00002-of-00003.tfrecord",
        "valid-00000-of-00001.tfrecord",
        "valid.de.txt",
        "valid.en.txt",
    ]


def test_every_drop_is_counted(make_settings, tmp_path, sentences, write_text):
    good = sentences(200)
    decomposed = ("the cafe\u0301 today", "das Cafe\u0301 heute")
    bad = [
        ("", "leer"),
        ("the dog", " \u00a0\t"),
        ("", ""),
        ("x" * 1_000_000, "der Hund"),  # a line of 1 MB
        ("the dog", "y" * 1_000_000),
        ("no", "der rote Hund " * 10),
        ("the dog sees " * 10, "der Hund sieht " * 10),  # 30 words, at most 20 tokens
        good[0],
        (f" {good[0][0]}\u2028", good[0][1].replace(" ", "\u00a0 ")),  # the same when normalised
        good[7],
        (good[1][0], good[2][1]),  # half of two others: kept
        decomposed,
        ("the café today", "das Café heute"),  # the same in NFC
    ]
    directory = tmp_path / "in"
    spec = write_text(directory, "dirty", good + bad)
    for path in directory.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    manifest = prepare(make_settings(tmp_path / "out", train=(spec,), max_tokens=20))
    train = manifest.splits["train"]
    assert train.pairs_in == 213
    assert train.dropped["empty"] == 3
    assert train.dropped["too_many_characters"] == 2
    assert train.dropped["length_ratio"] == 1
    assert train.dropped["duplicate"] == 4
    # Pieces differ from machine to machine, but not what is left and what was counted.
    assert train.dropped["too_many_tokens"] >= 1
    assert train.kept + sum(train.dropped.values()) == 213
    assert max(info.max_length for info in train.sequences.values()) <= 20
    texts = decoded(manifest, "train")
    assert len(texts) == len(set(texts)) == train.kept
    assert all(side == normalize_text(side) for pair in texts for side in pair)
    saved = json.loads((tmp_path / "out" / "dataset.json").read_text())["splits"]["train"]
    assert saved["pairs_in"] == saved["kept"] + sum(saved["dropped"].values())
    verify(manifest)


def test_valid_and_test_are_kept_whole(make_settings, tmp_path, write_text):
    raw = [
        ("the dog", "der Hund"),
        ("", "leer"),
        ("the dog", "der Hund"),
        ("odd\u2028line\x0b\x85 here", "eine\rZeile"),
        ("word " * 300, "x"),
        ("cafe\u0301", " Café 😀 "),
    ]
    spec = write_text(tmp_path / "in", "test", raw)
    manifest = prepare(make_settings(tmp_path / "out", test=(spec,)))
    test = manifest.splits["test"]
    assert (test.pairs_in, test.kept, test.dropped) == (6, 6, {})
    assert list(zip(*read_raw_text(manifest, "test").values(), strict=True)) == raw
    expected = [tuple(map(normalize_text, pair)) for pair in raw]
    assert decoded(manifest, "test") == expected
    assert len(read_examples(manifest, "test").example(1)["source"]) == 0


@pytest.mark.slow
def test_same_bytes_again_and_with_two_workers(dataset, make_settings, tmp_path, monkeypatch):
    # Workers are other processes: this shows as well that the steps work there.
    monkeypatch.setattr("data_pipeline.sources.chunk.CHUNK_LINES", 100)
    prepare(make_settings(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(dataset.directory)
    prepare(make_settings(tmp_path / "two"), ["--direct_num_workers=2"])
    assert contents(tmp_path / "two") == contents(dataset.directory)


def test_order_of_input_and_number_of_shards_do_not_change_the_records(
    dataset, make_settings, tmp_path, sentences, write_text
):
    spec = write_text(tmp_path / "in", "train", sentences(600, 0)[::-1])
    other = prepare(make_settings(tmp_path / "out", train=(spec,), num_shards=2))
    assert other.tokenizers["source"] == dataset.tokenizers["source"]
    assert sorted(decoded(other, "train")) == sorted(decoded(dataset, "train"))
    assert other.fingerprint != dataset.fingerprint


def test_seed_changes_the_order(dataset, make_settings, tmp_path):
    other = prepare(make_settings(tmp_path / "out", seed=2))
    assert sorted(decoded(other, "train")) == sorted(decoded(dataset, "train"))
    assert decoded(other, "train") != decoded(dataset, "train")


def test_more_shards_than_pairs_and_several_sources(make_settings, tmp_path, sentences, write_text):
    first = write_text(tmp_path / "in", "first", sentences(6, 5))
    second = tmp_path / "in" / "second.tsv.gz"
    lines = "".join(f"{a}\t{b}\tmore\n" for a, b in sentences(5, 6))
    second.write_bytes(gzip.compress(lines.encode()))
    settings = make_settings(
        tmp_path / "out",
        train=(first, f"tsv:{second}"),
        valid=(),
        test=(),
        num_shards=40,
        vocab_size=300,
        model_type="bpe",
    )
    manifest = prepare(settings)
    assert len(manifest.splits["train"].files) == 40
    assert 0 in [file.records for file in manifest.splits["train"].files]
    assert sorted(decoded(manifest, "train")) == sorted(sentences(6, 5) + sentences(5, 6))
    assert list(manifest.splits) == ["train"]
    verify(load_manifest(manifest.directory))


def test_tokenizer_sample_is_bounded(make_settings, tmp_path, monkeypatch, sentences):
    seen = []
    train = vocabulary.train

    def spy(texts, *arguments, **options):
        seen.extend(texts)
        return train(iter(seen), *arguments, **options)

    monkeypatch.setattr(vocabulary, "train", spy)
    manifest = prepare(make_settings(tmp_path / "out", tokenizer_sample=100))
    assert len(seen) == 200
    # The first 100 pairs of the shuffled order, so they come from all over the corpus.
    pairs = list(zip(seen[::2], seen[1::2], strict=True))
    assert pairs == decoded(manifest, "train")[:100]
    places = [sentences(600, 0).index(pair) for pair in pairs]
    assert 200 < sum(places) / 100 < 400 and max(places) > 500


def test_running_again_does_nothing(dataset, make_settings, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in sorted(Path(dataset.directory).iterdir())}
    monkeypatch.setattr(job, "Job", None)
    assert prepare(make_settings(dataset.directory)) == dataset
    assert "already finished" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in sorted(before)}


def test_changed_settings_are_refused(dataset, make_settings):
    before = contents(dataset.directory)
    with pytest.raises(UsageError, match=r"vocab_size was 305, now 304\).*--overwrite"):
        prepare(make_settings(dataset.directory, vocab_size=304))
    with pytest.raises(UsageError, match=r"the text of test is another\).*--overwrite"):
        prepare(make_settings(dataset.directory, test=()))
    assert contents(dataset.directory) == before


def test_changed_input_is_refused_and_overwrite_replaces(
    make_settings, tmp_path, sentences, write_text
):
    spec = write_text(tmp_path / "in", "train", sentences(100))
    settings = make_settings(tmp_path / "out", train=(spec,))
    prepare(settings)
    write_text(tmp_path / "in", "train", sentences(101))
    with pytest.raises(UsageError, match="the text of train is another"):
        prepare(settings)
    changed = make_settings(tmp_path / "out", train=(spec,), num_shards=2, overwrite=True, test=())
    assert prepare(changed).splits["train"].kept == 101
    names = sorted(contents(tmp_path / "out"))
    assert [name for name in names if name.startswith(("train-0", "test"))] == [
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
    ]
    verify(load_manifest(str(tmp_path / "out")))


def test_a_finished_dataset_that_lost_a_file_is_not_passed_for_finished(make_settings, tmp_path):
    settings = make_settings(tmp_path / "out")
    prepare(settings)
    (tmp_path / "out" / "train-00001-of-00003.tfrecord").unlink()
    with pytest.raises(UsageError, match=r"train-00001-of-00003\.tfrecord: no such file"):
        prepare(settings)


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


@pytest.mark.parametrize(
    "place",
    [
        (job.Job, "_clean"),
        (job, "make_tokenizers"),
        (job.Job, "_encode"),
        (job, "publish"),
    ],
    ids=lambda place: place[1],
)
def test_failure_leaves_no_dataset_and_the_next_run_is_right(
    place, dataset, make_settings, tmp_path, monkeypatch
):
    def fail(*arguments):
        raise Killed

    settings = make_settings(tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(*place, fail)
        with pytest.raises(Killed):
            prepare(settings)
    assert "dataset.json" not in contents(tmp_path)
    prepare(settings)
    assert contents(tmp_path / "out") == contents(dataset.directory)


@pytest.mark.parametrize("renames", [0, 5])
def test_killed_while_publishing(renames, dataset, make_settings, tmp_path, monkeypatch):
    out = tmp_path / "out"
    prepare(make_settings(out, num_shards=5))
    monkeypatch.setattr(Manifest, "save", lambda manifest: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        prepare(make_settings(out, overwrite=True))
    assert "dataset.json" not in contents(out)
    for name in sorted(contents(out))[renames:]:
        if not name.startswith("_incomplete"):
            (out / name).unlink()
    monkeypatch.undo()
    prepare(make_settings(out))
    assert contents(out) == contents(dataset.directory)


def test_leftovers_of_a_killed_run_are_removed(dataset, make_settings, tmp_path, write_text):
    work = tmp_path / "out" / "_incomplete"
    work.mkdir(parents=True)
    (work / "train-00000.txt").write_text("rubbish")
    (work / "_incomplete-12ab-x").write_text("rubbish")
    (tmp_path / "out" / "train-00000-of-00099.tfrecord").write_text("rubbish")
    prepare(make_settings(tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(dataset.directory)


def test_somebody_elses_directory_is_left_alone(make_settings, tmp_path, write_text):
    (tmp_path / "valid.en.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds files but no dataset \(valid\.en\.txt"):
        prepare(make_settings(tmp_path))
    with pytest.raises(UsageError, match="is a file"):
        prepare(make_settings(tmp_path / "valid.en.txt"))
    assert contents(tmp_path) == {"valid.en.txt": b"mine"}


def test_command(corpus, dataset, tmp_path):
    flags = [f"--{split}={spec}" for split, spec in corpus.items()]
    flags += ["--vocab_size=305", "--num_shards=3", f"--output_dir={tmp_path / 'out'}"]
    result = run_main(*flags, "--runner=DirectRunner")
    assert (result.returncode, own_lines(result.stderr)) == (0, [])
    for words in ("tokenizer", "pairs in", "600", "packed rows", str(tmp_path / "out")):
        assert words in result.stdout
    assert contents(tmp_path / "out") == contents(dataset.directory)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output_dir=s3://b/x"], "File system scheme 's3' not implemented"),
        (["--tokenizer=s3://b/t.model"], "File system scheme 's3' not implemented"),
        (["--task=classification", "--target_lang=fr"], "--target_lang does nothing with --task=c"),
        (["--documents=line"], "--documents does nothing with --task=translation"),
        (["--tokenizer=t.model", "--vocab_size=300"], "--vocab_size is for training a tokenizer"),
        (["--tokenizer=t.model", "--nobyte_fallback"], "--byte_fallback is for training a tokeni"),
    ],
)
def test_what_a_flag_cannot_do_is_one_line(corpus, tmp_path, flags, message):
    line = error_line(f"--output_dir={tmp_path / 'out'}", *flags, f"--train={corpus['train']}")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_command_tells_errors_in_one_line(corpus, tmp_path):
    (tmp_path / "bad.en").write_bytes(b"fine\n\xc3(\n")
    (tmp_path / "bad.de").write_bytes(b"gut\ngut\n")
    out = f"--output_dir={tmp_path / 'out'}"
    line = error_line(f"--train=text:{tmp_path}/bad.en,{tmp_path}/bad.de", out)
    assert f"{tmp_path}/bad.en, line 2: not valid UTF-8" in line
    assert not (tmp_path / "out").exists()
    line = error_line(f"--train={corpus['train']}", out, "--vocab_sise=300")
    assert "--vocab_sise=300" in line
    line = error_line(f"--train={corpus['train']}", out, "--vocab_size=many")
    assert "vocab_size" in line
