"""Files that the user has named for output."""

import os

import pytest
import tensorflow as tf

from common.errors import UsageError
from common.files import check_output, open_input, write_output


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "a [1] ü.txt"
    for content in (b"first", b"second"):
        check_output(str(path))
        write_output(str(path), content)
    assert path.read_bytes() == b"second" and os.listdir(tmp_path) == [path.name]


def test_a_place_for_no_file(tmp_path):
    with pytest.raises(UsageError, match=r"^--output=.* is a directory; name a file$"):
        check_output(str(tmp_path))
    with pytest.raises(UsageError, match=r"^--output=.*/no/x: its directory does not exist"):
        check_output(str(tmp_path / "no" / "x"))
    with pytest.raises(UsageError, match=r"^--output=/proc/x cannot be written: "):
        check_output("/proc/x")
    check_output(str(tmp_path / "x"))
    assert not os.listdir(tmp_path)


def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "in.txt").write_bytes(b"a\r\n\xff")
    with open_input(str(tmp_path / "in.txt")) as file:
        assert os.read(file.fileno(), 9) == b"a\r\n\xff"
    for path, problem in ((tmp_path, "Is a directory"), (tmp_path / "no", "No such file")):
        with pytest.raises(UsageError, match=f"^--input={path} cannot be read: {problem}"):
            open_input(str(path))


def test_a_remote_file_is_read_from_a_copy():
    with tf.io.gfile.GFile("ram://in.txt", "wb") as file:
        file.write(b"a\nb\n")
    with open_input("ram://in.txt") as file:
        assert os.read(file.fileno(), 9) == b"a\nb\n"
    with pytest.raises(UsageError, match=r"^--input=ram://no\.txt cannot be read: "):
        open_input("ram://no.txt")


def test_a_full_device():
    with pytest.raises(UsageError, match=r"^--output=/dev/full cannot be written: .*No space left"):
        write_output("/dev/full", b"text")
    assert not os.path.isfile("/dev/full")


def test_a_device_is_written_to_and_not_replaced():
    check_output("/dev/null")
    write_output("/dev/null", b"text")
    assert not os.path.isfile("/dev/null")
