"""`make refresh [CHAPTER=00]`: run chapters and commit to what they print.

A chapter's file is replaced only if every cell ran and nothing in it breaks a rule.
"""

import argparse

from tools import ROOT, Refusal, command
from tools.study import manifest, notebooks, readme, rules


def refresh(chapter: manifest.Chapter) -> str:
    """Run one chapter and write it back, normalised.

    Args:
        chapter: which.

    Returns:
        One line that says what was done.

    Raises:
        Refusal: a cell failed, or the result breaks a rule; the file is as it was.
    """
    path = chapter.notebook()
    nb = notebooks.read(path)
    print(f"Running {chapter.file}.", flush=True)
    try:
        seconds = notebooks.execute(nb, path.parent)
    except Refusal as refusal:
        raise Refusal(f"{refusal}\n{chapter.file} is as it was.") from None
    nb = notebooks.normalise(nb, seconds)
    if faults := list(rules.cells(nb)):
        raise Refusal("\n".join([*faults, f"{chapter.file} is as it was."]))
    notebooks.write(nb, path)
    return f"{chapter.file}: written, {seconds:.0f} s, {path.stat().st_size / 1e3:.0f} kB"


def main() -> int:
    """Refresh the chapter named on the command line, or all, and the table in the READMEs.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="make refresh", description=__doc__)
    parser.add_argument("--chapter", default="", help="its number or its file; default: all")
    name = parser.parse_args().chapter
    book = manifest.load()
    for chapter in [manifest.find(book, name)] if name else book.chapters:
        print(refresh(chapter), flush=True)
        for fault in rules.chapter_faults(notebooks.read(chapter.notebook()), chapter):
            print(f"  still to mend: {fault}")
    readme.write(ROOT, book)
    return 0


if __name__ == "__main__":
    command(main)
