"""Checkpoints that are damaged, and checkpoints that cannot be written."""

import json
import random
import re
import resource
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UsageError
from trainer.checkpoints import files
from trainer.checkpoints.files import Keep
from trainer.checkpoints.saver import find

_DATA = "data-00000-of-00001"
_ENDS = ("index", _DATA, "json")


@pytest.fixture
def saved(make_run, tmp_path):
    """A directory with the checkpoints of steps 1, 2 and 3; returns the values of each."""
    run = make_run(seed=1, keep=Keep(9))
    values = {}
    for step in (1, 2, 3):
        run.optimizer.iterations.assign(step)
        for variable in run.model.trainable_variables:
            variable.assign_add(np.ones(variable.shape))
        values[step] = run.values()
        run.save({"bleu": float(step)})
    return values


def _truncate(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: dice.randrange(path.stat().st_size)])


def _flip(path: Path, dice: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def _overwrite(path: Path, dice: random.Random) -> None:
    """A block of zeros or noise, as a file system leaves after a crash; the size is the same."""
    content = bytearray(path.read_bytes())
    start = dice.randrange(len(content))
    length = min(len(content) - start, dice.choice([1, 64, 4096]))
    content[start : start + length] = dice.choice([bytes(length), dice.randbytes(length)])
    path.write_bytes(content)


def _append(path: Path, dice: random.Random) -> None:
    path.write_bytes(path.read_bytes() + dice.randbytes(dice.randint(1, 100)))


def _empty(path: Path, dice: random.Random) -> None:
    path.write_bytes(b"")


def _remove(path: Path, dice: random.Random) -> None:
    path.unlink()


def _make_directory(path: Path, dice: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _take_from_before(path: Path, dice: random.Random) -> None:
    """The file belongs to another checkpoint."""
    other = path.name.replace("ckpt-3", f"ckpt-{dice.choice([1, 2])}")
    shutil.copy(path.with_name(other), path)


_DAMAGES = (_truncate, _flip, _overwrite, _append, _empty, _remove, _make_directory)
_DAMAGES += (_take_from_before,)


@pytest.mark.slow
def test_two_hundred_damages(saved, make_run, tmp_path, capfd):
    """Each is noticed, and the run goes on from the one before; or nothing was lost at all.

    Blocks that were zero before stay the same, and so does JSON with another space in it.
    """
    folder, original = tmp_path / "checkpoints", tmp_path / "original"
    folder.rename(original)
    fresh = make_run(seed=2)
    dice = random.Random(5)
    intact = 0
    for number in range(200):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
        damage = _DAMAGES[number % len(_DAMAGES)]
        path = folder / f"ckpt-3.{dice.choice(_ENDS)}"
        before = path.read_bytes()
        damage(path, dice)
        for variable in fresh.model.trainable_variables:
            variable.assign(np.full(variable.shape, 7.0))
        capfd.readouterr()
        step = fresh.checkpoints.restore()
        told = re.findall(
            r"^warning: checkpoint .*ckpt-3 .*not used$", capfd.readouterr().err, re.M
        )
        what = f"{number}: {damage.__name__} of {path.name}"
        if step == 3:
            intact += 1
            after = path.read_bytes()
            assert after == before or json.loads(after) == json.loads(before), what
            assert not told, what
        else:
            assert step == 2 and len(told) == 1, what
        for one, other in zip(saved[step], fresh.values(), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=what)
    assert intact < 10


def test_damaged_ones_are_set_aside(saved, make_run, tmp_path):
    """They do not count for what is kept, and stay; the step can be saved again."""
    folder = tmp_path / "checkpoints"
    _empty(folder / f"ckpt-3.{_DATA}", random.Random())
    run = make_run(seed=2, keep=Keep(2, best=1, metric="loss", higher=False))
    assert run.checkpoints.restore() == 2
    assert {path.name for path in folder.glob("*.damaged")} == {
        f"ckpt-3.{end}.damaged" for end in _ENDS
    }
    run.optimizer.iterations.assign(3)
    run.save()
    assert files.steps(str(folder)) == [2, 3]
    assert len(list(folder.glob("*.damaged"))) == 3
    assert make_run(seed=3).checkpoints.restore() == 3


def test_several_are_damaged(saved, make_run, tmp_path, capfd):
    folder = tmp_path / "checkpoints"
    (folder / "ckpt-3.json").write_text("{")
    (folder / "ckpt-2.index").unlink()
    assert make_run(seed=2).checkpoints.restore() == 1
    warnings = capfd.readouterr().err.splitlines()
    assert [line.split(" is damaged ")[1] for line in warnings] == [
        "(ckpt-3.json is no manifest); not used",
        "(ckpt-2.index is missing); not used",
    ]


def test_nothing_but_damaged_ones(saved, make_run, tmp_path):
    """It never starts anew without a word, not at the second start either."""
    folder = tmp_path / "checkpoints"
    for step in (1, 2, 3):
        _truncate(folder / f"ckpt-{step}.{_DATA}", random.Random(step))
    for _ in range(2):
        with pytest.raises(UsageError, match=r"all checkpoints in .* are damaged \(ckpt-3.data"):
            make_run(seed=2).checkpoints.restore()
    for which in ("best", "latest"):
        with pytest.raises(UsageError, match=r"all checkpoints in .* are damaged"):
            find(str(tmp_path), which)
    for step in (1, 2, 3):
        files.set_aside(str(folder), step)
    with pytest.raises(UsageError, match="nothing but damaged checkpoints"):
        make_run(seed=2).checkpoints.restore()


def test_checkpoints_of_an_earlier_version(make_run, tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("checkpoint", "ckpt-8.index", f"ckpt-8.{_DATA}"):
        (folder / name).write_bytes(b"old")
    with pytest.raises(UsageError, match="of an earlier version of this program"):
        make_run(seed=2).checkpoints.restore()


def test_the_next_best_one(saved, tmp_path, capfd):
    """Of a damaged best one; what is named by its path is not replaced by another."""
    folder = tmp_path / "checkpoints"
    _flip(folder / f"ckpt-3.{_DATA}", random.Random(1))
    for which in ("best", "latest"):
        assert find(str(tmp_path), which).step == 2
        assert "ckpt-3.data-00000-of-00001 has another checksum" in capfd.readouterr().err
    with pytest.raises(UsageError, match=r"ckpt-3 is damaged: .* has another checksum"):
        find(str(tmp_path), str(folder / "ckpt-3"))
    assert not list(folder.glob("*.damaged"))


def test_a_consistent_manifest_of_another_step(saved, make_run, tmp_path, capfd):
    """All files of step 1 under the names of step 3, with checksums that are right."""
    folder = tmp_path / "checkpoints"
    for end in ("index", _DATA):
        shutil.copy(folder / f"ckpt-1.{end}", folder / f"ckpt-3.{end}")
    values = json.loads((folder / "ckpt-1.json").read_text())
    (folder / "ckpt-3.json").write_text(json.dumps(values))
    assert make_run(seed=2).checkpoints.restore() == 2
    assert "ckpt-3.json is the manifest of step 1" in capfd.readouterr().err


def test_what_cannot_be_read_is_not_taken_for_damaged(saved, make_run, tmp_path, monkeypatch):
    """A missing permission, or a storage that is away, ends the start; nothing is renamed."""
    describe = files._describe

    def fail(path: str):
        if path.endswith(f"ckpt-3.{_DATA}"):
            raise tf.errors.PermissionDeniedError(None, None, "Permission denied")
        return describe(path)

    monkeypatch.setattr(files, "_describe", fail)
    with pytest.raises(UsageError, match=r"ckpt-3\.data.* cannot be read: Permission denied"):
        make_run(seed=2).checkpoints.restore()
    assert not list((tmp_path / "checkpoints").glob("*.damaged"))


@pytest.fixture
def largest_file():
    """Returns a function that limits the size of every file this process writes, in bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_write_that_fails(saved, make_run, tmp_path, largest_file, capsys, size):
    """As on a full disk: one warning, nothing half-written, what was there intact; then it works.

    20,000 bytes are enough for the manifest, but not for the data.
    """
    folder = tmp_path / "checkpoints"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    run = make_run(seed=2, keep=Keep(2))
    assert run.checkpoints.restore() == 3
    run.optimizer.iterations.assign(4)
    assert len(before[f"ckpt-1.{_DATA}"]) > 20_000
    capsys.readouterr()
    largest_file(size)
    run.save()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: checkpoint {folder}/ckpt-4 could not be written: /")
    assert line.endswith("; training goes on, and the next one is tried when it is due")
    assert run.checkpoints.failure and str(folder) in run.checkpoints.failure
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    largest_file(resource.RLIM_INFINITY)
    run.optimizer.iterations.assign(5)
    run.save()
    assert run.checkpoints.failure is None
    assert files.steps(str(folder)) == [3, 5]
    assert make_run(seed=3).checkpoints.restore() == 5


def test_what_reached_the_disk_is_read_back(make_run, tmp_path, monkeypatch):
    """A bit that is flipped on the way to the disk, before the checksums are taken.

    It is the first checkpoint, without which a run does not go on.
    """
    write = tf.train.Checkpoint.write

    def flip(self, path, *arguments):
        write(self, path, *arguments)
        _flip(Path(f"{path}.{_DATA}"), random.Random(3))

    monkeypatch.setattr(tf.train.Checkpoint, "write", flip)
    run = make_run(seed=1, step=1)
    with pytest.raises(UsageError, match=r"ckpt-1 could not be written: .*; fix that"):
        run.save()
    assert not list((tmp_path / "checkpoints").iterdir())
    assert run.checkpoints.newest is None


def test_a_bug_in_the_thread_is_not_hidden(make_run, monkeypatch):
    monkeypatch.setattr(files, "write_manifest", lambda checkpoint: 1 / 0)
    run = make_run(seed=1, step=1)
    with pytest.raises(ZeroDivisionError):
        run.save()
