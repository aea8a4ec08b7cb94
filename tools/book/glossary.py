"""Terms of the glossary, shown with their Chinese names wherever a chapter first uses them."""

import re
from typing import NamedTuple

from docutils import nodes

PAGE = "glossary"
_NO_PROSE = (nodes.literal, nodes.literal_block, nodes.reference, nodes.title, nodes.table)
_CHINESE = re.compile("[\u3400-\u9fff]")


class Term(NamedTuple):
    """One entry of the glossary."""

    anchor: str
    english: tuple[str, ...]  # names, all of which are looked for
    tip: str  # 中文 · what it means


def terms(document: nodes.document) -> list[Term]:
    """Read the entries of the glossary, and give each an id to link to.

    An entry is a definition list's: `entropy, Shannon entropy · 熵`, then its meaning. One without
    Chinese name, or that is there twice, raises ValueError.
    """
    found: list[Term] = []
    seen: set[str] = set()
    for item in document.findall(nodes.definition_list_item):
        heading = item[0].astext()
        english, dot, chinese = (text.strip() for text in heading.partition("·"))
        names = tuple(name.strip() for name in english.split(","))
        if not dot or not _CHINESE.search(chinese):
            raise ValueError(f"glossary: expected 'term · 中文', got {heading!r}")
        if seen & set(names):
            raise ValueError(f"glossary: {heading!r} is there twice")
        seen |= set(names)
        anchor = "term-" + nodes.make_id(names[0])
        if anchor not in item[0]["ids"]:
            item[0]["ids"].append(anchor)
        found.append(Term(anchor, names, f"{chinese} · {item[-1].astext()}"))
    return found


def link_first_uses(document: nodes.document, found: list[Term], address: str) -> None:
    """Turn a page's first use of each term into a link to the glossary, at this address.

    It shows the meaning on hover and on focus.
    """
    # Sphinx has made apostrophes typographic.
    by_name = {name.lower().replace("'", "’"): term for term in found for name in term.english}
    longest_first = sorted(by_name, key=len, reverse=True)
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})(s?)\b", re.IGNORECASE)
    done: set[str] = set()
    for text in list(document.findall(nodes.Text)):
        if _is_prose(text):
            _link_in(text, pattern, by_name, done, address)


def _is_prose(text: nodes.Text) -> bool:
    node = text.parent
    while node is not None and not isinstance(node, nodes.document):
        if isinstance(node, _NO_PROSE):
            return False
        node = node.parent
    return isinstance(text.parent, nodes.paragraph | nodes.strong | nodes.emphasis)


def _link_in(
    text: nodes.Text,
    pattern: re.Pattern[str],
    by_name: dict[str, Term],
    done: set[str],
    address: str,
) -> None:
    content, pieces, end = text.astext(), [], 0
    for match in pattern.finditer(content):
        term = by_name[match[1].lower()]
        if term.anchor not in done:
            done.add(term.anchor)
            link = nodes.reference("", match[0], refuri=f"{address}#{term.anchor}", internal=True)
            link["classes"].append("term")
            link["reftitle"] = term.tip
            pieces += [nodes.Text(content[end : match.start()]), link]
            end = match.end()
    if pieces:
        text.parent.replace(text, [*pieces, nodes.Text(content[end:])])
