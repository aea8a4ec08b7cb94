"""A Transformer of attention alone: what look-ups can do, and how many layers of them it takes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aigc_lib import expect
from aigc_lib.layers.attention import MultiHeadAttention
from aigc_lib.layers.positions import sinusoidal

Tokens = Int[Tensor, "B T F"]


@dataclass(frozen=True, kw_only=True)
class AttentionOnlyConfig:
    """Sizes of an AttentionOnly model: `num_logits` numbers come out at each position.

    `positions` adds sinusoidal ones to the embeddings; `is_causal` lets no token see a later one.
    """

    num_tokens: int
    num_logits: int
    width: int = 64
    num_heads: int = 1
    num_layers: int = 1
    positions: bool = True
    is_causal: bool = True

    def __post_init__(self):
        expect.at_least(1, num_tokens=self.num_tokens, num_logits=self.num_logits)
        expect.at_least(1, width=self.width, num_heads=self.num_heads, num_layers=self.num_layers)
        expect.that(self.width % 2 == 0, "an even width", self.width)
        divides = self.width % self.num_heads == 0
        expect.that(divides, f"num_heads that divide width {self.width}", self.num_heads)


class AttentionOnly(nn.Module):
    """Embeddings, layers of attention that each add to the residual stream, a linear read-out.

    x⁰_t = Σ_f E[token_tf] + p_t,   x^l = x^{l−1} + MHA_l(x^{l−1}),   logits_t = U x^L_t.

    There is no perceptron and no normalisation: whatever it computes, attention computed.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", sections on
    one-layer and two-layer attention-only transformers.
    Derived: 11_attention eq-attention-only
    """

    def __init__(self, config: AttentionOnlyConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.num_tokens, config.width)
        self.layers = nn.ModuleList(
            MultiHeadAttention(config.width, config.num_heads, is_causal=config.is_causal)
            for _ in range(config.num_layers)
        )
        self.readout = nn.Linear(config.width, config.num_logits, bias=False)

    def forward(self, tokens: Tokens) -> Float[Tensor, "B T num_logits"]:
        """Logits at every position; F tokens share it, and their embeddings are added."""
        x = self._embed(tokens)  #                                         B T C
        for layer in self.layers:
            x = x + layer(x)
        return self.readout(x)  #                                          B T num_logits

    @torch.no_grad()
    def maps(self, tokens: Tokens) -> list[Float[Tensor, "B H T T"]]:
        """The attention weights of every layer, first layer first."""
        x, maps = self._embed(tokens), []
        for layer in self.layers:
            maps.append(layer.weights(x))
            x = x + layer(x)
        return maps

    def _embed(self, tokens: Tensor) -> Tensor:
        expect.shaped((None, None, None), tokens=tokens)
        expect.whole(tokens=tokens)
        x = self.embedding(tokens).sum(2)
        if not self.config.positions:
            return x
        positions = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        return x + sinusoidal(positions, self.config.width)
