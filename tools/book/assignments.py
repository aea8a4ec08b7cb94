"""What an assignment says of itself in its first cell: title, points and minutes."""

import re
from pathlib import Path
from typing import NamedTuple

from tools import Refusal
from tools.study import notebooks
from tools.study.manifest import Book

_TITLE = re.compile(r"# Assignment (\d\d)\. (\S.*)")
_TASK = re.compile(r"^\|[^|]+\| *(\d+) *\| *(\d+) *\|$", re.M)


class Assignment(NamedTuple):
    """One assignment."""

    title: str
    tasks: int
    points: int
    minutes: int


def read(book: Book, root: Path) -> dict[str, Assignment]:
    """The assignments that book.toml names, by the file of the chapter that each belongs to.

    A first cell that does not say what it should is refused.
    """
    return {
        chapter.file: _read(root / "assignments" / chapter.assignment, chapter.number)
        for chapter in book.chapters
        if chapter.assignment
    }


def _read(folder: Path, number: str) -> Assignment:
    path = folder / f"{folder.name}.ipynb"
    first = next(iter(notebooks.read(path).cells), {}).get("source", "")
    title = _TITLE.match(first)
    tasks = [(int(points), int(minutes)) for points, minutes in _TASK.findall(first)]
    where = f"assignments/{folder.name}/{path.name}: the first cell"
    if not title or title[1] != number:
        raise Refusal(f"{where}: expected a line '# Assignment {number}. Title'")
    if sum(points for points, _ in tasks) != 100:
        raise Refusal(f"{where}: expected a table '| task | points | minutes |' of 100 points")
    return Assignment(title[2].strip(), len(tasks), 100, sum(minutes for _, minutes in tasks))
