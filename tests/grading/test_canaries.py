"""Canaries: each must be able to be silent, and look like a test."""

import copy
import json

import pytest
import torch
from nbformat.v4 import new_code_cell, new_output

from aigc_lib import grading
from tools import ROOT
from tools.grading import canaries
from tools.grading.gradebook import escape
from tools.grading.source import role
from tools.study import notebooks

NB = notebooks.read(ROOT / "tests" / "grading" / "99_tiny" / "99_tiny.ipynb")
TESTS = [cell for cell in NB.cells if role(cell) in ("visible", "hidden")]


def execute(cell, **names):
    """Run a cell as a kernel would; its outputs are filled in."""
    import contextlib
    import io

    printed = io.StringIO()
    cell.outputs = []
    try:
        with contextlib.redirect_stdout(printed):
            exec(cell.source, {"grading": grading, "torch": torch, **names})
    except Exception as error:
        name, text = type(error).__name__, str(error)
        cell.outputs.append(new_output("error", ename=name, evalue=text, traceback=[]))
    if printed.getvalue():
        cell.outputs.append(new_output("stream", name="stdout", text=printed.getvalue()))
    return cell


class Lenient:
    """A `grading` in which everything passes."""

    answer = staticmethod(lambda *args, **settings: None)

    @staticmethod
    def task(name):
        import contextlib

        return contextlib.suppress(Exception)


@pytest.mark.parametrize("test", TESTS, ids=lambda cell: cell.id)
def test_a_twin_fails_as_it_must_and_is_silent_when_failures_are_swallowed(test):
    for _ in range(20):  # all kinds of it
        twin = canaries.twin(test.source)
        assert twin.metadata.canary.error == "NotYet"
        assert canaries.sings(execute(twin))
        assert not canaries.sings(execute(twin, grading=Lenient))
        assert set(test.source.splitlines()) < set(twin.source.splitlines())


def test_a_test_of_another_form_gets_a_plain_canary():
    twin = canaries.twin("assert 1 == 1\nassert 2 == 2")
    assert twin.metadata.canary.error == "RuntimeError"
    assert canaries.sings(execute(twin))


def test_every_canary_after_the_tests_sings_and_can_be_silent():
    for cell in canaries.row():
        assert canaries.sings(execute(cell))
        swallowed = new_code_cell("pass", metadata=cell.metadata)
        assert not canaries.sings(execute(swallowed))


def test_no_two_canaries_are_the_same():
    assert len({canaries.twin(TESTS[0].source).source for _ in range(50)}) == 50


def test_a_test_says_one_line_without_hidden_source():
    secret = canaries.hidden_lines(NB)
    line = 'grading.answer("one number", mean(torch.tensor([7.5])), 7.5)'
    assert line in secret
    error = new_output(
        "error",
        ename="NotYet",
        evalue=f'Task 2: the code raised TypeError: no (in `<module>`, line 4: "{line}").\n' * 9,
        traceback=["xyzzy"] * 50,
    )
    printed = new_output("stream", name="stdout", text=line)
    (only,) = canaries.one_line([printed, error], secret)
    assert only.ename == "NotYet"
    assert only.evalue.startswith("Task 2: the code raised TypeError: no (in")
    assert line not in str(only)
    assert "xyzzy" not in str(only)
    assert len(only.evalue) <= canaries.MAX_SENTENCE
    assert canaries.one_line([printed], secret) == []


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Judge a notebook in which some cells took too long; its cells by name, and the notes."""
    monkeypatch.setenv("AIGC_JOB", str(tmp_path))
    (tmp_path / "settings.json").write_text(json.dumps({"limits": {"cell": 7.0}}))

    def judge(*slow):
        nb = copy.deepcopy(NB)
        nb.cells.insert(3, new_code_cell("while True:\n    print(1)", id="added"))
        for cell in nb.cells:
            if cell.id in slow:
                interrupted = {"evalue": "", "traceback": ["while True"]}
                cell.outputs = [
                    new_output("stream", name="stdout", text="before"),
                    new_output("error", ename="KeyboardInterrupt", **interrupted),
                    new_output("error", ename="CellTimeoutError", **interrupted),
                ]
        nb, _ = canaries.Judge().preprocess(nb, {})
        return nb.cells, json.loads((tmp_path / "notes.json").read_text())["look"]

    return judge


@pytest.mark.parametrize(
    ("slow", "name"),
    [
        ("t2-visible", "Task 2. A bug hunt (visible test)"),
        ("t2-hidden", "Task 2. A bug hunt (hidden test)"),
        ("t1-solution", "Task 1. A running sum (your answer)"),
        ("setup", "setup"),
        ("added", "an added cell, which begins with “while True: print(1)”"),
    ],
)
def test_a_time_out_is_told_in_one_sentence_to_teacher_and_student(judged, slow, name):
    cells, look = judged(slow)
    said = f"{name}: stopped after 7 seconds, the most that one cell may take"
    assert look == [said]
    place = next(i for i, cell in enumerate(cells) if cell.id == slow)
    outputs = [o for o in cells[place].outputs if o.output_type == "error"]
    if slow.endswith(("visible", "hidden")):
        (error,) = outputs  # no points without one
        assert (error.evalue, error.ename) == (said, "Stopped")
        assert canaries.one_line([error], [])[0].evalue == said
        assert len(cells) == len(NB.cells) + 1
    else:
        assert outputs == []
        assert cells[place].outputs[0].text == "before"
        assert cells[place + 1].source == f"**{escape(said)}**"
    assert judged()[1] == []


def test_warnings_cost_no_points():
    warning = new_output("stream", name="stderr", text="a warning")
    assert canaries.one_line([warning], []) == []
