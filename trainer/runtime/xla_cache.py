"""Compiled XLA programs on disk, for the next start; on GPUs.

Not on CPUs: TensorFlow warns of crashes whenever it reads such a program back, and two workers on
one machine can read what the other is still writing.
"""

import hashlib
import os
import platform
from importlib import metadata

_DIRECTORY = "~/.cache/transformer-pipeline/xla"


def machine() -> str:
    """A name for this machine and its TensorFlow: what another one compiled could crash here."""
    packages = sorted(
        f"{package.name} {package.version}"
        for package in metadata.distributions()
        if (package.name or "").startswith("tensorflow")
    )
    lines = [platform.node(), platform.machine(), *packages]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def enable() -> None:
    """Sets TF_XLA_FLAGS, which TensorFlow reads when it is imported; not over a user's own."""
    path = os.path.join(os.path.expanduser(_DIRECTORY), machine())
    cache = f"--tf_xla_persistent_cache_directory={path}"
    only_gpus = "--tf_xla_persistent_cache_device_types=XLA_GPU_JIT"
    os.environ.setdefault("TF_XLA_FLAGS", f"{cache} {only_gpus}")
