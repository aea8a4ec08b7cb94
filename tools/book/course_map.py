"""The map of the course: an SVG picture of parts, chapters and what each chapter needs."""

import html
import math
import textwrap
from typing import NamedTuple

from tools.book.parts import PARTS, chapters_of, path_to, short_title
from tools.study.manifest import Book, Chapter

WIDTH = 800  # of the picture, in its own units
LABEL = 160  # of the column with the parts' names
COLUMNS = 4  # chapters side by side; more go to the next line of their part
LINE = 70
BOX = 48  # height of a chapter
GAP = 22  # between neighbours, for the arrows


class Box(NamedTuple):
    """Where a chapter stands in the picture."""

    x: float
    y: float
    width: float


def svg(book: Book) -> str:
    """The map as HTML without blank lines: boxes link to chapters, parts without are outlines."""
    rows = chapters_of(book)
    rows.pop("9")
    tops, height = _tops(rows)
    boxes = _boxes(rows, tops)
    lines = [
        f'<div class="course-map" tabindex="0" role="region" aria-label="Map of the course">'
        f'<svg viewBox="0 0 {WIDTH} {height}" role="group" aria-label="Parts and chapters">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path class="tip" d="M0 0 8 4 0 8z"/></marker></defs>',
    ]
    for key, bottom in zip(rows, [*list(tops.values())[1:], height], strict=True):
        lines.append(_part(key, tops[key], bottom, bool(rows[key])))
    by_file = {chapter.file: chapter for chapter in book.chapters}
    for file in boxes:
        lines += [_arrow(boxes[need], boxes[file]) for need in _direct(book, by_file[file])]
    lines += [_chapter(by_file[file], box) for file, box in boxes.items()]
    return "\n".join([*lines, "</svg></div>"])


def _tops(rows: dict[str, list[Chapter]]) -> tuple[dict[str, int], int]:
    """Where each part begins, and where the last one ends."""
    tops, height = {}, 0
    for key, chapters in rows.items():
        tops[key] = height
        height += LINE * max(1, math.ceil(len(chapters) / COLUMNS))
    return tops, height


def _boxes(rows: dict[str, list[Chapter]], tops: dict[str, int]) -> dict[str, Box]:
    pitch = (WIDTH - LABEL) / COLUMNS
    boxes = {}
    for key, chapters in rows.items():
        for place, chapter in enumerate(chapters):
            line, column = divmod(place, COLUMNS)
            y = tops[key] + LINE * line + (LINE - BOX) / 2
            boxes[chapter.file] = Box(LABEL + pitch * column + GAP / 2, y, pitch - GAP)
    return boxes


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


def _part(key: str, y: int, bottom: int, has_chapters: bool) -> str:
    part, height = PARTS[key], bottom - y
    state = "" if has_chapters else " planned"
    line = f'<rect class="row{state}" x="1" y="{y + 4}" width="{WIDTH - 2}" height="{height - 8}"/>'
    names = textwrap.wrap(part.title, 18)
    first = y + height / 2 - 9 * (len(names) - 1) - 3
    for number, name in enumerate(names):
        line += f'<text class="part" x="16" y="{first + 18 * number}">{html.escape(name)}</text>'
    line += (
        f'<text class="zh" x="16" y="{first + 18 * len(names)}" lang="zh">{part.title_zh}</text>'
    )
    if not has_chapters:
        what = html.escape(f"planned: {part.builds}")
        line += f'<text class="later" x="{LABEL + GAP / 2}" y="{y + height / 2 + 5}">{what}</text>'
    return line


def _chapter(chapter: Chapter, box: Box) -> str:
    title = short_title(chapter)
    words = textwrap.wrap(title, 13, break_long_words=False, max_lines=2, placeholder="…")
    first = box.y + BOX / 2 + 5 - 8.5 * (len(words) - 1)

    def squeeze(word: str) -> str:
        too_long = f' textLength="{box.width - 42:.0f}" lengthAdjust="spacingAndGlyphs"'
        return too_long if len(word) > 13 else ""

    text = "".join(
        f'<text class="name" x="{box.x + 36:.0f}" y="{first + 17 * number:.1f}"{squeeze(word)}>'
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
        if end.y - start.y > LINE:  # left of the lines between
            x0, y0, x1, y1 = start.x, start.y + BOX * 0.7, end.x, end.y + BOX * 0.4
            bend = f"{LABEL - 12} {y0 + 20} {LABEL - 12} {y1 - 20}"
    return f'<path class="need" d="M{x0:.0f} {y0:.0f}C{bend} {x1:.0f} {y1:.0f}"/>'
