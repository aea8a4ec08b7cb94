"""The perceptron of a Transformer block: what each token works out on its own."""

from functools import partial

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from aigc_lib import expect

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "swiglu": F.silu,
}


class MLP(nn.Module):
    """Widen, bend, narrow again; the same for every token.

    y = W_down φ(W_up x),  or with the gate of "swiglu"  y = W_down (SiLU(W_gate x) ⊙ W_up x),

    plus a bias at each W if wanted. With a gate ⅔ of the hidden width costs the same as without.

    Source: Vaswani et al. 2017, equation 2 (ReLU); Hendrycks and Gimpel 2016 (GELU, and its tanh
    form, which GPT-2 uses); Shazeer 2020, equation 6 (SwiGLU): W, V and W_2 there are W_gate, W_up
    and W_down here.
    Derived: 12_transformer eq-mlp
    """

    def __init__(self, width: int, hidden: int, *, activation: str = "gelu", bias: bool = False):
        super().__init__()
        expect.at_least(1, width=width, hidden=hidden)
        expect.one_of(ACTIVATIONS, activation=activation)
        self.activation = activation
        self.gate = nn.Linear(width, hidden, bias=bias) if activation == "swiglu" else None
        self.up = nn.Linear(width, hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        """Each token for itself."""
        bend = ACTIVATIONS[self.activation]
        up = self.up(x)  #                                                 ... hidden
        hidden = bend(up) if self.gate is None else bend(self.gate(x)) * up
        return self.down(hidden)  #                                        ... C
