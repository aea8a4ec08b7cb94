"""The Transformer block: look something up, think about it, add both to the residual stream."""

from collections.abc import Callable

from jaxtyping import Float, Int
from torch import Tensor, nn

from aigc_lib.layers.attention import Mask, Memory, MultiHeadAttention, Projected, Stream
from aigc_lib.layers.kv_cache import KVCache, LayerCache
from aigc_lib.layers.mlp import MLP
from aigc_lib.layers.positions import RotaryRows


class Block(nn.Module):
    """Sublayers that each read a normalised copy of the stream and add their answer to it.

    x ← x + attention(norm(x)),   x ← x + cross(norm(x), memory),   x ← x + mlp(norm(x)),

    the middle one only with `cross`. This is the pre-norm form: the stream itself is never
    normalised: gradients pass along it from end to end, and training needs no long warm-up.
    `norm` makes one normalisation a call; `dropout` zeroes that share of each answer in training.

    Source: Xiong et al. 2020, figure 1b and table 1, of Vaswani et al. 2017, section 3.1.
    Derived: 12_transformer eq-blocks
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        mlp: MLP,
        norm: Callable[[], nn.Module],
        *,
        cross: MultiHeadAttention | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.attention_norm, self.attention = norm(), attention
        self.cross_norm, self.cross = (None, None) if cross is None else (norm(), cross)
        self.mlp_norm, self.mlp = norm(), mlp
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(
        self,
        x: Stream,
        memory: Memory = None,
        *,
        mask: Mask = None,
        memory_mask: Mask = None,
        rotary: RotaryRows | None = None,
        cache: LayerCache | None = None,
    ) -> Stream:
        """The stream with all answers added; `mask`, `rotary` and `cache` are for self-attention.

        `memory` and `memory_mask` are what `cross` looks at and where it may.
        """
        x = self._attend(x, mask, rotary, cache)
        if self.cross is not None:
            x = self._add(x, self.cross(self.cross_norm(x), memory, mask=memory_mask))
        return self._add(x, self.mlp(self.mlp_norm(x)))

    def cross_weights(
        self, x: Stream, memory: Memory, *, memory_mask: Mask = None
    ) -> Float[Tensor, "B H T M"]:
        """How much each token of this block looks at each token of the memory."""
        x = self._attend(x, None, None, None)
        return self.cross.weights(self.cross_norm(x), memory, mask=memory_mask)

    def _attend(self, x, mask, rotary, cache) -> Tensor:
        answer = self.attention(self.attention_norm(x), mask=mask, rotary=rotary, cache=cache)
        return self._add(x, answer)

    def _add(self, x, answer) -> Tensor:
        return x + (answer if self.dropout is None else self.dropout(answer))


class Stack(nn.ModuleList):
    """Blocks one after the other: x^l = Block_l(x^{l−1}); in a decoder they share one cache.

    Source: Vaswani et al. 2017, section 3.1.
    Derived: 12_transformer eq-blocks
    """

    def forward(
        self,
        x: Stream,
        memory: Memory | list[Projected] = None,
        *,
        mask: Mask = None,
        memory_mask: Mask = None,
        rotary: RotaryRows | None = None,
        cache: KVCache | None = None,
        positions: Int[Tensor, " T"] | None = None,
    ) -> Stream:
        """The stream after the last block; a cache needs `positions`, and is filled and advanced.

        `memory` is one for all blocks, or each one's own keys and values.
        """
        parts = [None] * len(self) if cache is None else cache.layers(positions)
        memories = memory if isinstance(memory, list) else [memory] * len(self)
        for block, seen, part in zip(self, memories, parts, strict=True):
            x = block(x, seen, mask=mask, memory_mask=memory_mask, rotary=rotary, cache=part)
        if cache is not None:
            cache.advance(x.shape[1])
        return x
