"""Translating a split and scoring it with sacreBLEU on detokenised text."""

from collections.abc import Callable
from typing import Any

import sacrebleu

from data_pipeline.dataset.examples import read_raw_text
from data_pipeline.dataset.manifest import Manifest
from data_pipeline.dataset.tokenizer import Tokenizer
from trainer.decoding.search import Decoder

Tokenizers = tuple[Tokenizer, Tokenizer]
"""Of the source and of the target; the same one twice for a joint vocabulary."""


def translate_lines(
    lines: list[str],
    tokenizers: Tokenizers,
    decoder: Decoder,
    between: Callable[[], Any] | None = None,
) -> list[str]:
    """One translation a line, in order; an empty line for an empty line.

    `between` is called after every batch; what it raises ends the work.
    """
    source, target = tokenizers
    texts = target.decode(decoder.translate(source.encode(lines), between))
    # Single bytes are pieces too, so a model can spell a line feed.
    return [" ".join(text.split()) for text in texts]


def score(translations: list[str], references: list[str]) -> dict[str, Any]:
    """Corpus scores of detokenised, cased text.

    Returns:
        "bleu" and "chrf", 0 to 100, and "signature", sacreBLEU's account of how BLEU was counted
        (Post 2018, A Call for Clarity in Reporting BLEU Scores).
    """
    bleu = sacrebleu.metrics.BLEU()
    return {
        "bleu": round(bleu.corpus_score(translations, [references]).score, 2),
        "chrf": round(sacrebleu.corpus_chrf(translations, [references]).score, 2),
        "signature": str(bleu.get_signature()),
    }


def score_split(
    manifest: Manifest,
    split: str,
    tokenizers: Tokenizers,
    decoder: Decoder,
    limit: int = 0,
    between: Callable[[], Any] | None = None,
) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Translates a split, or its first `limit` sentences, and scores it.

    `between` is called after every batch; what it raises ends the work.

    Returns:
        what `score` gives, and (source, reference, translation) of every sentence.
    """
    sources, references = read_raw_text(manifest, split).values()
    if limit:
        sources, references = sources[:limit], references[:limit]
    translations = translate_lines(sources, tokenizers, decoder, between)
    rows = list(zip(sources, references, translations, strict=True))
    return score(translations, references), rows
