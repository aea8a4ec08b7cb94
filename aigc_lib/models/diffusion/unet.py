"""A U-Net: from an image and its noise level to an image, of the noise, of what is under it, …"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from aigc_lib import expect
from aigc_lib.layers.attention import MultiHeadAttention
from aigc_lib.layers.labels import require_labels
from aigc_lib.layers.positions import sinusoidal
from aigc_lib.ops.group_norm_silu import group_norm_silu

Images, Maps, Told = Float[Tensor, "B C Y X"], Float[Tensor, "B W Y X"], Float[Tensor, "B E"]
Conditions, Labels = Float[Tensor, " B"], Int[Tensor, " B"] | None
GROUPS = 8  # of every group norm, two maps each or more


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of a UNet."""

    image_shape: tuple[int, int, int] = (1, 16, 16)  # channels, rows, columns
    patch: int = 2  # p, p × p pixels become the channels of one place, and at the end pixels again
    width: int = 32  # c, a multiple of 16; vectors of condition and label have 4c numbers
    multipliers: tuple[int, ...] = (1, 2)  # maps of each level, in units of c, the finest first
    num_blocks: int = 1  # residual blocks on each of the two ways through a level
    num_heads: int = 4  # of the attention at the coarsest level, 0 for none
    num_classes: int = 0  # K, labels; 0 for a net without
    scale: float = 30.0  # factor of the condition: radians of the fastest wave for a step of 1

    def __post_init__(self):
        shape, multiple = self.image_shape, self.patch * 2 ** (len(self.multipliers) - 1)
        expect.count(patch=self.patch, width=self.width, num_blocks=self.num_blocks)
        expect.count(multipliers=min(self.multipliers, default=0))
        expect.that(self.width % 16 == 0, "width in multiples of 16", self.width)
        fits = len(shape) == 3 and min(shape) >= 1 and not any(n % multiple for n in shape[1:])
        expect.that(fits, f"image_shape (C, Y, X), Y and X in multiples of {multiple}", shape)
        expect.at_least(0, num_classes=self.num_classes, num_heads=self.num_heads)
        expect.above(0, scale=self.scale)


class UNet(nn.Module):
    """Down to few places and up again, each level's maps handed across to the way up.

    out = unpatch(conv(SiLU(norm(level(conv(patch(x)), e))))),   which is 0 at the start,

    e = SiLU(W₂ SiLU(W₁ p(condition)) + v_label), with p sinusoidal: what every block is told.

    Source: Ho et al. 2020, appendix B; patches: Shi et al. 2016, equation 4; the label K, "none":
    Ho and Salimans 2022, algorithm 1.
    Derived: —
    """

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config, told = config, 4 * config.width
        pixels = config.image_shape[0] * config.patch**2
        widths = [m * config.width for m in config.multipliers]
        self.condition_1, self.condition_2 = nn.Linear(config.width, told), nn.Linear(told, told)
        self.label = nn.Embedding(config.num_classes + 1, told) if config.num_classes else None
        self.first = nn.Conv2d(pixels, widths[0], 3, padding=1)
        self.level = Level(widths, told, config.num_blocks, config.num_heads)
        self.norm = nn.GroupNorm(GROUPS, widths[0])
        self.last = nn.Conv2d(widths[0], pixels, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Images, condition: Conditions, label: Labels = None) -> Images:
        """The output for images of one noise level each; K, or None for all, means "no label"."""
        expect.shaped(("B", *self.config.image_shape), x=x)
        expect.shaped((len(x),), condition=condition)
        num_classes = self.config.num_classes
        none = torch.full_like(condition, num_classes, dtype=torch.long)
        label = none if label is None and num_classes else label
        require_labels(label, num_classes=num_classes and num_classes + 1, batch=len(x))
        p = sinusoidal(self.config.scale * condition, self.config.width)  #  B c
        e = self.condition_2(F.silu(self.condition_1(p.to(x.dtype))))  #   B 4c
        e = F.silu(e if label is None else e + self.label(label))
        h = self.first(F.pixel_unshuffle(x, self.config.patch))  #         B c Y/p X/p
        h = self.last(_norm_silu(self.norm, self.level(h, e)))  #          B C·p² Y/p X/p
        return F.pixel_shuffle(h, self.config.patch)  #                    B C Y X


class Level(nn.Module):
    """u = after([grow(inner(shrink(h))); h]),   h = before(x);   inmost u = after(attention(h)).

    `inner` is a level of half the rows and columns; before and after are residual blocks.

    Source: Ronneberger et al. 2015, figure 1.
    Derived: —
    """

    def __init__(self, widths: list[int], told: int, num_blocks: int, num_heads: int):
        super().__init__()
        width, *coarser = widths
        inputs = [2 * width if coarser else width] + [width] * (num_blocks - 1)
        self.before = nn.ModuleList(ResidualBlock(width, width, told) for _ in inputs)
        self.after = nn.ModuleList(ResidualBlock(w, width, told) for w in inputs)
        self.inner = self.attention = None
        if coarser:
            self.shrink = nn.Conv2d(width, coarser[0], 3, stride=2, padding=1)
            self.inner = Level(coarser, told, num_blocks, num_heads)
            self.grow = nn.Conv2d(coarser[0], width, 3, padding=1)
        elif num_heads:
            self.norm = nn.GroupNorm(GROUPS, width)
            self.attention = MultiHeadAttention(width, num_heads)

    def forward(self, x: Maps, e: Told) -> Maps:
        """Maps of the same size."""
        for block in self.before:
            x = block(x, e)  #                                             B W Y X
        if self.inner is not None:
            coarse = self.grow(self.inner(self.shrink(x), e))  #           B W Y/2 X/2
            x = torch.cat([F.interpolate(coarse, scale_factor=2.0), x], 1)  # B 2W Y X
        elif self.attention is not None:
            places = self.norm(x).flatten(2).transpose(1, 2)  #            B Y·X W
            x = x + self.attention(places).transpose(1, 2).unflatten(2, x.shape[2:])
        for block in self.after:
            x = block(x, e)  #                                             B W Y X
        return x


class ResidualBlock(nn.Module):
    """y = skip(x) + conv₂(SiLU((1 + s) · norm₂(h) + b)),   h = conv₁(SiLU(norm₁(x))).

    (s, b) = W e, a scale and a shift of each map; the skip is linear where the width changes.

    Source: Dhariwal and Nichol 2021, section 3.1, AdaGN.
    Derived: —
    """

    def __init__(self, inputs: int, width: int, told: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(GROUPS, inputs), nn.GroupNorm(GROUPS, width)
        self.conv_1 = nn.Conv2d(inputs, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)
        self.modulate = nn.Linear(told, 2 * width)
        self.skip = None if inputs == width else nn.Conv2d(inputs, width, 1)

    def forward(self, x: Float[Tensor, "B V Y X"], e: Told) -> Maps:
        """Maps of the new width."""
        s, b = self.modulate(e)[:, :, None, None].chunk(2, 1)  #           B W 1 1 each
        h = self.conv_1(_norm_silu(self.norm_1, x))  #                     B W Y X
        h = self.conv_2(F.silu(torch.addcmul(b, self.norm_2(h), 1 + s)))
        return h + (x if self.skip is None else self.skip(x))


def _norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, eps=norm.eps)
