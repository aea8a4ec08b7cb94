"""Multi-head attention: several look-ups side by side, each in its own slice of the width."""

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from aigc_lib.ops.attention import attention, attention_weights


class MultiHeadAttention(nn.Module):
    """H attentions in K = C/H dimensions each, their answers laid side by side and mixed.

    y = W_O [o_1; …; o_H],   o_h = attention(W_Q,h x, W_K,h m, W_V,h m),

    where m is the memory, x itself in self-attention. All heads' projections are one matrix each:
    head h owns the rows h·K to (h+1)·K − 1.

    Source: Vaswani et al. 2017, section 3.2.2, with d_k = d_v = C/H.
    Derived: 11_attention eq-multihead

    Args:
        width: C, of x, of the memory and of the output.
        heads: H; must divide the width.
        is_causal: no token sees a later one.
        window: each token sees only keys nearer than this, as in `ops.attention`.
        bias: add one to each projection (that of the keys cancels in the softmax).

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        is_causal: bool = False,
        window: int | None = None,
        bias: bool = False,
    ):
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise ValueError(f"expected heads that divide the width, got {heads} and {width}")
        self.width, self.heads = width, heads
        self.is_causal, self.window = is_causal, window
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.output = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        memory: Float[Tensor, "B M C"] | None = None,
        *,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "B T C"]:
        """Let every token of x look something up.

        Args:
            x: the tokens that ask.
            memory: the tokens that are asked (cross-attention); None means x (self-attention).
            mask: True where a token may attend; any shape that broadcasts to (B, H, T, M).

        Returns:
            (B, T, C) answers.

        Raises:
            ValueError: x or memory is not of shape (B, tokens, C), or the mask does not fit.
        """
        memory = self._checked(x, memory)
        q = self._split(self.query(x))  #                                  B H T K
        k = self._split(self.key(memory))  #                               B H M K
        v = self._split(self.value(memory))
        out = attention(q, k, v, mask=mask, is_causal=self.is_causal, window=self.window)
        return self.output(rearrange(out, "b h t k -> b t (h k)"))  #      B T C

    def weights(
        self,
        x: Float[Tensor, "B T C"],
        memory: Float[Tensor, "B M C"] | None = None,
        *,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "B H T M"]:
        """The attention maps that `forward` uses but never writes down.

        Args:
            x: as in `forward`, like the next two.
            memory: the tokens that are asked; None means x.
            mask: True where a token may attend.

        Returns:
            (B, H, T, M) weights, each row a distribution over the keys.

        Raises:
            ValueError: x or memory is not of shape (B, tokens, C), or the mask does not fit.
        """
        memory = self._checked(x, memory)
        q, k = self._split(self.query(x)), self._split(self.key(memory))
        return attention_weights(q, k, mask=mask, is_causal=self.is_causal, window=self.window)

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (h k) -> b h t k", h=self.heads)

    def _checked(self, x: Tensor, memory: Tensor | None) -> Tensor:
        memory = x if memory is None else memory
        for name, tokens in (("x", x), ("memory", memory)):
            if tokens.ndim != 3 or tokens.shape[2] != self.width or len(tokens) != len(x):
                batch = "batch" if name == "x" else len(x)
                raise ValueError(
                    f"expected {name} of shape ({batch}, tokens, {self.width}), "
                    f"got {tuple(tokens.shape)}"
                )
        return memory
