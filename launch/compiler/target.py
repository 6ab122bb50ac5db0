"""The hardware that preflight compiles for: connected TPU chips, or GPUs in machines."""

from launch.compiler import gpus, tpus

Chip = tpus.Chip | gpus.Gpu
Target = tpus.Slice | gpus.Machines
