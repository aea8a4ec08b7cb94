"""`python -m bench.experiments.scenes [--seeds 5] [--only "the minute"] [--save FILE]`.

Chapter 43's painter: a DiT and a text encoder learn together to turn captions, English and Chinese,
into the latents of the autoencoder in chapters/results; its pictures are read by the judge of
`data.scenes`, which learns nothing. Asked for are scenes with pairs of shape and colour that are
not among those trained on. Measured over seeds: what of a caption is right in both languages, what
guidance is worth and what it costs in variety, how many steps are enough, and three edits:
inpainting, image-to-image and a negative prompt.

The result is one file per run, written anew after every training, so that Ctrl-C loses only the one
under way; the same command with `--out` and the unfinished file goes on from there. `--save FILE`
keeps the weights of the last seed.
"""

import argparse
import datetime
import hashlib
import json
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from aigc_lib import checkpoint
from aigc_lib import device as devices
from bench import report
from bench.experiments import painter as painters
from bench.experiments.painter import WEIGHTS, Recipe
from bench.experiments.studio import MEASURES, Studio
from tools import Refusal, command


def play(
    arm: str, recipe: Recipe, seed: int, keep: Callable[[nn.Module, dict], object] | None = None
) -> dict:
    """One training, measured: a row. `keep` is given the painter and what is known before that."""
    start, spent = time.perf_counter(), time.process_time()
    painters.data(recipe, seed)
    row = {"arm": arm, "seed": seed, "steps": recipe.steps}
    row["prepare_seconds"] = time.process_time() - spent
    painter, row["loss"] = painters.fit(recipe, seed)
    row["wall_seconds"] = time.perf_counter() - start
    row["cpu_seconds"] = time.process_time() - spent
    if keep:
        keep(painter, row)
    studio = Studio(painter, recipe, seed)
    return row | {name: measure(studio) for name, measure in MEASURES.items()}


def keeper(path: Path, head: dict) -> Callable[[nn.Module, dict], object]:
    """Write a painter's weights, of half precision, its recipe, and where they come from."""

    def keep(painter: nn.Module, row: dict) -> None:
        half = {name: x.half() for name, x in painter.state_dict().items()}
        record = {key: head[key] for key in ("command", "date", "device", "versions", "threads")}
        tree = {"recipe": head["arms"][row["arm"]], "weights": half, "record": record | row}
        checkpoint.save(path, tree)

    return keep


MINUTE = "the minute"
ARMS = {
    MINUTE: Recipe(),
    "ten minutes": Recipe(steps=6000, muon_lr=0.01, images=40_000),
}
QUICK = {"steps": 20, "images": 200, "asked": 12, "num_steps": 2}


def compare(
    arms: dict[str, Recipe], seeds: int, done: list[dict], keep: Callable | None = None
) -> Iterator[dict]:
    """Train all arms, seed by seed."""
    found = {(row["arm"], row["seed"]) for row in done}
    for seed in range(seeds):
        for arm, recipe in arms.items():
            if (arm, seed) not in found:
                yield play(arm, recipe, seed, keep)


def lines(rows: list[dict]) -> list[str]:
    """For each arm and measure the mean over the seeds and its standard error."""
    out = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        seconds = statistics.fmean(row["cpu_seconds"] for row in own)
        out.append(
            f"{arm}: {len(own)} seeds, {seconds:.0f} CPU seconds each, mean (standard error)"
        )
        for name in MEASURES:
            out += [f"  {name}", *_table([_flat(row[name]) for row in own])]
    return out


def _flat(found: dict) -> dict[tuple[str, str], float]:
    nested = all(isinstance(cells, dict) for cells in found.values())
    rows = found if nested else {"": found} if "all" in found or "with" in found else None
    if rows is None:
        return {(name, "all"): value for name, value in found.items()}
    return {(name, cell): value for name, cells in rows.items() for cell, value in cells.items()}


def _table(each: list[dict]) -> Iterator[str]:
    for name in dict.fromkeys(name for name, _ in each[0]):
        cells = []
        for row, cell in each[0]:
            if row == name:
                values = [found[row, cell] for found in each]
                error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
                cells.append(f"{cell} {statistics.fmean(values):.3f} ({error:.3f})")
        yield f"    {name:14}" + "  ".join(cells)


def _arguments(line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.scenes",
        description="Chapter 43's scenes from captions: what is right, over seeds.",
    )
    parser.add_argument("--seeds", type=int, help="how many, 5; with --quick 1")
    parser.add_argument("--only", nargs="+", default=[MINUTE], metavar="ARM", help=f"{MINUTE!r}")
    parser.add_argument("--out", type=Path, help="the file to write, instead of bench/results/")
    parser.add_argument("--save", type=Path, help="where the last painter's weights go")
    parser.add_argument("--quick", action="store_true", help="few scenes, to see that it runs")
    arguments = parser.parse_args(line)
    seeds = 1 if arguments.quick else 5
    arguments.seeds = seeds if arguments.seeds is None else arguments.seeds
    if unknown := [name for name in arguments.only if name not in ARMS]:
        raise Refusal(f"no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    if arguments.seeds < 1:
        raise Refusal(f"expected at least 1 for --seeds, got {arguments.seeds}")
    for path in (arguments.out, arguments.save):
        if path and path.is_dir():
            raise Refusal(f"expected a file to write, got the folder {path}")
    return arguments


def _head(arguments: argparse.Namespace, arms: dict[str, Recipe]) -> dict:
    words = f"python -m bench.experiments.scenes --seeds {arguments.seeds}"
    if arguments.only != [MINUTE]:
        words += f" --only {shlex.join(arguments.only)}"
    words += " --quick" * arguments.quick
    return {
        "date": datetime.date.today().isoformat(),
        **report.setting(torch.device("cpu"), arguments.quick),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "command": words,
        "seeds": list(range(arguments.seeds)),
        "autoencoder": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()[:8],
        "arms": {name: asdict(recipe) for name, recipe in arms.items()},
    }


def _kept(path: Path, head: dict) -> list[dict]:
    """The rows of a run of the same things that did not come to its end."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"complete": True}
    same = ("autoencoder", "arms", "seeds", "versions", "quick")
    is_this = not old["complete"] and all(old[key] == head[key] for key in same)
    return old["rows"] if is_this else []


def main() -> int:
    """Train and measure as asked, and return 0."""
    arguments = _arguments(sys.argv[1:])
    devices.limit_threads(1)
    arms = {name: ARMS[name] for name in arguments.only}
    if arguments.quick:
        arms = {name: replace(recipe, **QUICK) for name, recipe in arms.items()}
    head = _head(arguments, arms)
    path = arguments.out or report.new_file(head, "scenes")
    content = {**head, "complete": False, "rows": (rows := _kept(path, head))}
    print(f"{content['device']}, torch {torch.__version__}", flush=True)

    keep = keeper(arguments.save, head) if arguments.save else None

    try:
        for row in compare(arms, arguments.seeds, rows.copy(), keep):
            rows.append(row)
            report.write(path, content)
            right = row["captions"]["held out, en"]["all"]
            print(f"seed {row['seed']}  {row['arm']}: {100 * right:.1f} % right", flush=True)
        content["complete"] = True
        report.write(path, content)
    finally:
        print("\n".join(["", *lines(rows), ""]))
        print(f"The result is {path}." if rows else "")
    return 0


if __name__ == "__main__":
    command(main)
