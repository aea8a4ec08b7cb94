"""What an assignment is made of: cells by role, tasks, and answers that test its graders."""

import copy
import dataclasses
import re
import tomllib
from pathlib import Path

from nbformat import NotebookNode

from tools import ROOT
from tools.study.notebooks import has_tag

SOURCES = ROOT / "assignments"
ANSWERS = ROOT / "tests" / "assignments"
TASK = re.compile(r"^## Task (\d+)\. (.+) \((\d+) points, (\d+) minutes\)$", re.M)
HIDDEN = ("### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS")
SOLUTION = ("### BEGIN SOLUTION", "### END SOLUTION")
KINDS = {
    "solution": "your answer",
    "written": "written answer",
    "visible": "visible test",
    "hidden": "hidden test",
}


@dataclasses.dataclass(frozen=True)
class Answer:
    """One `[[answer]]` of tests/assignments/NN_name.toml: a cell's source and what it must lose."""

    cell: str  # grade_id of the solution cell that it replaces
    kind: str  # "alternative" or "wrong"
    name: str
    loses: tuple[str, ...]  # grade_ids of the test cells that must fail
    code: str


@dataclasses.dataclass(frozen=True)
class Task:
    """A section of the notebook, from one `## Task` heading to the next."""

    number: int
    title: str
    points: int
    minutes: int
    cells: tuple[NotebookNode, ...]

    def graded(self) -> list[str]:
        """The grade_ids of its test cells, in order."""
        return [grade_id(cell) for cell in self.cells if role(cell) in ("visible", "hidden")]


def find(folder: Path = SOURCES) -> list[Path]:
    """The assignments that there are."""
    return sorted(folder.glob("[0-9][0-9]_*/[0-9][0-9]_*.ipynb"))


def nbgrader(cell: NotebookNode) -> NotebookNode:
    """What nbgrader knows about a cell, or nothing."""
    return cell.metadata.get("nbgrader", NotebookNode())


def grade_id(cell: NotebookNode) -> str:
    """The name by which nbgrader knows a cell, or ""."""
    return nbgrader(cell).get("grade_id", "")


def role(cell: NotebookNode) -> str:
    """What a cell is for: written, text, solution, hidden, visible, demo or given.

    Or "free" for code that students could change though nobody asks them to.
    """
    data = nbgrader(cell)
    if cell.cell_type != "code":
        return "written" if data.get("solution") else "text"
    if data.get("solution"):
        return "solution"
    if data.get("grade"):
        return "hidden" if HIDDEN[0] in cell.source else "visible"
    if has_tag(cell, "demo"):
        return "demo"
    return "given" if data.get("locked") else "free"


def tasks(nb: NotebookNode) -> list[Task]:
    """Cut a notebook into its tasks; cells before the first one belong to none."""
    cuts = [
        (index, match)
        for index, cell in enumerate(nb.cells)
        if cell.cell_type == "markdown" and (match := TASK.search(cell.source))
    ]
    ends = [index for index, _ in cuts[1:]] + [len(nb.cells)]
    return [
        Task(int(match[1]), match[2], int(match[3]), int(match[4]), tuple(nb.cells[start:end]))
        for (start, match), end in zip(cuts, ends, strict=True)
    ]


def labels(nb: NotebookNode) -> dict[str, str]:
    """What people call the cells of the tasks, by grade_id: "Task 2b. Title (hidden test)"."""
    found = {}
    for task in tasks(nb):
        for cell in task.cells:
            if name := grade_id(cell):
                letter = re.match(rf"t{task.number}([a-z]?)-|", name)[1] or ""
                kind = KINDS.get(role(cell), "given code")
                found[name] = f"Task {task.number}{letter}. {task.title} ({kind})"
    return found


def answers(path: Path) -> list[Answer]:
    """Read the answers that test an assignment's graders; none if there is no file."""
    if not path.exists():
        return []
    tables = tomllib.loads(path.read_text(encoding="utf-8"))["answer"]
    return [Answer(**(table | {"loses": tuple(table["loses"])})) for table in tables]


def blank(nb: NotebookNode) -> NotebookNode:
    """A source without its solutions, but with its hidden tests: a new notebook."""
    from nbgrader.preprocessors import ClearSolutions  # takes a second

    return ClearSolutions().preprocess(copy.deepcopy(nb), {})[0]
