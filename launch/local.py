"""Run the trainer as several workers on this machine, and start them again when they stop.

    python -m launch.local --workers=2 -- --config=configs/demo.py --model_dir=models/two
    python -m launch.local --workers=4 --pin_cores -- --config.train.steps=500

Everything after -- goes to each worker, which is `python -m trainer.main --strategy=multi_worker`
and finds the others through the environment variable TF_CONFIG. Each line of output begins with the
number of the worker that printed it.

Ctrl-C, SIGTERM or SIGHUP lets the workers save and stop together; a second signal kills them. When
a worker dies, or the others have not heard from it for --worker_timeout_seconds (a flag of the
trainer), it is named, the rest is stopped, and all start again from the last checkpoint. GPUs are
not divided: to use all GPUs of one machine, run --strategy=mirrored without this program.

Exit codes: 0 done; 1 a worker died and no restarts are left, or it did not stop in time; 2 bad
usage; 42 stopped on request: start me again; 128 plus its number for a second signal.
"""

import contextlib
import importlib.util
import json
import os
import socket
import sys

from absl import flags

from common.errors import UsageError, no_arguments, run_app, split_arguments
from launch.processes.supervisor import supervise
from launch.processes.workers import Command, say

STRATEGY = "multi_worker"
_HELP = ("--help", "-help", "-h", "-?", "--helpfull", "--helpshort")

_WORKERS = flags.DEFINE_integer("workers", 2, "Number of worker processes.", lower_bound=1)
_PIN_CORES = flags.DEFINE_bool(
    "pin_cores", False, "Give each worker its own share of the CPU cores (Linux)."
)
_MAX_RESTARTS = flags.DEFINE_integer(
    "max_restarts",
    3,
    "How often all workers are started again when one dies, or when they stop by themselves with "
    "code 42; a run of more than 10 minutes resets the count.",
    lower_bound=0,
)
_GRACE_SECONDS = flags.DEFINE_float(
    "grace_seconds", 60.0, "Time to save and stop before a worker is killed.", lower_bound=0.0
)
_PORT = flags.DEFINE_integer(
    "port", 0, "First port, of one for each worker; 0 picks free ones for every start.", 0, 65535
)
_CHECK = flags.DEFINE_bool(
    "check_machine",
    False,
    "First let each worker check its devices: a known matrix product and a sweep of memory.",
)
_MODULE = flags.DEFINE_string("module", "trainer.main", "Module that the workers run.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse what stands before "--"; return the program's name and what stands after it."""
    own, trainer_flags = split_arguments(argv)
    try:
        no_arguments(flags.FLAGS(own))
    except flags.UnrecognizedFlagError as error:
        raise UsageError(f"{error} (flags of the trainer come after --)") from error
    return [argv[0], *trainer_flags]


def with_strategy(arguments: list[str]) -> list[str]:
    """Return the trainer's arguments, with the strategy added unless they name it.

    Raises:
        UsageError: for another strategy, and for --help, which every worker would print.
    """
    named = False
    for index, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in _HELP:
            raise UsageError(f"{name} after --: see python -m {_MODULE.value} {name}")
        if name in ("--strategy", "-strategy"):
            named = True
            value = value or "".join(arguments[index + 1 : index + 2])
            if value != STRATEGY:
                raise UsageError(
                    f"--strategy={value} after --: launch.local runs --strategy={STRATEGY}, "
                    "which it adds by itself"
                )
    return arguments if named else [f"--strategy={STRATEGY}", *arguments]


def pick_ports(count: int, first: int = 0) -> list[int]:
    """Pick TCP ports that are free on this machine.

    Args:
        count: how many.
        first: the first of consecutive ports; 0 lets the system choose.

    Raises:
        UsageError: if one of the consecutive ports is taken or does not exist.
    """
    wanted = range(first, first + count) if first else [0] * count
    ports = []
    # All stay bound until the last is chosen, so that neither this nor another launcher gets one
    # of them twice.
    with contextlib.ExitStack() as stack:
        for port in wanted:
            listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            if first:  # connections of the previous run linger for a minute and do no harm
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", port))
            except (OSError, OverflowError) as error:
                raise UsageError(
                    f"--port={first}: port {port} cannot be used: {error}; "
                    "give another, or 0 for any free ones"
                ) from error
            ports.append(listener.getsockname()[1])
    return ports


def share_cores(workers: int, pin: bool) -> list[frozenset[int] | None]:
    """Divide the CPU cores among the workers.

    Returns:
        The cores of each worker; None for all cores.

    Raises:
        UsageError: if this system cannot pin.
    """
    everywhere: list[frozenset[int] | None] = [None] * workers
    if not hasattr(os, "sched_getaffinity"):
        if pin:
            raise UsageError("--pin_cores needs Linux; leave it out")
        return everywhere
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < workers:
        unpinned = ", unpinned" if pin else ""
        say(f"{workers} workers on {len(cores)} CPU core(s): they share{unpinned}")
        return everywhere
    if not pin:
        return everywhere
    ends = [index * len(cores) // workers for index in range(workers + 1)]
    return [frozenset(cores[ends[i] : ends[i + 1]]) for i in range(workers)]


def make_commands(
    argv: list[str], ports: list[int], shares: list[frozenset[int] | None]
) -> list[Command]:
    """Return one command per worker; they differ in TF_CONFIG and in their cores."""
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    commands = []
    for index, cores in enumerate(shares):
        task = {"type": "worker", "index": index}
        env = {
            **os.environ,
            "TF_CONFIG": json.dumps({"cluster": cluster, "task": task}),
            "PYTHONUNBUFFERED": "1",
        }
        commands.append(Command(argv, env, cores))
    return commands


def main(argv: list[str]) -> int:
    """Run the workers; return the exit code."""
    count = _WORKERS.value
    try:
        found = importlib.util.find_spec(_MODULE.value)
    except (ImportError, ValueError):  # of a package that is none, or of an empty name
        found = None
    if found is None:
        raise UsageError(f"--module={_MODULE.value}: there is no such Python module")
    worker_argv = [sys.executable, "-m", _MODULE.value, *with_strategy(argv[1:])]
    shares = share_cores(count, _PIN_CORES.value)

    def commands() -> list[Command]:
        return make_commands(worker_argv, pick_ports(count, _PORT.value), shares)

    if _CHECK.value:
        check = [sys.executable, "-m", "trainer.check_machine"]
        ports = [0] * count  # it meets nobody
        if code := supervise(
            lambda: make_commands(check, ports, shares), 0, _GRACE_SECONDS.value, other_ports=False
        ):
            return code
    return supervise(
        commands, _MAX_RESTARTS.value, _GRACE_SECONDS.value, other_ports=not _PORT.value
    )


if __name__ == "__main__":
    run_app(main, parse_flags)
