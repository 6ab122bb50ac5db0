"""Measure the data job's time, compared with SentencePiece alone, and its memory.

    python -m benchmarks.preprocess --train=tsv:train.tsv.gz [--source_lang=en --target_lang=de]
        [--runs=5] [--workers=2]

SentencePiece alone encodes both sides of the same lines, already in memory, with the same model, in
one call per side, in a separate process. The job, in one process, does everything from the file to
the finished dataset directory: with that model given, and once including its training. The runs
alternate; ratios are those of the medians. `--workers=N` instead runs the command with 1 and with N
workers, reports time and memory of whole processes, and compares the bytes.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contextlib
import hashlib
import io
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from absl import flags

from benchmarks import machine
from common.errors import UsageError, no_arguments, run_app
from data_pipeline.job import prepare
from data_pipeline.settings import Settings
from data_pipeline.sources.spec import parse_spec

_TRAIN = flags.DEFINE_string("train", "builtin:train", "SPEC of training text.")
_SOURCE_LANG = flags.DEFINE_string("source_lang", "en", "Source language.")
_TARGET_LANG = flags.DEFINE_string("target_lang", "de", "Target language.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 4000, "Size of the vocabulary.")
_RUNS = flags.DEFINE_integer("runs", 5, "Runs of each contender.", 1)
_WORKERS = flags.DEFINE_integer("workers", 0, "Compare whole processes with 1 and this many.", 0)


def job_seconds(directory: str, tokenizer: tuple[str, ...] = ()) -> float:
    """Run the job in this process, silently; return its seconds."""
    settings = Settings(
        train=(_TRAIN.value,),
        valid=(),
        test=(),
        source_lang=_SOURCE_LANG.value,
        target_lang=_TARGET_LANG.value,
        output_dir=directory,
        vocab_size=_VOCAB_SIZE.value,
        tokenizer=tokenizer,
    )
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(settings)
    return time.perf_counter() - began


# In a separate process, because TensorFlow's objects slow down Python's garbage collector.
_ALONE = """
import sys, time
import sentencepiece
model = sentencepiece.SentencePieceProcessor(model_file=sys.argv[1])
sides = []
for path in sys.argv[2:]:
    with open(path, encoding="utf-8", newline="\\n") as file:
        sides.append(file.read().split("\\n"))
began = time.perf_counter()
for side in sides:
    model.encode(side, out_type=int, num_threads=1)
print(time.perf_counter() - began)
"""


def sentencepiece_seconds(model: str, sides: list[str]) -> float:
    """Encode two text files with one thread; return the seconds."""
    command = [sys.executable, "-c", _ALONE, model, *sides]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def write_text(paths: list[str]) -> int:
    """Write both sides of the training text to files; return the number of pairs."""
    sides: list[list[str]] = [[], []]
    for source in parse_spec(_TRAIN.value, _SOURCE_LANG.value, _TARGET_LANG.value):
        for chunk in source.chunks():
            for side, lines in zip(sides, chunk.columns(), strict=True):
                side += lines
    for path, side in zip(paths, sides, strict=True):
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write("\n".join(side))
    return len(sides[0])


def in_process() -> None:
    """Compare the job with SentencePiece alone."""
    with tempfile.TemporaryDirectory() as parent:
        trained = os.path.join(parent, "trained")
        with_training = job_seconds(trained)
        path = os.path.join(trained, "tokenizer.model")
        sides = [os.path.join(parent, name) for name in ("source.txt", "target.txt")]
        pairs = write_text(sides)
        alone, job = [], []
        for run in range(_RUNS.value):
            alone.append(sentencepiece_seconds(path, sides))
            job.append(job_seconds(os.path.join(parent, str(run)), (path,)))
    base = statistics.median(alone)
    print(f"{'':44}{'seconds':>9}{'pairs/s':>11}{'ratio':>7}")
    for name, seconds in (
        ("SentencePiece alone", base),
        ("the job, with that model", statistics.median(job)),
        ("the job, training the model (one run)", with_training),
    ):
        print(f"{name:44}{seconds:9.2f}{pairs / seconds:11,.0f}{seconds / base:7.1f}")
    print(
        f"medians of {_RUNS.value} runs in turns; SentencePiece {min(alone):.2f} to "
        f"{max(alone):.2f} s, the job {min(job):.2f} to {max(job):.2f} s"
    )


def directory_digest(directory: str) -> str:
    """Return a digest of the names and bytes of all files."""
    digest = hashlib.sha256()
    for name in sorted(os.listdir(directory)):
        with open(os.path.join(directory, name), "rb") as file:
            digest.update(f"{name}\n".encode() + hashlib.sha256(file.read()).digest())
    return digest.hexdigest()


def whole_processes() -> None:
    """Compare seconds, memory and bytes of the command with one and with several workers."""
    digests = []
    for workers in (1, _WORKERS.value):
        with tempfile.TemporaryDirectory() as parent:
            directory = os.path.join(parent, "data")
            command = [sys.executable, "-m", "data_pipeline.main", f"--train={_TRAIN.value}"]
            command += [
                f"--source_lang={_SOURCE_LANG.value}",
                f"--target_lang={_TARGET_LANG.value}",
            ]
            command += [f"--vocab_size={_VOCAB_SIZE.value}", f"--output_dir={directory}"]
            if workers > 1:
                command.append(f"--direct_num_workers={workers}")
            began = time.perf_counter()
            if code := subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
                raise UsageError(f"the data job ended with code {code}; its own lines say why")
            seconds = time.perf_counter() - began
            # This is the largest process so far; the second row shows the larger of both runs.
            unit = 1 if sys.platform == "darwin" else 1024  # getrusage: bytes on macOS, else KiB
            peak = unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e9
            digests.append(directory_digest(directory))
            print(f"{workers} worker(s): {seconds:.1f} s, largest process {peak:.2f} GB")
    print("the bytes are " + ("equal" if len(set(digests)) == 1 else "NOT EQUAL"))


def main(argv: list[str]) -> None:
    """Measure and print."""
    no_arguments(argv)
    print(f"{machine.describe()}, load {machine.load_average():.2f}")
    if _WORKERS.value:
        whole_processes()
    else:
        in_process()


if __name__ == "__main__":
    run_app(main, result_on_stdout=True)
