"""The BUILD files, which are Python enough to be run by Python with stand-ins for Bazel's rules."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
IGNORED = (ROOT / ".bazelignore").read_text().split()
FOLDERS = [path.parent for path in ROOT.glob("*/BUILD")]


def load_targets(folder: Path) -> dict[str, dict]:
    """Return label -> attributes of every target in the folder's BUILD file."""
    targets = {}

    def glob(include, exclude=(), allow_empty=False):
        found = {path for pattern in include for path in folder.glob(pattern)}
        found -= {path for pattern in exclude for path in folder.glob(pattern)}
        assert found or allow_empty, f"{folder}: {include} matches nothing"
        return sorted(path.relative_to(folder).as_posix() for path in found)

    def rule(name, **attributes):
        label = f"//{folder.name}:{name}"
        assert label not in targets, f"two targets {label}"
        targets[label] = attributes

    names = {"py_library": rule, "py_binary": rule, "py_test": rule, "glob": glob}
    names |= {"load": lambda *_: None, "package": lambda **_: None}
    exec((folder / "BUILD").read_text(), names)
    return targets


def full_label(label: str, folder: str) -> str:
    """Return the label as //folder:name."""
    label = f"//{folder}{label}" if label.startswith(":") else label
    return label if ":" in label else f"{label}:{label.rpartition('/')[2]}"


@pytest.fixture(scope="module")
def targets():
    return {label: one for folder in FOLDERS for label, one in load_targets(folder).items()}


def test_every_python_file_is_in_exactly_one_target(targets):
    tops = [path for path in ROOT.iterdir() if path.name[0] != "." and path.name not in IGNORED]
    files = {path.relative_to(ROOT) for top in tops for path in top.rglob("*.py")}
    assert len(files) > 200
    listed = Counter(
        Path(label[2:].split(":")[0], source)
        for label, target in targets.items()
        for source in target.get("srcs", ())
    )
    assert listed == dict.fromkeys(files, 1)


def test_every_label_and_module_exists(targets):
    locked = {
        f"@{hub}//{re.sub(r'[-_.]+', '_', line.split('==')[0]).lower()}"
        for hub, name in (("pip", "cpu"), ("pip_preflight", "preflight"))
        for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines()
    }
    for label, target in targets.items():
        for needed in (*target["deps"], *target.get("data", ())):
            known = needed in locked or needed == "//:pyproject.toml"
            assert known or full_label(needed, label[2:].split(":")[0]) in targets, (label, needed)
        module = target.get("main_module", "pytest")
        assert module == "pytest" or (ROOT / f"{module.replace('.', '/')}.py").is_file(), label


def test_libraries_depend_on_the_packages_that_they_import(targets):
    for folder in {path.name for path in FOLDERS} - {"tests"}:
        trees = [ast.parse(path.read_text()) for path in (ROOT / folder).rglob("*.py")]
        nodes = [node for tree in trees for node in ast.walk(tree)]
        modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        modules |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        needed = {f"//{name}" for name in {module.split(".")[0] for module in modules} - {folder}}
        deps = set(targets[f"//{folder}:{folder}"]["deps"])
        assert {label for label in needed if (ROOT / label[2:]).is_dir()} - deps == set()


def test_every_command_has_a_binary(targets):
    commands = {
        f"{path.parent.name}.{path.stem}"
        for folder in FOLDERS
        for path in folder.glob("*.py")
        if re.search(r"^    run_app\(", path.read_text(), re.MULTILINE)
    }
    assert len(commands) > 10
    assert {one.get("main_module") for one in targets.values()} - {"pytest", None} == commands
