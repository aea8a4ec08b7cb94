"""Check the links of a built book without a browser: every target and every place must exist."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page and the places in it that a link can lead to.

    Attributes:
        links: (line, address) of each link, image, script and style.
        places: ids and names.
    """

    def __init__(self, text: str):
        """Read a page.

        Args:
            text: its HTML.
        """
        super().__init__()
        self.links: list[tuple[int, str]] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element.

        Args:
            tag: its kind.
            attrs: its attributes.
        """
        values = dict(attrs)
        self.places |= {values[key] for key in ("id", "name") if values.get(key)}
        link = values.get("href") or values.get("src")
        if link and tag in {"a", "img", "script", "link"}:
            self.links.append((self.getpos()[0], link))


def read(folder: Path) -> dict[str, Page]:
    """Read all pages of a book.

    Args:
        folder: where they lie.

    Returns:
        The pages by file name.
    """
    return {path.name: Page(path.read_text(encoding="utf-8")) for path in folder.glob("*.html")}


def dead(folder: Path) -> list[str]:
    """Find the links inside a book that lead nowhere.

    Args:
        folder: with the built pages.

    Returns:
        Page, line and address of each.
    """
    pages = read(folder)
    found = []
    for name, page in pages.items():
        for line, address in page.links:
            parts = urlsplit(address)
            if not parts.scheme and not parts.netloc:
                target = unquote(parts.path) or name
                exists = (folder / target).is_file()
                places = pages[target].places if target in pages else {""}
                if not exists or (parts.fragment and unquote(parts.fragment) not in places):
                    found.append(f"{name}, line {line}: {address}")
    return found
