"""What Sphinx is taught about this book: numbers, links between chapters and library, glossary."""

import ast
import re
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.search import languages
from sphinx.util import logging

from tools.book import api, glossary
from tools.book.search import EnglishAndChinese
from tools.manifest import Book

_LOG = logging.getLogger(__name__)
_LABELS = ("panels", "set_title", "suptitle", "title", "set_xlabel", "set_ylabel", "curve", "plot")


def number_anew(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Count each page's equations, theorems, exercises and figures from one, as JupyterLab does.

    Equations become places that Markdown can link to: `[](20_elbo.ipynb#eq-gap)`.

    Args:
        app: Sphinx.
        env: what it has read.

    Returns:
        No page that would have to be read again.
    """
    for kinds in env.toc_fignumbers.values():
        for numbers in kinds.values():
            for place, label in enumerate(numbers, 1):
                numbers[label] = (place,)
    labels = env.domaindata["std"]["labels"]
    for label, (page, _) in env.domaindata["math"]["objects"].items():
        node_id = nodes.make_id(f"equation-{label}")
        number = env.toc_fignumbers[page]["displaymath"][node_id][0]
        labels[label] = (page, node_id, f"chapter {page[:2]}, equation ({number})")
    return []


def refuse_far_equations(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of `{eq}` with an equation of another page: its number alone says nothing there.

    JupyterLab does not even find it.

    Args:
        app: Sphinx.
        env: what it has read.
    """
    home = {label: page for label, (page, _) in env.domaindata["math"]["objects"].items()}
    for page in env.all_docs:
        for reference in env.get_doctree(page).findall(pending_xref):
            label = reference["reftarget"]
            if reference["reftype"] == "eq" and home.get(label, page) != page:
                link = f"[words]({home[label]}.ipynb#{label})"
                message = "equation %s stands on another page: link to it with %s"
                _LOG.warning(message, label, link, location=reference)


def complete(app: Sphinx, document: nodes.document) -> None:
    """Add to a chapter what book.toml and the library know of it.

    Args:
        app: Sphinx.
        document: the page that was read, changed in place.
    """
    page = app.env.docname
    chapters = {chapter.file: chapter for chapter in app.config.book.chapters}
    if page not in chapters:
        return
    subtitle = nodes.paragraph("", chapters[page].title_zh, classes=["subtitle"])
    heading = next(document.findall(nodes.title))
    heading.parent.insert(heading.parent.index(heading) + 1, subtitle)
    for equation in list(document.findall(nodes.math_block)):
        found = app.config.derivations.get((page, equation.get("label")))
        if found:
            note = _in_the_library(page, found)
            equation.parent.insert(equation.parent.index(equation) + 1, note)
    for cell in document.findall(nodes.container):
        if "cell" in cell["classes"]:
            _describe_figures(cell)


def _in_the_library(page: str, found: list[api.Entry]) -> nodes.paragraph:
    note = nodes.paragraph("", "In the library: ", classes=["in-library"])
    for number, entry in enumerate(found):
        link = pending_xref(
            refdomain="std", reftype="ref", reftarget=entry.anchor, refexplicit=True, refdoc=page
        )
        link += nodes.literal("", f"{entry.module}.{entry.name}")
        note += [nodes.Text(", "), link] if number else [link]
    return note


def figure_text(code: str) -> str:
    """Words for a figure, for those who can't see it: titles, labels and axes of its code.

    Args:
        code: of the cell that draws it.

    Returns:
        One line.
    """
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


def _describe_figures(cell: nodes.Element) -> None:
    code = next(cell.findall(nodes.literal_block), None)
    for image in cell.findall(nodes.image):
        image["alt"] = figure_text(code.astext() if code else "")


def link_terms(app: Sphinx, document: nodes.document, page: str) -> None:
    """Link a chapter's first use of each term to the glossary.

    Args:
        app: Sphinx.
        document: the page about to be written, changed in place.
        page: its name.
    """
    if not hasattr(app.env, "book_terms"):
        app.env.book_terms = glossary.terms(app.env.get_doctree(glossary.PAGE))
    if page == glossary.PAGE:
        glossary.terms(document)  # gives the entries their ids
    elif page in {chapter.file for chapter in app.config.book.chapters}:
        address = app.builder.get_relative_uri(page, glossary.PAGE)
        glossary.link_first_uses(document, app.env.book_terms, address)


def install(app: Sphinx, book: Book, root: Path) -> None:
    """Attach everything to Sphinx.

    Args:
        app: Sphinx.
        book: the manifest.
        root: the repository.
    """
    languages["en"] = EnglishAndChinese
    app.add_config_value("book", book, "")
    app.add_config_value("derivations", api.derivations(api.entries(root)), "")
    app.connect("env-get-updated", number_anew, priority=900)  # after Sphinx's own numbering
    app.connect("env-check-consistency", refuse_far_equations)
    app.connect("doctree-read", complete)
    app.connect("doctree-resolved", link_terms)
