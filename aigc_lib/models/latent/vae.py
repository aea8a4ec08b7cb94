"""Variational autoencoders of small images: perceptrons or convolutions, with labels or without.

The model holds the two nets and nothing of the bound that trains them: `encode` gives the Gaussian
q(z|x), `decode` what p(x|z) is made from.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aigc_lib.layers.labels import are_used

_LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes and choices of a VAE.

    Attributes:
        image_shape: channels, rows and columns; "conv" needs multiples of 4 for the last two.
        latent: Z, number of latent numbers.
        architecture: "mlp" has two hidden layers in each net; "conv" two convolutions of stride 2
            and a hidden layer in the encoder, and the same backwards in the decoder.
        hidden: C, width of the hidden layers; "conv" has C/8 channels at half the resolution and
            C/4 at a quarter.
        num_classes: number of labels that both nets are told; 0 for a VAE without labels.
        has_log_var: hold one learned log variance of all pixels, for a Gaussian likelihood.
    """

    image_shape: tuple[int, int, int] = (1, 28, 28)
    latent: int = 16
    architecture: str = "mlp"
    hidden: int = 256
    num_classes: int = 0
    has_log_var: bool = False

    def __post_init__(self):
        shape = self.image_shape
        if not isinstance(shape, tuple) or len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"expected image_shape (channels, rows, columns), got {shape}")
        for name in ("latent", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} >= 1, got {getattr(self, name)}")
        if self.num_classes < 0:
            raise ValueError(f"expected num_classes >= 0, got {self.num_classes}")
        if self.architecture not in ("mlp", "conv"):
            raise ValueError(f"expected architecture mlp or conv, got {self.architecture!r}")
        if self.architecture == "conv":
            if shape[1] % 4 or shape[2] % 4:
                raise ValueError(f"expected rows and columns in multiples of 4, got {shape[1:]}")
            if self.hidden % 8:
                raise ValueError(f"expected a multiple of 8 for hidden, got {self.hidden}")


class VAE(nn.Module):
    """An encoder x → q(z|x) = N(μ, σ²) and a decoder z → ℓ, which p(x|z) is made from.

    μ, log σ² = f(x, y),   ℓ = g(z, y),   with SiLU between the layers of f and g.

    A label y is added as a vector of its own to the first full layer of each net: what a one-hot
    code beside that layer's input would do. The nets then give q(z|x, y) and p(x|z, y).

    Weights start as He et al. propose, labels like columns of the layer that they join, biases at
    0; the last layers start a tenth as large, so that q begins near N(0, I), the image near grey.

    Source: Kingma and Welling 2014, section 3 and appendix C; labels: Kingma et al. 2014, equations
    2 and 6, where y is always known here; start: He et al. 2015, section 2.2.
    Derived: 21_vae eq-vae-objective
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        nets = _perceptrons if config.architecture == "mlp" else _convolutions
        self.encoder_first, self.encoder_rest, self.decoder_first, self.decoder_rest = nets(config)
        self.encoder_label = self.decoder_label = None
        if config.num_classes:
            self.encoder_label = nn.Embedding(config.num_classes, config.hidden)
            self.decoder_label = nn.Embedding(config.num_classes, config.hidden)
        if config.has_log_var:
            self.log_var = nn.Parameter(torch.zeros(()))
        self._initialise()

    def encode(
        self, x: Float[Tensor, "B C Y X"], labels: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """The Gaussian q(z|x), or q(z|x, y).

        Args:
            x: images.
            labels: y, from 0 to num_classes − 1; None without labels.

        Returns:
            (B, Z) μ and (B, Z) log σ².

        Raises:
            ValueError: images of another shape, labels missing, not wanted, of another shape or
                (seen on the CPU alone) out of range.
        """
        if x.ndim != 4 or x.shape[1:] != self.config.image_shape:
            wanted = ", ".join(map(str, self.config.image_shape))
            raise ValueError(f"expected images of shape (B, {wanted}), got {tuple(x.shape)}")
        h = self.encoder_first(x)  #                                       B hidden
        h = self._with_label(h, self.encoder_label, labels)
        mu, log_var = self.encoder_rest(h).chunk(2, dim=1)  #              B Z each
        return mu, log_var

    def decode(
        self, z: Float[Tensor, "B Z"], labels: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B C Y X"]:
        """What p(x|z) is made from: logits of a Bernoulli, or means of a Gaussian.

        Args:
            z: latent points.
            labels: as in `encode`.

        Returns:
            (B, channels, rows, columns), any real numbers.

        Raises:
            ValueError: latent points of another width, or as in `encode`.
        """
        if z.ndim != 2 or z.shape[1] != self.config.latent:
            raise ValueError(
                f"expected latent points of shape (B, {self.config.latent}), got {tuple(z.shape)}"
            )
        h = self.decoder_first(z)  #                                       B hidden
        h = self._with_label(h, self.decoder_label, labels)
        return self.decoder_rest(h)  #                                     B C Y X

    def forward(
        self,
        x: Float[Tensor, "B C Y X"],
        noise: Float[Tensor, "B Z"],
        labels: Int[Tensor, " B"] | None = None,
    ) -> tuple[Float[Tensor, "B C Y X"], Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        """Encode, move by the noise, decode: z = μ + exp(½ log σ²) ε.

        Args:
            x: images.
            noise: ε, drawn from N(0, I); zeros decode the mean.
            labels: as in `encode`.

        Returns:
            The decoder's answer, μ and log σ².

        Raises:
            ValueError: as in `encode`, or noise of another shape.
        """
        mu, log_var = self.encode(x, labels)
        if noise.shape != mu.shape:
            raise ValueError(f"expected noise of shape {tuple(mu.shape)}, got {tuple(noise.shape)}")
        return self.decode(mu + torch.exp(0.5 * log_var) * noise, labels), mu, log_var

    def _with_label(self, h: Tensor, embedding: nn.Embedding | None, labels: Tensor | None):
        used = are_used(labels, num_classes=self.config.num_classes, batch=len(h))
        return h + embedding(labels) if used else h

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, _LAYERS):
                module.weight.normal_(0, math.sqrt(2 / _inputs(module)))
                module.bias.zero_()
        for net in (self.encoder_rest, self.decoder_rest):
            [module for module in net if isinstance(module, _LAYERS)][-1].weight.mul_(0.1)
        if self.config.num_classes:
            for net, label in (
                (self.encoder_first, self.encoder_label),
                (self.decoder_first, self.decoder_label),
            ):
                label.weight.normal_(0, math.sqrt(2 / _inputs(net[-1])))


def _inputs(module: nn.Module) -> float:
    """How many numbers reach one output; a transposed convolution's taps share its stride out."""
    if isinstance(module, nn.Linear):
        return module.in_features
    taps = math.prod(module.kernel_size)
    if isinstance(module, nn.ConvTranspose2d):
        taps = taps / math.prod(module.stride)
    return module.in_channels * taps


def _perceptrons(config: VAEConfig) -> tuple[nn.Sequential, ...]:
    pixels, hidden, latent = math.prod(config.image_shape), config.hidden, config.latent
    return (
        nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden)),
        nn.Sequential(
            nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent)
        ),
        nn.Sequential(nn.Linear(latent, hidden)),
        nn.Sequential(
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, pixels),
            nn.Unflatten(1, config.image_shape),
        ),
    )


def _convolutions(config: VAEConfig) -> tuple[nn.Sequential, ...]:
    channels, rows, columns = config.image_shape
    hidden, latent = config.hidden, config.latent
    half, quarter = hidden // 8, hidden // 4
    coarse = (quarter, rows // 4, columns // 4)
    size = math.prod(coarse)
    stage = {"kernel_size": 4, "stride": 2, "padding": 1}
    return (
        nn.Sequential(
            nn.Conv2d(channels, half, **stage),
            nn.SiLU(),
            nn.Conv2d(half, quarter, **stage),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(size, hidden),
        ),
        nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * latent)),
        nn.Sequential(nn.Linear(latent, hidden)),
        nn.Sequential(
            nn.SiLU(),
            nn.Linear(hidden, size),
            nn.SiLU(),
            nn.Unflatten(1, coarse),
            nn.ConvTranspose2d(quarter, half, **stage),
            nn.SiLU(),
            nn.ConvTranspose2d(half, channels, **stage),
        ),
    )
