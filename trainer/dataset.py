"""The dataset of a training run: made first, where the configuration brings its own text."""

import os

import tensorflow as tf

from common.errors import UsageError
from configs.schema import Config
from data_pipeline.dataset.manifest import MANIFEST_FILE, Manifest, load_manifest
from trainer.tasks.lookup import task_class


def prepare_own_text(config: Config, directory: str) -> None:
    """Run the data job on the text that the configuration brings, unless that is done."""
    if not tf.io.gfile.exists(os.path.join(directory, MANIFEST_FILE)):
        from data_pipeline import job

        own = config.prepare
        print(f"preparing {own.train} in {directory}", flush=True)
        settings = job.Settings(
            train=(own.train,),
            valid=(own.valid,) if own.valid else (),
            test=(own.test,) if own.test else (),
            source_lang="en",
            target_lang="de",
            output_dir=directory,
            task=task_class(config.task).DATASET,
            vocab_size=own.vocab_size,
            model_type=own.model_type,
            row_length=config.data.row_length,
        )
        job.prepare(settings)


def open_for_training(directory: str) -> Manifest:
    """Return the dataset to train on.

    Raises:
        UsageError: it is damaged, or lacks a split that training needs.
    """
    manifest = load_manifest(directory)
    for split in ("train", "valid"):
        if split not in manifest.splits:
            raise UsageError(
                f"{directory} has no {split} split, which training needs; give data_pipeline.main "
                f"--{split}=SPEC"
            )
    return manifest
