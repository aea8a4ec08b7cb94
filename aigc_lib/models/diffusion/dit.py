"""A diffusion transformer: the patches of a noisy image as tokens, told how noisy they are."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from aigc_lib import expect
from aigc_lib.layers.attention import Mask, Memory, MultiHeadAttention, Stream
from aigc_lib.layers.labels import require_labels
from aigc_lib.layers.mlp import MLP
from aigc_lib.layers.positions import Sinusoidal, sinusoidal
from aigc_lib.ops.norm import layer_norm

Images, Told = Float[Tensor, "B C Y X"], Float[Tensor, "B E"]
Conditions, Labels = Float[Tensor, " B"], Int[Tensor, " B"] | None
Text, TextMask = Float[Tensor, "B M W"] | None, Bool[Tensor, "B M"] | None


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Sizes of a DiT."""

    image_shape: tuple[int, int, int] = (1, 16, 16)  # channels, rows, columns
    patch: int = 2  # p, p × p pixels are one token
    width: int = 96  # C, numbers per token, a multiple of 4
    num_layers: int = 4
    num_heads: int = 4
    num_classes: int = 0  # K, labels; 0 for a net without
    text_width: int | None = None  # numbers per token of a text; None for a net without
    scale: float = 30.0  # factor of the condition: radians of the fastest wave for a step of 1

    def __post_init__(self):
        shape, p = self.image_shape, self.patch
        expect.count(patch=p, width=self.width, num_layers=self.num_layers)
        expect.count(num_heads=self.num_heads, text_width=self.text_width)
        expect.that(self.width % 4 == 0, "width in multiples of 4", self.width)
        fits = len(shape) == 3 and min(shape) >= 1 and not any(n % p for n in shape[1:])
        expect.that(fits, f"image_shape (C, Y, X), Y and X in multiples of {p}", shape)
        expect.at_least(0, num_classes=self.num_classes)
        expect.above(0, scale=self.scale)


class DiT(nn.Module):
    """out = unpatch(W (norm(block(… block(W_in patch(x) + p(row, column), e) …)) (1 + s) + b)),

    e = SiLU(W₂ SiLU(W₁ p(condition)) + v_label),   (b, s) = W e,   p sinusoidal.

    Every gate, and the last W, starts at 0: blocks that change nothing, and an output of 0.

    Source: Peebles and Xie 2023, section 3.2 and figure 3; text by cross-attention: figure 3, too.
    Derived: —
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config, width = config, config.width
        channels, *sides = config.image_shape
        self.grid, pixels = [n // config.patch for n in sides], channels * config.patch**2
        self.condition_1, self.condition_2 = nn.Linear(width, width), nn.Linear(width, width)
        self.label = nn.Embedding(config.num_classes + 1, width) if config.num_classes else None
        self.text = nn.Linear(config.text_width, width) if config.text_width else None
        self.first = nn.Linear(pixels, width)
        self.positions = Sinusoidal(width // 2, max(self.grid))
        sizes = width, config.num_heads, self.text is not None
        self.blocks = nn.ModuleList(AdaptiveBlock(*sizes) for _ in range(config.num_layers))
        self.modulate, self.last = nn.Linear(width, 2 * width), nn.Linear(width, pixels)
        _start_at_zero(self.modulate, self.last)

    def forward(
        self,
        x: Images,
        condition: Conditions,
        label: Labels = None,
        text: Text = None,
        text_mask: TextMask = None,
    ) -> Images:
        """The output for images of one noise level each; K, or None for all, means "no label".

        Where text_mask is False, a text has no token: all may look at the others alone.
        """
        self._check(x, condition, text, text_mask)
        num_classes = self.config.num_classes
        none = torch.full_like(condition, num_classes, dtype=torch.long)
        label = none if label is None and num_classes else label
        require_labels(label, num_classes=num_classes and num_classes + 1, batch=len(x))
        p = sinusoidal(self.config.scale * condition, self.config.width)  #  B C
        e = self.condition_2(F.silu(self.condition_1(p.to(x.dtype))))  #   B C
        e = F.silu(e if label is None else e + self.label(label))
        memory = None if text is None else self.text(text)  #              B M C
        mask = None if text_mask is None else text_mask[:, None, None]  #  B 1 1 M
        h = F.pixel_unshuffle(x, self.config.patch).flatten(2).mT  #       B T C·p²
        h = self.first(h) + self._places()  #                              B T C
        for block in self.blocks:
            h = block(h, e, memory, mask)
        h = self.last(_modulated(h, *self.modulate(e).chunk(2, 1)))  #     B T C·p²
        return F.pixel_shuffle(h.mT.unflatten(2, self.grid), self.config.patch)  # B C Y X

    def _places(self):
        """For each token half the width for its row and half for its column."""
        rows, columns = (self.positions.table[:n] for n in self.grid)  #   Y/p C/2, X/p C/2
        grid = rows[:, None].expand(-1, len(columns), -1), columns.expand(len(rows), -1, -1)
        return torch.cat(grid, 2).flatten(0, 1)  #                         T C

    def _check(self, x, condition, text, text_mask):
        expect.shaped(("B", *self.config.image_shape), x=x)
        expect.shaped((len(x),), condition=condition)
        width = self.config.text_width
        wanted = "no text, text_width is None" if width is None else f"text of width {width}"
        expect.that((text is None) == (width is None), wanted, "None" if text is None else "some")
        expect.that(text is not None or text_mask is None, "text beside text_mask", "None")
        expect.shaped((len(x), None, width), text=text)
        expect.shaped(() if text is None else text.shape[:2], text_mask=text_mask)
        expect.of_dtype((torch.bool,), text_mask=text_mask)


class AdaptiveBlock(nn.Module):
    """x ← x + g ⊙ attention(norm(x) ⊙ (1 + s) + b),   x ← x + cross(norm(x), text),

    x ← x + g' ⊙ mlp(norm(x) ⊙ (1 + s') + b'),   (b, s, g, b', s', g') = W e, W = 0 at the start.

    The norms have no weights of their own. `cross` starts at 0, too, without a gate.

    Source: Peebles and Xie 2023, section 3.2, adaLN-Zero.
    Derived: —
    """

    def __init__(self, width: int, num_heads: int, has_cross: bool = False):
        super().__init__()
        self.attention = MultiHeadAttention(width, num_heads, bias=True)
        self.cross = MultiHeadAttention(width, num_heads, bias=True) if has_cross else None
        self.mlp = MLP(width, 4 * width, activation="gelu_tanh", bias=True)
        self.modulate = nn.Linear(width, 6 * width)
        _start_at_zero(self.modulate, *([self.cross.output] if has_cross else []))

    def forward(self, x: Stream, e: Told, memory: Memory = None, mask: Mask = None) -> Stream:
        """The stream with all answers added."""
        b, s, g, b_2, s_2, g_2 = self.modulate(e).chunk(6, 1)  #           B C each
        x = x + g[:, None] * self.attention(_modulated(x, b, s))  #        B T C
        if self.cross is not None:
            x = x + self.cross(layer_norm(x, eps=1e-6), memory, mask=mask)
        return x + g_2[:, None] * self.mlp(_modulated(x, b_2, s_2))


def _modulated(x, shift, scale):
    return torch.addcmul(shift[:, None], layer_norm(x, eps=1e-6), 1 + scale[:, None])


def _start_at_zero(*layers):
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
