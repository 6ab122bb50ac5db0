"""Standard streams that fail, in small commands of their own; messages of one line."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tensorflow as tf

from common.console import error_text, warn

_ROOT = Path(__file__).parent.parent.parent
_PRINTS = """
for number in range(5000):
    print("line", number)
open("done", "w").close()
"""


def _run(tmp_path, body: str, redirection: str = "", result: bool = False, **options):
    """Run `body` as the main function of a command, under the shell's `redirection`."""
    path = tmp_path / "command.py"
    main = "".join(f"    {line}\n" for line in body.strip().splitlines())
    path.write_text(
        "import os, sys\n"
        "from common.errors import run_app\n"
        f"def main(argv):\n{main}\n"
        f"run_app(main, result_on_stdout={result})\n"
    )
    return subprocess.run(
        ["sh", "-c", f'exec "$0" "$1" {redirection}', sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(_ROOT), **options.pop("env", {})},
        timeout=300,
        capture_output="stdout" not in options,
        **options,
    )


def _closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    "redirection", ["", "2>&1", "> /dev/full 2>&1", ">&-", "2>&-", "<&- >&- 2>&-"]
)
def test_no_stream_ends_a_job(tmp_path, redirection):
    done = _run(tmp_path, _PRINTS, redirection, stdout=_closed_pipe())
    assert done.returncode == 0
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        ("", 141, ""),
        ("> /dev/full", 2, "error: standard output cannot be written: No space left on device\n"),
        (">&-", 2, "error: standard output cannot be written: Bad file descriptor\n"),
    ],
)
@pytest.mark.parametrize("body", [_PRINTS, 'print("one line, which only the end writes")'])
def test_a_result_that_cannot_be_written(tmp_path, redirection, code, message, body):
    done = _run(
        tmp_path,
        body,
        redirection,
        result=True,
        stdout=_closed_pipe(),
        stderr=subprocess.PIPE,
    )
    assert (done.returncode, done.stderr.decode()) == (code, message)
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("read", ["buffer.read()", "readline()"])
def test_standard_input_that_cannot_be_read(tmp_path, read):
    done = _run(tmp_path, f"print(sys.stdin.{read})", "<&-", result=True)
    assert done.returncode == 2 and done.stdout == b""
    message = "error: standard input cannot be read: Bad file descriptor\n"
    assert done.stderr.decode() == message


def test_a_closed_descriptor_is_not_given_to_a_file(tmp_path):
    body = 'with open("file", "w") as file:\n    sys.exit(10 + file.fileno())'
    assert _run(tmp_path, body, "<&- >&- 2>&-").returncode >= 10 + 3


def test_characters_that_the_locale_lacks(tmp_path):
    body = r'print("\u2192 \xfc"); print("\u2192", file=sys.stderr)'
    done = _run(tmp_path, body, env={"PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\\u2192 \xfc\n", b"\\u2192\n")


def test_a_pipe_that_does_not_block(tmp_path):
    """Its reader is slow, and has set O_NONBLOCK, as some terminals and programs do."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    parts = []

    def read():
        time.sleep(0.5)
        while part := os.read(reader, 65_536):
            parts.append(part)

    thread = threading.Thread(target=read)
    thread.start()
    done = _run(tmp_path, 'print("x" * 1_000_000)', result=True, stdout=writer)
    os.close(writer)
    thread.join()
    assert done.returncode == 0 and len(b"".join(parts)) == 1_000_001


def test_an_argument_that_is_no_text(tmp_path):
    done = _run(tmp_path, "print(argv)", "'--name=\udcff'")
    assert done.returncode == 2 and done.stdout == b""
    message = b"error: '--name=\\udcff' has bytes that are no text in utf-8, "
    assert done.stderr.startswith(message)


_TOO_MUCH = """
import tensorflow as tf
def product(a):
    return tf.matmul(a, a, transpose_a=True)
tf.function(product, jit_compile={})(tf.ones([1, 20_000_000]))
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("bytearray(1 << 60)", "error: out of memory: MemoryError; lower the sizes"),
        (_TOO_MUCH.format(False), "error: out of memory: OOM when allocating tensor with shape[20"),
        (_TOO_MUCH.format(True), "error: out of memory: Out of memory while trying to allocate"),
        ("raise flags.Error('Flag --a must have a value other than None.')", "error: give --a=..."),
    ],
)
def test_errors_that_become_one_line(tmp_path, body, message):
    done = _run(tmp_path, f"from absl import flags\n{body}")
    assert done.returncode == 2 and done.stdout == b""
    assert done.stderr.decode().splitlines()[-1].startswith(message)
    assert b"Traceback" not in done.stderr and b"Hint" not in done.stderr


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
