"""trainer.report: what the page says of small model directories made by hand."""

import base64
import html.parser
import json
import math
import re

import pytest

from common.errors import UsageError
from trainer.metrics import boards, live
from trainer.metrics.goodput import PARTS
from trainer.report import make_report
from trainer.reporting import charts, page, records
from trainer.tasks.lookup import TASKS


def make_run(directory, *, steps=40, bleu=(10.0, 31.25), dropout=0.1):
    """Write a model directory whose second evaluation comes at the end, and its dataset's text."""
    data = directory.parent / "data"
    (directory / "translations").mkdir(parents=True)
    data.mkdir(exist_ok=True)
    (data / "valid.en.txt").write_text("a <b>\nsecond\n")
    (data / "valid.de.txt").write_text("ein gutes Wort\nzweitens\n")
    names = [{"name": "valid.en.txt"}, {"name": "valid.de.txt"}]
    made = {"splits": {"valid": {"raw_text": names}}, "fingerprint": "f" * 64}
    (data / "dataset.json").write_text(json.dumps(made))
    config = {
        "config": {"model": {"dropout": dropout}, "train": {"steps": steps, "best_metric": "bleu"}},
        "precision": "float32",
        "data_dir": str(data),
        "data_fingerprint": "f" * 64,
        "languages": {"source": "en", "target": "de"},
        "versions": {"tensorflow": "2.21.0"},
    }
    (directory / "config.json").write_text(json.dumps(config))
    lines = []
    for step in range(10, steps + 1, 10):
        line = {"step": step, "time": 1000.0 + step, "split": "train", "nll": 8.0 / step}
        if step == 10:
            line |= {"compile_seconds": 3.0, "train_seconds": 5.0}
        else:
            line |= {"step_seconds": 0.5, "input_wait": 0.1, "train_seconds": 5.0 + step / 2}
        line["spent"] = dict.fromkeys(PARTS, 0.0) | {"steps": 0.5 * step, "start": 5.0}
        lines.append(line)
        if step in (steps // 2, steps):
            score = bleu[step // steps]
            valid = {"step": step, "split": "valid", "bleu": score, "evaluate_seconds": 2.0}
            lines.append(valid | {"loss": 3.0, "signature": "tok:13a"})
            outputs = f"ein Wort\nzweitens {step}\n"
            (directory / "translations" / f"valid-{step}.txt").write_text(outputs)
    lines.append({"step": steps, "split": "test", "bleu": 29.5, "signature": "tok:13a"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (directory / "metrics.jsonl").write_text(
        text + '{"step": 50, "spl'
    )  # a running job's half line
    return directory


class Outline(html.parser.HTMLParser):
    """Collects what could need the network, and checks that every tag is closed."""

    void = frozenset({"meta", "img"})

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.references = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outline(text):
    parser = Outline()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_page_of_one_run_stands_alone_and_has_its_scores_and_samples(tmp_path):
    run, output = make_run(tmp_path / "model"), tmp_path / "page.html"
    assert make_report([str(run)], str(output)) == ["model"]
    text = output.read_text()
    parsed = outline(text)
    assert parsed.references == [] and "script" not in parsed.tags and "url(" not in text
    assert "<strong>29.50</strong> test BLEU, step 40" in text
    assert "translation en-de" in text and "step 40 of 40" in text and "25.0 s of training" in text
    assert "<td>31.25</td>" in text and "tok:13a" in text
    assert "a &lt;b&gt;" in text  # text of the dataset is escaped
    assert "zweitens <mark>20</mark>" in text and "zweitens <mark>40</mark>" in text
    assert parsed.tags.count("svg") == 3  # loss, BLEU, input_wait, and no empty one
    assert "Where it looks" not in text


def test_the_average_of_checkpoints_is_among_the_scores(tmp_path):
    run = make_run(tmp_path / "model")
    assert records.read_run(str(run), "model").average is None
    (run / "averaged").mkdir()
    for step, bleu in ((30, 1.5), (40, 33.33)):
        manifest = {"step": step, "metrics": {"bleu": bleu, "loss": 2.5}}
        (run / "averaged" / f"ckpt-{step}.json").write_text(json.dumps(manifest))
    found = records.read_run(str(run), "model")
    assert found.average == {"step": 40, "bleu": 33.33, "loss": 2.5}
    row = "<td>valid, average of checkpoints</td><td>40</td><td>33.33</td>"
    assert row in page.render([found])


def test_text_of_another_dataset_is_not_shown(tmp_path):
    """The dataset was made again, in the same directory; the outputs are shown alone."""
    run = make_run(tmp_path / "model")
    manifest = tmp_path / "data" / "dataset.json"
    assert records.read_run(str(run), "model").sources == ["a <b>", "second"]
    for content in (manifest.read_text().replace("fff", "fef"), "[]"):
        manifest.write_text(content)
        assert records.read_run(str(run), "model").sources is None


@pytest.mark.parametrize("bad", [math.nan, None, "1"])
def test_an_evaluation_that_is_no_number_is_not_the_best(tmp_path, bad):
    run = make_run(tmp_path / "model", bleu=(bad, 31.25))
    assert records.read_run(str(run), "model").best()["bleu"] == 31.25


def test_pictures_of_attention_are_in_the_page(tmp_path):
    folder = make_run(tmp_path / "model") / "pictures"
    folder.mkdir()
    for name in ("attention-cross-1.png", "attention-cross-2.png"):
        (folder / name).write_bytes(b"PNG " + name.encode())
    text = page.render([records.read_run(str(folder.parent), "model")])
    pictures = outline(text).references
    data = base64.b64encode(b"PNG attention-cross-1.png").decode()
    assert pictures == [f"data:image/png;base64,{data}"]
    assert "cross attention" in text.split("Where it looks")[1]


def test_several_runs_are_told_apart_and_their_settings_compared(tmp_path):
    first, second = (
        make_run(tmp_path / "a" / "model"),
        make_run(tmp_path / "b" / "model", dropout=0.3),
    )
    names = records.names_of([str(first), str(second)])
    assert names == ["a/model", "b/model"]
    runs = [records.read_run(str(first), names[0]), records.read_run(str(second), names[1])]
    text = page.render(runs)
    outline(text)
    differ = text.split("Settings that differ")[1].split("All settings")[0]
    assert re.findall(r"<td>(.*?)</td>", differ) == ["model.dropout", "0.1", "0.3"]
    assert text.count('stroke-dasharray="4 3"') == 2  # the training losses of both


def test_best_evaluation_follows_best_metric(tmp_path):
    run = records.read_run(str(make_run(tmp_path / "model", bleu=(31.0, 30.0))), "model")
    assert (run.best()["step"], run.best()["bleu"]) == (20, 31.0)
    run.facts["config"]["train"]["best_metric"] = "loss"
    assert run.best()["loss"] == 3.0
    scores = [{"split": "valid", "bleu": 5.0, "loss": loss} for loss in (2.0, 1.0)]
    assert records.best_line(scores, "bleu", higher=True)["loss"] == 1.0  # as training decides
    assert records.best_line([], "bleu", higher=True) is None


def test_outputs_of_fewer_sentences(tmp_path):
    """A start with fewer `decode.validation_sentences`; or a file that is being written."""
    directory = make_run(tmp_path / "model")
    (directory / "translations" / "valid-40.txt").write_text("ein Wort\n")
    text = page.render([records.read_run(str(directory), "model")])
    assert "a &lt;b&gt;" in text and "second" not in text


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_tables_of_metrics_know_those_of_every_task(task):
    """The report, the live table and TensorBoard's first page show them; the report knows which
    value is the better one."""
    lower = {metric for metric, higher in task.BEST.items() if not higher}
    assert lower == records.LOWER_IS_BETTER & set(task.BEST)
    wanted = {next(iter(task.BEST)), *task.SCORES, "loss"}
    charted = {valid for _, _, valid, _ in page.CHARTS["Does it learn?"]}
    assert wanted <= set(dict(page.SCORES)) and wanted <= charted and wanted <= set(live.SCORES)
    assert wanted <= set(boards.FIRST_PAGE["Does it learn?"])


def test_a_single_point_is_a_dot_and_no_point_no_chart():
    series = charts.Series("valid", [(540, 7.63)], 1)
    chart = charts.line_chart("BLEU", [series])
    assert chart.count("<circle") == 1 and "polyline" not in chart and "7.63" in chart
    assert charts.line_chart("BLEU", [charts.Series("valid", [], 0)]) == ""


def test_many_points_are_averaged_and_the_last_one_stays():
    points = [(step, float(step % 2)) for step in range(1, 1001)]
    thinned = charts._thinned(points)
    assert len(thinned) == 200 and thinned[-1][0] == 1000
    assert sum(value for _, value in thinned) / 200 == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.0, 10.0, [0, 2, 4, 6, 8, 10]), (4.92, 7.63, [4, 5, 6, 7, 8]), (3.0, 3.0, [3.0])],
)
def test_ticks_are_round_and_span_the_values(low, high, ticks):
    found = charts._linear_ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    if low != 4.92:
        assert found == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00012, "0.00012"),
        (7.634, "7.63"),
        (1234.5, "1,234"),
        (12585, "12.6k"),
        (3.42e9, "3.42G"),
    ],
)
def test_numbers_are_short(value, text):
    assert charts.number(value) == text


def test_bad_input_is_one_line(tmp_path):
    run, good = make_run(tmp_path / "model"), make_run(tmp_path / "good")
    with pytest.raises(UsageError, match=r"no config\.json"):
        records.read_run(str(tmp_path), "x")
    with pytest.raises(UsageError, match="given twice"):
        records.names_of([str(run), f"{run}/"])
    (run / "metrics.jsonl").write_text('{"step": 1, "split": "train"}\nnonsense\n')
    with pytest.raises(UsageError, match=r"metrics.jsonl, line 2, is not JSON"):
        records.read_run(str(run), "x")
    for line in ('{"step": "1", "split": "train"}', '{"step": 1, "split": null}', "[]"):
        (run / "metrics.jsonl").write_text(f"{line}\n")
        with pytest.raises(UsageError, match=r"metrics.jsonl, line 1, has no step and split"):
            records.read_run(str(run), "x")
    (run / "metrics.jsonl").write_text('{"step": 1')
    with pytest.raises(UsageError, match="no metrics yet"):
        records.read_run(str(run), "x")
    with pytest.raises(UsageError, match=r"--output= is empty"):
        make_report([str(good)], "")
    with pytest.raises(UsageError, match=r"--output=.*: its directory does not exist"):
        make_report([str(good)], str(tmp_path / "none" / "page.html"))
    assert not list(tmp_path.glob("**/_incomplete*"))
