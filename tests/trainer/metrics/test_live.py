"""The live table, rendered without a terminal."""

import io

from rich.console import Console

from trainer.metrics.live import LiveTable


def test_table_has_the_latest_of_each_split():
    output = io.StringIO()
    console = Console(file=output, width=120, force_terminal=True, color_system=None)
    table = LiveTable(800, console)
    table.write("train", 200, {"loss": 1.5, "step_seconds": 0.25, "mfu": 0.541, "fill_rate": 0.967})
    table.write("valid", 200, {"loss": 1.1644, "bleu": 35.62, "signature": "text"})
    table.write("train", 400, {"loss": 0.75, "step_seconds": 0.5, "mfu": 0.541, "fill_rate": 0.967})
    console.print(table.render())
    top, speed, *lines = output.getvalue().splitlines()
    assert top.strip("━╸╺ ") == "step 400 of 800  0:03:20 left"
    assert speed == "MFU 54.1%  fill rate 96.7%"
    assert [line.split() for line in lines] == [
        ["step", "loss", "bleu"],
        ["train", "400", "0.7500"],
        ["valid", "200", "1.1644", "35.62"],
    ]
