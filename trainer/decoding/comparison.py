"""More scores of translations: TER, the tokenised BLEU of old papers, and a paired bootstrap."""

from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics import BLEU, TER
from sacrebleu.significance import PairedTest

_RESAMPLES = 1000


def edit_rate(translations: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Return "ter" (lower is better) and "ter_signature" (Snover et al. 2006)."""
    metric = TER()
    score = metric.corpus_score(translations, [references]).score
    return {"ter": round(score, 2), "ter_signature": str(metric.get_signature())}


def tokenized_bleu(translations: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Return BLEU of text that is tokenised already, without regard to case.

    The convention of papers before sacreBLEU (multi-bleu.perl -lc); it compares with nothing else.
    """
    metric = BLEU(lowercase=True, tokenize="none", force=True)
    score = metric.corpus_score(translations, [references]).score
    return {
        "tokenized_bleu": round(score, 2),
        "tokenized_signature": str(metric.get_signature()),
    }


def paired_bootstrap(
    translations: Sequence[str],
    other: Sequence[str],
    references: Sequence[str],
    tokenizer: str = "13a",
) -> dict[str, Any]:
    """Compare with another system's translations by a paired bootstrap (Koehn 2004).

    Args:
        translations: of the system in question, one a sentence.
        other: of the system that it is compared with.
        references: one a sentence.
        tokenizer: of BLEU.

    Returns:
        "other_bleu", and "p_value": how likely a difference as large as this is by chance.
    """
    if list(translations) == list(other):  # no difference, of which no resample is larger
        base = BLEU(tokenize=tokenizer).corpus_score(list(other), [list(references)])
        return {"other_bleu": round(base.score, 2), "p_value": 1.0}
    test = PairedTest(
        [("other", list(other)), ("this", list(translations))],
        {"BLEU": BLEU(tokenize=tokenizer)},
        [list(references)],
        test_type="bs",
        n_samples=_RESAMPLES,
    )
    _, results = test()
    first, this = (result for result in results["BLEU"] if not isinstance(result, str))
    return {"other_bleu": round(first.score, 2), "p_value": round(float(this.p_value or 0.0), 4)}
