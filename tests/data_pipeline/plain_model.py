"""What the data job promises, one pair at a time and with the obvious functions."""

import functools
import html
import itertools
import math
import struct
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import tensorflow as tf

from data_pipeline.dataset.packing import features
from data_pipeline.dataset.tokenizer import EOS_ID, load_tokenizer
from data_pipeline.settings import Settings
from data_pipeline.shuffle import make_keys
from tests.data_pipeline.dirty_corpora import Pair

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
    """Case, width, white space and punctuation do not count, unless there is nothing else.

    Punctuation before a digit does.
    """
    text = unicodedata.normalize("NFC", text)
    kept = ""
    for number, c in enumerate(text):
        plain = unicodedata.normalize("NFKC", c).casefold()
        if plain in (".", ",", ":", "-", "/") and text[number + 1 : number + 2].isdigit():
            kept += "\u2044" if plain == "/" else plain
        else:
            kinds = [unicodedata.category(part) for part in plain]
            kept += "".join(
                part
                for part, kind in zip(plain, kinds, strict=True)
                if kind[0] in "LMNS" and kind != "Sk"
            )
    return kept or text.strip()


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
            normalized = CHANGES["nfc"](CHANGES["control_characters"](text))
            found |= {form(text), form(CHANGES["white_space"](normalized))}
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
        row = [
            np.frombuffer(record[name].bytes_list.value[0], "<u2")
            for name in features(("source", "target"))
        ]
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
    assert real == list(info.tokens.values())
    return found


# ---- The test.
