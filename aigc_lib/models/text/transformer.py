"""The Transformer: an encoder reads one sequence, a decoder writes another while looking at it."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from aigc_lib.layers.attention import MultiHeadAttention, Projected
from aigc_lib.layers.block import Block, Stack
from aigc_lib.layers.embedding import TokenEmbedding
from aigc_lib.layers.kv_cache import KVCache, positions_of
from aigc_lib.layers.mlp import ACTIVATIONS, MLP
from aigc_lib.layers.norm import LayerNorm
from aigc_lib.layers.positions import Sinusoidal


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and choices of a Transformer.

    Attributes:
        source_vocab: size of the vocabulary that is read.
        target_vocab: V, size of the vocabulary that is written.
        pad: the source token that fills up short sequences and is never looked at; None without.
        context: most tokens of a source, and of a target.
        width: C, of both residual streams.
        num_layers: number of blocks in the encoder, and in the decoder.
        num_heads: H, in each attention; must divide the width.
        hidden: width inside a perceptron; None means 4 C.
        activation: of the perceptrons, as in `MLP`.
        positions: "sinusoidal" or "learned", added to the embeddings.
        shared: one embedding for both sides; the vocabularies are then one.
        tied: read out with the target's embedding.
        bias: in every linear map and LayerNorm.
        dropout: share of the embeddings and of each sublayer's answer that training zeroes.
        eps: of the norms.
    """

    source_vocab: int
    target_vocab: int
    pad: int | None = None
    context: int = 64
    width: int = 96
    num_layers: int = 2
    num_heads: int = 4
    hidden: int | None = None
    activation: str = "relu"
    positions: str = "sinusoidal"
    shared: bool = False
    tied: bool = True
    bias: bool = True
    dropout: float = 0.0
    eps: float = 1e-5

    def __post_init__(self):
        sizes = ("source_vocab", "target_vocab", "context", "width", "num_layers", "num_heads")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.hidden is not None and self.hidden < 1:
            raise ValueError(f"expected hidden >= 1 or None, got {self.hidden}")
        if self.width % self.num_heads:
            raise ValueError(
                f"expected heads that divide the width, got {self.num_heads} and {self.width}"
            )
        for name, known in (
            ("positions", ("sinusoidal", "learned")),
            ("activation", tuple(ACTIVATIONS)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"expected {name} out of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if self.shared and self.source_vocab != self.target_vocab:
            raise ValueError(
                "expected one vocabulary for a shared embedding, got "
                f"{self.source_vocab} and {self.target_vocab} tokens"
            )
        if self.pad is not None and not 0 <= self.pad < self.source_vocab:
            raise ValueError(f"expected a pad from 0 to {self.source_vocab - 1}, got {self.pad}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"expected a dropout in [0, 1), got {self.dropout}")


class Transformer(nn.Module):
    """Encoder blocks over the source, decoder blocks over the target that also look at the memory.

    memory = norm(EncoderBlock_L(… √C·E[source] + p)),
    features = norm(DecoderBlock_L(… √C·E′[target] + p′, memory)),   logits_t = U features_t,

    U = E′ if tied. Logits at place t depend on the whole source and on target tokens 0 … t.
    Blocks are in the pre-norm form: with the post-norm form of 2017 the gradients near the output
    are large at the start, and training fails without a careful warm-up.

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

    @property
    def head_weight(self) -> Float[Tensor, "V C"]:
        """The read-out U: logits = features Uᵀ."""
        return self.embedding.weight if self.head is None else self.head.weight

    def forward(
        self, source: Int[Tensor, "B M"], target_in: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each target token.

        Args:
            source: what is read; padded with `pad`.
            target_in: what was written so far, from the start token on (teacher forcing).

        Returns:
            (B, T, V).

        Raises:
            ValueError: tokens of another kind, too many, or (seen on the CPU alone) outside their
                vocabulary; source and target of different batches.
        """
        return self.features(source, target_in) @ self.head_weight.T

    def features(
        self, source: Int[Tensor, "B M"], target_in: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """What the read-out reads, for a loss that never writes all logits down.

        Args:
            source: as in `forward`.
            target_in: as in `forward`.

        Returns:
            (B, T, C).

        Raises:
            ValueError: as in `forward`.
        """
        return self.decode(target_in, self.encode(source), self.source_mask(source))

    def source_mask(self, source: Int[Tensor, "B M"]) -> Bool[Tensor, "B 1 1 M"] | None:
        """True at the source tokens that may be looked at, all but the padding.

        Args:
            source: as in `forward`.

        Returns:
            A mask for every attention to the source; None in a model without `pad`.
        """
        pad = self.config.pad
        return None if pad is None else (source != pad)[:, None, None]

    def encode(self, source: Int[Tensor, "B M"]) -> Float[Tensor, "B M C"]:
        """Read the source.

        Args:
            source: as in `forward`.

        Returns:
            The memory, (B, M, C); what stands at padding is never looked at.

        Raises:
            ValueError: as in `forward`.
        """
        x, positions = self.source_embedding(source), positions_of(source, None)
        x = self._enter(x, self.source_positions(positions))  #               B M C
        return self.memory_norm(self.encoder(x, mask=self.source_mask(source)))

    def decode(
        self,
        target_in: Int[Tensor, "B T"],
        memory: Float[Tensor, "B M C"] | list[Projected],
        source_mask: Bool[Tensor, "B 1 1 M"] | None = None,
        *,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Features of the target, given what the encoder made of the source.

        Args:
            target_in: as in `forward`.
            memory: from `encode`, or from `project` for many steps with one source.
            source_mask: from `source_mask`.
            cache: keys and values of the target tokens before these; it is filled and advanced.

        Returns:
            (B, T, C).

        Raises:
            ValueError: as in `forward`.
        """
        x, positions = self.embedding(target_in), positions_of(target_in, cache)
        x = self._enter(x, self.positions(positions))  #                      B T C
        x = self.decoder(x, memory, memory_mask=source_mask, cache=cache, positions=positions)
        return self.norm(x)

    def project(self, memory: Float[Tensor, "B M C"]) -> list[Projected]:
        """The memory's keys and values for each decoder block, so that steps need not repeat them.

        Args:
            memory: from `encode`.

        Returns:
            One pair for each block, for `decode`.
        """
        return [block.cross.project(memory) for block in self.decoder]

    @torch.no_grad()
    def alignment(
        self, source: Int[Tensor, "B M"], target_in: Int[Tensor, "B T"], *, layer: int = -1
    ) -> Float[Tensor, "B H T M"]:
        """How much each target token of one decoder block looks at each source token.

        Args:
            source: as in `forward`.
            target_in: as in `forward`.
            layer: which block; negative ones count from the last.

        Returns:
            (B, H, T, M) weights; each row is a distribution over the source without its padding.

        Raises:
            ValueError: as in `forward`, or there is no such layer.
        """
        num_layers = len(self.decoder)
        if not -num_layers <= layer < num_layers:
            raise ValueError(f"expected a layer from 0 to {num_layers - 1}, got {layer}")
        memory, mask = self.encode(source), self.source_mask(source)
        x, positions = self.embedding(target_in), positions_of(target_in, None)
        x = self.decoder[: layer % num_layers](
            self._enter(x, self.positions(positions)), memory, memory_mask=mask
        )
        return self.decoder[layer].cross_weights(x, memory, memory_mask=mask)

    def given(self, source: Int[Tensor, "B M"]) -> "Conditioned":
        """A decoder of targets for one batch of sources, with the interface of a GPT.

        Args:
            source: as in `forward`.

        Returns:
            What a decoding loop takes: tokens in, logits out, and `new_cache`. The source is read
            and its keys and values are projected here, once.

        Raises:
            ValueError: as in `forward`.
        """
        return Conditioned(self, source)

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


class Conditioned:
    """A `Transformer` whose source is given: the next target token from the earlier ones.

    p(target_{t+1} | target_{≤t}, source).

    Attributes:
        model: the Transformer.
        memory: keys and values of the source, one pair for each decoder block.
        mask: where the source may be looked at.
    """

    def __init__(self, model: Transformer, source: Int[Tensor, "B M"]):
        """Read the source.

        Args:
            model: the Transformer.
            source: (B, M) tokens.
        """
        self.model, self.config = model, model.config
        self.memory, self.mask = model.project(model.encode(source)), model.source_mask(source)

    @property
    def head_weight(self) -> Float[Tensor, "V C"]:
        """The read-out, as `Transformer.head_weight`."""
        return self.model.head_weight

    def __call__(
        self, tokens: Int[Tensor, "B T"], *, cache: KVCache | None = None
    ) -> Float[Tensor, "B T V"]:
        """Logits of the token that follows each target token, as `GPT.forward`.

        Args:
            tokens: target tokens, from the start token on.
            cache: keys and values of those before them; it is filled and advanced.

        Returns:
            (B, T, V).
        """
        return self.features(tokens, cache=cache) @ self.head_weight.T

    def features(
        self, tokens: Int[Tensor, "B T"], *, cache: KVCache | None = None
    ) -> Float[Tensor, "B T C"]:
        """What the read-out reads, as `GPT.features`.

        Args:
            tokens: as in `__call__`.
            cache: as in `__call__`.

        Returns:
            (B, T, C).
        """
        return self.model.decode(tokens, self.memory, self.mask, cache=cache)

    def new_cache(
        self,
        batch: int,
        *,
        length: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> KVCache:
        """An empty cache for the target, as `GPT.new_cache`.

        Args:
            batch: B, as many as sources.
            length: most tokens that it shall hold; None means the context.
            dtype: of keys and values; None means that of the weights.
            device: None means that of the weights.

        Returns:
            The cache.

        Raises:
            ValueError: the length is not in 1 … context, or the batch is empty.
        """
        blocks, context = self.model.decoder, self.config.context
        return blocks.new_cache(batch, context, length=length, dtype=dtype, device=device)


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
