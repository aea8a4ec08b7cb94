"""Token embeddings: the way from whole numbers into the residual stream."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from aigc_lib import expect


class TokenEmbedding(nn.Embedding):
    """One learned vector for each token, and one place that refuses bad tokens: x_t = E[token_t].

    Source: Bengio et al. 2003, section 2, the matrix C there.
    Derived: —
    """

    def __init__(self, vocab_size: int, width: int, context: int):
        expect.at_least(1, vocab_size=vocab_size, width=width, context=context)
        super().__init__(vocab_size, width)
        self.context = context

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Tokens from 0 to V − 1 (looked at on the CPU alone), 1 ≤ T ≤ context of them in a row."""
        expect.shaped((None, None), tokens=tokens)
        expect.whole(tokens=tokens)
        length = tokens.shape[1]
        expect.that(1 <= length <= self.context, f"1 to {self.context} tokens in a row", length)
        try:
            return super().forward(tokens)
        except IndexError:
            # Only now: a look at every token before each call costs more than the call.
            expect.values_in(0, self.num_embeddings - 1, tokens=tokens)
            raise
