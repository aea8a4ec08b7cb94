"""Multi-head attention: several look-ups side by side, each in its own slice of the width."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from aigc_lib.layers.kv_cache import LayerCache, append
from aigc_lib.layers.positions import rotate
from aigc_lib.ops.attention import attention, attention_weights

# Keys and values of a memory, as `MultiHeadAttention.project` gives them.
Projected = tuple[Float[Tensor, "B H M K"], Float[Tensor, "B H M K"]]


class MultiHeadAttention(nn.Module):
    """H attentions in K = C/H dimensions each, their answers laid side by side and mixed.

    y = W_O [o_1; …; o_H],   o_h = attention(W_Q,h x, W_K,h m, W_V,h m),

    where m is the memory, x itself in self-attention. All heads' projections are one matrix each:
    head h owns the rows h·K to (h+1)·K − 1.

    Source: Vaswani et al. 2017, section 3.2.2, with d_k = d_v = C/H.
    Derived: 11_attention eq-multihead

    Args:
        width: C, of x, of the memory and of the output.
        num_heads: H; must divide the width.
        is_causal: no token sees a later one.
        window: each token sees only keys nearer than this, as in `ops.attention`.
        bias: add one to each projection (that of the keys cancels in the softmax).

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        is_causal: bool = False,
        window: int | None = None,
        bias: bool = False,
    ):
        super().__init__()
        if width < 1 or num_heads < 1 or width % num_heads:
            raise ValueError(f"expected heads that divide the width, got {num_heads} and {width}")
        self.width, self.num_heads = width, num_heads
        self.is_causal, self.window = is_causal, window
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.output = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        memory: Float[Tensor, "B M C"] | Projected | None = None,
        *,
        mask: Bool[Tensor, "..."] | None = None,
        rotary: Float[Tensor, "T half 2"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Let every token of x look something up.

        Args:
            x: the tokens that ask.
            memory: the tokens that are asked (cross-attention), or what `project` made of them;
                None means x (self-attention).
            mask: True where a token may attend; any shape that broadcasts to (B, H, T, M).
            rotary: rotary positions of x, rows of `rotary_table`; self-attention only.
            cache: keys and values of earlier tokens, to which those of x are added; for a causal
                layer without window, and then without memory and mask.

        Returns:
            (B, T, C) answers.

        Raises:
            ValueError: x or memory is not of shape (B, tokens, C), the mask does not fit, or rotary
                or a cache come where they have no meaning.
        """
        self._check_call(x, memory, mask, rotary, cache)
        q = self._split(self.query(x))  #                                  B H T K
        k, v = self._keys_values(x, memory)  #                             B H M K
        is_causal = self.is_causal
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            k, v = append(cache, k, v)
            mask, is_causal = cache.mask, cache.mask is None
        out = attention(q, k, v, mask=mask, is_causal=is_causal, window=self.window)
        return self.output(out.transpose(1, 2).flatten(2))  #              B T C

    def weights(
        self,
        x: Float[Tensor, "B T C"],
        memory: Float[Tensor, "B M C"] | Projected | None = None,
        *,
        mask: Bool[Tensor, "..."] | None = None,
        rotary: Float[Tensor, "T half 2"] | None = None,
    ) -> Float[Tensor, "B H T M"]:
        """The attention maps that `forward` uses but never writes down.

        Args:
            x: as in `forward`, like the next three.
            memory: the tokens that are asked; None means x.
            mask: True where a token may attend.
            rotary: rotary positions of x.

        Returns:
            (B, H, T, M) weights, each row a distribution over the keys.

        Raises:
            ValueError: x or memory is not of shape (B, tokens, C), or the mask does not fit.
        """
        self._check_call(x, memory, mask, rotary, None)
        q, (k, _) = self._split(self.query(x)), self._keys_values(x, memory)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return attention_weights(q, k, mask=mask, is_causal=self.is_causal, window=self.window)

    def project(self, memory: Float[Tensor, "B M C"]) -> Projected:
        """Keys and values of a memory that is asked more than once.

        Args:
            memory: the tokens that are asked.

        Returns:
            Keys and values, (B, H, M, K) each, for `forward` and `weights`.

        Raises:
            ValueError: the memory is not of shape (B, tokens, C).
        """
        self._check(memory, "memory")
        return self._split(self.key(memory)), self._split(self.value(memory))

    def _keys_values(self, x, memory) -> tuple[Tensor, Tensor]:
        if isinstance(memory, tuple):
            return memory
        return self.project(x if memory is None else memory)

    def _split(self, x: Tensor) -> Tensor:
        x = x.view(*x.shape[:2], self.num_heads, self.width // self.num_heads)
        return x.transpose(1, 2)  #                                        B H T K

    def _check_call(self, x, memory, mask, rotary, cache) -> None:
        self._check(x, "x")
        if isinstance(memory, Tensor):
            self._check(memory, "memory", x.shape[0])
        if rotary is not None and memory is not None:
            raise ValueError("expected no rotary beside a memory: its positions are not those of x")
        if cache is not None:
            alone = self.window is None and memory is None and mask is None
            if not (self.is_causal and alone):
                raise ValueError(
                    "expected a causal layer without window, memory and mask beside a cache"
                )

    def _check(self, tokens, name, batch="batch") -> None:
        fits = tokens.ndim == 3 and tokens.shape[2] == self.width
        if not fits or batch not in ("batch", tokens.shape[0]):
            raise ValueError(
                f"expected {name} of shape ({batch}, tokens, {self.width}), "
                f"got {tuple(tokens.shape)}"
            )
