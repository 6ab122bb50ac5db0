"""A disk that becomes full while the data job writes."""

import resource
from pathlib import Path

import pytest

from tests.commands import run_command

_ROOT = Path(__file__).parents[2]
_FLAGS = (
    "--train=builtin:train?size=1500",
    "--valid=builtin:valid?size=20",
    "--test=builtin:test?size=20",
    "--vocab_size=600",
    "--num_shards=2",
    "--row_length=64",
)


def _run(directory: Path, most_bytes: int | None = None) -> tuple[int, str, str]:
    """Run the job; return its exit code, standard output and standard error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if most_bytes:
            # Stands in for a full disk without the right to mount one: no file may be larger.
            resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
        return run_command("data_pipeline.main", *_FLAGS, f"--output_dir={directory}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """A dataset made with all the room there is."""
    directory = tmp_path_factory.mktemp("undisturbed") / "data"
    code, _, error = _run(directory)
    assert code == 0, error
    return _contents(directory)


@pytest.mark.parametrize("most_bytes", [30_000, 100_000])
def test_full_and_then_mended(undisturbed, tmp_path, most_bytes):
    """One line, no dataset; with room again the same command makes the same bytes."""
    assert max(map(len, undisturbed.values())) > most_bytes
    directory = tmp_path / "data"
    code, _, error = _run(directory, most_bytes)
    errors = [line for line in error.splitlines() if line.startswith("error:")]
    assert code == 2, error
    assert len(errors) == 1 and "Traceback" not in error
    assert "File too large" in errors[0] and "start the same command again" in errors[0]
    assert not (directory / "dataset.json").exists()
    code, output, error = _run(directory)
    assert code == 0, error
    assert "continues from what an interrupted job has left" in output
    assert _contents(directory) == undisturbed
