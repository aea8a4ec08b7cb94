"""A term of grading: marks by hand, a clean-up, late work, a killed grader; the table is right.

`make grade-selftest` runs it; it takes a minute of real grading.
"""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook
from sandboxed import need_sandbox

from tools import ROOT
from tools.grading import grade, gradebook, release, selftest
from tools.study import notebooks

NAME = "99_tiny"
SUM = "def running_sum(x):\n    return torch.cumsum(x, 0)\n"  # 40 points
MEAN = "def mean(x):\n    return x.sum() / max(len(x), 1)\n"  # 30 points
SLOW = "import time\ntime.sleep(999)\n"


class Term:
    """One course with its folders of submissions."""

    def __init__(self, work: Path):
        self.work, self.course = work, work / "marks"
        release.generate(self.course, release.sources(self.course, selftest.FIXTURE))
        self.released = notebooks.read(self.course / "release" / NAME / f"{NAME}.ipynb")

    def hand_in(self, folder: str, student: str, **answers: str) -> None:
        given = {name.replace("_", "-"): text for name, text in answers.items()}
        path = self.work / folder / student / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(selftest.solved(nbformat.from_dict(self.released), given))

    def start(self, folder: str) -> subprocess.Popen:
        line = [sys.executable, "-m", "tools.grading.grade", "--jobs", "2", "--limits", "cell=60"]
        line += ["--submissions", str(self.work / folder), "--course", str(self.course)]
        line += ["--sources", str(selftest.FIXTURE)]
        return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL)

    def grade(self, folder: str) -> None:
        assert self.start(folder).wait() == 0

    def table(self) -> dict[str, dict]:
        with (self.course / "grades.csv").open(encoding="utf-8") as file:
            return {row["student"]: row for row in csv.DictReader(file)}

    def points(self) -> dict[str, tuple[str, str]]:
        rows = self.table().items()
        return {name: (row["automatic"], row["written"]) for name, row in rows}

    def page(self, student: str) -> str:
        page = self.course / "feedback" / student / NAME / f"{NAME}.html"
        return page.read_text(encoding="utf-8")

    def mark(self, student: str) -> None:
        with Gradebook(gradebook.url(self.course)) as book:
            book.find_grade("t4-written", NAME, NAME, student).manual_score = 8.0
            comment = book.find_comment("t4-written", NAME, NAME, student)
            comment.manual_comment = "Think of the neutral element."
            book.db.commit()


@pytest.fixture(scope="module")
def term(tmp_path_factory):
    need_sandbox()
    term = Term(tmp_path_factory.mktemp("term"))
    term.hand_in("first", "ada", t1_solution=SUM, t4_written="Because.")
    term.hand_in("first", "bo", t4_written="Why not?")
    term.grade("first")
    return term


def test_marks_by_hand_reach_the_table_and_the_page(term):
    assert term.points() == {"ada": ("40", "0"), "bo": ("0", "0")}
    assert {row["pending"] for row in term.table().values()} == {"10"}
    term.mark("ada")
    term.grade("first")
    assert term.points() == {"ada": ("40", "8"), "bo": ("0", "0")}
    assert "Think of the neutral element." in term.page("ada")


def test_make_clean_and_a_second_folder_lose_nothing(term):
    subprocess.run(["make", "-f", str(ROOT / "Makefile"), "clean"], cwd=term.work, check=True)
    term.hand_in("second", "cy", t2_solution=MEAN)
    term.grade("second")
    assert term.points() == {"ada": ("40", "8"), "bo": ("0", "0"), "cy": ("30", "0")}


def test_late_work_counts_and_keeps_the_marks_and_the_earlier_file_never_returns(term):
    answers = {"t1_solution": SUM, "t2_solution": MEAN, "t4_written": "Because 0 is neutral."}
    term.hand_in("late", "ada", **answers)
    term.grade("late")
    wanted = {"ada": ("70", "8"), "bo": ("0", "0"), "cy": ("30", "0")}
    assert term.points() == wanted
    assert grade.MARKED in term.table()["ada"]["reason"]
    assert "Think of the neutral element." in term.page("ada")
    term.grade("first")  # as one does after marking
    rows = term.table()
    older = rows.pop(f"ada/{NAME}.ipynb")
    assert older["reason"] == "an earlier version: a newer one was graded, and counts"
    assert {name: (row["automatic"], row["written"]) for name, row in rows.items()} == wanted
    assert "Because 0 is neutral." in term.page("ada")


def test_a_killed_grader_begun_again_loses_nothing(term):
    before = term.points()
    term.hand_in("last", "bo", t1_solution=SUM, t3_solution=SLOW, t4_written="Neutral.")
    term.hand_in("last", "cy", t1_solution=SUM, t2_solution=MEAN)
    term.hand_in("last", "dee", t2_solution=MEAN)
    grader = term.start("last")
    slow = term.course / "grades" / "bo" / f"{NAME}.json"
    cy = term.course / "grades" / "cy" / f"{NAME}.json"
    while grade.HALF not in slow.read_text() or not done(cy):
        assert grader.poll() is None
        time.sleep(0.1)
    grader.kill()  # while bo's third task sleeps
    grader.wait()
    assert term.points() == before  # the old table stands until there is a new one
    term.grade("second")  # the table is right in between, too
    assert term.table()["bo"]["reason"] == grade.HALF
    assert term.points()["ada"] == before["ada"]
    term.hand_in("last", "bo", t1_solution=SUM, t4_written="Neutral.")
    term.grade("last")
    wanted = {"ada": ("70", "8"), "bo": ("40", "0"), "cy": ("70", "0"), "dee": ("30", "0")}
    assert term.points() == wanted
    assert "Think of the neutral element." in term.page("ada")


def done(state: Path) -> bool:
    return (
        len(json.loads(state.read_text())["replaced"]) == 1 and grade.HALF not in state.read_text()
    )
