"""Under each source on the bibliography page: the chapters, functions and equations that use it."""

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator

from docutils import nodes
from pybtex.database import Entry
from sphinx.application import Sphinx

from tools.book import api

PAGE = "bibliography"
_NAME = r"[A-Z][\w-]+"
_CITED = re.compile(rf"((?:{_NAME}, )*{_NAME}(?:,? and {_NAME}| et al\.)?) (\d{{4}})\b")
_LOOSE_END = re.compile(r"(?:[\s,.:(]|\b(?:of|and|as in))+$")


def surnames(entry: Entry) -> list[str]:
    """The authors of a source.

    Args:
        entry: from references.bib.

    Returns:
        Their surnames in small letters, without accents and braces.
    """
    return [_plain(" ".join(p.prelast_names + p.last_names)) for p in entry.persons["author"]]


def cited(text: str, known: dict[str, Entry]) -> Iterator[tuple[str, str]]:
    """Find the sources that a docstring's `Source:` names.

    "A et al. 2000" has more than two authors, "A, B and C 2000" just these. What fits no source,
    or two, is left out.

    Args:
        text: what stands after `Source:`.
        known: the sources by key.

    Yields:
        str: the key, and what the text says of the place in it, or "".
    """
    matches = list(_CITED.finditer(text))
    for match, following in itertools.zip_longest(matches, matches[1:]):
        keys = [key for key, entry in known.items() if _is_meant(match[1], match[2], entry)]
        if len(keys) == 1:
            end = following.start() if following else len(text)
            yield keys[0], _place(text[match.end() : end])


def _place(text: str) -> str:
    """What is said before the first semicolon, without a quotation or a bracket that it cuts."""
    text = text.partition(";")[0].lstrip(" ,:)")
    if text.count('"') % 2:
        text = text.rpartition('"')[0]
    if text.count("(") > text.count(")"):
        text = text.rpartition("(")[0]
    return _LOOSE_END.sub("", text)


def _is_meant(names: str, year: str, entry: Entry) -> bool:
    authors = surnames(entry)
    if names.endswith(" et al."):
        several = len(authors) > 2 or authors[-1] == "others"
        same = several and _plain(names.removesuffix(" et al.")) == authors[0]
    else:
        same = [_plain(name) for name in re.split(r",? and |, ", names)] == authors
    return same and entry.fields["year"] == year


def by_source(
    library: list[api.Entry], known: dict[str, Entry]
) -> dict[str, list[tuple[api.Entry, str]]]:
    """Which functions go back to a source.

    Args:
        library: from `api.entries`.
        known: the sources by key.

    Returns:
        By key the functions, each with the place in the source.
    """
    found: dict[str, list[tuple[api.Entry, str]]] = defaultdict(list)
    for entry in library:
        for key, place in cited(entry.source, known):
            found[key].append((entry, place))
    return found


def add_uses(app: Sphinx, document: nodes.document) -> None:
    """Write below each source where it is used.

    Args:
        app: Sphinx.
        document: the bibliography about to be written, changed in place.
    """
    domain = app.env.get_domain("cite")
    keys = {citation.citation_id: citation.key for citation in domain.citations}
    known = {citation.key: citation.entry for citation in domain.citations}
    chapters: dict[str, set[str]] = defaultdict(set)
    for reference in domain.citation_refs:
        for target in reference.targets:
            chapters[target.key].add(reference.docname)
    functions = by_source(app.config.library, known)
    for citation in document.findall(nodes.citation):
        key = keys[citation["ids"][0]]
        uses = nodes.bullet_list(classes=["uses"])
        several = "s" if len(chapters[key]) > 1 else ""
        line = nodes.paragraph("", f"Used in chapter{several} ")
        for number, page in enumerate(sorted(chapters[key])):
            line += [nodes.Text(", " if number else ""), _link(app, page, "sources", page[:2])]
        uses += nodes.list_item("", line)
        for entry, place in functions[key]:
            uses += nodes.list_item("", _function(app, entry, place))
        citation += uses


def _function(app: Sphinx, entry: api.Entry, place: str) -> nodes.paragraph:
    line = nodes.paragraph("", f"{place[:1].upper()}{place[1:]}: " if place else "")
    line += _link(app, entry.page, entry.anchor, f"{entry.module}.{entry.name}", nodes.literal)
    if entry.derived:
        page, label = entry.derived
        _, anchor, title = app.env.domaindata["std"]["labels"][label]
        line += [nodes.Text(", derived in "), _link(app, page, anchor, title)]
    return line


def _link(app: Sphinx, page: str, anchor: str, text: str, kind=nodes.inline) -> nodes.reference:
    address = f"{app.builder.get_relative_uri(PAGE, page)}#{anchor}"
    return nodes.reference("", "", kind("", text), refuri=address, internal=True)


def _plain(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name.replace("{", "").replace("}", ""))
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).lower()
