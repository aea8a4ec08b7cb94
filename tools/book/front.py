"""The front page: what fills the comments of site/index.md."""

from tools.book import course_map, filling, teach
from tools.book.parts import PARTS, chapters_of
from tools.study.manifest import Book


def page(book: Book, template: str) -> str:
    """Fill the template, the text of site/index.md, with what book.toml says."""
    content = {
        "title": book.title,
        "title_zh": book.title_zh,
        "first": book.chapters[0].file,
        "builds": _builds(book),
        "map": course_map.svg(book),
        "goals": teach.goals(book),
    }

    return filling.fill(template, content, "site/index.md")


def _builds(book: Book) -> str:
    lines = []
    for key, chapters in chapters_of(book).items():
        if key != "9":
            state = "" if chapters else " *(planned)*"
            lines.append(f"- **{PARTS[key].title}**: {PARTS[key].builds}{state}")
    return "\n".join(lines)
