"""NVIDIA GPUs and machines of up to eight: memory, bandwidths, and the time of an all-reduce.

The figures are from NVIDIA's data sheets and the tuning guides of each architecture. The compiler
gets them as the description of its target (`GpuTargetConfigProto` of OpenXLA).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from common.errors import UsageError
from launch.compiler.hlo import Operation
from trainer.metrics import flops

# What a program cannot use: TensorFlow leaves 1.5 GiB to the system; half a GiB for CUDA's context
# and the libraries.
_RESERVED_BYTES = 2 * 2**30
_GPUS_PER_HOST = 8
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {l2}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory}
  shared_memory_per_block_optin: {optin}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{gpu.device_name}"
"""


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        name: as in --gpu.
        device_name: NVIDIA's name of the product, under which `trainer.metrics.flops` has its peak.
        memory_mib: as nvidia-smi shows it.
        bandwidth: bytes/s of the memory.
        link: bytes/s that a GPU sends to the others of its machine (NVLink, or PCIe for the L4);
            it receives as much at the same time.
        network: bytes/s that a GPU sends to other machines: 400, 200 and 12.5 Gbit/s, its share of
            the network cards of a common machine of eight.
        capability: CUDA compute capability.
        cores: streaming multiprocessors.
        fpus: float32 units of each.
        threads: most threads on each.
        shared_kib: shared memory of each; a block can use all but 1 KiB.
        l2_mib: L2 cache.
        clock_ghz: boost clock.
    """

    name: str
    device_name: str
    memory_mib: int
    bandwidth: float
    link: float
    network: float
    capability: tuple[int, int]
    cores: int
    fpus: int
    threads: int
    shared_kib: int
    l2_mib: int
    clock_ghz: float

    @property
    def memory(self) -> int:
        """Bytes that a program can use."""
        return self.memory_mib * 2**20 - _RESERVED_BYTES

    @property
    def peak_flops(self) -> float:
        """bfloat16 FLOP/s, dense."""
        return flops.peak_flops([self.device_name], "bfloat16") or math.nan

    def seconds(self, operation: Operation) -> float:
        """Return the roofline of an operation: the compiler for GPUs writes no estimate."""
        return max(operation.flops / self.peak_flops, operation.memory_bytes / self.bandwidth)

    @property
    def description(self) -> str:
        """The compiler's description of the GPU."""
        major, minor = self.capability
        return _DESCRIPTION.format(
            gpu=self,
            major=major,
            minor=minor,
            bandwidth=int(self.bandwidth),
            l2=self.l2_mib * 2**20,
            shared=self.shared_kib * 2**10,
            optin=(self.shared_kib - 1) * 2**10,
        )


_HOPPER: dict[str, Any] = {
    "link": 450e9,
    "network": 50e9,
    "capability": (9, 0),
    "cores": 132,
    "fpus": 128,
    "threads": 2048,
    "shared_kib": 228,
    "l2_mib": 50,
    "clock_ghz": 1.98,
}
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            "a100", "NVIDIA A100-SXM4-80GB", 81_920, 2.039e12, 300e9, 25e9, (8, 0), 108, 64, 2048,
            164, 40, 1.41,
        ),
        Gpu("h100", "NVIDIA H100 80GB HBM3", 81_559, 3.35e12, **_HOPPER),
        Gpu("h200", "NVIDIA H200", 143_771, 4.8e12, **_HOPPER),
        Gpu(
            "l4", "NVIDIA L4", 23_034, 0.3e12, 32e9, 1.5625e9, (8, 9), 58, 128, 1536, 100, 48, 2.04
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Machines:
    """GPUs of one kind, in machines of up to eight.

    Attributes:
        chip: the kind of GPU.
        chips: number of GPUs, each of which is one replica.
        EXTRA: the extra of this project that installs the compiler.
        PACKAGES: modules that the extra brings.
        ENVIRONMENT: environment variables of the compiler's process.
    """

    chip: Gpu
    chips: int

    EXTRA: ClassVar[str] = "preflight-gpu"
    PACKAGES: ClassVar[tuple[str, ...]] = ("jax", "jax_cuda12_plugin")
    # Autotuning runs kernels on a GPU; command buffers hide the operations that they hold.
    ENVIRONMENT: ClassVar[dict[str, str]] = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_command_buffer=",
    }

    @property
    def name(self) -> str:
        return f"{self.chip.name}-{self.chips}"

    @property
    def hosts(self) -> int:
        return max(1, self.chips // _GPUS_PER_HOST)

    @property
    def layout_text(self) -> str:
        """How the GPUs are connected, for the report."""
        return f"{self.chip.device_name}, {self.chips // self.hosts} a machine"

    @property
    def topology(self) -> dict[str, Any]:
        """Arguments of JAX's `get_topology_desc`."""
        return {
            "platform": "cuda",
            "topology_name": "",
            "target_config": self.chip.description,
            "topology": f"1x{self.hosts}x{self.chips // self.hosts}",
        }

    def all_reduce_seconds(self, size: float) -> float:
        """Return the time to sum `size` bytes over all GPUs and to give each of them the sum.

        Within each machine of g GPUs a reduce-scatter; an all-reduce of each GPU's share with its
        peers in the h machines; an all-gather within each machine. Latencies are left out:

            2 * size * (g - 1) / g / link + 2 * size / g * (h - 1) / h / network
        """
        hosts, local = self.hosts, self.chips // self.hosts
        within = 2 * size * (local - 1) / local / self.chip.link
        return within + 2 * size / local * (hosts - 1) / hosts / self.chip.network

    def sizes(self) -> "list[Machines]":
        """Return all numbers of this GPU, the smallest first."""
        return [Machines(self.chip, count) for count in _SIZES]


def parse(text: str) -> Machines:
    """Return the GPUs that a value of --gpu names, such as "h100-8".

    Raises:
        UsageError: if there is no such GPU or size.
    """
    name, _, number = text.partition("-")
    if name not in GPUS or number not in map(str, _SIZES):
        raise UsageError(
            f"--gpu={text}: give one of {', '.join(GPUS)} with a number of GPUs, one of "
            f"{', '.join(map(str, _SIZES))}, such as h100-8"
        )
    return Machines(GPUS[name], int(number))
