"""What goes to the console: it must not end a run, whatever disk the log is on."""

import contextlib
import errno
import re
import sys


def error_text(error: Exception) -> str:
    """An error in a line, without the names of operations that TensorFlow puts around it."""
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    return " ".join(re.sub(r"\{\{.*?\}\}| \[Op:.*", "", text).split())


def warn(text: str) -> None:
    """One line on standard error."""
    # The log may be on the disk that is full.
    with contextlib.suppress(OSError):
        print(f"warning: {' '.join(text.split())}", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """Prints; on a full disk, where the log may be, the text is lost."""
    try:
        print(text, flush=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
