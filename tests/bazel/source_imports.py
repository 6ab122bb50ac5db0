"""What a Python file imports, and which files of the repository it names."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

_IMPORTING_CALLS = {"importorskip", "import_module", "find_spec"}
_IMPORT_LINE = re.compile(r"(?:^|[;\n])\s*((?:from|import) [^\n;]+)")


@dataclass(frozen=True)
class Source:
    """What the text of a file says.

    Attributes:
        imports: dotted names, wherever in the file: `from a import b` gives ("a", "b"), and
            `import a.b` gives ("a.b", "").
        embedded: the same of programs that stand in strings, for `python -c`.
        strings: all strings but the docstrings, and the constant parts of f-strings.
        is_command: it asks whether it is `__main__`.
        marks: for each test function, its marks and those of the whole file.
    """

    imports: frozenset[tuple[str, str]]
    embedded: frozenset[tuple[str, str]]
    strings: frozenset[str]
    is_command: bool
    marks: tuple[frozenset[str], ...]


def read_source(text: str) -> Source:
    """Parses a file; see `Source`.

    Raises:
        SyntaxError: if it is not Python.
        ValueError: for a relative import, which this repository does not use.
    """
    tree = ast.parse(text)
    documentation = {id(node) for node in _docstrings(tree)}
    strings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documentation
    }
    return Source(
        imports=frozenset(_imports(tree)),
        embedded=frozenset(name for string in strings for name in _imports_of_string(string)),
        strings=frozenset(strings),
        is_command=any(_asks_for_main(node) for node in tree.body),
        marks=tuple(_marks(tree)),
    )


def _docstrings(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr):
                yield first.value


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise ValueError(f"line {node.lineno}: a relative import")
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            first = node.args[0]
            if name in _IMPORTING_CALLS and isinstance(first, ast.Constant):
                yield first.value, ""


def _imports_of_string(string: str) -> Iterator[tuple[str, str]]:
    for line in _IMPORT_LINE.findall(string):
        try:
            tree = ast.parse(line)
        except SyntaxError:  # a sentence that begins with "from" or "import"
            continue
        yield from _imports(tree)


def _asks_for_main(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def _marks(tree: ast.Module) -> Iterator[frozenset[str]]:
    everywhere: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            everywhere = _marks_in(node.value)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield frozenset(everywhere.union(*map(_marks_in, node.decorator_list)))


def _marks_in(node: ast.expr) -> set[str]:
    return set(re.findall(r"pytest\.mark\.(\w+)", ast.unparse(node)))
