"""MkDocs hook: shows code and line numbers from the source files, so that no page goes stale.

In a page, `<!-- code: trainer/model/attention.py dot_product_attention -->` becomes the source of
that function, method ("Class.method") or class, without its docstring. `path.py:symbol` in
backquotes becomes the path, the line and the symbol.
"""

import ast
import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"<!-- code: (\S+) (\S+) -->")
REFERENCE = re.compile(r"`([\w/]+\.py):([\w.]+)`")


def find(path: str, symbol: str) -> tuple[list[str], ast.AST]:
    """Return the lines of a file and the definition of a symbol in it.

    Args:
        path: of the file, from the root of the repository.
        symbol: a function, class, "Class.method", or a name that is assigned to.

    Raises:
        LookupError: there is no such file or symbol.
    """
    if not (ROOT / path).is_file():
        raise LookupError(f"no file {path}")
    source = (ROOT / path).read_text(encoding="utf-8")
    node: ast.AST = ast.parse(source)
    for name in symbol.split("."):
        inside = [child for child in getattr(node, "body", []) if name in _names(child)]
        if not inside:
            raise LookupError(f"{path} defines no {symbol}")
        node = inside[0]
    return source.splitlines(), node


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    return [getattr(node, "name", "")]


def show(path: str, symbol: str) -> str:
    """Return a fenced block with the source of a symbol, without its docstring."""
    lines, node = find(path, symbol)
    wanted = lines[node.lineno - 1 : node.end_lineno]
    body = getattr(node, "body", [])
    if body and ast.get_docstring(node):
        first, last = body[0].lineno - node.lineno, body[0].end_lineno - node.lineno
        wanted = wanted[:first] + wanted[last + 1 :]
    code = textwrap.dedent("\n".join(wanted))
    return f'```python title="{path}, line {node.lineno}"\n{code}\n```'


def line_of(path: str, symbol: str) -> int:
    """Return the line in which a symbol is defined."""
    return find(path, symbol)[1].lineno


def on_page_markdown(markdown: str, **_) -> str:
    """Fill in the code and the lines of a page; MkDocs calls it for each."""
    markdown = CODE.sub(lambda match: show(match[1], match[2]), markdown)
    return REFERENCE.sub(
        lambda match: f"`{match[1]}:{line_of(match[1], match[2])}` `{match[2]}`", markdown
    )
