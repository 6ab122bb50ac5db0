"""--help shows the docstrings of the commands as they stand in the files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent.parent
_PACKAGES = ("trainer", "data_pipeline", "launch", "benchmarks", "configs")


@pytest.mark.parametrize("package", _PACKAGES)
def test_no_line_of_a_docstring_runs_into_the_next(package):
    """It does where the file has a single backslash at its end."""
    for path in (_ROOT / package).rglob("*.py"):
        _check(path)


def _check(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            literal = node.body[0]
            text = ast.get_docstring(node, clean=False)
            assert text.count("\n") == literal.end_lineno - literal.lineno, path


def test_help():
    done = subprocess.run(
        [sys.executable, "-m", "launch.render", "--help"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    start = lines.index("    python -m launch.render slurm --name=mine --workers=2 --gpus=8 -- \\")
    assert lines[start + 1].startswith("        --config=configs/transformer_big.py")
