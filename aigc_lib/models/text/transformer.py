"""The Transformer: an encoder reads one sequence, a decoder writes another while looking at it.

Source tokens are from 0 to source_vocab − 1, target tokens from 0 to V − 1 (looked at on the CPU
alone), of either at most the context; ValueError for others, TypeError if they are not whole.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from aigc_lib import expect
from aigc_lib.layers.attention import MultiHeadAttention, Projected
from aigc_lib.layers.block import Block, Stack
from aigc_lib.layers.decoder import Decoder
from aigc_lib.layers.embedding import TokenEmbedding
from aigc_lib.layers.kv_cache import KVCache, positions_of
from aigc_lib.layers.mlp import ACTIVATIONS, MLP
from aigc_lib.layers.norm import LayerNorm
from aigc_lib.layers.positions import Sinusoidal

Source = Int[Tensor, "B M"]
Target = Int[Tensor, "B T"]
Features = Float[Tensor, "B T C"]
Memory = Float[Tensor, "B M C"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and choices of a Transformer; layers, heads and context are those of either side."""

    source_vocab: int
    target_vocab: int
    pad: int | None = None  # the source token that fills up, and is never looked at; None without
    context: int = 64  # most tokens of a source, and of a target
    width: int = 96
    num_layers: int = 2
    num_heads: int = 4
    hidden: int | None = None  # in a perceptron; None: 4 C
    activation: str = "relu"  # or another one of `MLP`
    positions: str = "sinusoidal"  # or "learned", added to the embeddings
    shared: bool = False  # one embedding for both sides; the vocabularies are then one
    tied: bool = True  # read out with the target's embedding
    bias: bool = True  # in every linear map and LayerNorm
    dropout: float = 0.0  # share of the embeddings and of each sublayer's answer
    eps: float = 1e-5  # of the norms

    def __post_init__(self):
        expect.at_least(1, source_vocab=self.source_vocab, target_vocab=self.target_vocab)
        expect.at_least(1, context=self.context, hidden=self.hidden)
        expect.at_least(1, width=self.width, num_layers=self.num_layers, num_heads=self.num_heads)
        divides = self.width % self.num_heads == 0
        expect.that(divides, f"num_heads that divide width {self.width}", self.num_heads)
        expect.one_of(("sinusoidal", "learned"), positions=self.positions)
        expect.one_of(ACTIVATIONS, activation=self.activation)
        alike = not self.shared or self.source_vocab == self.target_vocab
        expect.that(alike, f"target_vocab {self.source_vocab} if shared", self.target_vocab)
        expect.between(0, self.source_vocab - 1, pad=self.pad)
        expect.at_least(0, dropout=self.dropout)
        expect.below(1, dropout=self.dropout)


class Transformer(Decoder, nn.Module):
    """Encoder blocks over the source, decoder blocks over the target that also look at the memory.

    memory = norm(EncoderBlock_L(… √C·E[source] + p)),
    features = norm(DecoderBlock_L(… √C·E′[target] + p′, memory)),   logits_t = U features_t,

    U = E′ if tied. Logits at place t depend on the whole source and on target tokens 0 … t. In
    the pre-norm form; with the post-norm form of 2017 the gradients near the output are large at
    the start, and training fails without a careful warm-up.

    Source: Vaswani et al. 2017, sections 3.1 and 3.4; Xiong et al. 2020, section 3, for the place
    of the norms and the last norm of each stack.
    Derived: 12_transformer eq-blocks
    """

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        width, context = config.width, config.context
        self.embedding = TokenEmbedding(config.target_vocab, width, context)
        self.source_embedding = (
            self.embedding if config.shared else TokenEmbedding(config.source_vocab, width, context)
        )
        learned = config.positions == "learned"
        make = partial(nn.Embedding, context) if learned else partial(Sinusoidal, length=context)
        self.source_positions, self.positions = make(width), make(width)
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        layers = range(config.num_layers)
        self.encoder = Stack(_block(config, decodes=False) for _ in layers)
        self.memory_norm = LayerNorm(width, bias=config.bias, eps=config.eps)
        self.decoder = Stack(_block(config, decodes=True) for _ in layers)
        self.norm = LayerNorm(width, bias=config.bias, eps=config.eps)
        self.head = None if config.tied else nn.Linear(width, config.target_vocab, bias=False)
        self._initialise()

    def forward(self, source: Source, target_in: Target) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each target token, the true ones given."""
        return self.read_out(self.features(source, target_in))

    def features(self, source: Source, target_in: Target) -> Features:
        """What the read-out reads, for a loss that never writes all logits down."""
        return self.decode(target_in, self.encode(source), self.source_mask(source))

    def given(self, source: Source) -> "Conditioned":
        """The decoder of targets for one batch of sources, with the interface of a GPT."""
        return Conditioned(self, source)

    def source_mask(self, source: Source) -> Bool[Tensor, "B 1 1 M"] | None:
        """True at the source tokens that may be looked at: all but the padding, if there is any."""
        pad = self.config.pad
        return None if pad is None else (source != pad)[:, None, None]

    def encode(self, source: Source) -> Memory:
        """The memory; what stands at padding is never looked at."""
        x, positions = self.source_embedding(source), positions_of(source, None)
        x = self._enter(x, self.source_positions(positions))  #               B M C
        return self.memory_norm(self.encoder(x, mask=self.source_mask(source)))

    def decode(
        self,
        target_in: Target,
        memory: Memory | list[Projected],
        source_mask: Bool[Tensor, "B 1 1 M"] | None = None,
        *,
        cache: KVCache | None = None,
    ) -> Features:
        """Features of the target, from the memory or what `project` made of it.

        A cache holds the target tokens before these; it is filled and advanced.
        """
        x, positions = self.embedding(target_in), positions_of(target_in, cache)
        x = self._enter(x, self.positions(positions))  #                      B T C
        x = self.decoder(x, memory, memory_mask=source_mask, cache=cache, positions=positions)
        return self.norm(x)

    def project(self, memory: Memory) -> list[Projected]:
        """The memory's keys and values for each decoder block, for many steps with one source."""
        return [block.cross.project(memory) for block in self.decoder]

    @torch.no_grad()
    def alignment(
        self, source: Source, target_in: Target, *, layer: int = -1
    ) -> Float[Tensor, "B H T M"]:
        """How much each target token of one decoder block looks at each source token.

        Each row is a distribution over the source without its padding; a negative layer counts
        from the last.
        """
        num_layers = len(self.decoder)
        expect.between(-num_layers, num_layers - 1, layer=layer)
        memory, mask = self.encode(source), self.source_mask(source)
        x, positions = self.embedding(target_in), positions_of(target_in, None)
        x = self._enter(x, self.positions(positions))
        x = self.decoder[: layer % num_layers](x, memory, memory_mask=mask)
        return self.decoder[layer].cross_weights(x, memory, memory_mask=mask)

    def _enter(self, embedded, positions) -> Tensor:
        return self.dropout(math.sqrt(self.config.width) * embedded + positions)

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.width**-0.5)


class Conditioned(Decoder):
    """p(target_{t+1} | target_{≤t}, source): a `Transformer` whose source is given.

    The source is read, and projected to keys and values for each decoder block, once.
    """

    def __init__(self, model: Transformer, source: Source):
        self.model, self.config = model, model.config
        self.embedding, self.head = model.embedding, model.head
        self.memory, self.mask = model.project(model.encode(source)), model.source_mask(source)

    __call__ = Decoder.forward

    def features(self, tokens: Target, *, cache: KVCache | None = None) -> Features:
        """What the read-out reads, as `GPT.features`."""
        return self.model.decode(tokens, self.memory, self.mask, cache=cache)


def _block(config, *, decodes) -> Block:
    heads = partial(MultiHeadAttention, config.width, config.num_heads, bias=config.bias)
    hidden = 4 * config.width if config.hidden is None else config.hidden
    return Block(
        heads(is_causal=decodes),
        MLP(config.width, hidden, activation=config.activation, bias=config.bias),
        partial(LayerNorm, config.width, bias=config.bias, eps=config.eps),
        cross=heads() if decodes else None,
        dropout=config.dropout,
    )
