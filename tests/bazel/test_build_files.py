"""The BUILD files against the Python files: what the generator does, and its result by other means.

The generator reads the syntax tree; here the compiled code says what is imported, Python's own
finder where it lies, and the installed packages' records what they contain.
"""

import ast
import dis
import functools
import itertools
import re
import sys
import types
from collections import defaultdict
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

import build_files
import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = build_files.repository_files(ROOT)
TEXTS = {path: (ROOT / path).read_text() for path in FILES if Path(path).name == "BUILD"}


# What is right, by other means than the generator's.


def rules_of(texts: dict[str, str]) -> dict[str, dict]:
    """Label -> attributes, with their labels in full."""
    rules = {}
    for path, text in texts.items():
        package = Path(path).parent.as_posix().removeprefix(".")
        for node in ast.parse(text).body:
            call = node.value if isinstance(node, ast.Expr) else None
            if isinstance(call, ast.Call) and call.func.id.startswith("py_"):
                rule = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
                rule["srcs"] = [f"{package}/{name}" for name in rule["srcs"]]
                for kind in ("deps", "data"):
                    rule[kind] = [full(label, package) for label in rule.get(kind, [])]
                assert f"//{package}:{rule['name']}" not in rules
                rules[f"//{package}:{rule['name']}"] = {"rule": call.func.id, **rule}
    return rules


def full(label: str, package: str) -> str:
    """//package:name also of short labels."""
    if label.startswith(":"):
        return f"//{package}{label}"
    return label if ":" in label else f"{label}:{label.rpartition('/')[2]}"


@functools.cache
def imported_names(path: str) -> set[tuple[str, str]]:
    """(module, name) of each import, by the compiled code; name is "" for a plain import."""
    text = (ROOT / path).read_text()
    names = {(m, "") for m in re.findall(r'\.(?:importorskip|find_spec)\("([\w.]+)"', text)}
    codes = [compile(text, path, "exec")]
    while codes:
        code = codes.pop()
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        steps = [i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG"]
        for before, step in itertools.pairwise(steps):
            if step.opname == "IMPORT_NAME":
                names |= {(step.argval, name) for name in before.argval or [""]}
    return names


@functools.cache
def place(dotted: str, folders: tuple[str, ...]) -> str | None:
    """Path of a module of the repository, as Python finds it on such a sys.path."""
    search: list[str] | None = [str(ROOT / folder) for folder in folders]
    parts = dotted.split(".")
    for end in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:end]), search)
        if spec is None:
            return None
        search = spec.submodule_search_locations
        if search is None and end < len(parts):
            return None
    return Path(spec.origin).relative_to(ROOT).as_posix() if spec.origin else None


@functools.cache
def files_of(distribution: str) -> set[str]:
    """Paths of its files, below site-packages."""
    return {file.as_posix() for file in metadata.files(distribution) or ()}


@functools.cache
def installed() -> dict[str, set[str]]:
    """Top folder or module -> the distributions with files there."""
    found = defaultdict(set)
    for name in {one.name for one in metadata.distributions()}:
        for path in files_of(name):
            found[path.split("/")[0].removesuffix(".py")].add(name)
    return found


@functools.cache
def distribution(module: str, name: str) -> str:
    """What to install for an import, as in a label; for what is not installed, its own name."""
    top = module.split(".")[0]
    if top == "tensorflow":  # its builds have several names
        return "tensorflow_cpu"
    found = installed().get(top, {top})
    if len(found) > 1:
        stems = [f"{module}.{name}".replace(".", "/"), module.replace(".", "/")]
        files = [f"{stem}{end}" for stem in stems for end in (".py", "/__init__.py")]
        found = {one for one in found if files_of(one) & {*files}}
    (found,) = found
    return re.sub(r"[-_.]+", "_", found).lower()


@functools.cache
def lock(name: str) -> dict[str, set[str]]:
    """Name as in a label -> its versions, of which a platform has one."""
    versions = defaultdict(set)
    for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines():
        package, _, version = line.partition(";")[0].strip().partition("==")
        versions[re.sub(r"[-.]", "_", package.lower())].add(version)
    return versions


def needed(path: str, owners: dict[str, str]) -> set[str]:
    """Labels that a file's target depends on."""
    folder = Path(path).parent
    in_tests = path.startswith("tests/")
    folders = (folder.as_posix(), "tests", "") if in_tests else ("",)
    labels = set()
    package = folder.parent if Path(path).name == "__init__.py" else folder
    around = {package / "__init__.py"}
    if Path(path).name.startswith("test_"):
        labels.add("@pip//pytest:pytest")
        around |= {parent / "conftest.py" for parent in (folder, *folder.parents)}
    labels |= {owners[file.as_posix()] for file in around if file.as_posix() in owners}
    for module, name in imported_names(path):
        found = place(f"{module}.{name}", folders) if name else None
        found = found or place(module, folders)
        if found:
            labels.add(owners.get(found, f"the target of {found}"))
        elif module.split(".")[0] not in sys.stdlib_module_names:
            name = distribution(module, name)
            hub = "pip" if name in lock("cpu") else "pip_preflight"
            if name in lock("cpu") | lock("preflight"):
                labels.add(f"@{hub}//{name}:{name}")
    return labels


def problems(texts: dict[str, str]) -> list[str]:
    """What is wrong with the BUILD files, one a line."""
    rules, found, holders = rules_of(texts), [], defaultdict(list)
    for label, rule in rules.items():
        for path in rule["srcs"]:
            holders[path].append(label)
    python = {path for path in FILES if path.endswith(".py")}
    for path in sorted(python | holders.keys()):
        if path not in python:
            found.append(f"{path} does not exist")
        elif len(holders[path]) != 1:
            found.append(f"{path} is in {len(holders[path])} targets")
    if found:
        return found
    owners = {path: labels[0] for path, labels in holders.items()}
    for label, rule in rules.items():
        right = set().union(*(needed(path, owners) for path in rule["srcs"] if path in python))
        if label == "//tests:conftest":
            right.add("@pip//pytest_timeout:pytest_timeout")  # pyproject.toml sets its time
        have = rule["deps"]
        found += [f"{label}: {dep} twice" for dep in sorted(have) if have.count(dep) > 1]
        found += [f"{label} lacks {dep}" for dep in sorted(right - {label} - set(have))]
        found += [f"{label} does not import {dep}" for dep in sorted(set(have) - right)]
    return found + problems_of_data(texts, rules)


def problems_of_data(texts: dict[str, str], rules: dict[str, dict]) -> list[str]:
    """Labels that lead nowhere, and files that no target brings along."""
    labels = {path: file_label(path, texts) for path in FILES if path not in texts}
    data = {label: user for user, rule in rules.items() for label in rule["data"]}
    found = [
        f"{data[label]}: no {label}"
        for label in sorted(data.keys() - rules.keys() - set(labels.values()))
    ]
    code = tuple(f"{folder}/" for folder in build_files.FOLDERS)
    for path, label in labels.items():
        if path.startswith(code) and not path.endswith(".py") and label not in data:
            found.append(f"{path} is data of no target: no string of a Python file names it")
    return found


def file_label(path: str, texts: dict[str, str]) -> str:
    """Label of a file: the nearest folder with a BUILD file is its package."""
    for parent in Path(path).parents:
        package = parent.as_posix().removeprefix(".")
        if f"{package}/BUILD".lstrip("/") in texts:
            return f"//{package}:{path.removeprefix(package).lstrip('/')}"
    raise AssertionError(path)


# The files of the repository.


def test_they_are_what_the_generator_writes():
    written = build_files.build_files(build_files.Repository(ROOT, FILES))
    other = {path for path in TEXTS | written if TEXTS.get(path) != written.get(path)}
    assert other == set(), "run: python tests/bazel/build_files.py"


def test_every_file_is_in_one_target_that_depends_on_its_imports():
    assert problems(TEXTS) == []


@pytest.mark.parametrize(
    ("path", "old", "new", "found"),
    [
        (
            *("trainer/model/BUILD", '        ":attention",\n', ""),
            "//trainer/model:layers lacks //trainer/model:attention",
        ),
        (
            *("trainer/model/BUILD", '        "@pip//keras",\n', ""),
            "//trainer/model:attention lacks @pip//keras:keras",
        ),
        (  # imported in functions and for the type checker only
            *("data_pipeline/BUILD", '        "@pip//matplotlib",\n', ""),
            "//data_pipeline:pictures lacks @pip//matplotlib:matplotlib",
        ),
        (
            *("launch/tpu_model/BUILD", '"@pip_preflight//jax"', '"@pip//jax"'),
            "//launch/tpu_model:compiler lacks @pip_preflight//jax:jax",
        ),
        ("configs/BUILD", '["demo.py"]', "[]", "configs/demo.py is in 0 targets"),
        (
            *("configs/BUILD", '["demo.py"]', '["demo.py", "schema.py"]'),
            "configs/schema.py is in 2 targets",
        ),
        ("configs/BUILD", '["demo.py"]', '["demo.py", "x.py"]', "configs/x.py does not exist"),
        (
            *("data_pipeline/BUILD", '[":data_pipeline"]', '[":data_pipeline", "//trainer"]'),
            "//data_pipeline:builtin_frames does not import //trainer:trainer",
        ),
        (
            *("tests/BUILD", '"//:pyproject.toml"', '"//:pyproject.tom"'),
            "//tests:conftest: no //:pyproject.tom",
        ),
    ],
)
def test_a_planted_mistake_is_found(path, old, new, found):
    assert old in TEXTS[path]
    assert problems({**TEXTS, path: TEXTS[path].replace(old, new, 1)})[0] == found


def test_the_hubs_agree():
    """A target may use both: the same package has the same version in each of them."""
    cpu, preflight = lock("cpu"), lock("preflight")
    assert {name for name in cpu.keys() & preflight.keys() if cpu[name] != preflight[name]} == set()
    hubs = re.findall(
        r'hub_name = "(\w+)",.*?"//:(.*?)"', (ROOT / "MODULE.bazel").read_text(), re.S
    )
    assert dict(hubs) == build_files.HUBS
