"""Parallel text as it comes: the `--train`, `--valid` and `--test` specs.

A spec is `scheme:rest`. `SCHEMES` maps each scheme to the function that turns the rest into
sources; a source yields chunks of undecoded lines, so that reading is cheap and the work on the
text can be shared among Beam workers.
"""

import gzip
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl

from data_pipeline import files
from data_pipeline.errors import UsageError

# Beam's cost is per element, so an element is a chunk of lines; the limit in bytes keeps a chunk
# of very long lines small.
CHUNK_LINES = 10_000
CHUNK_BYTES = 8 << 20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BUILTIN_SIZES = {"train": 50_000, "valid": 1_000, "test": 1_000}
_BUILTIN_SEED = 1


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines of one source, undecoded.

    Attributes:
        paths: the file of each side (`text:`) or the one file that holds both (`tsv:`).
        first_line: number of the first line in those files, from 1.
        blocks: the lines of each file as one UTF-8 string, separated by newlines.
    """

    paths: tuple[str, ...]
    first_line: int
    blocks: tuple[bytes, ...]

    def pairs(self) -> list[tuple[str, str]]:
        """Decodes the chunk.

        Returns:
            (source, target) of every line, without line ends but otherwise as read.

        Raises:
            UsageError: a line is not UTF-8, or a TSV line has no tab; names file and line.
        """
        columns = [
            self._decode(path, block) for path, block in zip(self.paths, self.blocks, strict=True)
        ]
        if len(columns) == 2:
            return list(zip(*columns, strict=True))
        pairs = []
        for number, line in enumerate(columns[0], self.first_line):
            fields = line.split("\t", 2)
            if len(fields) < 2:
                raise UsageError(
                    f"{self.paths[0]}, line {number}: no tab; a tsv: line is source, tab, target"
                )
            pairs.append((fields[0], fields[1]))
        return pairs

    def _decode(self, path: str, block: bytes) -> list[str]:
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError as error:
            number = self.first_line + block.count(b"\n", 0, error.start)
            raise UsageError(
                f"{path}, line {number}: not valid UTF-8 (byte 0x{block[error.start]:02x}); "
                "convert the file, for example with iconv -t UTF-8"
            ) from error
        if "\r" in text:
            text = text.replace("\r\n", "\n").removesuffix("\r")
        # Only \n ends a line: str.splitlines would also cut at U+2028, \x0b, \x0c, \x85.
        return text.split("\n")


@dataclass(frozen=True)
class TextSource:
    """Two files, line by line translations of each other.

    Attributes:
        source_path: the source side, plain or `.gz`.
        target_path: the target side.
    """

    source_path: str
    target_path: str

    def chunks(self) -> Iterator[Chunk]:
        """Yields the lines of both files in order.

        Raises:
            UsageError: a file cannot be read, or the files differ in their number of lines.
        """
        for first_line, rows in _chunked(self._rows()):
            blocks = tuple(b"\n".join(side) for side in zip(*rows, strict=True))
            yield Chunk((self.source_path, self.target_path), first_line, blocks)

    def _rows(self) -> Iterator[tuple[bytes, bytes]]:
        sides = _read_lines(self.source_path), _read_lines(self.target_path)
        for row in itertools.zip_longest(*sides):
            if None in row:
                self._raise_unequal()
            yield row

    def _raise_unequal(self) -> None:
        counts = [
            sum(1 for _ in _read_lines(path)) for path in (self.source_path, self.target_path)
        ]
        raise UsageError(
            f"{self.source_path} has {counts[0]} lines but {self.target_path} has {counts[1]}; "
            "line n of one must be the translation of line n of the other"
        )

    def fingerprint(self) -> str:
        """Returns a string that changes when the text does."""
        return f"text {_file_fingerprint(self.source_path)} {_file_fingerprint(self.target_path)}"


@dataclass(frozen=True)
class TsvSource:
    """One file, a pair a line: source, tab, target (further columns are ignored).

    Attributes:
        path: the file, plain or `.gz`.
    """

    path: str

    def chunks(self) -> Iterator[Chunk]:
        """Yields the lines in order; `UsageError` if the file cannot be read."""
        for first_line, lines in _chunked((line,) for line in _read_lines(self.path)):
            yield Chunk((self.path,), first_line, (b"\n".join(line for (line,) in lines),))

    def fingerprint(self) -> str:
        """Returns a string that changes when the text does."""
        return f"tsv {_file_fingerprint(self.path)}"


@dataclass(frozen=True)
class BuiltinSource:
    """The generated corpus of `data_pipeline.builtin_corpus`.

    Attributes:
        split: train, valid or test; they share no source sentence.
        size: number of pairs.
        seed: seed of the generator.
        source_lang: locale of the source side.
        target_lang: locale of the target side.
    """

    split: str
    size: int
    seed: int
    source_lang: str
    target_lang: str

    def chunks(self) -> Iterator[Chunk]:
        """Yields the pairs in the generator's order; `UsageError` for an unknown locale."""
        # Babel and num2words take a moment to import and only this source needs them.
        from data_pipeline.builtin_corpus import generate

        pairs = generate(
            self.split,
            self.size,
            seed=self.seed,
            source_locale=self.source_lang,
            target_locale=self.target_lang,
        )
        lines = (tuple(side.encode("utf-8") for side in pair) for pair in pairs)
        for first_line, block in _chunked(lines):
            blocks = tuple(b"\n".join(side) for side in zip(*block, strict=True))
            yield Chunk((f"builtin:{self.split}",) * 2, first_line, blocks)

    def fingerprint(self) -> str:
        """Returns a string that changes when the text does."""
        return (
            f"builtin {self.split} size={self.size} seed={self.seed} "
            f"{self.source_lang}-{self.target_lang}"
        )


Source = TextSource | TsvSource | BuiltinSource


def parse_spec(spec: str, source_lang: str, target_lang: str) -> list[Source]:
    """Turns a spec of the command line into sources.

    Args:
        spec: such as `text:a.en.gz,a.de.gz`; file names may be globs.
        source_lang: the source language (the built-in corpus needs it).
        target_lang: the target language.

    Returns:
        The sources, at least one, in a fixed order.

    Raises:
        UsageError: unknown scheme, malformed spec, or a file that does not exist.
    """
    scheme, colon, rest = spec.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in SCHEMES)
        raise UsageError(f"{spec!r}: unknown kind of source; known ones start with {known}")
    return SCHEMES[scheme](rest, source_lang, target_lang)


def _parse_text(rest: str, source_lang: str, target_lang: str) -> list[Source]:
    patterns = rest.split(",")
    if len(patterns) != 2 or not all(patterns):
        raise UsageError(f"'text:{rest}': expected two files, text:SOURCE_FILE,TARGET_FILE")
    sources, targets = (_expand(pattern) for pattern in patterns)
    if len(sources) != len(targets):
        raise UsageError(
            f"'text:{rest}': {patterns[0]} matches {len(sources)} files but {patterns[1]} matches "
            f"{len(targets)}; they are paired in alphabetical order"
        )
    return [TextSource(*paths) for paths in zip(sources, targets, strict=True)]


def _parse_tsv(rest: str, source_lang: str, target_lang: str) -> list[Source]:
    if not rest:
        raise UsageError("'tsv:': expected a file, tsv:FILE")
    return [TsvSource(path) for path in _expand(rest)]


def _parse_builtin(rest: str, source_lang: str, target_lang: str) -> list[Source]:
    spec = f"'builtin:{rest}'"
    split, _, query = rest.partition("?")
    if split not in _BUILTIN_SIZES:
        raise UsageError(f"{spec}: expected builtin:train, builtin:valid or builtin:test")
    options = {"size": _BUILTIN_SIZES[split], "seed": _BUILTIN_SEED}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in options:
            raise UsageError(f"{spec}: unknown option {name!r}; known are size and seed")
        if not (value.isascii() and value.isdigit()):
            raise UsageError(f"{spec}: {name} must be a whole number, not {value!r}")
        options[name] = int(value)
    if options["size"] < 1:
        raise UsageError(f"{spec}: size must be at least 1")
    return [BuiltinSource(split, options["size"], options["seed"], source_lang, target_lang)]


# What each scheme means: the rest of the spec, source and target language -> sources.
SCHEMES: dict[str, Callable[[str, str, str], list[Source]]] = {
    "text": _parse_text,
    "tsv": _parse_tsv,
    "builtin": _parse_builtin,
}


def _expand(pattern: str) -> list[str]:
    """Returns the files that match, sorted; `UsageError` if there is none."""
    from tensorflow.io import gfile

    # A name is tried as it stands first: brackets are legal in file names.
    paths = [pattern] if gfile.exists(pattern) else sorted(gfile.glob(pattern))
    if not paths:
        raise UsageError(f"{pattern}: no such file")
    for path in paths:
        if gfile.isdir(path):
            raise UsageError(f"{path}: is a directory; name a file or a glob such as {path}/*")
    return paths


def _read_lines(path: str) -> Iterator[bytes]:
    """Yields the lines of a file without their newline."""
    import tensorflow as tf

    try:
        with files.open_binary(path) as stored:
            file = gzip.GzipFile(fileobj=stored) if path.endswith(".gz") else stored
            for number, line in enumerate(file):
                if number == 0:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                yield line.removesuffix(b"\n")
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UsageError(f"{path}: damaged gzip file ({error}); copy it again") from error
    except tf.errors.OpError as error:
        raise UsageError(f"{path}: cannot be read ({error.message})") from error


def _chunked(rows: Iterable[tuple[bytes, ...]]) -> Iterator[tuple[int, list[tuple[bytes, ...]]]]:
    """Yields (number of the first row, rows) for up to `CHUNK_LINES` rows, `CHUNK_BYTES` bytes."""
    first_line, chunk, size = 1, [], 0
    for row in rows:
        chunk.append(row)
        size += sum(map(len, row))
        if len(chunk) == CHUNK_LINES or size >= CHUNK_BYTES:
            yield first_line, chunk
            first_line, chunk, size = first_line + len(chunk), [], 0
    if chunk:
        yield first_line, chunk


def _file_fingerprint(path: str) -> str:
    """Returns the SHA-256 of a local file, or size and time of a remote one."""
    if "://" in path:
        # Hashing would read the file over the network once more.
        from tensorflow.io import gfile

        status = gfile.stat(path)
        return f"size={status.length},mtime={status.mtime_nsec}"
    try:
        return files.sha256(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
