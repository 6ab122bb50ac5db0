"""Runs an old Bazel on this repository, without any registry.

    python tests/bazel/offline.py DIRECTORY query //...
    python tests/bazel/offline.py DIRECTORY test //tests/trainer:test_losses

For Bazel 4, which Debian has as bazel-bootstrap: it cannot read MODULE.bazel, and brings its own
rules for Python. DIRECTORY, outside of the repository, is made if need be. DIRECTORY/workspace
becomes a copy of the files that git knows; beside it are stand-ins: for rules_python, which pass on
to Bazel's own rules; for what these ask for; and for the packages of pip, which are empty, since
they are taken from the Python that runs this file.

It shows that the BUILD files load, that all labels exist, and that programs and tests find the
files they need. It shows nothing about MODULE.bazel.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from build_files import HUBS, ROOT, locked, repository_files

_WORKSPACE = """workspace(name = "transformer_pipeline")
{repositories}
register_toolchains("//:python_toolchain")
"""
_RULE = """
def {rule}(name, srcs, main_module = "", **attributes):
    if main_module:
        native.genrule(
            name = name + "_start",
            testonly = attributes.get("testonly", {testonly}),
            outs = [name + "_start.py"],
            cmd = "echo 'import runpy, sys; sys.path.pop(0); " +
                  "runpy.run_module(\\"" + main_module +
                  "\\", run_name=\\"__main__\\", alter_sys=True)' > $@",
        )
        srcs = srcs + [name + "_start.py"]
        attributes["main"] = name + "_start.py"
    native.{rule}(name = name, srcs = srcs, **attributes)
"""
_TOOLCHAIN = """
py_runtime(
    name = "python3",
    interpreter_path = "{python}",
    python_version = "PY3",
)

load("@bazel_tools//tools/python:toolchain.bzl", "py_runtime_pair")

py_runtime_pair(
    name = "runtimes",
    py3_runtime = ":python3",
)

toolchain(
    name = "python_toolchain",
    toolchain = ":runtimes",
    toolchain_type = "@bazel_tools//tools/python:toolchain_type",
)
"""
# What Bazel's own tools load, and where from.
_NATIVE = {
    "rules_cc/cc": ("cc_binary", "cc_library", "cc_test", "cc_toolchain", "cc_toolchain_suite"),
    "rules_java/java": (
        "java_binary",
        "java_import",
        "java_library",
        "java_runtime",
        "java_toolchain",
    ),
}
_COVERAGE = """
filegroup(name = "coverage_report_generator", visibility = ["//visibility:public"])
filegroup(name = "lcov_merger", visibility = ["//visibility:public"])
"""
_STAND_INS = ("rules_python", "rules_cc", "rules_java", "remote_coverage_tools", *HUBS)
_FLAGS = ("--build_python_zip=false", "--local_cpu_resources=1")


def write(path: Path, text: str) -> None:
    """Writes a file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_workspace(directory: Path) -> Path:
    """Fills the directory; returns the workspace in it."""
    workspace = directory / "workspace"
    if workspace.exists():
        if not (workspace / "WORKSPACE").is_file():
            sys.exit(
                f"error: {workspace} is not a workspace of this script; name another DIRECTORY"
            )
        shutil.rmtree(workspace)
    for path in repository_files(ROOT):
        (workspace / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, workspace / path)
    (workspace / ".bazelversion").unlink()
    with open(workspace / "BUILD", "a", encoding="utf-8") as file:
        file.write(_TOOLCHAIN.format(python=sys.executable))

    python = directory / "rules_python"
    write(python / "WORKSPACE", "")
    write(python / "python/BUILD", "")
    for rule in ("py_library", "py_binary", "py_test"):
        write(python / f"python/{rule}.bzl", _RULE.format(rule=rule, testonly=rule == "py_test"))
    for package, rules in _NATIVE.items():
        text = "".join(f"{rule} = native.{rule}\n" for rule in rules)
        write((directory / package).parent / "WORKSPACE", "")
        write(directory / package / "BUILD", "")
        write(directory / package / "defs.bzl", text)
    write(directory / "remote_coverage_tools/WORKSPACE", "")
    write(directory / "remote_coverage_tools/BUILD", _COVERAGE)
    for hub, requirements in HUBS.items():
        write(directory / hub / "WORKSPACE", "")
        for name in locked((ROOT / requirements).read_text(encoding="utf-8")):
            library = f'py_library(name = "{name}", visibility = ["//visibility:public"])\n'
            write(directory / hub / name / "BUILD", library)
    lines = [
        f'local_repository(name = "{name}", path = "{directory / name}")' for name in _STAND_INS
    ]
    write(workspace / "WORKSPACE", _WORKSPACE.format(repositories="\n".join(lines)))
    return workspace


def main(argv: list[str]) -> int:
    """Makes the workspace and runs Bazel in it; returns its exit code."""
    if len(argv) < 3:
        print(__doc__, file=sys.stderr)
        return 2
    directory, command = Path(argv[1]).resolve(), argv[2]
    workspace = make_workspace(directory)
    flags = _FLAGS if command in ("build", "run", "test") else ()
    output = f"--output_user_root={directory / 'output'}"
    line = ["bazel", output, "--batch", command, *flags, *argv[3:]]
    return subprocess.run(line, cwd=workspace).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv))
