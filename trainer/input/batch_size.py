"""How many rows a batch has. Without TensorFlow: launchers ask too."""

from common.errors import UsageError
from configs.schema import TrainConfig


def batch_rows(train: TrainConfig, row_length: int, replicas: int) -> int:
    """Return the rows of a global batch of at most `train.batch_tokens` positions.

    Raises:
        UsageError: not every micro-batch of every replica gets the same number of rows, at least
            one.
    """
    rows = train.batch_tokens // row_length
    parts = replicas * train.micro_batches
    if rows < 1 or rows % parts:
        each = f" of {train.micro_batches} micro-batches" if train.micro_batches > 1 else ""
        raise UsageError(
            f"--config.train.batch_tokens={train.batch_tokens} makes {rows} rows of {row_length} "
            f"tokens, which {replicas} replica(s){each} cannot share equally; use a multiple of "
            f"{row_length * parts}"
        )
    return rows
