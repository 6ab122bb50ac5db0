"""A disk that becomes full while the data job writes."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_FLAGS = (
    "--train=builtin:train?size=1500",
    "--valid=builtin:valid?size=20",
    "--test=builtin:test?size=20",
    "--vocab_size=600",
    "--num_shards=2",
    "--row_length=64",
)


def _run(directory: Path, most_bytes: int | None = None) -> subprocess.CompletedProcess:
    def limit() -> None:
        if most_bytes:
            # Stands in for a full disk without the right to mount one: no file may be larger.
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return subprocess.run(
        [sys.executable, "-m", "data_pipeline.main", *_FLAGS, f"--output_dir={directory}"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """A dataset made with all the room there is."""
    directory = tmp_path_factory.mktemp("undisturbed") / "data"
    done = _run(directory)
    assert done.returncode == 0, done.stderr
    return _contents(directory)


@pytest.mark.parametrize("most_bytes", [30_000, 100_000])
def test_full_and_then_mended(undisturbed, tmp_path, most_bytes):
    """One line, no dataset; with room again the same command makes the same bytes."""
    assert max(map(len, undisturbed.values())) > most_bytes
    directory = tmp_path / "data"
    done = _run(directory, most_bytes)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1 and "Traceback" not in done.stderr
    assert "File too large" in errors[0] and "start the same command again" in errors[0]
    assert not (directory / "dataset.json").exists()
    done = _run(directory)
    assert done.returncode == 0, done.stderr
    assert "goes on with what an interrupted job has left" in done.stdout
    assert _contents(directory) == undisturbed
