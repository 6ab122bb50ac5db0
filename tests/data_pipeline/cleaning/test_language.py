import sys

import numpy as np
import pytest
from babel import Locale

from common.errors import UsageError
from data_pipeline.cleaning import language
from data_pipeline.cleaning.cleaner import DEFAULT_FILTERS, FILTERS, Cleaner
from data_pipeline.cleaning.filters import CleaningRules

LANGUAGES = (
    "af am ar az be bg bn bs ca cs cy da de el en es et eu fa fi fil fr ga gl gu he hi hr hu hy id "
    "is it ja ka kk km kn ko ky lo lt lv mk ml mn mr ms my nb ne nl or pa pl ps pt ro ru si sk sl "
    "sq sr sv sw ta te th tr uk ur uz vi zh zu"
)
KINDS = {language.NEUTRAL: "-", language.EXPECTED: "e", language.FOREIGN: "f"}


def kinds(text, code):
    table = language.script_table(code)
    return "".join(KINDS[int(kind)] for kind in table(np.array([*map(ord, text)])))


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        ("en", "aß1 Щπ!", "ee--ff-"),
        ("en", "ªµａﬁ", "efee"),  # by the compatibility form
        ("en", "\u02bc\u0301", "--"),  # modifier letters and marks have no script
        ("ja", "ひカー々日aｶ", "eeeeefe"),
        ("zh", "日ひ", "ef"),
        ("sr", "čЧ", "ee"),
        ("sr_Cyrl", "čЧ", "fe"),
        ("srp-Latn", "čЧ", "ef"),
        ("ru", "čЧ", "fe"),
        ("zh-Hant_TW", "日a", "ef"),
        ("PT-br", "ãЧ", "ef"),
        ("hi", "क\u093fa", "e-f"),
        ("ar", "مﻻa", "eef"),
    ],
)
def test_script_table(code, text, expected):
    assert kinds(text, code) == expected


def test_unknown_language_has_no_scripts_and_loses_nothing():
    assert language.script_table("tlh") is None
    rules = CleaningRules(("tlh", "en"), 250, 9.0, DEFAULT_FILTERS)
    cleaned = Cleaner(rules).clean(["Это тест", "这是一个测试"], ["This is a test", "Это тест"])
    assert cleaned.reason.tolist() == [-1, tuple(FILTERS).index("wrong_script")]


# Their names of languages, from CLDR, are good text in each of them.
@pytest.mark.parametrize(
    "code",
    LANGUAGES.split(),
)
def test_names_in_their_own_language_are_of_its_scripts(code):
    names = "".join(Locale.parse(code).languages.values())
    found = kinds(names, code)
    assert found.count("f") < 0.02 * found.count("e")
    # And of another script than that of a language that has none in common with it.
    other = "en" if "LATIN" not in language.scripts_of(code) else "he"
    found = kinds(names, other)
    assert found.count("e") < 0.02 * found.count("f")


def test_the_package_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    rules = CleaningRules(("en", "de"), 250, 9.0, ("language",))
    with pytest.raises(UsageError, match=r"pip install -e '\.\[langid\]'") as error:
        Cleaner(rules)
    assert "\n" not in str(error.value)


class Model:
    """Finds the language that a text names: "de 0.8 whatever"."""

    labels = ("de", "en", "no", "pcm", "zxx")
    asked: list[str] = []  # noqa: RUF012

    @classmethod
    def from_model_file(cls, path, norm_probs):
        assert norm_probs
        return cls()

    def classify(self, text):
        self.asked.append(text)
        found, confidence, *_ = text.split()
        return found, float(confidence)


@pytest.fixture
def model(monkeypatch):
    module = type(sys)("py3langid.langid")
    module.MODEL_FILE, module.LanguageIdentifier = "model", Model
    monkeypatch.setitem(sys.modules, "py3langid", type(sys)("py3langid"))
    monkeypatch.setitem(sys.modules, "py3langid.langid", module)
    monkeypatch.setattr(Model, "asked", [])
    return Model


@pytest.mark.parametrize(
    ("text", "code", "accepted"),
    [
        ("de 0.9", "de", True),
        ("en 0.9", "de", False),
        ("en 0.7", "de_AT", False),
        ("en 0.69", "de", True),  # not sure
        ("pcm 0.9", "en", True),  # too close
        ("no 0.9", "nb", True),  # another code
        ("de 0.9", "nb", False),
        ("zxx 0.9", "de", True),  # no language
        ("en 0.9", "tlh", True),  # a language that the model does not know
    ],
)
def test_identifier(model, text, code, accepted):
    assert language.Identifier().accepts(text, code, 0.7) is accepted


def test_language_filter_looks_at_what_is_left(model):
    rules = CleaningRules(("en", "de"), 250, 9.0, (*DEFAULT_FILTERS, "language"))
    source = ["en 0.9 this is long enough", "de 0.9 this is long enough", "de 0.9 short", ""]
    target = ["de 0.9 this is long too", "de 0.9 this is long too", "en 0.9 x", "de 0.9 is empty"]
    cleaned = Cleaner(rules).clean(source, target)
    names = tuple(FILTERS)
    found = [None if i < 0 else names[i] for i in cleaned.reason]
    assert found == [None, "language", None, "empty"]
    # The target is not asked for once the source is wrong, and nothing of dropped pairs.
    assert model.asked == [source[0], target[0], source[1]]


@pytest.mark.langid
def test_real_identifier():
    rules = CleaningRules(("en", "de"), 250, 9.0, (*DEFAULT_FILTERS, "language"))
    source = [
        "A man in an orange hat is starring at something.",
        "Zwei junge Männer stehen im Freien neben vielen Büschen.",
        "Several men in hard hats are operating a giant pulley system.",
    ]
    target = [
        "Ein Mann mit einem orangefarbenen Hut starrt etwas an.",
        "Two young men are outside near many bushes.",
        "Plusieurs hommes en casque font fonctionner un système de poulies géant.",
    ]
    language_filter = tuple(FILTERS).index("language")
    assert Cleaner(rules).clean(source, target).reason.tolist() == [
        -1,
        language_filter,
        language_filter,
    ]
