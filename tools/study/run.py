"""`make run CHAPTER=00 [RUN=coffee]`: run one chapter without a browser."""

import argparse

from tools import ROOT, Refusal, command
from tools.study import manifest, notebooks


def main() -> int:
    """Run the chapter named on the command line; the result goes to build/run/.

    Returns:
        The exit code, 1 if a cell failed.
    """
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument("--chapter", default="", help="its number or its file")
    parser.add_argument("--tier", default="minute", help=", ".join(notebooks.TIERS))
    arguments = parser.parse_args()
    chapter = manifest.find(manifest.load(), arguments.chapter)
    nb = notebooks.read(chapter.notebook())
    notebooks.set_tier(nb, arguments.tier)
    result = ROOT / "build" / "run" / f"{chapter.file}.ipynb"
    print(f"Running {chapter.file}, tier {arguments.tier}.", flush=True)
    try:
        seconds = notebooks.execute(nb, chapter.notebook().parent)
    except (Refusal, KeyboardInterrupt):
        notebooks.write(nb, result)
        print(f"Not finished; what ran is in {result.relative_to(ROOT)}.", flush=True)
        raise
    notebooks.write(nb, result)
    print(f"All cells ran, in {seconds:.0f} s. The result is {result.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    command(main)
