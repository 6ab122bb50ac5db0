"""Lines from a pipe: answered as they come, and what is wrong with some of them."""

import os
import threading

import pytest

from trainer.decoding.lines import LineReader, Progress, split_sentences


@pytest.fixture
def pipe():
    """The two ends of a pipe, as files without buffers."""
    read, write = os.pipe()
    with open(read, "rb", 0) as reading, open(write, "wb", 0) as writing:
        yield reading, writing


def read_all(pipe, content: bytes, most: int = 100) -> tuple[list[list[str]], LineReader]:
    reading, writing = pipe
    writer = threading.Thread(target=lambda: (writing.write(content), writing.close()))
    writer.start()
    reader = LineReader(reading.fileno(), most)
    pieces = list(reader.batches())
    writer.join()
    return pieces, reader


def joined(pieces: list[list[str]]) -> list[str]:
    return [line for piece in pieces for line in piece]


def test_a_line_is_there_before_the_next_one_is_written(pipe):
    """As a program wants it that talks to the command line by line."""
    reading, writing = pipe
    pieces = LineReader(reading.fileno(), 100).batches()
    for line in ("Today is Monday.", "", "Today is Friday."):
        writing.write(f"{line}\n".encode())
        assert next(pieces) == [line]
    writing.write(b"half a li")
    writing.write(b"ne")
    writing.close()
    assert next(pieces) == ["half a line"]
    assert list(pieces) == []


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"a", ["a"]),
        (b"a\n\n b \n", ["a", "", " b "]),
        (b"\xef\xbb\xbfa\nb\n", ["a", "b"]),
        ("a\u2028b\x00c\u0085d\n".encode(), ["a\u2028b\x00c\u0085d"]),
        (b"a\r\nb\r\n", ["a\r", "b\r"]),
    ],
)
def test_only_a_line_feed_ends_a_line(pipe, capsys, content, lines):
    pieces, reader = read_all(pipe, content)
    assert joined(pieces) == lines and reader.lines == len(lines)
    assert capsys.readouterr().err == ""


def test_long_input_comes_in_pieces(pipe):
    """More than a pipe holds, in lines that blocks cut."""
    lines = [f"{number} " * 50 for number in range(2000)]
    pieces, _ = read_all(pipe, "\n".join(lines).encode(), most=300)
    assert joined(pieces) == lines and max(map(len, pieces)) <= 300


def test_carriage_returns_alone_are_line_ends_with_a_warning(pipe, capsys):
    pieces, _ = read_all(pipe, b"one\rtwo\r\rthree\r")
    assert joined(pieces) == ["one", "two", "", "three"]
    (warning,) = capsys.readouterr().err.splitlines()
    assert "no line feed, but 3 carriage return(s)" in warning


def test_lines_that_are_not_utf8_are_empty_and_counted(pipe, capsys):
    pieces, reader = read_all(pipe, b"fine\n\xff\nM\xfcnchen\nend\n")
    assert joined(pieces) == ["fine", "", "", "end"]
    reader.warn_of_encoding()
    (warning,) = capsys.readouterr().err.splitlines()
    assert "2 of 4 lines are not UTF-8" in warning


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(tmp_path, capsys, monkeypatch, terminal):
    """Of a file: lines, speed and the share that is done; on a terminal in one place."""
    (tmp_path / "in.txt").write_bytes(b"one\n\nthree\nfour\n")
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    now = iter([100.0, 100.5, 125.0, 125.0, 130.0, 130.0, 130.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    with open(tmp_path / "in.txt", "rb") as file:
        reader = LineReader(file.fileno(), 2)
        progress = Progress(reader, file.fileno())
        pieces = reader.batches()
        next(pieces)
        progress.add(0.5)  # at 100.5
        progress.add(0.5)  # at 125
        next(pieces)
        progress.end_batch()  # at 130
        progress.end()
    said = ["1 lines, 0.0 a second, 16%", "4 lines, 0.1 a second, 100%"]
    if terminal:
        assert [part.rstrip(" ") for part in capsys.readouterr().err.split("\r")] == [
            "",
            said[0],
            said[1],
            f"{said[1]:<60}\n",
        ]
    else:
        assert capsys.readouterr().err.splitlines() == [said[0], said[1]]


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        ("One. Two!  Three? four", ["One.", "Two!", "Three? four"]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        ("Mr. Smith met J. R. Ewing. It rained.", ["Mr. Smith met J. R. Ewing.", "It rained."]),
        ("At 3.5 percent, e.g. here", ["At 3.5 percent, e.g. here"]),
        ("Wait\u2026 What? \u00c4pfel.", ["Wait\u2026", "What?", "\u00c4pfel."]),
        ("\u4f60\u597d\u3002\u518d\u89c1\uff01", ["\u4f60\u597d\u3002", "\u518d\u89c1\uff01"]),
        ("", [""]),
        (" ", [" "]),
    ],
)
def test_sentences_of_a_line(line, sentences):
    assert split_sentences(line) == sentences
