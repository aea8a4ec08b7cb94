"""What Sphinx is taught about this book: numbers, links between chapters and library, glossary."""

from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.search import languages
from sphinx.util import logging

from tools.book import assignments, docstrings, figures, glossary, library, sources
from tools.book.assignments import Assignment
from tools.book.search import EnglishAndChinese
from tools.study.manifest import Book
from tools.study.notebooks import DEEPER

_LOG = logging.getLogger(__name__)


def number_anew(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Count each page's equations, theorems, exercises and figures from one, as JupyterLab does.

    Equations become places to link to: `[](20_elbo.ipynb#eq-gap)` in Markdown, in the library's
    docstrings "20_elbo eq-gap". No page is named that would have to be read again.
    """
    for kinds in env.toc_fignumbers.values():
        for numbers in kinds.values():
            for place, label in enumerate(numbers, 1):
                numbers[label] = (place,)
    labels = env.domaindata["std"]["labels"]
    for label, (page, _) in env.domaindata["math"]["objects"].items():
        node_id = nodes.make_id(f"equation-{label}")
        number = env.toc_fignumbers[page]["displaymath"][node_id][0]
        place = (page, node_id, f"chapter {page[:2]}, equation ({number})")
        labels[label] = labels[f"{page} {label}"] = place
    return []


def refuse_far_references(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of `{eq}`, `{ref}` and their kin with a label of another chapter.

    A number alone says nothing there, and JupyterLab does not even find it.
    """
    home = {label: place[0] for label, place in env.domaindata["std"]["anonlabels"].items()}
    home |= {label: place[0] for label, place in env.domaindata["std"]["labels"].items()}
    home |= {label: proof["docname"] for label, proof in getattr(env, "proof_list", {}).items()}
    chapters = {chapter.file for chapter in app.config.book.chapters}
    for page in chapters & env.all_docs.keys():
        for reference in env.get_doctree(page).findall(pending_xref):
            label, kind = reference["reftarget"], reference["reftype"]
            if kind in ("eq", "ref", "numref") and home.get(label, page) in chapters - {page}:
                link = f"[words]({home[label]}.ipynb#{label})"
                message = "%s stands on another page: link to it with %s"
                _LOG.warning(message, label, link, location=reference)


def complete(app: Sphinx, document: nodes.document) -> None:
    """Add to a chapter that was just read what book.toml and the library know of it."""
    page = app.env.docname
    chapters = {chapter.file: chapter for chapter in app.config.book.chapters}
    if page not in chapters:
        return
    subtitle = nodes.paragraph("", chapters[page].title_zh, classes=["subtitle"])
    heading = next(document.findall(nodes.title))
    heading.parent.insert(heading.parent.index(heading) + 1, subtitle)
    for title in document.findall(nodes.title):
        if DEEPER.match(f"# {title.astext()}"):
            title.parent["classes"].append("deeper")  # book.js lets readers fold it away
    if work := app.config.assignments.get(page):
        goals = next(s for s in document.findall(nodes.section) if "goals" in s["ids"])
        goals += _assignment(page, work)
    for equation in list(document.findall(nodes.math_block)):
        found = app.config.derivations.get((page, equation.get("label")))
        if found:
            note = _in_the_library(page, found)
            equation.parent.insert(equation.parent.index(equation) + 1, note)
    for cell in document.findall(nodes.container):
        if "cell" in cell["classes"]:
            figures.describe(cell)


def _assignment(page: str, work: Assignment) -> nodes.paragraph:
    text = f", {work.points} points, {work.minutes} minutes."
    note = nodes.paragraph("", nodes.strong("", "Assignment:"), classes=["assignment"])
    link = pending_xref(
        refdomain="std", reftype="ref", reftarget="assignments", refexplicit=True, refdoc=page
    )
    link += nodes.inline("", work.title)
    note += [nodes.Text(" "), link, nodes.Text(text)]
    return note


def _in_the_library(page: str, found: list[library.Entry]) -> nodes.paragraph:
    note = nodes.paragraph("", "In the library: ", classes=["in-library"])
    for number, entry in enumerate(found):
        link = pending_xref(
            refdomain="py", reftype="obj", reftarget=entry.anchor, refexplicit=True, refdoc=page
        )
        link += nodes.literal("", entry.short)
        note += [nodes.Text(", "), link] if number else [link]
    return note


def finish(app: Sphinx, document: nodes.document, page: str) -> None:
    """Put captions under a chapter's figures, and link its first use of each term.

    The bibliography learns where each source is used.
    """
    if not hasattr(app.env, "book_terms"):
        app.env.book_terms = glossary.terms(app.env.get_doctree(glossary.PAGE))
    if page == glossary.PAGE:
        glossary.terms(document)  # gives the entries their ids
    elif page == sources.PAGE:
        sources.add_uses(app, document)
    elif page in {chapter.file for chapter in app.config.book.chapters}:
        figures.add_captions(document)
        address = app.builder.get_relative_uri(page, glossary.PAGE)
        glossary.link_first_uses(document, app.env.book_terms, address)


def install(app: Sphinx, book: Book, root: Path) -> None:
    """Attach everything to Sphinx."""
    languages["en"] = EnglishAndChinese
    app.add_config_value("book", book, "")
    entries = library.entries(root)
    app.add_config_value("assignments", assignments.read(book, root), "")
    app.add_config_value("library", entries, "")
    app.add_config_value("derivations", library.derivations(entries), "")
    app.connect("env-get-updated", number_anew, priority=900)  # after Sphinx's own numbering
    app.connect("env-check-consistency", refuse_far_references)
    app.connect("autodoc-skip-member", docstrings.skip)
    app.connect("autodoc-process-docstring", docstrings.show)
    app.connect("doctree-read", complete)
    app.connect("doctree-resolved", finish)
