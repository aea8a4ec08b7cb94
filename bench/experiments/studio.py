"""What is asked of chapter 43's painter, and what the judge of scenes reads in its pictures."""

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from aigc_lib.data.captions import captions, tokenise
from aigc_lib.data.scenes import (
    BACKGROUND,
    COLOURS,
    SHAPES,
    Scenes,
    agreement,
    read,
    render,
    scenes,
)
from aigc_lib.sampling.diffusion import Predict, States, ddim
from aigc_lib.sampling.editing import coarse, image_to_image, inpaint
from aigc_lib.sampling.guidance import guided
from bench.experiments.painter import PATH, Painter, Recipe, load_autoencoder

SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)
COUNTS = (1, 2, 4, 8, 20, 50)
STRENGTHS = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)


class Studio:
    """A trained painter and all that is asked of it: 0 … 1 images of captions, drawn and edited."""

    def __init__(self, painter: Painter, recipe: Recipe, seed: int):
        self.painter, self.recipe, self.seed = painter, recipe, seed
        self.autoencoder = load_autoencoder()

    def draws(self, purpose: str) -> torch.Generator:
        """The same for every row of a result: those of scenes, of captions and of noise."""
        number = ("scenes", "captions", "noise").index(purpose)
        return torch.Generator().manual_seed(1_000_000 + 10 * self.seed + number)

    def ask(self, count: int, held_out: bool, pairs: bool = False) -> Scenes:
        """Fresh scenes, on demand of two objects alone."""
        fresh = scenes(3 * count if pairs else count, self.draws("scenes"), held_out=held_out)
        wanted = (fresh.facts[:, 1, 0] >= 0) | (not pairs)
        return Scenes(images=fresh.images[wanted][:count], facts=fresh.facts[wanted][:count])

    @torch.no_grad()
    def paint(
        self,
        told: list[str],
        way: Callable[..., States] | None = None,
        *,
        scale: float | None = None,
        num_steps: int | None = None,
        negative: str = "",
    ) -> Tensor:
        """Images of the captions, guided away from the negative one; `way` edits, ddim draws."""
        given = [self.painter.encoder(tokenise(part)) for part in (told, [negative])]
        told_and_not = [{"text": text, "text_mask": mask} for text, mask in given]
        scale = self.recipe.scale if scale is None else scale
        predict = guided(self.painter.net, *told_and_not, scale)
        shape = len(told), *self.autoencoder.config.latent_shape
        way = way or (lambda predict, **options: ddim(predict, PATH, shape, **options))
        *_, last = way(
            predict,
            num_steps=num_steps or self.recipe.num_steps,
            parameterisation="velocity",
            generator=self.draws("noise"),
        )
        return self.image(last.x)

    def latent(self, images: Tensor) -> Tensor:
        """Of images in [0, 1]."""
        return self.autoencoder.encode(2 * images - 1)[0]

    def image(self, latent: Tensor) -> Tensor:
        """In [0, 1], of a latent."""
        return (self.autoencoder.decode(latent) / 2 + 0.5).clamp(0, 1)


def shares(asked: Tensor, images: Tensor) -> dict[str, float]:
    """Which share of the images has each attribute as asked, and all of them."""
    return {name: x.float().mean().item() for name, x in agreement(asked, read(images)).items()}


def obeyed(studio: Studio) -> dict:
    """What of a caption is right: of pairs held out or seen, in English or Chinese."""
    rows = {}
    for split in ("held out", "seen"):
        fresh = studio.ask(studio.recipe.asked, split == "held out")
        for language in ("en", "zh"):
            told = captions(fresh.facts, studio.draws("captions"), language)
            rows[f"{split}, {language}"] = shares(fresh.facts, studio.paint(told))
    return rows


def guidance(studio: Studio) -> dict:
    """For each scale what is right of captions painted four times each, and how varied it is."""
    asked = studio.ask(max(1, studio.recipe.asked // 4), True).facts.repeat_interleave(4, 0)
    told = captions(asked[::4], studio.draws("captions"), "both")
    told = [caption for caption in told for _ in range(4)]
    real, rows = variance(asked, render(asked, studio.draws("scenes"))), {}
    for scale in SCALES:
        images = studio.paint(told, scale=scale)
        rows[str(scale)] = {
            "all": shares(asked, images)["all"],
            "variety": variance(asked, images) / real,
        }
    return rows


def variance(asked: Tensor, images: Tensor) -> float:
    """Of a pixel about its mean over those of four neighbours that show what was asked."""
    right = agreement(asked, read(images))["all"].view(-1, 4, 1).float()
    pixels = images.view(len(right), 4, -1)
    count = right.sum(1, keepdim=True)
    mean = (right * pixels).sum(1, keepdim=True) / count.clamp(min=1)
    free = (count - 1).clamp(min=0).sum() * pixels.shape[2]
    return ((right * (pixels - mean).square()).sum() / free.clamp(min=1)).item()


def few_steps(studio: Studio) -> dict:
    """All right, of held-out scenes, for each number of steps."""
    asked = studio.ask(max(1, studio.recipe.asked // 2), True).facts
    told = captions(asked, studio.draws("captions"), "both")
    return {str(n): shares(asked, studio.paint(told, num_steps=n))["all"] for n in COUNTS}


def inpainted(studio: Studio) -> dict:
    """One of two objects hidden, and another shape in another colour asked for in its place."""
    old = studio.ask(max(1, studio.recipe.asked // 2), False, pairs=True)
    draws = studio.draws("captions")
    rows, which = torch.arange(len(old.facts)), torch.randint(2, (len(old.facts),), generator=draws)
    new = old.facts.clone()
    for place, kinds in enumerate((len(SHAPES), len(COLOURS))):
        by = torch.randint(1, kinds, which.shape, generator=draws)
        new[rows, which, place] = (new[rows, which, place] + by) % kinds
    halves = torch.arange(16) // 8 == torch.tensor([[0], [1]])  # 2 16
    sides = halves[which]
    across = (old.facts[:, 0, 3] < 2)[:, None, None]  # left and right, or top and bottom
    mask = torch.where(across, sides[:, None, :], sides[:, :, None])[:, None]
    empty = torch.tensor(BACKGROUND)[:, None, None]
    z = studio.latent(torch.where(mask, empty, old.images))
    within = coarse(mask, z.shape[2:])

    def way(predict: Predict, **options) -> States:
        return inpaint(ddim, predict, PATH, z, within, **options)

    images = studio.paint(captions(new, draws, "both"), way)
    images = torch.where(mask, images, old.images)
    outside = ((images - old.images).abs() * ~mask).max().item()
    return {**shares(new, images), "outside": outside}


def redrawn(studio: Studio) -> dict:
    """Image-to-image: other colours asked for, from each level; also how far the objects move.

    "moved" is the mean distance, in pixels, of the middle of all that isn't background.
    """
    old = studio.ask(max(1, studio.recipe.asked // 2), False)
    draws = studio.draws("captions")
    new = old.facts.clone()
    by = torch.randint(1, len(COLOURS), new.shape[:2], generator=draws)
    new[..., 1] = torch.where(new[..., 1] < 0, -1, (new[..., 1] + by) % len(COLOURS))
    told, z = captions(new, draws, "both"), studio.latent(old.images)
    rows = {"fresh": {"all": 1.0, "moved": moved(old.images, render(new, draws))}}
    for t in STRENGTHS:

        def way(predict: Predict, num_steps: int, t: float = t, **options) -> States:
            times = [t * (1 - k / num_steps) for k in range(num_steps)]
            return image_to_image(ddim, predict, PATH, z, times=times, **options)

        images = studio.paint(told, way)
        rows[str(t)] = {"all": shares(new, images)["all"], "moved": moved(old.images, images)}
    return rows


def moved(before: Tensor, after: Tensor) -> float:
    """The mean distance between the middles of what isn't background."""
    empty = torch.tensor(BACKGROUND)[:, None, None]
    ticks, middles = torch.arange(16.0), []
    for images in (before, after):
        ink = ((images - empty).abs().amax(1) > 0.3).float()
        ink = ink / ink.sum((1, 2), keepdim=True).clamp(min=1)
        middles.append(torch.stack([(ink * ticks).sum((1, 2)), (ink.mT * ticks).sum((1, 2))], 1))
    return (middles[0] - middles[1]).norm(dim=1).mean().item()


def avoided(studio: Studio) -> dict:
    """Colour left unsaid: how often each comes, without and with it as the negative prompt.

    "all" is what was asked for: count, shape, size, place.
    """
    asked = studio.ask(max(1, studio.recipe.asked // 8), False).facts
    asked[..., 1] = -1
    told, rows = captions(asked, studio.draws("captions"), "en"), {"without": [], "with": []}
    for place, colour in enumerate(COLOURS):
        for name, negative in (("without", ""), ("with", f"a {colour} shape")):
            images = studio.paint(told, negative=negative)
            comes = (read(images)[..., 1] == place).any(1).float().mean().item()
            rows[name].append((comes, shares(asked, images)["all"]))
    means = {name: map(statistics.fmean, zip(*found, strict=True)) for name, found in rows.items()}
    return {name: dict(zip(("colour", "all"), both, strict=True)) for name, both in means.items()}


MEASURES = {
    "captions": obeyed,
    "guidance": guidance,
    "steps of the sampler": few_steps,
    "inpainting": inpainted,
    "image to image": redrawn,
    "negative prompt": avoided,
}
