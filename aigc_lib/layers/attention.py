"""Multi-head attention: several look-ups side by side, each in its own slice of the width."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from aigc_lib import expect
from aigc_lib.layers.kv_cache import Keys, LayerCache, append
from aigc_lib.layers.positions import RotaryRows, rotate
from aigc_lib.ops.attention import attention, attention_weights

Stream = Float[Tensor, "B T C"]
Projected = tuple[Keys, Keys]
# What is looked at, or its keys and values as `MultiHeadAttention.project` gives them; None: x.
Memory = Float[Tensor, "B M C"] | Projected | None
# True where a token may attend, of a shape that broadcasts to (B, H, T, M); None: everywhere.
Mask = Bool[Tensor, "..."] | None


class MultiHeadAttention(nn.Module):
    """H attentions in K = C/H dimensions each, their answers laid side by side and mixed.

    y = W_O [o_1; …; o_H],   o_h = attention(W_Q,h x, W_K,h m, W_V,h m),

    where m is the memory, x itself in self-attention. All heads' projections are one matrix each:
    head h owns the rows h·K to (h+1)·K − 1. `window` is that of `ops.attention`.

    Source: Vaswani et al. 2017, section 3.2.2, with d_k = d_v = C/H.
    Derived: 11_attention eq-multihead
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
        expect.at_least(1, width=width, num_heads=num_heads)
        expect.that(width % num_heads == 0, f"num_heads that divide width {width}", num_heads)
        self.width, self.num_heads = width, num_heads
        self.is_causal, self.window = is_causal, window
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.output = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x: Stream,
        memory: Memory = None,
        *,
        mask: Mask = None,
        rotary: RotaryRows | None = None,
        cache: LayerCache | None = None,
    ) -> Stream:
        """Let every token of x look something up in the memory, or in x without one.

        `rotary` turns the tokens of x by their positions, never a memory's. `cache` holds keys and
        values of earlier tokens, to which those of x are added: for a causal layer without window,
        memory and mask.
        """
        self._check(x, memory, rotary)
        q = self._split(self.query(x))  #                                  B H T K
        k, v = self.project(x if memory is None else memory)  #            B H M K
        is_causal = self.is_causal
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        if cache is not None:
            alone = is_causal and self.window is None and memory is None and mask is None
            expect.that(alone, "causal, without window, memory and mask, beside a cache", "another")
            k, v = append(cache, k, v)
            mask, is_causal = cache.mask, cache.mask is None
        out = attention(q, k, v, mask=mask, is_causal=is_causal, window=self.window)
        return self.output(out.transpose(1, 2).flatten(2))  #              B T C

    def weights(
        self,
        x: Stream,
        memory: Memory = None,
        *,
        mask: Mask = None,
        rotary: RotaryRows | None = None,
    ) -> Float[Tensor, "B H T M"]:
        """The attention maps that `forward` uses but never writes down; each row sums to one."""
        self._check(x, memory, rotary)
        q, (k, _) = self._split(self.query(x)), self.project(x if memory is None else memory)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return attention_weights(q, k, mask=mask, is_causal=self.is_causal, window=self.window)

    def project(self, memory: Float[Tensor, "B M C"] | Projected) -> Projected:
        """Keys W_K m and values W_V m, of a memory that is asked more than once."""
        if isinstance(memory, tuple):
            return memory
        fits = memory.ndim == 3 and memory.shape[2] == self.width
        expect.that(fits, f"memory of shape (batch, tokens, {self.width})", memory.shape)
        return self._split(self.key(memory)), self._split(self.value(memory))

    def _split(self, x: Tensor) -> Tensor:
        x = x.view(*x.shape[:2], self.num_heads, self.width // self.num_heads)
        return x.transpose(1, 2)  #                                        B H T K

    def _check(self, x, memory, rotary) -> None:
        fits = x.ndim == 3 and x.shape[2] == self.width
        expect.that(fits, f"x of shape (batch, tokens, {self.width})", x.shape)
        expect.that(rotary is None or memory is None, "no rotary beside a memory", "both")
