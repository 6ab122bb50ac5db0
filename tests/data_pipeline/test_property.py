"""The whole job on thousands of random dirty corpora, against a plain model of what it promises.

The model reads each pair as a person would, one at a time and with the obvious function of the
standard library; the job works on arrays, chunks, partitions and shards. They must agree on every
pair: what is kept, what is dropped and why, what `dataset.json` counts, what every file holds.
"""

import contextlib
import functools
import gzip
import html
import itertools
import math
import os
import shutil
import struct
import tempfile
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from data_pipeline import chunks, job, pipeline
from data_pipeline.cleaning import FILTERS
from data_pipeline.errors import UsageError
from data_pipeline.pipeline import WORK_DIR, prepare
from data_pipeline.progress import Display
from data_pipeline.records import load_tokenizer, verify
from data_pipeline.rows import FEATURES
from data_pipeline.runner import Runner
from data_pipeline.settings import CORPUS_FILTERS, Settings
from data_pipeline.shuffle import make_keys
from data_pipeline.tokenizer import EOS_ID

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "2000"))

Pair = tuple[str, str]

# ---- Corpora. Few sentences, so that duplicates and leaks are frequent.

SENTENCES = [
    ("The old dog sees a cat.", "Der alte Hund sieht eine Katze."),
    ("The old man buys a café today.", "Der alte Mann kauft heute ein Café."),
    ("A cat runs.", "Eine Katze läuft."),
    ("Yes.", "Ja."),
    ("Who likes red wine?", "Wer mag Rotwein?"),
    ("We sing.", "Wir singen."),
    ("It is 7 o'clock.", "Es ist 7 Uhr."),
    ("She reads a book in the old garden.", "Sie liest ein Buch im alten Garten."),
    ("Open the door, please!", "Öffnen Sie bitte die Tür!"),
    ("AT&T buys the red house on the hill.", "AT&T kauft das rote Haus auf dem Hügel, groß."),
]
_MIDDLE = {
    "line separator": "\u2028",
    "next line": "\x85",
    "no-break space": "\xa0",
    "carriage return": "\r",
    "file separator": "\x1c",
    "tab": "\t",
    "zero width": "\u200b",
    "soft hyphen": "\xad",
    "nul": "\x00",
    "bell": "\x07",
    "joiner": "\u200d",
    "apart accent": "e\u200b\u0301",
    "entity": " &amp; ",
    "escaped twice": " &amp;#39;s ",
    "entity of a newline": "&#10;",
    "entity of a tab": "&#9;",
    "entity of nothing": "&#0;",
    "mojibake": " fÃ¼r ",
    "mojibake quote": "â€™s",
    "replacement": "\ufffd",
    "space mark": "\u2581",
    "emoji": " \U0001f469\u200d\U0001f4bb ",
    "ligature": "\ufb01",
    "two letters from one": "\u0130\u1e9e",
    "digits": " 12",
}
EDITS = {
    "none": lambda text: text,
    "upper": str.upper,
    "exclaim": lambda text: text.rstrip(".") + " !",
    "spaces": lambda text: f"  {text.replace(' ', '  ')} ",
    "apart": lambda text: unicodedata.normalize("NFD", text),
    "wide": lambda text: text.replace("a", "\uff41"),
    "mark": lambda text: "\ufeff" + text,
    "ends in a return": lambda text: text + "\r",
    "empty": lambda text: "",
    "blank": lambda text: " \xa0\t",
    "invisible": lambda text: "\u200b\ufeff",
    "punctuation": lambda text: "?!",
    "number": lambda text: "17",
    "numbers": lambda text: "1 234 567 890 123 456 789 012 345.50",
    "Cyrillic": lambda text: "Старая собака видит кошку",
    "Chinese": lambda text: "老狗看见一只猫。",
    "half Cyrillic": lambda text: "dog собака",
    "long": lambda text: " ".join([text] * 12),
    "one long word": lambda text: "Donau" * 30,
    **{
        name: lambda text, insert=insert: text[: len(text) // 2] + insert + text[len(text) // 2 :]
        for name, insert in _MIDDLE.items()
    },
}
TOGETHER = {
    "none": lambda pair: pair,
    "same": lambda pair: (pair[0], pair[0]),
    "swapped": lambda pair: pair[::-1],
    "short": lambda pair: (pair[0], "Ja"),
}


def _edit(number: int, together: str, edits: tuple[str, str, str]) -> Pair:
    source, target = TOGETHER[together](SENTENCES[number])
    # The last edit befalls both sides, as in a near duplicate.
    sides = [
        EDITS[edits[2]](EDITS[edit](text))
        for edit, text in zip(edits[:2], (source, target), strict=True)
    ]
    return sides[0], sides[1]


# Most pairs have no more than one defect, or nothing would be left.
_edits = st.sampled_from([*["none"] * 3 * len(EDITS), *EDITS])
pairs = st.builds(
    _edit,
    st.integers(0, len(SENTENCES) - 1),
    st.sampled_from([*["none"] * 6, *TOGETHER]),
    st.tuples(_edits, _edits, st.sampled_from(["none"] * 6 + ["upper", "exclaim", "apart"])),
)


@dataclass(frozen=True)
class Input:
    """A source as it lies on the disk."""

    pairs: list[Pair]
    form: str
    weight: float = 1
    crlf: bool = False
    mark: bool = False
    final_newline: bool = True

    def write(self, stem: Path) -> tuple[str, list[Pair]]:
        """Writes it; returns the spec and what a reader has to see."""
        if "tsv" in self.form:
            sides = [["\t".join(pair) for pair in self.pairs]]
        else:
            sides = [[pair[side] for pair in self.pairs] for side in (0, 1)]
        names, read = [], []
        for number, lines in enumerate(sides):
            end = "\r\n" if self.crlf else "\n"
            content = "".join(line + end for line in lines)
            if lines and lines[-1].strip("\ufeff") and not self.final_newline:
                content = content.removesuffix(end)
            content = "\ufeff" * self.mark + content
            data = content.encode()
            if "gz" in self.form:
                # Two members, as parallel packers write them.
                half = len(data) // 2
                data = gzip.compress(data[:half], 1) + gzip.compress(data[half:], 1)
            path = Path(f"{stem}.{number}{'.gz' * ('gz' in self.form)}")
            path.write_bytes(data)
            names.append(str(path))
            seen = content.removeprefix("\ufeff").split("\n")
            # Behind the last newline no line begins.
            seen = seen if seen[-1] else seen[:-1]
            read.append([line.removesuffix("\r") for line in seen])
        if "tsv" in self.form:
            found = [tuple(line.split("\t")[:2]) for line in read[0]]
        else:
            found = list(zip(*read, strict=True))
        weight = f"{self.weight}*" if self.weight != 1 else ""
        return f"{weight}{self.form[:4].rstrip('.')}:{','.join(names)}", found


_forms = st.sampled_from(["text", "tsv", "text.gz", "tsv.gz"])
_weights = st.sampled_from([1, 1, 1, 2, 0.5, 2.5])
train_inputs = st.lists(
    st.builds(Input, st.lists(pairs, max_size=6), _forms, _weights, *[st.booleans()] * 3),
    min_size=1,
    max_size=3,
)
# Seldom empty: that is an error.
_few_pairs = st.one_of(*[st.lists(pairs, min_size=1, max_size=3)] * 7, st.just([]))
held_out_inputs = st.none() | st.builds(Input, _few_pairs, _forms, st.just(1), *[st.booleans()] * 3)
SWITCHES = sorted({*FILTERS, *CORPUS_FILTERS} - {"language"})
options = st.fixed_dictionaries(
    {
        "disable_filters": st.just(()) | st.lists(st.sampled_from(SWITCHES), max_size=8).map(tuple),
        "num_shards": st.integers(1, 4),
        "row_length": st.sampled_from([0, 16, 64]),
        "segmentations": st.integers(1, 3),
        "max_tokens": st.sampled_from([4, 30, 60, 60, 250]),
        "max_length_ratio": st.sampled_from([1.0, 2.0, 9.0]),
        "seed": st.integers(0, 3),
        "joint_vocabulary": st.booleans(),
        "keep_rejected": st.sampled_from([True, True, True, False]),
    }
)
sizes = st.tuples(
    st.sampled_from([1, 3, 50_000]),  # PARTITION_PAIRS
    st.sampled_from([1, 2, 10_000]),  # CHUNK_LINES
    st.sampled_from([1, 2, 32, 32]),  # BLOCK_ROWS
    st.booleans(),  # the way through raw chunks, which a runner with several workers takes
)


# ---- What the job promises, one pair at a time.

INVISIBLE = {*map(chr, (0x61C, 0x200E, 0x200F, 0xAD, 0x200B, 0x2060, 0xFEFF))}
INVISIBLE |= {*map(chr, itertools.chain(range(0x202A, 0x202F), range(0x2066, 0x206A)))}


def is_invisible(c: str) -> bool:
    return c in INVISIBLE or (unicodedata.category(c) == "Cc" and not c.isspace())


CHANGES = {
    "html_entities": lambda text: html.unescape(html.unescape(text)),
    "control_characters": lambda text: "".join(c for c in text if not is_invisible(c)),
    "nfc": lambda text: unicodedata.normalize("NFC", text),
    "white_space": lambda text: " ".join(text.replace("\u2581", "_").split()),
}


def form(text: str) -> str:
    """Case, width, punctuation and white space do not count, unless there is nothing else."""
    text = unicodedata.normalize("NFC", text)
    plain = [unicodedata.normalize("NFKC", c).casefold() for c in text]
    kept = [c for c in "".join(plain) if unicodedata.category(c)[0] in "LMN"]
    return "".join(kept) or text.strip()


def few_letters(text: str) -> bool:
    letters = sum(unicodedata.category(c)[0] in "LM" for c in text)
    return len(text) >= 25 and letters < 0.3 * len(text.replace(" ", ""))


def is_foreign(text: str) -> bool:
    scripts = [
        unicodedata.name(unicodedata.normalize("NFKC", c)[0]).split()[0]
        for c in text
        if c.isalpha()
    ]
    return len(scripts) >= 3 and scripts.count("LATIN") < len(scripts) / 2


def drop_reason(raw: Pair, pair: Pair, set_up: Settings, leaks: set[str]) -> str | None:
    """Why a pair is dropped when nothing but it is known."""
    source, target = pair
    lengths = sorted(map(len, pair))
    checks = {
        "empty": not source or not target,
        "too_many_characters": lengths[1] > 16 * set_up.max_tokens,
        "length_ratio": lengths[1] > 20 + set_up.max_length_ratio * lengths[0],
        "identical": source == target and len(source) >= 20 and len(source.split(" ")) >= 4,
        "replacement_character": "\ufffd" in source + target,
        "mojibake": any(bad in text for bad in ("Ã¼", "â€", "Â€") for text in raw),
        "non_letters": few_letters(source) or few_letters(target),
        "wrong_script": is_foreign(source) or is_foreign(target),
        "contaminated": form(source) in leaks,
    }
    return next((name for name, is_so in checks.items() if is_so and name in set_up.filters), None)


class Model:
    """What has to become of the training text."""

    def __init__(self, train, weights, held_out, set_up: Settings, models):
        self.dropped, self.rejected, self.changed = Counter(), Counter(), Counter()
        self.records, self.kept = Counter(), 0
        self.pairs_in = sum(map(len, train))
        steps = [name for name in CHANGES if name in (*set_up.filters, "nfc", "white_space")]
        leaks = leaked_forms(held_out)
        groups = defaultdict(list)
        for position, (of_source, weight) in enumerate(zip(train, weights, strict=True)):
            for raw in of_source:
                pair = self._clean(raw, steps)
                reason = drop_reason(raw, pair, set_up, leaks)
                if reason:
                    self._drop(reason, raw)
                    continue
                forms = form(pair[0]), form(pair[1])
                for copy in range(math.ceil(weight)):
                    if self._is_chosen(set_up.seed, copy, forms, weight - copy):
                        groups[copy, forms].append((position, f"{pair[0]}\t{pair[1]}\n".encode()))
                    elif not copy:
                        self.dropped["weight"] += 1
        for (copy, _), members in groups.items():
            self._merge(copy, sorted(members), set_up, models)

    def _clean(self, raw: Pair, steps: list[str]) -> Pair:
        pair, changed = [], set()
        for text in raw:
            for name in steps:
                new = CHANGES[name](text)
                changed |= {name} if new != text else set()
                text = new
            pair.append(text)
        self.changed.update(changed)
        return pair[0], pair[1]

    def _drop(self, reason: str, pair: Pair) -> None:
        self.dropped[reason] += 1
        self.rejected[(reason, *(text.replace("\t", " ") for text in pair))] += 1

    @staticmethod
    def _is_chosen(seed: int, copy: int, forms: Pair, share: float) -> bool:
        (key,) = make_keys(seed, copy, ["\t".join(forms)]).tolist()
        return (key % 2**32) / 2**32 < share

    def _merge(self, copy: int, members, set_up: Settings, models) -> None:
        """Of pairs with equal forms the first stays."""
        texts = [tuple(line.decode()[:-1].split("\t")) for _, line in members]
        for number, pair in enumerate(texts):
            reason = None
            if pair in texts[:number] and "duplicate" in set_up.filters:
                reason = "duplicate"
            elif pair != texts[0] and "near_duplicate" in set_up.filters:
                reason = "near_duplicate"
            elif any(
                len(model.encode(text)) > set_up.max_tokens
                for model, text in zip(models, pair, strict=True)
            ):
                reason = "too_many_tokens"
            if not reason:
                self.records[pair] += 1
                self.kept += not copy
            elif not copy:
                self._drop(reason, pair)


def leaked_forms(held_out: dict[str, list[Pair]]) -> set[str]:
    """The source sides of valid and test, read as text and as text with entities."""
    found = set()
    for source, _ in itertools.chain.from_iterable(held_out.values()):
        for text in (source, CHANGES["html_entities"](source)):
            found |= {form(text), form(CHANGES["nfc"](CHANGES["control_characters"](text)))}
    return found - {""}


class Spelling:
    """A tokenizer that remembers: the same few texts come again and again."""

    def __init__(self, path: str):
        self.path = path
        tokenizer = load_tokenizer(path)
        self.encode = functools.cache(lambda text: tokenizer.encode_normalized([text])[0])
        self._decode = functools.cache(lambda ids: tokenizer.decode([ids])[0])

    def decode(self, ids) -> str:
        return self._decode(tuple(map(int, ids)))


# ---- What the files say, read without the code that wrote them.


def read_records(path: Path) -> list[dict]:
    """The features of each record of a TFRecord file."""
    data, place, found = path.read_bytes(), 0, []
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        example = tf.train.Example.FromString(data[place + 12 : place + 12 + length])
        found.append(example.features.feature)
        place += 16 + length
    return found


def read_pair(features, models) -> Pair:
    """The text of a record, which its ids have to spell."""
    pair = tuple(features[lang].bytes_list.value[0].decode() for lang in ("en", "de"))
    ids = [list(features[f"{side}_ids"].int64_list.value) for side in ("source", "target")]
    spelled = tuple(model.decode(side) for model, side in zip(models, ids, strict=True))
    assert spelled == tuple(CHANGES["white_space"](text) for text in pair)
    return pair


def read_rows(directory: Path, info, models) -> list[Pair]:
    """The pairs in the packed rows, in order."""
    found, real = [], [0, 0]
    for record in itertools.chain(*(read_records(directory / file.name) for file in info.files)):
        row = [np.frombuffer(record[name].bytes_list.value[0], "<u2") for name in FEATURES]
        assert all(len(numbers) == info.row_length for numbers in row)
        texts = []
        for side, model in enumerate(models):
            tokens, segments = row[2 * side], row[2 * side + 1]
            used = np.count_nonzero(segments)
            real[side] += used
            assert not tokens[used:].any() and not segments[used:].any()
            assert set(np.diff(segments[:used]).tolist()) <= {0, 1} and segments[0] == 1
            parts = np.split(tokens[:used], np.flatnonzero(np.diff(segments[:used])) + 1)
            assert all(part[-1] == EOS_ID and EOS_ID not in part[:-1] for part in parts)
            texts.append([model.decode(part[:-1]) for part in parts])
        found += zip(*texts, strict=True)
    assert real == [info.source_tokens, info.target_tokens]
    return found


# ---- The test.


@pytest.fixture(scope="module")
def models(tmp_path_factory, sentences, write_text) -> list[Spelling]:
    """A joint model and another one."""
    directory = tmp_path_factory.mktemp("models")
    found = []
    for seed in range(2):
        spec = write_text(directory / f"text{seed}", "a", sentences(300, seed))
        fields = {"train": (spec,), "valid": (), "test": (), "row_length": 0, "vocab_size": 300}
        made = prepare(
            Settings(
                source_lang="en",
                target_lang="de",
                output_dir=str(directory / f"data{seed}"),
                **fields,
            )
        )
        found.append(Spelling(made.path(made.source_tokenizer)))
    return found


@pytest.fixture
def place(monkeypatch):
    """A directory, in memory if possible; the job shows nothing, which would take half its time."""
    monkeypatch.setattr(Display, "summary", lambda *_: None)
    monkeypatch.setattr(Display, "phase", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(Display, "say", lambda *_: None)
    for name in ("PARTITION_PAIRS", "BLOCK_ROWS"):
        monkeypatch.setattr(job, name, getattr(job, name))
    monkeypatch.setattr(chunks, "CHUNK_LINES", chunks.CHUNK_LINES)
    monkeypatch.setattr(Runner, "shares_work", Runner.shares_work)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(train_inputs, held_out_inputs, held_out_inputs, options, sizes)
def test_any_corpus(models, place, train, valid, test, option, size):
    job.PARTITION_PAIRS, chunks.CHUNK_LINES, job.BLOCK_ROWS, Runner.shares_work = size
    directory = place / "example"
    directory.mkdir()
    try:
        _check(models, directory, train, {"valid": valid, "test": test}, option)
    finally:
        shutil.rmtree(directory)


def _check(models, directory: Path, train, others, option) -> None:
    written = [of_source.write(directory / f"train{i}") for i, of_source in enumerate(train)]
    held = {name: made.write(directory / name) for name, made in others.items() if made}
    if not option["row_length"]:
        option = {**option, "segmentations": 1}
    joint = option["joint_vocabulary"]
    out = directory / "out"
    set_up = Settings(
        train=tuple(spec for spec, _ in written),
        **{name: (held[name][0],) if name in held else () for name in ("valid", "test")},
        source_lang="en",
        target_lang="de",
        output_dir=str(out),
        tokenizer=tuple(model.path for model in models[: 2 - joint]),
        **option,
    )
    loaded = [models[0], models[0 if joint else 1]]
    held_out = {name: found for name, (_, found) in held.items()}
    texts = [found for _, found in written]
    model = Model(texts, [of_source.weight for of_source in train], held_out, set_up, loaded)
    unreadable = not model.pairs_in or not all(held_out.values())
    event("refused" if unreadable or not model.kept else "made")
    if unreadable or not model.kept:
        expected = "no lines in" if unreadable else "is left after cleaning"
        with pytest.raises(UsageError, match=expected):
            prepare(set_up)
        assert not out.exists()
        return
    manifest = prepare(set_up)
    _check_train(manifest.splits["train"], out, model, set_up, loaded)
    _check_rows(manifest.splits["train"], out, model, set_up, loaded)
    assert set(manifest.splits) == {"train", *held_out}
    for name, found in held_out.items():
        _check_held_out(manifest.splits[name], out, name, found, loaded)
    verify(manifest)
    _check_second_run(manifest, out, set_up)


def _check_train(split, out: Path, model: Model, set_up: Settings, models) -> None:
    assert split.pairs_in == model.pairs_in == split.kept + sum(split.dropped.values())
    assert (split.dropped, split.kept) == (dict(+model.dropped), model.kept)
    assert split.changed == dict(+model.changed)
    assert split.records == model.records.total() == sum(file.records for file in split.files)
    counts = [file.records for file in split.files]
    assert len(counts) == set_up.num_shards and max(counts) - min(counts) <= 1
    shards = [read_records(out / file.name) for file in split.files]
    assert list(map(len, shards)) == counts
    found = Counter(read_pair(record, models) for record in itertools.chain(*shards))
    assert found == model.records
    if set_up.keep_rejected:
        lines = (out / "train.rejected.tsv").read_bytes().decode().split("\n")
        assert lines.pop() == ""
        assert Counter(tuple(line.split("\t")) for line in lines) == model.rejected
    else:
        assert not (out / "train.rejected.tsv").exists()


def _check_rows(split, out: Path, model: Model, set_up: Settings, models) -> None:
    info = split.rows
    if not set_up.row_length:
        assert info is None
        return
    counts = [file.records for file in info.files]
    assert len(counts) == set_up.num_shards and sum(counts) == info.rows
    blocks = [-(-count // info.block_rows) for count in counts]
    assert max(blocks) - min(blocks) <= 1
    found = Counter(read_rows(out, info, models))
    wanted = Counter()
    fit = 0
    for pair, count in model.records.items():
        spelled = tuple(CHANGES["white_space"](text) for text in pair)
        wanted[spelled] += count * set_up.segmentations
        ids = [model.encode(text) for model, text in zip(models, pair, strict=True)]
        fit += count * (max(map(len, ids)) < set_up.row_length)
    assert found <= wanted
    assert found.total() + info.left_out == wanted.total()
    if set_up.segmentations == 1:
        assert found.total() == fit


def _check_held_out(split, out: Path, name: str, found: list[Pair], models) -> None:
    assert (split.pairs_in, split.kept, split.dropped) == (len(found), len(found), {})
    for lang, side in zip(("en", "de"), zip(*found, strict=True), strict=True):
        text = "".join(f"{line}\n" for line in side)
        assert (out / f"{name}.{lang}.txt").read_bytes().decode() == text
    records = [record for file in split.files for record in read_records(out / file.name)]
    assert len(records) == len(found)
    for record, pair in zip(records, found, strict=True):
        for lang, side, text, model in zip(
            ("en", "de"), ("source", "target"), pair, models, strict=True
        ):
            assert record[lang].bytes_list.value[0].decode() == text
            clean = text
            for step in ("control_characters", "nfc", "white_space"):
                clean = CHANGES[step](clean)
            ids = list(record[f"{side}_ids"].int64_list.value)
            assert model.decode(ids) == clean


def _check_second_run(manifest, out: Path, set_up: Settings) -> None:
    """It finds everything done: nothing is made and no file is touched."""
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    assert WORK_DIR not in before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "Job", None)
        assert prepare(set_up).fingerprint == manifest.fingerprint
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
