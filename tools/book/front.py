"""The front page: site/index.md with its comments `<!-- name -->` replaced."""

import re

from tools import Refusal
from tools.book import course_map, teach
from tools.book.parts import PARTS, chapters_of
from tools.manifest import Book

_PLACE = re.compile(r"<!-- (\w+) -->")


def page(book: Book, template: str) -> str:
    """Fill in what book.toml says.

    Args:
        book: the manifest.
        template: the text of site/index.md.

    Returns:
        MyST Markdown.

    Raises:
        Refusal: the template asks for something unknown.
    """
    content = {
        "title": book.title,
        "title_zh": book.title_zh,
        "first": book.chapters[0].file,
        "builds": _builds(book),
        "map": course_map.svg(book),
        "goals": teach.goals(book),
    }

    def replace(match: re.Match[str]) -> str:
        if match[1] not in content:
            raise Refusal(f"site/index.md: {match[0]}: known are {', '.join(content)}")
        return content[match[1]]

    return _PLACE.sub(replace, template)


def _builds(book: Book) -> str:
    lines = []
    for key, chapters in chapters_of(book).items():
        if key != "9":
            state = "" if chapters else " *(planned)*"
            lines.append(f"- **{PARTS[key].title}**: {PARTS[key].builds}{state}")
    return "\n".join(lines)
