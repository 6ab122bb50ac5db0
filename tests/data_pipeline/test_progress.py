"""What the job prints."""

from types import SimpleNamespace

import pytest

from data_pipeline.progress import Display, drop_table


def test_text_is_printed_as_it_is(capsys):
    """Brackets are no markup, and names between colons no emoji."""
    display = Display()
    display.say(r"data [v1] \[x] :smile:")
    display.warn("[bold]")
    assert capsys.readouterr().out == "data [v1] \\[x] :smile:\nWARNING: [bold]\n"


@pytest.mark.parametrize(
    ("dropped", "row"),
    [({}, ["nothing", "to", "clean"]), ({"empty": 2}, ["dropped:", "empty", "2", "25.00%"])],
)
def test_the_table_of_cleaning(capsys, dropped, row):
    train = SimpleNamespace(pairs_in=8, dropped=dropped, changed={})
    Display().console.print(
        drop_table(SimpleNamespace(splits={"train": train}, task="translation"))
    )
    assert capsys.readouterr().out.splitlines()[4].split() == row
