"""`python -m bench.experiments.flow [--seeds 5] [--only "U-Net" …] [--out FILE]`.

Chapter 42's minute: digits by flow matching, with a U-Net and with a transformer of the same time,
sampled by Euler's method in few and in many steps, with and without guidance; and a minute that
ends in few steps: a shorter training, then a student that learns where the flow takes each noise.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from aigc_lib import device as devices
from aigc_lib import schedules, train
from aigc_lib.ema import EMA
from aigc_lib.metrics import images as measures
from aigc_lib.models.diffusion.dit import DiT, DiTConfig
from aigc_lib.models.diffusion.unet import UNet, UNetConfig
from aigc_lib.models.vision.judge import load_judge
from aigc_lib.objectives.diffusion import diffusion_loss
from aigc_lib.objectives.flow_matching import logit_normal_times
from aigc_lib.sampling.diffusion import ddim
from aigc_lib.sampling.guidance import guided
from bench.experiments import diffusion, runs
from tools import command

SIDE, CLASSES = 16, 10
SHAPE = (1, SIDE, SIDE)
PIXELS = SIDE * SIDE
STRAIGHT = schedules.Straight()
NONE = torch.tensor([CLASSES])  # the label of no label


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What all arms share: chapter 42's minute."""

    batch: int = 32
    images: int = 20_000  # to train on, of the full preset
    samples: int = 1000  # that are judged, against as many fresh images
    dropped: float = 0.1  # share of the labels that are replaced by "none"
    most: float = 100.0  # weight of an error of x₀: 1/t², which makes it one of u, or this
    middle: float = 0.45  # t is the sigmoid of a normal draw with this mean
    spread: float = 0.65  # and this deviation
    shorter: float = 1.0  # factor on all numbers of steps


QUICK = Recipe(images=500, samples=200, shorter=0.005)


@dataclass(frozen=True, kw_only=True)
class Student:
    """How a net learns to do in one step what its teacher does in several: by reflow."""

    pairs: int = 4096  # of noise and where the teacher's flow takes it
    questions: int = 8  # steps of the teacher
    scale: float = 1.0  # of the teacher's guidance
    batch: int = 64
    at_noise: float = 0.5  # share of the rows with t = 1, the one time that one step asks at
    steps: int = 450
    lr: float = 2e-3


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A net, how long it learns, and the student that follows, if any."""

    words: str
    net: Callable[[], nn.Module]
    steps: int
    lr: float  # AdamW's; it rises for 50 steps, then falls along half a cosine to 0
    student: Student | None = None


def unet() -> UNet:
    """Chapter 40's: maps of 8 × 8 and 4 × 4, without attention."""
    net = UNet(UNetConfig(image_shape=SHAPE, width=32, num_heads=0, num_classes=CLASSES))
    return net.to(memory_format=torch.channels_last)


def dit() -> DiT:
    """A transformer of width 64 with 4 layers, over 4 × 4 tokens: the best of seven sizes."""
    return DiT(DiTConfig(image_shape=SHAPE, patch=4, width=64, num_classes=CLASSES))


ARMS = {
    "U-Net": Arm(words="flow matching with a U-Net", net=unet, steps=3000, lr=4e-3),
    "DiT": Arm(words="flow matching with a transformer", net=dit, steps=3000, lr=4e-3),
    "student": Arm(
        words="the U-Net's flow, shorter, then reflow: a student of its noises and their images",
        net=unet,
        steps=2000,
        lr=4e-3,
        student=Student(),
    ),
}


@dataclass(frozen=True)
class Way:
    """How samples are drawn: the steps, the guidance, by whom."""

    steps: int
    scale: float = 1.0
    by_student: bool = False


GUIDED = {
    "guided 1.5, 10": Way(10, 1.5),
    "guided 1.5, 20": Way(20, 1.5),
    "guided 2, 10": Way(10, 2.0),
}
FLOWS = {f"Euler {n}": Way(n) for n in (5, 10, 20, 50)} | GUIDED
TEACHER = {f"teacher {n}": Way(n, Student.scale) for n in (1, 2, 4, 8, 20, 50)}
STEPS = TEACHER | {f"student {n}": Way(n, by_student=True) for n in (1, 2, 4)}


def even_in_snr(count: int, noisiest: float = -4.5, cleanest: float = 4.4) -> list[float]:
    """1, then falling times with even steps of log((1 − t)/t), from `noisiest` to `cleanest`."""
    ratios = torch.linspace(noisiest, cleanest, count, dtype=torch.float64)
    return [1.0, *torch.sigmoid(-ratios[1:]).tolist()]


def times_of(recipe: Recipe, count: int, draws: torch.Generator) -> Tensor:
    """Times about the middle of the path, one in each of `count` equally likely slices."""
    sizes = {"mean": recipe.middle, "std": recipe.spread}
    return logit_normal_times(count, **sizes, generator=draws)


def velocity_error(
    recipe: Recipe, net: nn.Module, x0: Tensor, t: Tensor, eps: Tensor, label: Tensor
) -> Tensor:
    """The mean per pixel of |u − (ε − x₀)|² = |x̂₀ − x₀|²/t², with a bound on 1/t²."""
    x0_hat = net(STRAIGHT.noised(x0, t, eps), STRAIGHT.condition(t), label)
    weight = (1 / t.square()).clamp(max=recipe.most)
    return diffusion_loss(x0_hat, x0, weight).mean() / PIXELS


def loss_of(
    recipe: Recipe, net: nn.Module, images: Tensor, labels: Tensor, draws: torch.Generator
) -> Callable[[int], Tensor]:
    """Flow matching: images and noise that know nothing of each other, drawn anew at each step."""

    def loss_fn(step: int) -> Tensor:
        chosen = torch.randint(len(images), (recipe.batch,), generator=draws)
        is_told = torch.rand(recipe.batch, generator=draws) >= recipe.dropped
        x0, label = images[chosen], torch.where(is_told, labels[chosen], CLASSES)
        t, eps = times_of(recipe, recipe.batch, draws), torch.randn(x0.shape, generator=draws)
        return velocity_error(recipe, net, x0, t, eps, label)

    return loss_fn


def fit(
    net: nn.Module, loss_fn: Callable[[int], Tensor], *, steps: int, lr: float
) -> tuple[nn.Module, float]:
    """A trained net, averaged over about a sixth of the steps, and the loss of the last 200.

    A longer average lags behind: it greys what is black in the data.
    """
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), fused=True)
    ema = EMA(net, max(0.0, 1 - 6 / steps))
    schedule = train.warmup_cosine(steps, warmup=min(50, steps - 1))
    run = train.run(loss_fn, net, adam, steps=steps, schedule=schedule, clip=1.0, ema=ema)
    losses = [step.loss for step in run]
    return ema.model, statistics.fmean(losses[-200:])


@torch.no_grad()
def flowed(net: nn.Module, noise: Tensor, labels: Tensor, way: Way) -> Tensor:
    """Where Euler's method takes the noise, within [−1, 1]."""
    predict = guided(net, {"label": labels}, {"label": NONE}, way.scale)
    settings = {"times": even_in_snr(way.steps), "parameterisation": "x0", "clip": (-1.0, 1.0)}
    *_, last = ddim(predict, STRAIGHT, noise.shape, start=noise, **settings)
    return last.x


def taught(student: Student, recipe: Recipe, teacher: nn.Module, seed: int) -> nn.Module:
    """A copy of the teacher that learns the same from noise and the image where its flow ends."""
    draws = torch.Generator().manual_seed(seed + 4)
    noise = torch.randn(student.pairs, *SHAPE, generator=draws)
    labels = torch.randint(CLASSES, (student.pairs,), generator=draws)
    way = Way(student.questions, student.scale)
    parts = zip(noise.split(256), labels.split(256), strict=True)
    ends = torch.cat([flowed(teacher, *part, way) for part in parts])
    net = copy.deepcopy(teacher).train().requires_grad_(True)

    def loss_fn(step: int) -> Tensor:
        chosen = torch.randint(student.pairs, (student.batch,), generator=draws)
        is_noise = torch.rand(student.batch, generator=draws) < student.at_noise
        t = torch.where(is_noise, 1.0, times_of(recipe, student.batch, draws))
        return velocity_error(recipe, net, ends[chosen], t, noise[chosen], labels[chosen])

    return fit(net, loss_fn, steps=student.steps, lr=student.lr)[0]


def drawn(nets: dict, way: Way, recipe: Recipe, seed: int) -> tuple[Tensor, float]:
    """Samples in [0, 1], of the labels 0 … 9 in turn and from one noise; how many a second."""
    noise = torch.randn(recipe.samples, *SHAPE, generator=torch.Generator().manual_seed(seed + 1))
    labels, start = torch.arange(recipe.samples) % CLASSES, time.process_time()
    net = nets["student" if way.by_student else "teacher"]
    parts = zip(noise.split(500), labels.split(500), strict=True)
    x = torch.cat([flowed(net, *part, way) for part in parts])
    return (x / 2 + 0.5).clamp(0, 1), recipe.samples / (time.process_time() - start)


def judged(nets: dict, recipe: Recipe, seed: int) -> dict:
    """What the judge says of samples, a row for each way, and of real ones."""
    *_, fresh, fresh_labels = diffusion._data(seed, recipe.images, recipe.samples)
    asked, ways = torch.arange(recipe.samples) % CLASSES, STEPS if "student" in nets else FLOWS
    found = {name: drawn(nets, way, recipe, seed) for name, way in ways.items()}
    sets = {name: (images, asked) for name, (images, _) in found.items()}
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
            "images_per_second": found[row.name][1] if row.name in found else None,
        }
        for row in table.rows
        if row.name in (*sets, "real")
    }


def play(name: str, recipe: Recipe, seed: int) -> dict:
    """One training of one arm, measured: a row."""
    arm = ARMS[name]
    images, labels, *_ = diffusion._data(seed, recipe.images, recipe.samples)
    devices.seed_everything(seed)
    net, draws = arm.net(), torch.Generator().manual_seed(seed)
    steps = max(2, round(arm.steps * recipe.shorter))
    start, spent = time.perf_counter(), time.process_time()
    loss_fn = loss_of(recipe, net, images, labels, draws)
    teacher, loss = fit(net, loss_fn, steps=steps, lr=arm.lr)
    row = {"arm": name, "seed": seed, "steps": steps, "loss": loss}
    nets, row["cpu_seconds_teacher"] = {"teacher": teacher}, time.process_time() - spent
    if arm.student:
        few = round(arm.student.steps * recipe.shorter), round(arm.student.pairs * recipe.shorter)
        student = replace(arm.student, steps=max(2, few[0]), pairs=max(2, few[1]))
        nets["student"] = taught(student, recipe, teacher, seed)
    row["wall_seconds"] = time.perf_counter() - start
    row["cpu_seconds"] = time.process_time() - spent
    return row | {"samples": judged(nets, recipe, seed)}


def lines(rows: list[dict]) -> list[str]:
    """A line for each arm and way: of each measure the mean over the seeds and the worst."""
    heads = ("rec/real", "rarest", "label", "var/real", "Fréchet", "Fr. − real's", "images/s")
    out = [f"{'mean, worst of':24}" + "".join(f"{head:>17}" for head in heads)]
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        for way in own[0]["samples"] if own else ():
            cells = [_cells(row["samples"][way], row["samples"]["real"]) for row in own]
            line = f"{arm + ', ' + way:24}"
            for head, values in zip(heads, zip(*cells, strict=True), strict=True):
                worst = max(values) if head.startswith("Fr") else min(values)
                digits = 0 if head == heads[-1] else 3
                line += f"{statistics.fmean(values):9.{digits}f}{worst:8.{digits}f}"
            out.append(line)
        if own:
            seconds = [row["cpu_seconds"] for row in own]
            told = f"{statistics.fmean(seconds):.1f}, at most {max(seconds):.1f}"
            out.append(f"{arm}: {told} processor seconds of training")
    return out


def _cells(found: dict, real: dict) -> list[float]:
    share, variance = (found[name] / real[name] for name in ("recognised", "variance"))
    above, speed = found["frechet"] - real["frechet"], found["images_per_second"] or 0.0
    return [share, found["smallest"], found["label"], variance, found["frechet"], above, speed]


def comparison() -> runs.Comparison:
    """All of this, for a run."""
    return runs.Comparison(
        name="flow",
        words="Chapter 42's flow matching, its transformer and its student of few steps.",
        arms={name: asdict(replace(arm, net=arm.net.__doc__)) for name, arm in ARMS.items()},
        recipe=lambda quick: asdict(QUICK if quick else Recipe()),
        judge=load_judge(SIDE).checksum,
        play=lambda name, seed, quick: play(name, QUICK if quick else Recipe(), seed),
        lines=lines,
    )


if __name__ == "__main__":
    command(lambda: runs.run(comparison()))
