"""A cache on disk of compiled XLA programs, for the next start on GPUs.

Not on CPUs: there TensorFlow warns of crashes whenever it reads a program from the cache, and a
worker can read a program that another worker on the same machine is still writing.
"""

import hashlib
import os
import platform
from importlib import metadata

_DIRECTORY = "~/.cache/transformer-pipeline/xla"


def machine() -> str:
    """Return a name for this machine and its TensorFlow.

    A program that was compiled on another machine, or by another version, could crash here.
    """
    packages = sorted(
        f"{package.name} {package.version}"
        for package in metadata.distributions()
        if (package.name or "").startswith("tensorflow")
    )
    lines = [platform.node(), platform.machine(), *packages]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def enable() -> None:
    """Set TF_XLA_FLAGS, which TensorFlow reads when it is imported, unless the user has set it."""
    path = os.path.join(os.path.expanduser(_DIRECTORY), machine())
    cache = f"--tf_xla_persistent_cache_directory={path}"
    only_gpus = "--tf_xla_persistent_cache_device_types=XLA_GPU_JIT"
    os.environ.setdefault("TF_XLA_FLAGS", f"{cache} {only_gpus}")
