"""Exit codes, and how every command ends: bad input is one line and code 2."""

import atexit
import gc
import math
import re
import sys
from collections.abc import Callable

from absl import app, flags, logging

from common import console

# Exit codes of every command. A supervisor starts a command again on EXIT_RETRY and EXIT_STOPPED.
EXIT_DONE = 0
EXIT_RETRY = 1  # another worker or the storage failed, or there is a bug
EXIT_USAGE = 2  # bad usage or bad input: a restart cannot help
EXIT_STOPPED = 42  # stopped on request, and everything is saved
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_CLOSED_PIPE = 141  # 128 + SIGPIPE: nobody reads the result any more


_COLLECT_EVERY = 700, 10, 10  # Python's own thresholds


class UsageError(ValueError):
    """Bad usage or bad input, reported in one line: what is wrong, where, and how to fix it."""


class RetryError(Exception):
    """A failure that may be transient, reported in one line; the command may be restarted."""


def run_app(
    main: Callable[[list[str]], int | None],
    parse: Callable = flags.FLAGS,
    *,
    result_on_stdout: bool = False,
) -> None:
    """Run `main(argv)` under absl and end the process.

    `UsageError`, bad flags, standard streams that fail, too little memory and a storage that
    refuses a path become one line and code 2. An outage of the storage becomes one line and code 1:
    it may be over at the next start.

    Args:
        main: gets the arguments that are not flags, the program's name first; returns the exit
            code, or None for 0.
        parse: turns the command line into what `main` gets. A command whose unknown flags belong
            to somebody else, such as Beam, brings its own.
        result_on_stdout: whether standard output is what the command is for. If not, it is a job
            that goes on when its messages cannot be written.
    """
    console.guard_streams(result_on_stdout)
    # What the imports have made stays (see `process.prepare`): no collection needs to look at it.
    gc.freeze()
    gc.set_threshold(*_COLLECT_EVERY)
    # Python's final garbage collection would spend a second on the objects of TensorFlow.
    atexit.register(gc.freeze)
    try:
        try:
            app.run(main, flags_parser=lambda argv: _parsed(parse, argv))
        finally:
            sys.stdout.flush()
    except console.StreamError as error:
        if error.closed_pipe:
            sys.exit(EXIT_CLOSED_PIPE)
        _fail(str(error))
    except flags.Error as error:
        missing = re.findall(r"Flag --(\w+) must have a value other than None", str(error))
        needed = "give " + ", ".join(f"--{name}=..." for name in dict.fromkeys(missing))
        _fail(f"{needed if missing else error} (--help lists the flags)")
    except UsageError as error:
        _fail(str(error))
    except RetryError as error:
        sys.exit(f"error: {error}")  # EXIT_RETRY
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        from common import files  # which imports this module

        text = console.error_text(error)
        too_much = re.search("(OOM when allocating|[Oo]ut of memory).*", text)
        if too_much or isinstance(error, MemoryError):
            # TensorFlow adds where it was, and hints for programmers.
            reason = re.split(r" by allocator| \[\[", too_much[0] if too_much else text)[0]
            _fail(f"out of memory: {reason}; lower the sizes that flags and configuration ask for")
        if "tensorflow" in sys.modules and isinstance(error, files.passing_errors()):
            sys.exit(f"error: {text}; start again")
        if "tensorflow" in sys.modules and files.is_refusal(error):
            _fail(f"{text}; check the paths in the flags, and permissions")
        raise


def _parsed(parse: Callable, argv: list[str]) -> list[str]:
    """Return what `parse` makes of the command line, without two habits of absl."""
    for argument in argv:
        try:
            argument.encode("utf-8")
        except UnicodeEncodeError as error:  # neither TensorFlow nor a tokenizer would take it
            raise UsageError(
                f"{argument!r} has bytes that are no text in {sys.getfilesystemencoding()}, the "
                "encoding of this locale; convert it with iconv, or rename the file"
            ) from error
    try:
        arguments = parse(argv)
    except SystemExit:  # --help has been answered; absl ends with 1
        sys.exit(EXIT_DONE)
    for name, value in flags.FLAGS.flag_values_dict().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{name}={value}: give a finite number")
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.WARNING)  # or TensorFlow logs how it writes a checkpoint
    return arguments


def split_arguments(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return what stands before the first "--" of a command line, and what stands after it."""
    end = argv.index("--") if "--" in argv else len(argv)
    return argv[:end], argv[end + 1 :]


def no_arguments(argv: list[str]) -> None:
    """Raise `UsageError` if there is an argument besides the flags."""
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}; flags are written --name=value")


def _fail(message: str) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(EXIT_USAGE)
