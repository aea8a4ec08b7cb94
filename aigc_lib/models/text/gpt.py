"""GPT: a decoder-only Transformer, which guesses the next token from all the earlier ones."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aigc_lib import expect
from aigc_lib.layers.attention import MultiHeadAttention
from aigc_lib.layers.block import Block, Stack
from aigc_lib.layers.decoder import Decoder
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
    """

    vocab_size: int
    context: int = 256  # most tokens that it can see at once
    width: int = 96
    num_layers: int = 3
    num_heads: int = 4
    positions: str = "rotary"  # turns queries and keys; "learned" adds a vector to each token
    norm: str = "layer"  # or "rms"
    activation: str = "gelu"  # or another one of `MLP`
    hidden: int | None = None  # in a perceptron; None: 4 C, with SwiGLU ⅔ of it in steps of 8
    tied: bool = True  # read out with the embedding matrix
    bias: bool = False  # in every linear map and LayerNorm
    dropout: float = 0.0  # share of the embeddings and of each sublayer's answer
    eps: float | None = None  # of the norms; None: 1e-5 for "layer", 1e-6 for "rms"

    def __post_init__(self):
        expect.at_least(1, vocab_size=self.vocab_size, context=self.context, hidden=self.hidden)
        expect.at_least(1, width=self.width, num_layers=self.num_layers, num_heads=self.num_heads)
        divides = self.width % self.num_heads == 0
        expect.that(divides, f"num_heads that divide width {self.width}", self.num_heads)
        expect.one_of(("rotary", "learned"), positions=self.positions)
        expect.one_of(("layer", "rms"), norm=self.norm)
        expect.one_of(ACTIVATIONS, activation=self.activation)
        even = self.positions != "rotary" or self.head_width % 2 == 0
        expect.that(even, "an even width / num_heads with rotary positions", self.head_width)
        expect.at_least(0, dropout=self.dropout, eps=self.eps)
        expect.below(1, dropout=self.dropout)

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


class GPT(Decoder, nn.Module):
    """Embedding, blocks that each add to the residual stream, a last norm, a read-out.

    x⁰_t = E[token_t] (+ p_t),   x^l = Block_l(x^{l−1}),   logits_t = U norm(x^L_t),   U = E if tied

    Logits at place t depend on tokens 0 … t alone: p(token_{t+1} | token_{≤t}) is their softmax.
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
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        self._initialise()

    def features(
        self, tokens: Int[Tensor, "B T"], *, cache: KVCache | None = None
    ) -> Float[Tensor, "B T C"]:
        """norm(x^L): what the read-out reads, for a loss that never writes all logits down."""
        x = self.embedding(tokens)  #                                      B T C
        positions, rotary = positions_of(tokens, cache), None  #                 T
        if self.config.positions == "learned":
            x = x + self.positions(positions)
        else:
            rotary = self.rotary(positions)
        x = self.blocks(self.dropout(x), rotary=rotary, cache=cache, positions=positions)
        return self.norm(x)

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
