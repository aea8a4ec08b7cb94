"""Token embeddings: the way from whole numbers into the residual stream."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class TokenEmbedding(nn.Embedding):
    """One learned vector for each token of a vocabulary, and one place that refuses bad tokens.

    x_t = E[token_t].

    Source: Bengio et al. 2003, section 2, the matrix C there.
    Derived: —

    Args:
        vocab_size: V, number of tokens.
        width: C, of each vector.
        context: most tokens in a row.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(self, vocab_size: int, width: int, context: int):
        if min(vocab_size, width, context) < 1:
            raise ValueError(
                f"expected vocab_size, width and context >= 1, got {vocab_size}, {width}, {context}"
            )
        super().__init__(vocab_size, width)
        self.context = context

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T C"]:
        """Look the tokens up.

        Args:
            tokens: from 0 to V − 1; T from 1 to the context.

        Returns:
            (B, T, C).

        Raises:
            ValueError: the tokens are of another kind, too many, or outside the vocabulary; the
                last is seen on the CPU alone, on a GPU the question would stop the queue.
        """
        if (
            tokens.ndim != 2
            or tokens.shape[1] < 1
            or tokens.dtype not in (torch.int64, torch.int32)
        ):
            raise ValueError(
                "expected whole-number tokens of shape (batch, tokens >= 1), got "
                f"{tokens.dtype} {tuple(tokens.shape)}"
            )
        if tokens.shape[1] > self.context:
            raise ValueError(
                f"expected at most {self.context} tokens, the context, got {tokens.shape[1]}"
            )
        try:
            return super().forward(tokens)
        except IndexError:
            low, high = (x.item() for x in tokens.aminmax())
            raise ValueError(
                f"expected tokens from 0 to {self.num_embeddings - 1}, "
                f"got {low if low < 0 else high}"
            ) from None
