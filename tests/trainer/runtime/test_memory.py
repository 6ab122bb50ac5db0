"""The allocator's settings, in a process of their own."""

import os
import subprocess
import sys

import pytest

from trainer.runtime import memory

# Allocates and frees blocks that glibc maps by default, and counts the page faults for them: 16,384
# a block, or 32 where the kernel gives huge pages.
_BODY = f"""
import importlib.util, resource
spec = importlib.util.spec_from_file_location("memory", {memory.__file__!r})
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)
print(memory.keep_freed_memory())
block = bytearray(64 << 20)
del block
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block = bytearray(b"x") * (64 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize(
    ("variables", "used", "pages"),
    [
        ({}, "glibc's, keeps freed memory", range(50)),
        ({memory.OFF: "1"}, f"glibc's, unchanged ({memory.OFF} is set)", range(100, 10**9)),
        ({memory.OFF: "0", "MALLOC_ARENA_MAX": "4"}, "the user's choice", range(10**9)),
    ],
)
def test_freed_memory_is_kept(variables, used, pages):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    clean.pop("LD_PRELOAD", None)
    done = subprocess.run(
        [sys.executable, "-c", _BODY],
        env={**clean, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert used in first and int(second) in pages
