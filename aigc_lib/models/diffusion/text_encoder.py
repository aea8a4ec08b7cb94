"""A text encoder: from a caption's tokens to the vectors that a diffusion model looks up."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from aigc_lib.layers.attention import MultiHeadAttention
from aigc_lib.layers.block import Block, Stack
from aigc_lib.layers.embedding import TokenEmbedding
from aigc_lib.layers.mlp import MLP
from aigc_lib.layers.norm import LayerNorm
from aigc_lib.layers.positions import Rotary

Text = tuple[Float[Tensor, "B M C"], Bool[Tensor, "B M"]]


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """Sizes of a TextEncoder."""

    vocab_size: int  # V, with token 0, the padding
    context: int = 32  # most tokens of a caption
    width: int = 96
    num_layers: int = 2
    num_heads: int = 4


class TextEncoder(nn.Module):
    """text = norm(Block_L(… E[token] …)), rotary, and a mask, True where it may be attended to.

    Token 0 is padding, of which nothing is seen, but for the empty caption: of that the first place
    is, with the vector that E[0] becomes, which is learned from empty captions alone.

    Source: Saharia et al. 2022 (Imagen), section 2.1, but trained with the images, as Rombach et
    al. 2022, section 4.3.1; the empty caption: Ho and Salimans 2022, algorithm 1.
    Derived: 12_transformer eq-blocks
    """

    def __init__(self, config: TextEncoderConfig):
        super().__init__()
        self.config, width = config, config.width
        norm = partial(LayerNorm, width)
        self.embedding = TokenEmbedding(config.vocab_size, width, config.context)
        self.blocks = Stack(
            Block(MultiHeadAttention(width, config.num_heads), MLP(width, 4 * width), norm)
            for _ in range(config.num_layers)
        )
        self.positions = Rotary(width // config.num_heads, config.context)
        self.norm = norm()

    def forward(self, tokens: Int[Tensor, "B M"]) -> Text:
        """Vectors of width C and the mask; tokens run to V − 1."""
        x = self.embedding(tokens)  #                                      B M C
        rotary = self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        mask = tokens != 0  #                                              B M
        mask[:, 0] |= ~mask.any(1)
        return self.norm(self.blocks(x, mask=mask[:, None, None], rotary=rotary)), mask
