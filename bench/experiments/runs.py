"""A comparison of trainings, arm by arm and seed by seed, one row each, in a result file.

The file is written anew after every row, so that Ctrl-C loses only the one that is under way; the
same command with `--out` and the unfinished file goes on from there.
"""

import argparse
import datetime
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from aigc_lib import device as devices
from bench import report
from tools import Refusal


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared, and how."""

    name: str  # of the module, and in the file's name
    words: str  # for --help
    arms: dict[str, dict]  # as they stand in the file
    recipe: Callable[[bool], dict]  # what all arms share; True for --quick
    judge: str  # the judge's checksum
    play: Callable[[str, int, bool], dict]  # arm, seed, quick: a row with "arm" and "seed"
    lines: Callable[[list[dict]], list[str]]  # what is printed of the rows
    seeds: int = 5


def run(comparison: Comparison, line: list[str] | None = None) -> int:
    """Compare as asked, and return 0: an arm that learns nothing is a result, not an error."""
    arguments = _arguments(comparison, sys.argv[1:] if line is None else line)
    devices.limit_threads(1)
    head, names = _head(comparison, arguments), arguments.only
    path = arguments.out or report.new_file(head, comparison.name)
    content = {**head, "complete": False, "rows": (rows := _kept(path, head))}
    print(f"{content['device']}, torch {torch.__version__}")
    wanted = [(name, seed) for seed in head["seeds"] for name in names]
    try:
        for name, seed in wanted[len(rows) :]:
            rows.append(comparison.play(name, seed, arguments.quick))
            content["complete"] = len(rows) == len(wanted)
            report.write(path, content)
            print(f"seed {seed}  {name}", flush=True)
    finally:
        print("\n".join(["", *comparison.lines(rows), ""]))
        print(f"The result is {path}." if rows else "")
    return 0


def _arguments(comparison: Comparison, line: list[str]) -> argparse.Namespace:
    program = f"python -m bench.experiments.{comparison.name}"
    parser = argparse.ArgumentParser(prog=program, description=comparison.words)
    parser.add_argument("--seeds", type=int, help=f"how many, {comparison.seeds}; with --quick 1")
    parser.add_argument("--only", nargs="+", default=list(comparison.arms), metavar="ARM")
    parser.add_argument("--out", type=Path, help="the file to write, instead of bench/results/")
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    arguments = parser.parse_args(line)
    if arguments.seeds is None:
        arguments.seeds = 1 if arguments.quick else comparison.seeds
    if unknown := [name for name in arguments.only if name not in comparison.arms]:
        raise Refusal(f"no arm {unknown[0]!r}; there are {', '.join(comparison.arms)}")
    if arguments.seeds < 1:
        raise Refusal(f"expected at least 1 for --seeds, got {arguments.seeds}")
    if arguments.out and arguments.out.is_dir():
        raise Refusal(f"expected a file to write, got the folder {arguments.out}")
    return arguments


def _head(comparison: Comparison, arguments: argparse.Namespace) -> dict:
    words = f"python -m bench.experiments.{comparison.name} --seeds {arguments.seeds}"
    if arguments.only != list(comparison.arms):
        words += f" --only {shlex.join(arguments.only)}"
    return {
        "date": datetime.date.today().isoformat(),
        **report.setting(torch.device("cpu"), arguments.quick),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "command": words + " --quick" * arguments.quick,
        "seeds": list(range(arguments.seeds)),
        "judge": comparison.judge,
        "recipe": comparison.recipe(arguments.quick),
        "arms": {name: comparison.arms[name] for name in arguments.only},
    }


def _kept(path: Path, head: dict) -> list[dict]:
    """The rows of a run of the same things that did not come to its end."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"complete": True}
    same = ("recipe", "arms", "seeds", "judge", "versions", "quick")
    is_this = not old["complete"] and all(old[key] == head[key] for key in same)
    return old["rows"] if is_this else []
