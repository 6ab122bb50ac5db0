import gzip
import io
import pickle
import random
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

from common.errors import UsageError
from data_pipeline.sources import chunk as chunks
from data_pipeline.sources.spec import parse_spec

PACKERS = {".gz": gzip.compress, ".zst": zstandard.compress}


def read(spec: str, source_lang: str = "en", target_lang: str = "de") -> list[tuple[str, str]]:
    """Returns all pairs of a spec."""
    found = pickle.loads(pickle.dumps(parse_spec(spec, source_lang, target_lang)))
    return [pair for source in found for chunk in source.chunks() for pair in chunk.rows()]


def write(path: Path, content: bytes) -> str:
    """Writes a file (compressed as its name says); returns its path."""
    path.write_bytes(PACKERS.get(path.suffix, bytes)(content))
    return str(path)


def unit(*variants: tuple[str, str]) -> str:
    """Returns a translation unit of (language, content of the segment)."""
    return "<tu>" + "".join(
        f'<tuv xml:lang="{lang}"><seg>{text}</seg></tuv>\n' for lang, text in variants
    ) + "</tu>\n"  # fmt: skip


def tmx(*units: str, prolog: str = '<!DOCTYPE tmx SYSTEM "tmx14.dtd">') -> bytes:
    """Returns a TMX file."""
    header = '<header srclang="en" datatype="plaintext"><note>not a segment</note></header>'
    body = f'{prolog}\n<tmx version="1.4">{header}<body>\n{"".join(units)}</body></tmx>'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'.encode()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_tmx(tmp_path, suffix):
    content = tmx(
        unit(("en", "one"), ("de", "eins")), unit(("fr", "trois"), ("de", "drei"), ("en", "three"))
    )
    path = write(tmp_path / f"a.tmx{suffix}", content)
    assert read(f"tmx:{path}") == [("one", "eins"), ("three", "drei")]
    assert read(f"tmx:{path}", "de", "en") == [("eins", "one"), ("drei", "three")]
    assert read(f"tmx:{path},{path}") == [("one", "eins"), ("three", "drei")] * 2


def test_tmx_in_utf16(tmp_path):
    text = tmx(unit(("en", "one"), ("de", "zwölf"))).decode().replace("UTF-8", "UTF-16")
    path = write(tmp_path / "a.tmx", text.encode("utf-16"))
    assert read(f"tmx:{path}") == [("one", "zwölf")]


@pytest.mark.parametrize(
    ("langs", "variants", "expected"),
    [
        (("en", "de"), [("EN-us", "a"), ("de_AT", "b")], ("a", "b")),
        (("en", "de"), [("en-GB", "x"), ("EN", "a"), ("en-US", "y"), ("DE", "b")], ("a", "b")),
        (("en", "de"), [("en-GB", "a"), ("en-US", "x"), ("de", "b"), ("de", "y")], ("a", "b")),
        (("en", "en-GB"), [("en_GB", "b"), ("en-US", "a")], ("a", "b")),
        (("pt_br", "zh-Hans"), [("pt-BR", "a"), ("pt", "x"), ("zh-Hans-CN", "b")], ("a", "b")),
        (("en", "de"), [("eng", "x"), ("en-US", "a"), ("deu", "y"), ("de-AT", "b")], ("a", "b")),
    ],
)
def test_tmx_languages(tmp_path, langs, variants, expected):
    path = write(tmp_path / "a.tmx", tmx(unit(*variants)))
    assert read(f"tmx:{path}", *langs) == [expected]


def test_tmx_unit_without_a_language_has_an_empty_side(tmp_path):
    units = [[("en", "a"), ("fr", "b")], [("de", "c")], [("fr", "d")], [("en", "e"), ("de", "f")]]
    path = write(tmp_path / "a.tmx", tmx(*(unit(*variants) for variants in units)))
    assert read(f"tmx:{path}") == [("a", ""), ("", "c"), ("", ""), ("e", "f")]


def test_tmx_before_1_4_named_languages_otherwise(tmp_path):
    content = tmx(unit(("en", "a"), ("de", "b"))).replace(b"xml:lang", b"lang")
    assert read(f"tmx:{write(tmp_path / 'a.tmx', content)}") == [("a", "b")]


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        ('a <bpt i="1">&lt;b&gt;</bpt>bold<ept i="1">&lt;/b&gt;</ept> c', "a bold c"),
        ("x<ph>&lt;br/&gt;</ph>y<it pos='begin'>[</it>z<ut>{</ut>!", "xyz!"),
        ("a <hi>b <hi>c</hi></hi> d", "a b c d"),
        ("a <ph>img <sub>a <bpt>(</bpt>note</sub> end</ph>b", "a a noteb"),
        ("a <hi><ph>x<hi>y</hi></ph>b</hi>", "a b"),
        ("Tom &amp; Jerry &lt;3 &#228;&#x1F600;", "Tom & Jerry <3 ä😀"),
        ("<![CDATA[a <b> & c]]>", "a <b> & c"),
        ("\n   one\r\n   two\n", "one    two"),
        ("one&#13;&#10;two&#10;three&#13;four", "one two three four"),
        ("", ""),
    ],
)
def test_tmx_segments(tmp_path, segment, expected):
    path = write(tmp_path / "a.tmx", tmx(unit(("en", segment), ("de", "x"))))
    assert read(f"tmx:{path}") == [(expected, "x")]


def test_tmx_entity_bomb_is_refused(tmp_path):
    declared = "".join(f'<!ENTITY e{i + 1} "{f"&e{i};" * 10}">\n' for i in range(9))
    prolog = f'<!DOCTYPE tmx [\n<!ENTITY e0 "lol">\n{declared}]>'
    path = write(tmp_path / "a.tmx", tmx(unit(("en", "&e9;"), ("de", "x")), prolog=prolog))
    with pytest.raises(UsageError, match=r"a\.tmx, line 3: entity 'e0'; write"):
        read(f"tmx:{path}")


def test_tmx_unknown_entity_is_not_lost(tmp_path):
    path = write(tmp_path / "a.tmx", tmx(unit(("en", "a&nbsp;b"), ("de", "x"))))
    with pytest.raises(UsageError, match=r"a\.tmx, line 4: entity 'nbsp'; write"):
        read(f"tmx:{path}")


def test_tmx_malformed(tmp_path):
    whole = tmx(*[unit(("en", "a"), ("de", "b"))] * 10)
    lines = whole.splitlines(keepends=True)
    for content, message in (
        (whole.replace(b"</seg>", b"</sag>", 1), "line 4: not well-formed XML (mismatched tag)"),
        (b"".join(lines[:9]), "line 10: not well-formed XML (no element found)"),
        (b"", "line 1: not well-formed XML (no element found)"),
        (b"a\tb\n", "line 1: not well-formed XML (syntax error)"),
        (b"".join(lines[:5]) + b"\xff", "line 6: not well-formed XML (not well-formed (invalid"),
        (b"<html><tu/></html>", "not a TMX file; its first element is <html>"),
    ):
        path = write(tmp_path / "a.tmx", content)
        with pytest.raises(UsageError) as caught:
            read(f"tmx:{path}")
        assert message in str(caught.value) and str(caught.value).startswith(path)


def test_tmx_without_the_languages(tmp_path):
    langs = ["fr", "it", "es", "nl", "sv", "da", "fi", "no", "pl"]
    path = write(tmp_path / "a.tmx", tmx(*(unit(("en-US", "a"), (lang, "b")) for lang in langs)))
    with pytest.raises(UsageError) as caught:
        read(f"tmx:{path}")
    assert str(caught.value) == (
        f"{path}: no unit has both 'en' and 'de'; its languages are "
        "da, en-US, es, fi, fr, it, nl, no, ..."
    )


def test_tmx_without_units(tmp_path):
    assert read(f"tmx:{write(tmp_path / 'a.tmx', tmx())}") == []


def test_tmx_is_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_LINES", 100)
    rng = random.Random(1)
    sides = [(rng.randbytes(200).hex(), rng.randbytes(200).hex()) for _ in range(20_000)]
    content = tmx(*(unit(("en", source), ("de", target)) for source, target in sides))
    path = write(tmp_path / "a.tmx.gz", content)
    (source,) = parse_spec(f"tmx:{path}", "en", "de")
    tracemalloc.start()
    count = 0
    for chunk in source.chunks():
        assert chunk.first_line == count + 1
        count += len(chunk.rows())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert len(content) > 15e6
    assert peak < 3e6


PO = """
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"
"Plural-Forms: nplurals=3; plural=(n==1 ? 0 : n<5 ? 1 : 2);\\n"
"POT-Creation-Date: YEAR-MO-DA HO:MI+ZONE\\n"
"PO-Revision-Date: \\n"

#: main.c:10
msgid "Open \\"file\\""
msgstr "„Datei“ öffnen"

msgid "not translated"
msgstr ""

#, fuzzy, c-format
msgid "fuzzy"
msgstr "unscharf"

#, c-format
msgid "%d file"
msgid_plural "%d files"
msgstr[0] "%d Datei"
msgstr[1] "%d Datei (few)"
msgstr[2] "%d Dateien"

msgid "%d day"
msgid_plural "%d days"
msgstr[0] ""
msgstr[1] "x"
msgstr[2] ""

msgctxt "menu"
msgid "Close"
msgstr "Schließen"

msgid "Close"
msgstr "Zumachen"

msgid ""
"Two lines:\\n"
"the second\\n"
msgstr ""
"Zwei Zeilen:\\n"
"die zweite\\n"

#, fuzzy
#~| msgid "old"
#~ msgid "obsolete"
#~ msgstr "veraltet"

msgid "last"
msgstr "zuletzt"
"""
PAIRS = [
    ('Open "file"', "„Datei“ öffnen"),
    ("%d file", "%d Datei"),
    ("%d files", "%d Dateien"),
    ("Close", "Schließen"),
    ("Close", "Zumachen"),
    ("Two lines: the second", "Zwei Zeilen: die zweite"),
    ("last", "zuletzt"),
]


@pytest.mark.parametrize("ending", [".po", ".po.gz", ".po.zst"])
def test_po(tmp_path, ending):
    assert read(f"gettext:{write(tmp_path / f'de{ending}', PO.encode())}") == PAIRS


@pytest.mark.parametrize(
    ("charset", "mark"), [("ISO-8859-15", b""), ("UTF-8", b"\xef\xbb\xbf"), ("CP1252", b"")]
)
def test_po_in_other_charsets(tmp_path, charset, mark):
    text = PO.replace("UTF-8", charset).replace("„Datei“", "Datei")
    pairs = [(source, target.replace("„Datei“", "Datei")) for source, target in PAIRS]
    path = write(tmp_path / "de.po", mark + text.encode(charset))
    assert read(f"gettext:{path}") == pairs


def compiled(text: str) -> bytes:
    """Returns the .mo file of a .po file."""
    # What Babel does not read, and a translation that it would make up.
    for line in ("POT-Creation-Date: YEAR-MO-DA HO:MI+ZONE\\n", "PO-Revision-Date: \\n", "#~| "):
        text = text.replace(line, "# " if line.startswith("#") else "")
    untranslated = text.partition('msgid "%d day"')[2].partition("\n\n")[0]
    content = io.BytesIO()
    write_mo(
        content, read_po(io.BytesIO(text.replace(f'msgid "%d day"{untranslated}', "").encode()))
    )
    return content.getvalue()


def test_mo(tmp_path):
    content = compiled(PO)
    path = write(tmp_path / "de.mo", content)
    assert sorted(read(f"gettext:{path}")) == sorted(PAIRS)
    # Malformed dates, of the same length.
    assert b"POT-Creation-Date: 20" in content
    path = write(tmp_path / "de.mo", content.replace(b"Date: 20", b"Date: YE"))
    assert sorted(read(f"gettext:{path}")) == sorted(PAIRS)


def test_several_catalogues(tmp_path):
    a = write(tmp_path / "a.po", b'msgid "a"\nmsgstr "b"\n')
    write(tmp_path / "c.po", b'msgid "c"\nmsgstr "d"\n')
    mo = write(tmp_path / "e.mo", compiled('msgid "e"\nmsgstr "f"\n'))
    pairs = [("a", "b"), ("c", "d"), ("e", "f")]
    assert read(f"gettext:{tmp_path}/*.po,{mo}") == pairs
    assert read(f"gettext:{mo},{a}") == [pairs[2], pairs[0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'msgid "a"\nmsgstr "b\n', 'line 2: not a line of a .po file: msgstr "b'),
        (b'msgid "a"\nmsgstr "b\\"\n', "line 2: not a line of a .po file"),
        (b'msgid "a"\nmsgst', "line 2: not a line of a .po file: msgst"),
        (b"\x89PNG\r\n", "damaged catalogue ('utf-8' codec can't decode"),
        (b"PNG\r\n", "line 1: not a line of a .po file"),
        (b'msgid ""\nmsgstr "Content-Type: a; charset=undefined\\n"\n',
         "its header names as encoding 'undefined', which is not known here; write"),
        (b'msgid "a"\nmsgstr "b"\n\nmsgid "c"\n', "line 4: missing msgstr for msgid 'c'"),
        (b'msgid ""\nmsgstr "x: y; charset=x\\n"\n"Content-Type: a; charset=CHARSET\\n"\n'
         b'msgid "\xc3\xa4"\nmsgstr "b"\n',
         "its header names as encoding the placeholder CHARSET of its template; write"),
        (b'msgid "a"\nmsgstr "\xff"\n', "damaged catalogue ('utf-8' codec can't decode"),
        (b'msgid "a"\nmsgid_plural "b"\nmsgstr[0] "c"\nmsgstr[1] "d"\nmsgstr[2] "e"\n',
         "line 1: msg has more translations than num_plurals"),
    ],
)  # fmt: skip
def test_damaged_po(tmp_path, content, message):
    path = write(tmp_path / "de.po", content)
    with pytest.raises(UsageError) as caught:
        read(f"gettext:{path}")
    assert message in str(caught.value) and str(caught.value).startswith(path)


def test_damaged_mo(tmp_path):
    whole = compiled(PO)
    for content in (whole[:3], whole[:20], whole[: len(whole) // 2], b"not a catalogue", b""):
        path = write(tmp_path / "de.mo", content)
        with pytest.raises(UsageError, match=r"de\.mo: damaged catalogue \(.+\)"):
            read(f"gettext:{path}")


def test_catalogue_of_another_kind(tmp_path):
    path = write(tmp_path / "de.txt", b"")
    with pytest.raises(UsageError, match=r"de\.txt: gettext: reads files that end in \.po or \.mo"):
        read(f"gettext:{path}")


def test_fingerprints_are_of_content_and_languages(tmp_path):
    spec = "tmx:" + write(tmp_path / "a.tmx", tmx())
    po = "gettext:" + write(tmp_path / "a.po", b"")
    marks = [parse_spec(spec, "en", lang)[0].fingerprint() for lang in ("de", "fr")]
    marks += [parse_spec(po, "en", "de")[0].fingerprint()]
    write(tmp_path / "a.tmx", tmx(unit()))
    write(tmp_path / "a.po", b"\n")
    marks += [parse_spec(spec, "en", "de")[0].fingerprint()]
    marks += [parse_spec(po, "en", "de")[0].fingerprint()]
    assert len(set(marks)) == 5


@pytest.mark.parametrize(
    "encoding", ["Shift_JIS", "EUC-JP", "GB18030", "Big5", "ISO-8859-15", "UTF-16", "utf-8-sig"]
)
def test_tmx_in_any_encoding(tmp_path, encoding):
    text = (
        "\u2019 \u20ac" if encoding == "GB18030" else "\u65e5" if "85" not in encoding else "\u20ac"
    )
    body = tmx(unit(("en", "a"), ("ja", text))).decode()
    declared = body.replace('encoding="UTF-8"', f'encoding="{encoding.removesuffix("-sig")}"')
    path = write(tmp_path / "a.tmx", declared.encode(encoding))
    assert read(f"tmx:{path}", "en", "ja") == [("a", text)]


def test_tmx_in_an_unknown_or_wrong_encoding(tmp_path):
    body = tmx(unit(("en", "a"), ("de", "b"))).decode()
    path = write(tmp_path / "a.tmx", body.replace("UTF-8", "Klingon-7").encode())
    with pytest.raises(UsageError, match=r"a\.tmx: its encoding 'Klingon-7' is not known here; co"):
        read(f"tmx:{path}")
    path = write(tmp_path / "a.tmx", body.replace("UTF-8", "hex").encode())
    with pytest.raises(UsageError, match=r"a\.tmx: its encoding 'hex' is not known here"):
        read(f"tmx:{path}")
    path = write(tmp_path / "a.tmx", body.replace("UTF-8", "Shift_JIS").encode() + b"\xfc\xff")
    with pytest.raises(UsageError, match=r"a\.tmx: is not text in Shift_JIS \(.*iconv -t UTF-8"):
        read(f"tmx:{path}")


@pytest.mark.parametrize("content", [b"<html></html>", tmx("<tu></tu>"), tmx("&x;")])
def test_a_message_names_the_file_once(tmp_path, content):
    path = write(tmp_path / "a.tmx", content)
    with pytest.raises(UsageError) as caught:
        read(f"tmx:{path}")
    assert str(caught.value).count("a.tmx") == 1 and "convert the file" not in str(caught.value)


def test_large_compressed_tmx_in_another_encoding(tmp_path):
    """Its decompressor gives nothing for the first blocks."""
    dice = random.Random(1)
    texts = ["".join(chr(dice.randrange(0x4E00, 0x9000)) for _ in range(40)) for _ in range(1500)]
    body = tmx(*(unit(("en", "a"), ("zh", text)) for text in texts)).decode()
    path = write(tmp_path / "a.tmx.zst", body.replace("UTF-8", "GBK", 1).encode("gbk"))
    assert read(f"tmx:{path}", "en", "zh") == [("a", text) for text in texts]


def test_tmx_with_a_mark_that_denies_its_encoding(tmp_path):
    body = tmx(unit(("en", "a"), ("zh", "b"))).decode().replace("UTF-8", "GBK", 1)
    path = write(tmp_path / "a.tmx", body.encode("utf-8-sig"))
    with pytest.raises(UsageError, match=r"a\.tmx: .*convert the file to UTF-8, its XML decl"):
        read(f"tmx:{path}", "en", "zh")


@pytest.mark.parametrize(("charset", "text"), [("Shift_JIS", "\u8868"), ("Big5", "\u529f")])
def test_po_with_a_backslash_inside_of_a_character(tmp_path, charset, text):
    header = f'msgid ""\nmsgstr "Content-Type: text/plain; charset={charset}\\n"\n\n'
    content = f'{header}msgid "table"\nmsgstr "{text}"\n'.encode(charset)
    assert b"\\" in text.encode(charset)
    assert read(f"gettext:{write(tmp_path / 'a.po', content)}") == [("table", text)]


def test_tmx_unit_without_a_segment(tmp_path):
    broken = b"<tu><tuv xml:lang='en'>a</tuv><tuv xml:lang='de'>b</tuv></tu>"
    path = write(
        tmp_path / "a.tmx",
        tmx(unit(("en", "a"), ("de", "b"))).replace(b"</body>", broken + b"</body>"),
    )
    with pytest.raises(UsageError, match=r"a\.tmx, line \d+: a unit ends here that has no <seg>"):
        read(f"tmx:{path}")
