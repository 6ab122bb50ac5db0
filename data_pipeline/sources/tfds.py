"""Text in TensorFlow Datasets: `tfds:`."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from common import files
from common.console import error_text
from common.errors import UsageError
from data_pipeline.sources.chunk import Chunk, Wanted, chunk_rows, document_line
from data_pipeline.sources.text_files import TextSource

_BATCH = 1000
_DEFAULT_SPLIT = "train"
_FOLDER = "folder/"
# Names of the features that are the columns of a task; those of pairs are the languages.
_FEATURES = {"translation": (), "language_model": ("text",), "classification": ("text", "label")}
_SPLIT = r"[\w-]+(?:\[[^\]]*\])?"
# A name or directory, perhaps :SPLIT with slices such as train[:10%]+test, perhaps ?OPTIONS.
_SPEC = re.compile(
    rf"(?P<name>[^?]+?)(?::(?P<split>{_SPLIT}(?:\+{_SPLIT})*))?(?:\?(?P<options>.*))?"
)


@dataclass(frozen=True)
class TfdsSource:
    """A split of a dataset that TensorFlow Datasets has prepared, read in its stored order.

    Attributes:
        directory: of the dataset's version, where `features.json` is.
        split: as TFDS writes it, such as `train` or `train[:10%]`.
        features: names of the features that are the columns of an example.
        task: whose examples these are.
    """

    directory: str
    split: str
    features: tuple[str, ...]
    task: str = "translation"

    def chunks(self) -> Iterator[Chunk]:
        """Yield the examples in order.

        Raises:
            UsageError: no such split or features, text that is not UTF-8, or damaged files.
        """
        return chunk_rows(self._name(), self._rows(), len(self.features))

    def fingerprint(self) -> str:
        """Return a string that changes when the text does, from what TFDS has recorded of it."""
        builder = self._builder()
        splits = builder.info.splits
        sizes = ",".join(
            f"{name}:{split.num_examples}:{int(split.num_bytes)}"
            for name, split in sorted(splits.items())
        )
        examples = splits[self.split].num_examples
        return (
            f"tfds {builder.info.full_name} {self.split} examples={examples} {sizes} "
            f"{'-'.join(self.features)}"
        )

    def check(self) -> None:
        """Raise `UsageError` if the split or the features do not exist."""
        self._find_features(self._builder())

    def _find_features(self, builder: Any) -> tuple[str, ...]:
        labels = self.features[1:] if self.task == "classification" else ()
        return _find_features(builder.info.features, self.features, labels, self._name())

    def _rows(self) -> Iterator[list[str]]:
        import tensorflow_datasets as tfds

        builder = self._builder()
        place = self._find_features(builder)
        kinds = [_at(builder.info.features, (*place, name)) for name in self.features]
        # Shards one after the other, not in turns, and no copy of the dataset in memory.
        config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        examples = builder.as_dataset(split=self.split, shuffle_files=False, read_config=config)
        columns = examples.map(
            lambda example: tuple(_at(example, (*place, name)) for name in self.features)
        )
        number = 1
        with files.storage_errors(f"{self._name()} cannot be read", "prepare it again"):
            for batch in columns.batch(_BATCH).prefetch(2).as_numpy_iterator():
                for values in zip(*batch, strict=True):
                    yield [
                        self._text(number, kind, value)
                        for kind, value in zip(kinds, values, strict=True)
                    ]
                    number += 1

    def _text(self, number: int, kind: Any, value: Any) -> str:
        """Return the text of a feature, or the name of a class."""
        if not isinstance(value, bytes):
            # TFDS marks an example without a label, as in an unlabelled split, with -1.
            if value < 0:
                raise UsageError(f"{self._name()}, example {number}: has no label; choose a split")
            return kind.int2str(int(value)) if hasattr(kind, "int2str") else str(value)
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{self._name()}, example {number}: not valid UTF-8; fix the text and prepare the "
                "dataset again"
            ) from error
        return document_line(text) if self.task == "language_model" else text

    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder_from_directory(self.directory)
        except files.passing_errors():
            raise
        except Exception as error:  # each damaged file fails in its own way
            raise UsageError(
                f"{self._name()}: cannot be opened ({error_text(error)}); prepare it again, or "
                "install the package that it needs"
            ) from error
        try:
            examples = builder.info.splits[self.split].num_examples
        except (KeyError, ValueError, AssertionError) as error:
            known = ", ".join(sorted(builder.info.splits)) or "none"
            raise UsageError(
                f"{self._name()}: no such split; there are {known}, and slices such as train[:10%]"
            ) from error
        if examples < 1:
            raise UsageError(f"{self._name()}: the split has no examples; choose another")
        return builder

    def _name(self) -> str:
        return f"tfds:{self.directory}:{self.split}"


def parse_tfds(rest: str, wanted: Wanted) -> list[TfdsSource | TextSource]:
    """Return the source of a `tfds:` spec.

    Args:
        rest: one of `NAME[/CONFIG][:SPLIT][?OPTIONS]` (a dataset that TFDS has prepared),
            `DIR[:SPLIT]` (the directory of one of its versions) and, for translation,
            `folder/DIR[:SPLIT]` (the layout of `tfds.TranslateFolder`: DIR/LANG.SPLIT.txt). The
            options are data_dir=DIR and, except for translation, text=FEATURE and label=FEATURE.
        wanted: for translation the features have the names of the languages.
    """
    spec = f"'tfds:{rest}'"
    match = _SPEC.fullmatch(rest)
    if not match:
        raise UsageError(
            f"{spec}: expected tfds:NAME, tfds:NAME/CONFIG:SPLIT, tfds:DIR or tfds:folder/DIR"
        )
    name, split = match["name"], match["split"] or _DEFAULT_SPLIT
    options = dict(parse_qsl(match["options"] or "", keep_blank_values=True))
    data_dir = options.pop("data_dir", None)
    names = _FEATURES[wanted.task]
    features = tuple(options.pop(feature, feature) for feature in names) or wanted.languages
    for option in options:
        known = " and ".join(("data_dir", *names))
        verb = "are" if names else "is"
        raise UsageError(f"{spec}: unknown option {option!r}; known {verb} {known}")
    if name.startswith(_FOLDER) and wanted.task == "translation":
        return [_folder_source(name.removeprefix(_FOLDER), split, *wanted.languages)]
    directory = _prepared_directory(spec, name, data_dir)
    source = TfdsSource(directory, split, features, wanted.task)
    source.check()
    return [source]


def _folder_source(directory: str, split: str, source_lang: str, target_lang: str) -> TextSource:
    """Return the source of a folder as `tfds.TranslateFolder` reads it, but reads it in parts.

    TFDS loads all splits of such a folder into memory and cuts lines at other characters than the
    newline too.
    """
    from tensorflow.io import gfile

    paths = [os.path.join(directory, f"{lang}.{split}.txt") for lang in (source_lang, target_lang)]
    for path in paths:
        if not gfile.exists(path):
            raise UsageError(
                f"{path}: no such file; tfds:folder/DIR:SPLIT reads DIR/LANG.SPLIT.txt, and a "
                "split of a folder cannot be sliced"
            )
    return TextSource(*paths)


def _prepared_directory(spec: str, name: str, data_dir: str | None) -> str:
    """Return where the dataset is; finds files only, so it needs neither its code nor a network.

    Raises:
        UsageError: it is not prepared.
    """
    from tensorflow.io import gfile

    if gfile.exists(os.path.join(name, "features.json")):
        return name
    if os.path.isabs(name) or name.startswith((".", "~")) or "://" in name:
        raise UsageError(
            f"{spec}: {name} has no features.json; name the directory of a version, such as "
            "my_dataset/1.0.0, that TFDS 4 has prepared"
        )
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import read_only_builder
    from tensorflow_datasets.core.utils.file_utils import list_data_dirs

    try:
        builder = read_only_builder.builder_from_files(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        looked = ", ".join(map(str, list_data_dirs(given_data_dir=data_dir)))
        option = f", data_dir={data_dir!r}" if data_dir else ""
        raise UsageError(
            f"{spec}: not prepared in {looked}; run tfds build, or in Python "
            f"tensorflow_datasets.builder({name!r}{option}).download_and_prepare()"
        ) from error
    except ValueError as error:
        # A malformed name, or datasets of that name in several places.
        raise UsageError(f"{spec}: {str(error).splitlines()[0]}") from error
    return os.fspath(builder.data_dir)


def _find_features(
    features: Any, names: tuple[str, ...], labels: tuple[str, ...], dataset: str
) -> tuple[str, ...]:
    """Return the keys that lead to the dictionary with all these features.

    Args:
        features: of the dataset, a `tfds.features.FeaturesDict` (`Translation` is one).
        names: of the wanted features.
        labels: those of them that may be classes or integers, too, and not only text.
        dataset: its name, for messages.

    Raises:
        UsageError: there are no such features.
    """
    import tensorflow_datasets as tfds

    def fits(name: str, feature: Any) -> bool:
        if name in labels and isinstance(feature, tfds.features.Tensor | tfds.features.Scalar):
            return feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)
        return isinstance(feature, tfds.features.Text)

    waiting: list[tuple[tuple[str, ...], Any]] = [((), features)]
    for keys, feature in waiting:
        if not isinstance(feature, tfds.features.FeaturesDict):
            continue
        fields = dict(sorted(feature.items()))  # TFDS loads them in any order
        if all(fits(name, fields.get(name)) for name in names):
            return keys
        waiting += [((*keys, key), field) for key, field in fields.items()]
    found = ", ".join("/".join(keys) for keys, _ in waiting[1:])
    raise UsageError(
        f"{dataset}: no text features named {' and '.join(map(repr, names))}; it has "
        f"{found or 'none'}"
    )


def _at(example: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        example = example[key]
    return example
