"""The Transformer block: look something up, think about it, add both to the residual stream."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from aigc_lib.layers.attention import MultiHeadAttention, Projected
from aigc_lib.layers.kv_cache import KVCache, LayerCache
from aigc_lib.layers.mlp import MLP


class Block(nn.Module):
    """Sublayers that each read a normalised copy of the stream and add their answer to it.

    x ← x + attention(norm(x)),   x ← x + cross(norm(x), memory),   x ← x + mlp(norm(x)),

    the middle one only with `cross`. This is the pre-norm form: the stream itself is never
    normalised, so that gradients reach every layer undamped and training needs no long warm-up.

    Source: Xiong et al. 2020, figure 1b and table 1, of Vaswani et al. 2017, section 3.1.
    Derived: 12_transformer eq-blocks

    Args:
        attention: self-attention, causal in a decoder.
        mlp: what each token works out on its own.
        norm: makes one normalisation; called once for each sublayer.
        cross: attention to a memory, None without.
        dropout: share of each sublayer's answer that is zeroed in training.
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
        x: Float[Tensor, "B T C"],
        memory: Float[Tensor, "B M C"] | Projected | None = None,
        *,
        mask: Bool[Tensor, "..."] | None = None,
        memory_mask: Bool[Tensor, "..."] | None = None,
        rotary: Float[Tensor, "T half 2"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Run the block.

        Args:
            x: the residual stream.
            memory: what `cross` looks at, or its keys and values as `cross.project` gave them.
            mask: True where a token may attend in x.
            memory_mask: True where a token may attend in the memory.
            rotary: rotary positions of the tokens, None without.
            cache: this layer's earlier keys and values.

        Returns:
            The stream with the answers added.
        """
        x = self._attend(x, mask, rotary, cache)
        if self.cross is not None:
            x = self._add(x, self.cross(self.cross_norm(x), memory, mask=memory_mask))
        return self._add(x, self.mlp(self.mlp_norm(x)))

    def cross_weights(
        self,
        x: Float[Tensor, "B T C"],
        memory: Float[Tensor, "B M C"] | Projected,
        *,
        memory_mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "B H T M"]:
        """How much each token of this block looks at each token of the memory.

        Args:
            x: as in `forward`, like the next two.
            memory: what is looked at.
            memory_mask: True where a token may attend.

        Returns:
            (B, H, T, M) weights.
        """
        x = self._attend(x, None, None, None)
        return self.cross.weights(self.cross_norm(x), memory, mask=memory_mask)

    def _attend(self, x, mask, rotary, cache) -> Tensor:
        answer = self.attention(self.attention_norm(x), mask=mask, rotary=rotary, cache=cache)
        return self._add(x, answer)

    def _add(self, x, answer) -> Tensor:
        return x + (answer if self.dropout is None else self.dropout(answer))


class Stack(nn.ModuleList):
    """Blocks one after the other; in a decoder they share one cache.

    x^l = Block_l(x^{l−1}).

    Source: Vaswani et al. 2017, section 3.1.
    Derived: 12_transformer eq-blocks
    """

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        memory: Float[Tensor, "B M C"] | list[Projected] | None = None,
        *,
        mask: Bool[Tensor, "..."] | None = None,
        memory_mask: Bool[Tensor, "..."] | None = None,
        rotary: Float[Tensor, "T half 2"] | None = None,
        cache: KVCache | None = None,
        positions: Int[Tensor, " T"] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Run all blocks.

        Args:
            x: as in `Block`, like `mask`, `memory_mask` and `rotary`.
            memory: what every block looks at, or each one's own keys and values.
            mask: True where a token may attend in x.
            memory_mask: True where a token may attend in the memory.
            rotary: rotary positions of the tokens.
            cache: of the tokens before x; it is filled and advanced.
            positions: of the tokens, as the cache gave them; needed with a cache.

        Returns:
            The stream after the last block.
        """
        parts = [None] * len(self) if cache is None else cache.layers(positions)
        memories = memory if isinstance(memory, list) else [memory] * len(self)
        for block, seen, part in zip(self, memories, parts, strict=True):
            x = block(x, seen, mask=mask, memory_mask=memory_mask, rotary=rotary, cache=part)
        if cache is not None:
            cache.advance(x.shape[1])
        return x

    def new_cache(
        self,
        batch: int,
        context: int,
        *,
        length: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> KVCache:
        """An empty cache for the self-attention of these blocks.

        Args:
            batch: B.
            context: most tokens that the model can take.
            length: most tokens that the cache shall hold; None means the context.
            dtype: of keys and values; None means that of the weights.
            device: None means that of the weights.

        Returns:
            The cache.

        Raises:
            ValueError: the length is not in 1 … context, or the batch is empty.
        """
        length = context if length is None else length
        if not 1 <= length <= context:
            raise ValueError(f"expected a length from 1 to {context}, got {length}")
        attention = self[0].attention
        weight = attention.key.weight
        return KVCache(
            len(self),
            batch,
            attention.num_heads,
            length,
            attention.width // attention.num_heads,
            dtype=weight.dtype if dtype is None else dtype,
            device=weight.device if device is None else device,
        )
