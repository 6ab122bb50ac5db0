"""Datasets of running text and of labelled text: what is in them, and bad input."""

import dataclasses
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard
from rich.console import Console

from common import lock
from common.errors import UsageError
from data_pipeline import inspect, job
from data_pipeline.dataset.examples import load_tokenizers, read_examples, read_raw_text
from data_pipeline.dataset.manifest import Manifest, load_manifest
from data_pipeline.dataset.rows import find_blocks, read_block
from data_pipeline.dataset.tokenizer import Tokenizer, load_tokenizer, train
from data_pipeline.dataset.verify import verify
from data_pipeline.job import prepare
from data_pipeline.runners.local import Runner
from data_pipeline.settings import Settings

EOS = 3
DOCUMENTS = [
    "The dog sees the cat.\n  It runs  away,\n\u00fcber the house.",
    "One line.",
    "A longer one: " + " ".join(f"word{i}" for i in range(40)),
    *(f"Document {i} has\nits {i} lines." for i in range(30)),
]


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch):
    """Only one test at a time writes into a directory, so there is nobody to wait for."""
    monkeypatch.setattr(lock, "_SETTLE_SECONDS", 0.0)


def text_settings(directory: Path, train_spec: str, valid_spec: str = "", **fields) -> Settings:
    values = {
        "task": "language_model",
        "train": (train_spec,),
        "valid": (valid_spec,) if valid_spec else (),
        "test": (),
        "source_lang": "en",
        "target_lang": "de",
        "output_dir": str(directory / "out"),
        "model_type": "char",
        "row_length": 16,
        "num_shards": 2,
        **fields,
    }
    return Settings(**values)


def write_documents(path: Path, documents=DOCUMENTS) -> str:
    path.write_text("\n" + "\n \n\n".join(documents) + "\n\n", encoding="utf-8")
    return f"text:{path}"


def contents(directory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


def documents_of(manifest: Manifest, split: str) -> list[str]:
    """The documents that the records of a split hold, in order."""
    (tokenizer,) = load_tokenizers(manifest).values()
    examples = read_examples(manifest, split)
    found: list[list[int]] = [[]]
    for index in range(len(examples)):
        ids = examples.example(index)["text"].tolist()
        assert len(ids) <= 16 and (len(ids) == 16 or ids[-1] == EOS) and EOS not in ids[:-1]
        found[-1] += ids
        if ids[-1] == EOS:
            found.append([])
    assert found.pop() == []
    return tokenizer.decode(found)


@pytest.fixture(scope="module")
def text_dataset(tmp_path_factory) -> Manifest:
    directory = tmp_path_factory.mktemp("text")
    train_spec = write_documents(directory / "a.txt")
    valid_spec = write_documents(directory / "b.txt", ["A valid\ndocument.", "And another."])
    return prepare(text_settings(directory, train_spec, valid_spec))


def test_documents_are_cut_into_pieces(text_dataset):
    train_split, valid = (text_dataset.splits[name] for name in ("train", "valid"))
    assert sorted(documents_of(text_dataset, "train")) == sorted(DOCUMENTS)
    assert documents_of(text_dataset, "train") != DOCUMENTS  # it is shuffled
    assert documents_of(text_dataset, "valid") == ["A valid\ndocument.", "And another."]
    assert read_raw_text(text_dataset, "valid") == {"text": ["A valid\ndocument.", "And another."]}
    assert (train_split.pairs_in, train_split.kept, train_split.dropped) == (33, 33, {})
    characters = sum(map(len, DOCUMENTS))
    assert train_split.characters == characters
    assert train_split.text_bytes == characters + 1  # one character of two bytes
    assert train_split.sequences["text"].tokens == characters + 33
    assert (valid.characters, valid.text_bytes, valid.kept, valid.records) == (29, 29, 2, 3)
    assert train_split.records == sum(-(-(len(text) + 1) // 16) for text in DOCUMENTS)
    verify(text_dataset)
    assert load_manifest(text_dataset.directory) == text_dataset


def test_rows_hold_all_pieces(text_dataset):
    info = text_dataset.splits["train"].rows
    assert info.features == ("text", "text_segments") and info.left_out == 0
    blocks = find_blocks(text_dataset, info)
    found = []
    for index in range(len(blocks)):
        block = read_block(blocks, index, info)
        for ids, segments in zip(block["text"], block["text_segments"], strict=True):
            found += [tuple(ids[segments == n]) for n in range(1, segments.max() + 1)]
    examples = read_examples(text_dataset, "train")
    wanted = [tuple(examples.example(i)["text"]) for i in range(len(examples))]
    assert sorted(found) == sorted(wanted)
    assert info.tokens == {"text": text_dataset.splits["train"].sequences["text"].tokens}


@pytest.mark.parametrize(
    ("documents", "count"), [("blank_lines", 33), ("file", 1), ("line", 3 + 1 + 1 + 60)]
)
def test_where_documents_begin(tmp_path, documents, count):
    spec = write_documents(tmp_path / "a.txt")
    filters = ("duplicate", "near_duplicate")
    manifest = prepare(text_settings(tmp_path, spec, documents=documents, disable_filters=filters))
    assert manifest.splits["train"].pairs_in == manifest.splits["train"].kept == count
    if documents == "file":
        assert documents_of(manifest, "train") == ["\n \n\n".join(DOCUMENTS)]


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char", "byte"])
def test_every_tokenizer_gives_the_text_back(tmp_path, model_type):
    """Of packed files that a pattern names."""
    for name, pack, part in (
        ("a.txt.gz", gzip.compress, DOCUMENTS[:9]),
        ("b.txt.zst", zstandard.compress, DOCUMENTS[9:]),
    ):
        (tmp_path / name).write_bytes(pack("\n\n".join(part).encode()))
    settings = text_settings(
        tmp_path, f"text:{tmp_path}/*.txt.*", model_type=model_type, vocab_size=300
    )
    manifest = prepare(settings)
    assert sorted(documents_of(manifest, "train")) == sorted(DOCUMENTS)
    assert manifest.tokenizers["text"].model_type == model_type
    assert manifest.tokenizers["text"].vocab_size == {"byte": 261, "char": 299}.get(model_type, 300)


def test_a_line_longer_than_sentencepiece_takes_trains_the_tokenizer(tmp_path):
    """As of a corpus that is one line: of a longer one SentencePiece would use nothing."""
    path = tmp_path / "a.txt"
    path.write_text(f"{'xyz ' * 400_000}\n\n" + "\n\n".join(DOCUMENTS))
    made = prepare(text_settings(tmp_path, f"text:{path}", model_type="char"))
    tokenizer = load_tokenizer(f"{made.directory}/tokenizer.model")
    assert not tokenizer.byte_mask()[tokenizer.encode(["xyz"])[0]].any()


def test_a_given_tokenizer_has_to_keep_line_breaks_and_know_the_symbols(tmp_path):
    """Otherwise the text would lose its lines, and symbols would be split, without a word."""
    model = tmp_path / "t.model"
    model.write_bytes(train(["a b c"], 0, "char", user_symbols=["<2de>"]))
    spec = write_documents(tmp_path / "a.txt")

    def settings(**fields):
        return text_settings(tmp_path, spec, tokenizer=(str(model),), **fields)

    with pytest.raises(UsageError, match="turns a line break into a space, and documents"):
        prepare(settings())
    with pytest.raises(UsageError, match="--user_symbols: '<2fr>' is no such piece of --tokeni"):
        prepare(settings(documents="line", user_symbols=("<2fr>",)))
    made = prepare(settings(documents="line", user_symbols=("<2de>",)))
    assert made.splits["train"].kept > 0


def test_a_given_tokenizer_has_to_sample(tmp_path):
    model = tmp_path / "t.model"
    model.write_bytes(train(["a b c"] * 9, 267, "bpe"))
    settings = label_settings(tmp_path, labelled(9), labelled(3))
    settings = dataclasses.replace(settings, tokenizer=(str(model),), segmentations=2)
    with pytest.raises(UsageError, match=r"samples from a unigram model, and --tokenizer=.* bpe;"):
        prepare(settings)
    assert not Path(settings.output_dir).exists()


def test_bits_are_of_the_text_that_is_tokenised(tmp_path):
    """A tokenizer of pairs makes one space of several."""
    model = tmp_path / "t.model"
    model.write_bytes(train(["the cat sleeps"], 0, "char"))
    path = tmp_path / "a.txt"
    path.write_text("the cat     sleeps\n   the cat  sleeps\n")
    made = prepare(
        text_settings(
            tmp_path,
            f"text:{path}",
            f"text:{path}",
            documents="line",
            tokenizer=(str(model),),
            disable_filters=("duplicate", "near_duplicate", "contaminated"),
        )
    )
    for split in made.splits.values():
        assert split.characters == split.text_bytes == 2 * len("the cat sleeps")


def test_symbols_of_a_given_tokenizer_are_not_perturbed(tmp_path):
    model = tmp_path / "t.model"
    model.write_bytes(train(["the cat THE CAT"], 0, "char", user_symbols=["<2de>"]))
    rows = [(f"<2de> the cat {number}", "xy"[number % 2]) for number in range(20)]
    made = prepare(
        text_settings(
            tmp_path,
            tsv(tmp_path / "a.tsv", rows),
            task="classification",
            tokenizer=(str(model),),
            augment=("upper:1",),
        )
    )
    info = made.splits["train"].rows
    rows_of_text = read_block(find_blocks(made, info), 0, info)["text"]
    found = " ".join(load_tokenizer(str(model)).decode(rows_of_text.tolist()))
    assert found.count("<2de>") == 20 and "<2DE>" not in found and "cat" not in found


def test_rows_in_which_nothing_fits(tmp_path):
    settings = text_settings(
        tmp_path, "builtin:train?size=50", task="classification", row_length=2, vocab_size=300
    )
    warning = "train: no example fits into a row of 2; raise --row_length"
    assert warning in prepare(settings).splits["train"].warnings


def test_a_job_that_shares_its_work_starts_over_what_another_has_left(tmp_path, monkeypatch):
    """The parts of one are not those of the other, and some are removed on the way."""

    class Stop(BaseException):
        pass

    def settings(name):
        return text_settings(tmp_path / name, "builtin:train?size=200", row_length=64)

    original = job.Job._map

    def stop_in_encode(self, label, *arguments, **options):
        if label == "encode":
            raise Stop
        return original(self, label, *arguments, **options)

    whole = prepare(settings("whole"))
    for first in (False, True):
        name = f"killed-{first}"
        monkeypatch.setattr(Runner, "shares_work", first)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
            patch.setattr(job.Job, "_map", stop_in_encode)
            prepare(settings(name))
        monkeypatch.setattr(Runner, "shares_work", not first)
        assert contents(prepare(settings(name)).directory) == contents(whole.directory)


def test_a_byte_is_a_token():
    tokenizer = Tokenizer(train(["any"], 0, "byte", keep_lines=True))
    ids = tokenizer.encode(["a \u00fc\n\U0001f600"])[0]
    assert [i - 4 for i in ids] == list("a \u00fc\n\U0001f600".encode())
    assert tokenizer.decode([ids]) == ["a \u00fc\n\U0001f600"]
    assert tokenizer.keeps_lines
    assert not Tokenizer(train(["any"], 0, "byte")).keeps_lines


def test_same_bytes_for_workers_that_share_a_file(text_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.sources.chunk.CHUNK_LINES", 5)
    monkeypatch.setattr(Runner, "shares_work", True)
    (tmp_path / "x").mkdir()
    specs = [write_documents(tmp_path / "x" / "a.txt")]
    specs.append(write_documents(tmp_path / "x" / "b.txt", ["A valid\ndocument.", "And another."]))
    made = prepare(text_settings(tmp_path, *specs))
    found, wanted = contents(made.directory), contents(text_dataset.directory)
    assert found.keys() == wanted.keys()
    # It names the files of the input.
    assert [name for name in found if found[name] != wanted[name]] == ["dataset.json"]


@pytest.mark.parametrize("task", ["language_model", "classification"])
def test_goes_on_after_a_kill(tmp_path, monkeypatch, task):
    class Stop(BaseException):
        pass

    def settings(name):
        return text_settings(
            tmp_path / name,
            "builtin:train?size=200",
            "builtin:valid?size=30",
            task=task,
            row_length=64,
        )

    original, stopped = job.Job._map, []

    def stop_after_merge(self, label, *arguments, **options):
        result = original(self, label, *arguments, **options)
        if label == "merge" and not stopped:
            stopped.append(label)
            raise Stop
        return result

    whole = prepare(settings("whole"))
    monkeypatch.setattr(job.Job, "_map", stop_after_merge)
    with pytest.raises(Stop):
        prepare(settings("killed"))
    again = prepare(settings("killed"))
    assert contents(again.directory) == contents(whole.directory)
    verify(again)


def shown(manifest: Manifest) -> str:
    output = io.StringIO()
    inspect.inspect(manifest.directory, 2, Console(width=100, file=output, markup=False))
    return output.getvalue()


def test_inspect_shows_text(text_dataset):
    text = shown(text_dataset)
    assert "every checksum and record is right" in text and "language_model: en" in text
    assert "documents in" in text and "vocabulary 299 (char)" in text
    assert "    A \u2581 <0x76> a l i d \u23ce d o c u m e n t\n" in text


def tsv(path: Path, rows) -> str:
    path.write_text("".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    return f"tsv:{path}"


def labelled(count: int, classes=("good", "bad", "so so")) -> list[tuple[str, str]]:
    words = ["the", "a", "red", "old", "dog", "cat", "man", "house", "runs", "sees", "buys"]
    rng = np.random.default_rng(0)
    return [
        (" ".join(rng.choice(words, rng.integers(3, 9))) + f" {i}.", classes[i % len(classes)])
        for i in range(count)
    ]


def label_settings(directory: Path, train_rows, valid_rows, **fields) -> Settings:
    return text_settings(
        directory,
        tsv(directory / "train.tsv", train_rows),
        tsv(directory / "valid.tsv", valid_rows),
        task="classification",
        **fields,
    )


@pytest.fixture(scope="module")
def label_dataset(tmp_path_factory) -> Manifest:
    directory = tmp_path_factory.mktemp("labels")
    settings = label_settings(
        directory,
        labelled(90),
        labelled(9)[::-1],
        row_length=64,
        model_type="unigram",
        vocab_size=290,
    )
    return prepare(settings)


def test_labels(label_dataset):
    assert label_dataset.labels == ("bad", "good", "so so")
    assert label_dataset.splits["valid"].labels == {"bad": 3, "good": 3, "so so": 3}
    # Those that are in valid are dropped from train.
    train_split = label_dataset.splits["train"]
    assert train_split.dropped == {"contaminated": 9}
    assert train_split.labels == {"bad": 27, "good": 27, "so so": 27}
    saved = json.loads((Path(label_dataset.directory) / "dataset.json").read_text())
    assert saved["task"] == "classification" and saved["labels"] == ["bad", "good", "so so"]
    (tokenizer,) = load_tokenizers(label_dataset).values()
    for split in ("train", "valid"):
        examples = read_examples(label_dataset, split)
        texts = tokenizer.decode([examples.example(i)["text"] for i in range(len(examples))])
        names = [label_dataset.labels[label] for label in examples.labels]
        pairs = list(zip(texts, names, strict=True))
        if split == "valid":
            assert pairs == labelled(9)[::-1]
            raw = read_raw_text(label_dataset, "valid")
            assert list(zip(raw["text"], raw["label"], strict=True)) == pairs
        else:
            assert sorted(pairs) == sorted(labelled(90)[9:])
    verify(label_dataset)
    text = shown(label_dataset)
    assert "texts in" in text and "  = so so" in text


def test_labels_stand_at_the_first_token_of_a_segment(label_dataset):
    info = label_dataset.splits["train"].rows
    assert info.features == ("text", "text_segments", "labels")
    blocks, found = find_blocks(label_dataset, info), []
    for index in range(len(blocks)):
        block = read_block(blocks, index, info)
        starts = np.diff(np.pad(block["text_segments"], ((0, 0), (1, 0)))) > 0
        assert ((block["labels"] > 0) == starts).all()
        found += (block["labels"][starts] - 1).tolist()
    counts = np.bincount(found).tolist()
    held = len(read_examples(label_dataset, "train")) - info.left_out
    assert sum(counts) == held and len(counts) == 3


def test_tensorflow_datasets_knows_the_labels(label_dataset):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(label_dataset.directory)
    feature = builder.info.features["label"]
    assert feature.names == ["bad", "good", "so so"]
    found = [
        (text.decode(), feature.int2str(int(label)))
        for text, label in tfds.as_numpy(
            builder.as_dataset(split="valid", as_supervised=True, shuffle_files=False)
        )
    ]
    assert found == labelled(9)[::-1]


def test_labels_and_text_of_tensorflow_datasets(label_dataset, tmp_path):
    """Classes come with their names; the text alone makes a language model's dataset."""
    spec = f"tfds:{label_dataset.directory}:valid"
    made = prepare(text_settings(tmp_path / "a", spec, task="classification", row_length=64))
    assert made.labels == ("bad", "good", "so so") and made.splits["train"].kept == 9
    made = prepare(text_settings(tmp_path / "b", spec))
    assert sorted(documents_of(made, "train")) == sorted(text for text, _ in labelled(9))


@pytest.mark.parametrize(
    ("train_rows", "valid_rows", "message"),
    [
        ([("a b", "x"), ("c d", "")], [], r"train\.tsv, line 2: has no label behind the tab"),
        (labelled(9), [("a", "good"), ("b", " ")], r"valid\.tsv, line 2: has no label"),
        (labelled(9), [("a", "new")], "--valid: the label 'new' of tsv:.* does not occur in --tr"),
        ([("a b", "x"), ("c d", "x")], [], "every example has the label 'x'; a classifier needs"),
    ],
)
def test_bad_labels(tmp_path, train_rows, valid_rows, message):
    settings = label_settings(tmp_path, train_rows, valid_rows or train_rows)
    if not valid_rows:
        settings = Settings(**{**vars(settings), "valid": ()})
    with pytest.raises(UsageError, match=message):
        prepare(settings)
    assert not Path(settings.output_dir).exists()


def test_labels_that_look_the_same_are_one(tmp_path):
    rows = [("a b", "caf\u00e9"), ("c d", "cafe\u0301"), ("e f", "x"), ("g h", "x\u200b")]
    made = prepare(label_settings(tmp_path, rows, [("i j", "cafe\u0301")]))
    assert made.labels == ("caf\u00e9", "x")
    assert made.splits["train"].labels == {"caf\u00e9": 2, "x": 2}


def test_a_line_without_a_tab(tmp_path):
    (tmp_path / "a.tsv").write_text("good text\tx\nno label\n")
    settings = text_settings(tmp_path, f"tsv:{tmp_path}/a.tsv", task="classification")
    with pytest.raises(UsageError, match=r"a\.tsv, line 2: no tab; a tsv: line is text, tab, lab"):
        prepare(settings)


def test_a_class_with_one_example_is_told(tmp_path):
    made = prepare(label_settings(tmp_path, [*labelled(40), ("a b c", "rare")], labelled(3)))
    (warning,) = made.splits["train"].warnings
    assert warning.startswith("train: the label 'rare' has 1 example; 1 of 4 labels are as rare")
    assert made.splits["train"].labels["rare"] == 1


def test_text_shorter_than_a_row(tmp_path):
    made = prepare(text_settings(tmp_path, write_documents(tmp_path / "a", ["short"])))
    assert made.splits["train"].rows.rows == 1
    (warning,) = made.splits["train"].warnings
    assert warning.startswith("train: has 6 tokens, fewer than a row of 16; add text, or lower")


@pytest.mark.parametrize(
    ("content", "fields", "message"),
    [
        (b"", {}, r"--train: no lines in text:.*a\.txt"),
        (b" \n\n \n", {}, r"--train: no lines in text:"),
        (b"a\n\nb\n\xff\n", {}, r"a\.txt, line 4: not valid UTF-8 \(byte 0xff\)"),
        (b"a\rb\rc\r", {}, r"a\.txt: its lines end with carriage returns \(2, but 0 line feeds\)"),
        (b"a", {"row_length": 0}, "--row_length=0: documents are cut into rows"),
        (b"a", {"segmentations": 2, "model_type": "unigram"}, "not documents"),
        (b"a", {"documents": "pages"}, "--documents=pages: expected blank_lines or file or line"),
        (b"a", {"task": "parsing"}, "--task=parsing: expected one of translation, language_model"),
        (b"a", {"train": ("tmx:a",)}, "unknown kind of source for --task=language_model; known"),
    ],
)
def test_bad_text(tmp_path, content, fields, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        prepare(text_settings(tmp_path, f"text:{tmp_path}/a.txt", **fields))
    assert "\n" not in str(caught.value)


def test_a_document_that_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr("data_pipeline.sources.documents.LARGEST_DOCUMENT", 50)
    spec = write_documents(tmp_path / "a.txt")
    with pytest.raises(UsageError, match=r"the document that begins in line 2 has more than.*line"):
        prepare(text_settings(tmp_path, spec))


def test_two_jobs_in_one_directory(tmp_path):
    settings = text_settings(tmp_path, write_documents(tmp_path / "a.txt"))
    with (
        lock.held(settings.output_dir),
        pytest.raises(UsageError, match=r"out is in use by process \d+ on .*; stop that process"),
    ):
        prepare(settings)
    assert prepare(settings).splits["train"].kept == 33
    assert lock.FILE not in contents(settings.output_dir)
