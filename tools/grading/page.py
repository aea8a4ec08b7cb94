"""Text of notebooks as nbgrader shows it, to students and to markers: without network and scripts.

Formulas become MathML, which browsers draw by themselves. What a student wrote is sanitized.
"""

import copy
import html
import re
from typing import Any

import bleach
from bs4 import BeautifulSoup
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from jinja2 import pass_context
from jinja2.runtime import Context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode

TAGS = {
    *bleach.ALLOWED_TAGS,
    *("p", "br", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "div", "span", "pre", "del", "img"),
    *("table", "thead", "tbody", "tr", "th", "td", "sub", "sup"),
}
ATTRIBUTES = {"a": ["href", "title"], "img": ["src", "alt", "title"], "*": ["class", "id"]}
PROTOCOLS = {*bleach.ALLOWED_PROTOCOLS, "data"}
ROLE = re.compile(r"\{[a-z][\w:-]*\}`(?:([^`<]+?) *<[^`]*>|([^`]*))`")
EQUATION = re.compile(r"^\$\$ \(([\w:-]+)\)$", re.M)
PLACE = re.compile("\ue000(\\d+)\ue001")  # private characters: where a formula will stand
STYLE = """math { font-size: 105%; }
math[display="block"] { margin: 0.6em 0; }
div.number { text-align: right; margin-top: -2em; }
.rendered_html th, .rendered_html td { padding: 0.1em 0.8em; }
mtable.ams-align > mtr > mtd:nth-child(odd) { text-align: right; }
mtable.ams-align > mtr > mtd:nth-child(even) { text-align: left; }
"""


class Renderer(IPythonRenderer):
    """Markdown with formulas left out, to be put in when the rest is sanitized."""

    def __init__(self, **settings: Any):
        super().__init__(escape=False, **settings)
        self.formulas: list[str] = []

    def _keep(self, tex: str, block: bool) -> str:
        self.formulas.append(mathml(tex, block))
        return f"\ue000{len(self.formulas) - 1}\ue001"

    def block_math(self, body: str) -> str:
        """A displayed formula."""
        return self._keep(body, True)

    def inline_math(self, body: str) -> str:
        """A formula in a line of text."""
        return self._keep(body, False)

    def latex_environment(self, name: str, body: str) -> str:
        """A displayed formula of several lines."""
        return self._keep(rf"\begin{{{name}}}{body}\end{{{name}}}", True)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        """A picture, or its name where it was not handed in."""
        missing = url.startswith("attachment:") and url[11:] not in self.attachments
        return f"[{html.escape(url[11:])}]" if missing else super().image(text, url, title)


def mathml(tex: str, block: bool) -> str:
    """A formula as MathML, or as it was written where the converter does not know it."""
    plain = re.sub(r"\\[bB]igg?[lrm]?(?![A-Za-z])", "", tex)
    plain = re.sub(r"\\[dt]?frac *([A-Za-z\d]) *([A-Za-z\d])", r"\\frac{\1}{\2}", plain)
    plain = re.sub(r"\\dots(?![A-Za-z])", r"\\ldots", plain)
    plain = plain.strip()
    if block and plain.count("{aligned}") == 2:  # the converter aligns by itself
        plain = re.sub(r"^\\begin\{aligned\}(.*)\\end\{aligned\}$", r"\1", plain, flags=re.S)
    try:
        return re.sub(r">\s+<", "><", tex2mathml(plain, as_block=block))
    except (MathError, SyntaxError, ValueError, LookupError, AttributeError, RecursionError):
        written = f"<code>{html.escape(tex.strip())}</code>"
        return f"<div>{written}</div>" if block else written


@pass_context
def markdown2html(context: Context, source: str) -> str:
    """Markdown as HTML that calls nobody: roles reduced to their words, formulas as MathML."""
    renderer = Renderer(attachments=context.get("cell", {}).get("attachments", {}))
    renderer.exclude_anchor_links = True
    plain = ROLE.sub(lambda role: role[1] or role[2], PLACE.sub("", source))
    text = MarkdownWithMath(renderer=renderer).render(plain)
    text = bleach.clean(text, tags=TAGS, attributes=ATTRIBUTES, protocols=PROTOCOLS)
    known = dict(enumerate(renderer.formulas))
    return PLACE.sub(lambda place: known.get(int(place[1]), ""), text)


def numbered(nb: NotebookNode) -> NotebookNode:
    """A copy whose equations are numbered, as JupyterLab and the book number them."""
    nb = copy.deepcopy(nb)
    texts = [cell for cell in nb.cells if cell.cell_type == "markdown"]
    names = [name for cell in texts for name in EQUATION.findall(cell.source)]
    number = {name: names.index(name) + 1 for name in names}
    for cell in texts:
        cell.source = EQUATION.sub(
            lambda m: f'$$\n\n<div class="number">({number[m[1]]})</div>\n\n', cell.source
        )
        for name, n in number.items():
            cell.source = cell.source.replace(f"{{eq}}`{name}`", f"({n})")
    return nb


class Page(HTMLExporter):
    """A student's feedback: one file that needs no network, whose tests bear their tasks' names."""

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict | None = None, **settings: Any
    ) -> tuple[str, dict]:
        """Let nbconvert make the page, then name its parts and take the scripts out."""
        text, resources = super().from_notebook_node(numbered(nb), resources, **settings)
        soup, named = BeautifulSoup(text, "html.parser"), resources["labels"]
        for script in soup("script"):
            script.decompose()
        for link in soup.select("#toc a[href]"):
            _, comment, name = link["href"].rpartition("#comment-")
            name = name.removeprefix("#")
            link.string = named.get(name, name) + (", comment" if comment else "")
        for code in soup.select(".nbgrader-label code"):
            code.parent.string = named.get(code.string, code.string)
        soup.head.append(soup.new_tag("style"))
        soup.head.contents[-1].string = STYLE
        return str(soup), resources
