import pickle

import pytest

from common.errors import UsageError
from data_pipeline.sources.spec import BuiltinSource, parse_spec, split_weight


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("text:a.en,a.de", (1.0, "text:a.en,a.de")),
        ("2*text:a.en,a.de", (2.0, "text:a.en,a.de")),
        ("0.5*tsv:x.tsv.gz", (0.5, "tsv:x.tsv.gz")),
        ("1e-3*tsv:part-*.tsv", (1e-3, "tsv:part-*.tsv")),
        ("tsv:part-*.tsv", (1.0, "tsv:part-*.tsv")),
        ("no_scheme", (1.0, "no_scheme")),
    ],
)
def test_weights(spec, expected):
    assert split_weight(spec) == expected


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "-inf", "1e999", "1e-999", "", "two"])
def test_bad_weights(weight):
    with pytest.raises(UsageError, match=r"must be a number above 0, not '"):
        split_weight(f"{weight}*text:a,b")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "parquet:x",
            "unknown kind of source for --task=translation; known ones start with "
            "text:, tsv:, tmx:, gettext:, tfds:, builtin:",
        ),
        ("train.en", "unknown kind of source"),
        ("", "unknown kind of source"),
        ("text:only_one", "expected two files"),
        ("text:a,b,c", "expected two files"),
        ("text:a,", "expected two files"),
        ("text:/nowhere/a,/nowhere/b", "/nowhere/a: no such file"),
        ("text:nofs://a,nofs://b", "nofs://a cannot be read: File system scheme 'nofs' not impl"),
        ("tsv:/nowhere/*.tsv", "no such file"),
        ("tsv:", "expected a file, tsv:FILE"),
        ("tsv:a,,b", "expected a file, tsv:FILE or tsv:FILE,FILE"),
        ("tsv:/", "is a directory"),
        ("tmx:", "expected a file, tmx:FILE"),
        ("tmx:/nowhere/a.tmx", "/nowhere/a.tmx: no such file"),
        ("gettext:", "expected a file, gettext:FILE"),
        ("gettext:/nowhere/de.po", "/nowhere/de.po: no such file"),
        ("builtin:dev", "expected builtin:train"),
        ("builtin:train?count=5", "unknown option 'count'"),
        ("builtin:train?size=many", "size must be a whole number"),
        ("builtin:train?size=0", "size must be at least 1"),
        (f"builtin:train?seed={'9' * 5000}", "seed must be a whole number, not '99999999"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UsageError) as caught:
        parse_spec(spec, "en", "de")
    assert message in str(caught.value)


def test_builtin_options():
    assert parse_spec("builtin:train", "en", "fr") == [
        BuiltinSource("train", 50_000, 1, ("en", "fr"))
    ]
    assert parse_spec("builtin:test?size=7&seed=3", "en", "de") == [
        BuiltinSource("test", 7, 3, ("en", "de"))
    ]


def test_builtin_chunks(monkeypatch):
    from data_pipeline.builtin import corpus as builtin_corpus

    def generate(split, size, seed=1, source_locale="en", target_locale="de"):
        for i in range(size):
            yield f"{split} {seed} {source_locale} {i}", f"ü {target_locale} {i}"

    monkeypatch.setattr(builtin_corpus, "generate", generate)
    (source,) = parse_spec("builtin:valid?size=3&seed=5", "en", "de")
    (chunk,) = pickle.loads(pickle.dumps(source)).chunks()
    assert chunk.rows() == [(f"valid 5 en {i}", f"ü de {i}") for i in range(3)]
    assert chunk.paths == ("builtin:valid", "builtin:valid")
