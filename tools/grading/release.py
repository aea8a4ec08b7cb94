"""`make assignments`: what students get, in marks/release/NN_name/NN_name.ipynb.

AIGC_ASSIGNMENTS names a folder outside the repository whose NN_name/ folders replace or extend the
public ones: a university's own variants and hidden tests. nbgrader makes the release and keeps the
sources, hidden tests included, in marks/gradebook.db.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

from nbformat import NotebookNode

from tools import ROOT, Refusal, command, write_file
from tools.grading import source
from tools.grading.source import HIDDEN, SOLUTION, grade_id, nbgrader, role
from tools.study import notebooks

COURSE = ROOT / "marks"  # what a teacher made: not in build/, which `make clean` removes


def sources(course: Path, public: Path = source.SOURCES) -> dict[str, str]:
    """Gather the assignments in the folder `source`, the private ones on top: their digests."""
    folders = {path.parent.name: [path.parent] for path in source.find(public)}
    if private := os.environ.get("AIGC_ASSIGNMENTS"):
        if not Path(private).is_dir():
            raise Refusal(f"AIGC_ASSIGNMENTS={private}: no such folder")
        found = source.find(Path(private).resolve())
        if not found:
            raise Refusal(f"AIGC_ASSIGNMENTS={private}: expected NN_name/NN_name.ipynb in it")
        for path in found:
            folders.setdefault(path.parent.name, []).append(path.parent)
    if not folders:
        raise Refusal(f"no assignment in {public}")
    shutil.rmtree(course / "source", ignore_errors=True)
    digests = {}
    for name, parts in sorted(folders.items()):
        for folder in parts:
            shutil.copytree(folder, course / "source" / name, dirs_exist_ok=True)
        path = course / "source" / name / f"{name}.ipynb"
        if not path.is_file():
            raise Refusal(f"{parts[-1]}: expected {name}.ipynb in it")
        faults = broken(notebooks.read(path))
        if faults:
            raise Refusal(f"{parts[-1] / path.name}: {faults[0]}")
        files = sorted(file for file in path.parent.rglob("*") if file.is_file())
        content = b"".join(file.name.encode() + file.read_bytes() for file in files)
        digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def broken(nb: NotebookNode) -> list[str]:
    """What would make nbgrader release something wrong: a sentence per fault."""
    faults, seen = [], set()
    for index, cell in enumerate(nb.cells):
        name, text = notebooks.cell_name(nb, index), cell.source
        for begin, end in (SOLUTION, HIDDEN):
            if text.count(begin) != text.count(end):
                faults.append(f"{name}: {begin} and {end} do not match")
        if text.count("SOLUTION") and not nbgrader(cell).get("solution"):
            faults.append(f"{name}: a solution outside of a solution cell")
        if HIDDEN[0] in text and not nbgrader(cell).get("grade"):
            faults.append(f"{name}: hidden tests outside of a test cell")
        if nbgrader(cell) and (not grade_id(cell) or grade_id(cell) in seen):
            faults.append(f"{name}: grade_id {grade_id(cell)!r} is missing or there twice")
        seen.add(grade_id(cell))
    if not any(nbgrader(cell).get("grade") for cell in nb.cells):
        faults.append("no cell of it is graded")
    return faults


def generate(course: Path, digests: dict[str, str]) -> list[str]:
    """Let nbgrader make what is new, and look at the result: the names, or Refusal for a leak."""
    made = []
    for name, digest in digests.items():
        stamp, released = course / "released" / name, course / "release" / name / f"{name}.ipynb"
        if released.exists() and stamp.exists() and stamp.read_text() == digest:
            continue
        stamp.unlink(missing_ok=True)
        nbgrader_command(course, ["generate_assignment", name, "--force"])
        faults = leaks(
            notebooks.read(course / "source" / name / f"{name}.ipynb"), notebooks.read(released)
        )
        if faults:
            released.unlink()
            raise Refusal(f"{name}: not released: {faults[0]}")
        write_file(stamp, digest.encode())
        made.append(name)
    return made


def nbgrader_command(course: Path, line: list[str]) -> None:
    """Run one of nbgrader's commands; Refusal with the end of what it said if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *line],
        cwd=course,
        env=environment(course),
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if done.returncode:
        raise Refusal(f"nbgrader {' '.join(line)} failed:\n{done.stdout[-2000:]}")


def environment(course: Path, **more: str) -> dict[str, str]:
    """What nbgrader's processes need to find."""
    config = str(Path(__file__).parent)
    here = {"AIGC_COURSE": str(course), "JUPYTER_CONFIG_PATH": config, "PYTHONPATH": str(ROOT)}
    beside = os.path.dirname(sys.executable)  # nbgrader looks for its command alembic
    here["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", os.defpath)])
    return os.environ | here | more


def leaks(nb: NotebookNode, released: NotebookNode) -> list[str]:
    """What a release must not hold, and what it must: a sentence per fault."""
    text = "\n".join(cell.source for cell in released.cells)
    faults = [f"{mark} is still in it" for mark in (*SOLUTION, *HIDDEN) if mark in text]
    for cell in nb.cells:
        for begin, end in (SOLUTION, HIDDEN):
            for part in cell.source.split(begin)[1:]:
                secret = "\n".join(part.partition(end)[0].strip("\n").rstrip().splitlines())
                if len(secret) > 20 and secret in text:
                    faults.append(f"{cell.id}: what is between {begin} and {end} is still in it")
    wanted = [grade_id(cell) for cell in nb.cells if nbgrader(cell)]
    if wanted != [grade_id(cell) for cell in released.cells if nbgrader(cell)]:
        faults.append("cells are missing or in another order")
    if any(cell.outputs for cell in released.cells if cell.cell_type == "code"):
        faults.append("it has outputs")
    for cell in released.cells:
        if role(cell) == "solution" and "NotImplementedError" not in cell.source:
            faults.append(f"{cell.id}: has no place to write in")
    return faults


def main() -> int:
    """Make the students' versions, and put those that are new into study/, to try them."""
    digests = sources(COURSE)
    made = generate(COURSE, digests)
    for name in digests:
        state = "made" if name in made else "unchanged"
        print(f"marks/release/{name}/{name}.ipynb: {state}")
        own = ROOT / "study" / "assignments" / f"{name}.ipynb"
        if not own.exists():  # never over somebody's work
            write_file(own, (COURSE / "release" / name / own.name).read_bytes())
    print("Give these files to students; they hold neither solutions nor hidden tests.")
    print("Your own copies are in study/assignments/.")
    return 0


if __name__ == "__main__":
    command(main)
