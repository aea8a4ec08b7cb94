"""Ten submissions, most of them hostile, through `make grade` from folder to feedback."""

import csv
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nbgrader.api import Gradebook
from sandboxed import need_sandbox
from traitlets.utils.importstring import import_item

from aigc_lib import grading
from tools import ROOT, Refusal
from tools.grading import formgrade, grade, gradebook, job, page, release, selftest
from tools.grading.source import grade_id
from tools.study import notebooks

HONEST = ("reference", "blank", "wrong_1")
HOSTILE = ("edited", "patched_task", "deaf", "memory_of_many", "reads_hidden", "deletes", "asleep")
LIMITS = "cell=15,total=120,memory=2.5e9,tasks=120,disk=1e8"


def arguments(work: Path) -> list[str]:
    line = ["--submissions", str(work / "submissions"), "--course", str(work / "course")]
    return [*line, "--limits", LIMITS, "--jobs", "3", "--sources", str(selftest.FIXTURE)]


def rows(work: Path) -> dict[str, dict]:
    with (work / "course" / "grades.csv").open(encoding="utf-8") as file:
        return {row["student"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A course with its release, made by an environment that nobody has activated."""
    course = tmp_path_factory.mktemp("grading") / "course"
    course.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "/usr/bin:/bin")
        made = release.generate(course, release.sources(course, selftest.FIXTURE))
    return course, made


@pytest.fixture(scope="module")
def graded(released):
    """The folder, the cases, and a file that the hostile ones went for."""
    need_sandbox()
    course = released[0]
    work = course.parent
    canary = work / "canary.txt"
    canary.write_text("untouched")
    known = [str(canary), str(course / "gradebook.db")]
    cases = selftest.honest(course, "99_tiny", selftest.FIXTURE)
    cases += selftest.attacks(course, known, 9)
    cases = [case for case in cases if case.student in HONEST + HOSTILE]
    for case in cases:
        place = work / "submissions" / case.student / "99_tiny.ipynb"
        place.parent.mkdir(parents=True)
        place.write_bytes(case.content)
    line = [sys.executable, "-m", "tools.grading.grade", *arguments(work)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return work, cases, canary


def test_nbgrader_finds_its_commands_without_an_activated_environment(released):
    course, made = released
    assert made == ["99_tiny"]
    assert (course / "release" / "99_tiny" / "99_tiny.ipynb").is_file()


@pytest.mark.parametrize("student", HONEST + HOSTILE)
def test_the_points_are_those_expected(graded, student):
    work, cases, _ = graded
    (case,) = (case for case in cases if case.student == student)
    row = rows(work)[student]
    given = float(row["automatic"]) if row["automatic"] else None
    assert given == (None if row["status"] == "no score" else case.points), row
    assert row["status"] in case.statuses, row


def test_hostile_ones_harm_nobody(graded):
    work, _, canary = graded
    assert canary.read_text() == "untouched"
    assert selftest.told(work / "course", selftest.FIXTURE) == []


def test_a_person_is_told_why(graded):
    text = (graded[0] / "course" / "needs_a_human.md").read_text(encoding="utf-8")
    for words in (
        "deaf, 99_tiny: Task 2. A bug hunt (visible test): did not end within 15 seconds, the most "
        "that one cell may take, and could not be interrupted",
        "memory_of_many, 99_tiny: Task 2. A bug hunt (your answer): stopped: more than 2.5 GB",
        "patched_task, 99_tiny: a canary did not do what it must",
        "edited, 99_tiny: the locked cell t1-visible was edited and was restored",
    ):
        assert words in text.replace("\\", "")


def test_only_students_with_a_score_get_feedback(graded):
    pages = (graded[0] / "course" / "feedback").rglob("99_tiny.html")
    students = {page.parts[-3] for page in pages}
    scored = {student for student, row in rows(graded[0]).items() if row["status"] != "no score"}
    assert students == scored
    blank = graded[0] / "course" / "feedback" / "blank" / "99_tiny" / "99_tiny.html"
    assert "Task 1: not solved yet" in blank.read_text(encoding="utf-8")


def test_a_cell_that_runs_too_long_is_named_with_its_limit_to_teacher_and_student(graded):
    said = (
        "Task 3. A number (your answer): stopped after 15 seconds, the most that one cell may take"
    )
    assert said in rows(graded[0])["asleep"]["reason"]
    page = graded[0] / "course" / "feedback" / "asleep" / "99_tiny" / "99_tiny.html"
    text = page.read_text(encoding="utf-8")
    assert said in text
    assert "KeyboardInterrupt" not in text


def test_a_page_of_feedback_needs_no_network_and_names_the_tasks(graded):
    pages = list((graded[0] / "course" / "feedback").rglob("*.html"))
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert "<script" not in text
        assert not re.search(r"<(?:img|link|iframe)[^>]*https?:|@import|url\(.?http", text)
        assert "Test cell" not in text
        assert "Grade cell" not in text
        for name in ("Task 1. A running sum (hidden test)", "Task 4. In words (written answer)"):
            assert f">{name}</a> (Score: " in text
        assert "$" not in re.sub(r"<style.*?</style>", "", text, flags=re.S)
        assert "<munder>" in text  # the sum of Task 1


def test_a_visible_test_that_passes_says_that_a_hidden_one_remains(released, capsys):
    course = released[0]
    path = course / "release" / "99_tiny" / "99_tiny.ipynb"
    cells = {grade_id(cell): cell.source for cell in notebooks.read(path).cells}
    said = "Task 1: the visible test passes, for 15 of 40 points. The hidden test below, for the "
    said += "other 25, is run when you have handed in.\n"
    right = {"grading": grading, "torch": torch, "running_sum": lambda x: x.cumsum(0)}
    exec(cells["t1-visible"], right)
    assert capsys.readouterr().out == said
    with pytest.raises(grading.NotYet):
        exec(cells["t1-visible"], right | {"running_sum": lambda x: x})
    exec(cells["t1-hidden"], right)
    assert capsys.readouterr().out == ""
    with Gradebook(gradebook.url(course)) as book:  # what grades is silent, as canaries want it
        sources = {c.name: c.source for c in book.find_notebook("99_tiny", "99_tiny").source_cells}
    assert cells["t1-visible"].startswith(sources["t1-visible"])
    assert not any("print(" in sources[name] for name in sources if name.endswith("visible"))


def test_nothing_is_graded_twice_but_marks_and_changed_submissions_are_taken_over(
    graded, capsys, monkeypatch
):
    work = graded[0]
    page = work / "course" / "feedback" / "reference" / "99_tiny" / "99_tiny.html"
    before, old = rows(work), page.stat().st_mtime_ns
    with Gradebook(gradebook.url(work / "course")) as book:
        mark = book.find_grade("t1-visible", "99_tiny", "99_tiny", "reference")
        mark.manual_score = 3.0
        book.db.commit()
    (work / "submissions" / "wrong_1" / "99_tiny.ipynb").write_text("{")
    monkeypatch.setattr(sys, "argv", ["grade", *arguments(work)])
    assert grade.main() == 0
    assert "9 of 10 are graded already" in capsys.readouterr().out
    after = rows(work)
    assert float(after["reference"]["automatic"]) == 90 - 15 + 3
    assert page.stat().st_mtime_ns > old
    changed = after["wrong_1"]
    assert (changed["status"], changed["automatic"]) == ("no score", "")
    assert not (work / "course" / "feedback" / "wrong_1" / "99_tiny").exists()
    for row in (before, after):
        del row["reference"], row["wrong_1"]
    assert before == after


def test_another_folder_adds_to_the_table_and_takes_nothing_from_it(graded, capsys, monkeypatch):
    work = graded[0]
    before = rows(work)
    late = work / "late" / "Late One" / "99_tiny (1).ipynb"
    late.parent.mkdir(parents=True)
    shutil.copy(work / "submissions" / "blank" / "99_tiny.ipynb", late)
    (work / "late" / "nobody").mkdir()
    line = arguments(work)
    line[1] = str(work / "late")
    monkeypatch.setattr(sys, "argv", ["grade", *line])
    assert grade.main() == 0
    assert "of 1 need a person's look, 1 not recognised" in capsys.readouterr().out
    after = rows(work)
    assert after.pop("Late_One")["automatic"] == "0"
    strange = after.pop("nobody")
    assert (strange["status"], strange["points"]) == ("not recognised", "")
    assert strange["reason"] == "holds no notebook of an assignment"
    assert after == before


def test_without_a_sandbox_it_refuses_in_plain_words(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "submissions").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "argv", ["grade", *arguments(tmp_path)])
    with pytest.raises(Refusal) as refused:
        grade.main()
    for words in ("bwrap", "apt install bubblewrap", "delete or send away your files", "UNSAFE=1"):
        assert words in str(refused.value)
    assert not (tmp_path / "course").exists()


def test_a_second_grader_waits(tmp_path):
    with grade.lock(tmp_path), pytest.raises(Refusal, match="another grader"):
        grade.lock(tmp_path)
    grade.lock(tmp_path).close()


def test_limits_are_read_and_wrong_ones_named():
    assert grade.limits("cell=5,memory=1e9")["memory"] == 1e9
    assert grade.limits("") == job.LIMITS
    for wrong in ("x=3", "cell", "cell=a"):
        with pytest.raises(Refusal, match="LIMITS"):
            grade.limits(wrong)


def test_a_number_of_jobs_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "available", lambda: "")
    monkeypatch.setattr(sys, "argv", ["grade", f"--submissions={tmp_path}", "--jobs=x"])
    with pytest.raises(Refusal, match="JOBS is a number from 1 on, got 'x'"):
        grade.main()


def test_the_formgrader_needs_something_graded(tmp_path, monkeypatch):
    monkeypatch.setattr(formgrade, "COURSE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["formgrade"])
    with pytest.raises(Refusal, match="nothing was graded yet"):
        formgrade.main()


def test_the_formgrader_shows_a_students_text_as_the_feedback_does(tmp_path, monkeypatch):
    started = []
    (tmp_path / "gradebook.db").touch()
    monkeypatch.setattr(formgrade, "COURSE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["formgrade"])
    monkeypatch.setattr(formgrade.bootstrap, "become", lambda line, _: started.append(line) or 0)
    monkeypatch.chdir(tmp_path)
    assert formgrade.main() == 0
    (setting,) = (part for part in started[0] if "filters" in part)
    name, _, where = setting.partition("=")[2].partition("=")
    assert name == "markdown2html"
    assert import_item(where) is page.markdown2html


def test_autograding_outside_of_the_grader_finds_no_kernel(graded):
    """nbgrader's own buttons must not run a student's code without the sandbox."""
    course = graded[0] / "course"
    shutil.rmtree(course / "autograded" / "reference")
    with pytest.raises(Refusal, match=r"No such kernel|NoSuchKernel"):
        release.nbgrader_command(course, ["autograde", "99_tiny", "--student=reference"])
