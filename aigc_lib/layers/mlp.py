"""The perceptron of a Transformer block: what each token works out on its own."""

from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "swiglu": F.silu,
}


class MLP(nn.Module):
    """Widen, bend, narrow again; the same for every token.

    y = W_down φ(W_up x),  or with a gate  y = W_down (SiLU(W_gate x) ⊙ W_up x),

    plus a bias at each W if wanted.

    Source: Vaswani et al. 2017, equation 2 (ReLU); Hendrycks and Gimpel 2016 (GELU, and its tanh
    form, which GPT-2 uses); Shazeer 2020, equation 6 (SwiGLU): W, V and W_2 there are W_gate, W_up
    and W_down here.
    Derived: 12_transformer eq-mlp

    Args:
        width: C, of what comes in and goes out.
        hidden: width of the bend; with a gate ⅔ of what one would take without it costs the same.
        activation: "gelu", "gelu_tanh", "relu" or "swiglu".
        bias: add one at each matrix.

    Raises:
        ValueError: a size is below 1, or no such activation.
    """

    def __init__(self, width: int, hidden: int, *, activation: str = "gelu", bias: bool = False):
        super().__init__()
        if width < 1 or hidden < 1:
            raise ValueError(f"expected width and hidden >= 1, got {width} and {hidden}")
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"expected an activation out of {', '.join(ACTIVATIONS)}, got {activation!r}"
            )
        self.activation = activation
        self.gate = nn.Linear(width, hidden, bias=bias) if activation == "swiglu" else None
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        """Work on each token for itself.

        Args:
            x: tokens of C channels, with any leading axes.

        Returns:
            As many tokens.
        """
        bend = ACTIVATIONS[self.activation]
        up = self.up(x)  #                                                 ... hidden
        hidden = bend(up) if self.gate is None else bend(self.gate(x)) * up
        return self.down(hidden)  #                                        ... C
