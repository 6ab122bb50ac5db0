"""A table of the latest metrics that stays at the bottom of a terminal."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainer.metrics.reporter import Reporter
from trainer.metrics.writer import MetricsWriter, clock

SCORES = {
    "loss": "{:.4f}",
    "perplexity": "{:.2f}",
    "token_accuracy": "{:.3f}",
    "accuracy": "{:.3f}",
    "bits_per_byte": "{:.4f}",
    "macro_f1": "{:.3f}",
    "bleu": "{:.2f}",
    "chrf": "{:.2f}",
}
_SPEED = {
    "target_tokens_per_second": "{:,.0f} target tokens/s",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "MFU {:.1%}",
    "fill_rate": "fill rate {:.1%}",
    "input_wait": "waiting for input {:.1%}",
}


@contextlib.contextmanager
def live_table(steps: int, writer: MetricsWriter, reporter: Reporter) -> Iterator[None]:
    """Show a table of what a writer gets, in place of the reporter's line for every report.

    Nothing changes where standard output is no terminal.

    Args:
        steps: of the whole run.
        writer: of the metrics.
        reporter: of the training.
    """
    if not sys.stdout.isatty():
        yield
        return
    table = LiveTable(steps, Console(file=sys.stdout))
    writer.listener, reporter.prints = table.write, False
    try:
        with table.live:
            yield
    finally:
        writer.listener, reporter.prints = None, True


class LiveTable:
    """Shows progress, the latest scores and the speed; printed lines scroll above it.

    Args:
        steps: of the whole run.
        console: where to show it.
    """

    def __init__(self, steps: int, console: Console):
        self._steps = steps
        self._latest: dict[str, tuple[int, Mapping[str, Any]]] = {}
        self.live = Live(console=console, refresh_per_second=2, transient=True)

    def write(self, split: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Take note of the metrics of a split after a step."""
        self._latest[split] = (step, metrics)
        self.live.update(self.render())

    def render(self) -> Group:
        """Return what is shown now."""
        step, train = self._latest.get("train", (0, {}))
        progress = [f"step {step:,} of {self._steps:,}"]
        if "step_seconds" in train:
            progress.append(f"{clock((self._steps - step) * train['step_seconds'])} left")
        top = Table.grid(padding=(0, 2))
        top.add_row(ProgressBar(self._steps, step, width=30), "  ".join(progress))
        speed = [text.format(train[name]) for name, text in _SPEED.items() if name in train]
        shown = [
            name for name in SCORES if any(name in metrics for _, metrics in self._latest.values())
        ]
        table = Table("", "step", *(name.replace("_", " ") for name in shown), box=None)
        for split, (its_step, metrics) in self._latest.items():
            cells = [
                SCORES[name].format(metrics[name]) if name in metrics else "" for name in shown
            ]
            table.add_row(split, f"{its_step:,}", *cells)
        return Group(top, Text("  ".join(speed)), table)
