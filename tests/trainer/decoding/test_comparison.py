"""TER, tokenised BLEU and the paired bootstrap, on translations whose scores are known."""

import pytest

from trainer.decoding.comparison import edit_rate, paired_bootstrap, tokenized_bleu

REFERENCES = [f"the {animal} number {n} sat on the mat ." for n in range(20) for animal in "ab"]


def test_edit_rate_by_hand():
    """One word of eight is wrong in one of two sentences."""
    references = ["a b c d e f g h", "a b c d e f g h"]
    result = edit_rate(["a b c d e f g x", "a b c d e f g h"], references)
    assert result["ter"] == pytest.approx(100 * 1 / 16, abs=0.01)
    assert "tok:tercom" in result["ter_signature"]


def test_tokenised_bleu_knows_no_case():
    result = tokenized_bleu([line.upper() for line in REFERENCES], REFERENCES)
    assert result["tokenized_bleu"] == 100.0
    assert (
        "case:lc" in result["tokenized_signature"] and "tok:none" in result["tokenized_signature"]
    )


def test_paired_bootstrap():
    """A much better system is told from the other; a system is not told from itself."""
    worse = [line.replace("sat on the", "is under a") for line in REFERENCES]
    result = paired_bootstrap(REFERENCES, worse, REFERENCES)
    assert result["other_bleu"] < 60 and result["p_value"] < 0.01
    assert paired_bootstrap(worse, worse, REFERENCES)["p_value"] == 1.0
