"""The flag --config of every command: how it is parsed, and what its errors say."""

import dataclasses
import difflib
import itertools
import os
import re
import runpy
import traceback
import typing

from absl import flags
from ml_collections import config_flags

from common.errors import UsageError, split_arguments
from configs import schema

DEMO_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo.py")

# The smallest model that learns something, for tests and for benchmarks of what surrounds it.
SMALL_MODEL = (
    "--config.model.width=32",
    "--config.model.feed_forward=64",
    "--config.model.heads=2",
    "--config.model.encoder_layers=1",
    "--config.model.decoder_layers=1",
    "--config.data.row_length=64",
)


def parse(
    argv: list[str], default: str | None = None, values: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """Parse a command line with --config and --config.FIELD among its flags.

    Args:
        argv: the program's name, and its arguments.
        default: configuration file of a command line without --config.
        values: the defined flags, to which --config is added.

    Returns:
        The arguments that are not flags, the program's name first.

    Raises:
        UsageError: if the configuration has no such field, or its file has none.
        absl.flags.Error: if another flag is wrong.
    """
    arguments, _ = split_arguments(argv[1:])
    for argument, after in itertools.pairwise([*arguments, ""]):
        if named := re.match(r"--?config\.([^=]+)", argument):
            _check_field(named[1])
        elif given := re.fullmatch(r"--?config(?:=(.*))?", argument):
            _check_file(given[1] if "=" in argument else after)
    # Defined here and not at import, because ml_collections reads the overrides already here.
    config_flags.DEFINE_config_file(
        "config",
        default,
        "Python file with get_config(). Set single fields with --config.GROUP.FIELD=VALUE; "
        "configs/schema.py lists them.",
        flag_values=values,
        sys_argv=argv,
    )
    return values(argv)


def _check_file(path: str) -> None:
    """Refuse a file without a configuration, for which ml_collections has tracebacks.

    The path may go on with a colon and an argument of get_config(). The file runs here once more
    than in ml_collections.
    """
    file, *argument = [path] if os.path.isfile(path) else path.rsplit(":", 1)
    if not os.path.isfile(file):
        raise UsageError(f"--config={path}: no such file")
    try:
        made = runpy.run_path(file)["get_config"](*argument)
    except (Exception, SystemExit) as error:  # the file is a program
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f", line {frame.lineno}" for frame in frames if frame.filename == file]
        raise UsageError(
            f"--config={path}{''.join(lines[-1:])}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(made, schema.Config):
        raise UsageError(f"--config={path}: its get_config() returns no configs.schema.Config")


def _check_field(name: str) -> None:
    """Refuse what is no field, such as train.stepz, in words that ml_collections lacks."""
    kind: typing.Any = schema.Config
    parts = name.split(".")
    for depth, part in enumerate(parts):
        if not dataclasses.is_dataclass(kind):
            above = ".".join(parts[:depth])
            raise UsageError(f"--config.{name}: {above} is a field and has none of its own")
        kinds = typing.get_type_hints(kind)
        if part not in kinds:
            close = difflib.get_close_matches(part, kinds, 1)
            meant = f" (there is {'.'.join([*parts[:depth], *close])})" if close else ""
            raise UsageError(
                f"--config.{name}: no such field{meant}; configs/schema.py lists the fields"
            )
        kind = kinds[part]
    if dataclasses.is_dataclass(kind):
        raise UsageError(
            f"--config.{name} is a group of fields; set one of them, such as "
            f"--config.{name}.{dataclasses.fields(kind)[0].name}=VALUE"
        )


def read(values: flags.FlagValues = flags.FLAGS) -> tuple[str, schema.Config]:
    """Return the name and the configuration that `parse` found.

    The name is that of the file, without its directory and ".py".

    Raises:
        UsageError: if there is no configuration, or one of its fields is not valid.
    """
    config = values.config
    if config is None:
        raise UsageError("give --config=FILE, such as --config=configs/transformer_base.py")
    path = config_flags.get_config_filename(values["config"])
    if not isinstance(config, schema.Config):  # of a --flagfile, which `parse` does not look into
        raise UsageError(f"--config={path}: its get_config() returns no configs.schema.Config")
    try:
        schema.validate(config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return os.path.splitext(os.path.basename(path))[0], config
