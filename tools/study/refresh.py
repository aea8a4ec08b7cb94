"""`make refresh [CHAPTER=00]`: run chapters and commit to what they print.

A chapter's file is replaced only if every cell ran and nothing in it breaks a rule. Without a name
all chapters run, side by side.
"""

import argparse
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tools import ROOT, Refusal, command, num_workers
from tools.study import manifest, notebooks, reading, readme, rules


def refresh(chapter: manifest.Chapter, root: Path = ROOT, bar: bool = True) -> str:
    """Run one chapter and write it back, normalised; the text says so, and what is still to mend.

    Refused if a cell failed or the result breaks a rule; the file then is as it was.
    """
    path = chapter.notebook(root)
    nb = notebooks.read(path)
    print(f"Running {chapter.file}.", flush=True)
    try:
        seconds = notebooks.execute(nb, path.parent, root, bar)
    except Refusal as refusal:
        raise Refusal(f"{refusal}\n{chapter.file} is as it was.") from None
    nb = notebooks.normalise(nb, seconds)
    if faults := list(rules.cells(nb)):
        raise Refusal("\n".join([*faults, f"{chapter.file} is as it was."]))
    notebooks.write(nb, path)
    faults = rules.chapter_faults(nb, chapter)
    line = f"{chapter.file}: written, {seconds:.0f} s, {path.stat().st_size / 1e3:.0f} kB"
    return "\n".join([line, *(f"  still to mend: {fault}" for fault in faults)])


def refresh_all(book: manifest.Book, root: Path = ROOT) -> Iterator[str]:
    """Run all chapters, longest first, as many at a time as there are cores.

    One that is refused does not stop the others; at the end they are refused together.
    """
    spawn, refused = multiprocessing.get_context("spawn"), []
    with ProcessPoolExecutor(num_workers(), mp_context=spawn) as pool:
        chapters = sorted(book.chapters, key=lambda chapter: -chapter.seconds)
        jobs = [pool.submit(refresh, chapter, root, False) for chapter in chapters]
        try:
            for job in as_completed(jobs):
                try:
                    yield job.result()
                except Refusal as refusal:
                    refused.append(str(refusal))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C has ended those that ran
            raise
    if refused:
        raise Refusal("\n\n".join(refused))


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Refresh the chapter named on the command line, or all, and what is said of their time."""
    parser = argparse.ArgumentParser(prog="make refresh", description=__doc__)
    parser.add_argument("--chapter", default="", help="its number or its file; default: all")
    name = parser.parse_args(arguments).chapter
    book = manifest.load(root)
    try:
        for said in [refresh(manifest.find(book, name), root)] if name else refresh_all(book, root):
            print(said, flush=True)
    finally:
        reading.update(book, root)
        readme.write(root, manifest.load(root))
    return 0


if __name__ == "__main__":
    command(main)
