import gzip
from pathlib import Path

import pytest

from data_pipeline import sources
from data_pipeline.errors import UsageError
from data_pipeline.sources import BuiltinSource, TextSource, TsvSource, parse_spec


def read(spec: str) -> list[tuple[str, str]]:
    """Returns all pairs of a spec."""
    found = parse_spec(spec, "en", "de")
    return [pair for source in found for chunk in source.chunks() for pair in chunk.pairs()]


def write(path: Path, content: bytes) -> str:
    """Writes a file (through gzip if its name ends so); returns its path."""
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_text(tmp_path, suffix):
    source = write(tmp_path / f"a.en{suffix}", b"one\ntwo\nthree")
    target = write(tmp_path / f"a.de{suffix}", "eins\nzwölf\ndrei\n".encode())
    assert read(f"text:{source},{target}") == [("one", "eins"), ("two", "zwölf"), ("three", "drei")]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_tsv_takes_the_first_two_columns(tmp_path, suffix):
    path = write(tmp_path / f"a.tsv{suffix}", b"a\tb\tlicence\tx\n\"c\t'd\n\t\n")
    assert read(f"tsv:{path}") == [("a", "b"), ('"c', "'d"), ("", "")]


def test_only_newline_ends_a_line(tmp_path):
    odd = "x\u2028y\u2029\u0085z\x0b\x0c\x1c\u00a0w\rv"
    source = write(tmp_path / "a.en", f"{odd}\nsecond\n".encode())
    target = write(tmp_path / "a.de", b"eins\nzwei\n")
    assert read(f"text:{source},{target}") == [(odd, "eins"), ("second", "zwei")]


def test_crlf_byte_order_mark_and_empty_lines(tmp_path):
    source = write(tmp_path / "a.en", b"\xef\xbb\xbfone\r\n\r\nthree\r\n")
    target = write(tmp_path / "a.de", b"eins\n\ndrei\r")
    assert read(f"text:{source},{target}") == [("one", "eins"), ("", ""), ("three", "drei")]


def test_globs_pair_in_alphabetical_order(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.en", f"{name} en\n".encode())
        write(tmp_path / f"{name}.de", f"{name} de\n".encode())
    assert read(f"text:{tmp_path}/*.en,{tmp_path}/*.de") == [("a en", "a de"), ("b en", "b de")]
    write(tmp_path / "c.en", b"c\n")
    with pytest.raises(UsageError, match=r"matches 3 files but .* matches 2"):
        parse_spec(f"text:{tmp_path}/*.en,{tmp_path}/*.de", "en", "de")


def test_chunks_know_their_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CHUNK_LINES", 4)
    path = write(tmp_path / "a.tsv", b"".join(b"%d\tx\n" % i for i in range(10)))
    chunks = list(TsvSource(path).chunks())
    assert [(chunk.first_line, len(chunk.pairs())) for chunk in chunks] == [(1, 4), (5, 4), (9, 2)]
    monkeypatch.setattr(sources, "CHUNK_BYTES", 6)  # two lines of "n\tx"
    assert [chunk.first_line for chunk in TsvSource(path).chunks()] == [1, 3, 5, 7, 9]


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
    target = write(tmp_path / "a.de.gz", b"\n".join(lines))
    with pytest.raises(UsageError) as caught:
        read(f"text:{source},{target}")
    assert f"{target}, line {line}: not valid UTF-8 (byte 0xff)" in str(caught.value)


def test_tsv_line_without_tab(tmp_path):
    path = write(tmp_path / "a.tsv", b"a\tb\nno tab here\n")
    with pytest.raises(UsageError, match=r"a\.tsv, line 2: no tab"):
        read(f"tsv:{path}")


def test_damaged_gzip(tmp_path):
    path = tmp_path / "a.tsv.gz"
    whole = gzip.compress(b"".join(b"%d\tx\n" % (i * i) for i in range(1000)))
    for content in (
        whole[: len(whole) // 2],
        b"not gzip at all",
        whole[:500] + b"xx" + whole[502:],
    ):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"a\.tsv\.gz: damaged gzip file"):
            read(f"tsv:{path}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("parquet:x", "unknown kind of source; known ones start with text:, tsv:, builtin:"),
        ("train.en", "unknown kind of source"),
        ("", "unknown kind of source"),
        ("text:only_one", "expected two files"),
        ("text:a,b,c", "expected two files"),
        ("text:a,", "expected two files"),
        ("text:/nowhere/a,/nowhere/b", "/nowhere/a: no such file"),
        ("tsv:/nowhere/*.tsv", "no such file"),
        ("tsv:", "expected a file"),
        ("tsv:/", "is a directory"),
        ("builtin:dev", "expected builtin:train"),
        ("builtin:train?count=5", "unknown option 'count'"),
        ("builtin:train?size=many", "size must be a whole number"),
        ("builtin:train?size=0", "size must be at least 1"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UsageError, match=message.replace("?", r"\?").replace("*", r"\*")):
        parse_spec(spec, "en", "de")


def test_builtin_options():
    assert parse_spec("builtin:train", "en", "fr") == [
        BuiltinSource("train", 50_000, 1, "en", "fr")
    ]
    assert parse_spec("builtin:test?size=7&seed=3", "en", "de") == [
        BuiltinSource("test", 7, 3, "en", "de")
    ]


def test_builtin_chunks(monkeypatch):
    from data_pipeline import builtin_corpus

    def generate(split, size, seed=1, source_locale="en", target_locale="de"):
        for i in range(size):
            yield f"{split} {seed} {source_locale} {i}", f"ü {target_locale} {i}"

    monkeypatch.setattr(builtin_corpus, "generate", generate)
    pairs = read("builtin:valid?size=3&seed=5")
    assert pairs == [(f"valid 5 en {i}", f"ü de {i}") for i in range(3)]


def test_fingerprint_is_of_the_content(tmp_path):
    a, b = (write(tmp_path / name, b"x\n") for name in "ab")
    before = TextSource(a, b).fingerprint()
    assert TextSource(b, a).fingerprint() == before
    write(tmp_path / "b", b"y\n")
    assert TextSource(a, b).fingerprint() != before
    assert TsvSource(a).fingerprint() != TsvSource(b).fingerprint()
