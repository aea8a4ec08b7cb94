"""Sources: links to them from the library, and under each on its page where it is used."""

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator

from docutils import nodes
from pybtex.database import Entry
from sphinx.application import Sphinx

from tools.book import library

PAGE = "bibliography"
ANCHOR = "cite-{key}"  # of a source there
_NAME = r"[A-Z][\w-]+"
_CITED = re.compile(rf"((?:{_NAME}, )*{_NAME}(?:,? and {_NAME}| et al\.)?) (\d{{4}})\b")
_LOOSE_END = re.compile(r"(?:[\s,.:(]|\b(?:of|and|as in))+$")


def surnames(entry: Entry) -> list[str]:
    """The authors' surnames in small letters, without accents and braces."""
    return [_plain(" ".join(p.prelast_names + p.last_names)) for p in entry.persons["author"]]


def cited(text: str, known: dict[str, Entry]) -> Iterator[tuple[str, str]]:
    """Keys of the sources that a docstring's `Source:` names, and what it says of the place there.

    "A et al. 2000" has more than two authors, "A, B and C 2000" just these. What fits no source,
    or two, is left out.
    """
    matches = list(_CITED.finditer(text))
    for match, following in itertools.zip_longest(matches, matches[1:]):
        if key := _meant(match, known):
            end = following.start() if following else len(text)
            yield key, _place(text[match.end() : end])


def linked(text: str, known: dict[str, Entry], escape: Callable[[str], str]) -> str:
    """The same text in reStructuredText, each source a link; `escape` readies all between."""
    pieces, end = [], 0
    for match in _CITED.finditer(text):
        if key := _meant(match, known):
            address = f"{PAGE}.html#{nodes.make_id(ANCHOR.format(key=key))}"
            pieces += [escape(text[end : match.start()]), rf"\ `{match[0]} <{address}>`__\ "]
            end = match.end()
    return "".join([*pieces, escape(text[end:])])


def _place(text: str) -> str:
    """What is said before the first semicolon, without a quotation or a bracket that it cuts."""
    text = text.partition(";")[0].lstrip(" ,:)")
    if text.count('"') % 2:
        text = text.rpartition('"')[0]
    if text.count("(") > text.count(")"):
        text = text.rpartition("(")[0]
    return _LOOSE_END.sub("", text)


def _meant(match: re.Match[str], known: dict[str, Entry]) -> str | None:
    keys = [key for key, entry in known.items() if _is_meant(match[1], match[2], entry)]
    return keys[0] if len(keys) == 1 else None


def _is_meant(names: str, year: str, entry: Entry) -> bool:
    authors = surnames(entry)
    if names.endswith(" et al."):
        several = len(authors) > 2 or authors[-1] == "others"
        same = several and _plain(names.removesuffix(" et al.")) == authors[0]
    else:
        same = [_plain(name) for name in re.split(r",? and |, ", names)] == authors
    return same and entry.fields["year"] == year


def by_source(
    found: list[library.Entry], known: dict[str, Entry]
) -> dict[str, list[tuple[library.Entry, str]]]:
    """By a source's key the functions that go back to it, each with the place in the source."""
    by_key: dict[str, list[tuple[library.Entry, str]]] = defaultdict(list)
    for entry in found:
        for key, place in cited(entry.source, known):
            by_key[key].append((entry, place))
    return by_key


def add_uses(app: Sphinx, document: nodes.document) -> None:
    """Write below each source where it is used; `document` is the bibliography."""
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
        line = nodes.paragraph("", f"Used in chapter{'s' if len(chapters[key]) > 1 else ''} ")
        for number, page in enumerate(sorted(chapters[key])):
            line += [nodes.Text(", " if number else ""), _link(app, page, "sources", page[:2])]
        if chapters[key]:
            uses += nodes.list_item("", line)
        for entry, place in functions[key]:
            uses += nodes.list_item("", _function(app, entry, place))
        citation += uses


def _function(app: Sphinx, entry: library.Entry, place: str) -> nodes.paragraph:
    line = nodes.paragraph("", f"{place[:1].upper()}{place[1:]}: " if place else "")
    line += _link(app, entry.page, entry.anchor, entry.short, nodes.literal)
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
