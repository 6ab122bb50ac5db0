"""The report of launch.preflight, for people and as JSON."""

from typing import Any

from launch.compiler import predict
from launch.compiler.compiler import Compiled, allocations_in
from launch.compiler.target import Chip, Target

_GIB = 2**30
_SLOWEST = 5
_LARGEST = 3


def program_facts(
    program: Compiled, target: Target, analytic_flops: float | None
) -> dict[str, Any]:
    """Return the facts about one program.

    Args:
        program: the compiler's report.
        target: the chips.
        analytic_flops: FLOPs by formula; None without one.

    Returns:
        "fits", "error" and "memory" (bytes); for a program that compiles also "flops", "seconds",
        "collectives", "traffic_bytes" and "flops_per_byte".
    """
    available = target.chip.memory
    facts: dict[str, Any] = {
        "fits": not program.error and program.memory <= available,
        "error": " ".join(program.error.split())[:400],
        "memory": {"needed": program.memory, "available": available},
    }
    if program.error:
        return facts
    facts["memory"] |= {
        "arguments": program.arguments,
        "outputs": program.outputs - program.aliased,
        "temporaries": program.temporaries,
        "code": program.code,
    }
    speed = predict.speed_of(program, target.chip)
    facts["flops"] = {
        "products": program.product_flops,
        "analytic": analytic_flops,
        "all_operations_loops_once": program.compiler_flops,
    }
    facts["collectives"] = program.collectives
    facts["traffic_bytes"] = speed.memory_bytes
    facts["flops_per_byte"] = (
        program.product_flops / speed.memory_bytes if speed.memory_bytes else None
    )
    facts["seconds"] = {
        "compute": speed.compute,
        "memory": speed.memory,
        "roofline": speed.roofline,
        "schedule": speed.schedule,
        "expected": speed.seconds,
    }
    return facts


def largest_arrays(error: str, line) -> list[dict[str, Any]]:
    """Return the size and the Python line of the largest arrays of a program that does not fit.

    Args:
        error: the compiler's message.
        line: as for `slowest`.
    """
    return [
        {"bytes": size, "line": line(name) or "(unknown)"}
        for size, name in allocations_in(error)[:_LARGEST]
    ]


def slowest(program: Compiled, chip: Chip, line) -> list[dict[str, Any]]:
    """Return the Python lines whose operations take the most time, operation by operation.

    Args:
        program: the compiler's report.
        chip: whose estimate of each operation counts.
        line: returns the Python line of an operation's name, or "".
    """
    lines: dict[str, str] = {}
    seconds: dict[str, float] = {}
    for one in program.operations:
        if one.name not in lines:
            lines[one.name] = line(one.name) or "(moves and conversions of the compiler)"
        where = lines[one.name]
        seconds[where] = seconds.get(where, 0.0) + chip.seconds(one) * one.times
    total = sum(seconds.values()) or 1.0
    ranked = sorted(seconds.items(), key=lambda item: -item[1])[:_SLOWEST]
    return [{"line": where, "share": count / total} for where, count in ranked]


def text(facts: dict[str, Any]) -> str:
    """Return the report for people, with the facts of the JSON."""
    lines = [
        f"{facts['config']}, {facts['precision']}, on {facts['target']}: {facts['chips']} chips "
        f"({facts['layout']}), {facts['hosts']} host(s)",
        f"{facts['rows_per_chip']} rows of {facts['row_length']} tokens a side on each chip, "
        f"{facts['batch_tokens']:,} target positions in the global batch",
        f"{facts['parameters']:,} weights, vocabulary of {facts['vocab_size']:,}",
    ]
    for name, program in facts["programs"].items():
        lines += ["", *_program(name, program)]
    if facts["problems"]:
        lines += ["", "what XLA cannot compile:", *(f"  {one}" for one in facts["problems"])]
    if facts.get("prediction"):
        lines += ["", *_prediction(facts)]
    if facts.get("largest_batch"):
        lines += ["", _largest(facts["largest_batch"])]
    lines += ["", *facts["notes"]]
    verdict = "fits" if facts["fits"] else "DOES NOT FIT, or does not compile"
    return "\n".join([*lines, f"{verdict}; this took {facts['preflight_seconds']:.0f} s"])


def _program(name: str, facts: dict[str, Any]) -> list[str]:
    memory = facts["memory"]
    need = f"{memory['needed'] / _GIB:.2f} of {memory['available'] / _GIB:.2f} GiB a chip"
    if facts["error"] and memory["needed"]:
        arrays = facts.get("largest_arrays", ())
        return [
            f"{name:<9} DOES NOT FIT: needs {need}; the largest arrays:",
            *(f"{'':9} {one['bytes'] / _GIB:.2f} GiB  {one['line']}" for one in arrays),
        ]
    if facts["error"]:
        where = f"; {facts['line']}" if facts.get("line") else ""
        return [f"{name:<9} DOES NOT COMPILE: {facts['error']}{where}"]
    parts = ", ".join(
        f"{part} {memory[part] / _GIB:.2f}"
        for part in ("arguments", "outputs", "temporaries", "code")
    )
    flops, seconds = facts["flops"], facts["seconds"]
    formula = ""
    if flops["analytic"]:
        apart = flops["products"] / flops["analytic"] - 1
        formula = f" (formula {flops['analytic'] / 1e12:.4g}: {apart:+.1%})"
    per_byte = facts["flops_per_byte"]
    intensity = f", {per_byte:.0f} FLOP per byte" if per_byte else ""
    return [
        f"{name:<9} {'fits' if facts['fits'] else 'DOES NOT FIT'}: {need} ({parts})",
        f"{'':9} {flops['products'] / 1e12:.4g} TFLOP{formula}, "
        f"{facts['traffic_bytes'] / 1e9:.2f} GB to and from memory{intensity}",
        f"{'':9} roofline {1e3 * seconds['roofline']:.2f} ms (compute "
        f"{1e3 * seconds['compute']:.2f}, memory {1e3 * seconds['memory']:.2f}); operation by "
        f"operation {1e3 * seconds['schedule']:.2f} ms",
        *(
            f"{'':9} {one['count']} {kind} of {one['bytes'] / 1e9:.2f} GB together"
            for kind, one in facts["collectives"].items()
        ),
    ]


def _prediction(facts: dict[str, Any]) -> list[str]:
    found = facts["prediction"]
    lines = [
        "predicted for training, not measured:",
        f"  step {1e3 * found['step_seconds']:.2f} ms, of it all-reduce "
        f"{1e3 * found['all_reduce_seconds']:.2f} ms"
        + (
            f" and gather of the weights {1e3 * found['gather_seconds']:.2f} ms"
            if found["gather_seconds"]
            else ""
        ),
        f"  {found['tokens_per_second']:,.0f} target positions/s, "
        f"{found['tokens_per_second_per_chip']:,.0f} a chip; MFU {found['mfu']:.1%} "
        f"(at the roofline {found['roofline_tokens_per_second_per_chip']:,.0f} and "
        f"{found['roofline_mfu']:.1%})",
        f"  input: each host has to deliver {found['input_bytes_per_second_per_host'] / 1e6:.2f} "
        f"MB/s, {found['input_tokens_per_second_per_host']:,.0f} target positions/s"
        + (
            f"; this machine reads {found['measured_input_tokens_per_second']:,.0f}"
            if found.get("measured_input_tokens_per_second")
            else ""
        ),
    ]
    if found.get("usd"):
        lines.append(
            f"  {found['steps']:,} steps: {found['hours']:.1f} hours, {found['usd']:,.2f} US "
            f"dollars, {found['usd_per_billion_tokens']:.2f} a billion target positions"
        )
    lines += ["  most of the time, operation by operation:"]
    lines += [f"    {one['share']:5.1%}  {one['line']}" for one in found["slowest"]]
    lines += ["", "the same rows on every chip:"]
    lines += ["    chips   global batch   all-reduce   step        target positions/s   efficiency"]
    lines += [
        f"    {one['chips']:>5}   {one['batch_tokens']:>12,}   {1e3 * one['all_reduce']:>7.2f} ms"
        f"   {1e3 * one['step']:>6.2f} ms   {one['tokens_per_second']:>18,.0f}   "
        f"{one['efficiency']:>10.1%}"
        for one in found["scaling"]
    ]
    return lines


def _largest(found: dict[str, Any]) -> str:
    beyond = f"; {found['too_many']} do not" if found["too_many"] else ""
    return (
        f"largest batch: {found['fits']} rows a chip fit{beyond}: "
        f"--config.train.batch_tokens={found['batch_tokens']}"
    )
