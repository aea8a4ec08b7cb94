"""`python -m tools.density`: what a reader skips of aigc_lib to see the mathematics, part by part.

The density is lines of docstring and of checks per line that is neither of them, nor signature, nor
import, nor comment. A check is `if …: raise`, `expect.…(…)`, or a function named `_check…`.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

from tools import ROOT, command

GOALS = {
    "objectives": 2.0,
    "layers": 1.2,
    "metrics": 1.2,
    "sampling": 0.7,
    "models": 0.7,
    "data": 0.7,
    "ops": 0.6,
}
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def count(paths: Iterable[Path]) -> tuple[int, int, int, int]:
    """Lines of docstring, lines of checks, the rest, and all lines there are."""
    rows = [_count(path.read_text(encoding="utf-8")) for path in paths]
    return tuple(map(sum, zip(*rows, strict=True))) if rows else (0, 0, 0, 0)


def _count(source: str) -> tuple[int, int, int, int]:
    docstrings, checks, others = set(), set(), set()
    for node in ast.walk(ast.parse(source)):
        span = range(getattr(node, "lineno", 0), getattr(node, "end_lineno", 0) + 1)
        holds = isinstance(node, ast.Module | ast.ClassDef | _FUNCTION)
        if holds and ast.get_docstring(node):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        if isinstance(node, _FUNCTION):
            others |= set(range(node.lineno, node.body[0].lineno))
        if _is_check(node):
            checks |= set(span)
        if isinstance(node, ast.Import | ast.ImportFrom):
            others |= set(span)
    text = source.splitlines()
    lines = {i for i, line in enumerate(text, 1) if line.strip() and line.strip()[0] != "#"}
    rest = lines - docstrings - checks - others
    return len(docstrings & lines), len((checks - docstrings) & lines), len(rest), len(text)


def _is_check(node: ast.AST) -> bool:
    if isinstance(node, _FUNCTION):
        return node.name.startswith(("_check", "_require"))
    if isinstance(node, ast.If):
        return isinstance(node.body[-1], ast.Raise)
    called = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    return called and ast.unparse(node.value.func).startswith("expect.")


def main() -> int:
    """Print one row per part."""
    library = ROOT / "aigc_lib"
    parts = {path: sorted(path.rglob("*.py")) for path in library.iterdir() if path.is_dir()}
    for path, files in sorted({library: sorted(library.glob("*.py")), **parts}.items()):
        if files:
            docstrings, checks, rest, total = count(files)
            name, goal = path.relative_to(ROOT).as_posix(), GOALS.get(path.name)
            print(
                f"{name:20} {total:6} lines: docstrings {docstrings:4}, checks {checks:4}, "
                f"rest {rest:4}, density {(docstrings + checks) / max(1, rest):.2f}"
                + (f" (goal {goal})" if goal else "")
            )
    print(f"{'in all':20} {count(library.rglob('*.py'))[3]:6} lines")
    return 0


if __name__ == "__main__":
    command(main)
