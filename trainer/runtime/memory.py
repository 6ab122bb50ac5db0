"""Tell the allocator of glibc to keep freed memory, for training on CPUs.

TensorFlow frees and allocates large tensors at every step. By default glibc maps each of them
anew, and the kernel clears every page again: on two AVX2 cores that took a third of the CPU time
of the demonstration.
"""

import ctypes
import os
import platform

OFF = "TRANSFORMER_KEEP_MALLOC"
"""Environment variable; any value but 0 leaves the allocator as it is."""

# Parameters of mallopt(3), from <malloc.h>, and their values, which are C ints.
_SETTINGS = {
    -4: 0,  # M_MMAP_MAX: no mappings of their own for large blocks
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: bytes that are free at the top before any is given back
    -2: 256 << 20,  # M_TOP_PAD: bytes that the heap grows by
}


def keep_freed_memory() -> str:
    """Set the allocator; call it before TensorFlow is imported.

    Returns:
        which allocator is used and how, for people.
    """
    if platform.libc_ver()[0] != "glibc":
        return "the C library's"
    if os.environ.get(OFF, "0") != "0":
        return f"glibc's, unchanged ({OFF} is set)"
    if "LD_PRELOAD" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return "of the user's choice (LD_PRELOAD or MALLOC_*)"
    mallopt = ctypes.CDLL(None).mallopt
    done = all(mallopt(parameter, value) for parameter, value in _SETTINGS.items())
    return "glibc's, keeps freed memory" if done else "glibc's, which refused its settings"
