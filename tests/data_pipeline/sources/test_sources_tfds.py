import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from common.errors import UsageError
from data_pipeline.sources.spec import parse_spec
from data_pipeline.sources.text_files import TextSource

PAIRS = [(f"sentence {i}", f"Satz {i} läuft") for i in range(100)]


class TinyPairs(tfds.core.GeneratorBasedBuilder):
    """Pairs of a text file, as features of three kinds."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="translation"),
        tfds.core.BuilderConfig(name="nested"),
        tfds.core.BuilderConfig(name="text"),
        tfds.core.BuilderConfig(name="odd"),
    ]
    path = ""

    def _info(self):
        kinds = {
            "translation": tfds.features.Translation(["de", "en", "fr"]),
            "nested": tfds.features.FeaturesDict(
                {"id": np.int64, "pair": tfds.features.Translation(["de", "en"])}
            ),
            "text": tfds.features.FeaturesDict(
                {"de": tfds.features.Text(), "en": tfds.features.Text(), "weight": np.float32}
            ),
            "odd": tfds.features.FeaturesDict({"en": tfds.features.Text(), "de": np.int64}),
        }
        return tfds.core.DatasetInfo(builder=self, features=kinds[self.builder_config.name])

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 90), "test": self._generate_examples(90, 100)}

    def _generate_examples(self, begin, end):
        lines = Path(self.path).read_text(encoding="utf-8").splitlines()
        for number in range(begin, end):
            source, target = (text.replace("|", "\n") for text in lines[number].split("\t"))
            yield (
                number,
                {
                    "translation": {"en": source, "de": target, "fr": "x"},
                    "nested": {"id": number, "pair": {"en": source, "de": target}},
                    "text": {"en": source, "de": target, "weight": 0.5},
                    "odd": {"en": source, "de": number},
                }[self.builder_config.name],
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A TFDS data directory with the four configs, prepared from a local file."""
    directory = tmp_path_factory.mktemp("tfds")
    TinyPairs.path = str(directory / "pairs.tsv")
    lines = ["\t".join(pair) for pair in PAIRS]
    Path(TinyPairs.path).write_text("\n".join(lines), encoding="utf-8")
    download = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=3)
    for config in TinyPairs.BUILDER_CONFIGS:
        builder = TinyPairs(config=config.name, data_dir=directory)
        builder.download_and_prepare(download_config=download)
    assert len(list(directory.glob("tiny_pairs/text/1.2.0/*train.tfrecord*"))) == 3
    return directory


def read(spec: str, source_lang: str = "en", target_lang: str = "de") -> list[tuple[str, str]]:
    """Returns all pairs of a spec."""
    found = pickle.loads(pickle.dumps(parse_spec(spec, source_lang, target_lang)))
    return [pair for source in found for chunk in source.chunks() for pair in chunk.rows()]


@pytest.mark.parametrize("config", ["translation", "nested", "text"])
def test_features_of_several_kinds(data_dir, config):
    spec = f"tfds:tiny_pairs/{config}"
    train = read(f"{spec}?data_dir={data_dir}")
    assert train != PAIRS[:90] and sorted(train) == sorted(PAIRS[:90])  # TFDS has shuffled them
    assert sorted(read(f"{spec}:test?data_dir={data_dir}")) == sorted(PAIRS[90:])
    swapped = [(target, source) for source, target in train]
    assert read(f"{spec}:train?data_dir={data_dir}", "de", "en") == swapped


def test_order_is_that_of_the_files(data_dir):
    directory = data_dir / "tiny_pairs" / "translation" / "1.2.0"
    config = tfds.ReadConfig(interleave_cycle_length=1)
    stored = tfds.builder_from_directory(directory).as_dataset(split="train", read_config=config)
    expected = [(x["en"].decode(), x["de"].decode()) for x in tfds.as_numpy(stored)]
    assert read(f"tfds:{directory}") == expected
    assert read(f"tfds:{directory}:train") == expected


def test_slices(data_dir):
    spec = f"tfds:{data_dir}/tiny_pairs/text/1.2.0"
    train, test = read(f"{spec}:train"), read(f"{spec}:test")
    assert read(f"{spec}:train[:10%]") == train[:9]
    assert read(f"{spec}:train[80:]+test[:3]") == train[80:] + test[:3]
    assert read(f"tfds:tiny_pairs/text:train[5:7]?data_dir={data_dir}") == train[5:7]
    assert read(f"tfds:tiny_pairs/text:1.2.0:train[-2:]?data_dir={data_dir}") == train[-2:]


def test_it_needs_no_code_of_the_dataset(data_dir):
    script = (
        "import sys\n"
        "from data_pipeline.sources.spec import parse_spec\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"source, = parse_spec('tfds:tiny_pairs/nested:test?data_dir={data_dir}', 'en', 'de')\n"
        "print(sum(len(chunk.rows()) for chunk in source.chunks()))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "10\n", done.stderr


def test_newlines_become_spaces(data_dir, tmp_path, monkeypatch):
    path = tmp_path / "pairs.tsv"
    path.write_text("one|two\teins|\n" * 100)
    monkeypatch.setattr(TinyPairs, "path", str(path))
    TinyPairs(config="text", data_dir=tmp_path).download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    pairs = read(f"tfds:tiny_pairs/text:test?data_dir={tmp_path}")
    assert pairs == [("one two", "eins ")] * 10


def test_fingerprint(data_dir):
    def fingerprint(rest, *langs):
        return parse_spec(f"tfds:tiny_pairs/{rest}?data_dir={data_dir}", *langs)[0].fingerprint()

    mark = fingerprint("text:test", "en", "de")
    assert mark.startswith("tfds tiny_pairs/text/1.2.0 test examples=10 test:10:")
    assert mark == fingerprint("text:test", "en", "de")
    others = [
        fingerprint("text:train", "en", "de"),
        fingerprint("text:test[:5]", "en", "de"),
        fingerprint("text:test", "de", "en"),
        fingerprint("nested:test", "en", "de"),
    ]
    assert len({mark, *others}) == 5


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        (
            "tiny_pairs/text:valid?data_dir=DIR",
            "no such split; there are test, train, and slices such as train[:10%]",
        ),
        ("tiny_pairs/text:train[:10%?data_dir=DIR", "'tfds:tiny_pairs/text:train[:10%?data_dir="),
        ("tiny_pairs/text:train[x]?data_dir=DIR", "no such split"),
        ("tiny_pairs/text:train[5:5]?data_dir=DIR", "the split has no examples; choose another"),
        ("tiny_pairs/text:train[:0%]?data_dir=DIR", "the split has no examples; choose another"),
        (
            "tiny_pairs/odd?data_dir=DIR",
            "no text features named 'en' and 'de'; it has de, en",
        ),
        ("tiny_pairs/text?data_dir=DIR&size=5", "unknown option 'size'; known is data_dir"),
        (
            "tiny_pairs/other?data_dir=DIR",
            "not prepared in DIR; run tfds build, or in Python tensorflow_datasets.builder("
            "'tiny_pairs/other', data_dir='DIR').download_and_prepare()",
        ),
        ("no_such_dataset?data_dir=DIR", "not prepared in DIR; run tfds build"),
        ("no_such_dataset/", "'tfds:no_such_dataset/': Parsing builder name string"),
        ("DIR/tiny_pairs", "DIR/tiny_pairs has no features.json; name the directory of a version"),
        ("./nowhere:test", "./nowhere has no features.json"),
        ("", "expected tfds:NAME"),
        ("?data_dir=DIR", "expected tfds:NAME"),
    ],
)
def test_bad_specs(data_dir, rest, message):
    with pytest.raises(UsageError) as caught:
        parse_spec(f"tfds:{rest}".replace("DIR", str(data_dir)), "en", "de")
    assert message.replace("DIR", str(data_dir)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wmt_that_is_not_prepared(tmp_path):
    with pytest.raises(UsageError, match=r"de-en\?data_dir=/.*': not prepared in /.*; run"):
        parse_spec(f"tfds:wmt14_translate/de-en?data_dir={tmp_path}", "en", "de")


def test_damaged_files(data_dir, tmp_path):
    directory = tmp_path / "1.2.0"
    shutil.copytree(data_dir / "tiny_pairs" / "text" / "1.2.0", directory)
    shard = next(directory.glob("*train.tfrecord-00001*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(UsageError, match=r"1\.2\.0:train cannot be read: .*; prepare it again"):
        read(f"tfds:{directory}")
    shard.unlink()
    with pytest.raises(UsageError, match=r"1\.2\.0:train cannot be read: .*; prepare it again"):
        read(f"tfds:{directory}")
    for name in ("features.json", "dataset_info.json"):
        (directory / name).write_text("{")
        with pytest.raises(UsageError, match=r"1\.2\.0:train: cannot be opened \(.*; prepare it"):
            read(f"tfds:{directory}")


def test_folder(tmp_path):
    for lang, lines in (("en", "one\ntwo\u2028half\n"), ("de", "eins\nzwei")):
        (tmp_path / f"{lang}.train.txt").write_text(lines)
        (tmp_path / f"{lang}.test-a.txt").write_text(f"{lang}\n")
    spec = f"tfds:folder/{tmp_path}"
    assert read(spec) == read(f"{spec}:train") == [("one", "eins"), ("two\u2028half", "zwei")]
    assert read(f"{spec}:test-a", "de", "en") == [("de", "en")]
    (source,) = parse_spec(spec, "en", "de")
    assert source == TextSource(f"{tmp_path}/en.train.txt", f"{tmp_path}/de.train.txt")
    # The layout is that of TFDS itself, which would see three lines in en.train.txt.
    (tmp_path / "en.train.txt").unlink()
    stored = tfds.TranslateFolder(str(tmp_path)).as_dataset(split="test-a")
    assert [x["de"] for x in tfds.as_numpy(stored)] == [b"de"]


@pytest.mark.parametrize("split", ["valid", "train[:1]"])
def test_folder_without_the_files(tmp_path, split):
    (tmp_path / "en.train.txt").write_text("one\n")
    (tmp_path / "de.train.txt").write_text("eins\n")
    with pytest.raises(UsageError) as caught:
        parse_spec(f"tfds:folder/{tmp_path}:{split}", "en", "de")
    assert str(caught.value).startswith(f"{tmp_path}/en.{split}.txt: no such file; tfds:folder")
