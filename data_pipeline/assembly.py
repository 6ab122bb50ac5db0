"""Shards: equal shares of all records and of all packed rows, copied from the workers' files."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tensorflow.io import gfile

from common import files
from data_pipeline import progress
from data_pipeline.dataset import rows
from data_pipeline.dataset.manifest import FileInfo

_COPY_BYTES = 1 << 22


def write_records(path: str, records: Sequence[bytes]) -> None:
    """Write a TFRecord file under a temporary name and rename it."""
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
    """Find records in files that follow one another.

    Args:
        paths: the files.
        ends: for each file int64 [records], the byte at which each record ends.
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
        """Load nothing."""

    def run(self, item: tuple[str, int, list[Span]]) -> dict[str, Any]:
        """Write a shard; return its entry in the manifest and the digests of its blocks."""
        name, records, spans = item
        path = os.path.join(self.work_dir, name)
        temporary = files.temporary_name(path)
        digest, size = hashlib.sha256(), 0
        with gfile.GFile(temporary, "wb") as out:
            out.write(b"")  # makes the file even if nothing follows
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
