"""`make grade SUBMISSIONS=dir [JOBS=2] [UNSAFE=1]`: grade what students handed in.

The folder holds one folder per student with the notebooks in it, under their released names.
Results: marks/grades.csv, marks/needs_a_human.md, marks/feedback/STUDENT/NN_name/NN_name.html; the
table knows all that was ever graded, and no clean-up touches the folder.
What was graded is not graded again unless it, its assignment or the grader has changed, nor what
got no score unless the limits have. JOBS is how many are graded at a time, by default half the
cores; LIMITS="cell=60,memory=4e9" are the kernels'.
"""

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO

import nbformat
from tqdm import tqdm

from tools import ROOT, Refusal, command, write_file
from tools.grading import gradebook, job, release, source
from tools.grading.sandbox import LIMITS
from tools.grading.submission import EXPECTED, Submission, compose, discover, parse, suspicious
from tools.study import notebooks

MARKED = "points or comments by hand were given to an earlier version: look whether they still hold"
HALF = "the grader was stopped while it graded this: the same command goes on"
OLDER = "{}/{}: an earlier version: a newer one was graded, and counts"
PLACES = """{course}/grades.csv: points.  {course}/feedback/: pages for students.
{course}/needs_a_human.md: {count} of {total} need a person's look, {strange} not recognised."""


def lock(course: Path) -> IO:
    """Keep a second grader from the same gradebook until the returned file is closed."""
    (course / "grades").mkdir(parents=True, exist_ok=True)
    file = (course / "grades" / "lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Refusal(f"another grader is at work in {course}: wait for it") from None
    return file


def grader_digest() -> str:
    """A digest of the code that decides on points."""
    files = [*Path(__file__).parent.glob("*.py"), *(ROOT / "aigc_lib").rglob("*.py")]
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


class Grader:
    """Grades submissions of one course, one at a time or side by side."""

    def __init__(self, course: Path, digests: dict[str, str], limits: dict, unsafe: bool):
        self.course, self.limits, self.unsafe = course, limits, unsafe
        rules = f"{grader_digest()} {unsafe}"
        self.digests = {name: f"{rules} {digest}" for name, digest in digests.items()}

    def state(self, submission: Submission) -> Path:
        """Where is written what became of a submission."""
        folder = self.course / "grades" / submission.student
        return folder / f"{submission.assignment}.json"

    def digest(self, submission: Submission) -> str:
        """A digest of all that a score depends on."""
        known = hashlib.sha256(self.digests[submission.assignment].encode())
        known.update(submission.path.read_bytes())
        return known.hexdigest()

    def known(self, submission: Submission) -> dict:
        """What is written about a student's assignment, whichever version of it."""
        try:
            return json.loads(self.state(submission).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def older(self, submission: Submission) -> bool:
        """Whether a newer version was graded after this one: it never takes its place again."""
        return content(submission) in self.known(submission).get("replaced", ())

    def done(self, submission: Submission) -> dict | None:
        """What became of a submission, or None if it must be graded again."""
        state = self.known(submission)
        if not state or self.older(submission):
            return state or None
        if state["status"] == "no score" and state["limits"] != self.limits:
            return None  # it may get one now
        return state if state["digest"] == self.digest(submission) else None

    def ever(self) -> tuple[list[Submission], list[dict]]:
        """All submissions of known assignments that were ever graded, and what became of each."""
        paths = sorted((self.course / "grades").glob("*/*.json"))
        known = [path for path in paths if path.stem in self.digests]
        found = [Submission(path.parent.name, path.stem, path) for path in known]
        return found, [json.loads(path.read_text("utf-8")) for path in known]

    def grade(self, submission: Submission) -> None:
        """Grade one submission and write down what became of it."""
        started, student, name = time.monotonic(), submission.student, submission.assignment
        state = self._begin(submission)
        reasons, digest = state["reasons"][1:], self.digest(submission)
        for step in ("submitted", "autograded"):
            shutil.rmtree(self.course / step / student / name, ignore_errors=True)
        gradebook.forget(self.course, student, name)
        try:
            reasons += self._prepare(submission)
            outcome = job.run(self.course, student, name, self.limits, self.unsafe)
            reasons = [reason for reason in [outcome.reason, *outcome.look, *reasons] if reason]
            status = "no score" if outcome.reason else "look" if reasons else "graded"
        except (Refusal, OSError) as error:
            reasons, status = [str(error), *reasons], "no score"
        if status == "no score":
            gradebook.forget(self.course, student, name)
        seconds = round(time.monotonic() - started, 1)
        state |= {"digest": digest, "status": status, "reasons": reasons, "seconds": seconds}
        write_file(self.state(submission), json.dumps(state, indent=1).encode())

    def _begin(self, submission: Submission) -> dict:
        """Write down that a submission is being graded, and what it takes the place of."""
        known, file = self.known(submission), content(submission)
        before = known.get("file", file)
        new = before != file or MARKED in known.get("reasons", ())
        marked = new and gradebook.marked(self.course, submission.student, submission.assignment)
        state = {"digest": "", "status": "no score", "reasons": [HALF], "seconds": 0.0}
        state["reasons"] += [MARKED] if marked else []
        replaced = {*known.get("replaced", ()), before} - {file}
        state |= {"limits": self.limits, "file": file, "replaced": sorted(replaced)}
        write_file(self.state(submission), json.dumps(state, indent=1).encode())
        return state

    def _prepare(self, submission: Submission) -> list[str]:
        name = submission.assignment
        released = notebooks.read(self.course / "release" / name / f"{name}.ipynb")
        nb, notes = compose(released, parse(submission.path))
        place = self.course / "submitted" / submission.student / name / f"{name}.ipynb"
        write_file(place, nbformat.writes(nb).encode())
        return notes + suspicious(nb)


def content(submission: Submission) -> str:
    """A digest of the file that was handed in."""
    return hashlib.sha256(submission.path.read_bytes()).hexdigest()


def limits(text: str) -> dict:
    """Read limits such as "cell=60,memory=4e9", named as in sandbox.LIMITS; all of them."""
    given = dict(LIMITS)
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in LIMITS or not re.fullmatch(r"[\d.]+(e\d+)?", value):
            known = ", ".join(f"{key}={default:g}" for key, default in LIMITS.items())
            raise Refusal(f"LIMITS: expected some of {known}, got {part!r}")
        given[name] = float(value)
    return given


def grade_all(grader: Grader, found: list[Submission], jobs: int) -> list[dict]:
    """Grade what is not graded yet; what became of each."""
    waiting = [submission for submission in found if not grader.done(submission)]
    if len(waiting) < len(found):
        print(f"{len(found) - len(waiting)} of {len(found)} are graded already.", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(grader.grade, submission) for submission in waiting]
        try:
            for future in tqdm(as_completed(running), total=len(running), desc="Grading"):
                future.result()
        except KeyboardInterrupt:
            print("\nStopped. The same command goes on from here.", flush=True)
            os._exit(130)  # the kernels die with this process
    return [json.loads(grader.state(submission).read_text("utf-8")) for submission in found]


def main() -> int:
    """Grade the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="make grade", description=__doc__)
    parser.add_argument("--submissions", default="", help="one folder per student")
    parser.add_argument("--jobs", default="", help="how many at a time; default: half the cores")
    parser.add_argument("--unsafe", default="", help="1: without a sandbox")
    parser.add_argument("--limits", default="", help="such as cell=60,memory=4e9")
    parser.add_argument("--course", type=Path, default=release.COURSE, help="where results go")
    parser.add_argument("--sources", type=Path, default=source.SOURCES, help="the assignments")
    arguments = parser.parse_args()
    if not arguments.submissions:
        example = EXPECTED.format(folder="SUBMISSIONS")
        raise Refusal(f"which folder? SUBMISSIONS=… is missing; {example}")
    course, unsafe = arguments.course.resolve(), arguments.unsafe not in ("", "0")
    if not unsafe and (fault := job.available()):
        raise Refusal(f"{fault}\n{job.UNSAFE}\nIf you want that nevertheless, add UNSAFE=1.")
    jobs = arguments.jobs or str(max(1, (os.cpu_count() or 1) // 2))
    if not (jobs.isdecimal() and int(jobs)):
        raise Refusal(f"JOBS is a number from 1 on, got {jobs!r}")
    with lock(course):
        digests = release.sources(course, arguments.sources)
        release.generate(course, digests)
        folder = Path(arguments.submissions).resolve()
        found, strange = discover(folder, list(digests), course / "unpacked")
        grader = Grader(course, digests, limits(arguments.limits), unsafe)
        strange += [OLDER.format(s.student, s.path.name) for s in found if grader.older(s)]
        states = grade_all(grader, found, int(jobs))
        gradebook.report(course, *grader.ever(), strange)
        gradebook.feedback(course, found, states)
    count = sum(state["status"] != "graded" for state in states)
    place = os.path.relpath(course)
    numbers = {"count": count, "total": len(states), "strange": len(strange)}
    print(PLACES.format(course=place, **numbers))
    return 0


if __name__ == "__main__":
    command(main)
