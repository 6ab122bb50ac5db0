"""English and German words with the forms that sentences need, as slots of `frames`.

English goes first in every pair here. A German noun brings its gender, so that articles and
adjectives agree: "the old coat" is "der alte Mantel", but "den alten Mantel" as an object.
"""

import datetime
import re
from collections.abc import Sequence
from functools import partial

from babel import Locale, lists

from data_pipeline.builtin import lexicon
from data_pipeline.builtin.phrases import (
    FIRST_YEAR,
    LAST_YEAR,
    RELATIVE_UNITS,
    TERRITORIES,
    Dice,
    Forms,
    Pair,
    Side,
    Slot,
    TextPair,
    cardinal,
    clock,
    draw_day,
    draw_several,
    draw_time,
    full_date,
    long_date,
    month_year,
    name_tables,
    ordinal,
    phrase_slots,
    plain,
    relative,
)


def read_entries(text: str) -> list[tuple[str, ...]]:
    """Split "letter Brief m, email E-Mail f" into tuples of words."""
    return [tuple(entry.split(maxsplit=2)) for entry in " ".join(text.split()).split(", ")]


def noun_phrase(
    determiner: str, noun: tuple[str, ...], adjective: tuple[str, ...] = ()
) -> tuple[str, Forms]:
    """Decline a determiner, perhaps an adjective, and a noun.

    Args:
        determiner: a key of lexicon.ARTICLES.
        noun: English, German (nominative, or nominative/other cases), gender.
        adjective: English and the German stem, or nothing.

    Returns:
        The English phrase, and the German one with the forms "" (nominative), "acc" and "dat",
        and, after "the" without an adjective, "to" (zum, zur) and "by" (beim, bei der).
    """
    english, german, gender = noun
    nominative, _, oblique = german.partition("/")
    words = [determiner, *adjective[:1], english]
    if determiner == "a" and words[1][0] in "aeiou":
        words[0] = "an"
    weak = determiner in ("the", "this")  # "der alte Tisch", but "ein alter Tisch"
    endings = {
        "m": ("e" if weak else "er", "en", "en"),
        "f": ("e", "e", "en"),
        "n": ("e" if weak else "es", "e" if weak else "es", "en"),
    }[gender]
    forms = Forms()
    for case, article, ending in zip(
        lexicon.CASES, lexicon.ARTICLES[determiner][gender].split(), endings, strict=True
    ):
        declined = [adjective[1] + ending] if adjective else []
        forms[case] = " ".join([article, *declined, oblique if case and oblique else nominative])
    if determiner == "the" and not adjective:
        forms["to"] = f"{'zur' if gender == 'f' else 'zum'} {oblique or nominative}"
        forms["by"] = f"{'bei der' if gender == 'f' else 'beim'} {oblique or nominative}"
    return " ".join(words), forms


def subject(english: str, german: str | Forms, pronoun: str) -> Pair:
    """Return a subject with the verb forms and the pronoun that agree with it.

    Args:
        english: "Anna", "my brother" ...
        german: the same in German, perhaps with its cases.
        pronoun: the English pronoun that stands for it, a key of lexicon.PRONOUNS.

    Returns:
        English with the forms "", "pron", "was", "has", "wants", "is"; German with "", "pron",
        "hat", "ist", "muss" and the other finite verbs of lexicon.GERMAN_VERBS.
    """
    german_pronoun, english_person, german_person = lexicon.PRONOUNS[pronoun]
    in_english = Forms(
        zip(
            ("was", "has", "wants", "is"),
            lexicon.ENGLISH_VERBS[english_person].split(),
            strict=True,
        )
    )
    in_english |= {"": english, "pron": pronoun}
    verbs = zip(
        lexicon.GERMAN_VERBS["er"].split(), lexicon.GERMAN_VERBS[german_person].split(), strict=True
    )
    in_german = Forms(verbs)
    in_german |= german if isinstance(german, Forms) else {"": german, "acc": german, "dat": german}
    in_german["pron"] = german_pronoun
    return in_english, in_german


def place_forms(line: str) -> Pair:
    """Read a line of PLACES: English with an "at", German with "acc", "to", "at" and "from"."""
    name, preposition, german, to, at = line.split(" | ")
    article, noun = german.split(" ", 1)
    accusative = f"{'den' if article == 'der' else article} {noun}"
    origin = f"{'von der' if article == 'die' else 'vom'} {noun}"
    return (
        Forms({"": f"the {name}", "at": f"{preposition} the {name}"}),
        Forms({"": german, "acc": accusative, "to": to, "at": at, "from": origin}),
    )


def drink_forms(noun: tuple[str, ...]) -> Pair:
    """Return a drink, with "this" (dieser Wein) and "no" (keinen Wein) as forms."""
    this, no = noun_phrase("this", noun)[1], noun_phrase("a", noun)[1]
    return noun[0], Forms({"": noun[1], "this": f"{this:}", "no": f"k{no:acc}"})


def lower_adjectives(german: str) -> str:
    """Write "50 Schwedische Kronen", as CLDR has it for tables, as sentences do."""
    return re.sub(r"\b[A-ZÄÖÜ]\w*ische\b", lambda found: found[0].lower(), german)


def territory_forms(code: str, english: str, german: str) -> tuple[str, Forms]:
    """Return a territory as sentences say it: "from Switzerland", "aus der Schweiz"."""
    if code in lexicon.ENGLISH_ARTICLES:
        english = f"the {english}"
    if code not in lexicon.TERRITORY_ARTICLES:
        goal, place, origin = f"nach {german}", f"in {german}", f"aus {german}"
        forms = {"": german, "acc": german, "to": goal, "in": place, "from": origin}
        return english, Forms(forms)
    nominative, accusative, dative = lexicon.TERRITORY_ARTICLES[code].split(", ")
    place = f"in {dative}".replace("in dem ", "im ")
    goal = f"in {accusative}".replace("in das ", "ins ")
    origin = f"aus {dative}"
    forms = {"": nominative, "acc": accusative, "to": goal, "in": place, "from": origin}
    return english, Forms(forms)


def noun_slot(determiners: str, nouns: str, adjectives: str = "") -> Slot:
    """Return a slot of noun phrases; one in four has an adjective if there are any."""
    plain_ones = [
        noun_phrase(determiner, noun)
        for determiner in determiners.split()
        for noun in read_entries(nouns)
    ]
    longer = [
        noun_phrase(determiner, noun, adjective)
        for adjective in (read_entries(adjectives) if adjectives else [])
        for determiner in determiners.split()
        for noun in read_entries(nouns)
    ]
    return lambda dice: dice.pick(longer if longer and not dice.below(4) else plain_ones)


def subject_slots() -> dict[str, Slot]:
    """Return the slots of persons: "name", "person" (no pronouns) and "who" (any subject)."""
    names = [subject(name, name, "she") for name in lexicon.WOMEN] + [
        subject(name, name, "he") for name in lexicon.MEN
    ]
    persons = [
        subject(*noun_phrase(determiner, noun), "she" if noun[2] == "f" else "he")
        for determiners, nouns in (
            ("my our his her", lexicon.FAMILY),
            ("the my our", lexicon.STRANGERS),
        )
        for determiner in determiners.split()
        for noun in read_entries(nouns)
    ]
    groups = [subject(*group, "they") for group in lexicon.GROUPS]
    pronouns = [
        subject(pronoun, lexicon.PRONOUNS[pronoun][0], pronoun) for pronoun in lexicon.PRONOUNS
    ]
    who = (names, names, pronouns, persons, persons + groups)
    return {
        "name": lambda dice: dice.pick(names),
        "person": lambda dice: dice.pick(dice.pick((names, persons, persons))),
        "who": lambda dice: dice.pick(dice.pick(who)),
    }


def time_slots(english: Side, german: Side) -> dict[str, Slot]:
    """Return the slots of moments: "past", "future", "weekday", "month", "since", "span" ..."""
    en, de = english.locale, german.locale

    def day_names(index: int) -> tuple[Forms, Forms]:
        name, german_name = (plain(side.days["format"]["wide"][index]) for side in (en, de))
        habit, german_habit = f"{name}s", f"{german_name.lower()}s"
        return Forms({"": name, "s": habit}), Forms({"": german_name, "s": german_habit})

    weekdays = [day_names(index) for index in range(7)]

    def month_name(side: Locale, index: int) -> str:
        return plain(side.months["format"]["wide"][index])

    months = [(month_name(en, index), month_name(de, index)) for index in range(1, 13)]

    def full(dice: Dice, *years: int) -> tuple[str, Forms]:
        day = draw_day(dice, *years)
        text = full_date(de, day)
        nominative, dative = (text.replace(", ", f", {word} ", 1) for word in ("der", "dem"))
        return full_date(en, day), Forms({"": text, "nom": nominative, "dat": dative})

    def plain_date(dice: Dice, *years: int) -> TextPair:
        day = draw_day(dice, *years)
        return long_date(en, day), long_date(de, day)

    def ago_or_in(dice: Dice, sign: int) -> Pair:
        seconds, most = RELATIVE_UNITS[dice.pick(tuple(RELATIVE_UNITS))]
        seconds *= sign * dice.between(1, most)
        return relative(en, seconds), relative(de, seconds)

    def since(dice: Dice) -> Pair:
        seconds, most = RELATIVE_UNITS[dice.pick(("day", "week", "month", "year", "year"))]
        seconds *= dice.between(2, most)
        return relative(en, seconds).removeprefix("in "), relative(de, seconds).removeprefix("in ")

    def at_time(dice: Dice) -> TextPair:
        time = draw_time(dice)
        return f"at {clock(en, time)}", f"um {clock(de, time)} Uhr"

    def moment(dice: Dice, words: Sequence[Pair], sign: int, years: tuple[int, int]) -> Pair:
        kind = dice.below(12)
        if kind < 4:
            return dice.pick(words)
        if kind == 4:
            return ago_or_in(dice, sign)
        if kind == 5:
            return at_time(dice)
        if kind == 6:
            day = draw_day(dice, *years)
            return f"in {month_year(en, day)}", f"im {month_year(de, day)}"
        if kind == 7:
            full_text, german_full = full(dice, *years)
            return f"on {full_text}", f"am {german_full:dat},"
        if kind < 10:
            text, german_text = plain_date(dice, *years)
            return f"on {text}", f"am {german_text}"
        weekday, german_weekday = dice.pick(weekdays)
        if kind == 10:
            part, german_part = dice.pick(lexicon.DAY_PARTS)
            return f"on {weekday:}{part}", f"am {german_weekday:}{german_part}"
        hour, german_hour = at_time(dice)
        return f"on {weekday:} {hour}", f"am {german_weekday:} {german_hour}"

    def span(dice: Dice) -> Pair:
        hour = dice.between(6, 12)
        start = datetime.time(hour, dice.pick((0, 15, 30, 45)))
        end = datetime.time(dice.between(hour + 1, 22), dice.pick((0, 15, 30, 45)))
        return (
            Forms({"from": clock(en, start), "to": clock(en, end)}),
            Forms({"from": clock(de, start), "to": clock(de, end)}),
        )

    def year(dice: Dice) -> Pair:
        text = str(dice.between(1800, 2024))
        return text, text

    return {
        "past": lambda dice: moment(dice, lexicon.PAST, -1, (1990, 2023)),
        "future": lambda dice: moment(dice, lexicon.FUTURE, 1, (2026, LAST_YEAR)),
        "fulldate": lambda dice: full(dice, FIRST_YEAR, LAST_YEAR),
        "olddate": lambda dice: plain_date(dice, FIRST_YEAR, 2023),
        "nextdate": lambda dice: plain_date(dice, 2026, LAST_YEAR),
        "weekday": lambda dice: dice.pick(weekdays),
        "month": lambda dice: dice.pick(months),
        "since": since,
        "span": span,
        "year": year,
    }


def number_slots(english: Side, german: Side) -> dict[str, Slot]:
    """Return the slots of numbers in words inside sentences."""

    def in_words(n: int) -> TextPair:
        return cardinal(english.words, n), cardinal(german.words, n)

    def spelled(dice: Dice) -> Pair:
        n = dice.pick((dice.between(2, 99), dice.between(100, 999)))
        words, german_words = in_words(n)
        return Forms({"": words, "digits": str(n)}), Forms({"": german_words, "digits": str(n)})

    def count(dice: Dice) -> Pair:
        # German would say "hundertein" before a noun, which num2words does not know.
        n = dice.pick((dice.between(2, 99), dice.between(2, 99), dice.between(102, 999)))
        return in_words(n if n % 100 != 1 else n + 1)

    def addition(dice: Dice) -> Pair:
        first, second = dice.between(1, 60), dice.between(1, 39)
        forms, german_forms = Forms(), Forms()
        for form, n in zip("abc", (first, second, first + second), strict=True):
            forms[form], german_forms[form] = in_words(n)
        return forms, german_forms

    def nth(dice: Dice) -> Pair:
        n = dice.between(1, dice.pick((12, 99)))
        german_ordinal = ordinal(german.words, n)
        forms = Forms({"": german_ordinal, "n": f"{german_ordinal}n"})
        return ordinal(english.words, n), forms

    return {
        "spelled": spelled,
        "count": count,
        "addition": addition,
        "nth": nth,
        "age": lambda dice: in_words(dice.between(2, 99)),
    }


def sentence_slots(english: Side, german: Side) -> dict[str, Slot]:
    """Return every slot of the English and German frames, those of plain phrases included.

    Args:
        english: the English side.
        german: the German side.

    Returns:
        name -> a function that draws one thing and returns it in English and German.
    """
    en, de = english.locale, german.locale
    slots = phrase_slots(english, german)
    tables = name_tables(english, german)
    territories = [
        territory_forms(code, plain(en.territories[code]), plain(de.territories[code]))
        for code in TERRITORIES
    ]
    # "ins Deutsche" needs an adjective, which is what most names of languages are.
    translated = [
        (name, Forms({"into": f"ins {german_name}e", "from": f"aus dem {german_name}en"}))
        for name, german_name in tables["language"]
        if german_name.endswith("sch")
    ]
    drinks = [drink_forms(noun) for noun in read_entries(lexicon.DRINKS)]
    named = [(name, lower_adjectives(other)) for name, other in tables["currencies"]]
    price, total = slots["price"], slots["sum"]

    def countries(dice: Dice) -> Pair:
        chosen = draw_several(dice, territories, 3)
        german_names = [f"{entry[1]:acc}" for entry in chosen]
        text = lists.format_list([entry[0] for entry in chosen], locale=en)
        return text, lists.format_list(german_names, locale=de)

    def sum_in_words(dice: Dice) -> TextPair:
        text, german_text = total(dice)
        assert isinstance(text, str) and isinstance(german_text, str)
        return text, lower_adjectives(german_text)

    def exchange(dice: Dice) -> Pair:
        amount, goal = sum_in_words(dice), dice.skewed(named)
        while goal[0] in amount[0]:
            goal = dice.skewed(named)
        return f"{amount[0]} into {goal[0]}", f"{amount[1]} in {goal[1]}"

    def tabled(text: str) -> Slot:
        return partial(Dice.pick, items=[(entry[0], entry[1]) for entry in read_entries(text)])

    slots |= subject_slots() | time_slots(english, german) | number_slots(english, german)
    slots |= {
        "sum": sum_in_words,
        "money": lambda dice: dice.pick((price, sum_in_words))(dice),
        "currencies": partial(Dice.skewed, items=named),
        "exchange": exchange,
        "country": partial(Dice.skewed, items=territories),
        "countries": countries,
        "goal": partial(Dice.skewed, items=translated),
        "doc": noun_slot(
            "the a the my his her this", lexicon.DOCUMENTS, lexicon.DOCUMENT_ADJECTIVES
        ),
        "good": noun_slot("the a my our his her this", lexicon.GOODS, lexicon.GOODS_ADJECTIVES),
        "known": noun_slot("the my our his her this", lexicon.GOODS, lexicon.GOODS_ADJECTIVES),
        "event": noun_slot("the the our", lexicon.EVENTS),
        "the": noun_slot("the", lexicon.EVENTS),
        "place": partial(
            Dice.pick, items=[place_forms(line) for line in lexicon.PLACES.split("\n")]
        ),
        "activity": partial(Dice.pick, items=lexicon.ACTIVITIES),
        "food": tabled(lexicon.FOODS),
        "drink": partial(Dice.pick, items=drinks),
        "people": tabled(lexicon.PEOPLE),
        "things": tabled(lexicon.THINGS),
        "mood": tabled(lexicon.MOODS),
        "weather": tabled(lexicon.WEATHERS),
    }
    return slots
