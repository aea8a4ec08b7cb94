"""`make grade-selftest [JOBS=2]`: right, wrong and hostile submissions through the real grader.

For each assignment: the reference, the released blank, all alternatives together, and the first,
second, third wrong answer of every task together, with the points that tests/assignments/ says they
keep. Then the same under the names and in the folders in which files really come, and beside them
the hostile set. Nothing but build/selftest/ is written. Last comes a term: marks by hand, a
clean-up, late work, a killed grader (tests/grading/term.py).
"""

import argparse
import csv
import dataclasses
import html
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from tools import ROOT, command, write_file
from tools.grading import hostile, release, source
from tools.grading.grade import HALF
from tools.grading.source import grade_id, nbgrader, role
from tools.study import notebooks

FIXTURE = ROOT / "tests" / "grading"
LIMITS = "cell=40,total=400,memory=2.5e9,tasks=120,disk=1e8"


# Where a file may lie, by what its student is then called: renamed by browsers, in folders, zips,
# with spaces and accents in the name (here in two code points), as Moodle and Canvas give them.
LAYOUTS = {
    "browser": "browser/{name} (1).ipynb",
    "jupyter": "jupyter/{name}-Copy1.ipynb",
    "drive": "drive/Copy of {name}.ipynb",
    "nested": "nested/My work/{name}.ipynb",
    "by_nbgrader": "by_nbgrader/{name}/{name}.ipynb",
    "zipped": "zipped/work.zip",
    "Ada_Lovelace": "Ada Lovelace/{name}.ipynb",
    "First_Last_123_assignsubmission_file": "First Last_123_assignsubmission_file/{name}.ipynb",
    "lastfirst": "lastfirst_123_456_{name}.ipynb",
    "lastlate": "lastlate_LATE_123_457_{name}-1.ipynb",
    "Zo\u00eb_N\u00fa\u00f1ez": "Zoe\u0308 Nu\u0301n\u0303ez/{name} (2).ipynb",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A simulated submission: whose, of what, and what must become of it."""

    student: str
    assignment: str
    content: bytes
    statuses: tuple[str, ...]
    points: float | None
    place: str = ""  # in the folder of submissions, if not STUDENT/NAME.ipynb

    def hand_in(self, folder: Path) -> None:
        """Put the file where it should lie."""
        path = folder / (self.place or f"{self.student}/{self.assignment}.ipynb")
        if path.suffix == ".zip":
            path.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr(f"home/work/{self.assignment}.ipynb", self.content)
                archive.writestr(f"__MACOSX/._{self.assignment}.ipynb", b"no")
        elif not path.exists():
            write_file(path, self.content)


def solved(released: NotebookNode, answers: dict[str, str]) -> bytes:
    """The file of a released notebook with answers, by grade_id, in it."""
    nb = nbformat.from_dict(released)
    for cell in nb.cells:
        cell.source = answers.get(grade_id(cell), cell.source)
    return nbformat.writes(nb).encode()


def honest(course: Path, name: str, public: Path) -> list[Case]:
    """The submissions to one assignment by students who do what they are asked.

    The reference, the blank, the alternatives and three sets of wrong answers.
    """
    nb = notebooks.read(public / name / f"{name}.ipynb")
    released = notebooks.read(course / "release" / name / f"{name}.ipynb")
    tried = [a for f in (FIXTURE, source.ANSWERS) for a in source.answers(f / f"{name}.toml")]
    points = {grade_id(c): nbgrader(c).points for c in nb.cells if role(c) in ("visible", "hidden")}
    right = {grade_id(c): c.source for c in nb.cells if role(c) == "solution"}
    total = sum(points.values())
    kinds = {
        kind: {cell: [a for a in tried if (a.cell, a.kind) == (cell, kind)] for cell in right}
        for kind in ("alternative", "wrong")
    }
    other = right | {cell: found[0].code for cell, found in kinds["alternative"].items() if found}
    fine = ("graded", "look")  # a look is for what an honest answer may import
    cases = [
        Case("reference", name, solved(released, right), fine, total),
        Case("blank", name, solved(released, {}), fine, 0.0),
        Case("alternatives", name, solved(released, other), fine, total),
    ]
    for k in range(3):
        chosen = [found[k % len(found)] for found in kinds["wrong"].values() if found]
        lost = {cell for answer in chosen for cell in answer.loses}
        content = solved(released, right | {answer.cell: answer.code for answer in chosen})
        kept = total - sum(points[cell] for cell in lost)
        cases.append(Case(f"wrong_{k + 1}", name, content, fine, kept))
    return cases


def laid_out(cases: list[Case]) -> list[Case]:
    """Some of the honest submissions once more, each in another layout."""
    found = []
    for number, (student, place) in enumerate(LAYOUTS.items()):
        case = cases[number % len(cases)]
        place = place.format(name=case.assignment)
        found.append(dataclasses.replace(case, student=student, place=place))
    return found


def attacks(course: Path, known: list[str], port: int) -> list[Case]:
    """The hostile submissions."""
    name, cases = "99_tiny", []
    nb = notebooks.read(FIXTURE / name / f"{name}.ipynb")
    released = notebooks.read(course / "release" / name / f"{name}.ipynb")
    right = {grade_id(c): c.source for c in nb.cells if role(c) == "solution"}
    for attack in [*hostile.cheats(), *hostile.attacks(known, address(), port)]:
        content, statuses = attack.change, tuple(attack.status.split(" or "))
        if not isinstance(content, bytes):
            changed = nbformat.reads(solved(released, right).decode(), 4)
            attack.change(changed)
            content = nbformat.v4.writes_json(changed).encode()
        cases.append(Case(attack.name, name, content, statuses, attack.points))
    return cases


def address() -> str:
    """An address of this machine other than that of the loop."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def listen() -> tuple[int, list[str]]:
    """Wait for somebody to call: the port, and a list to which callers will be added."""
    server, callers = socket.create_server(("", 0)), []

    def wait() -> None:
        while True:
            connection, caller = server.accept()
            callers.append(str(caller))
            connection.close()

    threading.Thread(target=wait, daemon=True).start()
    return server.getsockname()[1], callers


def grade(work: Path, cases: list[Case], jobs: str, kill_after: float = 0) -> dict[tuple, dict]:
    """Hand in and grade: the rows of grades.csv by student and assignment.

    The grader is killed after so many seconds; 0 lets it end.
    """
    for case in cases:
        case.hand_in(work / "submissions")
    line = [sys.executable, "-m", "tools.grading.grade", "--limits", LIMITS, "--jobs", jobs]
    line += ["--submissions", str(work / "submissions"), "--course", str(work / "course")]
    line += ["--sources", str(work / "assignments")]
    process = subprocess.Popen(line, cwd=ROOT)
    if kill_after:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return {}
    assert process.wait() == 0, "the grader failed"
    with (work / "course" / "grades.csv").open(encoding="utf-8") as file:
        rows = {(row["student"], row["assignment"]): row for row in csv.DictReader(file)}
    return rows


def compare(cases: list[Case], rows: dict[tuple, dict]) -> int:
    """Print what was expected and what came; how many are right."""
    right = 0
    for case in cases:
        row = rows[case.student, case.assignment]
        given = float(row["automatic"]) if row["automatic"] else None
        points = None if row["status"] == "no score" else case.points
        good = given == points and row["status"] in case.statuses
        right += good
        wanted = "-" if case.points is None else format(case.points, "g")
        print(
            f"{'right' if good else 'WRONG':6}{case.assignment:16} {case.student[:16]:16} expected "
            f"{wanted:>4} ({' or '.join(case.statuses)}), given {row['automatic'] or '-':>4} "
            f"({row['status']}), {row['seconds']} s. {row['reason'][:110]}"
        )
    return right


def told(course: Path, public: Path) -> list[str]:
    """Lines of hidden tests that stand in some student's feedback, though not in the answers."""
    from tools.grading.canaries import hidden_lines

    found = []
    for page in (course / "feedback").rglob("*.html"):
        nb = notebooks.read(public / page.stem / f"{page.stem}.ipynb")
        theirs = course / "submitted" / page.parts[-3] / page.stem / page.name
        own = "\n".join(c.source for c in notebooks.read(theirs.with_suffix(".ipynb")).cells)
        text = page.read_text(encoding="utf-8")
        plain = html.unescape(re.sub("<[^>]+>", "", text))
        secret = [line for line in hidden_lines(nb) if line not in own]
        found += [f"{page}: {line}" for line in secret if line in plain]
    return found


def main() -> int:
    """Grade, compare, and look for harm."""
    parser = argparse.ArgumentParser(prog="make grade-selftest", description=__doc__)
    parser.add_argument("--jobs", default="", help="how many at a time; default: half the cores")
    jobs = parser.parse_args().jobs
    work = ROOT / "build" / "selftest"
    shutil.rmtree(work, ignore_errors=True)
    public, course = work / "assignments", work / "course"
    for path in [*source.find(), *source.find(FIXTURE)]:
        shutil.copytree(path.parent, public / path.parent.name)
    digests = release.sources(course, public)
    release.generate(course, digests)
    canary = work / "canary.txt"
    canary.write_text("untouched\n")
    port, callers = listen()
    good = [case for name in digests for case in honest(course, name, public)]
    few = [case for case in good if case.assignment == "99_tiny"]
    good += laid_out(few)
    start = time.perf_counter()
    before = grade(work, good, jobs)
    database = course / "gradebook.db"
    known = [str(canary), str(database), str(Path.home() / ".bashrc"), str(course / "grades.csv")]
    bad = attacks(course, known, port)
    after = grade(work, [*good, *bad], jobs)
    seconds = time.perf_counter() - start
    right = compare([*good, *bad], after)
    harm = [f"changed by others: {key}" for key in before if before[key] != after[key]]
    harm += [f"called by {caller}" for caller in callers]
    harm += ["the canary file was touched"] if canary.read_text() != "untouched\n" else []
    harm += told(course, public)
    print(f"{right} of {len(good + bad)} right, {seconds / len(good + bad):.1f} s per submission.")
    killed = kill_test(work, few, before, jobs)
    for line in [*harm, *killed]:
        print(f"HARM: {line}")
    if not harm:
        print("No harm: canary file and other students' rows as before, nobody called, no line of")
        print(f"a hidden test in {len(list((course / 'feedback').rglob('*.html')))} pages.")
    term = [sys.executable, "-m", "pytest", "-q", "tests/grading/term.py"]
    lost = subprocess.run(term, cwd=ROOT).returncode  # marks, a clean-up, late work, a kill
    return int(right < len(good + bad) or bool(harm) or bool(killed) or lost != 0)


def kill_test(work: Path, few: list[Case], before: dict, jobs: str) -> list[str]:
    """Kill a grader in the middle, start it again, and compare: a sentence for each difference."""
    again = work / "killed"
    shutil.copytree(work / "assignments", again / "assignments")
    shutil.copytree(work / "course" / "release", again / "course" / "release")
    release.generate(again / "course", release.sources(again / "course", again / "assignments"))
    grade(again, few, jobs, kill_after=25)
    states = [path.read_text("utf-8") for path in (again / "course" / "grades").glob("*/*.json")]
    graded = sum(HALF not in state for state in states)
    print(f"The grader was killed when {graded} of {len(few)} were graded.", flush=True)
    rows = grade(again, few, jobs)
    without = [{k: v for k, v in row.items() if k != "seconds"} for row in rows.values()]
    wanted = [{k: v for k, v in before[key].items() if k != "seconds"} for key in rows]
    same = sum(a == b for a, b in zip(without, wanted, strict=True))
    print(f"Killed and started again: {same} of {len(few)} rows are the same.")
    return [] if same == len(few) else ["a killed grader gives other results"]


if __name__ == "__main__":
    command(main)
