"""A check of the trainer's configuration before a machine that costs money reads it."""

import re

from absl import flags

from configs import flags as config_flags
from trainer.input.batch_size import batch_rows


def check_config(trainer_flags: list[str], replicas: int) -> None:
    """Check the configuration that the trainer would make of its flags.

    Args:
        trainer_flags: of trainer.main; those of the configuration count.
        replicas: that share a batch.

    Raises:
        UsageError: it is not valid, or its batch is not divisible among the replicas.
    """
    wanted = [flag for flag in trainer_flags if re.match(r"--?config[.=]", flag)]
    own = flags.FlagValues()
    config_flags.parse(["trainer.main", *wanted], config_flags.DEMO_FILE, own)
    _, config = config_flags.read(own)
    batch_rows(config.train, config.data.longest_row, replicas)
