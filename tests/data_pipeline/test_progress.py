"""What the job prints."""

from data_pipeline.progress import Display


def test_text_is_printed_as_it_is(capsys):
    """Brackets are no markup, and names between colons no emoji."""
    display = Display()
    display.say(r"data [v1] \[x] :smile:")
    display.warn("[bold]")
    assert capsys.readouterr().out == "data [v1] \\[x] :smile:\nWARNING: [bold]\n"
