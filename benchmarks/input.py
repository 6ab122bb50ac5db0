"""Measure the trainer's input: target tokens per second on one core, and seconds to a far step.

    python -m benchmarks.input --data_dir=DATA [--rows=400000] [--seconds=10]

Read the packed rows of a dataset as the trainer does, in one process on one core. Training
leaves the input less than a core, but needs far fewer tokens. With --rows=N, also measure a dataset
of N rows, made in a temporary directory by repeating the rows of --data_dir.
"""

import dataclasses
import os
import tempfile
import time

import tensorflow as tf
from absl import flags

from benchmarks import machine
from common import files
from common.errors import UsageError, no_arguments, run_app
from data_pipeline.dataset import rows
from data_pipeline.dataset.manifest import FileInfo, Manifest, RowsInfo, load_manifest
from trainer.input.distribution import distribute
from trainer.input.rows import StreamedData

_DATA_DIR = flags.DEFINE_string("data_dir", "data/demo", "Dataset directory with packed rows.")
_ROWS = flags.DEFINE_integer("rows", 0, "Rows of a second, larger dataset; 0 for none.", 0)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "Duration of the measurement.", 0.1)
_BATCH_TOKENS = flags.DEFINE_integer("batch_tokens", 24_576, "Target positions of a batch.", 1)


def bytes_read() -> int:
    """Return the bytes that this process has read; 0 if the system does not count them."""
    try:
        with open("/proc/self/io", encoding="utf-8") as file:
            return int(file.readline().split()[1])
    except OSError:
        return 0


def repeat_rows(
    manifest: Manifest, info: RowsInfo, count: int, directory: str
) -> tuple[Manifest, RowsInfo]:
    """Write the whole blocks of a dataset repeatedly, up to about `count` rows."""
    size = info.block_rows * info.record_bytes
    contents, digests = [], []
    for file, of_file in zip(info.files, info.blocks, strict=True):
        whole = file.records // info.block_rows
        contents.append(files.read_bytes(manifest.path(file))[: whole * size])
        digests.append(of_file[: whole * 2 * rows.DIGEST_BYTES])
    content, joined = b"".join(contents), "".join(digests)
    if not content:
        raise UsageError(f"{manifest.directory} has not one whole block; take a larger dataset")
    copies = -(-count * info.record_bytes // len(content))
    name = "train-rows-00000-of-00001.tfrecord"
    with open(os.path.join(directory, name), "wb") as out:
        for _ in range(copies):
            out.write(content)
    total = copies * len(content) // info.record_bytes
    scale = total / info.rows
    repeated = dataclasses.replace(
        info,
        rows=total,
        tokens={name: round(count * scale) for name, count in info.tokens.items()},
        files=(FileInfo(name, total, copies * len(content), ""),),
        blocks=(joined * copies,),
    )
    return dataclasses.replace(manifest, directory=directory), repeated


def measure(manifest: Manifest, info: RowsInfo, batch_tokens: int, seconds: float) -> str:
    """Seek to the middle of the third epoch and read from there; return a line of the table."""
    data = StreamedData(manifest, info, max(1, batch_tokens // info.row_length), seed=1)
    strategy = tf.distribute.OneDeviceStrategy("/device:CPU:0")
    read, began = bytes_read(), time.perf_counter()
    iterator = distribute(data, strategy, round(2.5 * info.rows / data.batch_rows))
    next(iterator)
    seek, seek_bytes = time.perf_counter() - began, bytes_read() - read
    tokens, batches = tf.zeros([], tf.int64), 0
    read, began = bytes_read(), time.perf_counter()
    while time.perf_counter() - began < seconds:
        tokens += tf.math.count_nonzero(next(iterator)[f"{manifest.sequences[-1]}_segments"])
        batches += 1
    passed, read = time.perf_counter() - began, bytes_read() - read
    count = batches * data.batch_rows
    return (
        f"{info.rows:>10,}{tokens.numpy() / passed:>18,.0f}{count / passed:>10,.0f}"
        f"{read / passed / 1e6:>10,.1f}{seek:>14.2f}{seek_bytes / 1e6:>12.1f}"
    )


def main(argv: list[str]) -> None:
    """Measure and print."""
    no_arguments(argv)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    manifest = load_manifest(_DATA_DIR.value)
    info = manifest.split("train").rows
    if info is None:
        raise UsageError(f"{_DATA_DIR.value} has no packed rows; data_pipeline.main --row_length=N")
    print(machine.describe())
    print(f"load average {machine.load_average():.2f}, TensorFlow {tf.__version__}, one core")
    print(
        f"rows of {info.row_length}, {info.token_dtype}, blocks of {info.block_rows} rows, "
        f"{info.record_bytes} bytes a row, fill rate {info.fill_rate:.3f}\n\n"
        f"{'rows':>10}{'target tokens/s':>18}{'rows/s':>10}{'MB/s':>10}"
        f"{'far step in s':>14}{'read for it':>12}"
    )
    print(measure(manifest, info, _BATCH_TOKENS.value, _SECONDS.value), flush=True)
    if _ROWS.value:
        with tempfile.TemporaryDirectory() as directory:
            manifest, info = repeat_rows(manifest, info, _ROWS.value, directory)
            print(measure(manifest, info, _BATCH_TOKENS.value, _SECONDS.value), flush=True)


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
