import io
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from data_pipeline import inspect
from data_pipeline.errors import UsageError
from data_pipeline.manifest import SideInfo
from data_pipeline.pipeline import prepare
from data_pipeline.records import read_raw_text

ROOT = Path(__file__).resolve().parents[2]


def shown(directory: str, samples: int = 2) -> str:
    """Returns what `inspect` prints."""
    output = io.StringIO()
    inspect.inspect(directory, samples, Console(width=100, file=output))
    return output.getvalue()


def test_shows_counts_lengths_and_samples(dataset):
    text = shown(dataset.directory)
    lines = [line.split() for line in text.splitlines()]
    train = dataset.splits["train"]
    counts = [f"{train.source.tokens:,}", f"{train.target.tokens:,}"]
    assert any(line[:6] == ["train", "600", "600", "0", *counts] for line in lines)
    lengths = next(line for line in lines if line[:2] == ["train", "en"])
    assert lengths[2] == f"{train.source.tokens / 600:.1f}"
    assert lengths[5] == str(train.source.max_length)
    assert lengths[6:] == ["0.000%", "0.000%"]
    assert ["duplicate", "0"] in lines
    assert text.count("▁") > 20


def test_number_of_samples(dataset):
    by_number = [shown(dataset.directory, samples).count("▁the") for samples in (0, 3, 1000)]
    assert by_number[0] == 0 < by_number[1] < by_number[2]


def test_percentile():
    side = SideInfo(tokens=0, max_length=50, lengths=((1, 50), (2, 44), (9, 1), (50, 5)))
    assert [inspect.percentile(side, share) for share in (0.0, 0.5, 0.51, 0.95, 1.0)] == [
        1,
        1,
        2,
        9,
        50,
    ]
    assert inspect.percentile(SideInfo(0, 0, ()), 0.5) == 0


def test_usage(dataset):
    for argv in (["inspect"], ["inspect", "a", "b"]):
        with pytest.raises(UsageError, match="expected one dataset directory"):
            inspect.main(argv)


def run(directory: Path | str) -> subprocess.CompletedProcess:
    """Runs the command."""
    return subprocess.run(
        [sys.executable, "-m", "data_pipeline.inspect", str(directory), "--samples=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command(dataset, tmp_path):
    result = run(dataset.directory)
    assert (result.returncode, result.stderr) == (0, "")
    assert "every checksum and record is right" in result.stdout
    copy = Path(shutil.copytree(dataset.directory, tmp_path / "copy"))
    shard = copy / "train-00002-of-00003.tfrecord"
    content = bytearray(shard.read_bytes())
    content[100] ^= 4
    shard.write_bytes(content)
    result = run(copy)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and shard.name in line and "--overwrite" in line


def test_two_vocabularies(make_settings, tmp_path):
    """Each side is shown in the pieces of its own: read with the other's, it would be nonsense."""
    made = prepare(make_settings(tmp_path / "two", joint_vocabulary=False, vocab_size=295))
    text = shown(made.directory)
    assert "vocabularies 295 (unigram) source, 295 (unigram) target" in text
    source, target = read_raw_text(made, "valid")
    assert f"  {source[0]}\n" in text and f"  {target[0]}\n" in text
