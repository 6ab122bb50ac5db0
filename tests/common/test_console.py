"""Messages: one line, and no end of a run because of the log."""

import errno
import sys

import pytest
import tensorflow as tf

from common.console import error_text, say, warn


class Full:
    """A log on a disk that is full, or behind a pipe that is closed."""

    def __init__(self, number: int):
        self._number = number

    def write(self, text: str) -> None:
        raise OSError(self._number, "cannot")

    def flush(self) -> None:
        pass


def test_a_log_on_a_full_disk(monkeypatch):
    for number in (errno.ENOSPC, errno.EDQUOT):
        monkeypatch.setattr(sys, "stdout", Full(number))
        monkeypatch.setattr(sys, "stderr", Full(number))
        say("text")
        warn("text")


def test_a_closed_pipe_ends_the_program(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full(errno.EPIPE))
    with pytest.raises(BrokenPipeError):
        say("text")


def test_warn(capsys):
    warn("two\n lines")
    assert capsys.readouterr().err == "warning: two lines\n"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            tf.errors.OutOfRangeError(
                None, None, "{{function_node __wrapped__SaveV2}} a/b; No space [Op:SaveV2]"
            ),
            "a/b; No space",
        ),
        (OSError(28, "No space", "a/b"), "[Errno 28] No space: 'a/b'"),
        (ValueError(), "ValueError"),
    ],
)
def test_error_text(error, text):
    assert error_text(error) == text
