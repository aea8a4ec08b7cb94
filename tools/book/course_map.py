"""The map of the course: an SVG picture of parts, chapters and what each chapter needs."""

import html
import textwrap
from typing import NamedTuple

from tools.book.parts import PARTS, chapters_of, path_to, short_title
from tools.manifest import Book, Chapter

WIDTH = 940  # of the picture, in its own units
LABEL = 190  # of the column with the parts' names
ROW = 76
BOX = 48  # height of a chapter
GAP = 26  # between neighbours, for the arrows


class Box(NamedTuple):
    """Where a chapter stands in the picture."""

    x: float
    y: float
    width: float


def svg(book: Book) -> str:
    """Draw the map.

    Args:
        book: the manifest.

    Returns:
        HTML without blank lines. Each box links to its chapter; parts without one are outlines.
    """
    rows = chapters_of(book)
    rows.pop("9")
    boxes = _boxes(rows)
    height = ROW * len(rows)
    lines = [
        f'<div class="course-map" tabindex="0" role="region" aria-label="Map of the course">'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="group" aria-label="Parts and chapters">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>',
    ]
    lines += [_part(key, number, bool(rows[key])) for number, key in enumerate(rows)]
    by_file = {chapter.file: chapter for chapter in book.chapters}
    for file in boxes:
        lines += [_arrow(boxes[need], boxes[file]) for need in _direct(book, by_file[file])]
    lines += [_chapter(by_file[file], box) for file, box in boxes.items()]
    return "\n".join([*lines, "</svg></div>"])


def _boxes(rows: dict[str, list[Chapter]]) -> dict[str, Box]:
    longest = max(3, *(len(chapters) for chapters in rows.values()))
    pitch = (WIDTH - LABEL) / longest
    return {
        chapter.file: Box(
            LABEL + pitch * column + GAP / 2, ROW * row + (ROW - BOX) / 2, pitch - GAP
        )
        for row, chapters in enumerate(rows.values())
        for column, chapter in enumerate(chapters)
    }


def _direct(book: Book, chapter: Chapter) -> list[str]:
    """The needs that no other need implies."""
    by_file = {each.file: each for each in book.chapters}
    implied = {
        earlier.file
        for need in chapter.needs
        for earlier in path_to(book, by_file[need])
        if earlier.file != need
    }
    return [need for need in chapter.needs if need not in implied]


def _part(key: str, row: int, has_chapters: bool) -> str:
    part, y = PARTS[key], ROW * row
    state = "" if has_chapters else " planned"
    line = f'<rect class="row{state}" x="1" y="{y + 4}" width="{WIDTH - 2}" height="{ROW - 8}"/>'
    names = textwrap.wrap(part.title, 20)
    first = y + ROW / 2 - 9 * (len(names) - 1) - 3
    for number, name in enumerate(names):
        line += f'<text class="part" x="16" y="{first + 18 * number}">{html.escape(name)}</text>'
    line += (
        f'<text class="zh" x="16" y="{first + 18 * len(names)}" lang="zh">{part.title_zh}</text>'
    )
    if not has_chapters:
        what = html.escape(f"planned: {part.builds}")
        line += f'<text class="later" x="{LABEL + GAP / 2}" y="{y + ROW / 2 + 5}">{what}</text>'
    return line


def _chapter(chapter: Chapter, box: Box) -> str:
    words = textwrap.wrap(short_title(chapter), max(8, int((box.width - 46) / 7.6)))[:2]
    first = box.y + BOX / 2 + 5 - 8.5 * (len(words) - 1)
    text = "".join(
        f'<text class="name" x="{box.x + 42:.0f}" y="{first + 17 * number:.1f}">'
        f"{html.escape(word)}</text>"
        for number, word in enumerate(words)
    )
    return (
        f'<a href="{chapter.file}.html"><rect class="box" x="{box.x:.1f}" y="{box.y}" '
        f'width="{box.width:.1f}" height="{BOX}" rx="6"/><text class="number" '
        f'x="{box.x + 10:.0f}" y="{box.y + BOX / 2 + 5}">{chapter.number}</text> {text}</a>'
    )


def _arrow(start: Box, end: Box) -> str:
    if start.y == end.y:
        x0, y0, x1, y1 = start.x + start.width, start.y + BOX / 2, end.x, end.y + BOX / 2
        bend = f"{x0 + 9:.0f} {y0} {x1 - 9:.0f} {y1}"
        if x1 - x0 > GAP + 1:  # over the boxes between
            y0 = y1 = start.y
            x0, x1 = start.x + start.width * 0.8, end.x + end.width * 0.2
            bend = f"{x0 + 20:.0f} {y0 - 16} {x1 - 20:.0f} {y1 - 16}"
    else:
        x0, y0, x1, y1 = start.x + 24, start.y + BOX, end.x + 24, end.y
        bend = f"{x0:.0f} {y0 + 24} {x1:.0f} {y1 - 24}"
        if end.y - start.y > ROW:  # left of the rows between
            x0, y0, x1, y1 = start.x, start.y + BOX * 0.7, end.x, end.y + BOX * 0.4
            bend = f"{LABEL - 12} {y0 + 20} {LABEL - 12} {y1 - 20}"
    return f'<path class="need" d="M{x0:.0f} {y0:.0f}C{bend} {x1:.0f} {y1:.0f}"/>'
