"""Chapter 43's painter: a DiT and a text encoder that learn together, in the latents of scenes."""

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aigc_lib import checkpoint, train
from aigc_lib import device as devices
from aigc_lib.data.captions import VOCABULARY, captions, tokenise
from aigc_lib.data.scenes import scenes
from aigc_lib.ema import EMA
from aigc_lib.models.diffusion.autoencoder import Autoencoder, AutoencoderConfig
from aigc_lib.models.diffusion.dit import DiT, DiTConfig
from aigc_lib.models.diffusion.text_encoder import TextEncoder, TextEncoderConfig
from aigc_lib.objectives.flow_matching import flow_matching_loss, logit_normal_times
from aigc_lib.optimizers import Together
from aigc_lib.schedules import Straight
from tools import ROOT

WEIGHTS = ROOT / "chapters/results/43_latent_diffusion.autoencoder.safetensors"
PATH = Straight()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Chapter 43's minute."""

    width: int = 64  # of the DiT, whose tokens are the 4 × 4 places of the latent
    layers: int = 2
    heads: int = 4
    text_width: int = 64
    text_layers: int = 2
    batch: int = 32
    steps: int = 1700
    muon_lr: float = 0.014  # of the matrices in blocks; all rise for 50 steps, then fall to 0
    adam_lr: float = 2e-3  # of all else
    decay: float = 0.995  # of the average of the weights
    middle: float = 1.0  # t is the sigmoid of a normal draw with this mean
    spread: float = 1.0  # and with this deviation
    dropped: float = 0.1  # the share of captions that are left empty
    unsaid: float = 0.05  # the share of captions that leave an attribute unsaid, for each of three
    images: int = 20_000  # to train on
    phrasings: int = 4  # captions for each of them, half of them in either language
    scale: float = 2.0  # of guidance, where nothing else is said
    num_steps: int = 20  # of the sampler, where nothing else is said
    asked: int = 500  # scenes that are asked for in each row of a result


class Painter(nn.Module):
    """The flow's velocity, of a latent, its noise level, and a caption's tokens."""

    def __init__(self, recipe: Recipe, latent_shape: tuple[int, ...]):
        super().__init__()
        text, sizes = recipe.text_width, {"num_layers": recipe.layers, "num_heads": recipe.heads}
        self.encoder = TextEncoder(
            TextEncoderConfig(vocab_size=len(VOCABULARY), width=text, num_layers=recipe.text_layers)
        )
        self.net = DiT(
            DiTConfig(
                image_shape=latent_shape, patch=1, width=recipe.width, text_width=text, **sizes
            )
        )

    def text(self, tokens: Tensor) -> dict[str, Tensor]:
        """What the net is told: a caption's vectors, as many as the longest has, and their mask."""
        longest = max(1, int((tokens > 0).sum(1).max()))
        text, mask = self.encoder(tokens[:, :longest])
        return {"text": text, "text_mask": mask}

    def forward(self, x: Tensor, condition: Tensor, tokens: Tensor) -> Tensor:
        """Velocities, of the latents' shape."""
        return self.net(x, condition, **self.text(tokens))


def load_autoencoder() -> Autoencoder:
    """The autoencoder of `bench.experiments.autoencoder`, its weights frozen."""
    tree = checkpoint.load(WEIGHTS)
    net = Autoencoder(AutoencoderConfig(**tree["config"]))
    net.load_state_dict(tree["weights"])
    return net.requires_grad_(False).eval()


@functools.cache
def data(recipe: Recipe, seed: int) -> tuple[Tensor, Tensor]:
    """Latents of scenes, and the tokens of several captions for each: (N, K, M)."""
    draws = torch.Generator().manual_seed(seed)
    shown = scenes(recipe.images, draws)
    with torch.no_grad():
        parts = [load_autoencoder().encode(2 * part - 1)[0] for part in shown.images.split(1000)]
    tokens = []
    for k in range(recipe.phrasings):
        facts = shown.facts.clone()
        silent = torch.rand(len(facts), 1, 3, generator=draws) < recipe.unsaid
        facts[..., :3].masked_fill_(silent, -1)  # what is unsaid, is of both objects
        tokens.append(tokenise(captions(facts, draws, ("en", "zh")[k % 2])))
    return torch.cat(parts), torch.stack(tokens, 1)


def new_painter(recipe: Recipe, seed: int) -> Painter:
    """A painter before it is trained."""
    devices.seed_everything(seed)
    return Painter(recipe, load_autoencoder().config.latent_shape)


def loss_of(painter: Painter, recipe: Recipe, seed: int) -> Callable[[int], Tensor]:
    """The mean squared error of the velocity, of a batch drawn anew at each step."""
    latents, tokens = data(recipe, seed)
    draws, batch = torch.Generator().manual_seed(seed), recipe.batch

    def loss_fn(step: int) -> Tensor:
        chosen = torch.randint(len(latents), (batch,), generator=draws)
        which = torch.randint(recipe.phrasings, (batch,), generator=draws)
        t = logit_normal_times(batch, mean=recipe.middle, std=recipe.spread, generator=draws)
        x0, eps = latents[chosen], torch.randn(batch, *latents.shape[1:], generator=draws)
        empty = torch.rand(batch, 1, generator=draws) < recipe.dropped
        told = tokens[chosen, which].masked_fill(empty, 0)
        velocity = painter(PATH.noised(x0, t, eps), PATH.condition(t), told)
        return flow_matching_loss(velocity, x0, eps).mean() / x0[0].numel()

    return loss_fn


def optimizer_of(painter: Painter, recipe: Recipe) -> Together:
    """Muon for the matrices in blocks, of net and text encoder, AdamW for all else."""
    blocks = [*painter.encoder.blocks.parameters(), *painter.net.blocks.parameters()]
    inside = [p for p in blocks if p.ndim == 2]
    taken = {id(p) for p in inside}
    others = [p for p in painter.parameters() if id(p) not in taken]
    return Together(
        torch.optim.Muon(inside, lr=recipe.muon_lr, momentum=0.95, weight_decay=0.01, ns_steps=3),
        torch.optim.AdamW(
            others, lr=recipe.adam_lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True
        ),
    )


def fit(recipe: Recipe, seed: int) -> tuple[Painter, float]:
    """The average of a trained painter, and the mean loss of its last 200 steps."""
    painter = new_painter(recipe, seed)
    loss_fn, ema = loss_of(painter, recipe, seed), EMA(painter, recipe.decay)
    schedule = train.warmup_cosine(recipe.steps, warmup=min(50, recipe.steps - 1))
    optimizer, given = optimizer_of(painter, recipe), {"steps": recipe.steps, "clip": 1.0}
    run = train.run(loss_fn, painter, optimizer, schedule=schedule, ema=ema, **given)
    return ema.model, statistics.fmean([step.loss for step in run][-200:])
