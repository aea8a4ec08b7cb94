"""What nbgrader's gradebook knows about a submission, and what the grader tells people."""

import csv
import dataclasses
import hashlib
import io
import json
import shutil
from pathlib import Path

from nbgrader.api import Gradebook, MissingEntry

from tools import Refusal, write_file
from tools.grading.release import nbgrader_command
from tools.grading.submission import Submission

AGAIN = "To have one graded again as it is, remove grades/STUDENT/NN_name.json here"
COLUMNS = (
    *("student", "assignment", "status", "automatic", "written", "pending", "possible"),
    *("points", "reason", "seconds"),
)


@dataclasses.dataclass(frozen=True)
class Grade:
    """One graded cell of one submission."""

    cell: str
    written: bool
    score: float | None  # None as long as nobody has given one
    possible: float


def url(course: Path) -> str:
    """Where the gradebook is."""
    return f"sqlite:///{course}/gradebook.db?timeout=120"


def grades(book: Gradebook, student: str, assignment: str) -> list[Grade]:
    """The graded cells of a submission by name; without scores if it was never graded."""
    cells = {cell.name: cell for cell in book.find_notebook(assignment, assignment).grade_cells}
    given = {}
    try:
        for grade in book.find_submission_notebook(assignment, assignment, student).grades:
            both = (grade.manual_score, grade.auto_score)
            given[grade.name] = next((score for score in both if score is not None), None)
    except MissingEntry:
        pass
    return [
        Grade(name, cell.cell_type != "code", given.get(name), cell.max_score)
        for name, cell in sorted(cells.items())
    ]


def forget(course: Path, student: str, assignment: str) -> None:
    """Take back automatic scores, so that a failed run never keeps those of an earlier one."""
    with Gradebook(url(course)) as book:
        try:
            notebook = book.find_submission_notebook(assignment, assignment, student)
        except MissingEntry:
            return
        for grade in notebook.grades:
            grade.auto_score, grade.needs_manual_grade = None, True
        book.db.commit()


def marked(course: Path, student: str, assignment: str) -> bool:
    """Whether a person has given points to a submission, or written a comment."""
    with Gradebook(url(course)) as book:
        try:
            notebook = book.find_submission_notebook(assignment, assignment, student)
        except MissingEntry:
            return False
        given = any(grade.manual_score is not None for grade in notebook.grades)
        return given or any(comment.manual_comment for comment in notebook.comments)


def report(course: Path, found: list[Submission], states: list[dict], strange: list[str]) -> None:
    """Write grades.csv and needs_a_human.md."""
    rows, lists = [], {"no score": [], "look": [], "written": []}
    with Gradebook(url(course)) as book:
        for submission, state in zip(found, states, strict=True):
            row = line(grades(book, submission.student, submission.assignment), state)
            name = f"{submission.student}, {submission.assignment}"
            rows.append({"student": submission.student, "assignment": submission.assignment} | row)
            if row["status"] in lists:
                lists[row["status"]] += [f"{name}: {reason}" for reason in state["reasons"]]
            if row["pending"] != "0" and row["status"] != "no score":
                lists["written"].append(f"{name}: {row['pending']} points")
    for sentence in strange:
        name, _, reason = sentence.partition(": ")
        rows.append({"student": name, "status": "not recognised", "reason": reason})
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_file(course / "grades.csv", text.getvalue().encode())
    parts = ["# What needs a human\n"]
    for title, lines in (
        (
            f"No score: have it mended, or mark it where the formgrader lists it. {AGAIN}",
            lists["no score"],
        ),
        ("There is a score; look whether it is deserved", lists["look"]),
        ("Not a submission", strange),
        ("Written answers to mark: `make formgrade`, then `make grade` again", lists["written"]),
    ):
        listed = [f"- {escape(entry)}" for entry in lines] or ["Nothing."]
        parts.append("\n".join([f"## {title}\n", *listed, ""]))
    write_file(course / "needs_a_human.md", "\n".join(parts).encode())


def escape(text: str) -> str:
    """Text of a student's, made harmless for Markdown."""
    line = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*[]<>|#" else letter for letter in line)


def line(found: list[Grade], state: dict) -> dict:
    """One row of grades.csv, but for its first two columns."""
    scored = [grade for grade in found if grade.score is not None]
    code = [grade.score for grade in scored if not grade.written]
    status = state["status"]
    if status == "no score" and len(scored) == len(found):
        status = "marked by hand"
    return {
        "status": status,
        "automatic": f"{sum(code):g}" if code else "",
        "written": f"{sum(grade.score for grade in scored if grade.written):g}",
        "pending": f"{sum(g.possible for g in found if g.score is None):g}",
        "possible": f"{sum(grade.possible for grade in found):g}",
        "points": ", ".join(
            f"{g.cell} {'-' if g.score is None else format(g.score, 'g')}/{g.possible:g}"
            for g in found
        ),
        "reason": "; ".join(state["reasons"]),
        "seconds": state["seconds"],
    }


def feedback(course: Path, found: list[Submission], states: list[dict]) -> None:
    """Let nbgrader write the students' feedback where something has changed since the last time."""
    for assignment in sorted({submission.assignment for submission in found}):
        here = [(s, t) for s, t in zip(found, states, strict=True) if s.assignment == assignment]
        unscored = [s.student for s, t in here if t["status"] == "no score"]
        for student in unscored:
            shutil.rmtree(course / "feedback" / student / assignment, ignore_errors=True)
        if len(unscored) == len(here):
            continue
        stamp = course / "grades" / "feedback" / assignment
        known = hashlib.sha256(json.dumps([t["digest"] for _, t in here]).encode())
        known.update(marks(course, assignment).encode())
        if stamp.exists() and stamp.read_text() == known.hexdigest():
            continue
        command = ["generate_feedback", assignment, "--force"]
        if unscored:
            command.append(f"--CourseDirectory.student_id_exclude={','.join(unscored)}")
        try:
            nbgrader_command(course, command)
        except Refusal as error:
            print(f"Feedback on {assignment} is not complete. {error}")
            continue
        write_file(stamp, known.hexdigest().encode())


def marks(course: Path, assignment: str) -> str:
    """Everything that a person may have added to an assignment's submissions."""
    with Gradebook(url(course)) as book:
        found = [
            (submission.student.id, grade.name, grade.score, grade.manual_score)
            for submission in book.assignment_submissions(assignment)
            for notebook in submission.notebooks
            for grade in notebook.grades
        ]
        said = [
            (submission.student.id, comment.name, comment.comment)
            for submission in book.assignment_submissions(assignment)
            for notebook in submission.notebooks
            for comment in notebook.comments
        ]
    return repr((sorted(found, key=str), sorted(said, key=str)))
