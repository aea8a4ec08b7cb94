"""What a committed chapter must be: the rules that notebooks are checked against.

Each rule is a function that takes a notebook and yields one sentence per fault.
"""

import base64
import re
from collections.abc import Iterator

import nbformat
from nbformat import NotebookNode

from tools.study import reading
from tools.study.manifest import Chapter
from tools.study.notebooks import CAPTION, cell_name, code_hash, has_tag

MAX_IMAGE = 150_000  # bytes
MAX_NOTEBOOK = 1_500_000
MAX_LINES = 40
MAX_CORE = 90  # minutes
# A comment, for MyST: only viewers that don't know it show it.
ELSEWHERE = (
    "% If you can read this line, your viewer (GitHub, VS Code, Colab …) lacks the MyST extension: "
    "boxes look raw, and solutions stand open. `make lab` has it, and so has the book."
)
TAGS = {
    "parameters",
    "nbval-check-output",
    "hide-cell",
    "hide-input",
    "remove-cell",
    "readme-figure",
}
SECTIONS = (
    "## Goals",
    "中文提要",
    "## Setup",
    "## Derivation",
    "## Build",
    "### Match",
    "## Train",
    "## Look",
    "## What goes wrong",
    "## At scale",
    "## Exercises",
    "## Sources",
)


def chapter_faults(nb: NotebookNode, chapter: Chapter) -> list[str]:
    """Everything that is wrong with a committed chapter, one sentence per fault."""
    return [
        *cells(nb),
        *fresh(nb, chapter),
        *sections(nb, chapter),
        *paths(nb, chapter),
        *boxed(nb),
        *proofs(nb),
        *captions(nb),
    ]


def cells(nb: NotebookNode) -> Iterator[str]:
    """Budgets and kinds of output, after `normalise`; what `make refresh` refuses to write."""
    for index, cell in enumerate(nb.cells):
        if cell.cell_type != "code":
            continue
        name = cell_name(nb, index)
        for tag in sorted(set(cell.metadata.get("tags", ())) - TAGS):
            yield f"{name}: an unknown tag {tag!r}, which nothing would obey"
        lines = len(cell.source.splitlines())
        if not cell.source.strip():
            yield f"{name}: an empty code cell"
        if lines > MAX_LINES:
            yield f"{name}: {lines} lines, at most {MAX_LINES} are allowed"
        for output in cell.outputs:
            yield from (f"{name}: {fault}" for fault in _output_faults(output))
    size = len(nbformat.writes(nb).encode())
    if size > MAX_NOTEBOOK:
        yield f"the notebook has {size / 1e6:.2f} MB, at most {MAX_NOTEBOOK / 1e6} are allowed"


def _output_faults(output: NotebookNode) -> Iterator[str]:
    if output.output_type == "error":
        yield f"an error is stored: {output.ename}: {output.evalue}"
    elif output.output_type == "stream":
        if output.name != "stdout":
            yield f"wrote to {output.name}: {output.text.strip().splitlines()[0]}"
        text = output.text
    else:
        for kind in output.data.keys() - {"text/plain", "image/png"}:
            yield f"an output of type {kind}; only text/plain and image/png are allowed"
        image = len(base64.b64decode(output.data.get("image/png", "")))
        if image > MAX_IMAGE:
            yield f"an image of {image / 1e3:.0f} kB, at most {MAX_IMAGE / 1e3:.0f} are allowed"
        text = output.data.get("text/plain", "")
    if output.output_type != "error" and re.search(r" at 0x[0-9a-f]{6}", text):
        yield "prints a memory address, which differs from run to run: end the cell with `;`"


def fresh(nb: NotebookNode, chapter: Chapter) -> Iterator[str]:
    """The outputs belong to this code, run once from top to bottom, in time; bands can fail."""
    stored = nb.metadata.get("aigc", {})
    if stored.get("code_hash") != code_hash(nb):
        yield f"the code has changed since it was run: make refresh CHAPTER={chapter.number}"
    counts = [cell.execution_count for cell in nb.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        yield f"not run from top to bottom: the execution counts are {counts}"
    if stored.get("seconds", 0) > chapter.seconds:
        yield f"took {stored.seconds} s when refreshed, book.toml allows {chapter.seconds}"
    for claim, _, _, _, others in stored.get("bands", ()):
        if not others:
            yield f"the band of {claim!r} names no wrong alternative that it rejects"


def sections(nb: NotebookNode, chapter: Chapter) -> Iterator[str]:
    """The parts of a chapter in their order, with the title and the times of book.toml."""
    lines = [
        line.strip()
        for cell in nb.cells
        if cell.cell_type == "markdown"
        for line in re.sub(r"```.*?```", "", cell.source, flags=re.S).splitlines()
    ]
    title = f"# {int(chapter.number)}. {chapter.title}"
    if not lines or lines[0] != title:
        yield f"the first line is not {title!r}"
    place = {}
    for part in SECTIONS:
        places = [
            number
            for number, line in enumerate(lines)
            if line == part or (part[0] != "#" and part in line)
        ]
        if len(places) != 1:
            yield f"{part!r} stands {len(places)} times, expected once"
        else:
            place[part] = places[0]
    in_order = sorted(place, key=place.get)
    for expected, found in zip(place, in_order, strict=True):
        if expected != found:
            yield f"{found!r} stands where {expected!r} should"
            break
    if ELSEWHERE not in lines[: place.get("## Goals", 0)]:
        yield f"the first cell has no line {ELSEWHERE!r}"
    time = reading.time_line(chapter)
    if time not in lines[place.get("## Goals", 0) : place.get("## Setup")]:
        yield f"the goals have no line {time!r}"


def paths(nb: NotebookNode, chapter: Chapter) -> Iterator[str]:
    """The core path and what goes deeper can be told apart, and take the minutes of book.toml."""
    for index, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            text = re.sub(r"```.*?```", "", cell.source, flags=re.S)
            if re.search(r"\A.+^#+ ", text, re.M | re.S):
                yield f"{cell_name(nb, index)}: a heading that does not begin its cell"
            titles = re.findall(r"^:::\{exercise\}.*$", text, re.M)
            if len(titles) > len(reading.EXERCISE.findall(text)):
                yield f"{cell_name(nb, index)}: an exercise without its '(5 minutes)'"
    found = reading.minutes(nb)
    if found != (chapter.minutes, chapter.minutes_all):
        yield f"takes {found} minutes to read, core and all: python -m tools.study.reading"
    if found[0] > MAX_CORE:
        yield f"the core path takes {found[0]} minutes, at most {MAX_CORE} are allowed"


def boxed(nb: NotebookNode) -> Iterator[str]:
    r"""A cell that is compared follows every \boxed equation, before the next one."""
    unchecked = None
    for index, cell in enumerate(nb.cells):
        if cell.cell_type == "markdown":
            for _ in range(cell.source.count(r"\boxed")):
                if unchecked:
                    yield f"{unchecked}: no cell tagged nbval-check-output before the next \\boxed"
                unchecked = cell_name(nb, index)
        elif has_tag(cell, "nbval-check-output"):
            unchecked = None
    if unchecked:
        yield f"{unchecked}: no cell tagged nbval-check-output checks its \\boxed equation"


def proofs(nb: NotebookNode) -> Iterator[str]:
    """Cells whose output nbval compares have one, and it is printed text."""
    for index, cell in enumerate(nb.cells):
        if cell.cell_type != "code" or not has_tag(cell, "nbval-check-output"):
            continue
        name = cell_name(nb, index)
        if not cell.outputs:
            yield f"{name}: tagged nbval-check-output, but no output is stored"
        if any(output.output_type == "execute_result" for output in cell.outputs):
            yield (
                f"{name}: tagged nbval-check-output, but shows the value of its last line, which "
                "may differ between machines: print what is meant"
            )
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            yield f"{name}: tagged nbval-check-output, but draws a figure, which is never compared"


def captions(nb: NotebookNode) -> Iterator[str]:
    """Every code cell with a figure is followed by its caption; `normalise` numbers figures."""
    for index, cell in enumerate(nb.cells):
        name = cell_name(nb, index)
        after = nb.cells[index + 1] if index + 1 < len(nb.cells) else None
        if _draws(cell) and not (after and CAPTION.match(after.source)):
            yield f"{name}: a figure, but the next cell is no caption '**Figure.** What one sees.'"
        if cell.cell_type == "markdown" and (head := CAPTION.match(cell.source)):
            words = cell.source[head.end() :]
            if not index or not _draws(nb.cells[index - 1]):
                yield f"{name}: a caption, but the cell before draws no figure"
            if "\n" in words.strip() or len(words.split()) < 5 or not words.endswith("."):
                yield f"{name}: expected a caption of one paragraph in whole sentences"


def _draws(cell: NotebookNode) -> bool:
    return any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
