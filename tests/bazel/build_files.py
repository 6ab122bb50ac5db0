"""Writes the BUILD files of the repository from the imports of its Python files.

    python tests/bazel/build_files.py

Run it after a file was added, removed or renamed, and after a change of its imports. A target is
one file, and its `deps` are what the file imports, also inside of functions. What it starts as a
process or opens, as far as a string names it, is its `data`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from source_imports import Source, read_source

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "configs", "data_pipeline", "launch", "tests", "trainer")

# Where pip's name is not the module's. TensorFlow's is that of Linux on x86-64.
_DISTRIBUTIONS = {
    "absl": "absl_py",
    "google.cloud.tpu_v2": "google_cloud_tpu",
    "google.protobuf": "protobuf",
    "tensorflow": "tensorflow_cpu",
    "yaml": "pyyaml",
}
HUBS = {"pip": "requirements/cpu.txt", "pip_preflight": "requirements/preflight.txt"}
# Imported only where they are installed, and not locked: Bazel runs without them.
_NOT_LOCKED = {"distributed", "py3langid", "torch"}
# Used by pytest because of a setting in pyproject.toml, which no file imports.
_PLUGINS = {"tests/conftest.py": {"@pip//pytest_timeout"}}
_READ_BY_NAME = {"tests/conftest.py": {"pyproject.toml"}}
# This folder reads the whole repository, where git has it and not as `data`: pytest runs its tests.
_HERE = "tests/bazel/"
_ON_REQUEST = {"distributed", "faults", "preflight"}  # marks that pyproject.toml leaves out
_PYTEST = "@pip//pytest"

_HEADER = "# Written by tests/bazel/build_files.py from the imports: run it, do not edit this.\n"


def repository_files(root: Path) -> list[str]:
    """Paths of all files that git knows or would add, sorted."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    return sorted(path for path in set(listed) if path and (root / path).is_file())


def locked(text: str) -> set[str]:
    """Names of the distributions in a requirements file, as in the labels."""
    lines = (line.split("==")[0] for line in text.splitlines() if "==" in line)
    return {re.sub(r"[-_.]+", "_", name).lower() for name in lines}


@dataclass
class Target:
    """One rule of a BUILD file; the attributes are Bazel's."""

    rule: str
    name: str
    srcs: list[str]
    deps: set[str] = field(default_factory=set)
    data: set[str] = field(default_factory=set)
    main_module: str = ""
    args: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)


class Repository:
    """The Python files, what they need of each other, and the targets that follow.

    Args:
        root: directory of the repository.
        files: paths of its files, relative to it.
    """

    def __init__(self, root: Path, files: Iterable[str]) -> None:
        self.files = {path for path in files if os.path.basename(path) != "BUILD"}
        self.sources: dict[str, Source] = {}
        for path in sorted(self.files):
            if path.endswith(".py") and path.startswith(tuple(f"{name}/" for name in FOLDERS)):
                self.sources[path] = read_source((root / path).read_text(encoding="utf-8"))
        self._locked = {
            hub: locked((root / path).read_text(encoding="utf-8")) for hub, path in HUBS.items()
        }

    # What a file needs.

    @cached_property
    def imported(self) -> dict[str, set[str]]:
        """Python file -> the Python files that it imports, its package's `__init__` with them."""
        edges = {}
        for path, source in self.sources.items():
            names = (self.module_file(path, *name) for name in source.imports)
            edges[path] = {name for name in names if name} | self._around(path)
            edges[path].discard(path)
        return edges

    def module_file(self, importer: str, module: str, name: str = "") -> str | None:
        """The file of an imported module, or None if it is not of this repository.

        A test also finds what lies in its own folder and in tests/, as with pytest.
        """
        folders = [""]
        if importer.startswith("tests/"):
            folders = [f"{os.path.dirname(importer)}/", "tests/", ""]
        for dotted in [f"{module}.{name}", module] if name else [module]:
            for folder in folders:
                stem = folder + dotted.replace(".", "/")
                for path in (f"{stem}.py", f"{stem}/__init__.py"):
                    if path in self.sources:
                        return path
        return None

    def _around(self, path: str) -> set[str]:
        """What is imported with the file, though it does not say so."""
        folder = PurePosixPath(path).parent
        if PurePosixPath(path).name == "__init__.py":
            folder = folder.parent
        found = {f"{folder}/__init__.py"}
        if _is_test(path):
            found |= {f"{parent}/conftest.py" for parent in [folder, *folder.parents]}
        return found & self.sources.keys()

    def requirements(self, path: str) -> set[str]:
        """Labels of the third-party packages that a file imports.

        Raises:
            LookupError: for one that is not in the locked requirements.
        """
        labels = set(_PLUGINS.get(path, ()))
        for module, name in self.sources[path].imports:
            if module.split(".")[0] in sys.stdlib_module_names | _NOT_LOCKED:
                continue
            if not self.module_file(path, module, name):
                labels.add(self._requirement(path, f"{module}.{name}" if name else module))
        return labels | ({_PYTEST} if _is_test(path) else set())

    def _requirement(self, path: str, dotted: str) -> str:
        parts = dotted.split(".")
        for end in range(len(parts), 0, -1):
            prefix = ".".join(parts[:end])
            name = _DISTRIBUTIONS.get(prefix, prefix.replace(".", "_")).lower()
            for hub, names in self._locked.items():
                if name in names:
                    return f"@{hub}//{name}"
        raise LookupError(
            f"{path} imports {dotted}, which is not in {', '.join(HUBS.values())}: lock it, or "
            "add it to a table in tests/bazel/build_files.py"
        )

    def named(self, path: str) -> set[str]:
        """Files of the repository that the strings of a Python file name."""
        if path.startswith(_HERE):
            return set()
        source = self.sources[path]
        found = {self.module_file(path, *name) for name in source.embedded}
        found |= _READ_BY_NAME.get(path, set())
        folder = os.path.dirname(path)
        for string in source.strings:
            found |= self._named_by(string.strip(), folder)
        return {name for name in found if name} - {path}

    def _named_by(self, string: str, folder: str) -> set[str]:
        if string == "configs" or string.startswith("configs.") or "configs/" in string:
            return {path for path in self.sources if path.startswith("configs/")}
        string = string.removeprefix("-m ").rstrip("/")
        stem = string.replace(".", "/")
        candidates = {f"{stem}.py", f"{folder}/{string}"} | ({string} if "/" in string else set())
        inside = {
            path
            for path in self.files - self.sources.keys()
            if path.startswith((f"{folder}/{string}/", f"{string}/"))
        }
        return (candidates & self.files) | (inside if re.fullmatch(r"[\w/]+", string) else set())

    # From files to targets.

    @cached_property
    def groups(self) -> list[list[str]]:
        """Files that import each other, together; nearly all are alone."""
        reached = {path: _reachable(self.imported, path) for path in self.imported}
        groups = {
            tuple(sorted({path, *(n for n in reached[path] if path in reached[n])}))
            for path in self.imported
        }
        return [list(group) for group in sorted(groups)]

    @cached_property
    def labels(self) -> dict[str, str]:
        """File -> label of its target; other files than Python's are their own."""
        labels = {path: self._file_label(path) for path in self.files - self.sources.keys()}
        for group in self.groups:
            package, name = os.path.dirname(group[0]), _target_name(group[0])
            if {os.path.dirname(path) for path in group} != {package}:
                raise ValueError(f"files of several folders import each other: {group}")
            short = name == os.path.basename(package)
            labels |= dict.fromkeys(group, f"//{package}" if short else f"//{package}:{name}")
        return labels

    @cached_property
    def packages(self) -> set[str]:
        """Folders with a BUILD file."""
        return {""} | {os.path.dirname(path) for path in self.sources}

    def _file_label(self, path: str) -> str:
        folder = os.path.dirname(path)
        while folder not in self.packages:
            folder = os.path.dirname(folder)
        return f"//{folder}:{path.removeprefix(folder).lstrip('/')}"

    @cached_property
    def started(self) -> dict[str, set[str]]:
        """Label of a target -> labels of what it names.

        Bazel allows no cycle: what depends on the target anyway is left out.
        """
        graph: dict[str, set[str]] = {}
        for path, others in self.imported.items():
            graph.setdefault(self.labels[path], set()).update(self.labels[o] for o in others)
        started: dict[str, set[str]] = {label: set() for label in graph}
        for path in self.sources:
            label = self.labels[path]
            for other in sorted({self.labels[name] for name in self.named(path)} - graph[label]):
                if label != other and label not in _reachable(graph, other):
                    graph[label].add(other)
                    started[label].add(other)
        return started

    def targets(self) -> dict[str, list[Target]]:
        """Package -> its targets, by name."""
        packages: dict[str, list[Target]] = {}
        for group in self.groups:
            label = self.labels[group[0]]
            target = self._target(group)
            for path in group:
                target.deps |= {self.labels[other] for other in self.imported[path]} - {label}
                target.deps |= self.requirements(path)
            target.data = self.started[label]
            packages.setdefault(os.path.dirname(group[0]), []).append(target)
        return {name: sorted(found, key=lambda t: t.name) for name, found in packages.items()}

    def _target(self, group: list[str]) -> Target:
        first, names = group[0], [os.path.basename(path) for path in group]
        target = Target("py_library", _target_name(first), names)
        commands = [path for path in group if self.sources[path].is_command]
        if _is_test(first):
            target.rule, target.main_module, target.args = "py_test", "pytest", [first]
            marks = [_ON_REQUEST & marks for marks in self.sources[first].marks]
            if marks and all(marks):
                target.args += ["-m", " or ".join(sorted(set().union(*marks)))]
            if first.startswith(_HERE) or (marks and all(marks)):
                target.tags = ["manual"]
        elif commands:
            target.rule = "py_binary"
            if not first.startswith("tests/"):  # those are started as files
                target.main_module = commands[0].removesuffix(".py").replace("/", ".")
        return target


def _is_test(path: str) -> bool:
    return path.startswith("tests/") and os.path.basename(path).startswith("test_")


def _target_name(path: str) -> str:
    folder, name = os.path.split(path)
    return os.path.basename(folder) if name == "__init__.py" else name.removesuffix(".py")


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = graph.get(ahead.pop(), set()) - found
        found |= new
        ahead += new
    return found


# From targets to text, in the layout of buildifier.


def build_files(repository: Repository) -> dict[str, str]:
    """Path -> text of all BUILD files."""
    packages: dict[str, list[Target]] = {"": [], **repository.targets()}
    used = {label for targets in packages.values() for t in targets for label in t.data}
    files = {repository.labels[path] for path in repository.files - repository.sources.keys()}
    texts = {}
    for package, targets in packages.items():
        start = f"//{package}:"
        exported = sorted(label.removeprefix(start) for label in used & files if start in label)
        texts[f"{package}/BUILD".lstrip("/")] = _package_text(package, targets, exported)
    return texts


def _package_text(package: str, targets: list[Target], exported: list[str]) -> str:
    rules = sorted({target.rule for target in targets})
    loads = [f'load("@rules_python//python:{rule}.bzl", "{rule}")\n' for rule in rules]
    parts = [_HEADER, *(["".join(loads)] if loads else [])]
    if package:
        settings: list[tuple[str, object]] = [("default_visibility", ["//:__subpackages__"])]
        if package.startswith("tests"):
            settings.insert(0, ("default_testonly", True))
        parts.append(_call("package", settings))
    if exported:
        parts.append(_call("exports_files", [("", exported)]))
    parts += [_call(target.rule, _attributes(target, package)) for target in targets]
    return "\n".join(parts)


def _attributes(target: Target, package: str) -> Iterator[tuple[str, object]]:
    yield "name", target.name
    yield "srcs", target.srcs
    if target.args:
        yield "args", target.args
    if target.data:
        yield "data", sorted((_local(label, package) for label in target.data), key=_label_order)
    if target.rule != "py_library":  # else Bazel adds an __init__.py to each folder, tests/ too
        yield "legacy_create_init", 0
    if target.main_module:
        yield "main_module", target.main_module
    if target.tags:
        yield "tags", target.tags
    if target.deps:
        yield "deps", sorted((_local(label, package) for label in target.deps), key=_label_order)


def _local(label: str, package: str) -> str:
    """The label as the package's own BUILD file writes it."""
    if label == f"//{package}":
        return f":{os.path.basename(package)}"
    return label.removeprefix(f"//{package}") if label.startswith(f"//{package}:") else label


def _label_order(label: str) -> tuple[int, list[str]]:
    kind = [":", "//", "@"].index(re.match(":|//|@", label).group())
    return kind, re.split("[.:]", label)


def _call(rule: str, attributes: Iterable[tuple[str, object]]) -> str:
    arguments = [
        f"{name} = {_value(value)}" if name else _value(value) for name, value in attributes
    ]
    if len(arguments) == 1:
        return f"{rule}({arguments[0]})\n"
    return f"{rule}(\n" + "".join(f"    {argument},\n" for argument in arguments) + ")\n"


def _value(value: object) -> str:
    if isinstance(value, list):
        if len(value) < 2:
            return f"[{''.join(map(_value, value))}]"
        return "[\n" + "".join(f"        {_value(item)},\n" for item in value) + "    ]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def main() -> None:
    """Writes all files, and removes BUILD files of folders that have no Python any more."""
    files = repository_files(ROOT)
    texts = build_files(Repository(ROOT, files))
    for path, text in texts.items():
        (ROOT / path).write_text(text, encoding="utf-8")
    for path in files:
        if os.path.basename(path) == "BUILD" and path not in texts:
            (ROOT / path).unlink()
    print(f"{len(texts)} BUILD files")


if __name__ == "__main__":
    main()
