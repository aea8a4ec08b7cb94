"""Render the book: `python -m tools.site` writes `_build/html/index.html`.

The pages of `site/` and the chapters that book.toml lists are gathered in `_build/src`. Sphinx
then renders them as `site/conf.py` says, and every warning is an error.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from tools import ROOT, Refusal, command, manifest

PARTS = {  # by the first digit of a chapter's number
    "0": "Orientation",
    "1": "Text",
    "2": "Latent variables",
    "3": "Adversarial",
    "4": "Diffusion",
    "5": "Sound, motion, many modalities",
    "6": "In practice",
    "9": "Appendix",
}

MATHJAX = "3.2.2"
MATHJAX_FILES = ("tex-mml-chtml.js", "output/chtml/fonts/", "input/tex/extensions/")


def table_of_contents(book: manifest.Book) -> dict:
    """Group the chapters into parts.

    Args:
        book: the manifest.

    Returns:
        The contents in the form that sphinx-external-toc reads.

    Raises:
        Refusal: a chapter's number belongs to no part.
    """
    pages: dict[str, list[str]] = {part: [] for part in PARTS}
    for chapter in book.chapters:
        if chapter.number[0] not in PARTS:
            raise Refusal(f"book.toml: chapter {chapter.file!r}: tools/site.py has no part for it")
        pages[chapter.number[0]].append(chapter.file)
    pages["9"].append("bibliography")
    parts = [
        {"caption": PARTS[part], "chapters": [{"file": file} for file in files]}
        for part, files in pages.items()
        if files
    ]
    return {"format": "jb-book", "root": "index", "parts": parts}


def gather(book: manifest.Book, root: Path, src: Path) -> int:
    """Copy everything that Sphinx reads into one folder.

    Args:
        book: the manifest.
        root: the repository.
        src: the folder to fill; what was in it is removed.

    Returns:
        The number of pages.
    """
    shutil.rmtree(src, ignore_errors=True)
    src.mkdir(parents=True)
    pages = [*root.glob("site/*.md"), *(chapter.notebook(root) for chapter in book.chapters)]
    for page in pages:
        shutil.copy(page, src)
    if (root / "chapters/results").is_dir():
        shutil.copytree(root / "chapters/results", src / "results")
    (src / "_toc.json").write_text(json.dumps(table_of_contents(book)), encoding="utf-8")
    return len(pages)


def mathjax(root: Path) -> Path | None:
    """Keep the part of MathJax that the book needs, fetched once through npm.

    Args:
        root: the repository.

    Returns:
        The folder under `build/` that site/conf.py copies from, or None where npm cannot fetch it.
    """
    home = root / "build" / f"mathjax-{MATHJAX}"
    if home.is_dir():
        return home
    npm = shutil.which("npm")
    if npm is None:
        return None
    print(f"Fetching MathJax {MATHJAX} with npm, once (6 MB)", flush=True)
    home.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as scratch:
        pack = [npm, "pack", f"mathjax@{MATHJAX}", "--fetch-retries=0", "--fetch-timeout=60000"]
        if subprocess.run(pack, cwd=scratch, capture_output=True, check=False).returncode:
            return None
        fresh = Path(scratch, "fresh")
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            for member in archive.getmembers():
                member.name = member.name.removeprefix("package/es5/")
                if member.name.startswith(MATHJAX_FILES):
                    archive.extract(member, fresh / "mathjax", filter="data")
        try:
            os.replace(fresh, home)  # the whole folder or none
        except OSError:
            if not home.is_dir():  # nobody else put it there meanwhile
                raise
    return home


def build(root: Path = ROOT) -> int:
    """Render the book into `_build/html`.

    Args:
        root: the repository.

    Returns:
        The number of pages.

    Raises:
        Refusal: book.toml is wrong, or Sphinx printed a warning.
    """
    src, html, doctrees = (root / "_build" / name for name in ("src", "html", "doctrees"))
    pages = gather(manifest.load(root), root, src)
    shutil.rmtree(html, ignore_errors=True)
    sphinx = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-E", "-q", "-b", "html"]
    run = subprocess.run([*sphinx, "-c", root / "site", "-d", doctrees, src, html], check=False)
    if run.returncode:
        raise Refusal("No book: mend what is named above (x.ipynb:60002 is line 2 of cell 6).")
    return pages


def main() -> int:
    """Build this repository's book and say where it is.

    Returns:
        The exit code.
    """
    if importlib.util.find_spec("sphinx") is None:
        raise Refusal('The book needs Sphinx: pip install -c constraints.txt -e ".[site]"')
    start = time.perf_counter()
    if mathjax(ROOT) is None:
        print("npm could not fetch MathJax: the book's equations will come from the network.")
    pages = build()
    seconds = time.perf_counter() - start
    print(f"{pages} pages in {seconds:.0f} s: {ROOT / '_build/html/index.html'}")
    return 0


if __name__ == "__main__":
    command(main)
