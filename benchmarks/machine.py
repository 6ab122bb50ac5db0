"""Describe the machine, for the head of a table of measurements."""

import os
import platform

BUSY = 0.5
"""A load average above which other processes disturb a measurement."""


def load_average() -> float:
    """Return the load average of the last minute; NaN if the system does not count it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def cpu_model() -> str:
    """Return the name of the CPU, such as "AMD EPYC 9654"."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe() -> str:
    """Return CPU, cores and operating system in one line."""
    return f"{cpu_model()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
