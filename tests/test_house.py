"""The house rules that a program can keep: layers, budgets, names, references between the parts."""

import ast
import io
import re
import tokenize
from pathlib import Path

import nbformat
import pytest

from tools import manifest

ROOT = Path(__file__).parents[1]
LIBRARY = sorted((ROOT / "aigc_lib").rglob("*.py"))
OTHERS = [path for part in ("bench", "site", "tools") for path in (ROOT / part).rglob("*.py")]
CODE = [*LIBRARY, *sorted(OTHERS)]
each = pytest.mark.parametrize("path", LIBRARY, ids=lambda p: str(p.relative_to(ROOT)))

# Which parts of aigc_lib a part may import (besides itself).
MAY_IMPORT = {
    "": set(),
    "device": set(),
    "check": set(),
    "plotting": set(),
    "checkpoint": {"device"},
    "train": {"device", "checkpoint"},
    "schedules": {"device"},
    "kernels": set(),
    "ops": {"device", "kernels"},
    "layers": {"device", "ops"},
    "models": {"device", "checkpoint", "ops", "layers"},
    "objectives": {"device", "ops", "schedules"},
    "sampling": {"device", "ops", "schedules"},
    "data": {"device"},
    "metrics": {"device"},
}


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def part(path):
    first = path.relative_to(ROOT / "aigc_lib").parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def functions(node):
    return [n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def code_lines(source):
    """Numbers of the lines that hold code: neither blank, nor comment, nor docstring."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        holder = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, holder) and ast.get_docstring(node):
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    blank = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in blank | {tokenize.ENDMARKER}:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines - docstrings


@each
def test_a_part_imports_only_what_it_may(path):
    allowed = MAY_IMPORT | {"doctor": set(MAY_IMPORT)}
    here = part(path)
    assert here in allowed, f"house.md does not know the part {here!r}"
    for node in ast.walk(tree(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            top, *rest = name.split(".")
            assert top not in {"tools", "tests", "bench", "chapters", "assignments", "pickle"}
            if top == "aigc_lib" and rest:
                assert rest[0] in allowed[here] | {here}, f"line {node.lineno}: imports {name}"
            if top == "triton":
                assert here in {"kernels", "doctor"}, f"line {node.lineno}: imports triton"
            if top == "matplotlib":
                assert here in {"plotting", "data"}, f"line {node.lineno}: imports matplotlib"


@each
def test_kernels_and_triton_are_imported_lazily(path):
    for node in tree(path).body:
        if isinstance(node, ast.Import | ast.ImportFrom) and part(path) != "kernels":
            text = ast.unparse(node)
            assert "aigc_lib.kernels" not in text
            assert "triton" not in text


@each
def test_a_library_file_fits_its_budget(path):
    limit = 300 if part(path) == "models" else 250
    lines = len(code_lines(path.read_text(encoding="utf-8")))
    assert lines <= limit, f"{lines} code lines, at most {limit}"


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_function_fits_its_budget(path):
    lines = code_lines(path.read_text(encoding="utf-8"))
    limit = 90 if "kernels" in path.parts else 40
    for function in functions(tree(path)):
        first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
        size = len(lines & set(range(first, function.end_lineno + 1)))
        assert size <= limit, f"{function.name} has {size} code lines, at most {limit}"
        if function.name == "__init__":
            arguments = function.args
            count = len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs) - 1
            assert count <= 9, f"a constructor of {path.name} has {count} parameters"


def test_the_line_counter_counts_code_alone():
    source = '"""Doc."""\n\n# note\nx = [\n    1,\n]\n\n\ndef f():\n    """Doc.\n\n    More."""\n'
    assert code_lines(source) == {4, 5, 6, 9}


@each
def test_names_follow_the_house(path):
    assert path.stem not in {"utils", "common", "helpers", "misc", "v2"}
    assert not re.match(r"\d|ch\d", path.stem), "modules are named by idea, not by chapter"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name | ast.arg):
            name = node.id if isinstance(node, ast.Name) else node.arg
            assert name not in {"logvar", "log_variance"}, f"line {node.lineno}: write log_var"
        if isinstance(node, ast.ImportFrom):
            assert all(alias.name != "*" for alias in node.names)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"torch.load", "torch.save"}:
            pytest.fail(f"line {node.lineno}: {ast.unparse(node)} would (un)pickle")


@each
def test_no_future_annotations_where_an_op_is_registered(path):
    text = path.read_text(encoding="utf-8")
    assert not ("custom_op" in text and "from __future__ import annotations" in text)


@each
def test_every_module_has_its_tests(path):
    relative = path.relative_to(ROOT / "aigc_lib")
    if path.name != "__init__.py":
        assert (ROOT / "tests" / relative.with_name(f"test_{path.name}")).exists()


def public_docstrings(path):
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, ast.get_docstring(node) or ""
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", ast.get_docstring(inner) or ""


@each
def test_every_public_name_says_what_it_is(path):
    assert ast.get_docstring(tree(path))
    for name, docstring in public_docstrings(path):
        assert docstring, f"{name} has no docstring"


@each
def test_a_source_comes_with_a_derivation_that_exists(path):
    chapters = {chapter.file: chapter for chapter in manifest.load().chapters}
    for name, docstring in public_docstrings(path):
        sources = re.findall(r"^Source: .+", docstring, re.M)
        derived = re.findall(r"^Derived: (.+)", docstring, re.M)
        assert len(sources) == len(derived) <= 1, f"{name}: Source and Derived go together"
        for entry in derived:
            if entry == "—":
                continue
            chapter, label = entry.rstrip(".").split()
            assert chapter in chapters, f"{name}: {chapter} is not in book.toml; write —"
            text = "\n".join(
                cell.source for cell in nbformat.read(chapters[chapter].notebook(), 4).cells
            )
            assert f"({label})" in text, f"{name}: {chapter} has no equation {label}"


def test_contributing_is_short():
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_no_test_measures_wall_clock_time():
    clock = re.compile(r"assert.*\b(perf_counter|monotonic|elapsed|time\.time)\b")
    for path in set((ROOT / "tests").rglob("*.py")) - {Path(__file__)}:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not clock.search(line), f"{path.name}, line {number}"
