"""Every answer in NN_name.toml, put into its assignment, loses exactly the tests that it should.

    pytest tests/assignments/test_answers.py -k 11_attention

The cells run here with plain exec, without the cells tagged `demo`; `make grade-selftest` sends the
same answers through the real grader. An answer runs its own task alone, from where the reference
was when it came there.
"""

import functools
import linecache
import random
import warnings

import jaxtyping
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

from aigc_lib.grading import NotYet
from tools import ROOT
from tools.grading import source
from tools.grading.source import grade_id, role
from tools.study import notebooks

GRADING = ROOT / "tests" / "grading"  # has one more, to test the grader with
PATHS = {path.stem: path for path in [*source.find(GRADING), *source.find()]}
ANSWERS = {
    name: [
        *source.answers(source.ANSWERS / f"{name}.toml"),
        *source.answers(GRADING / f"{name}.toml"),
    ]
    for name in PATHS
}
EVERY = [
    pytest.param(name, answer, id=f"{name}-{answer.kind}-{answer.name}")
    for name, answers in ANSWERS.items()
    for answer in answers
]
each = pytest.mark.parametrize("name", PATHS)


@pytest.fixture(autouse=True)
def _as_in_a_students_kernel():
    """No shape checks, which a user has not; warnings are only shown; figures are drawn nowhere."""
    matplotlib.use("Agg")
    jaxtyping.config.update("jaxtyping_disable", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


def run(cells, namespace, sources=None):
    """Execute cells; returns the exception of each cell that raised one, by cell id."""
    failures = {}
    for cell in cells:
        if cell.cell_type != "code" or role(cell) == "demo":
            continue
        code = (sources or {}).get(grade_id(cell), cell.source)
        place = f"<cell {cell.id}>"  # not on disk: grading.task quotes lines of such files
        linecache.cache[place] = (len(code), None, code.splitlines(keepends=True), place)
        try:
            exec(compile(code, place, "exec"), namespace)
        except Exception as error:
            failures[grade_id(cell)] = error
        plt.close("all")
    return failures


def random_state():
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def set_random_state(state):
    random.setstate(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    torch.set_rng_state(state[2])


@functools.cache
def reference(name):
    """The source run once: what failed, and what every task found when it began."""
    nb = notebooks.read(PATHS[name])
    tasks = source.tasks(nb)
    namespace, begin = {"__name__": "__main__", "display": lambda *_: None}, {}
    failures = run(nb.cells[: nb.cells.index(tasks[0].cells[0])], namespace)
    for task in tasks:
        begin[task.number] = dict(namespace), random_state()
        failures |= run(task.cells, namespace)
    return tasks, failures, begin


def graded(tasks):
    return {cell for task in tasks for cell in task.graded()}


@each
def test_the_reference_solves_everything(name):
    _, failures, _ = reference(name)
    assert not failures


def part(name, numbers):
    """What fails when these tasks are as a student first sees them, and the others solved."""
    nb = notebooks.read(PATHS[name])
    stubs = {grade_id(c): c.source for c in source.blank(nb).cells if role(c) == "solution"}
    first = reference(name)[0][0]
    namespace = {"__name__": "__main__", "display": lambda *_: None}
    failures = run(nb.cells[: nb.cells.index(first.cells[0])], namespace)
    for task in source.tasks(nb):
        failures |= run(task.cells, namespace, stubs if task.number in numbers else None)
    return failures


@each
def test_a_blank_copy_fails_every_test_with_a_sentence(name):
    tasks, _, _ = reference(name)
    roles = {grade_id(cell): role(cell) for task in tasks for cell in task.cells}
    failures = part(name, {task.number for task in tasks})
    assert {cell for cell in failures if roles.get(cell) != "solution"} == graded(tasks)
    for cell in graded(tasks):
        assert type(failures[cell]) is NotYet, f"{cell}: use grading.task"
        assert "not solved yet" in str(failures[cell]), f"{cell}: {failures[cell]}"


@each
@pytest.mark.parametrize("parity", [0, 1], ids=["even", "odd"])
def test_unsolved_tasks_cost_the_others_nothing(name, parity):
    tasks, _, _ = reference(name)
    unsolved = {task.number for task in tasks if task.number % 2 == parity}
    lost = set(part(name, unsolved)) & graded(tasks)
    assert lost == graded(task for task in tasks if task.number in unsolved)


@pytest.mark.parametrize(("name", "answer"), EVERY)
def test_an_answer_loses_exactly_what_it_should(name, answer):
    tasks, _, begin = reference(name)
    task = next(t for t in tasks if answer.cell in map(grade_id, t.cells))
    namespace, state = begin[task.number]
    set_random_state(state)
    failures = run(task.cells, dict(namespace), {answer.cell: answer.code})
    for cell, error in failures.items():
        print(f"{cell}: {type(error).__name__}: {error}")
    lost = set(failures) & set(task.graded())
    assert lost == set(answer.loses), {cell: str(failures[cell]) for cell in lost}
