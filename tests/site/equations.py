"""Count the equations of a notebook from its source alone, to compare with what a browser shows."""

import re
from pathlib import Path
from typing import NamedTuple

import nbformat

FENCE = re.compile(r"\s*(`{3,}|~{3,})\s*(.*)")
COMMENT = re.compile(r"<!--.*?-->|^%.*?$", re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)\1(?!`)", re.DOTALL)
ESCAPE = re.compile(r"\\[\\$]")
DISPLAY = re.compile(r"\$\$.+?\$\$", re.DOTALL)
ENVIRONMENT = re.compile(
    r"\\begin\{((?:equation|align|alignat|gather|multline)\*?)\}.+?\\end\{\1\}", re.DOTALL
)


class Equations(NamedTuple):
    """How many equations stand on lines of their own, and how many inside a line."""

    display: int
    inline: int


def in_markdown(text: str) -> Equations:
    """Count the equations of one Markdown cell.

    Counted are `$…$`, `$$…$$` and bare environments such as align, wherever they stand: in
    paragraphs, tables, lists, directives. Code and comments hold none. A dollar without a partner
    raises ValueError; a price is written `\\$5`.
    """
    text = COMMENT.sub("", _without_code_blocks(text))
    text = ESCAPE.sub("", CODE_SPAN.sub("", text))
    text, display = DISPLAY.subn("", text)
    text, environments = ENVIRONMENT.subn("", text)
    inline = 0
    for paragraph in re.split(r"\n\s*\n", text):
        dollars = paragraph.count("$")
        if dollars % 2:
            raise ValueError(f"a dollar without a partner in: {paragraph.strip()[:200]}")
        inline += dollars // 2
    return Equations(display + environments, inline)


def in_notebook(path: Path) -> Equations:
    """Add up the equations of all Markdown cells."""
    cells = nbformat.read(path, as_version=4).cells
    counts = [in_markdown(cell.source) for cell in cells if cell.cell_type == "markdown"]
    return Equations(sum(count.display for count in counts), sum(count.inline for count in counts))


def _without_code_blocks(text: str) -> str:
    """Drop fenced code, but keep what a fenced directive such as ```{note} holds."""
    kept, open_fences = [], []
    for line in text.splitlines():
        fence = FENCE.fullmatch(line)
        in_code = bool(open_fences) and not open_fences[-1][1]
        if fence and open_fences and not fence[2] and fence[1].startswith(open_fences[-1][0]):
            open_fences.pop()
        elif fence and not in_code:
            directive = fence[2].startswith("{") and not fence[2].startswith("{code")
            open_fences.append((fence[1], directive))
            kept.append(fence[2] if directive else "")
        elif not in_code:
            kept.append(line)
    return "\n".join(kept)
