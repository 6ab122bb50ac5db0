"""English and German words for the built-in corpus; English goes first in every entry."""

from data_pipeline.builtin.phrases import split_words

WOMEN = split_words("Anna Clara Emma Eva Julia Laura Lena Maria Nina Paula Sara Sofia Tina Vera")
MEN = split_words("Adam Ben Carlo David Felix Jan Leo Max Oliver Paul Peter Simon Thomas Tim")
# English, German (and the German form in other cases where it differs), gender.
DOCUMENTS = """letter Brief m, email E-Mail f, report Bericht m, book Buch n, invoice Rechnung f,
contract Vertrag m, article Artikel m, message Nachricht f, list Liste f, text Text m"""
GOODS = """car Auto n, phone Telefon n, table Tisch m, bag Tasche f, bicycle Fahrrad n,
coat Mantel m, lamp Lampe f, chair Stuhl m, computer Computer m, camera Kamera f, shirt Hemd n,
watch Uhr f, suitcase Koffer m, jacket Jacke f, sofa Sofa n, guitar Gitarre f, boat Boot n,
picture Bild n, umbrella Regenschirm m, piano Klavier n, ring Ring m, clock Wanduhr f"""
EVENTS = """meeting Besprechung f, concert Konzert n, course Kurs m, exam Prüfung f, party Party f,
conference Konferenz f, wedding Hochzeit f, lecture Vortrag m, film Film m, game Spiel n,
exhibition Ausstellung f"""
FAMILY = """brother Bruder m, sister Schwester f, mother Mutter f, father Vater m, uncle Onkel m,
aunt Tante f, grandmother Großmutter f, friend Freund m, neighbor Nachbar/Nachbarn m"""
STRANGERS = """teacher Lehrer m, doctor Ärztin f, boss Chef m, colleague Kollegin f,
customer Kunde/Kunden m"""
DOCUMENT_ADJECTIVES = "new neu, long lang, short kurz, old alt, important wichtig"
GOODS_ADJECTIVES = """new neu, old alt, small klein, big groß, red rot, blue blau, green grün,
black schwarz, cheap billig, beautiful schön"""
FOODS = """flour Mehl n, sugar Zucker m, rice Reis m, butter Butter f, cheese Käse m, bread Brot n,
meat Fleisch n, salt Salz n, chocolate Schokolade f, fish Fisch m"""
DRINKS = """water Wasser n, milk Milch f, coffee Kaffee m, tea Tee m, juice Saft m, wine Wein m,
beer Bier n, soup Suppe f"""
PEOPLE = """students Studenten, children Kinder, guests Gäste, women Frauen, men Männer,
teachers Lehrer"""
THINGS = """books Bücher, chairs Stühle, apples Äpfel, eggs Eier, letters Briefe, bottles Flaschen,
flowers Blumen, tables Tische, pictures Bilder, cups Tassen, plates Teller, tickets Karten,
houses Häuser, shirts Hemden, lamps Lampen"""
# English name, its preposition of place; German name with article, to it, at it, from it.
PLACES = """\
station | at | der Bahnhof | zum Bahnhof | am Bahnhof
airport | at | der Flughafen | zum Flughafen | am Flughafen
library | in | die Bibliothek | in die Bibliothek | in der Bibliothek
museum | in | das Museum | ins Museum | im Museum
theater | in | das Theater | ins Theater | im Theater
market | at | der Markt | auf den Markt | auf dem Markt
bakery | in | die Bäckerei | zur Bäckerei | in der Bäckerei
restaurant | in | das Restaurant | ins Restaurant | im Restaurant
pharmacy | in | die Apotheke | zur Apotheke | in der Apotheke
park | in | der Park | in den Park | im Park
office | in | das Büro | ins Büro | im Büro
hotel | in | das Hotel | ins Hotel | im Hotel
school | at | die Schule | zur Schule | in der Schule
swimming pool | at | das Schwimmbad | ins Schwimmbad | im Schwimmbad
garden | in | der Garten | in den Garten | im Garten"""
MOODS = "tired müde, happy glücklich, sad traurig, nervous nervös, proud stolz, angry wütend"
WEATHERS = "cold kalt, warm warm, hot heiß, dry trocken, windy windig, foggy neblig"
ACTIVITIES = [
    ("swimming", "schwimmen"),
    ("shopping", "einkaufen"),
    ("dancing", "tanzen"),
    ("hiking", "wandern"),
    ("running", "laufen"),
    ("fishing", "angeln"),
    ("for a walk", "spazieren"),
]
GROUPS = [
    ("my parents", "meine Eltern"),
    ("our parents", "unsere Eltern"),
    ("the children", "die Kinder"),
    ("our guests", "unsere Gäste"),
    ("his friends", "seine Freunde"),
    ("her friends", "ihre Freunde"),
]
PAST = [
    ("yesterday", "gestern"),
    ("last week", "letzte Woche"),
    ("last month", "letzten Monat"),
    ("last year", "letztes Jahr"),
    ("this morning", "heute Morgen"),
    ("last night", "gestern Abend"),
    ("the day before yesterday", "vorgestern"),
]
FUTURE = [
    ("tomorrow", "morgen"),
    ("next week", "nächste Woche"),
    ("next month", "nächsten Monat"),
    ("next year", "nächstes Jahr"),
    ("tonight", "heute Abend"),
    ("today", "heute"),
    ("the day after tomorrow", "übermorgen"),
    ("tomorrow morning", "morgen früh"),
]
DAY_PARTS = [
    ("", ""),
    ("", ""),
    (" morning", "morgen"),
    (" afternoon", "nachmittag"),
    (" evening", "abend"),
]
ARTICLES = {  # determiner -> gender -> nominative, accusative, dative
    "the": {"m": "der den dem", "f": "die die der", "n": "das das dem"},
    "this": {
        "m": "dieser diesen diesem",
        "f": "diese diese dieser",
        "n": "dieses dieses diesem",
    },
}
for _english, _stem in (
    ("a", "ein"),
    ("my", "mein"),
    ("our", "unser"),
    ("his", "sein"),
    ("her", "ihr"),
):
    ARTICLES[_english] = {
        "m": f"{_stem} {_stem}en {_stem}em",
        "f": f"{_stem}e {_stem}e {_stem}er",
        "n": f"{_stem} {_stem} {_stem}em",
    }
CASES = ("", "acc", "dat")
# Territories that German uses with an article, in nominative, accusative, dative; others take none.
TERRITORY_ARTICLES = {
    "CH": "die Schweiz, die Schweiz, der Schweiz",
    "TR": "die Türkei, die Türkei, der Türkei",
    "UA": "die Ukraine, die Ukraine, der Ukraine",
    "SK": "die Slowakei, die Slowakei, der Slowakei",
    "MN": "die Mongolei, die Mongolei, der Mongolei",
    "IR": "der Iran, den Iran, dem Iran",
    "IQ": "der Irak, den Irak, dem Irak",
    "LB": "der Libanon, den Libanon, dem Libanon",
    "SD": "der Sudan, den Sudan, dem Sudan",
    "SN": "der Senegal, den Senegal, dem Senegal",
    "NL": "die Niederlande, die Niederlande, den Niederlanden",
    "US": "die Vereinigten Staaten, die Vereinigten Staaten, den Vereinigten Staaten",
    "GB": "das Vereinigte Königreich, das Vereinigte Königreich, dem Vereinigten Königreich",
    "DO": "die Dominikanische Republik, die Dominikanische Republik, der Dominikanischen Republik",
    "AE": "die Vereinigten Arabischen Emirate, die Vereinigten Arabischen Emirate, "
    "den Vereinigten Arabischen Emiraten",
}
ENGLISH_ARTICLES = ("NL", "US", "GB", "DO", "AE")
# Verb forms of a subject: English "was", "has", "wants"; German auxiliaries and modals by person.
ENGLISH_VERBS = {"one": "was has wants is", "many": "were have want are", "I": "was have want am"}
GERMAN_VERBS = {
    "ich": "habe bin hatte war werde muss kann will sollte möchte darf ging musste",
    "er": "hat ist hatte war wird muss kann will sollte möchte darf ging musste",
    "wir": "haben sind hatten waren werden müssen können wollen sollten möchten dürfen gingen "
    "mussten",
}
PRONOUNS = {  # subject pronoun -> its German, the person of its English and German verbs
    "I": ("ich", "I", "ich"),
    "we": ("wir", "many", "wir"),
    "they": ("sie", "many", "wir"),
    "she": ("sie", "one", "er"),
    "he": ("er", "one", "er"),
}
