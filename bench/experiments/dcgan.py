"""`python -m bench.experiments.dcgan [--seeds 5] [--steps 1400] [--only ARM ...] [--jobs 2]`.

Chapter 31's DCGAN with one of its rules taken away at a time, all else as it was: the same images,
the same order of batches, the same noise and, where the layers are still there, the same weights
to start from. Every rate, width and length was chosen for the whole recipe. So a row says what a
rule is worth *inside* this recipe; it does not rank methods, none of which was tuned for itself.

Measured by the course's judge on 2000 samples, of the averaged generator and of the one that
played, beside fresh images. One training takes one thread; `--jobs` of them run side by side. The
result is one file per run, written anew after every training, so that Ctrl-C loses only those that
are under way.
"""

import argparse
import datetime
import functools
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
from torch import Tensor, nn

from aigc_lib import device as devices
from aigc_lib import train
from aigc_lib.data.glyphs import glyphs
from aigc_lib.ema import EMA
from aigc_lib.metrics import images as measures
from aigc_lib.models.adversarial.gan import DCGANConfig, DCGANDiscriminator, DCGANGenerator
from aigc_lib.models.vision.judge import load_judge
from aigc_lib.objectives import adversarial
from bench import report
from tools import Refusal, command

Nets = tuple[DCGANGenerator, DCGANDiscriminator]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all arms share: chapter 31's minute, with half as many rounds."""

    width: int = 16
    latent: int = 16
    batch: int = 32
    steps: int = 1400  # rounds, in each of which both players move once
    lr: float = 2e-3  # Adam's, of both players; it falls along half a cosine to a tenth
    decay: float = 0.998  # of the average of the generator's weights
    images: int = 20_000  # to train on, of the full preset at 16 × 16 pixels
    samples: int = 2000  # that are judged, against as many fresh images


@dataclass(frozen=True, kw_only=True)
class Arm:
    """How one arm departs from the recipe."""

    words: str  # the departure, for a reader
    change: Callable[[DCGANGenerator, DCGANDiscriminator], Nets] = lambda G, D: (G, D)
    beta1: float = 0.5  # Adam's, of both players
    generator_loss: Callable[[Tensor], Tensor] = adversarial.non_saturating_generator_loss
    together: bool = False  # real and fake are one batch in the discriminator's turn


def _biased(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """Give a layer the bias that it left to the batch normalisation after it."""
    layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    return layer


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels)
    nn.init.normal_(norm.weight, 1.0, 0.02)
    return norm


def _generator_unnormalised(G: DCGANGenerator, D: DCGANDiscriminator) -> Nets:
    # The label's vector is the full layer's bias.
    G.norm_1, G.norm_2 = nn.Identity(), nn.Identity()
    _biased(G.up_1)
    return G, D


def _discriminator_unnormalised(G: DCGANGenerator, D: DCGANDiscriminator) -> Nets:
    D.norm = nn.Identity()
    _biased(D.down_2)
    return G, D


def _normalised_at_the_ends(G: DCGANGenerator, D: DCGANDiscriminator) -> Nets:
    G.up_2 = nn.Sequential(G.up_2, _norm(1))
    D.down_1 = nn.Sequential(D.down_1, _norm(D.down_1.out_channels))
    return G, D


def _upsampled(G: DCGANGenerator, D: DCGANDiscriminator) -> Nets:
    for name in ("up_1", "up_2"):
        old = getattr(G, name)
        has_bias = old.bias is not None
        conv = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=has_bias)
        nn.init.normal_(conv.weight, 0.0, 0.02)
        if has_bias:
            nn.init.zeros_(conv.bias)
        setattr(G, name, nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv))
    return G, D


class Unbounded(DCGANDiscriminator):
    """A discriminator that takes pixels of any size: its parent without the check of them."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """The logits."""
        h = self.leak(self.down_1(x))
        h = self.leak(self.norm(self.down_2(h))).flatten(1)
        return self.read(h)[:, 0] + (h * self.label(labels)).sum(1)


def _linear_end(G: DCGANGenerator, D: DCGANDiscriminator) -> Nets:
    G.tanh = nn.Identity()
    unbounded = Unbounded(D.config)
    unbounded.load_state_dict(D.state_dict())
    return G, unbounded


def _strict(G: DCGANGenerator, D: DCGANDiscriminator) -> Nets:
    D.leak = nn.ReLU()
    return G, D


def _torch_start(G: DCGANGenerator, D: DCGANDiscriminator) -> Nets:
    for module in (*G.modules(), *D.modules()):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return G, D


WHOLE = "the recipe"
ARMS = {
    WHOLE: Arm(words="chapter 31's"),
    "G unnormalised": Arm(words="no batch normalisation in G", change=_generator_unnormalised),
    "D unnormalised": Arm(words="no batch normalisation in D", change=_discriminator_unnormalised),
    "ends normalised": Arm(
        words="batch normalisation before G's tanh and after D's first convolution, too",
        change=_normalised_at_the_ends,
    ),
    "one batch": Arm(words="real and fake are one batch in D's turn", together=True),
    "upsampling": Arm(
        words="nearest neighbours, then a convolution of 3 × 3, for transposed convolutions",
        change=_upsampled,
    ),
    "no tanh": Arm(words="linear at G's end; clamped to be judged", change=_linear_end),
    "ReLU in D": Arm(words="ReLU for LeakyReLU in D", change=_strict),
    "torch's start": Arm(words="torch's own starts for N(0, 0.02²)", change=_torch_start),
    "β₁ = 0.9": Arm(words="Adam with β₁ = 0.9 for 0.5, both players", beta1=0.9),
    "β₁ = 0": Arm(words="Adam with β₁ = 0 for 0.5, both players", beta1=0.0),
    "saturating": Arm(
        words="G minimises log(1 − D) for −log D",
        generator_loss=adversarial.saturating_generator_loss,
    ),
}


@functools.cache
def _data(seed: int, images: int, samples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    seen = glyphs(images, draws, size=16, preset="full")
    fresh = glyphs(2 * samples, draws, size=16, preset="full")
    return 2 * seen.images - 1, seen.labels, fresh.images, fresh.labels


def new_pair(arm: Arm, recipe: Recipe, seed: int) -> Nets:
    """Generator and discriminator; with one seed all arms start alike, as far as they can."""
    devices.seed_everything(seed)
    config = DCGANConfig(size=16, latent=recipe.latent, width=recipe.width)
    return arm.change(DCGANGenerator(config), DCGANDiscriminator(config))


def players(
    arm: Arm, recipe: Recipe, nets: Nets, images: Tensor, labels: Tensor, draws: torch.Generator
) -> dict[str, train.Player]:
    """The two sides of an arm's game; the images, in [−1, 1], are put in order at once."""
    G, D = nets
    per_epoch = len(images) // recipe.batch
    epochs = -(-recipe.steps // per_epoch)
    orders = [torch.randperm(len(images), generator=draws) for _ in range(epochs)]
    chosen = torch.cat([o[: per_epoch * recipe.batch].view(per_epoch, -1) for o in orders])

    def fakes(y):
        return G(torch.randn(len(y), recipe.latent, generator=draws), y)

    def loss_D(step):
        x, y = images[chosen[step]], labels[chosen[step]]
        drawn = fakes(y).detach()
        if arm.together:
            real, fake = D(torch.cat([x, drawn]), y.repeat(2)).chunk(2)
        else:
            real, fake = D(x, y), D(drawn, y)
        return adversarial.discriminator_loss(real, fake).mean()

    def loss_G(step):
        y = labels[chosen[step]]
        return arm.generator_loss(D(fakes(y), y)).mean()

    settings = {"lr": recipe.lr, "betas": (arm.beta1, 0.999)}
    adam_D, adam_G = (torch.optim.Adam(net.parameters(), **settings) for net in (D, G))
    ema = EMA(G, recipe.decay)
    return {
        "discriminator": train.Player(loss_fn=loss_D, model=D, optimizer=adam_D),
        "generator": train.Player(loss_fn=loss_G, model=G, optimizer=adam_G, ema=ema),
    }


@torch.no_grad()
def judged(models: dict[str, nn.Module], recipe: Recipe, seed: int) -> dict:
    """What the judge says of each model's samples, of the same noise, and of real images."""
    *_, fresh, fresh_labels = _data(seed, recipe.images, recipe.samples)
    draws, asked = torch.Generator().manual_seed(seed + 1), torch.arange(recipe.samples) % 10
    noise = torch.randn(recipe.samples, recipe.latent, generator=draws)
    drawn = {name: model.eval()(noise, asked) for name, model in models.items()}
    sets = {name: ((x / 2 + 0.5).clamp(0, 1), asked) for name, x in drawn.items()}
    judge, given = load_judge(16), (sets, (fresh, fresh_labels), draws)
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


def play(name: str, recipe: Recipe, seed: int) -> dict:
    """One training of one arm, judged: a row, with the mean losses of the last 200 rounds."""
    arm, start = ARMS[name], time.perf_counter()
    nets = new_pair(arm, recipe, seed)
    images, labels, *_ = _data(seed, recipe.images, recipe.samples)
    draws = torch.Generator().manual_seed(seed)
    sides = players(arm, recipe, nets, images, labels, draws)
    losses: dict[str, list[float]] = {side: [] for side in sides}
    schedule = train.warmup_cosine(recipe.steps, end=0.1)
    for step in train.alternating(sides, steps=recipe.steps, schedule=schedule):
        losses[step.player].append(step.loss)
    seconds = time.perf_counter() - start
    last = {f"{side}_loss": statistics.fmean(values[-200:]) for side, values in losses.items()}
    models = {"averaged": sides["generator"].ema.model, "played": nets[0]}
    row = {"arm": name, "seed": seed, "steps": recipe.steps, "wall_seconds": seconds}
    return row | last | judged(models, recipe, seed)


def compare(names: list[str], recipe: Recipe, seeds: int, jobs: int) -> Iterator[dict]:
    """Train all arms, seed by seed, `jobs` side by side, each in a process with one thread."""
    tasks = [(name, recipe, seed) for seed in range(seeds) for name in names]
    # A forked child may hang in a thread pool that its parent had begun to use.
    with multiprocessing.get_context("spawn").Pool(jobs, _begin) as pool:
        yield from pool.imap_unordered(_play, tasks)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    devices.limit_threads(1)


def _play(task: tuple[str, Recipe, int]) -> dict:
    return play(*task)


def lines(rows: list[dict]) -> list[str]:
    """A line for each arm: of each measure the mean over the seeds and, behind it, the worst."""
    found = {arm: ("averaged", [row for row in rows if row["arm"] == arm]) for arm in ARMS}
    found["its last G"] = "played", found[WHOLE][1]
    heads = ("rec/real", "rarest", "label", "variance", "Fréchet")
    out = [f"{'mean, worst of':17}" + "".join(f"{head:>17}" for head in heads) + "  D's loss"]
    for name, (which, own) in found.items():
        if not own:
            continue
        relative = [row[which]["recognised"] / row["real"]["recognised"] for row in own]
        line = f"{name:17}{statistics.fmean(relative):9.3f}{min(relative):8.3f}"
        for measure in ("smallest", "label", "variance", "frechet"):
            values = [row[which][measure] for row in own]
            worst = max(values) if measure == "frechet" else min(values)
            line += f"{statistics.fmean(values):9.3f}{worst:8.3f}"
        loss = statistics.fmean(row["discriminator_loss"] for row in own)
        out.append(f"{line}{loss:10.2f}")
    return out


def _arguments(line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.dcgan",
        description="Chapter 31's DCGAN without one of its rules.",
    )
    parser.add_argument("--seeds", type=int, help="how many, 5; with --quick 1")
    parser.add_argument("--steps", type=int, help="rounds of a training, 1400; with --quick 20")
    parser.add_argument("--only", nargs="+", default=list(ARMS), metavar="ARM")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side, 2")
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
    words = f"python -m bench.experiments.dcgan --seeds {arguments.seeds} --steps {arguments.steps}"
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
        "judge": load_judge(16).checksum,
        "recipe": asdict(recipe),
        "arms": {name: ARMS[name].words for name in arguments.only},
    }


def main() -> int:
    """Compare as asked, and return 0: a rule that is worth nothing is a result, not an error."""
    arguments = _arguments(sys.argv[1:])
    devices.limit_threads(1)
    recipe = replace(Recipe(), steps=arguments.steps)
    if arguments.quick:
        recipe = replace(recipe, images=500, samples=200)
    content = {**_head(arguments, recipe), "complete": False, "rows": (rows := [])}
    path = arguments.out or report.new_file(content, "dcgan")
    print(f"{content['device']}, torch {torch.__version__}, {arguments.jobs} side by side")

    try:
        for row in compare(arguments.only, recipe, arguments.seeds, arguments.jobs):
            rows.append(row)
            rows.sort(key=lambda row: (row["seed"], arguments.only.index(row["arm"])))
            report.write(path, content)
            print(
                f"seed {row['seed']}  {row['arm']:17}Fréchet {row['averaged']['frechet']:8.2f}",
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
