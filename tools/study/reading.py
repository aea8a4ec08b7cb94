"""`python -m tools.study.reading`: how long a chapter takes to read, as everything else says it.

A chapter's core path is what stands under no heading that ends in "(deeper)". Its minutes are
counted, never guessed; `make refresh` writes them into book.toml and under the chapter's Goals.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nbformat import NotebookNode

from tools import ROOT, Refusal, command, write_file
from tools.study import manifest
from tools.study.manifest import Chapter
from tools.study.notebooks import DEEPER, has_tag, read, write

HEADING = re.compile("(#+) ")
EQUATION = re.compile(r"^\$\$$.*?^\$\$(?: \(eq-[\w-]+\))?$", re.M | re.S)
EXERCISE = re.compile(r"^:::\{exercise\} .*\((\d+) minutes\b.*\)$", re.M)
# Not read on the way: solutions, the Chinese summary, comments, the colons and labels of a box.
ASIDE = re.compile(r"^:::\{(?:solution|dropdown)\}.*?^:::$|^(?::::|:\w+:|% )[^\n]*$", re.M | re.S)
FOLDED = ("hide-cell", "hide-input", "remove-cell")
TIME = re.compile(r"^\*\*Time:\*\* .*$", re.M)


def parts(nb: NotebookNode) -> Iterator[tuple[NotebookNode, bool]]:
    """The cells, each with whether it belongs to what goes deeper."""
    level = 0  # of the heading that began it; 0: none
    for cell in nb.cells:
        if cell.cell_type == "markdown" and (heading := HEADING.match(cell.source)):
            if len(heading[1]) <= level:
                level = 0
            if not level and DEEPER.match(cell.source):
                level = len(heading[1])
        yield cell, bool(level)


def cell_minutes(cell: NotebookNode) -> float:
    """words / 130 + 1.5 per displayed equation + lines of code / 10 + 1 per figure + exercises."""
    if cell.cell_type == "markdown":
        given = sum(map(int, EXERCISE.findall(cell.source)))
        text, equations = EQUATION.subn("", ASIDE.sub("", cell.source))
        return len(text.split()) / 130 + 1.5 * equations + given
    if cell.cell_type != "code" or has_tag(cell, "hide-cell"):
        return 0.0
    figures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
    folded = any(has_tag(cell, tag) for tag in FOLDED)
    lines = 0 if folded else sum(bool(line.strip()) for line in cell.source.splitlines())
    return lines / 10 + figures


def minutes(nb: NotebookNode) -> tuple[int, int]:
    """Minutes to read and work through a chapter's core path, and all of it."""
    core = total = 0.0
    for cell, deeper in parts(nb):
        total += (own := cell_minutes(cell))
        core += 0 if deeper else own
    return max(1, round(core)), max(1, round(total))


def time_line(chapter: Chapter) -> str:
    """What a chapter says of its time, under Goals."""
    core = f"about {chapter.seconds} seconds to run; {chapter.minutes} minutes for the core path"
    return f"**Time:** {core}, {chapter.minutes_all} with all that goes deeper."


def update(book: manifest.Book, root: Path = ROOT) -> None:
    """Write every chapter's minutes into book.toml and into its own text."""
    text = (root / "book.toml").read_text(encoding="utf-8")
    for chapter in book.chapters:
        nb = read(chapter.notebook(root))
        core, total = minutes(nb)
        entry = rf'(^file = "{chapter.file}"$.*?)^minutes = \d+\n(?:minutes_all = \d+\n)?'
        lines = rf"\1minutes = {core}\nminutes_all = {total}\n"
        text, found = re.subn(entry, lines, text, count=1, flags=re.M | re.S)
        if not found:
            raise Refusal(f"book.toml: chapter {chapter.file!r}: no line minutes = … to write anew")
        line = time_line(replace(chapter, minutes=core, minutes_all=total))
        for cell in nb.cells:
            if cell.cell_type == "markdown" and cell.source.startswith("## Goals"):
                if TIME.findall(cell.source) not in ([], [line]):
                    cell.source = TIME.sub(line, cell.source, count=1)
                    write(nb, chapter.notebook(root))
                break
    write_file(root / "book.toml", text.encode())


def main() -> int:
    """Write the minutes, and print them."""
    update(manifest.load())
    for chapter in manifest.load().chapters:
        print(f"{chapter.file:18} {chapter.minutes:4} core {chapter.minutes_all:4} in all")
    return 0


if __name__ == "__main__":
    command(main)
