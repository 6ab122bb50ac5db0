"""What the workers do with clean text: encode and pack a partition, assemble a shard."""

import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tensorflow.io import gfile

from common import files
from data_pipeline import progress
from data_pipeline.dataset import packing, rows
from data_pipeline.dataset.examples import Examples, text_keys, write_examples
from data_pipeline.dataset.manifest import FileInfo, length_histogram
from data_pipeline.dataset.tokenizer import EOS_ID, load_tokenizer
from data_pipeline.stages import REJECTED, TEXT, TOO_MANY_TOKENS, rejected_lines

PAIR_RECORDS, ROW_RECORDS = "records", "rows"
_COPY_BYTES = 1 << 22


@dataclass
class EncodeTask:
    """A partition of clean text -> its records, its packed rows, and counts.

    Attributes:
        work_dir: has the text and gets the records.
        tokenizers: sequence -> the file of its model.
        languages: sequence -> its language.
        max_tokens: longer pairs are dropped.
        row_length: of the packed rows; 0 for none.
        token_dtype: of the packed rows.
        segmentations: the rows hold each pair so many times, in sampled segmentations; 1 for
            once, in the best one.
        sampling_alpha: how even the sampling is.
        seed: of the order of the rows and the sampling.
        keep_rejected: whether to write what is dropped.
    """

    work_dir: str
    tokenizers: Mapping[str, str]
    languages: Mapping[str, str]
    max_tokens: int
    row_length: int
    token_dtype: str
    segmentations: int
    sampling_alpha: float
    seed: int
    keep_rejected: bool

    def setup(self) -> None:
        """Load the tokenizers."""
        loaded = {path: load_tokenizer(path) for path in set(self.tokenizers.values())}
        self._models = {name: loaded[path] for name, path in self.tokenizers.items()}

    def run(self, partition: int) -> dict[str, Any]:
        """Encodes a partition."""
        text = files.read_bytes(os.path.join(self.work_dir, TEXT, f"{partition:06d}"))
        fields = text.replace(b"\n", b"\t").split(b"\t")[:-1]
        copies, texts = fields[0::3], [fields[1::3], fields[2::3]]
        # SentencePiece lets go of Python's lock, so each side has its own thread.
        with ThreadPoolExecutor(2) as threads:
            ids = list(
                threads.map(
                    lambda model, side: model.encode_normalized(side), self._models.values(), texts
                )
            )
        lengths = np.array([[len(row) for row in side] for side in ids], np.int64).reshape(2, -1)
        fits = lengths.max(axis=0) <= self.max_tokens
        # A second copy of a pair is no input pair.
        is_pair = np.array([copy == b"0" for copy in copies], bool)
        dropped = np.flatnonzero(is_pair & ~fits)
        if self.keep_rejected:
            pairs = [(texts[0][i].decode(), texts[1][i].decode()) for i in dropped]
            path = os.path.join(self.work_dir, REJECTED, f"tokens-{partition:06d}")
            files.write_bytes(path, rejected_lines([TOO_MANY_TOKENS] * len(pairs), pairs))
        if not fits.all():
            texts = [list(itertools.compress(side, fits)) for side in texts]
            ids = [list(itertools.compress(side, fits)) for side in ids]
            lengths = lengths[:, fits]
        sizes = write_examples(
            os.path.join(self.work_dir, PAIR_RECORDS, f"{partition:06d}"),
            dict(zip(text_keys(self.languages).values(), texts, strict=True)),
            dict(zip(self._models, ids, strict=True)),
        )
        files.write_bytes(
            os.path.join(self.work_dir, PAIR_RECORDS, f"{partition:06d}.sizes"), sizes.tobytes()
        )
        progress.tick(len(copies))
        return {
            "records": len(sizes),
            "kept": int((is_pair & fits).sum()),
            TOO_MANY_TOKENS: len(dropped),
            "lengths": {
                name: length_histogram(of_name)
                for name, of_name in zip(self._models, lengths, strict=True)
            },
            **(self._write_rows(partition, texts, ids) if self.row_length else {}),
        }

    def _write_rows(
        self, partition: int, texts: Sequence[list[bytes]], ids: Sequence[list[list[int]]]
    ) -> dict[str, Any]:
        """Packs the pairs and writes the rows, shuffled: packing has sorted them by length."""
        if self.segmentations > 1:
            sampled = [
                model.sample(
                    [text.decode() for text in side],
                    self.segmentations,
                    self.sampling_alpha,
                    self.seed,
                )
                for model, side in zip(self._models.values(), texts, strict=True)
            ]
            ids = [[row[n] for n in range(self.segmentations) for row in side] for side in sampled]
            # A sample of segmentation n of the source goes with sample n of the target.
        examples = Examples.of_lists(dict(zip(self._models, ids, strict=True)))
        packed = packing.pack(examples, self.row_length, EOS_ID)
        order = np.random.Generator(np.random.PCG64([self.seed, partition])).permutation(
            len(packed)
        )
        packed = packed.take(order)
        path = os.path.join(self.work_dir, ROW_RECORDS, f"{partition:06d}")
        write_records(path, rows.serialize_rows(packed, self.token_dtype))
        return {
            "rows": len(packed),
            "left_out": packed.left_out,
            "row_tokens": packed.tokens(),
        }


def write_records(path: str, records: Sequence[bytes]) -> None:
    """Writes a TFRecord file under a temporary name and renames it."""
    import tensorflow as tf

    temporary = files.temporary_name(path)
    with tf.io.TFRecordWriter(temporary) as writer:
        for record in records:
            writer.write(record)
    tf.io.gfile.rename(temporary, path, overwrite=True)


@dataclass(frozen=True)
class Span:
    """Bytes of a file that go into a shard."""

    path: str
    begin: int
    end: int


def spans_of(paths: Sequence[str], ends: Sequence[np.ndarray], first: int, last: int) -> list[Span]:
    """Finds records in files that follow one another.

    Args:
        paths: the files.
        ends: for each file int64 [records], where each record ends, in bytes.
        first: the first record, counted over all files.
        last: the one after the last.

    Returns:
        The spans that hold them, in order.
    """
    spans, before = [], 0
    for path, of_file in zip(paths, ends, strict=True):
        begin, end = (min(max(i - before, 0), len(of_file)) for i in (first, last))
        if begin < end:
            spans.append(Span(path, int(of_file[begin - 1]) if begin else 0, int(of_file[end - 1])))
        before += len(of_file)
    return spans


@dataclass(frozen=True)
class AssembleTask:
    """(file name, number of records, spans) -> the file, joined from the spans.

    Attributes:
        work_dir: gets the file.
        record_bytes: size of a record, if the file holds packed rows.
        block_rows: rows of a block.
    """

    work_dir: str
    record_bytes: int = 0
    block_rows: int = 0

    def setup(self) -> None:
        """Nothing to load."""

    def run(self, item: tuple[str, int, list[Span]]) -> dict[str, Any]:
        """Writes a shard and returns its entry in the manifest."""
        name, records, spans = item
        path = os.path.join(self.work_dir, name)
        temporary = files.temporary_name(path)
        digest, size = hashlib.sha256(), 0
        with gfile.GFile(temporary, "wb") as out:
            out.write(b"")  # makes the file also if nothing follows
            for span in spans:
                with gfile.GFile(span.path, "rb") as file:
                    file.seek(span.begin)
                    left = span.end - span.begin
                    while left:
                        block = file.read(min(left, _COPY_BYTES))
                        if not block:
                            raise OSError(f"{span.path}: ended {left} bytes early")
                        out.write(block)
                        digest.update(block)
                        left -= len(block)
                size += span.end - span.begin
        gfile.rename(temporary, path, overwrite=True)
        blocks = ""
        if self.record_bytes:
            blocks = rows.describe_blocks(path, self.record_bytes, self.block_rows)
        progress.tick(records)
        info = FileInfo(name, records, size, digest.hexdigest())
        return {"file": asdict(info), "blocks": blocks}
