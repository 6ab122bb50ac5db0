import collections
import dataclasses
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image
from rich.console import Console

from common.errors import UsageError
from data_pipeline import inspect, pictures
from data_pipeline.assembly import write_records
from data_pipeline.dataset import rows
from data_pipeline.dataset.examples import (
    describe_file,
    load_tokenizers,
    read_examples,
    read_raw_text,
)
from data_pipeline.dataset.manifest import SequenceInfo
from data_pipeline.dataset.packing import Rows
from data_pipeline.dataset.verify import verify_rows
from data_pipeline.job import prepare
from tests.commands import run_command

ROOT = Path(__file__).resolve().parents[2]


def shown(directory: str, samples: int = 2, **options) -> str:
    """Returns what `inspect` prints."""
    output = io.StringIO()
    inspect.inspect(
        directory, samples, Console(width=100, file=output, markup=False, emoji=False), **options
    )
    return output.getvalue()


def test_shows_counts_lengths_and_samples(dataset):
    text = shown(dataset.directory)
    lines = [line.split() for line in text.splitlines()]
    train = dataset.splits["train"]
    counts = [f"{train.sequences['source'].tokens:,}", f"{train.sequences['target'].tokens:,}"]
    assert any(line[:6] == ["train", "600", "600", "0", *counts] for line in lines)
    lengths = next(line for line in lines if line[:2] == ["train", "en"])
    assert lengths[2] == f"{train.sequences['source'].tokens / 600:.1f}"
    assert lengths[5] == str(train.sequences["source"].max_length)
    assert lengths[6:] == ["0.000%", "0.000%"]
    assert ["nothing", "to", "clean"] in lines
    assert text.count("▁") > 20


def test_number_of_samples(dataset):
    by_number = [shown(dataset.directory, samples).count("▁the") for samples in (0, 3, 1000)]
    assert by_number[0] == 0 < by_number[1] < by_number[2]


def test_pieces_are_counted(dataset):
    """Counts of the most frequent piece and of what the vocabulary uses, against a plain count."""
    tokenizer = load_tokenizers(dataset)["source"]
    pairs = read_examples(dataset, "train")
    counts = collections.Counter(tokenizer.pieces(pairs.tokens["source"]))
    lines = [line.split() for line in shown(dataset.directory, 0).splitlines()]
    header = lines.index(["en", "most", "en", "least", "de", "most", "de", "least"])
    (piece, count), rarest = counts.most_common(1)[0], min(counts.values())
    first = lines[header + 2]
    assert (counts[first[0]], first[1]) == (count, f"{count:,}"), piece
    assert (counts[first[2]], first[3]) == (rarest, str(rarest))
    ordinary = 305 - 256 - 4
    rare = sum(count < 100 for count in counts.values())
    row = ["en", str(ordinary), str(len(counts)), str(rare), f"({rare / len(counts):.0%})"]
    assert row in lines


def test_rows_are_described(dataset):
    info = dataset.splits["train"].rows
    full = f"{info.tokens['source'] / (info.rows * 256):.1%}"
    lines = [line.split() for line in shown(dataset.directory, 0).splitlines()]
    row = next(line for line in lines if line[:3] == [str(info.rows), "256", full])
    assert row[4:] == [f"{info.fill_rate:.1%}", "0"]


def test_length_reached():
    side = SequenceInfo(tokens=0, max_length=50, lengths=((1, 50), (2, 44), (9, 1), (50, 5)))
    shares = (0.0, 0.5, 0.51, 0.95, 1.0)
    assert [pictures.length_reached(side, share) for share in shares] == [1, 1, 2, 9, 50]
    assert pictures.length_reached(SequenceInfo(0, 0, ()), 0.5) == 0


def test_bars():
    assert inspect.bar(1, 4) == "████" and inspect.bar(0, 4) == ""
    assert inspect.bar(0.5, 3) == "█▌" and inspect.bar(1e-9, 3) == "▏"


def test_every_sentence_is_in_a_bar(dataset):
    """The last bin is open: one sentence of 250 tokens neither squeezes the others nor is lost."""
    lengths = ((3, 500), (4, 490), (12, 9), (250, 1))
    train = dataset.splits["train"]
    sequences = {**train.sequences, "source": SequenceInfo(0, 250, lengths)}
    train = dataclasses.replace(train, sequences=sequences)
    manifest = dataclasses.replace(dataset, splits={"train": train})
    bins, _, english, *_ = (list(column.cells) for column in inspect.bar_table(manifest).columns)
    assert sum(map(int, english)) == 1000 and english[-1] == "1"
    width = int(bins[0].split("-")[1]) + 1
    assert bins[-1] == f"{9 * width} or more" and width < 10


def test_without_verifying(dataset, tmp_path):
    """Sizes are compared and contents are not."""
    copy = Path(shutil.copytree(dataset.directory, tmp_path / "copy"))
    shard = copy / dataset.splits["train"].rows.files[-1].name
    content = bytearray(shard.read_bytes())
    content[100] ^= 4
    shard.write_bytes(content)
    text = shown(str(copy), verify=False)
    assert "the files have the right sizes (their content was not checked)" in text
    with pytest.raises(UsageError, match="checksum does not fit"):
        shown(str(copy))
    shard.write_bytes(content[:-1])
    with pytest.raises(UsageError, match=f"{shard.name}: has"):
        shown(str(copy), verify=False)


def test_first_pairs_only(dataset, monkeypatch):
    monkeypatch.setattr(inspect, "_FIRST_EXAMPLES", 250)
    assert "vocabulary in the first 250 pairs of train" in shown(dataset.directory, verify=False)


def read_rows(manifest) -> Rows:
    info = manifest.splits["train"].rows
    found = rows.find_blocks(manifest, info)
    blocks = [rows.read_block(found, i, info) for i in range(len(found))]
    return Rows({name: np.concatenate([b[name] for b in blocks]) for name in info.features})


def write_rows(manifest, packed: Rows, directory: Path, **fields):
    """Writes rows with right checksums; returns a manifest that has them."""
    train = manifest.splits["train"]
    path = directory / "train-rows-00000-of-00001.tfrecord"
    write_records(str(path), rows.serialize_rows(packed, "uint16"))
    info = dataclasses.replace(
        train.rows,
        files=(describe_file(str(path), path.name, len(packed)),),
        blocks=(rows.describe_blocks(str(path), train.rows.record_bytes, train.rows.block_rows),),
        **fields,
    )
    splits = {"train": dataclasses.replace(train, rows=info)}
    return dataclasses.replace(manifest, directory=str(directory), splits=splits)


def change_id(packed):
    packed.arrays["target"][3, 0] = 305


def change_padding(packed):
    packed.arrays["source"][3, -1] = 7


def drop_eos(packed):
    end = np.flatnonzero(packed.arrays["source_segments"][3] == 1)[-1]
    packed.arrays["source"][3, end] = 7


def skip_segment(packed):
    packed.arrays["target_segments"][3, packed.arrays["target_segments"][3] > 1] += 1


def leave_a_gap(packed):
    packed.arrays["source_segments"][3, 1] = packed.arrays["source"][3, 1] = 0


def empty_row(packed):
    for side in ("source", "target"):
        packed.arrays[side][3] = packed.arrays[f"{side}_segments"][3] = 0


def split_segment(packed):
    packed.arrays["source_segments"][3, 1:] += packed.arrays["source_segments"][3, 1:] > 0
    packed.arrays["source"][3, 0] = 3


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (change_id, "a target id is outside the vocabulary of 305"),
        (change_padding, "a source id stands where padding should be"),
        (drop_eos, "a source segment does not end with the end-of-sentence token"),
        (skip_segment, "target segments are not 1, 2, ... and then padding"),
        (leave_a_gap, "source segments are not 1, 2, ... and then padding"),
        (empty_row, "source segments are not 1, 2, ... and then padding"),
        (split_segment, "source and target have different numbers of segments"),
    ],
)
def test_bad_rows_with_right_checksums(dataset, tmp_path, change, problem):
    packed = read_rows(dataset)
    manifest = write_rows(dataset, packed, tmp_path)
    verify_rows(manifest, manifest.splits["train"].rows, 600)
    change(packed)
    manifest = write_rows(dataset, packed, tmp_path)
    with pytest.raises(UsageError, match=re.escape(f"(rows 0 to {len(packed) - 1}): {problem}")):
        verify_rows(manifest, manifest.splits["train"].rows, 600)


@pytest.mark.parametrize("field", ["rows", "source", "target", "left_out"])
def test_row_counts(dataset, tmp_path, field):
    info = dataset.splits["train"].rows
    if field in info.tokens:
        wrong = {"tokens": {**info.tokens, field: info.tokens[field] + 1}}
    else:
        wrong = {field: getattr(info, field) + 1}
    manifest = write_rows(dataset, read_rows(dataset), tmp_path, **wrong)
    with pytest.raises(UsageError, match="but the manifest says"):
        verify_rows(manifest, manifest.splits["train"].rows, 600)


def test_row_files_of_another_size(dataset, tmp_path):
    manifest = write_rows(dataset, read_rows(dataset), tmp_path, record_bytes=2000)
    with pytest.raises(UsageError, match="do not fit"):
        verify_rows(manifest, manifest.splits["train"].rows, 600)


def test_pictures(dataset, tmp_path):
    """The bars have the colours of their sentences, and what is padding is white."""
    text = shown(dataset.directory, 0, picture_directory=str(tmp_path / "pictures"))
    for name in ("lengths.png", "packing.png"):
        assert f"drawn: {tmp_path / 'pictures' / name}" in text
        assert image.imread(tmp_path / "pictures" / name).std() > 0.05
    segments = np.array([[1] * 10 + [2] * 10 + [0] * 20, [1] * 40])
    block = {
        f"{side}{part}": segments for side in ("source", "target") for part in ("", "_segments")
    }
    languages = {"source": "en", "target": "de"}
    path = pictures.draw_packing(block, languages, "title", str(tmp_path))
    pixels = np.round(image.imread(path)[..., :3] * 255).astype(int).reshape(-1, 3)
    blue, orange = (
        (pixels == colour).all(1).sum() for colour in ((119, 170, 221), (238, 136, 102))
    )
    assert 4.5 < blue / orange < 5.5, "50 and 10 of 80 places"
    again = pictures.draw_packing(block, languages, "title", str(tmp_path / "again"))
    assert Path(path).read_bytes() == Path(again).read_bytes()


def test_dollars_in_a_title_are_text(tmp_path):
    """As in the path of a dataset: between two of them Matplotlib would look for a formula."""
    block = {"source": np.ones([2, 4], int), "source_segments": np.ones([2, 4], int)}
    path = pictures.draw_packing(block, {"source": "en"}, r"data/$\frac$", str(tmp_path))
    assert image.imread(path).std() > 0.01


def test_pictures_that_cannot_be_written(dataset, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        UsageError, match=r"--pictures=.*/file cannot be written: .* not a dir.*; name"
    ):
        shown(dataset.directory, 0, verify=False, picture_directory=str(tmp_path / "file"))


def test_usage(dataset):
    for argv in (["inspect"], ["inspect", "a", "b"]):
        with pytest.raises(UsageError, match="expected one dataset directory"):
            inspect.main(argv)


def test_command(dataset, tmp_path):
    code, output, error = run_command("data_pipeline.inspect", dataset.directory, "--samples=1")
    assert (code, error) == (0, "")
    assert "every checksum and record is right" in output
    copy = Path(shutil.copytree(dataset.directory, tmp_path / "copy"))
    shard = copy / "train-00002-of-00003.tfrecord"
    content = bytearray(shard.read_bytes())
    content[100] ^= 4
    shard.write_bytes(content)
    code, _, error = run_command("data_pipeline.inspect", str(copy), "--samples=1")
    assert code == 2
    (line,) = error.splitlines()
    assert line.startswith("error: ") and shard.name in line and "--overwrite" in line


def test_two_vocabularies(make_settings, tmp_path):
    """Each side is shown in the pieces of its own: read with the other's, it would be nonsense."""
    made = prepare(make_settings(tmp_path / "two", joint_vocabulary=False, vocab_size=295))
    text = shown(made.directory)
    assert "vocabularies 295 (unigram) source, 295 (unigram) target" in text
    source, target = read_raw_text(made, "valid").values()
    assert f"  {source[0]}\n" in text and f"  {target[0]}\n" in text
