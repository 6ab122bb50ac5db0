"""A check of the trainer's flags before a machine that costs money reads them."""

import re
import subprocess
import sys

from absl import flags

from common.errors import EXIT_USAGE, UsageError
from configs import flags as config_flags
from configs.schema import Config
from trainer.input.batch_size import batch_rows


def stage_directories(config: Config) -> list[str]:
    """Return the directories that `data.stages` names, which the machines have to have too."""
    stages = filter(None, config.data.stages.split(","))
    return [stage.rpartition(":")[0] or stage for stage in stages]


def check_trainer_flags(trainer_flags: list[str], replicas: int) -> Config:
    """Check flags as the trainer does when it starts, and its configuration.

    Args:
        trainer_flags: of trainer.main.
        replicas: that share a batch.

    Returns:
        The configuration that they make.

    Raises:
        UsageError: there is no such flag, a value is not valid, or the batch is not divisible among
            the replicas.
    """
    wanted = [flag for flag in trainer_flags if re.match(r"--?config[.=]", flag)]
    own = flags.FlagValues()
    config_flags.parse(["trainer.main", *wanted], config_flags.DEMO_FILE, own)
    _, config = config_flags.read(own)
    batch_rows(config.train, config.data.longest_row, replicas)
    command = [sys.executable, "-m", "trainer.main", "--only_check_args", *trainer_flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Any other code: the trainer does not run here, where TensorFlow may not be installed.
    if done.returncode == EXIT_USAGE:
        raise UsageError(f"trainer.main says: {done.stderr.strip().removeprefix('error: ')}")
    return config
