"""The largest batch that fits into a chip's memory."""

from collections.abc import Callable
from dataclasses import dataclass

from launch.compiler.compiler import Compiled

_FINEST = 16  # the result is within a sixteenth of the best
_MOST_TRIES = 8


class SearchError(Exception):
    """The search had to end."""


@dataclass(frozen=True)
class Largest:
    """The result of a search, in rows per chip.

    Attributes:
        fits: the most rows that fit; 0 if none did.
        too_many: the fewest rows that did not fit; None if all did.
        tried: rows -> bytes of memory that they need, according to the compiler.
    """

    fits: int
    too_many: int | None
    tried: dict[int, int]


def find_largest(
    compile_rows: Callable[[int], Compiled], rows: int, available: float, multiple: int
) -> Largest:
    """Search for the largest number of rows per chip that fits, by compiling.

    The next number to try comes from a linear extrapolation of the memory through the two largest
    numbers tried so far.

    Args:
        compile_rows: compiles the train step for a number of rows per chip.
        rows: the first number to try, a multiple of `multiple`.
        available: bytes of memory.
        multiple: the number of micro-batches, which has to divide the rows.

    Raises:
        SearchError: if a program does not compile for a reason other than memory.
    """
    tried: dict[int, int] = {}
    fits, too_many = 0, None
    fixed = 0.0
    for _ in range(_MOST_TRIES):
        program = compile_rows(rows)
        if program.error and not program.needs:
            raise SearchError(f"{rows} rows per chip do not compile: {program.error}")
        tried[rows] = program.memory
        fixed = fixed or float(program.arguments + program.code)
        if not program.error and program.memory <= available:
            fits = max(fits, rows)
        else:
            too_many = min(too_many or rows, rows)
        gap = max(multiple, (too_many or fits) // _FINEST // multiple * multiple)
        if too_many and too_many - fits <= gap:
            break
        rows = _next(tried, fits, too_many, available, fixed, gap, multiple)
    return Largest(fits, too_many, tried)


def _next(
    tried: dict[int, int],
    fits: int,
    too_many: int | None,
    available: float,
    fixed: float,
    gap: int,
    multiple: int,
) -> int:
    # The line through the two largest numbers tried; at first, through the memory of zero rows.
    (fewer, less), (rows, need) = [(0, fixed), *sorted(tried.items())][-2:]
    slope = max((need - less) / (rows - fewer), 1.0)
    guess = int(rows + (available - need) / slope) // multiple * multiple
    if not too_many:
        return max(guess if len(tried) == 1 else min(guess, 2 * fits), fits + gap)
    # Not just below the limit, where the compiler works long to make programs fit.
    if fits + gap <= guess <= too_many - gap:
        return guess
    return max((fits + too_many) // 2 // multiple * multiple, fits + multiple)
