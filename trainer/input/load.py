"""Choosing how to read the training split of a dataset."""

import dataclasses

from common.errors import UsageError
from configs.schema import Config
from data_pipeline.dataset import examples
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.verify import check_sizes
from trainer.input.batch_size import batch_rows
from trainer.input.memory import training_data
from trainer.input.protocol import TrainingData
from trainer.input.resampled import resampled_data
from trainer.input.rows import StreamedData


def load_training_data(
    manifest: Manifest, config: Config, replicas: int, *, skip_corrupt: bool = False
) -> TrainingData:
    """Return the training split: streamed, if the dataset has rows as `config.data` wants them.

    With `data.sampling_alpha` it is in memory, and cut into pieces anew in each epoch.

    Args:
        manifest: of the dataset.
        config: the configuration.
        replicas: replicas that share a global batch.
        skip_corrupt: see `StreamedData`; without streaming, damage is always an error.

    Raises:
        UsageError: a file is missing or damaged, nothing fits, or a batch cannot be shared.
    """
    check_sizes(manifest)
    data, info = config.data, manifest.splits["train"].rows
    # The pieces of documents bring their own end tokens.
    of_documents = manifest.closing_id is None
    if of_documents and info and data.longest_row < info.row_length:
        raise UsageError(
            f"rows of {data.longest_row} tokens: the documents of {manifest.directory} were cut "
            f"into pieces of up to {info.row_length}, which would be left out; use rows of "
            f"{info.row_length}, or make the dataset with data_pipeline.main "
            f"--row_length={data.longest_row}"
        )
    if data.sampling_alpha:
        return resampled_data(examples.read_examples(manifest, "train"), manifest, config, replicas)
    if info and info.rows and data.batching == "packed" and data.row_length == info.row_length:
        size = batch_rows(config.train, data.row_length, replicas)
        return StreamedData(manifest, info, size, config.train.seed, skip_corrupt)
    if data.batching != "packed":
        reason = f"read into memory: batching is {data.batching}"
    else:
        found = f"rows of {info.row_length}" if info else "no packed rows"
        reason = (
            f"packed in memory: the dataset has {found}; data_pipeline.main "
            f"--row_length={data.row_length} writes rows that need not fit into memory"
        )
    read = examples.read_examples(manifest, "train")
    made = training_data(read, config, manifest.closing_id, replicas)
    return dataclasses.replace(made, origin=reason)
