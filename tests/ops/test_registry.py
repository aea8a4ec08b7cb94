"""Nothing that belongs to an op is missing, and nothing that looks like one is left out."""

import ast
import inspect

import pytest

from aigc_lib.ops import registry
from tools import ROOT

each = pytest.mark.parametrize("op", registry.OPS, ids=registry.NAMES)


@each
def test_a_name_leads_to_a_function_that_lets_one_choose(op):
    parameters = inspect.signature(op.function()).parameters
    assert parameters["impl"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["impl"].default is None


@each
def test_an_op_has_its_files(op):
    for path in (
        f"aigc_lib/ops/{op.module}.py",
        f"tests/ops/test_{op.module}.py",
        f"bench/{op.module}.py",
    ):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("name", sorted({op.kernels for op in registry.OPS if op.kernels}))
def test_kernels_are_registered_proven_to_compile_and_tested(name):
    for path in (f"aigc_lib/kernels/{name}/register.py", f"tools/kernels/shipped/{name}.py"):
        assert (ROOT / path).is_file(), path
    assert list((ROOT / "tests" / "kernels" / name).glob("test_*.py"))


def functions_with_a_choice():
    for path in (ROOT / "aigc_lib" / "ops").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                named = [argument.arg for argument in node.args.kwonlyargs]
                yield from [(node.name, path.stem)] * ("impl" in named)


def test_no_op_and_no_folder_of_kernels_is_left_out():
    assert sorted(functions_with_a_choice()) == sorted((op.name, op.module) for op in registry.OPS)
    known = {op.kernels for op in registry.OPS} | {op.module for op in registry.OPS}
    folders = {path.parent.name for path in (ROOT / "aigc_lib/kernels").glob("*/__init__.py")}
    assert folders <= known
    shipped = {path.stem for path in (ROOT / "tools/kernels/shipped").glob("*.py")} - {"__init__"}
    assert shipped == {op.kernels for op in registry.OPS if op.kernels}
