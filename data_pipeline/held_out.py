"""Validation and test text: kept word for word, encoded in order, never filtered."""

import contextlib
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from common import files
from common.errors import UsageError
from data_pipeline.cleaning.alignment import alignment_counts, alignment_warning
from data_pipeline.cleaning.folding import fold
from data_pipeline.cleaning.normalization import unescape_entities
from data_pipeline.dataset.examples import (
    LABEL,
    describe_file,
    raw_text_name,
    shard_name,
    write_examples,
)
from data_pipeline.dataset.manifest import SequenceInfo, SplitInfo, length_histogram
from data_pipeline.dataset.normalization import normalize_text
from data_pipeline.encoder import Encoder
from data_pipeline.sources.spec import Source
from data_pipeline.stages import check_labels


def raw_names(split: str, languages: Sequence[str], labelled: bool) -> list[str]:
    """Return the names of the files with the raw text of a split, one a column."""
    return [raw_text_name(split, name) for name in (*languages, *([LABEL] if labelled else []))]


def copy_held_out(
    split: str,
    sources: Sequence[Source],
    languages: Sequence[str],
    labelled: bool,
    work_dir: str,
) -> tuple[dict[str, Any], set[str]]:
    """Copy the text of a split, one file a column.

    Args:
        split: valid or test.
        sources: where its text is.
        languages: of the texts of an example.
        labelled: whether a column of labels follows.
        work_dir: gets the files.

    Returns:
        {"pairs": how many, "align": evidence for `alignment_warning`, "labels": their counts}, and
        the folded first texts of all examples, which the training text must not have.

    Raises:
        UsageError: a source cannot be read.
    """
    from tensorflow.io import gfile

    count, align, labels = 0, Counter[str](), Counter[str]()
    forms: set[str] = set()
    paths = [os.path.join(work_dir, name) for name in raw_names(split, languages, labelled)]
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(gfile.GFile(path, "wb")) for path in paths]
        for output in outputs:
            # GFile makes the file at the first write, and there may be no line to write.
            output.write(b"")
        for chunk in itertools.chain.from_iterable(source.chunks() for source in sources):
            columns = chunk.columns()
            if labelled:
                columns[-1] = check_labels(chunk, columns[-1])
                labels.update(columns[-1])
            for output, column in zip(outputs, columns, strict=True):
                output.write("".join(f"{text}\n" for text in column).encode())
            count += len(columns[0])
            if len(languages) == 2:
                align.update(alignment_counts(*columns))
            forms |= _forms(columns[0])
    return {"pairs": count, "align": align, "labels": labels}, forms - {""}


def _forms(texts: list[str]) -> set[str]:
    """Return the folded forms of texts as they are, unescaped, and normalised.

    Training text is unescaped and normalised, or not, before it is compared.
    """
    # An entity may stand for a newline.
    texts = texts + [unescape_entities(text).replace("\n", " ") for text in texts]
    return {*fold(texts), *fold([normalize_text(text) for text in texts])}


def check_known_labels(split: str, labels: Counter, known: Sequence[str], specs: str) -> None:
    """Raise `UsageError` if a split has labels that the training text does not have."""
    unknown = sorted(set(labels) - set(known))
    if unknown:
        more = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
        raise UsageError(
            f"--{split}: the label {unknown[0]!r}{more} of {specs} does not occur in --train; add "
            "examples of it there, or remove these lines"
        )


def encode_held_out(
    split: str, encoder: Encoder, work_dir: str, found: dict[str, Any]
) -> SplitInfo:
    """Write the records of a split whose text is in the work directory.

    Args:
        split: valid or test.
        encoder: of the task.
        work_dir: has the text and gets the records.
        found: what `copy_held_out` has counted.

    Returns:
        The split.
    """
    names = raw_names(split, list(encoder.languages.values()), bool(encoder.labels))
    columns = [
        [line.encode() for line in files.read_lines(os.path.join(work_dir, name))] for name in names
    ]
    encoded = encoder.encode(columns, normalized=False)
    name = shard_name(split, 0, 1)
    path = os.path.join(work_dir, name)
    sizes = write_examples(path, encoded.texts, encoded.ids, encoded.labels)
    pairs = found["pairs"]
    warning = alignment_warning(found["align"], split)
    return SplitInfo(
        files=(describe_file(path, name, len(sizes)),),
        pairs_in=pairs,
        kept=pairs,
        dropped={},
        sequences={
            sequence: SequenceInfo.of_histogram(length_histogram(lengths))
            for sequence, lengths in zip(encoded.ids, encoded.lengths(), strict=True)
        },
        raw_text=tuple(describe_file(os.path.join(work_dir, name), name, pairs) for name in names),
        repeated=len(sizes) - pairs,
        labels={label: found["labels"][label] for label in encoder.labels},
        characters=encoded.characters,
        text_bytes=encoded.text_bytes,
        warnings=(warning,) if warning else (),
    )
