"""`python -m bench.experiments.judge`: train the judges of digit images, and write their weights.

    OMP_NUM_THREADS=2 python -m bench.experiments.judge         # both sizes, seed 0; two minutes
    python -m bench.experiments.judge --size 28 --seed 3 --dry  # one trial that writes nothing

Digits come from the faces to train on, half of each batch; a few of them are slightly blurred,
noisy, faint or black and white, as the best samples of a model may be. The other half is junk:
noise, textures of untrained generators, letters, and digits blurred, blended, overlaid, spliced,
cut, bent or shuffled beyond reading. The measures printed at the end use fresh draws and the faces
held out. The weights in the repository are those of the command above; a change of them changes
every image metric of the course.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_lib import checkpoint, train
from aigc_lib.data.glyphs import DIGITS, binarize, glyphs
from aigc_lib.metrics.images import gaussian_blur, label_agreement, recognition_rate
from aigc_lib.models.vision.judge import SIZES, WEIGHTS, Judge, JudgeConfig
from tools import command

STEPS, DIGIT_IMAGES, JUNK_IMAGES = 800, 160, 96
JUNK = len(DIGITS)
# Letters that no face draws like a digit.
LETTERS = "ACEFHKLMNPRTUVWXYadefhjkmnprtuvwxy"


def fit(size: int, seed: int) -> Judge:
    """Train one judge, and set it to evaluate; the seed is of weights and batches."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    widths = (32, 64) if size <= 16 else (24, 48, 64)
    judge = Judge(JudgeConfig(size=size, widths=widths)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.01, fused=True)

    def loss_fn(step: int) -> Tensor:
        preset = "easy" if step % 4 == 0 else "full"
        digits = glyphs(DIGIT_IMAGES, draw, size=size, preset=preset)
        images = [as_samples_may_be(digits.images, draw), junk(JUNK_IMAGES, size, draw)]
        labels = torch.cat([digits.labels, torch.full((JUNK_IMAGES,), JUNK)])
        return F.cross_entropy(judge(torch.cat(images)), labels)

    schedule = train.warmup_cosine(STEPS, warmup=50)
    for _ in train.run(loss_fn, judge, optimizer, steps=STEPS, schedule=schedule):
        pass
    judge.eval()
    fix_unit(judge, draw)
    return judge


@torch.no_grad()
def fix_unit(judge: Judge, draw: torch.Generator) -> None:
    """Scale the features so that their variances over fresh digits sum to their number.

    The judge's verdicts stay what they are.
    """
    features, _ = judge.assess(glyphs(20_000, draw, size=judge.config.size).images)
    scale = (features.shape[1] / features.var(0).sum()).sqrt()
    judge.hidden.weight *= scale
    judge.hidden.bias *= scale
    judge.head.weight /= scale


def as_samples_may_be(images: Tensor, draw: torch.Generator) -> Tensor:
    """Digits as they are, or slightly bent, and blurred, noisy and faint, or black and white."""
    size, which = images.shape[-1], torch.rand(len(images), generator=draw)[:, None, None, None]
    bent_or_not = torch.rand(len(images), 1, 1, 1, generator=draw) < 0.5
    images = torch.where(bent_or_not, bend(images, 0.06, draw), images)
    contrast = 0.8 + 0.2 * torch.rand(len(images), 1, 1, 1, generator=draw)
    noise = 0.06 * torch.randn(images.shape, generator=draw)
    worn = (contrast * gaussian_blur(images, 0.6 * size / 28) + noise).clamp(0, 1)
    return torch.where(which < 0.25, worn, torch.where(which < 0.5, binarize(images), images))


def junk(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Images that are no digits, of every kind equally many: (count, 1, size, size) in [0, 1]."""
    share = -(-count // len(KINDS))
    images = torch.cat([kind(share, size, draw) for kind in KINDS.values()])
    images = images[torch.randperm(len(images), generator=draw)[:count]].clamp(0, 1)
    sharpened = torch.rand(count, 1, 1, 1, generator=draw) < 0.25
    return torch.where(sharpened, binarize(images), images)


def noise(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Independent pixels: of uniform, normal or two-valued grey, sparse or dense; or one grey."""
    uniform = torch.rand(count, 1, size, size, generator=draw)
    level, spread = torch.rand(2, count, 1, 1, 1, generator=draw)
    normal = level + spread * torch.randn(uniform.shape, generator=draw)
    kind = torch.arange(count)[:, None, None, None] % 4
    images = torch.where(kind == 0, uniform ** (4 * level), normal)
    images = torch.where(kind == 2, (uniform < level).float(), images)
    return torch.where(kind == 3, level.expand_as(uniform), images)


def clouds(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Smooth noise of some coarseness, soft or cut into blobs, in the middle or all over."""
    coarse = int(torch.randint(3, max(4, size // 2), (1,), generator=draw))
    field = torch.randn(count, 1, coarse, coarse, generator=draw)
    field = F.interpolate(field, size=(size, size), mode="bicubic", align_corners=False)
    sharp, level = torch.rand(2, count, 1, 1, 1, generator=draw)
    ticks = torch.linspace(-1, 1, size)
    middle = (1.2 - (ticks**2 + ticks[:, None] ** 2)).clamp(0, 1)
    inside = torch.rand(count, 1, 1, 1, generator=draw) < 0.7
    images = torch.sigmoid((1 + 20 * sharp) * (field - level))
    return torch.where(inside, middle * images, images)


def textures(count: int, size: int, draw: torch.Generator) -> Tensor:
    """What a transposed-convolution generator with random weights makes of noise."""
    x = torch.randn(count, 16, 4, 4, generator=draw)
    for side, width in ((size // 2, 8), (size, 1)):
        weight = torch.randn(x.shape[1], width, 4, 4, generator=draw)
        x = F.conv_transpose2d(x, weight, stride=2, padding=1)
        x = F.interpolate(x, size=(side, side))
        x = x / x.std()
        x = F.relu(x) if width > 1 else x
    gain, level = torch.rand(2, count, 1, 1, 1, generator=draw)
    return torch.sigmoid((1 + 4 * gain) * (x - 2 * level))


def letters(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Letters that no face draws like a digit."""
    return glyphs(count, draw, size=size, characters=LETTERS).images


def blurred(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Digits whose edges are gone; half of them with their contrast restored."""
    strength = float(1.6 + 2.4 * torch.rand(1, generator=draw)) * size / 28
    images = gaussian_blur(glyphs(count, draw, size=size).images, strength)
    bright = images / images.amax((1, 2, 3), keepdim=True)
    return torch.where(torch.arange(count)[:, None, None, None] % 2 == 0, images, bright)


def blended(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Two digits of different classes, averaged."""
    one, other = different(count, size, draw)
    weight = 0.35 + 0.3 * torch.rand(count, 1, 1, 1, generator=draw)
    return weight * one + (1 - weight) * other


def overlaid(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Two digits of different classes on top of each other, the second one moved."""
    one, other = different(count, size, draw)
    return torch.maximum(one, moved(other, draw))


def spliced(count: int, size: int, draw: torch.Generator) -> Tensor:
    """One side of a digit and another side of another class, moved so that they do not join."""
    one, other = different(count, size, draw)
    return torch.where(half_plane(count, size, draw, 0.12), one, moved(other, draw))


def cut(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Digits of which 45 to 80 per cent of the ink are missing, beyond a random line."""
    images = glyphs(count * 4, draw, size=size).images
    images, whole = images * half_plane(count * 4, size, draw, 0.2), images.sum((1, 2, 3))
    left = images.sum((1, 2, 3)) / whole
    good = ((left > 0.2) & (left < 0.55)).nonzero()[:, 0]
    return images[good[torch.arange(count) % len(good)]]


def bent(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Digits under a smooth displacement so large that they can't be read."""
    images = glyphs(count, draw, size=size).images
    return bend(images, 0.35 + 0.35 * torch.rand(count, 1, 1, 1, generator=draw), draw)


def shuffled(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Digits cut into sixteen squares that are put together in another order."""
    images = glyphs(count, draw, size=size).images
    squares = F.unfold(images, size // 4, stride=size // 4)  #             B pixels 16
    return F.fold(
        squares[:, :, torch.randperm(16, generator=draw)], size, size // 4, stride=size // 4
    )


def inverted(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Digits black on white."""
    return 1 - glyphs(count, draw, size=size).images


KINDS = {
    kind.__name__: kind
    for kind in (
        *(noise, clouds, textures, letters, blurred, blended, overlaid, spliced, cut, bent),
        *(shuffled, inverted),
    )
}


def different(count: int, size: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs of digits of different classes: the images of the first and of the second ones."""
    data = glyphs(4 * count, draw, size=size)
    one, other = data.labels.split(2 * count)
    apart = (one != other).nonzero()[:, 0]
    apart = apart[torch.arange(count) % len(apart)]
    return data.images[apart], data.images[apart + 2 * count]


def moved(images: Tensor, draw: torch.Generator) -> Tensor:
    """Images moved by a seventh of their side along both axes, all the same way."""
    reach = images.shape[-1] // 7
    signs = 2 * torch.randint(2, (2,), generator=draw) - 1
    return images.roll((reach * signs).tolist(), (2, 3))


def half_plane(count: int, size: int, draw: torch.Generator, reach: float) -> Tensor:
    """True on one side of a random line that passes the middle within `reach` sides."""
    ticks = (torch.arange(size) + 0.5) / size - 0.5
    angle = 2 * torch.pi * torch.rand(count, 1, 1, 1, generator=draw)
    offset = reach * (2 * torch.rand(count, 1, 1, 1, generator=draw) - 1)
    return angle.cos() * ticks + angle.sin() * ticks[:, None] > offset


def bend(images: Tensor, strength: Tensor | float, draw: torch.Generator) -> Tensor:
    """A smooth random displacement, whose standard deviation is the strength, in half sides."""
    field = torch.randn(len(images), 2, 5, 5, generator=draw)
    field = F.interpolate(field, size=images.shape[2:], mode="bicubic", align_corners=False)
    grid = F.affine_grid(torch.eye(2, 3).expand(len(images), 2, 3), list(images.shape), False)
    grid = grid + strength * field.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def measure(judge: Judge, count: int = 4000) -> list[str]:
    """Lines to print: share of images called a digit with p > 0.9, and share of right labels."""
    draw, size, lines = torch.Generator().manual_seed(10_000), judge.config.size, []
    for preset in ("full", "easy"):
        for split in ("train", "held_out"):
            data = glyphs(count, draw, size=size, preset=preset, split=split)
            for what, images in (("grey", data.images), ("binarised", binarize(data.images))):
                p = judge.assess(images)[1]
                sure, right = recognition_rate(p), label_agreement(p, data.labels)
                lines.append(f"{preset:5} {split:9} {what:10} {sure:6.1%} {right:6.1%}")
    for name, kind in KINDS.items():
        p = judge.assess(kind(count // 10, size, draw).clamp(0, 1))[1]
        lines.append(f"{name:26} {recognition_rate(p):6.1%}")
    return lines


def main() -> int:
    """Train and measure, and write the weights unless told not to."""
    parser = argparse.ArgumentParser(prog="python -m bench.experiments.judge", description=__doc__)
    parser.add_argument("--size", type=int, choices=SIZES, help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="write nothing")
    options = parser.parse_args()
    for size in [options.size] if options.size else SIZES:
        start = time.perf_counter()
        judge = fit(size, options.seed)
        print(f"size {size}, seed {options.seed}: {time.perf_counter() - start:.0f} s", flush=True)
        print("\n".join(measure(judge)), flush=True)
        if not options.dry:
            print(save(judge))
    return 0


def save(judge: Judge) -> str:
    """Write a judge's weights into the package, matrices in half precision; say how many bytes."""
    weights = {k: v.half() if v.ndim > 1 else v for k, v in judge.state_dict().items()}
    path = WEIGHTS / f"judge_{judge.config.size}.safetensors"
    checkpoint.save(path, {"config": vars(judge.config), "weights": weights})
    return f"{path.name}: {path.stat().st_size} bytes"


if __name__ == "__main__":
    command(main)
