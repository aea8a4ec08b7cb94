"""Make a built book lighter without changing what a reader sees."""

import io
import re
from pathlib import Path

from PIL import Image

# Names, punctuation and spaces have the colour of the code around them.
_PLAIN = re.compile(r'<span class="[npw]">([^<]*)</span>')
_RULE = re.compile(r"([^{}]+)(\{[^{}]*\})")
# Up to a comma that stands in no bracket; brackets stand in brackets at most twice.
_SELECTOR = re.compile(r"(?:[^,()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))+")


def lighten(html: Path) -> None:
    """Shrink pictures, code and style sheets of a book.

    Args:
        html: the folder with the built pages, changed in place.
    """
    pages = {path: path.read_text(encoding="utf-8") for path in html.glob("*.html")}
    renamed = _pictures(html / "_images")
    for path, text in pages.items():
        for old, new in renamed.items():
            text = text.replace(f'"_images/{old}"', f'"_images/{new}"')
        path.write_text(_PLAIN.sub(r"\1", text), encoding="utf-8")
    _styles(html / "_static", " ".join(pages.values()))


def _pictures(folder: Path) -> dict[str, str]:
    """Write PNGs anew as WebP, no pixel changed, and say what each is called now."""
    renamed = {}
    for path in folder.glob("*.png"):
        picture, smaller = Image.open(path).convert("RGBA"), io.BytesIO()
        picture.save(smaller, "WEBP", lossless=True, exact=True, quality=30, method=2)
        if smaller.tell() < path.stat().st_size:
            new = path.with_suffix(".webp")
            new.write_bytes(smaller.getvalue())
            renamed[path.name] = new.name
            path.unlink()
    return renamed


def _styles(static: Path, pages: str) -> None:
    """Drop the rules for classes that no page and no script names, such as 1950 icons."""
    scripts = " ".join(path.read_text(encoding="utf-8") for path in static.rglob("*.js"))
    used = set(re.findall(r"[\w-]+", pages + scripts))

    def matches(selector: str) -> bool:
        classes = re.findall(r"\.((?:[\w-]|\\.)+)", re.sub(r"\(.*\)", "", selector))
        # Bootstrap puts names with bs- together from pieces.
        return all(name in used or name.startswith("bs-") or "\\" in name for name in classes)

    def keep(rule: re.Match[str]) -> str:
        if rule[1].lstrip().startswith("@"):
            return rule[0]
        selectors = ",".join(filter(matches, _SELECTOR.findall(rule[1])))
        return selectors + rule[2] if selectors else ""

    for path in static.rglob("*.css"):
        style = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.S)
        path.write_text(_RULE.sub(keep, style), encoding="utf-8")
