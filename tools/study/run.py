"""`make run CHAPTER=00 [RUN=coffee]`: run one chapter without a browser."""

import argparse
from pathlib import Path

from tools import ROOT, Refusal, command
from tools.study import manifest, notebooks


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Run the chapter named on the command line; what ran, even of a failure, is in build/run/."""
    parser = argparse.ArgumentParser(prog="make run", description=__doc__)
    parser.add_argument("--chapter", default="", help="its number or its file")
    parser.add_argument("--tier", default="minute", help=", ".join(notebooks.TIERS))
    options = parser.parse_args(arguments)
    chapter = manifest.find(manifest.load(root), options.chapter)
    nb = notebooks.read(chapter.notebook(root))
    notebooks.set_tier(nb, options.tier)
    result = root / "build" / "run" / f"{chapter.file}.ipynb"
    if options.tier == "gpu" and not _has_cuda():
        raise Refusal("RUN=gpu needs a CUDA device, and there is none here; RUN=coffee runs.")
    print(f"Running the course's {chapter.file}, not the copy in study/, tier {options.tier}.")
    try:
        seconds = notebooks.execute(nb, chapter.notebook(root).parent, root)
    except (Refusal, KeyboardInterrupt):
        notebooks.write(nb, result)
        print(f"Not finished; what ran is in {result.relative_to(root)}.", flush=True)
        raise
    notebooks.write(nb, result)
    print(f"All cells ran, in {seconds:.0f} s. The result is {result.relative_to(root)}.")
    return 0


def _has_cuda() -> bool:
    import torch  # takes a second, and only this tier asks

    return torch.cuda.is_available()


if __name__ == "__main__":
    command(main)
