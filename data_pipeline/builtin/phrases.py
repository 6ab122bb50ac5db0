"""Phrases that CLDR (through Babel) and num2words know in many languages.

A *slot* draws one thing (a date, a price, a territory ...) and says it in both languages. This
module makes the slots that need no grammar of our own, so they work for any pair of locales;
`words` adds those of English and German sentences.
"""

import datetime
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal, TypeVar

from babel import Locale, UnknownLocaleError, dates, lists, numbers, units
from num2words import CONVERTER_CLASSES, num2words

from common.errors import UsageError

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def split_words(text: str) -> list[str]:
    """Return the words of `text`: a long list of codes reads better without the quotes."""
    return text.split()


# Codes are ordered by how often they should come up: `Dice.skewed` prefers the first ones.
LANGUAGES = split_words(
    "en de fr es it pt nl pl ru tr sv da fi cs hu el zh ja ko ar he ro bg hr sk sl sr uk et lv lt "
    "is vi th fa no ga la sq ka"
)
CURRENCIES = split_words(
    "EUR USD GBP CHF JPY SEK DKK NOK PLN CZK HUF CAD AUD TRY INR MXN KRW ISK NZD ARS CLP EGP THB "
    "ZAR SGD"
)
SYMBOL_CURRENCIES = ("EUR", "USD", "GBP", "JPY")  # elsewhere CLDR falls back on bare ISO codes
TERRITORIES = split_words(
    "DE FR IT ES AT CH GB US PL NL TR JP CN IN BR CA MX RU UA GR PT BE DK SE NO FI IE CZ SK HU RO "
    "BG HR RS SI EE LV LT IS AU NZ EG MA TN ZA KE NG GH ET IR IQ IL LB JO SA AE KR VN TH ID MY KH "
    "NP AR CL PE CO BO EC CU UY VE DO MN KZ GE AM SN SD"
)
CITIES = split_words(
    "Europe/Berlin Europe/Vienna Europe/Paris Europe/London Europe/Rome Europe/Zurich "
    "Europe/Madrid Europe/Prague Europe/Warsaw America/New_York Europe/Moscow Asia/Tokyo "
    "Europe/Athens Europe/Brussels Europe/Copenhagen Europe/Lisbon Europe/Budapest Europe/Istanbul "
    "Africa/Cairo Europe/Amsterdam Europe/Stockholm Europe/Oslo Europe/Helsinki Europe/Dublin "
    "Europe/Bucharest Europe/Belgrade America/Chicago America/Toronto America/Mexico_City "
    "America/Havana Australia/Sydney Asia/Seoul Asia/Bangkok Africa/Nairobi America/Lima "
    "Europe/Zagreb"
)
# Amounts that sound natural: unit -> (smallest, largest, whether halves are said too).
MASSES = {
    "mass-kilogram": (1, 90, True),
    "mass-gram": (100, 950, False),
    "mass-pound": (2, 30, False),
}
LENGTHS = {
    "length-meter": (1, 400, True),
    "length-centimeter": (5, 95, False),
    "length-kilometer": (1, 90, True),
}
DISTANCES = {"length-kilometer": (1, 900, True), "length-mile": (2, 600, False)}
VOLUMES = {"volume-liter": (1, 40, True), "volume-milliliter": (100, 950, False)}
SPEEDS = {"speed-kilometer-per-hour": (10, 240, False), "speed-mile-per-hour": (10, 120, False)}
TEMPERATURES = {"temperature-celsius": (-9, 39, True)}
AREAS = {"area-square-meter": (10, 900, False), "area-hectare": (2, 90, True)}
STORAGE = {"digital-gigabyte": (2, 950, False), "digital-terabyte": (1, 12, True)}
POWERS = {"power-watt": (5, 950, False), "power-kilowatt": (2, 90, True)}
QUANTITIES = (MASSES, LENGTHS, VOLUMES, SPEEDS, TEMPERATURES, AREAS, STORAGE, POWERS, DISTANCES)
# Unit -> (its seconds, the largest count that Babel does not round up to the next unit).
RELATIVE_UNITS = {
    "minute": (60, 50),
    "hour": (3600, 20),
    "day": (86400, 5),
    "week": (604800, 3),
    "month": (2592000, 10),
    "year": (31536000, 40),
}
FIRST_YEAR, LAST_YEAR = 1960, 2039


class Forms(dict):
    """The forms of one word or phrase; `"{slot:form}".format(...)` picks one of them."""

    def __format__(self, form: str) -> str:
        return self[form]


Said = str | Forms
Pair = tuple[Said, Said]
TextPair = tuple[str, str]  # a Pair without forms


class Dice:
    """Random draws made of `random()` alone, whose sequence Python promises never to change."""

    def __init__(self, seed: str):
        self.random = random.Random(seed).random

    def below(self, end: int) -> int:
        """Return an integer from 0 to `end` - 1."""
        return int(self.random() * end)

    def between(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        return low + int(self.random() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        """Return one of `items`, all equally likely."""
        return items[int(self.random() * len(items))]

    def skewed(self, items: Sequence[T]) -> T:
        """Return one of `items`; a quarter of them, the first ones, take half of the draws."""
        return items[int(self.random() ** 2 * len(items))]


Slot = Callable[[Dice], Pair]


@dataclass(frozen=True)
class Side:
    """One language of the pair: its CLDR locale and its key in num2words."""

    locale: Locale
    words: str

    @classmethod
    def of(cls, name: str) -> "Side":
        """Look up a locale such as "de", "pt_BR" or "en-GB".

        Args:
            name: the locale's name, parts joined by "_" or "-".

        Returns:
            The side.

        Raises:
            UsageError: Babel or num2words does not know it.
        """
        try:
            locale = Locale.parse(name.replace("-", "_"))
        except (UnknownLocaleError, ValueError, TypeError) as error:
            raise UsageError(
                f"built-in corpus: Babel knows no locale {name!r}; use one such as en, de or pt_BR"
            ) from error
        # num2words itself would cut "fil" (Filipino) to "fi" and count in Finnish; it calls
        # Norwegian Bokmål and Kazakh by other names than CLDR does.
        language = {"nb": "no", "kk": "kz"}.get(locale.language, locale.language)
        for words in (str(locale), f"{locale.language}_{locale.territory}", language):
            if words in CONVERTER_CLASSES:
                return cls(locale, words)
        raise UsageError(
            f"built-in corpus: num2words cannot count in {name!r}; use a language that it knows: "
            + ", ".join(sorted(CONVERTER_CLASSES))
        )

    def has_ordinals(self) -> bool:
        """Return whether num2words has ordinals that differ from the cardinals."""
        try:
            return all(ordinal(self.words, n) != cardinal(self.words, n) for n in (2, 21, 100))
        except Exception:  # each num2words language fails in its own way
            return False


def plain(text: str) -> str:
    """Return `text` with CLDR's no-break spaces as spaces and without direction marks."""
    for space in "\u00a0\u202f\u2009":
        text = text.replace(space, " ")
    for mark in "\u200e\u200f\u061c":
        text = text.replace(mark, "")
    return text


def _cached(function: Callable[..., str]) -> Callable[..., str]:
    """Remember what a formatting function returned: Babel takes 5 to 15 µs, a look-up 0.3."""
    return lru_cache(maxsize=1 << 16)(lambda *key: plain(function(*key)))


def _in_words(words: str, n: int, kind: str = "cardinal") -> str:
    try:
        return num2words(n, lang=words, to=kind)
    except Exception as error:  # each num2words language fails in its own way
        raise UsageError(
            f"built-in corpus: num2words has no {kind} number {n} for {words!r}; use another "
            "language"
        ) from error


cardinal = _cached(_in_words)
ordinal = _cached(lambda words, n: _in_words(words, n, "ordinal"))
number = _cached(lambda locale, n: numbers.format_decimal(n, locale=locale))
percent = _cached(
    lambda locale, n: numbers.format_percent(n, locale=locale, decimal_quantization=False)
)
quantity = _cached(lambda locale, n, unit: units.format_unit(n, unit, locale=locale))
money = _cached(lambda locale, n, code: numbers.format_currency(n, code, locale=locale))
money_in_words = _cached(
    lambda locale, n, code: numbers.format_currency(
        n, code, "#,##0", locale, currency_digits=False, format_type="name"
    )
)
currencies = _cached(lambda locale, code: numbers.get_currency_name(code, 2, locale))
long_date = _cached(lambda locale, day: dates.format_date(day, "long", locale))
full_date = _cached(lambda locale, day: dates.format_date(day, "full", locale))
month_day = _cached(lambda locale, day: dates.format_skeleton("MMMMd", day, locale=locale))
month_year = _cached(lambda locale, day: dates.format_skeleton("yMMMM", day, locale=locale))
clock = _cached(lambda locale, time: dates.format_time(time, "short", locale=locale))
relative = _cached(
    lambda locale, seconds: dates.format_timedelta(seconds, add_direction=True, locale=locale)
)
city = _cached(
    lambda locale, zone: (
        locale.time_zones.get(zone, {}).get("city") or zone.split("/")[-1].replace("_", " ")
    )
)


def date_time(locale: Locale, day: datetime.date, time: datetime.time) -> str:
    """Return a long date and a short time, joined as CLDR joins them."""
    joined = str(locale.datetime_formats["long"])
    return joined.format(clock(locale, time), long_date(locale, day))


def draw_day(dice: Dice, first_year: int = FIRST_YEAR, last_year: int = LAST_YEAR) -> datetime.date:
    """Return a day of one of these years."""
    first = datetime.date(first_year, 1, 1).toordinal()
    last = datetime.date(last_year, 12, 31).toordinal()
    return datetime.date.fromordinal(dice.between(first, last))


def draw_time(dice: Dice) -> datetime.time:
    """Return a time of day in steps of five minutes, more often by day than by night."""
    hour = dice.between(7, 22) if dice.below(8) else dice.below(24)
    return datetime.time(hour, 5 * dice.below(12))


def draw_number(dice: Dice) -> int:
    """Return a number to say in words, small ones more often."""
    size = dice.below(20)
    if size < 5:
        return dice.below(100)
    if size < 15:
        return dice.between(100, 999)
    if size < 18:
        return dice.between(1000, 9999)
    return dice.between(10, 999) * 1000 + dice.pick((0, dice.below(1000)))


def draw_amount(dice: Dice) -> float:
    """Return a price with cents."""
    return dice.pick((dice.between(1, 99), dice.between(1, 9999))) + dice.pick(
        (0.0, 0.5, 0.95, 0.99, 0.01 * dice.below(100))
    )


def draw_whole_amount(dice: Dice) -> int:
    """Return a sum of money without cents."""
    return dice.pick((dice.between(2, 99), 10 * dice.between(10, 99), 100 * dice.between(10, 99)))


def draw_quantity(dice: Dice, ranges: dict[str, tuple[int, int, bool]]) -> tuple[float, str]:
    """Return a number and a unit; `ranges` is a table such as `MASSES`."""
    unit = dice.skewed(tuple(ranges))
    low, high, halves = ranges[unit]
    count = dice.between(low, dice.pick((high, min(high, low + 19))))
    if count > 100:
        count -= count % 10
    # Halves of small counts only, and never "1.5": speakers disagree whether it is singular.
    if halves and 2 <= abs(count + 0.5) < 30 and not dice.below(5):
        return count + 0.5, unit
    return count, unit


def distinct(keys: Iterable[K], source: Callable[[K], str], target: Callable[[K], str]) -> list[K]:
    """Return the keys that both sides name, each by a name that no earlier key has.

    Without this, two things with one name in the source could have two in the target, and a
    source sentence must have one translation only.
    """
    kept, seen_source, seen_target = [], set(), set()
    for key in keys:
        names = source(key), target(key)
        if all(names) and names[0] not in seen_source and names[1] not in seen_target:
            kept.append(key)
            seen_source.add(names[0])
            seen_target.add(names[1])
    return kept


def name_tables(source: Side, target: Side) -> dict[str, list[TextPair]]:
    """Return the names of territories, languages, cities and currencies in both languages."""

    def territory(locale: Locale, code: str) -> str:
        return plain(locale.territories.get(code, ""))

    def language(locale: Locale, code: str) -> str:
        return plain(locale.languages.get(code, ""))

    tables = {}
    for kind, codes, name in (
        ("territory", TERRITORIES, territory),
        ("language", LANGUAGES, language),
        ("city", CITIES, city),
        ("currencies", CURRENCIES, currencies),
    ):
        in_source, in_target = partial(name, source.locale), partial(name, target.locale)
        kept = distinct(codes, in_source, in_target)
        tables[kind] = [(in_source(code), in_target(code)) for code in kept]
    return tables


def draw_several(dice: Dice, table: Sequence[T], most: int = 4) -> list[T]:
    """Return two to `most` different entries of `table`."""
    chosen: list[T] = []
    count = dice.between(2, most)
    while len(chosen) < count:
        entry = dice.skewed(table)
        if entry not in chosen:
            chosen.append(entry)
    return chosen


def phrase_slots(source: Side, target: Side) -> dict[str, Slot]:
    """Return the slots that need nothing but CLDR and num2words, by name.

    Args:
        source: the source language.
        target: the target language.

    Returns:
        name -> a function that draws one thing and returns it in both languages.
    """
    locales = (source.locale, target.locale)

    def both(say: Callable[..., str], *what: object) -> Pair:
        return say(locales[0], *what), say(locales[1], *what)

    def in_words(say: Callable[..., str], n: int) -> Pair:
        return say(source.words, n), say(target.words, n)

    def listed(table: Sequence[TextPair], style: Literal["standard", "or"]) -> Slot:
        def draw(dice: Dice) -> Pair:
            chosen = draw_several(dice, table)
            in_source = lists.format_list([entry[0] for entry in chosen], style, locales[0])
            in_target = lists.format_list([entry[1] for entry in chosen], style, locales[1])
            return plain(in_source), plain(in_target)

        return draw

    def measured(ranges: dict) -> Slot:
        return lambda dice: both(quantity, *draw_quantity(dice, ranges))

    def draw_relative(dice: Dice) -> Pair:
        seconds, most = RELATIVE_UNITS[dice.pick(tuple(RELATIVE_UNITS))]
        return both(relative, dice.pick((-1, 1)) * dice.between(1, most) * seconds)

    # A symbol may stand for two currencies in some locale, and so may a name.
    coins = distinct(
        SYMBOL_CURRENCIES, lambda c: money(locales[0], 5, c), lambda c: money(locales[1], 5, c)
    )
    named_coins = distinct(
        CURRENCIES, lambda c: currencies(locales[0], c), lambda c: currencies(locales[1], c)
    )
    tables = name_tables(source, target)
    slots: dict[str, Slot] = {
        kind: partial(Dice.skewed, items=table) for kind, table in tables.items()
    }
    slots |= {
        "date": lambda dice: both(long_date, draw_day(dice)),
        "fulldate": lambda dice: both(full_date, draw_day(dice)),
        "monthday": lambda dice: both(month_day, draw_day(dice, 2024, 2024)),
        "monthyear": lambda dice: both(month_year, draw_day(dice)),
        "time": lambda dice: both(clock, draw_time(dice)),
        "datetime": lambda dice: both(date_time, draw_day(dice), draw_time(dice)),
        "relative": draw_relative,
        "quantity": lambda dice: both(quantity, *draw_quantity(dice, dice.pick(QUANTITIES))),
        "mass": measured(MASSES),
        "grams": measured({"mass-gram": (100, 950, False)}),
        "milliliters": measured({"volume-milliliter": (100, 950, False)}),
        "meters": measured({"length-meter": (3, 90, True)}),
        "centimeters": measured({"length-centimeter": (20, 250, False)}),
        "walk": measured({"length-kilometer": (2, 30, True)}),
        "distance": measured(DISTANCES),
        "volume": measured(VOLUMES),
        "speed": measured(SPEEDS),
        "temperature": measured(TEMPERATURES),
        "rooms": measured({"area-square-meter": (25, 250, False)}),
        "storage": measured(STORAGE),
        "power": measured(POWERS),
        "hours": measured({"duration-hour": (2, 16, True)}),
        "minutes": measured({"duration-minute": (2, 55, False)}),
        "price": lambda dice: both(money, draw_amount(dice), dice.skewed(coins)),
        "sum": lambda dice: both(money_in_words, draw_whole_amount(dice), dice.skewed(named_coins)),
        "percent": lambda dice: both(percent, dice.between(1, 198) / 200),
        "number": lambda dice: both(number, dice.between(1, 999) * dice.pick((10, 100, 1000))),
        "cardinal": lambda dice: in_words(cardinal, draw_number(dice)),
        "territories": listed(tables["territory"], "standard"),
        "languages": listed(tables["language"], "standard"),
        "cities": listed(tables["city"], "standard"),
        "anycity": listed(tables["city"], "or"),
    }
    if source.has_ordinals() and target.has_ordinals():
        slots["ordinal"] = lambda dice: in_words(ordinal, dice.between(1, 120))
    return slots


# Phrases without a sentence around them, as frames; more frequent ones stand more than once.
PHRASES = split_words(
    "fulldate date date datetime monthday monthyear time relative quantity quantity price sum "
    "percent cardinal cardinal cardinal cardinal ordinal territory language city currencies "
    "territories languages cities anycity"
)
