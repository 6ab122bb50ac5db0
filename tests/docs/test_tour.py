"""The documentation: every link, symbol and command that it shows exists."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs import schema

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"])
TOUR = sorted((ROOT / "docs" / "tour").glob("*.md"))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FLAG = re.compile(r'DEFINE_\w+\(\s*"(\w+)"')
MODULE = re.compile(
    r"^(?:from|import) ((?:benchmarks|common|configs|data_pipeline|launch|trainer)[\w.]*)", re.M
)


def load_hook():
    path = ROOT / "docs" / "tour" / "include_code.py"
    spec = importlib.util.spec_from_file_location("include_code", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hook = load_hook()


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as MkDocs makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    kept = (re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in kept}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path):
    text = path.read_text()
    for link in LINK.findall(FENCE.sub("", text)):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.is_file(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target.read_text()), f"{link}: no such heading"


@pytest.mark.parametrize("path", TOUR, ids=name_of)
def test_code_and_symbols_are_there(path):
    text = path.read_text()
    missing = []
    for file, symbol in hook.CODE.findall(text) + hook.REFERENCE.findall(text):
        try:
            assert hook.line_of(file, symbol) > 0
        except LookupError as error:
            missing.append(str(error))
    assert not missing
    for file, symbol in hook.CODE.findall(text):
        shown = hook.show(file, symbol)
        assert 3 <= shown.count("\n") <= 60, f"{symbol} is no snippet"


def commands(text: str) -> list[list[str]]:
    """Return the arguments of every `python -m` command of a page's shell blocks."""
    found = []
    for language, block in FENCE.findall(text):
        if language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "python" in words and "-m" in words:
                    words = words[words.index("-m") + 1 :]
                    ends = [i for i, word in enumerate(words) if word in ("|", "<", ">", "&&")]
                    found.append(words[: min(ends, default=len(words))])
    return found


def flags_of(module: str, seen: set[str]) -> set[str]:
    """Return the flags that a module of this repository defines, or imports."""
    path = ROOT / (module.replace(".", "/") + ".py")
    if module in seen or not path.is_file():
        return set()
    seen.add(module)
    text = path.read_text()
    found = set(FLAG.findall(text))
    for imported in MODULE.findall(text):
        found |= flags_of(imported, seen)
    for package, names in re.findall(r"^from ([\w.]+) import ([\w, ]+)", text, re.M):
        for name in names.split(", "):
            found |= flags_of(f"{package}.{name}", seen)
    return found


@pytest.mark.parametrize(
    "path", [*TOUR, ROOT / "README.md", ROOT / "docs" / "index.md"], ids=name_of
)
def test_commands_have_the_modules_and_flags_that_they_name(path):
    for module, *arguments in commands(path.read_text()):
        if module in ("mkdocs", "venv", "pip"):
            continue
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), f"no module {module}"
        known = flags_of(module, set()) | {"config"}
        for argument in arguments:
            if argument == "--":
                break
            flag = re.match(r"--(?:no)?([\w.]+)", argument)
            if not flag:
                continue
            group, _, field = flag[1].removeprefix("config.").partition(".")
            if flag[1].startswith("config."):
                section = getattr(schema.Config(), group)
                assert not field or hasattr(section, field), f"no field {argument}"
            else:
                assert flag[1] in known, f"{module} has no flag {argument}"
            value = argument.partition("=")[2]
            if value.startswith("configs/"):
                assert (ROOT / value).is_file()


def test_symbols_that_are_not_there_are_refused():
    with pytest.raises(LookupError, match="defines no nothing"):
        hook.show("trainer/step.py", "nothing")
    with pytest.raises(LookupError, match="no file"):
        hook.on_page_markdown("`trainer/nothing.py:nothing`")
    shown = hook.show("trainer/model/positions.py", "causal_mask")
    assert '"""' not in shown and "index[:, tf.newaxis] >= index" in shown


@pytest.mark.docs
def test_site_is_built_without_a_warning_and_needs_no_other_host(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir"]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(TOUR)
    loaded = re.compile(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="?((?:https?:)?//[^">]+)')
    for page in pages:
        outside = [url for url in loaded.findall(page.read_text()) if "canonical" not in url]
        assert not outside, f"{page.name} loads {outside}"


@pytest.mark.docs
@pytest.mark.parametrize("path", TOUR, ids=name_of)
def test_experiments_run(path, demo, monkeypatch, capsys):
    monkeypatch.chdir(demo)
    for language, block in FENCE.findall(path.read_text()):
        if language == "python" and "import" in block:
            exec(compile(block, path.name, "exec"), {})
        if language == "sh":
            line = block.replace("python -m", f"{sys.executable} -m")
            done = subprocess.run(
                ["bash", "-ec", line],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                text=True,
                capture_output=True,
                timeout=1200,
            )
            assert done.returncode == 0, done.stderr


@pytest.mark.docs
def test_notebook_runs(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "tour" / "notebook.py")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "cross (4, 4, " in done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Return a folder with data/demo and models/demo, trained for a few steps only."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "configs").symlink_to(ROOT / "configs")
    short = ("--config.train.steps=20", "--config.train.evaluate_every=20")
    few = "--config.decode.validation_sentences=10"
    done = subprocess.run(
        [sys.executable, "-m", "trainer.main", "--strategy=mirrored", *short, few],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder
