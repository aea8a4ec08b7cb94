"""`python -m tools.book.jupyter_book`: myst.yml, so that Jupyter Book 2 reads the same chapters."""

import yaml

from tools import ROOT, command, write_file
from tools.book.parts import PARTS, chapters_of
from tools.study import manifest

FILE = "myst.yml"
HEAD = "# Written by `python -m tools.book.jupyter_book` from book.toml.\n"


def config(book: manifest.Book) -> str:
    """The text of myst.yml."""
    parts = [
        {
            "title": PARTS[key].title,
            "children": [{"file": f"chapters/{chapter.file}.ipynb"} for chapter in chapters],
        }
        for key, chapters in chapters_of(book).items()
    ]
    parts[-1]["children"].append({"file": "site/glossary.md"})
    project = {
        "title": book.title,
        "subtitle": book.title_zh,
        "authors": list(book.authors),
        **({"github": book.repository} if book.repository else {}),
        "license": {"content": "CC-BY-4.0", "code": "MIT"},
        "bibliography": ["references.bib"],
        "toc": [{"file": "README.md"}, *(part for part in parts if part["children"])],
    }
    site = {"template": "book-theme", "options": {"favicon": "site/static/favicon.svg"}}
    settings = {"version": 1, "project": project, "site": site}
    return HEAD + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=100)


def main() -> int:
    """Write this repository's myst.yml."""
    write_file(ROOT / FILE, config(manifest.load()).encode())
    return 0


if __name__ == "__main__":
    command(main)
