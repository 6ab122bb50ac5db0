"""What the job shows while it works, and the tables at its end."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from data_pipeline.dataset.manifest import Manifest, SplitInfo
from data_pipeline.settings import UNITS

_listener: Callable[[int], None] | None = None


def tick(count: int) -> None:
    """Report that `count` more items of the running phase are done.

    Beam steps call this. It reaches the display when the step runs in the display's process (the
    local runner's default) and does nothing elsewhere.
    """
    if _listener is not None:
        _listener(count)


def plain_console() -> Console:
    """Return a console that prints text as it is: paths may hold what rich takes for markup."""
    return Console(highlight=False, markup=False, emoji=False)


class Display:
    """Shows phases one after the other: live on a terminal, one line each elsewhere."""

    def __init__(self) -> None:
        self.console = plain_console()

    @contextlib.contextmanager
    def phase(self, title: str, unit: str, total: int | None = None) -> Iterator[None]:
        """Show a phase while the `with` block runs, and a line with its time after it.

        Args:
            title: what is done.
            unit: what `tick` counts.
            total: how many there will be, if known.
        """
        global _listener
        columns = [
            SpinnerColumn(),
            TextColumn("{task.description:<20}"),
            TextColumn("{task.completed:>12,.0f} " + unit),
            TimeElapsedColumn(),
        ]
        if total:
            columns.insert(3, BarColumn())
        done = 0
        started = time.monotonic()
        live = Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        )
        with live:
            task = live.add_task(title, total=total)

            def listen(count: int) -> None:
                nonlocal done
                done += count
                live.advance(task, count)

            _listener = listen
            try:
                yield
            finally:
                _listener = None
        # Steps in other processes cannot tick; a known total is as good.
        count = done or total
        what = f"{count:>12,} {unit}" if count else ""
        self.console.print(f"{title:<20}{what:<22}{time.monotonic() - started:6.1f} s")

    def say(self, line: str) -> None:
        """Print a line."""
        self.console.print(line, soft_wrap=True)

    def warn(self, line: str) -> None:
        """Print a line that nobody should overlook."""
        self.console.print(f"WARNING: {line}", style="bold yellow", soft_wrap=True)

    def summary(self, manifest: Manifest, seconds: float) -> None:
        """Print what the finished dataset holds."""
        self.console.print(split_table(manifest))
        self.console.print(drop_table(manifest))
        if manifest.labels:
            self.console.print(label_table(manifest))
        self.say(
            f"{manifest.directory}: {vocabulary_line(manifest)}, "
            f"{len(manifest.splits['train'].files)} training shards, "
            f"{_describe_rows(manifest.splits['train'])}"
            f"fingerprint {manifest.fingerprint[:12]}, {seconds:.1f} s"
        )


def vocabulary_line(manifest: Manifest) -> str:
    """Return the size and the kind of the vocabulary, or of both."""
    if len(manifest.sequences) == 1:
        (info,) = manifest.tokenizers.values()
        return f"vocabulary {info.vocab_size:,} ({info.model_type})"
    sizes = [f"{info.vocab_size:,} ({info.model_type})" for info in manifest.tokenizers.values()]
    if manifest.joint_vocabulary:
        return f"joint vocabulary {sizes[0]}"
    return f"vocabularies {sizes[0]} source, {sizes[1]} target"


def _describe_rows(train: SplitInfo) -> str:
    if not train.rows:
        return ""
    return (
        f"{train.rows.rows:,} packed rows of {train.rows.row_length} "
        f"({train.rows.fill_rate:.1%} full), "
    )


def new_table(title: str) -> Table:
    """Return an empty table in the style of the job."""
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def split_table(manifest: Manifest) -> Table:
    """Return the table of examples, tokens and lengths of each split."""
    title = " → ".join(manifest.languages.values())
    table = new_table(title if manifest.task == "translation" else f"{manifest.task}: {title}")
    table.add_column("split")
    tokens = [f"{name} tokens" for name in manifest.sequences]
    for column in (f"{unit_of(manifest)} in", "kept", "dropped", *tokens, "mean length"):
        table.add_column(column, justify="right")
    for name, split in manifest.splits.items():
        table.add_row(
            name,
            f"{split.pairs_in:,}",
            f"{split.kept:,}",
            f"{sum(split.dropped.values()):,}",
            *(f"{info.tokens:,}" for info in split.sequences.values()),
            " / ".join(_mean(info.tokens, split) for info in split.sequences.values()),
        )
    return table


def unit_of(manifest: Manifest) -> str:
    """Return what the dataset counts as read, kept and dropped."""
    return UNITS[manifest.task]


def label_table(manifest: Manifest) -> Table:
    """Return the table of the examples of each label in each split."""
    table = new_table("labels")
    table.add_column("label")
    for split in manifest.splits:
        table.add_column(split, justify="right")
    for label in manifest.labels:
        counts = [f"{split.labels[label]:,}" for split in manifest.splits.values()]
        table.add_row(Text(label), *counts)
    return table


def _mean(tokens: int, split: SplitInfo) -> str:
    return f"{tokens / split.records:.1f}" if split.records else "-"


def drop_table(manifest: Manifest) -> Table:
    """Return the table of training examples dropped or changed, by cleaning step."""
    train = manifest.splits["train"]
    table = new_table("cleaning of train")
    table.add_column("step")
    for column in (unit_of(manifest), "share"):
        table.add_column(column, justify="right")
    rows = [(f"dropped: {name}", count) for name, count in train.dropped.items()]
    rows += [(f"changed: {name}", count) for name, count in train.changed.items()]
    for name, count in rows:
        table.add_row(name, f"{count:,}", f"{count / train.pairs_in:.2%}")
    if not rows:
        table.add_row("nothing to clean")
    return table
