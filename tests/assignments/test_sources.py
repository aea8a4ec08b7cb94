"""The form of an assignment's source, as far as a program can check it."""

import ast
import json
import re
import subprocess
import sys

import pytest
from test_answers import ANSWERS, PATHS

from tools import ROOT
from tools.grading import source
from tools.grading.source import HIDDEN, SOLUTION, grade_id, nbgrader, role
from tools.study import notebooks

each = pytest.mark.parametrize("name", PATHS)
KEYS = {"grade", "grade_id", "locked", "schema_version", "solution", "task"}
FLAGS = {  # grade, solution, locked
    "given": (False, False, True),
    "demo": (False, False, True),
    "solution": (False, True, False),
    "visible": (True, False, True),
    "hidden": (True, False, True),
    "written": (True, True, False),
}


def load(name):
    nb = notebooks.read(PATHS[name])
    return nb, source.tasks(nb)


def cells(nb, *roles):
    return [cell for cell in nb.cells if role(cell) in roles]


@each
def test_the_folder_holds_the_notebook_alone(name):
    assert [path.name for path in PATHS[name].parent.iterdir()] == [f"{name}.ipynb"]
    assert PATHS[name].parent.name == name


@each
def test_it_is_stored_without_outputs_in_one_form(name):
    text = PATHS[name].read_text(encoding="utf-8")
    data = json.loads(text)
    assert text == json.dumps(data, ensure_ascii=False, indent=1) + "\n"
    assert (data["nbformat"], data["nbformat_minor"]) == (4, 5)
    assert data["metadata"]["kernelspec"]["name"] == "python3"
    for cell in data["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@each
def test_the_first_cell_says_what_it_costs(name):
    nb, tasks = load(name)
    first = nb.cells[0].source
    assert re.match(rf"# Assignment {name[:2]}\. \S", first)
    assert re.search(r"Restart and run all takes \d+ s\b", first)
    assert f"`{name}.ipynb`" in first, "say under which name to hand in"
    rows = [tuple(map(int, row)) for row in re.findall(r"\| (\d+) \| (\d+) \|$", first, re.M)]
    assert rows == [(task.points, task.minutes) for task in tasks]
    assert sum(points for points, _ in rows) == 100
    assert 90 <= sum(minutes for _, minutes in rows) <= 180
    assert name == "99_tiny" or 5 <= len(tasks) <= 7
    assert [task.number for task in tasks] == list(range(1, len(tasks) + 1))
    assert sum(cell.source.startswith("## Setup") for cell in nb.cells) == 1
    setup = cells(nb, "given")[0].source
    assert "import torch\n" in setup
    assert re.search(r"from aigc_lib import .*\bgrading\b", setup), "the grader's canaries need it"


@each
def test_ids_are_readable_and_the_same_for_nbgrader(name):
    nb, tasks = load(name)
    for cell in nb.cells:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)+|[a-z]+", cell.id), cell.id
        assert not nbgrader(cell) or grade_id(cell) == cell.id
    for task in tasks:
        for cell in task.cells:
            assert re.match(rf"t{task.number}[a-z]?-", cell.id), cell.id


@each
def test_every_cell_has_a_role_and_its_metadata(name):
    nb, _ = load(name)
    assert not [cell.id for cell in cells(nb, "free")], "lock code that is not a solution"
    for cell in nb.cells:
        if role(cell) == "text":
            assert not nbgrader(cell), f"{cell.id}: text is not nbgrader's"
            continue
        data, kind = nbgrader(cell), role(cell)
        points = {"points"} if data.grade else set()
        assert set(data) - {"cell_type"} == KEYS | points, cell.id
        assert (data.grade, data.solution, data.locked) == FLAGS[kind], cell.id
        assert (data.schema_version, data.task) == (3, False)
        assert data.get("points", 1) > 0
        assert (SOLUTION[0] in cell.source) == (kind in ("solution", "written")), cell.id
        assert cell.source.count(SOLUTION[0]) == cell.source.count(SOLUTION[1])
        if kind in ("solution", "visible", "hidden", "written"):
            assert cell.id.endswith("-" + kind), cell.id


@each
def test_points_are_where_the_headings_say(name):
    _, tasks = load(name)
    for task in tasks:
        assert sum(nbgrader(cell).get("points", 0) for cell in task.cells) == task.points, task


@each
def test_a_solution_is_followed_by_a_visible_and_a_hidden_test(name):
    nb, tasks = load(name)
    for task in tasks:
        kinds = [role(c) for c in task.cells if role(c) not in ("text", "given", "demo")]
        assert kinds == ["written"] or kinds == ["solution", "visible", "hidden"] * (
            len(kinds) // 3
        ), f"Task {task.number}: {kinds}"
        tests = [cell for cell in task.cells if role(cell) in ("visible", "hidden")]
        for visible, hidden in zip(tests[::2], tests[1::2], strict=True):
            assert hidden.id == visible.id.replace("visible", "hidden")
            assert nbgrader(visible).points < nbgrader(hidden).points, visible.id
    written = [nbgrader(cell).points for cell in cells(nb, "written")]
    assert len(written) == 1
    assert 10 <= written[0] <= 15


@each
def test_hidden_is_all_but_one_line_of_words(name):
    for cell in cells(load(name)[0], "hidden"):
        words, begin, *_, end = cell.source.splitlines()
        assert words.startswith("# ")
        assert (begin, end) == HIDDEN, cell.id
        assert cell.source.count("HIDDEN TESTS") == 2


@each
def test_a_test_is_one_task_block(name):
    _, tasks = load(name)
    for task in tasks:
        for cell in task.cells:
            if role(cell) not in ("visible", "hidden"):
                continue
            (block,) = ast.parse(cell.source).body
            assert isinstance(block, ast.With), f"{cell.id}: one `with grading.task(…)` block"
            words = ast.unparse(block.items[0])
            assert re.match(rf"grading\.task\('Task {task.number}[a-z]?\b", words), cell.id
            assert not any(isinstance(node, ast.Assert) for node in ast.walk(block)), (
                f"{cell.id}: raise AssertionError(sentence), not assert"
            )
            assert not re.search(r"\b(allclose|isclose|torch\.testing|torch\.equal)", cell.source)


@each
def test_equations_and_code_read_well_everywhere(name):
    for cell in load(name)[0].cells:
        if cell.cell_type == "code":
            ast.parse(cell.source)  # neither magics nor shell commands
        else:
            assert cell.source.count("$$") % 2 == 0, cell.id
            for line in cell.source.splitlines():
                assert "$$" not in line or re.fullmatch(r"\$\$( \(eq-[\w-]+\))?", line), cell.id


@each
def test_every_solution_has_answers_to_try(name):
    nb, tasks = load(name)
    tried = ANSWERS[name]
    names = [answer.name for answer in tried]
    assert len(names) == len(set(names))
    assert {answer.kind for answer in tried} == {"alternative", "wrong"}
    assert {answer.cell for answer in tried} == {cell.id for cell in cells(nb, "solution")}
    for cell in cells(nb, "solution"):
        kinds = [answer.kind for answer in tried if answer.cell == cell.id]
        assert kinds.count("alternative") >= 1, cell.id
        assert kinds.count("wrong") >= 3, cell.id
    for task in tasks:
        own = [a for a in tried if a.cell in map(grade_id, task.cells)]
        for answer in own:
            assert set(answer.loses) <= set(task.graded()), answer.name
            assert bool(answer.loses) == (answer.kind == "wrong"), answer.name
        if own:
            only_hidden = [a for a in own if a.loses and all("hidden" in c for c in a.loses)]
            assert only_hidden, f"Task {task.number}: a wrong answer that only hidden tests find"


@each
def test_answers_are_clean_code(name, tmp_path):
    for number, answer in enumerate(ANSWERS[name]):
        (tmp_path / f"answer_{number:02d}.py").write_text(answer.code.strip() + "\n")
    ruff = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run([*ruff, "."], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
