"""Validation and test text: kept word for word, encoded in order, never filtered."""

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from common import files
from data_pipeline.cleaning.alignment import alignment_counts
from data_pipeline.cleaning.folding import fold
from data_pipeline.cleaning.normalization import unescape_entities
from data_pipeline.dataset.examples import (
    describe_file,
    raw_text_name,
    shard_name,
    text_keys,
    write_examples,
)
from data_pipeline.dataset.manifest import FileInfo, SequenceInfo, length_histogram
from data_pipeline.dataset.normalization import normalize_text
from data_pipeline.dataset.tokenizer import load_tokenizer
from data_pipeline.sources.spec import Source


def copy_held_out(
    split: str, sources: Sequence[Source], languages: Mapping[str, str], work_dir: str
) -> tuple[dict[str, Any], set[str]]:
    """Copies the text of a split, one file a language.

    Args:
        split: valid or test.
        sources: where its text is.
        languages: sequence -> its language.
        work_dir: gets the files.

    Returns:
        {"pairs": how many, "align": evidence for `alignment_warning`}, and the folded source
        sentences, which the training text must not have.

    Raises:
        UsageError: a source cannot be read.
    """
    from tensorflow.io import gfile

    count, align = 0, Counter[str]()
    forms: set[str] = set()
    paths = [os.path.join(work_dir, raw_text_name(split, lang)) for lang in languages.values()]
    with gfile.GFile(paths[0], "wb") as left, gfile.GFile(paths[1], "wb") as right:
        # GFile makes the file at the first write, and there may be no line to write.
        left.write(b"")
        right.write(b"")
        for chunk in itertools.chain.from_iterable(source.chunks() for source in sources):
            sides = chunk.columns()
            for file, side in zip((left, right), sides, strict=True):
                file.write("".join(f"{text}\n" for text in side).encode())
            count += len(sides[0])
            align.update(alignment_counts(*sides))
            forms |= _forms(sides[0])
    return {"pairs": count, "align": align}, forms - {""}


def _forms(texts: list[str]) -> set[str]:
    """Returns the folded forms of texts as they are, unescaped, and normalised.

    Training text is unescaped and normalised, or not, before it is compared.
    """
    # An entity may stand for a newline.
    texts = texts + [unescape_entities(text).replace("\n", " ") for text in texts]
    return {*fold(texts), *fold([normalize_text(text) for text in texts])}


def encode_held_out(
    split: str, languages: Mapping[str, str], work_dir: str, models: Mapping[str, str]
) -> tuple[FileInfo, tuple[FileInfo, ...], dict[str, SequenceInfo]]:
    """Writes the records of a split whose text is in the work directory.

    Args:
        split: valid or test.
        languages: sequence -> its language.
        work_dir: has the text and gets the records.
        models: sequence -> the file of its tokenizer.

    Returns:
        The shard, the raw text, and the token counts of each sequence.
    """
    names = [raw_text_name(split, lang) for lang in languages.values()]
    texts = [list(files.read_lines(os.path.join(work_dir, name))) for name in names]
    ids = {
        sequence: load_tokenizer(models[sequence]).encode(lines)
        for sequence, lines in zip(languages, texts, strict=True)
    }
    name = shard_name(split, 0, 1)
    path = os.path.join(work_dir, name)
    encoded = [[text.encode() for text in lines] for lines in texts]
    sizes = write_examples(
        path, dict(zip(text_keys(languages).values(), encoded, strict=True)), ids
    )
    raw_text = tuple(
        describe_file(os.path.join(work_dir, name), name, len(sizes)) for name in names
    )
    sequences = {
        sequence: SequenceInfo.of_histogram(length_histogram(map(len, of_sequence)))
        for sequence, of_sequence in ids.items()
    }
    return describe_file(path, name, len(sizes)), raw_text, sequences
