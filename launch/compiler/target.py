"""What preflight has to know about the hardware that it compiles for, be it TPUs or GPUs."""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

from launch.compiler.hlo import Operation


class Chip(Protocol):
    """One TPU chip or one GPU; it runs one replica."""

    @property
    def memory(self) -> int:
        """Bytes that a program can use."""

    @property
    def bandwidth(self) -> float:
        """Bytes/s of that memory."""

    @property
    def peak_flops(self) -> float:
        """FLOP/s of bfloat16 products."""

    def seconds(self, operation: Operation) -> float:
        """Return the estimate for one execution of a scheduled operation."""


class Target(Protocol):
    """Connected chips of one kind.

    Attributes:
        EXTRA: the extra of this project that installs the compiler.
        PACKAGES: modules that the extra brings.
        ENVIRONMENT: environment variables of the compiler's process.
    """

    EXTRA: ClassVar[str]
    PACKAGES: ClassVar[tuple[str, ...]]
    ENVIRONMENT: ClassVar[dict[str, str]]

    @property
    def chip(self) -> Chip: ...

    @property
    def name(self) -> str: ...

    @property
    def chips(self) -> int: ...

    @property
    def hosts(self) -> int: ...

    @property
    def layout_text(self) -> str:
        """How the chips are connected, for the report."""

    @property
    def topology(self) -> dict[str, Any]:
        """Arguments of `jax.experimental.topologies.get_topology_desc`."""

    def all_reduce_seconds(self, size: float) -> float:
        """Return the time to sum `size` bytes over all chips and to give each of them the sum."""

    def sizes(self) -> "Sequence[Target]":
        """Return the targets of the same chip in all sizes, the smallest first."""
