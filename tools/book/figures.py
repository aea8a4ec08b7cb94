"""Figures of code cells: what those hear who don't see them, and the caption below."""

import ast
import re

from docutils import nodes

from tools.study.notebooks import CAPTION

_LABELS = ("panels", "set_title", "suptitle", "title", "set_xlabel", "set_ylabel", "curve", "plot")


def describe(cell: nodes.Element) -> None:
    """Give the figures of a code cell of MyST-NB's a text in place of the picture."""
    code = next(cell.findall(nodes.literal_block), None)
    for image in cell.findall(nodes.image):
        image["alt"] = figure_text(code.astext() if code else "")


def figure_text(code: str) -> str:
    """Words for a figure, in one line: titles, labels and axes of the code that draws it."""
    words: list[str] = []
    try:
        tree = ast.parse(code)
    except SyntaxError:  # a cell with a %magic
        tree = ast.Module([], [])
    for call in ast.walk(tree):
        name = getattr(getattr(call, "func", None), "attr", getattr(call, "func", None))
        if isinstance(call, ast.Call) and name in _LABELS:
            values = [*call.args, *(k.value for k in call.keywords if k.arg == "label")]
            for value in values:
                items = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
                words += [text for item in items if (text := _words(item)) not in words]
    words = [word for word in words if re.search(r"\w\w", word)]
    return "Figure: " + "; ".join(words) if words else "Figure drawn by the code above"


def _words(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_words, node.values))
    if isinstance(node, ast.FormattedValue):
        return "…"
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return node.value.replace("\n", " ") if is_text else ""


def add_captions(document: nodes.document) -> None:
    """Make the paragraph `**Figure 0.1.** …` after a code cell the caption of its figure."""
    for cell in list(document.findall(_is_cell)):
        images = list(cell.findall(nodes.image))
        place = cell.parent.index(cell) + 1
        text = cell.parent[place] if images and place < len(cell.parent) else None
        if isinstance(text, nodes.paragraph) and CAPTION.match(text.rawsource):
            cell.parent.remove(text)
            name = nodes.make_id(next(text.findall(nodes.strong)).astext())  # figure-0-1
            figure = nodes.figure("", nodes.caption("", "", *text.children), ids=[name])
            images[-1].replace_self(figure)  # the last one, if there are several
            figure.insert(0, images[-1])


def _is_cell(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and "cell" in node["classes"]
