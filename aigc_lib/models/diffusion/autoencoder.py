"""An autoencoder whose latent is a small image, for diffusion to work in."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aigc_lib import expect
from aigc_lib.ops.group_norm_silu import group_norm_silu

_conv = partial(nn.Conv2d, kernel_size=3, padding=1)
Images, Latent, Maps = (Float[Tensor, axes] for axes in ("B C Y X", "B Z v u", "B W Y X"))


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Sizes of an Autoencoder."""

    image_shape: tuple[int, int, int] = (3, 16, 16)  # channels, rows, columns
    channels: int = 4  # Z, of the latent
    patch: int = 2  # p, p × p pixels become the channels of one place, and at the end pixels again
    widths: tuple[int, ...] = (32, 64)  # maps of each level, a half as large as the one before

    def __post_init__(self):
        expect.count(channels=self.channels, patch=self.patch, widths=min(self.widths, default=0))
        even = not any(n % 16 for n in self.widths)
        expect.that(even, "widths in multiples of 16", self.widths)
        shape, factor = self.image_shape, self.patch * 2 ** (len(self.widths) - 1)
        fits = len(shape) == 3 and min(shape) >= 1 and not any(n % factor for n in shape[1:])
        expect.that(fits, f"image_shape (C, Y, X), Y and X in multiples of {factor}", shape)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the latent."""
        factor = self.patch * 2 ** (len(self.widths) - 1)
        return (self.channels, *(n // factor for n in self.image_shape[1:]))


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
        encoder = _layers(pixels, config.widths, 2 * config.channels, grows=False)
        decoder = _layers(config.channels, config.widths[::-1], pixels, grows=True)
        self.encoder = nn.Sequential(nn.PixelUnshuffle(config.patch), *encoder)
        self.decoder = nn.Sequential(*decoder, nn.PixelShuffle(config.patch))
        self.register_buffer("scale", torch.tensor(0.0))

    def forward(self, x: Images, noise: Latent) -> tuple[Images, Latent, Latent]:
        """Decode z = μ + exp(½ log σ²) ε; also μ and log σ². A noise ε of 0 decodes the mean."""
        mu, log_var = self._gaussian(x)
        expect.alike(mu=mu, noise=noise)
        return self.decoder(mu + torch.exp(0.5 * log_var) * noise), mu, log_var

    def encode(self, x: Images) -> tuple[Latent, Latent]:
        """Mean and log variance of scale · z."""
        (mu, log_var), scale = self._gaussian(x), self._fitted()
        return scale * mu, log_var + 2 * scale.log()

    def decode(self, latent: Latent) -> Images:
        """The image of scale · z."""
        expect.shaped(("B", *self.config.latent_shape), latent=latent)
        return self.decoder(latent / self._fitted())

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
        return self.encoder(x).chunk(2, 1)  #                              B Z Y/f X/f each


class _Block(nn.Module):
    """y = x + conv₂(SiLU(norm₂(conv₁(SiLU(norm₁(x))))))."""

    def __init__(self, width: int):
        super().__init__()
        self.norm_1, self.norm_2 = _NormSiLU(8, width), _NormSiLU(8, width)
        self.conv_1, self.conv_2 = _conv(width, width), _conv(width, width)

    def forward(self, x: Maps) -> Maps:
        return x + self.conv_2(self.norm_2(self.conv_1(self.norm_1(x))))


class _NormSiLU(nn.GroupNorm):
    def forward(self, x: Maps) -> Maps:
        return group_norm_silu(x, self.num_groups, self.weight, self.bias, eps=self.eps)


def _layers(inputs, widths, outputs, *, grows):
    """A block on each level, and between two of them a halving or a doubling of the sides."""
    yield from (_conv(inputs, widths[0]), _Block(widths[0]))
    for before, width in pairwise(widths):
        yield nn.Upsample(scale_factor=2.0) if grows else nn.Identity()
        yield from (_conv(before, width, stride=1 if grows else 2), _Block(width))
    yield from (_NormSiLU(8, widths[-1]), _conv(widths[-1], outputs))
