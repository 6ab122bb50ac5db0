"""Compiled XLA programs on disk, for the next start."""

import hashlib
import os
import platform
from importlib import metadata

_DIRECTORY = "~/.cache/transformer-pipeline/xla"


def machine() -> str:
    """A name for this kind of machine: a program compiled for another CPU could crash."""
    packages = sorted(
        f"{package.name} {package.version}"
        for package in metadata.distributions()
        if (package.name or "").startswith("tensorflow")
    )
    lines = [platform.machine(), *packages]
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines += sorted({line for line in file if line.startswith(("model name", "flags"))})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def enable() -> None:
    """Sets TF_XLA_FLAGS, which TensorFlow reads when it is imported; not over a user's own."""
    path = os.path.join(os.path.expanduser(_DIRECTORY), machine())
    os.environ.setdefault("TF_XLA_FLAGS", f"--tf_xla_persistent_cache_directory={path}")
