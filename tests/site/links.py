"""Check the links of a built book without a browser: every target and every place must exist."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """(line, address) of each link, image, script and style of a page; the places to lead to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[tuple[int, str]] = []
        self.places: set[str] = set()  # ids and names
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element."""
        values = dict(attrs)
        self.places |= {values[key] for key in ("id", "name") if values.get(key)}
        link = values.get("href") or values.get("src")
        if link and tag in {"a", "img", "script", "link"}:
            self.links.append((self.getpos()[0], link))


def read(folder: Path) -> dict[str, Page]:
    """All pages of a book by file name."""
    return {path.name: Page(path.read_text(encoding="utf-8")) for path in folder.glob("*.html")}


def dead(folder: Path, pages: dict[str, Page]) -> list[str]:
    """Page, line and address of each link inside a book that leads nowhere."""
    found = []
    for name, page in pages.items():
        for line, address in page.links:
            parts = urlsplit(address)
            if not parts.scheme and not parts.netloc:
                target = unquote(parts.path) or name
                exists = target in pages or (folder / target).is_file()
                places = pages[target].places if target in pages else {""}
                if not exists or (parts.fragment and unquote(parts.fragment) not in places):
                    found.append(f"{name}, line {line}: {address}")
    return found
