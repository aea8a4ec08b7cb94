"""GPT: a decoder-only Transformer, which guesses the next token from all the earlier ones."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aigc_lib.layers.attention import MultiHeadAttention
from aigc_lib.layers.block import Block, Stack
from aigc_lib.layers.embedding import TokenEmbedding
from aigc_lib.layers.kv_cache import KVCache, positions_of
from aigc_lib.layers.mlp import ACTIVATIONS, MLP
from aigc_lib.layers.norm import LayerNorm, RMSNorm
from aigc_lib.layers.positions import Rotary


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes and choices of a GPT.

    The published GPT-2 is positions="learned", norm="layer", activation="gelu_tanh", bias=True,
    tied=True, eps=1e-5, with context 1024 and a vocabulary of 50257; its smallest has width 768,
    12 layers and 12 heads.

    Attributes:
        vocab_size: V, number of tokens.
        context: most tokens that it can see at once.
        width: C, of the residual stream.
        num_layers: number of blocks.
        num_heads: H, in each block; must divide the width.
        positions: "rotary" turns queries and keys, "learned" adds a vector to each token.
        norm: "layer" or "rms".
        activation: of the perceptrons, "gelu", "gelu_tanh", "relu" or "swiglu".
        hidden: width inside a perceptron; None means 4 C, with SwiGLU ⅔ of it rounded up to a
            multiple of 8.
        tied: read out with the embedding matrix.
        bias: in every linear map and LayerNorm.
        dropout: share of the embeddings and of each sublayer's answer that training zeroes.
        eps: of the norms; None means 1e-5 for "layer", 1e-6 for "rms".
    """

    vocab_size: int
    context: int = 256
    width: int = 96
    num_layers: int = 3
    num_heads: int = 4
    positions: str = "rotary"
    norm: str = "layer"
    activation: str = "gelu"
    hidden: int | None = None
    tied: bool = True
    bias: bool = False
    dropout: float = 0.0
    eps: float | None = None

    def __post_init__(self):
        for name in ("vocab_size", "context", "width", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"expected hidden >= 1 or None, got {self.hidden}")
        if self.width % self.num_heads:
            raise ValueError(
                f"expected heads that divide the width, got {self.num_heads} and {self.width}"
            )
        for name, known in (
            ("positions", ("rotary", "learned")),
            ("norm", ("layer", "rms")),
            ("activation", tuple(ACTIVATIONS)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"expected {name} out of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(
                f"expected an even head width for rotary positions, got {self.head_width}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"expected a dropout in [0, 1), got {self.dropout}")
        if self.eps is not None and not self.eps >= 0:
            raise ValueError(f"expected eps >= 0 or None, got {self.eps}")

    @property
    def head_width(self) -> int:
        """K = C/H."""
        return self.width // self.num_heads

    @property
    def hidden_width(self) -> int:
        """Width inside a perceptron, whether given or not."""
        if self.hidden is not None:
            return self.hidden
        return 8 * math.ceil(self.width / 3) if self.activation == "swiglu" else 4 * self.width


class GPT(nn.Module):
    """Embedding, blocks that each add to the residual stream, a last norm, a read-out.

    x⁰_t = E[token_t] (+ p_t),   x^l = Block_l(x^{l−1}),   logits_t = U norm(x^L_t),

    U = E if tied. Logits at place t depend on tokens 0 … t alone: p(token_{t+1} | token_{≤t}) is
    their softmax.

    Weights start as published for GPT-2: normal with deviation 0.02, the last matrix of each
    sublayer divided by √(2·layers), so that the stream's variance does not grow with depth.

    Source: Radford et al. 2019, section 2.3; rotary positions: Su et al. 2021.
    Derived: 13_gpt eq-gpt-chain
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.embedding = TokenEmbedding(config.vocab_size, config.width, config.context)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.context, config.width)
        else:
            self.rotary = Rotary(config.head_width, config.context)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.blocks = Stack(_block(config) for _ in range(config.num_layers))
        self.norm = _norm(config)()
        self.head = None
        if not config.tied:
            self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self._initialise()

    @property
    def head_weight(self) -> Float[Tensor, "V C"]:
        """The read-out U: logits = features Uᵀ."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self, tokens: Int[Tensor, "B T"], *, cache: KVCache | None = None
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each token.

        Args:
            tokens: from 0 to V − 1; T from 1 to what is left of the context.
            cache: keys and values of the tokens before these; it is filled and advanced.

        Returns:
            (B, T, V).

        Raises:
            ValueError: the tokens are of another kind, too many, or (seen on the CPU alone)
                outside the vocabulary.
        """
        return self.features(tokens, cache=cache) @ self.head_weight.T

    def features(
        self, tokens: Int[Tensor, "B T"], *, cache: KVCache | None = None
    ) -> Float[Tensor, "B T C"]:
        """What the read-out reads, for a loss that never writes all logits down.

        Args:
            tokens: as in `forward`.
            cache: as in `forward`.

        Returns:
            (B, T, C).

        Raises:
            ValueError: as in `forward`.
        """
        x = self.embedding(tokens)  #                                      B T C
        positions = positions_of(tokens, cache)  #                               T
        rotary = None
        if self.config.positions == "learned":
            x = x + self.positions(positions)
        else:
            rotary = self.rotary(positions)
        x = self.blocks(self.dropout(x), rotary=rotary, cache=cache, positions=positions)
        return self.norm(x)

    def new_cache(
        self,
        batch: int,
        *,
        length: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> KVCache:
        """An empty cache for this model.

        Args:
            batch: B.
            length: most tokens that it shall hold; None means the context.
            dtype: of keys and values; None means that of the weights.
            device: None means that of the weights.

        Returns:
            The cache, for `forward` and `features`.

        Raises:
            ValueError: the length is not in 1 … context, or the batch is empty.
        """
        context = self.config.context
        return self.blocks.new_cache(batch, context, length=length, dtype=dtype, device=device)

    @torch.no_grad()
    def _initialise(self) -> None:
        last = 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                is_last = name.endswith(("attention.output.weight", "mlp.down.weight"))
                parameter.normal_(0, last if is_last else 0.02)
            elif name.endswith("bias"):
                parameter.zero_()


def _norm(config):
    if config.norm == "rms":
        return partial(RMSNorm, config.width, eps=1e-6 if config.eps is None else config.eps)
    eps = 1e-5 if config.eps is None else config.eps
    return partial(LayerNorm, config.width, bias=config.bias, eps=eps)


def _block(config) -> Block:
    return Block(
        MultiHeadAttention(config.width, config.num_heads, is_causal=True, bias=config.bias),
        MLP(config.width, config.hidden_width, activation=config.activation, bias=config.bias),
        _norm(config),
        dropout=config.dropout,
    )
