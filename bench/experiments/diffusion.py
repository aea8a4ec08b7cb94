"""`python -m bench.experiments.diffusion [--seeds 5] [--only "the recipe" …] [--jobs 1]`.

One U-Net learns digits by diffusion: by chapter 40's recipe, and as Ho et al. did, under their two
losses, the simple one and the one with the bound's own weights, which stand before the error or
say how often a level is drawn. These three differ in that alone; all four share data, optimizer,
number of steps and first weights. Two numbers tell what a loss is worth: the bound on −log p in
bits per pixel, and what the judge says of samples. The recipe's nets are sampled in three ways,
with few and with many questions to the net.

`--jobs` trains so many side by side, each with one thread. The result is one file per run, written
anew after every training, so that Ctrl-C loses only those that are under way; the same command with
`--out` and the unfinished file goes on from there.
"""

import argparse
import datetime
import functools
import json
import multiprocessing
import os
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from aigc_lib import device as devices
from aigc_lib import schedules, train
from aigc_lib.data.glyphs import glyphs
from aigc_lib.ema import EMA
from aigc_lib.metrics import images as measures
from aigc_lib.models.diffusion.unet import UNet, UNetConfig
from aigc_lib.models.vision.judge import load_judge
from aigc_lib.objectives.diffusion import bits_per_dim, bound_terms, diffusion_loss
from aigc_lib.sampling.diffusion import ancestral, ddim, exponential
from bench import report
from tools import Refusal, command

SIDE, NOISE_STEPS = 16, 1000
PIXELS = SIDE * SIDE
COSINE, LINEAR = schedules.cosine(NOISE_STEPS), schedules.linear(NOISE_STEPS)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all arms share: chapter 40's minute."""

    width: int = 32  # of the U-Net with maps of 8 × 8 and 4 × 4, without attention
    batch: int = 32
    steps: int = 3000
    lr: float = 4e-3  # AdamW's; it rises for 50 steps, then falls along half a cosine to 0
    decay: float = 0.998  # of the average of the weights
    images: int = 20_000  # to train on, of the full preset
    samples: int = 1000  # that are judged, against as many fresh images
    bounded: int = 64  # fresh images, rounded to 8 bits, whose bound is estimated


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What the net predicts of which noise, how its error weighs at each t, how t is drawn."""

    words: str
    predicts: str
    schedule: schedules.Discrete
    weights: Tensor  # (S,), of the mean squared error of what is predicted
    chances: Tensor  # (S,), in proportion to which the levels are drawn


def _v_like(most: float = 100.0) -> Tensor:
    """1/σ², which turns an error of x₀ into one of v, where it does not exceed `most`."""
    return (1 / (1 - COSINE.alpha_bars)).clamp(max=most)


def _bell(middle: float, spread: float) -> Tensor:
    """The density of t/S, if its logit is normal."""
    u = (torch.arange(NOISE_STEPS, dtype=torch.float64) + 0.5) / NOISE_STEPS
    return torch.exp(-0.5 * ((u.logit() - middle) / spread) ** 2) / (u * (1 - u))


def _bound() -> Tensor:
    """β/(2 α (1 − ᾱ)) an error of ε costs in the bound (Ho et al. 2020, equation 12, σ² = β)."""
    beta = LINEAR.beta
    return beta / (2 * (1 - beta) * (1 - LINEAR.alpha_bars))


WHOLE, EVEN = "the recipe", torch.ones(NOISE_STEPS, dtype=torch.float64)
ARMS = {
    WHOLE: Arm(
        words="x₀ predicted, weighted by 1/σ² up to 100; cosine; t drawn about the middle",
        predicts="x0",
        schedule=COSINE,
        weights=_v_like(),
        chances=_bell(0.3, 0.9),
    ),
    "simple": Arm(
        words="ε predicted, unweighted; linear; all t alike",
        predicts="eps",
        schedule=LINEAR,
        weights=EVEN,
        chances=EVEN,
    ),
    "bound": Arm(
        words="ε predicted, weighted as in the bound; linear; all t alike",
        predicts="eps",
        schedule=LINEAR,
        weights=_bound(),
        chances=EVEN,
    ),
    "bound, drawn": Arm(
        words="ε predicted, unweighted; linear; t drawn by its weight in the bound",
        predicts="eps",
        schedule=LINEAR,
        weights=EVEN,
        chances=_bound(),
    ),
}
COUNTS = {
    "ancestral": (10, 20, 50),
    "DDIM": (5, 10, 15, 20, 50),
    "2M": (5, 8, 10, 15, 20),
}
WAYS = {
    "ancestral": functools.partial(ancestral, variance="beta_tilde"),
    "DDIM": ddim,
    "2M": exponential,
}
USUAL = ("ancestral 50", "DDIM 50", "2M 15")  # how every arm is sampled; the recipe in all ways


def even_in_snr(schedule: schedules.Discrete, count: int, noisiest: float = -9.0) -> list[int]:
    """S − 1, then falling times whose log-SNR are even from about `noisiest` to that of t = 0."""
    log_snr = torch.logit(schedule.alpha_bars)
    wanted = torch.linspace(noisiest, log_snr[0].item(), count, dtype=torch.float64)
    times = (log_snr[:, None] - wanted).abs().argmin(0).tolist()
    return sorted({schedule.num_steps - 1, *times[1:]}, reverse=True)


@functools.cache
def _data(seed: int, images: int, samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    seen = glyphs(images, draws, size=SIDE, preset="full")
    fresh = glyphs(2 * samples, draws, size=SIDE, preset="full")
    return 2 * seen.images - 1, seen.labels, fresh.images, fresh.labels


def new_net(recipe: Recipe, seed: int) -> UNet:
    """The net, which with one seed starts alike in all arms."""
    devices.seed_everything(seed)
    net = UNet(UNetConfig(width=recipe.width, num_heads=0, num_classes=10))
    return net.to(memory_format=torch.channels_last)


def times_of(arm: Arm, count: int, draws: torch.Generator) -> Tensor:
    """One time from each of `count` equally likely slices: a batch has all levels of noise."""
    u = (torch.arange(count) + torch.rand(count, generator=draws)) / count
    ends = arm.chances.cumsum(0)
    return torch.searchsorted(ends, u * ends[-1], right=True).clamp(max=len(ends) - 1)


def loss_of(
    arm: Arm, recipe: Recipe, net: UNet, images: Tensor, labels: Tensor, draws: torch.Generator
) -> Callable[[int], Tensor]:
    """The weighted squared error per pixel, of a batch drawn anew at each step."""

    def loss_fn(step: int) -> Tensor:
        chosen = torch.randint(len(images), (recipe.batch,), generator=draws)
        x0, t = images[chosen], times_of(arm, recipe.batch, draws)
        eps = torch.randn(x0.shape, generator=draws)
        x_t = arm.schedule.noised(x0, t, eps)
        output = net(x_t, arm.schedule.condition(t), labels[chosen])
        target = {"eps": eps, "x0": x0}[arm.predicts]
        return diffusion_loss(output, target, arm.weights[t].float()).mean() / PIXELS

    return loss_fn


def fit(arm: Arm, recipe: Recipe, seed: int) -> tuple[UNet, float]:
    """The average of a trained net, and the mean loss of its last 200 steps."""
    net, draws = new_net(recipe, seed), torch.Generator().manual_seed(seed)
    images, labels, *_ = _data(seed, recipe.images, recipe.samples)
    loss_fn = loss_of(arm, recipe, net, images, labels, draws)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.99), fused=True)
    ema = EMA(net, recipe.decay)
    schedule = train.warmup_cosine(recipe.steps, warmup=min(50, recipe.steps - 1))
    run = train.run(loss_fn, net, adam, steps=recipe.steps, schedule=schedule, clip=1.0, ema=ema)
    losses = [step.loss for step in run]
    return ema.model, statistics.fmean(losses[-200:])


@torch.no_grad()
def drawn(net: UNet, arm: Arm, way: str, count: int, recipe: Recipe, seed: int) -> Tensor:
    """Samples in [0, 1], of the labels 0 … 9 in turn; all ways start from the same noise."""
    draws, asked = torch.Generator().manual_seed(seed + 1), torch.arange(recipe.samples) % 10
    parts = []
    for labels in asked.split(500):
        *_, last = WAYS[way](
            lambda x, condition, labels=labels: net(x, condition, labels),
            arm.schedule,
            (len(labels), 1, SIDE, SIDE),
            times=even_in_snr(arm.schedule, count),
            parameterisation=arm.predicts,
            generator=draws,
            clip=(-1.0, 1.0),
        )
        parts.append(last.x)
    return (torch.cat(parts) / 2 + 0.5).clamp(0, 1)


def judged(net: UNet, arm: Arm, recipe: Recipe, seed: int) -> dict:
    """What the judge says of samples, a row for each way and number of steps, and of real ones."""
    *_, fresh, fresh_labels = _data(seed, recipe.images, recipe.samples)
    every = [f"{way} {count}" for way, counts in COUNTS.items() for count in counts]
    asked, sets = torch.arange(recipe.samples) % 10, {}
    for name in every if arm is ARMS[WHOLE] else USUAL:
        way, count = name.split()
        sets[name] = drawn(net, arm, way, int(count), recipe, seed), asked
    judge, draws = load_judge(SIDE), torch.Generator().manual_seed(seed + 2)
    given = sets, (fresh, fresh_labels), draws
    table = measures.report(judge.assess, *given, preset="full", judge=judge.checksum)
    return {
        row.name: {
            "recognised": row.recognised,
            "smallest": row.coverage.shares.min().item(),
            "label": row.agreement,
            "variance": row.variance,
            "frechet": row.frechet,
        }
        for row in table.rows
        if row.name in (*sets, "real")
    }


@torch.no_grad()
def bound_of(net: UNet, arm: Arm, recipe: Recipe, seed: int) -> dict:
    """The bound in bits per pixel, and its parts: the decoder, the steps, the prior."""
    *_, fresh, labels = _data(seed, recipe.images, recipe.samples)
    x0, labels = (part[: recipe.bounded] for part in (fresh, labels))
    clipped = _clipped(net, arm, labels)
    terms = bound_terms(
        clipped,
        arm.schedule,
        2 * (255 * x0).round() / 255 - 1,
        parameterisation="x0",
        generator=torch.Generator().manual_seed(seed + 3),
    )
    bits = bits_per_dim(terms.mean(1), PIXELS)
    parts = {"decoder": bits[0], "steps_of_bound": bits[1:-1].sum(), "prior": bits[-1]}
    return {"bound": bits.sum().item(), **{name: part.item() for name, part in parts.items()}}


def _clipped(net: UNet, arm: Arm, labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """x̂₀ in [−1, 1], as samplers take it; the times are asked for in turn from 0."""
    place = iter(range(arm.schedule.num_steps))

    def predict(x_t: Tensor, condition: Tensor) -> Tensor:
        t = torch.full((len(x_t),), next(place))
        output = net(x_t, condition, labels)
        x0 = arm.schedule.convert(output, x_t, t, source=arm.predicts, target="x0")
        return x0.clamp(-1, 1)

    return predict


def play(name: str, recipe: Recipe, seed: int) -> dict:
    """One training of one arm, measured: a row."""
    arm, start, spent = ARMS[name], time.perf_counter(), time.process_time()
    net, loss = fit(arm, recipe, seed)
    row = {"arm": name, "seed": seed, "steps": recipe.steps, "loss": loss}
    row["wall_seconds"] = time.perf_counter() - start
    row["cpu_seconds"] = time.process_time() - spent
    return row | bound_of(net, arm, recipe, seed) | {"samples": judged(net, arm, recipe, seed)}


def compare(
    names: list[str], recipe: Recipe, seeds: int, jobs: int, done: list[dict]
) -> Iterator[dict]:
    """Train all arms, seed by seed, `jobs` side by side, each in a process with one thread."""
    found = {(row["arm"], row["seed"]) for row in done}
    wanted = [(name, seed) for seed in range(seeds) for name in names]
    tasks = [(name, recipe, seed) for name, seed in wanted if (name, seed) not in found]
    # A forked child may hang in a thread pool that its parent had begun to use.
    with multiprocessing.get_context("spawn").Pool(jobs, _begin) as pool:
        yield from pool.imap_unordered(_play, tasks)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    devices.limit_threads(1)


def _play(task: tuple[str, Recipe, int]) -> dict:
    return play(*task)


def lines(rows: list[dict]) -> list[str]:
    """A line for each arm and way: of each measure the mean over the seeds and the worst."""
    heads = ("rec/real", "rarest", "label", "variance", "Fréchet", "Fr. − real's")
    out = [f"{'mean, worst of':28}" + "".join(f"{head:>17}" for head in heads)]
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        for way in own[0]["samples"] if own else ():
            cells = [_cells(row["samples"][way], row["samples"]["real"]) for row in own]
            line = f"{arm + ', ' + way:28}"
            for place, values in enumerate(zip(*cells, strict=True)):
                worst = max(values) if place > 3 else min(values)
                line += f"{statistics.fmean(values):9.3f}{worst:8.3f}"
            out.append(line)
    for arm in ARMS:
        if own := [row for row in rows if row["arm"] == arm]:
            parts = ("bound", "decoder", "steps_of_bound", "prior")
            means = [statistics.fmean(row[part] for row in own) for part in parts]
            worst = max(row["bound"] for row in own)
            told = "".join(
                f"{p.split('_')[0]:>9}{m:7.3f}" for p, m in zip(parts, means, strict=True)
            )
            out.append(f"{arm:14}bits per pixel:{told}, worst {worst:.3f}")
    return out


def _cells(found: dict, real: dict) -> list[float]:
    share = found["recognised"] / real["recognised"]
    plain = [found[name] for name in ("smallest", "label", "variance", "frechet")]
    return [share, *plain, found["frechet"] - real["frechet"]]


def _arguments(line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.diffusion",
        description="Chapter 40's diffusion under three losses, and sampled in many ways.",
    )
    parser.add_argument("--seeds", type=int, help="how many, 5; with --quick 1")
    parser.add_argument("--steps", type=int, help="of a training, 3000; with --quick 20")
    parser.add_argument("--only", nargs="+", default=list(ARMS), metavar="ARM")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side, 1")
    parser.add_argument("--out", type=Path, help="the file to write, instead of bench/results/")
    parser.add_argument("--quick", action="store_true", help="few images, to see that it runs")
    arguments = parser.parse_args(line)
    seeds, steps = (1, 20) if arguments.quick else (5, Recipe().steps)
    arguments.seeds = seeds if arguments.seeds is None else arguments.seeds
    arguments.steps = steps if arguments.steps is None else arguments.steps
    if unknown := [name for name in arguments.only if name not in ARMS]:
        raise Refusal(f"no arm {unknown[0]!r}; there are {', '.join(ARMS)}")
    for name in ("seeds", "steps", "jobs"):
        if getattr(arguments, name) < 1:
            raise Refusal(f"expected at least 1 for --{name}, got {getattr(arguments, name)}")
    if arguments.out and arguments.out.is_dir():
        raise Refusal(f"expected a file to write, got the folder {arguments.out}")
    return arguments


def _head(arguments: argparse.Namespace, recipe: Recipe) -> dict:
    words = "python -m bench.experiments.diffusion"
    words += f" --seeds {arguments.seeds} --steps {arguments.steps}"
    if arguments.only != list(ARMS):
        words += f" --only {shlex.join(arguments.only)}"
    words += f" --jobs {arguments.jobs}" + " --quick" * arguments.quick
    return {
        "date": datetime.date.today().isoformat(),
        **report.setting(torch.device("cpu"), arguments.quick),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "command": words,
        "seeds": list(range(arguments.seeds)),
        "jobs": arguments.jobs,
        "judge": load_judge(SIDE).checksum,
        "recipe": asdict(recipe),
        "arms": {name: ARMS[name].words for name in arguments.only},
    }


def _kept(path: Path, head: dict) -> list[dict]:
    """The rows of a run of the same things that did not come to its end."""
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"complete": True}
    same = ("recipe", "arms", "seeds", "judge", "versions", "quick")
    is_this = not old["complete"] and all(old[key] == head[key] for key in same)
    return old["rows"] if is_this else []


def main() -> int:
    """Compare as asked, and return 0: a loss that is worth nothing is a result, not an error."""
    arguments = _arguments(sys.argv[1:])
    devices.limit_threads(1)
    recipe = replace(Recipe(), steps=arguments.steps)
    if arguments.quick:
        recipe = replace(recipe, images=500, samples=200, bounded=4)
    head = _head(arguments, recipe)
    path = arguments.out or report.new_file(head, "diffusion")
    content = {**head, "complete": False, "rows": (rows := _kept(path, head))}
    print(f"{content['device']}, torch {torch.__version__}, {arguments.jobs} side by side")

    try:
        for row in compare(arguments.only, recipe, arguments.seeds, arguments.jobs, rows.copy()):
            rows.append(row)
            rows.sort(key=lambda row: (row["seed"], arguments.only.index(row["arm"])))
            report.write(path, content)
            print(
                f"seed {row['seed']}  {row['arm']:12}{row['bound']:7.3f} bits per pixel, "
                f"Fréchet {row['samples']['DDIM 50']['frechet']:6.2f}",
                flush=True,
            )
        content["complete"] = True
        report.write(path, content)
    finally:
        print("\n".join(["", *lines(rows), ""]))
        print(f"The result is {path}." if rows else "")
    return 0


if __name__ == "__main__":
    command(main)
