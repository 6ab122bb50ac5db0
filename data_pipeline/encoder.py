"""From clean text to examples: what the columns of a task become, in training and held-out text."""

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data_pipeline.dataset.examples import Examples, text_keys
from data_pipeline.dataset.manifest import SEQUENCES
from data_pipeline.dataset.normalization import LINE_BREAK, normalize_document, normalize_text
from data_pipeline.dataset.tokenizer import EOS_ID, load_tokenizer


@dataclass(frozen=True)
class Encoded:
    """Records that n lines of text have become.

    Attributes:
        texts: name in the record -> UTF-8 text of each record.
        ids: sequence -> token ids of each record.
        labels: class of each record, or None.
        line: int64 [records], the line that each comes from, ascending.
        characters: of a language model's documents, in the form that is tokenised.
        text_bytes: the same documents in UTF-8.
    """

    texts: Mapping[str, list[bytes]]
    ids: Mapping[str, list[list[int]]]
    labels: list[int] | None
    line: np.ndarray
    characters: int = 0
    text_bytes: int = 0

    def __len__(self) -> int:
        return len(self.line)

    def lengths(self) -> np.ndarray:
        """Return int64 [sequences, records], the number of tokens."""
        lengths = [[len(ids) for ids in column] for column in self.ids.values()]
        return np.array(lengths, np.int64).reshape(len(self.ids), -1)

    def take(self, kept: np.ndarray) -> "Encoded":
        """Return the records for which bool [records] is true."""
        if kept.all():
            return self
        return Encoded(
            texts={name: list(itertools.compress(x, kept)) for name, x in self.texts.items()},
            ids={name: list(itertools.compress(x, kept)) for name, x in self.ids.items()},
            labels=None if self.labels is None else list(itertools.compress(self.labels, kept)),
            line=self.line[kept],
        )

    def examples(self) -> Examples:
        """Return the token ids as flat arrays."""
        return Examples.of_lists(self.ids, self.labels)


@dataclass
class Encoder:
    """How the text of a task becomes records.

    Attributes:
        task: a key of `SEQUENCES`.
        languages: sequence -> its language.
        tokenizers: sequence -> the file of its model.
        labels: names of the classes, in the order of their numbers.
        piece_length: tokens of the longest piece of a language model's document.
    """

    task: str
    languages: Mapping[str, str]
    tokenizers: Mapping[str, str]
    labels: tuple[str, ...] = ()
    piece_length: int = 0

    def load(self) -> None:
        """Load the tokenizers; not before, because the encoder travels to the workers."""
        loaded = {path: load_tokenizer(path) for path in set(self.tokenizers.values())}
        self.models = {name: loaded[path] for name, path in self.tokenizers.items()}

    def encode(self, columns: Sequence[list[bytes]], normalized: bool) -> Encoded:
        """Encode lines of text.

        Args:
            columns: UTF-8 text of each sequence, and the label's name if the task has labels.
            normalized: whether the text is in the form that is tokenised.
        """
        if self.task == "language_model":
            return self._cut(columns[0])
        names = SEQUENCES[self.task]
        texts = columns[: len(names)]
        # SentencePiece releases Python's lock, so each sequence gets its own thread.
        with ThreadPoolExecutor(len(names)) as threads:
            ids = list(threads.map(lambda n, x: self._ids(n, x, normalized), names, texts))
        labels = None
        if self.labels:
            numbers = {name.encode(): number for number, name in enumerate(self.labels)}
            labels = [numbers[label] for label in columns[-1]]
        return Encoded(
            texts=dict(zip(text_keys(self.languages).values(), texts, strict=True)),
            ids=dict(zip(names, ids, strict=True)),
            labels=labels,
            line=np.arange(len(texts[0])),
        )

    def _ids(self, name: str, texts: list[bytes], normalized: bool) -> list[list[int]]:
        if normalized:
            return self.models[name].encode_normalized(texts)
        return self.models[name].encode([text.decode() for text in texts])

    def _cut(self, lines: list[bytes]) -> Encoded:
        """Cut documents into pieces; the end-of-sentence token closes the last of each."""
        (model,) = self.models.values()
        pieces: list[list[int]] = []
        owners: list[int] = []
        normalize = normalize_document if model.keeps_lines else normalize_text
        documents = [normalize(document_text(line)) for line in lines]
        for number, ids in enumerate(model.encode_normalized(documents)):
            ids.append(EOS_ID)
            for start in range(0, len(ids), self.piece_length):
                pieces.append(ids[start : start + self.piece_length])
                owners.append(number)
        texts = [text.encode() for text in model.decode(pieces)]
        return Encoded(
            {"text": texts},
            {"text": pieces},
            None,
            np.array(owners, np.int64),
            characters=sum(map(len, documents)),
            text_bytes=sum(len(document.encode()) for document in documents),
        )


def document_text(line: bytes) -> str:
    """Return the document that a line of the data job's files stands for."""
    return line.decode().replace(LINE_BREAK, "\n")
