"""Make a built book lighter without changing what a reader sees."""

import io
import re
from pathlib import Path

from PIL import Image

# Names, punctuation and spaces have the colour of the code around them.
_PLAIN = re.compile(r'<span class="[npw]">([^<]*)</span>')


def lighten(html: Path) -> None:
    """Shrink the pictures and the code of a book, in the folder of its pages."""
    pages = {path: path.read_text(encoding="utf-8") for path in html.glob("*.html")}
    renamed = _pictures(html / "_images")
    for path, text in pages.items():
        for old, new in renamed.items():
            text = text.replace(f'"_images/{old}"', f'"_images/{new}"')
        path.write_text(_PLAIN.sub(r"\1", text), encoding="utf-8")


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
