"""Random corpora with every defect, and random settings, for hypothesis."""

import gzip
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

from data_pipeline.cleaning.cleaner import FILTERS
from data_pipeline.settings import CORPUS_FILTERS

Pair = tuple[str, str]

# Few sentences, so that duplicates and leaks are frequent.
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
            if content.count("\r") - content.count("\r\n") > content.count("\n"):
                content = content.replace("\r", "")  # the job would refuse the file
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


def inputs(most: int, weights) -> st.SearchStrategy[Input]:
    """A source of up to `most` pairs; seldom of none, for that may be an error."""
    some = st.lists(pairs, min_size=1, max_size=most)
    is_empty = st.sampled_from([False] * 15 + [True])
    some_or_none = st.builds(lambda found, empty: [] if empty else found, some, is_empty)
    forms = st.sampled_from(["text", "tsv", "text.gz", "tsv.gz"])
    return st.builds(Input, some_or_none, forms, weights, *[st.booleans()] * 3)


train_inputs = st.lists(inputs(6, st.sampled_from([1, 1, 1, 2, 0.5, 2.5])), min_size=1, max_size=3)
held_out_inputs = st.none() | inputs(3, st.just(1))
SWITCHES = sorted({*FILTERS, *CORPUS_FILTERS} - {"language"})
options = st.fixed_dictionaries(
    {
        "disable_filters": st.just(()) | st.lists(st.sampled_from(SWITCHES), max_size=8).map(tuple),
        "num_shards": st.integers(1, 4),
        "row_length": st.sampled_from([0, 16, 64]),
        "segmentations": st.sampled_from([1, 1, 2, 3]),
        "max_tokens": st.sampled_from([12, 60, 100, 250]),
        "max_length_ratio": st.sampled_from([1.0, 2.0, 9.0]),
        "seed": st.integers(0, 3),
        "joint_vocabulary": st.booleans(),
        "keep_rejected": st.sampled_from([True, True, True, False]),
    }
)
sizes = st.tuples(
    st.sampled_from([1, 3, 50_000]),  # PARTITION_PAIRS
    st.sampled_from([1, 2, 10_000]),  # CHUNK_LINES
    st.sampled_from([2, 32, 32]),  # BLOCK_ROWS
    st.booleans(),  # the way through raw chunks, which a runner with several workers takes
)
