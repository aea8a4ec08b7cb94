"""Read and check book.toml, the only list of chapters."""

import dataclasses
import graphlib
import re
import tomllib
from pathlib import Path
from types import NoneType
from typing import Any

from tools import ROOT, Refusal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chapter:
    """One `[[chapter]]` of book.toml."""

    file: str  # NN_name: the notebook in chapters/, without its suffix
    title: str
    title_zh: str
    needs: tuple[str, ...]  # files of the chapters to read before
    seconds: int  # to run on one thread of an idle CPU
    minutes: int  # to read the core path
    minutes_all: int  # to read everything
    assignment: str | None = None

    @property
    def number(self) -> str:
        """The two digits that the file starts with."""
        return self.file[:2]

    def notebook(self, root: Path = ROOT) -> Path:
        """Where the committed notebook is."""
        return root / "chapters" / f"{self.file}.ipynb"

    def homework(self, root: Path = ROOT) -> Path:
        """Where the source of the chapter's assignment is, solutions included, if it has one."""
        return root / "assignments" / str(self.assignment) / f"{self.assignment}.ipynb"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Book:
    """The `[book]` table of book.toml and its chapters in reading order."""

    title: str
    title_zh: str
    authors: tuple[str, ...]
    language: str
    repository: str | None = None
    chapters: tuple[Chapter, ...]


def load(root: Path = ROOT) -> Book:
    """Read book.toml and check it against the files beside it; a Refusal names the wrong entry."""
    try:
        data = tomllib.loads((root / "book.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(f"book.toml: no such file in {root}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"book.toml: not valid TOML: {error}") from None
    tables = data.pop("chapter", [])
    header = data.pop("book", None)
    if data:
        raise Refusal(f"book.toml: unknown table or key {next(iter(data))!r}")
    if not isinstance(header, dict):
        raise Refusal("book.toml: the table [book] is missing")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise Refusal("book.toml: chapters are written as [[chapter]]")
    if not tables:
        raise Refusal("book.toml: there is no [[chapter]]")
    chapters = tuple(
        Chapter(**_checked(Chapter, table, _chapter_name(table, place)))
        for place, table in enumerate(tables, 1)
    )
    _check_files(chapters, root)
    _check_needs(chapters)
    return Book(**_checked(Book, header, "[book]", without="chapters"), chapters=chapters)


def find(book: Book, name: str) -> Chapter:
    """The chapter that a person means by its number ("00") or its file ("00_start_here").

    The Refusal of any other name lists those that there are.
    """
    for chapter in book.chapters:
        if name in (chapter.number, chapter.file):
            return chapter
    known = ", ".join(chapter.file for chapter in book.chapters)
    asked = f"no chapter {name!r}" if name else "which chapter? CHAPTER=… is missing"
    raise Refusal(f"{asked}; book.toml has: {known} (CHAPTER=00 is enough)")


def notebooks(book: Book) -> dict[str, float]:
    """Every notebook, by its path from the repository's root, with about the seconds it takes.

    An assignment is taken for half as long as its chapter.
    """
    seconds = {}
    for chapter in book.chapters:
        seconds[chapter.notebook(Path()).as_posix()] = float(chapter.seconds)
        if chapter.assignment:
            seconds[chapter.homework(Path()).as_posix()] = chapter.seconds / 2
    return seconds


def _chapter_name(table: dict[str, Any], place: int) -> str:
    file = table.get("file")
    return f"chapter {file!r}" if isinstance(file, str) else f"chapter number {place} in the file"


def _checked(kind: type, table: dict[str, Any], entry: str, without: str = "") -> dict[str, Any]:
    """The table's values with the types that the dataclass `kind` declares."""
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != without}
    for key in table:
        if key not in fields:
            raise Refusal(f"book.toml: {entry}: unknown key {key!r}; known are {', '.join(fields)}")
    values = {}
    for key, field in fields.items():
        if key in table:
            values[key] = _value(table[key], field.type, f"book.toml: {entry}: {key}")
        elif field.default is dataclasses.MISSING:
            raise Refusal(f"book.toml: {entry}: the key {key!r} is missing")
    return values


def _value(value: Any, kind: Any, where: str) -> Any:
    if kind is int:
        if type(value) is not int or value <= 0:
            raise Refusal(f"{where}: expected a positive whole number, got {value!r}")
        return value
    if kind == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise Refusal(f"{where}: expected a list of strings, got {value!r}")
        return tuple(value)
    assert kind in (str, str | NoneType)
    if not isinstance(value, str) or not value:
        raise Refusal(f"{where}: expected a string that is not empty, got {value!r}")
    return value


def _check_files(chapters: tuple[Chapter, ...], root: Path) -> None:
    seen: dict[str, str] = {}
    for chapter in chapters:
        entry = f"book.toml: chapter {chapter.file!r}"
        if not re.fullmatch(r"\d\d_[a-z0-9_]+", chapter.file):
            raise Refusal(f"{entry}: file: expected two digits and a name, such as '00_start_here'")
        if chapter.number in seen:
            other = seen[chapter.number]
            raise Refusal(f"{entry}: duplicate: number {chapter.number} is already {other!r}")
        seen[chapter.number] = chapter.file
        if not chapter.notebook(root).is_file():
            raise Refusal(f"{entry}: missing file chapters/{chapter.file}.ipynb")
        if chapter.assignment and not chapter.homework(root).is_file():
            raise Refusal(f"{entry}: missing file {chapter.homework(root).relative_to(root)}")


def _check_needs(chapters: tuple[Chapter, ...]) -> None:
    files = {chapter.file for chapter in chapters}
    for chapter in chapters:
        for need in chapter.needs:
            if need not in files:
                raise Refusal(f"book.toml: chapter {chapter.file!r}: needs unknown {need!r}")
    try:
        graphlib.TopologicalSorter({c.file: c.needs for c in chapters}).prepare()
    except graphlib.CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise Refusal(f"book.toml: needs run in a circle: {circle}") from None
