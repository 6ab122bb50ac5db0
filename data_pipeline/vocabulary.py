"""The vocabulary of a dataset: trained on a sample of its clean text, or given."""

import itertools
import os
from collections.abc import Iterator, Sequence

from common import files
from common.errors import UsageError
from data_pipeline.dataset.manifest import TokenizerInfo
from data_pipeline.dataset.normalization import LINE_BREAK
from data_pipeline.dataset.tokenizer import (
    JOINT_FILE,
    SOURCE_FILE,
    TARGET_FILE,
    Tokenizer,
    check_model,
    train,
)
from data_pipeline.progress import tick
from data_pipeline.settings import Settings
from data_pipeline.stages import TEXT

_PART_CHARACTERS = 1 << 18  # at most 1 MiB, which is the most that SentencePiece takes


def make_tokenizers(settings: Settings, work_dir: str, partitions: int) -> dict[str, TokenizerInfo]:
    """Make the tokenizers in the work directory, unless an interrupted job has made them.

    Args:
        settings: of the job.
        work_dir: has the partitions of clean text and gets the models.
        partitions: how many partitions there are.

    Returns:
        Sequence -> its tokenizer.
    """
    sequences = tuple(settings.languages)
    separate = len(sequences) > 1 and not settings.joint_vocabulary
    names = (SOURCE_FILE, TARGET_FILE) if separate else (JOINT_FILE,)
    infos = {}
    for number, name in enumerate(names):
        path = os.path.join(work_dir, name)
        if not files.exists(path):
            columns = (number,) if separate else tuple(range(len(sequences)))
            if settings.tokenizer:
                model = files.read_bytes(settings.tokenizer[number])
            else:
                model = _train(settings, _sample(settings, work_dir, partitions, columns))
            files.write_bytes(path, model)
        made = check_model(path)
        infos[name] = TokenizerInfo(name, made.sha256, made.vocab_size, made.model_type)
    return {
        sequence: infos[names[number if separate else 0]]
        for number, sequence in enumerate(sequences)
    }


def given_tokenizers(settings: Settings) -> list[Tokenizer]:
    """Load the models of --tokenizer.

    Raises:
        UsageError: one is not a model, or does not do what the settings promise.
    """
    tokenizers = [check_model(path) for path in settings.tokenizer]
    for tokenizer, path in zip(tokenizers, settings.tokenizer, strict=True):
        _check_given(tokenizer, path, settings)
    return tokenizers


def _check_given(tokenizer: Tokenizer, path: str, settings: Settings) -> None:
    if settings.segmentations > 1 and tokenizer.model_type != "unigram":
        raise UsageError(
            f"--segmentations samples from a unigram model, and --tokenizer={path} is of type "
            f"{tokenizer.model_type}; leave one of the two out"
        )
    if settings.task == "language_model" and not (
        tokenizer.keeps_lines or settings.documents == "line"
    ):
        raise UsageError(
            f"--tokenizer={path}: turns a line break into a space, and documents have line breaks; "
            "use the tokenizer.model of a language model's dataset, or leave --tokenizer out"
        )
    for symbol in settings.user_symbols:
        if not tokenizer.has_symbol(symbol):
            raise UsageError(
                f"--user_symbols: {symbol!r} is no such piece of --tokenizer={path}; leave it out, "
                "or train a new tokenizer"
            )


def _train(settings: Settings, sentences: Iterator[str]) -> bytes:
    return train(
        sentences,
        settings.vocab_size,
        settings.model_type,
        settings.character_coverage,
        byte_fallback=settings.byte_fallback,
        user_symbols=settings.user_symbols,
        keep_lines=settings.task == "language_model",
    )


def _sample(
    settings: Settings, work_dir: str, partitions: int, columns: Sequence[int]
) -> Iterator[str]:
    """Yield texts of the first lines in the shuffled order, which is a uniform sample."""
    paths = (os.path.join(work_dir, TEXT, f"{number:06d}") for number in range(partitions))
    lines = itertools.chain.from_iterable(map(files.read_lines, paths))
    for line in itertools.islice(lines, settings.tokenizer_sample):
        fields = line.split("\t")[1:]
        for column in columns:
            for text in fields[column].split(LINE_BREAK):
                yield from _parts(text)
            tick(1)


def _parts(text: str) -> Iterator[str]:
    """Yield a text, a long one in parts: of those that are too long for it, none would be used."""
    for start in range(0, max(1, len(text)), _PART_CHARACTERS):
        yield text[start : start + _PART_CHARACTERS]
