"""English sentences with gaps, and the same sentences in German.

A frame is two lines, English and (indented) German. `{slot}` is a gap that `words`
fills, and `{slot:form}` takes one form of what stands there: `{country:from}` may be "aus der
Schweiz". A digit tells two gaps of one kind apart: `{city}`, `{city2}`. The target must follow
from the source, so no two frames may share their English side (or their German one).

Most sentences combine a construction (who does what when) with a verb phrase. Constructions use
German auxiliaries and modals only, so a verb phrase needs no more than its infinitive and its
participle, and the two languages put them in different places.
"""

# English base/past form and the rest | German objects | infinitive, "=" after a separable prefix
# | auxiliary and participle.
VERB_PHRASES = """
write/wrote {doc} | {doc:acc} | schreiben | hat geschrieben
read/read {doc} | {doc:acc} | lesen | hat gelesen
sign/signed {doc} | {doc:acc} | unterschreiben | hat unterschrieben
send/sent {doc} to {person} | {person:dat} {doc:acc} | schicken | hat geschickt
show/showed {person} {doc} | {person:dat} {doc:acc} | zeigen | hat gezeigt
print/printed {doc} | {doc:acc} | aus=drucken | hat ausgedruckt
translate/translated {doc} into {goal} | {doc:acc} {goal:into} | übersetzen | hat übersetzt
buy/bought {good} | {good:acc} | kaufen | hat gekauft
buy/bought {good} for {price} | {good:acc} für {price} | kaufen | hat gekauft
sell/sold {good} | {good:acc} | verkaufen | hat verkauft
sell/sold {good} for {price} | {good:acc} für {price} | verkaufen | hat verkauft
repair/repaired {good} | {good:acc} | reparieren | hat repariert
look/looked for {good} | {good:acc} | suchen | hat gesucht
bring/brought {good} along | {good:acc} | mit=bringen | hat mitgebracht
give/gave {person} {good} | {person:dat} {good:acc} | geben | hat gegeben
pick/picked up {good} | {good:acc} | ab=holen | hat abgeholt
call/called {person} | {person:acc} | an=rufen | hat angerufen
visit/visited {person} in {city} | {person:acc} in {city} | besuchen | hat besucht
help/helped {person} | {person:dat} | helfen | hat geholfen
thank/thanked {person} | {person:dat} | danken | hat gedankt
invite/invited {person} to {the} | {person:acc} {the:to} | ein=laden | hat eingeladen
wait/waited for {person} {place:at} | {place:at} auf {person:acc} | warten | hat gewartet
meet/met {person} {place:at} | {person:acc} {place:at} | treffen | hat getroffen
go/went to {place} | {place:to} | gehen | ist gegangen
drive/drove to {place} with {person} | mit {person:dat} {place:to} | fahren | ist gefahren
travel/traveled to {country} | {country:to} | reisen | ist gereist
fly/flew to {country} with {person} | mit {person:dat} {country:to} | fliegen | ist geflogen
move/moved to {country} | {country:to} | ziehen | ist gezogen
work/worked in {country} | {country:in} | arbeiten | hat gearbeitet
visit/visited {countries} | {countries} | besuchen | hat besucht
take/took the train to {city} | mit dem Zug nach {city} | fahren | ist gefahren
learn/learned {language} in {country} | {country:in} {language} | lernen | hat gelernt
buy/bought {mass} of {food} {place:at} | {place:at} {mass} {food} | kaufen | hat gekauft
take/took {volume} of {drink} to {the} | {volume} {drink} {the:to} | bringen | hat gebracht
bring/brought {drink} and {food} along | {drink} und {food} | mit=bringen | hat mitgebracht
pay/paid {money} for {good} | für {good:acc} {money} | bezahlen | hat bezahlt
save/saved {sum} for {good} | für {good:acc} {sum} | sparen | hat gespart
spend/spent {money} in {city} | in {city} {money} | aus=geben | hat ausgegeben
transfer/transferred {money} to {person} | {person:dat} {money} | überweisen | hat überwiesen
lend/lent {person} {sum} | {person:dat} {sum} | leihen | hat geliehen
change/changed {exchange} | {exchange} | um=tauschen | hat umgetauscht
run/ran {walk} with {person} | mit {person:dat} {walk} | laufen | ist gelaufen
cancel/canceled {event} | {event:acc} | ab=sagen | hat abgesagt
prepare/prepared {event} | {event:acc} | vor=bereiten | hat vorbereitet
open/opened the window | das Fenster | auf=machen | hat aufgemacht
leave/left {place} | {place:acc} | verlassen | hat verlassen
"""
# [base], [past]: the English verb phrase. [obj], [inf], [zu], [part], [imp], [prefix]: the parts
# of the German one; [aux] and [plu] name its auxiliary, now (hat, ist) and back then.
CONSTRUCTIONS = """
{who} [past].
    {who} {who:[aux]} [obj] [part].
{who} [past] {past}.
    {who} {who:[aux]} {past} [obj] [part].
{who} [past] {past}.
    {who} {who:[aux]} {past} [obj] [part].
{past}, {who} [past].
    {past} {who:[aux]} {who} [obj] [part].
Did {who} [base] {past}?
    {who:[aux]} {who} {past} [obj] [part]?
Why did {who} [base]?
    Warum {who:[aux]} {who} [obj] [part]?
I think that {who} [past] {past}.
    Ich glaube, dass {who} {past} [obj] [part] {who:[aux]}.
{name} says that {who} [past] {past}.
    {name} sagt, dass {who} {past} [obj] [part] {who:[aux]}.
Do you know why {who} [past]?
    Wissen Sie, warum {who} [obj] [part] {who:[aux]}?
{who} {who:was} {mood} because {who:pron} [past] {past}.
    {who} {who:war} {mood}, weil {who:pron} {past} [obj] [part] {who:[aux]}.
After {who} [past], {who:pron} went home.
    Nachdem {who} [obj] [part] {who:[plu]}, {who:ging} {who:pron} nach Hause.
{who} will [base] {future}.
    {who} {who:wird} {future} [obj] [inf].
{future}, {who} will [base].
    {future} {who:wird} {who} [obj] [inf].
Will {who} [base] {future}?
    {who:wird} {who} {future} [obj] [inf]?
{who} {who:has} to [base] {future}.
    {who} {who:muss} {future} [obj] [inf].
{who} {who:wants} to [base] {future}.
    {who} {who:will} {future} [obj] [inf].
{who} can [base] {future}.
    {who} {who:kann} {future} [obj] [inf].
{who} should [base] {future}.
    {who} {who:sollte} {future} [obj] [inf].
{who} would like to [base] {future}.
    {who} {who:möchte} {future} [obj] [inf].
{future}, {who} {who:has} to [base].
    {future} {who:muss} {who} [obj] [inf].
When can {who} [base]?
    Wann {who:kann} {who} [obj] [inf]?
I hope that {who} can [base] {future}.
    Ich hoffe, dass {who} {future} [obj] [inf] {who:kann}.
If {who} {who:wants} to [base], {who:pron} should ask {name}.
    Wenn {who} [obj] [inf] {who:will}, {who:sollte} {who:pron} {name} fragen.
{who} cannot come because {who:pron} {who:has} to [base].
    {who} {who:kann} nicht kommen, weil {who:pron} [obj] [inf] {who:muss}.
{who} forgot to [base].
    {who} {who:hat} vergessen, [obj] [zu].
{who} decided to [base] {future}.
    {who} {who:hat} beschlossen, {future} [obj] [zu].
{who} {who:is} planning to [base] {future}.
    {who} {who:hat} vor, {future} [obj] [zu].
It is important to [base] {future}.
    Es ist wichtig, {future} [obj] [zu].
{who} got up early to [base].
    {who} {who:ist} früh aufgestanden, um [obj] [zu].
Please [base] {future}.
    Bitte [imp] Sie {future} [obj] [prefix].
Could you [base] {future}?
    Könnten Sie {future} [obj] [inf]?
Let's [base] {future}!
    Lass uns {future} [obj] [inf]!
"""
SENTENCES = """
{event} is on {weekday} at {time}.
    {event} ist am {weekday} um {time} Uhr.
{event} is on {fulldate}.
    {event} ist am {fulldate:dat}.
{event} takes place in {city} on {nextdate}.
    {event} findet am {nextdate} in {city} statt.
{event} begins at {span:from} and ends at {span:to}.
    {event} fängt um {span:from} Uhr an und hört um {span:to} Uhr auf.
{event} has been postponed from {weekday} to {weekday2}.
    {event} wurde von {weekday} auf {weekday2} verschoben.
{event} lasts {hours}.
    {event} dauert {hours}.
I do not know when {event} begins on {weekday}.
    Ich weiß nicht, wann {event} am {weekday} anfängt.
Tickets for {event} cost {money}.
    Karten für {event:acc} kosten {money}.
{name} is looking forward to {event} in {city}.
    {name} freut sich auf {event:acc} in {city}.
Please come to {the} on {nextdate}, at {time}.
    Bitte kommen Sie am {nextdate} um {time} Uhr {the:to}.
Today is {fulldate}.
    Heute ist {fulldate:nom}.
{name} was born in {city} on {olddate}.
    {name} wurde am {olddate} in {city} geboren.
{name} and {name2} got married on {olddate}.
    {name} und {name2} haben am {olddate} geheiratet.
{name} has been living in {country} for {since}.
    {name} wohnt seit {since} {country:in}.
{name} has been learning {language} for {since}.
    {name} lernt seit {since} {language}.
{name} comes from {country} but works in {country2}.
    {name} kommt {country:from}, arbeitet aber {country2:in}.
{name} speaks {languages}.
    {name} spricht {languages}.
How do you say that in {language}?
    Wie sagt man das auf {language}?
This text was translated from {goal} into {goal2}.
    Dieser Text wurde {goal:from} {goal2:into} übersetzt.
{percent} of the {people} speak {language}.
    {percent} der {people} sprechen {language}.
Would you rather fly to {anycity}?
    Möchten Sie lieber nach {anycity} fliegen?
The train to {city} leaves at {time}.
    Der Zug nach {city} fährt um {time} Uhr ab.
The train from {city} arrives at {time}.
    Der Zug aus {city} kommt um {time} Uhr an.
On {weekday}, the train to {city} leaves at {time}.
    Am {weekday} fährt der Zug nach {city} um {time} Uhr ab.
The flight from {city} to {city2} takes {hours}.
    Der Flug von {city} nach {city2} dauert {hours}.
{place} is {walk} away from {place2}.
    {place} ist {walk} {place2:from} entfernt.
It is {distance} from here to {city}.
    Von hier bis {city} sind es {distance}.
Our office has moved from {city} to {city2}.
    Unser Büro ist von {city} nach {city2} umgezogen.
My flight to {city} was {minutes} late.
    Mein Flug nach {city} hatte {minutes} Verspätung.
{who} had to wait {minutes} {place:at}.
    {who} {who:musste} {place:at} {minutes} warten.
Last week, {who} worked for {hours} in {city}.
    Letzte Woche {who:hat} {who} in {city} {hours} gearbeitet.
{who} may not drink {drink} before {event}.
    {who} {who:darf} vor {event:dat} {drink:no} trinken.
The shelf is {centimeters} wide and {centimeters2} high.
    Das Regal ist {centimeters} breit und {centimeters2} hoch.
The bus to {city} runs every {minutes}.
    Der Bus nach {city} fährt alle {minutes}.
{known} costs {money}.
    {known} kostet {money}.
{known} weighs {mass}.
    {known} wiegt {mass}.
How much does {known} cost?
    Wie viel kostet {known}?
Can you tell me where {known} is?
    Können Sie mir sagen, wo {known} ist?
This hotel in {city} costs {money} per night.
    Dieses Hotel in {city} kostet {money} pro Nacht.
In {month}, prices rose by {percent}.
    Im {month} sind die Preise um {percent} gestiegen.
{name} earns {sum} a month.
    {name} verdient {sum} im Monat.
The invoice of {olddate}, for {price} has not been paid yet.
    Die Rechnung vom {olddate} über {price} ist noch nicht bezahlt.
The contract expires on {nextdate}.
    Der Vertrag läuft am {nextdate} ab.
The contract with {person} is valid until {nextdate}.
    Der Vertrag mit {person:dat} gilt bis zum {nextdate}.
The company was founded in {city} in {year}.
    Die Firma wurde {year} in {city} gegründet.
The road to {city} is {distance} long.
    Die Straße nach {city} ist {distance} lang.
The garden is {meters} long and {meters2} wide.
    Der Garten ist {meters} lang und {meters2} breit.
Our apartment in {city} has {rooms}.
    Unsere Wohnung in {city} hat {rooms}.
The temperature in {city} is {temperature} today.
    Die Temperatur in {city} beträgt heute {temperature}.
Here you may drive at most {speed}.
    Hier darf man höchstens {speed} fahren.
The new computer has {storage} of memory.
    Der neue Computer hat {storage} Speicher.
This lamp only needs {power}.
    Diese Lampe braucht nur {power}.
In {year}, the city had {number} inhabitants.
    {year} hatte die Stadt {number} Einwohner.
More than {number} people live on this island.
    Auf dieser Insel leben mehr als {number} Menschen.
In {month}, it is often {weather} in {country}.
    Im {month} ist es {country:in} oft {weather}.
I would never travel to {country} in {month}.
    Ich würde nie im {month} {country:to} reisen.
If it is {weather} on {weekday}, we will go to {place}.
    Wenn es am {weekday} {weather} ist, gehen wir {place:to}.
For this cake you need {grams} of {food} and {milliliters} of {drink}.
    Für diesen Kuchen braucht man {grams} {food} und {milliliters} {drink}.
Is there still {drink} {place:at}?
    Gibt es {place:at} noch {drink}?
Where can I buy {food} and {drink} here?
    Wo kann ich hier {food} und {drink} kaufen?
{name} would rather drink {drink} than {drink2}.
    {name} trinkt lieber {drink} als {drink2}.
This {drink} comes from {country}.
    {drink:this} kommt {country:from}.
The number {spelled:digits} is written {spelled}.
    Die Zahl {spelled:digits} schreibt man {spelled}.
{addition:a} plus {addition:b} is {addition:c}.
    {addition:a} plus {addition:b} ist {addition:c}.
{addition:c} minus {addition:a} is {addition:b}.
    {addition:c} minus {addition:a} ist {addition:b}.
There are {count} {things} {place:at}.
    {place:at} gibt es {count} {things}.
{name} sold {count} {things} {past}.
    {name} hat {past} {count} {things} verkauft.
There were {count} {people} at {the}.
    {the:by} waren {count} {people}.
{name} has invited {count} {people} to {the}.
    {name} hat {count} {people} {the:to} eingeladen.
{name} is {age} years old and comes from {country}.
    {name} ist {age} Jahre alt und kommt {country:from}.
{name} is the {nth} guest from {city}.
    {name} ist der {nth} Gast aus {city}.
On the {nth} day, it was {weather} in {city}.
    Am {nth:n} Tag war es in {city} {weather}.
The company is celebrating its {nth} birthday on {weekday}.
    Die Firma feiert am {weekday} ihren {nth:n} Geburtstag.
{name} goes {activity} every {weekday}.
    {name} geht jeden {weekday} {activity}.
{name} gets up at {span:from} on {weekday:s}.
    {name} steht {weekday:s} um {span:from} Uhr auf.
{place} is closed on {weekday:s}.
    {place} ist {weekday:s} geschlossen.
{place} is open from {span:from} to {span:to}.
    {place} ist von {span:from} bis {span:to} Uhr geöffnet.
Please call me back on {weekday} at {time}.
    Bitte rufen Sie mich am {weekday} um {time} Uhr zurück.
Today is {weekday}.
    Heute ist {weekday}.
Tomorrow is {weekday}.
    Morgen ist {weekday}.
Yesterday was {weekday}.
    Gestern war {weekday}.
Is today {weekday}?
    Ist heute {weekday}?
It is {time}.
    Es ist {time} Uhr.
What time is it in {city}?
    Wie spät ist es in {city}?
It is {weather} today.
    Heute ist es {weather}.
It is very {weather} in {city}.
    In {city} ist es sehr {weather}.
My name is {name}.
    Ich heiße {name}.
Good morning, {name}!
    Guten Morgen, {name}!
Good evening, {name}!
    Guten Abend, {name}!
How are you, {name}?
    Wie geht es Ihnen, {name}?
Thank you, {name}.
    Danke, {name}.
See you on {weekday}!
    Bis {weekday}!
I live in {city}.
    Ich wohne in {city}.
I come from {country}.
    Ich komme {country:from}.
Do you live in {city}?
    Wohnen Sie in {city}?
I speak {language}.
    Ich spreche {language}.
I am learning {language}.
    Ich lerne {language}.
Do you speak {language}?
    Sprechen Sie {language}?
Where is {place}?
    Wo ist {place}?
We are in {city} today.
    Wir sind heute in {city}.
I like {drink}.
    Ich mag {drink}.
I would like {food} and {drink}, please.
    Ich hätte gern {food} und {drink}.
{name} is {mood} today.
    {name} ist heute {mood}.
I am {age} years old.
    Ich bin {age} Jahre alt.
"""


def _verb_phrase_parts(line: str) -> dict[str, str]:
    """Read a line of VERB_PHRASES into what stands for [base], [past], [obj] ..."""
    english, objects, infinitive, perfect = line.split(" | ")
    verbs, _, rest = english.partition(" ")
    base, past = verbs.split("/")
    prefix, _, verb = infinitive.rpartition("=")
    auxiliary, participle = perfect.split()
    return {
        "[base]": f"{base} {rest}",
        "[past]": f"{past} {rest}",
        "[obj]": objects,
        "[inf]": prefix + verb,
        "[zu]": f"{prefix}zu{verb}" if prefix else f"zu {verb}",
        "[part]": participle,
        "[aux]": auxiliary,
        "[plu]": {"hat": "hatte", "ist": "war"}[auxiliary],
        "[imp]": verb,
        " [prefix]": f" {prefix}" if prefix else "",
    }


def _frames(text: str) -> list[tuple[str, str]]:
    """Read CONSTRUCTIONS or SENTENCES into pairs of lines."""
    lines = [line.strip() for line in text.strip().split("\n")]
    return list(zip(lines[::2], lines[1::2], strict=True))


def _kind_of(english: str) -> str:
    """Return which kind of statement a construction or a sentence makes.

    These are the classes of the built-in labelled corpus: "request", "question", "report" (what
    somebody did), "plan" (what somebody will, can, wants or has to do), and "fact".
    """
    if english.startswith(("Please ", "Could you ", "Let's ")):
        return "request"
    if english.endswith("?"):
        return "question"
    done = ("{who} forgot", "{who} decided", "{who} got up", "{who} had", "Last week")
    if "[past]" in english or "{past}" in english or english.startswith(done):
        return "report"
    return "plan" if "[base]" in english else "fact"


def sentence_frames() -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """Return the frames of whole sentences, as (English, German, kind) with `{slots}`.

    Returns:
        The constructions with every verb phrase put in, and the sentences that stand alone.
    """
    combined = []
    for construction in _frames(CONSTRUCTIONS):
        for line in VERB_PHRASES.strip().split("\n"):
            english, german = construction
            for gap, part in _verb_phrase_parts(line).items():
                english, german = english.replace(gap, part), german.replace(gap, part)
            combined.append((english, german, _kind_of(construction[0])))
    alone = [(english, german, _kind_of(english)) for english, german in _frames(SENTENCES)]
    return combined, alone
