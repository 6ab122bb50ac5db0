import gzip
import pickle
import random
from pathlib import Path

import pytest
import zstandard

from common.errors import UsageError
from data_pipeline.sources import chunk as chunks
from data_pipeline.sources.chunk import Chunk
from data_pipeline.sources.spec import parse_spec
from data_pipeline.sources.text_files import TextSource, TsvSource, read_blocks

PACKERS = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor(write_checksum=True).compress}
SUFFIXES = ["", ".gz", ".zst"]


def read(spec: str) -> list[tuple[str, str]]:
    """Returns all pairs of a spec."""
    found = pickle.loads(pickle.dumps(parse_spec(spec, "en", "de")))
    return [pair for source in found for chunk in source.chunks() for pair in chunk.rows()]


def write(path: Path, content: bytes) -> str:
    """Writes a file (compressed as its name says); returns its path."""
    path.write_bytes(PACKERS.get(path.suffix, bytes)(content))
    return str(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_text(tmp_path, suffix):
    source = write(tmp_path / f"a.en{suffix}", b"one\ntwo\nthree")
    target = write(tmp_path / f"a.de{suffix}", "eins\nzwölf\ndrei\n".encode())
    assert read(f"text:{source},{target}") == [("one", "eins"), ("two", "zwölf"), ("three", "drei")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tsv_takes_the_first_two_columns(tmp_path, suffix):
    path = write(tmp_path / f"a.tsv{suffix}", b"a\tb\tlicence\tx\n\"c\t'd\n\t\n")
    assert read(f"tsv:{path}") == [("a", "b"), ('"c', "'d"), ("", "")]


@pytest.mark.parametrize("text", ["", "\n", "\n\n", "a\n\nb", "a\nb\n\n", "\r\n\r\na"])
def test_lines_are_those_of_the_definition(tmp_path, text):
    expected = text.replace("\r\n", "\n").split("\n")
    if not expected[-1]:  # a newline ends a line, it does not begin one
        expected.pop()
    path = write(tmp_path / "a.en", text.encode())
    assert read(f"text:{path},{path}") == [(line, line) for line in expected]


@pytest.mark.parametrize(
    "text",
    [
        "a\tb",
        "a\tb\nc\td",
        "a\tb\tx\nc\td\ty\ne\tf\tz",
        "a\tb\nc\td\tx\ne\tf",  # one column more
        "a\tb\tx\nc\td\ne\tf\ty\tz",  # as many tabs as three lines of three columns have
        "\t\n\t\n\t",
        "\ta\n\tb\n\t\t",
        "a\tb\r\nc\td\r\n\td\r",
        "a b\tc\u2028d\ne\u0085\tf\x0b",
    ],
)
def test_tsv_columns_however_many_tabs(text):
    lines = text.replace("\r\n", "\n").removesuffix("\r").split("\n")
    expected = [tuple(line.split("\t")[:2]) for line in lines]
    chunk = Chunk(("a.tsv",), 1, (text.encode(),), fields=2)
    assert chunk.rows() == expected
    assert chunk.columns() == [[pair[0] for pair in expected], [pair[1] for pair in expected]]


@pytest.mark.parametrize(
    ("text", "line"),
    [("a b", 1), ("a\tb\nc d", 2), ("a\tb\nc d\ne\tf\tg", 2), ("\na\tb", 1), ("a\tb\tc\nd\n", 2)],
)
def test_tsv_line_without_tab(text, line):
    with pytest.raises(UsageError, match=rf"^a\.tsv, line {line + 70}: no tab"):
        Chunk(("a.tsv",), 71, (text.encode(),), fields=2).columns()


def test_only_newline_ends_a_line(tmp_path):
    odd = "x\u2028y\u2029\u0085z\x0b\x0c\x1c\u00a0w\rv"
    source = write(tmp_path / "a.en", f"{odd}\nsecond\n".encode())
    target = write(tmp_path / "a.de", b"eins\nzwei\n")
    assert read(f"text:{source},{target}") == [(odd, "eins"), ("second", "zwei")]


def test_crlf_byte_order_mark_and_empty_lines(tmp_path):
    source = write(tmp_path / "a.en", b"\xef\xbb\xbfone\r\n\r\nthree\r\n")
    target = write(tmp_path / "a.de", b"\xef\xbb\xbfeins\n\n\xef\xbb\xbfdrei\r")
    pairs = [("one", "eins"), ("", ""), ("three", "\ufeffdrei")]
    assert read(f"text:{source},{target}") == pairs
    only_mark = write(tmp_path / "b", b"\xef\xbb\xbfx")
    assert read(f"text:{only_mark},{only_mark}") == [("x", "x")]


def test_globs_pair_in_alphabetical_order(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.en", f"{name} en\n".encode())
        write(tmp_path / f"{name}.de", f"{name} de\n".encode())
    assert read(f"text:{tmp_path}/*.en,{tmp_path}/*.de") == [("a en", "a de"), ("b en", "b de")]
    write(tmp_path / "c.en", b"c\n")
    with pytest.raises(UsageError, match=r"matches 3 files but .* matches 2"):
        parse_spec(f"text:{tmp_path}/*.en,{tmp_path}/*.de", "en", "de")


def test_tsv_lists(tmp_path):
    paths = [write(tmp_path / f"{name}.tsv", f"{name}\tx\n".encode()) for name in "cab"]
    assert read(f"tsv:{paths[0]},{tmp_path}/[ab].tsv") == [("c", "x"), ("a", "x"), ("b", "x")]
    comma = write(tmp_path / "d,e.tsv", b"comma\tx\n")
    assert read(f"tsv:{comma}") == [("comma", "x")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_chunks_know_their_lines(tmp_path, monkeypatch, suffix):
    path = write(tmp_path / f"a.tsv{suffix}", b"".join(b"%d\tx\n" % i for i in range(10)))
    monkeypatch.setattr(chunks, "CHUNK_LINES", 4)
    found = list(TsvSource(path).chunks())
    assert [(chunk.first_line, len(chunk.rows())) for chunk in found] == [(1, 4), (5, 4), (9, 2)]
    assert found[1].rows() == [(str(i), "x") for i in range(4, 8)]


def test_chunks_of_long_lines_are_small(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 100_000)
    line = "x" * 9_999
    paths = [write(tmp_path / f"a.{i}", f"{line}{i}\n".encode() * 100) for i in range(2)]
    found = list(TextSource(*paths).chunks())
    # A chunk ends with the block that goes over the limit.
    assert max(len(block) for chunk in found for block in chunk.blocks) < 2 * 100_000
    assert len(found) > 5
    assert [chunk.first_line for chunk in found][1:] == [
        chunk.first_line + len(chunk.rows()) for chunk in found[:-1]
    ]
    assert [pair for chunk in found for pair in chunk.rows()] == [(f"{line}0", f"{line}1")] * 100


def test_lines_longer_than_blocks_and_sides_of_very_different_length(tmp_path):
    rng = random.Random(1)
    sides = [
        [chr(97 + rng.randrange(26)) * rng.choice([0, 1, 50, 200_000]) for _ in range(300)],
        [str(i) for i in range(300)],
    ]
    paths = [
        write(tmp_path / f"a.{i}.gz", "\n".join(side).encode()) for i, side in enumerate(sides)
    ]
    assert read(f"text:{paths[0]},{paths[1]}") == list(zip(*sides, strict=True))


@pytest.mark.parametrize("lengths", [(5, 3), (3, 5), (4, 3), (3, 4), (0, 1), (20_001, 20_000)])
def test_sides_of_different_length(tmp_path, lengths):
    paths = [
        write(tmp_path / f"a.{i}", b"x\n" * length) for i, length in enumerate(lengths, start=1)
    ]
    with pytest.raises(UsageError) as caught:
        read(f"text:{paths[0]},{paths[1]}")
    expected = f"{paths[0]} has {lengths[0]} lines but {paths[1]} has {lengths[1]}"
    assert expected in str(caught.value)


@pytest.mark.parametrize("line", [1, 2, 10_001, 12_345])
def test_invalid_utf8_names_file_and_line(tmp_path, line):
    lines = [b"gut"] * 12_345
    lines[line - 1] = b"schlecht \xff"
    source = write(tmp_path / "a.en", b"good\n" * 12_345)
    target = write(tmp_path / "a.de.zst", b"\n".join(lines))
    with pytest.raises(UsageError) as caught:
        read(f"text:{source},{target}")
    assert f"{target}, line {line}: not valid UTF-8 (byte 0xff)" in str(caught.value)


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("padding", [b"", b"\0", b"\0" * 200_000])
def test_members_are_read_to_the_end(tmp_path, suffix, padding):
    path = tmp_path / f"a{suffix}"
    parts = [b"one\n" * 50_000, b"", b"two", b"three\n" * 3]
    path.write_bytes(b"".join(map(PACKERS[suffix], parts)) + padding)
    assert b"".join(read_blocks(str(path))) == b"".join(parts)


def test_zstd_with_a_large_window(tmp_path):
    """As zstd --long=31 makes."""
    parameters = zstandard.ZstdCompressionParameters(window_log=30, compression_level=1)
    packed = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.tsv.zst"
    path.write_bytes(packed.compress(b"a\tb\n" * 9) + packed.flush())
    assert read(f"tsv:{path}") == [("a", "b")] * 9


def test_zstd_frames_to_skip(tmp_path):
    path = tmp_path / "a.zst"
    skipped = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    path.write_bytes(skipped + PACKERS[".zst"](b"text\n") + skipped)
    assert b"".join(read_blocks(str(path))) == b"text\n"


@pytest.mark.parametrize(("suffix", "kind"), [(".gz", "gzip"), (".zst", "zstd")])
def test_damaged_compression(tmp_path, suffix, kind):
    path = tmp_path / f"a.tsv{suffix}"
    whole = PACKERS[suffix](b"".join(b"%d\tx\n" % (i * i) for i in range(1000)))
    for content in (
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:5],
        whole + b"and more",
        whole + whole[:-3],
        whole[:500] + b"xx" + whole[502:],
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=rf"a\.tsv{suffix}: damaged {kind} file \(.*copy it"):
            read(f"tsv:{path}")


@pytest.mark.parametrize("suffix", PACKERS)
def test_name_and_compression_must_agree(tmp_path, suffix):
    other = {".gz": ".zst", ".zst": ".gz"}[suffix]
    for content in (b"a\tb\n", b"", PACKERS[other](b"a\tb\n")):
        (tmp_path / f"a{suffix}").write_bytes(content)
        with pytest.raises(UsageError, match=rf"a{suffix}: is not a {suffix} file, in spite of"):
            read(f"tsv:{tmp_path}/a{suffix}")
    (tmp_path / "a.tsv").write_bytes(PACKERS[suffix](b"a\tb\n"))
    with pytest.raises(UsageError, match=rf"a\.tsv: is compressed; .*ends in {suffix}$"):
        read(f"tsv:{tmp_path}/a.tsv")


def test_file_that_vanishes(tmp_path):
    with pytest.raises(UsageError, match="gone cannot be read"):
        list(TsvSource(str(tmp_path / "gone")).chunks())
    with pytest.raises(UsageError, match="gone cannot be read"):
        TsvSource(str(tmp_path / "gone")).fingerprint()


def test_fingerprint_is_of_the_content(tmp_path):
    a, b = (write(tmp_path / name, b"x\n") for name in "ab")
    before = TextSource(a, b).fingerprint()
    assert TextSource(b, a).fingerprint() == before
    write(tmp_path / "b", b"y\n")
    assert TextSource(a, b).fingerprint() != before
    assert TsvSource(a).fingerprint() != TsvSource(b).fingerprint()


@pytest.mark.parametrize("content", [b"a\rb\rc\r", b"\xef\xbb\xbfa\rb", b"a\rb\rc\rd\n"])
def test_carriage_returns_alone_are_refused(tmp_path, content):
    """Else the file would be one line, and the whole text one pair."""
    for name, other in (("en", "de"), ("de", "en")):
        write(tmp_path / f"a.{name}", content)
        write(tmp_path / f"a.{other}", b"a\nb\nc\n")
        with pytest.raises(UsageError, match=rf"a\.{name}: its lines end with carriage returns"):
            read(f"text:{tmp_path}/a.en,{tmp_path}/a.de")
    write(tmp_path / "a.tsv", content.replace(b"\r", b"\tx\r"))
    with pytest.raises(UsageError, match=r"a\.tsv: its lines end with carriage returns .*tr '"):
        read(f"tsv:{tmp_path}/a.tsv")


def test_a_carriage_return_inside_a_line_stays(tmp_path):
    write(tmp_path / "a.tsv", b"a\rb\tc\nd\te\r\nf\tg")
    assert read(f"tsv:{tmp_path}/a.tsv") == [("a\rb", "c"), ("d", "e"), ("f", "g")]
