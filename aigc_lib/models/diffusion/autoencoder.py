"""An autoencoder whose latent is a small image, for diffusion to work in."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from aigc_lib import expect
from aigc_lib.ops.group_norm_silu import group_norm_silu

Images, Latent = Float[Tensor, "B C Y X"], Float[Tensor, "B Z v u"]
Maps, Others = Float[Tensor, "B V Y X"], Float[Tensor, "B W v u"]


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes of an Autoencoder."""

    image_shape: tuple[int, int, int] = (3, 16, 16)  # channels, rows, columns
    channels: int = 4  # Z, of the latent
    patch: int = 2  # p, p × p pixels become the channels of one place, and at the end pixels again
    widths: tuple[int, ...] = (32, 64)  # maps of each level, multiples of 8; each halves the sides

    def __post_init__(self):
        expect.count(channels=self.channels, patch=self.patch, widths=min(self.widths, default=0))
        expect.that(all(n % 8 == 0 for n in self.widths), "widths in multiples of 8", self.widths)
        shape = self.image_shape
        fits = len(shape) == 3 and min(shape) >= 1 and not any(n % self.factor for n in shape[1:])
        expect.that(fits, f"image_shape (C, Y, X), Y and X in multiples of {self.factor}", shape)

    @property
    def factor(self) -> int:
        """How many pixels a place of the latent has on each side."""
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the latent."""
        return (self.channels, *(n // self.factor for n in self.image_shape[1:]))


class Autoencoder(nn.Module):
    """x → q(z|x) = N(μ, σ²) → x̂, and for diffusion the latent scale · z, of variance 1.

    `forward`, with which it is trained, has z itself. `encode` and `decode`, for all else, have
    scale · z and refuse until `fit_scale` has set the scale, which is saved with the weights: no
    diffusion model meets a latent without it.

    Source: Rombach et al. 2022, section 3.1 and appendix G; patches: Shi et al. 2016, equation 4.
    Derived: 43_latent_diffusion eq-latent-scale
    """

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config, pixels = config, config.image_shape[0] * config.patch**2
        self.encoder = _Net(pixels, config.widths, 2 * config.channels, grows=False)
        self.decoder = _Net(config.channels, config.widths[::-1], pixels, grows=True)
        self.register_buffer("scale", torch.tensor(0.0))

    def forward(self, x: Images, noise: Latent) -> tuple[Images, Latent, Latent]:
        """Decode z = μ + exp(½ log σ²) ε; also μ and log σ². A noise ε of 0 decodes the mean."""
        mu, log_var = self._gaussian(x)
        expect.alike(mu=mu, noise=noise)
        return self._image(mu + torch.exp(0.5 * log_var) * noise), mu, log_var

    def encode(self, x: Images) -> tuple[Latent, Latent]:
        """Mean and log variance of scale · z."""
        (mu, log_var), scale = self._gaussian(x), self._fitted()
        return scale * mu, log_var + 2 * scale.log()

    def decode(self, latent: Latent) -> Images:
        """The image of scale · z."""
        expect.shaped(("B", *self.config.latent_shape), latent=latent)
        return self._image(latent / self._fitted())

    @torch.no_grad()
    def fit_scale(self, x: Images) -> None:
        """scale = 1/std(z) = 1/√(Var μ + mean σ²), over all numbers of these images' latents."""
        mu, log_var = self._gaussian(x)
        self.scale.copy_((mu.var(correction=0) + log_var.exp().mean()).rsqrt())

    def _fitted(self):
        expect.that(bool(self.scale), "fit_scale(images) before a latent is used", "a scale of 0")
        return self.scale

    def _gaussian(self, x):
        expect.shaped(("B", *self.config.image_shape), x=x)
        return self.encoder(F.pixel_unshuffle(x, self.config.patch)).chunk(2, 1)  # B Z Y/f X/f each

    def _image(self, z):
        return F.pixel_shuffle(self.decoder(z), self.config.patch)  #      B C Y X


class _Net(nn.Module):
    """A block on each level, and steps between them that halve the sides, or double them."""

    def __init__(self, inputs: int, widths: tuple[int, ...], outputs: int, *, grows: bool):
        super().__init__()
        self.grows, stride = grows, 1 if grows else 2
        steps = (nn.Conv2d(v, w, 3, stride=stride, padding=1) for v, w in pairwise(widths))
        self.steps = nn.ModuleList([nn.Conv2d(inputs, widths[0], 3, padding=1), *steps])
        self.blocks = nn.ModuleList(map(_Block, widths))
        self.norm = _NormSiLU(8, widths[-1])
        self.last = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, x: Maps) -> Others:
        for i, (step, block) in enumerate(zip(self.steps, self.blocks, strict=True)):
            x = F.interpolate(x, scale_factor=2.0) if self.grows and i > 0 else x
            x = block(step(x))
        return self.last(self.norm(x))


class _Block(nn.Module):
    """y = x + conv₂(SiLU(norm₂(conv₁(SiLU(norm₁(x))))))."""

    def __init__(self, width: int):
        super().__init__()
        self.norm_1, self.norm_2 = _NormSiLU(8, width), _NormSiLU(8, width)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Maps) -> Maps:
        return x + self.conv_2(self.norm_2(self.conv_1(self.norm_1(x))))


class _NormSiLU(nn.GroupNorm):
    def forward(self, x: Maps) -> Maps:
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, eps=self.eps)
