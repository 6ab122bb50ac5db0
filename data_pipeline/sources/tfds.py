"""Text in TensorFlow Datasets: `tfds:`."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from common.errors import UsageError
from data_pipeline.sources.chunk import Chunk, chunk_pairs
from data_pipeline.sources.text_files import TextSource

_BATCH = 1000
_DEFAULT_SPLIT = "train"
_FOLDER = "folder/"
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
        source_lang: name of the feature with the source text.
        target_lang: name of the feature with the target text.
    """

    directory: str
    split: str
    source_lang: str
    target_lang: str

    def chunks(self) -> Iterator[Chunk]:
        """Yields the examples in order.

        Raises:
            UsageError: no such split or features, text that is not UTF-8, or damaged files.
        """
        return chunk_pairs(self._name(), self._pairs())

    def fingerprint(self) -> str:
        """Returns a string that changes when the text does, from what TFDS has recorded of it."""
        builder = self._builder()
        splits = builder.info.splits
        sizes = ",".join(
            f"{name}:{split.num_examples}:{int(split.num_bytes)}"
            for name, split in sorted(splits.items())
        )
        examples = splits[self.split].num_examples
        return (
            f"tfds {builder.info.full_name} {self.split} examples={examples} {sizes} "
            f"{self.source_lang}-{self.target_lang}"
        )

    def check(self) -> None:
        """Raises `UsageError` if the split or the features do not exist."""
        _find_texts(self._builder().info.features, self._langs(), self._name())

    def _pairs(self) -> Iterator[tuple[str, str]]:
        import tensorflow as tf
        import tensorflow_datasets as tfds

        builder = self._builder()
        place = _find_texts(builder.info.features, self._langs(), self._name())
        # Shards one after the other, not in turns, and no copy of the dataset in memory.
        config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        examples = builder.as_dataset(split=self.split, shuffle_files=False, read_config=config)
        texts = examples.map(lambda example: [_at(example, (*place, x)) for x in self._langs()])
        number = 1
        try:
            for batch in texts.batch(_BATCH).prefetch(2).as_numpy_iterator():
                for pair in zip(*batch, strict=True):
                    source, target = (self._decode(number, text) for text in pair)
                    yield source, target
                    number += 1
        except tf.errors.OpError as error:
            raise UsageError(
                f"{self._name()}: cannot be read ({error.message}); prepare it again"
            ) from error

    def _decode(self, number: int, text: bytes) -> str:
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{self._name()}, example {number}: not valid UTF-8; mend the text and prepare the "
                "dataset again"
            ) from error

    def _builder(self) -> Any:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(self.directory)
        try:
            _ = builder.info.splits[self.split]
        except (KeyError, ValueError, AssertionError) as error:
            known = ", ".join(sorted(builder.info.splits)) or "none"
            raise UsageError(
                f"{self._name()}: no such split; there are {known}, and slices such as train[:10%]"
            ) from error
        return builder

    def _langs(self) -> tuple[str, str]:
        return self.source_lang, self.target_lang

    def _name(self) -> str:
        return f"tfds:{self.directory}:{self.split}"


def parse_tfds(rest: str, source_lang: str, target_lang: str) -> list[TfdsSource | TextSource]:
    """Returns the source of a `tfds:` spec.

    Args:
        rest: one of `NAME[/CONFIG][:SPLIT][?data_dir=DIR]` (a dataset that TFDS has prepared),
            `DIR[:SPLIT]` (the directory of one of its versions) and `folder/DIR[:SPLIT]` (the
            layout of `tfds.TranslateFolder`: DIR/LANG.SPLIT.txt).
        source_lang: feature or file name of the source side.
        target_lang: likewise.
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
    for option in options:
        raise UsageError(f"{spec}: unknown option {option!r}; known is data_dir")
    if name.startswith(_FOLDER):
        return [_folder_source(name.removeprefix(_FOLDER), split, source_lang, target_lang)]
    directory = _prepared_directory(spec, name, data_dir)
    source = TfdsSource(directory, split, source_lang, target_lang)
    source.check()
    return [source]


def _folder_source(directory: str, split: str, source_lang: str, target_lang: str) -> TextSource:
    """Returns the source of a folder as `tfds.TranslateFolder` reads it, but reads it in parts.

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
    """Returns where the dataset is; finds files only, so it needs neither its code nor a network.

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


def _find_texts(features: Any, langs: tuple[str, str], name: str) -> tuple[str, ...]:
    """Returns the keys that lead to the features named after both languages.

    Args:
        features: of the dataset, a `tfds.features.FeaturesDict` (`Translation` is one).
        langs: names of two text features.
        name: of the dataset, for messages.

    Raises:
        UsageError: there are no such features.
    """
    import tensorflow_datasets as tfds

    waiting: list[tuple[tuple[str, ...], Any]] = [((), features)]
    for keys, feature in waiting:
        if not isinstance(feature, tfds.features.FeaturesDict):
            continue
        fields = dict(sorted(feature.items()))  # TFDS loads them in any order
        if all(isinstance(fields.get(lang), tfds.features.Text) for lang in langs):
            return keys
        waiting += [((*keys, key), field) for key, field in fields.items()]
    found = ", ".join("/".join(keys) for keys, _ in waiting[1:])
    raise UsageError(
        f"{name}: no text features named {langs[0]!r} and {langs[1]!r}; it has {found or 'none'}"
    )


def _at(example: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        example = example[key]
    return example
