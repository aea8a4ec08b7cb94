"""A Transformer of attention alone: what look-ups can do, and how many layers of them it takes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aigc_lib.layers.attention import MultiHeadAttention
from aigc_lib.layers.positions import sinusoidal


@dataclass(frozen=True, kw_only=True)
class AttentionOnlyConfig:
    """Sizes of an AttentionOnly model.

    Attributes:
        num_tokens: size of the vocabulary that comes in.
        num_logits: numbers that come out at each position.
        width: C, of the residual stream; even.
        num_heads: H, in each layer; must divide the width.
        num_layers: number of attention layers.
        positions: add sinusoidal positions to the embeddings.
        is_causal: no token sees a later one.
    """

    num_tokens: int
    num_logits: int
    width: int = 64
    num_heads: int = 1
    num_layers: int = 1
    positions: bool = True
    is_causal: bool = True

    def __post_init__(self):
        for name in ("num_tokens", "num_logits", "width", "num_heads", "num_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.width % 2 or self.width % self.num_heads:
            raise ValueError(
                f"expected an even width that the heads divide, got {self.width} and {self.num_heads}"
            )


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

    def forward(self, tokens: Int[Tensor, "B T F"]) -> Float[Tensor, "B T num_logits"]:
        """Logits at every position.

        Args:
            tokens: F tokens share each position; their embeddings are added.

        Returns:
            (B, T, num_logits).

        Raises:
            ValueError: the tokens are not integers of shape (B, T, F).
        """
        x = self._embed(tokens)  #                                         B T C
        for layer in self.layers:
            x = x + layer(x)
        return self.readout(x)  #                                          B T num_logits

    @torch.no_grad()
    def maps(self, tokens: Int[Tensor, "B T F"]) -> list[Float[Tensor, "B H T T"]]:
        """The attention weights of every layer, first layer first.

        Args:
            tokens: as in `forward`.

        Returns:
            One (B, H, T, T) tensor for each layer.

        Raises:
            ValueError: the tokens are not integers of shape (B, T, F).
        """
        x, maps = self._embed(tokens), []
        for layer in self.layers:
            maps.append(layer.weights(x))
            x = x + layer(x)
        return maps

    def _embed(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 3 or tokens.is_floating_point():
            raise ValueError(
                f"expected whole-number tokens of shape (batch, tokens, features), got "
                f"{tokens.dtype} {tuple(tokens.shape)}"
            )
        x = self.embedding(tokens).sum(2)
        if not self.config.positions:
            return x
        positions = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        return x + sinusoidal(positions, self.config.width)
