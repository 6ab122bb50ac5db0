"""The report: one HTML page that needs nothing else, for any width, dark and light."""

import base64
import html
import time
from collections.abc import Sequence
from typing import Any

from trainer.metrics.goodput import PARTS
from trainer.reporting.charts import Series, line_chart
from trainer.reporting.differences import differences
from trainer.reporting.records import RunRecord, duration
from trainer.reporting.style import CSS

_SAMPLES = 6  # sentences shown
_STEPS_SHOWN = 4  # outputs of each, from early to late in training

# Group -> charts: title, the metric of the training split and of the validation split, and
# whether a logarithmic axis suits it.
CHARTS: dict[str, list[tuple[str, str | None, str | None, bool]]] = {
    "Does it learn?": [
        ("Loss, nats", "nll", "loss", False),
        ("Perplexity", "perplexity", "perplexity", True),
        ("Token accuracy", "token_accuracy", "token_accuracy", False),
        ("Accuracy", "accuracy", "accuracy", False),
        ("Bits per byte", "bits_per_byte", "bits_per_byte", False),
        ("Macro-F1, the mean over classes", None, "macro_f1", False),
        ("BLEU of the validation split", None, "bleu", False),
        ("chrF of the validation split", None, "chrf", False),
    ],
    "Is it fast?": [
        ("Target tokens a second, without padding", "target_tokens_per_second", None, False),
        ("Tokens a second, without padding", "tokens_per_second", None, False),
        ("Model FLOPs utilisation (MFU)", "mfu", None, False),
        ("Median seconds a step", "step_seconds_p50", None, False),
        ("95th percentile of seconds a step", "step_seconds_p95", None, False),
        ("Share of the time waiting for input", "input_wait", None, False),
        ("Fill rate: positions that are no padding", "fill_rate", None, False),
    ],
    "Is it healthy?": [
        ("Learning rate", "learning_rate", None, False),
        ("Norm of the gradient", "grad_norm", None, True),
        ("Norm of the update", "update_norm", None, True),
        ("Norm of the weights", "parameter_norm", None, False),
        ("Loss scale", "loss_scale", None, True),
        ("Skipped steps", "skipped_steps", None, False),
        ("Peak memory, bytes", "peak_memory_bytes", None, False),
    ],
}
SCORES = (
    ("bleu", "BLEU"),
    ("chrf", "chrF"),
    ("accuracy", "accuracy"),
    ("macro_f1", "macro-F1"),
    ("bits_per_byte", "bits per byte"),
    ("perplexity", "perplexity"),
    ("loss", "loss"),
    ("token_accuracy", "token accuracy"),
)


def render(runs: Sequence[RunRecord]) -> str:
    """Return the report on one run, or on several side by side, as an HTML document."""
    title = "Training report: " + ", ".join(run.name for run in runs)
    sections = [_head(runs), _scores(runs), _charts(runs), _samples(runs), _attention(runs)]
    body = "\n".join([*sections, _times(runs), _settings(runs), _about(runs)])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title><style>{CSS}</style></head>\n"
        f"<body><main>{body}</main></body></html>\n"
    )


def _head(runs: Sequence[RunRecord]) -> str:
    cards = "".join(_card(index, run) for index, run in enumerate(runs))
    title = "Training report" if len(runs) == 1 else f"{len(runs)} runs side by side"
    return f'<h1>{title}</h1><div class="cards">{cards}</div>'


def _card(index: int, run: RunRecord) -> str:
    """Return what one run is and how far it got, with its best score in large figures."""
    settings, last = run.settings(), run.last("train") or run.lines[-1]
    steps = settings.get("train.steps")
    reached = f"step {last['step']:,}"
    if steps:
        reached += f" of {steps:,}"
    line, name, score = _headline(run)
    facts = [f"{_task(run)}", reached]
    if "train_seconds" in last:
        facts.append(f"{duration(last['train_seconds'])} of training")
    big = f"<strong>{score}</strong> {html.escape(name)}" if line else "not evaluated yet"
    return (
        f'<section class="card" style="--c:var(--series-{index % 6})"><h2>{html.escape(run.name)}'
        f'</h2><p class="big">{big}</p><p>{html.escape(" · ".join(facts))}</p></section>'
    )


def _headline(run: RunRecord) -> tuple[dict[str, Any] | None, str, str]:
    """Return the line of the score that counts, its name, and its value for people."""
    for split, line in (("test", run.last("test")), ("validation", run.best())):
        for key, name in SCORES:
            if line and key in line:
                return line, f"{split} {name}, step {line['step']:,}", score_text(key, line[key])
    return None, "", ""


def score_text(metric: str, value: float) -> str:
    """Return a score with the digits that are usual for it."""
    return f"{value:.2f}" if metric in ("bleu", "chrf", "perplexity") else f"{value:.4f}"


def _task(run: RunRecord) -> str:
    task = str(run.settings().get("task", "translation")).replace("_", " ")
    return f"{task} {'-'.join(run.facts.get('languages', {}).values())}".strip()


def _scores(runs: Sequence[RunRecord]) -> str:
    rows, signatures = [], set()
    for run in runs:
        for split, line in (
            ("valid, best checkpoint", run.best()),
            ("valid, average of checkpoints", run.average),
            ("test", run.last("test")),
        ):
            if line:
                rows.append((run.name, split, line))
                if "signature" in line:
                    signatures.add(line["signature"])
    if not rows:
        return ""
    shown = [(key, name) for key, name in SCORES if any(key in line for _, _, line in rows)]
    table = _table(
        ["run", "split", "step", *(name for _, name in shown)],
        [
            [name, split, f"{line['step']:,}"]
            + [score_text(key, line[key]) if key in line else "" for key, _ in shown]
            for name, split, line in rows
        ],
    )
    note = "".join(f"<p>BLEU is sacreBLEU: <code>{html.escape(s)}</code></p>" for s in signatures)
    return f"<h2>Scores</h2>{table}{note}"


def _charts(runs: Sequence[RunRecord]) -> str:
    parts = []
    for group, charts in CHARTS.items():
        drawn = [
            line_chart(title, _series(runs, train, valid), logarithmic=logarithmic)
            for title, train, valid, logarithmic in charts
        ]
        if any(drawn):
            parts.append(f'<h2>{group}</h2><div class="charts">{"".join(drawn)}</div>')
    return "".join(parts)


def _series(runs: Sequence[RunRecord], train: str | None, valid: str | None) -> list[Series]:
    series = []
    for index, run in enumerate(runs):
        splits = [
            (split, metric) for split, metric in (("train", train), ("valid", valid)) if metric
        ]
        for split, metric in splits:
            names = [run.name] if len(runs) > 1 else []
            names += [split] if len(splits) > 1 or not names else []
            colour = index if len(runs) > 1 else ("train", "valid").index(split)
            dashed = len(runs) > 1 and len(splits) > 1 and split == "train"
            series.append(Series(" ".join(names), run.points(split, metric), colour, dashed))
    return series


def _samples(runs: Sequence[RunRecord]) -> str:
    """Return the same sentences for all runs; of a single run, how they came to be."""
    # One may be shorter: of a start with fewer `decode.validation_sentences`, or half written.
    lengths = [len(lines) for run in runs for lines in run.outputs.values()]
    if not lengths or not min(lengths):
        return ""
    count = min(lengths)
    chosen = sorted({round(i * (count - 1) / max(1, _SAMPLES - 1)) for i in range(_SAMPLES)})
    same_data = len({run.facts.get("data_fingerprint") for run in runs}) == 1
    if len(runs) > 1 and not same_data:
        return ""
    items = "".join(_sample(runs, line) for line in chosen)
    return f'<h2>Samples of the validation split</h2><div class="samples">{items}</div>'


def _sample(runs: Sequence[RunRecord], number_of_line: int) -> str:
    first = runs[0]
    reference = None
    rows = []
    if first.sources and number_of_line < len(first.sources):
        rows.append(("source", html.escape(first.sources[number_of_line])))
    if first.references and number_of_line < len(first.references):
        reference = first.references[number_of_line]
        rows.append(("reference", html.escape(reference)))
    if len(runs) == 1:
        steps = list(first.outputs)
        last = len(steps) - 1
        kept = sorted({round(i * last / (_STEPS_SHOWN - 1)) for i in range(_STEPS_SHOWN)})
        outputs = [(f"step {steps[i]:,}", first.outputs[steps[i]]) for i in kept]
    else:
        outputs = [(run.name, list(run.outputs.values())[-1]) for run in runs if run.outputs]
    rows += [(name, marked(lines[number_of_line], reference)) for name, lines in outputs]
    return "<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{v}</dd>" for k, v in rows) + "</dl>"


def marked(output: str, reference: str | None) -> str:
    """Return the output as HTML, with the words marked that the reference does not have there."""
    if reference is None:
        return html.escape(output)
    return " ".join(
        f"<mark>{html.escape(words)}</mark>" if differs else html.escape(words)
        for words, differs in differences(output, reference)
    )


def _attention(runs: Sequence[RunRecord]) -> str:
    """Return where each model looks, in pictures that scroll where the page is too narrow."""
    parts = []
    for run in runs:
        for name, content in run.attention.items():
            title = html.escape(f"{name.split('-')[1]} attention")
            if len(runs) > 1:
                title = f"{html.escape(run.name)}: {title}"
            data = base64.b64encode(content).decode()
            parts.append(
                f'<figure><figcaption>{title}</figcaption><div class="scroll">'
                f'<img alt="{title}" src="data:image/png;base64,{data}"></div></figure>'
            )
    if not parts:
        return ""
    note = (
        "<p>Attention weights on a validation sentence: one row of panels per layer and one panel "
        "per head. In a panel, rows are queries and columns are keys; darker is larger.</p>"
    )
    return f'<h2>Where it looks</h2>{note}<div class="pictures">{"".join(parts)}</div>'


def _times(runs: Sequence[RunRecord]) -> str:
    rows, bars = [], []
    for run in runs:
        spent: dict[str, float] = next(
            (line["spent"] for line in reversed(run.lines) if "spent" in line), {}
        )
        total = sum(spent.values())
        if not total:
            continue
        pieces = "".join(
            f'<i style="flex-grow:{seconds / total:.5f};--c:var(--series-{index})" '
            f'title="{name}: {duration(seconds)}"></i>'
            for index, (name, seconds) in enumerate(spent.items())
        )
        bars.append(f'<p class="label">{html.escape(run.name)}</p><div class="bar">{pieces}</div>')
        shares = [f"{duration(spent[name])} ({spent[name] / total:.0%})" for name in PARTS]
        rows.append([run.name, *shares, duration(total)])
    if not rows:
        return ""
    legend = "".join(
        f'<span class="key" style="--c:var(--series-{index})">{name}</span>'
        for index, name in enumerate(PARTS)
    )
    table = _table(["run", *PARTS, "in all"], rows)
    return f'<h2>Where the time went</h2><div class="legend">{legend}</div>{"".join(bars)}{table}'


def _settings(runs: Sequence[RunRecord]) -> str:
    flat = [run.settings() for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    rows = [[key, *(_value(settings.get(key)) for settings in flat)] for key in keys]
    different = [row for row in rows if len(set(row[1:])) > 1]
    head = ["setting", *(run.name for run in runs)]
    parts = []
    if len(runs) > 1:
        found = _table(head, different) if different else "<p>None: the settings are the same.</p>"
        parts.append(f"<h2>Settings that differ</h2>{found}")
    all_of_them = _table(head, rows)
    parts.append(f"<details><summary>All settings</summary>{all_of_them}</details>")
    return "".join(parts)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _about(runs: Sequence[RunRecord]) -> str:
    rows = []
    for run in runs:
        facts, last = run.facts, run.lines[-1]
        versions = ", ".join(f"{name} {text}" for name, text in facts.get("versions", {}).items())
        data = facts.get("data", {})
        sizes = ", ".join(
            f"{value:,} {key.removesuffix(' pairs')}"
            for key, value in data.items()
            if key.endswith(" pairs")  # the name, whatever the task
        )
        when = (
            time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(last["time"])) if "time" in last else ""
        )
        rows.append([run.name, sizes, facts.get("data_fingerprint", "")[:12], versions, when])
    head = ["run", "data", "fingerprint", "versions", "last line written"]
    return f"<h2>Data and versions</h2>{_table(head, rows)}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table, which scrolls by itself where the page is too narrow for it."""
    top = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'
