"""An autoregressive mixture density network: the smallest generative model with a likelihood."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from aigc_lib import expect

Points = Float[Tensor, "B D"]


@dataclass(frozen=True, kw_only=True)
class MDNConfig:
    """Sizes of an AutoregressiveMDN."""

    dims: int = 2  # D, coordinates of a point
    components: int = 8  # G, Gaussians in each conditional's mixture
    hidden: int = 64  # C, width of the two hidden layers

    def __post_init__(self):
        expect.at_least(1, **vars(self))


class AutoregressiveMDN(nn.Module):
    """A density by the chain rule, each conditional a mixture of Gaussians from a small network.

    p(x) = Π_d p(x_d | x_{<d}),   p(x_d | x_{<d}) = Σ_g π_dg N(x_d; μ_dg, σ_dg²),

    where π, μ, log σ are outputs of a perceptron that sees the coordinates before d alone.

    Source: Bishop 1994, equations 22 to 28 (mixture density network); Uria, Murray and Larochelle
    2013, section 3 (RNADE; there the conditionals share weights, here each has its own).
    Derived: 00_start_here eq-mdn
    """

    def __init__(self, config: MDNConfig):
        super().__init__()
        self.config = config
        dims, hidden, outputs = config.dims, config.hidden, 3 * config.components
        self.w1 = nn.Parameter(torch.randn(dims, dims, hidden) / math.sqrt(dims))
        self.b1 = nn.Parameter(torch.zeros(dims, hidden))
        self.w2 = nn.Parameter(torch.randn(dims, hidden, hidden) / math.sqrt(hidden))
        self.b2 = nn.Parameter(torch.zeros(dims, hidden))
        self.w3 = nn.Parameter(0.1 * torch.randn(dims, hidden, outputs) / math.sqrt(hidden))
        # Means spread out from the start, so that the components take different parts.
        start = torch.zeros(dims, 3, config.components)
        start[:, 1] = torch.linspace(-2, 2, config.components) if config.components > 1 else 0.0
        self.b3 = nn.Parameter(start.flatten(1))

    def forward(self, x: Points) -> Float[Tensor, " B"]:
        """The log density of each point, Σ_d log p(x_d | x_{<d}), in nats."""
        expect.shaped(("B", self.config.dims), x=x)
        log_pi, mu, log_sigma = self._mixtures(x)  #                       each B D G
        z = (x[:, :, None] - mu) * (-log_sigma).exp()
        log_normal = -0.5 * z**2 - log_sigma - 0.5 * math.log(2 * math.pi)
        return (log_pi + log_normal).logsumexp(2).sum(1)  #                B

    @torch.no_grad()
    def sample(self, num_samples: int, generator: torch.Generator | None = None) -> Points:
        """Draw points one coordinate after the other: x_d ~ p(x_d | x_{<d}).

        The generator is on the model's device; None draws from torch's global one.
        """
        expect.at_least(1, num_samples=num_samples)
        x = self.b3.new_zeros(num_samples, self.config.dims)
        for d in range(self.config.dims):
            log_pi, mu, log_sigma = (part[:, d] for part in self._mixtures(x))
            chosen = torch.multinomial(log_pi.exp(), 1, generator=generator)
            noise = torch.randn(num_samples, 1, generator=generator, device=x.device, dtype=x.dtype)
            x[:, d : d + 1] = mu.gather(1, chosen) + log_sigma.gather(1, chosen).exp() * noise
        return x

    def _mixtures(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dims = self.config.dims
        before = torch.ones(dims, dims, dtype=x.dtype, device=x.device).tril(-1)
        seen = x[:, None, :] * before  #                                   B D D
        h = F.silu(torch.einsum("bdi,dic->bdc", seen, self.w1) + self.b1)  # B D C
        h = F.silu(torch.einsum("bdi,dic->bdc", h, self.w2) + self.b2)
        out = torch.einsum("bdi,dio->bdo", h, self.w3) + self.b3  #        B D 3G
        logits, mu, log_sigma = rearrange(out, "b d (three g) -> three b d g", three=3)
        return logits.log_softmax(2), mu, log_sigma
