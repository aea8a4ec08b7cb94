"""Render the book: `python -m tools.book.site` writes `_build/html/index.html`.

The pages of `site/` and the chapters that book.toml lists are gathered in `_build/src`. Sphinx
then renders them as `site/conf.py` says, and every warning is an error.
"""

import argparse
import functools
import gc
import http.server
import importlib.util
import json
import shutil
import time
from pathlib import Path

from tools import ROOT, Refusal, command
from tools.book import api, assignments, front, lighter, npm, speed, teach
from tools.book.parts import PARTS, chapters_of
from tools.study import manifest, notebooks, rules


def table_of_contents(book: manifest.Book, library: list[str]) -> dict:
    """What sphinx-external-toc reads: the chapters in parts, behind them the other pages.

    `library` names the pages on aigc_lib, the overview first.
    """
    pages = {
        PARTS[key].title: [{"file": chapter.file} for chapter in chapters]
        for key, chapters in chapters_of(book).items()
    }
    pages["Appendix"] += [{"file": "glossary"}, {"file": "bibliography"}]
    inner = {"sections": [{"file": page} for page in library[1:]]} if library[1:] else {}
    pages["Around the course"] = [
        {"file": library[0], **inner},
        {"file": "speed"},
        {"file": "teach", "sections": [{"file": "grading"}]},
    ]
    parts = [{"caption": title, "chapters": files} for title, files in pages.items() if files]
    return {"format": "jb-book", "root": "index", "parts": parts}


def gather(book: manifest.Book, root: Path, src: Path) -> int:
    """Put everything that Sphinx reads into a folder, in place of what was in it; count the pages.

    Refused are a chapter with an output that no reader should see, such as an error, and an
    assignment without its table.
    """
    shutil.rmtree(src, ignore_errors=True)
    src.mkdir(parents=True)
    for chapter in book.chapters:
        for fault in rules.cells(notebooks.read(chapter.notebook(root))):
            raise Refusal(f"chapters/{chapter.file}.ipynb: {fault}")
        shutil.copy(chapter.notebook(root), src)
    if (root / "chapters/results").is_dir():
        shutil.copytree(root / "chapters/results", src / "results")
    for page in root.glob("site/*.md"):
        shutil.copy(page, src)
    library = api.pages(root)
    works = assignments.read(book, root)
    pages = {
        "index": front.page(book, (src / "index.md").read_text(encoding="utf-8")),
        "speed": speed.page(root),
        "teach": teach.page(book, works, (src / "teach.md").read_text(encoding="utf-8")),
        **library,
        "_toc.json": json.dumps(table_of_contents(book, list(library))),
    }
    for name, text in pages.items():
        (src / name).with_suffix(Path(name).suffix or ".md").write_text(text, encoding="utf-8")
    return len(list(src.glob("*.md"))) + len(book.chapters)


def build(root: Path = ROOT) -> int:
    """Render the book into `_build/html` and count its pages; a warning of Sphinx's is refused."""
    from sphinx.cmd.build import build_main  # not at the top: `main` says what to do without it

    src, html, doctrees = (root / "_build" / name for name in ("src", "html", "doctrees"))
    pages = gather(manifest.load(root), root, src)
    shutil.rmtree(html, ignore_errors=True)
    options = ["-W", "--keep-going", "-E", "-q", "-b", "html", "-c", f"{root / 'site'}"]
    # Doctrees live to the end: to look for garbage as often as usual takes a tenth longer.
    gc.set_threshold(50_000, 20, 100)
    if build_main([*options, "-d", f"{doctrees}", f"{src}", f"{html}"]):
        raise Refusal("No book: mend what is named above (x.ipynb:60002 is line 2 of cell 6).")
    lighter.lighten(html)
    return pages


def serve(html: Path, port: int) -> None:
    """Show a built book to this machine's browser until Ctrl-C; port 0 takes a free one."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=html)
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise Refusal(f"Port {port} is not free ({error.strerror}): make serve PORT=…") from None
    with server:
        print(f"http://127.0.0.1:{server.server_port} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


def main() -> int:
    """Build this repository's book and say where it is; with --serve, show it."""
    parser = argparse.ArgumentParser(prog="make book", description=__doc__)
    parser.add_argument("--serve", metavar="PORT", help="show the book on this port")
    arguments = parser.parse_args()
    port = arguments.serve
    if port is not None and not (port.isdecimal() and int(port) < 65536):
        raise Refusal(f"PORT is a number below 65536, got {port!r}")
    if importlib.util.find_spec("sphinx") is None:
        raise Refusal('The book needs Sphinx: pip install -c constraints.txt -e ".[site]"')
    start = time.perf_counter()
    if npm.fetch(npm.MATHJAX, ROOT) is None:
        print("No npm, or no network for it: the book's equations will come from the network.")
    pages = build()
    seconds = time.perf_counter() - start
    print(f"{pages} pages in {seconds:.0f} s: {ROOT / '_build/html/index.html'}", flush=True)
    if port is not None:
        serve(ROOT / "_build/html", int(port))
    return 0


if __name__ == "__main__":
    command(main)
