"""What is known about languages: the scripts they are written in, and how to tell them apart."""

import re
import unicodedata

import numpy as np

from common.errors import UsageError
from data_pipeline.cleaning.code_points import CodePointTable

# ISO 15924 code of a script -> first words of the Unicode names of its letters.
SCRIPTS: dict[str, tuple[str, ...]] = {
    "Arab": ("ARABIC",),
    "Armn": ("ARMENIAN",),
    "Beng": ("BENGALI",),
    "Cyrl": ("CYRILLIC",),
    "Deva": ("DEVANAGARI",),
    "Ethi": ("ETHIOPIC",),
    "Geor": ("GEORGIAN",),
    "Grek": ("GREEK",),
    "Gujr": ("GUJARATI",),
    "Guru": ("GURMUKHI",),
    "Hani": ("CJK", "IDEOGRAPHIC", "BOPOMOFO"),
    "Hebr": ("HEBREW",),
    "Jpan": ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "CJK", "IDEOGRAPHIC"),
    "Khmr": ("KHMER",),
    "Knda": ("KANNADA",),
    "Kore": ("HANGUL", "CJK"),
    "Laoo": ("LAO",),
    "Latn": ("LATIN",),
    "Mlym": ("MALAYALAM",),
    "Mymr": ("MYANMAR",),
    "Orya": ("ORIYA",),
    "Sinh": ("SINHALA",),
    "Taml": ("TAMIL",),
    "Telu": ("TELUGU",),
    "Thai": ("THAI",),
    "Tibt": ("TIBETAN",),
}
_ALIASES = {"Hans": "Hani", "Hant": "Hani", "Hira": "Jpan", "Kana": "Jpan", "Hang": "Kore"}

# Scripts -> ISO 639-1 codes of the languages that are written in them.
_LANGUAGES: dict[str, str] = {
    "Latn": "af ast bs ca ceb cs cy da de en eo es et eu fi fil fo fr fy ga gd gl ha haw hr ht hu "
    "id ig is it jv la lb ln lt lv mg mi ms mt nb nl nn no oc om pl pt rn ro rw sk sl sm sn so sq "
    "st su sv sw tl tn tr ts vi wo xh yo zu",
    "Cyrl": "be bg ky mk ru tg uk",
    "Arab": "ar ckb fa ps ur",
    "Deva": "hi mr ne sa",
    "Ethi": "am ti",
    "Armn": "hy",
    "Beng": "as bn",
    "Geor": "ka",
    "Grek": "el",
    "Gujr": "gu",
    "Hani": "yue zh",
    "Hebr": "he iw yi",
    "Jpan": "ja",
    "Khmr": "km",
    "Knda": "kn",
    "Kore": "ko",
    "Laoo": "lo",
    "Mlym": "ml",
    "Mymr": "my",
    "Orya": "or",
    "Sinh": "si",
    "Taml": "ta",
    "Telu": "te",
    "Thai": "th",
    "Tibt": "bo dz",
    "Cyrl Latn": "az cnr kk mn sh sr tk tt uz",
    "Arab Latn": "ku ug",
    "Arab Guru": "pa",
    "Arab Deva": "ks sd",
}
_SCRIPTS_OF = {code: scripts for scripts, codes in _LANGUAGES.items() for code in codes.split()}

NEUTRAL, EXPECTED, FOREIGN = 0, 1, 2


def scripts_of(language: str) -> frozenset[str]:
    """Return the scripts of a language.

    Args:
        language: such as "de", "pt_BR", "zh-Hant" or, with the script said, "deu_Latn".

    Returns:
        First words of the Unicode names of the letters; empty if the language is not known.
    """
    first, *rest = re.split("[-_]", language)
    said = [_ALIASES.get(part.title(), part.title()) for part in rest]
    codes = [part for part in said if part in SCRIPTS]
    codes = codes or _SCRIPTS_OF.get(first.lower(), "").split()
    return frozenset(word for code in codes for word in SCRIPTS[code])


def script_table(language: str) -> CodePointTable | None:
    """Return the table character -> `EXPECTED`, `FOREIGN` or `NEUTRAL` in a language.

    Only letters are expected or foreign; letters of no script (modifier letters) are neutral.
    None for a language whose scripts are not known.
    """
    expected = scripts_of(language)
    if not expected:
        return None

    def kind(character: str) -> int:
        if not character.isalpha():
            return NEUTRAL
        # The compatibility form of wide letters and of "ª" is Latin, that of "µ" is Greek.
        plain = unicodedata.normalize("NFKC", character)[0]
        script = unicodedata.name(plain, "MODIFIER").split()[0]
        if script == "MODIFIER" or not plain.isalpha():
            return NEUTRAL
        return EXPECTED if script in expected else FOREIGN

    return CodePointTable(kind, np.uint8)


# Languages that the identifier takes for each other, or knows under another code.
_CLOSE = (
    {"en", "pcm"},
    {"no", "nb", "nn", "da"},
    {"hr", "bs", "sr", "sh", "cnr"},
    {"id", "ms"},
    {"tl", "fil"},
    {"he", "iw", "hbo"},
    {"zh", "yue", "wuu"},
)
_NO_LANGUAGE = "zxx"  # what the identifier calls numbers and the like


class Identifier:
    """Identifies the language of a text, to find texts that are surely not in the expected one.

    py3langid was chosen among three identifiers that ship with their model, on short sentences of
    Tatoeba and Multi30k. At a confidence of 0.7 it assigns 8 of 75,000 correct sentences of 20
    characters or more to another language, and finds 93 to 99 % of those with the sides swapped.
    """

    def __init__(self) -> None:
        """Load the model; `UsageError` if the package is not installed."""
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError as error:
            raise UsageError(
                "the filter 'language' needs the package py3langid, which is not installed; "
                "install it with: pip install -e '.[langid]', or leave the filter out"
            ) from error
        self._model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def accepts(self, text: str, language: str, min_confidence: float) -> bool:
        """Return whether a text may be in a language.

        Args:
            text: some 20 characters or more.
            language: such as "de" or "pt_BR".
            min_confidence: the least probability at which another language is believed.

        Returns:
            False if the text is surely in another language. True for a language that the
            identifier does not know.
        """
        code = re.split("[-_]", language)[0].lower()
        accepted = {code}.union(*(group for group in _CLOSE if code in group))
        if accepted.isdisjoint(self._model.labels):
            return True
        found, confidence = self._model.classify(text)
        return found in accepted or found == _NO_LANGUAGE or confidence < min_confidence
