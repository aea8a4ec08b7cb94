"""Variational autoencoders of small images: perceptrons or convolutions, with labels or without.

The model holds the two nets and nothing of the bound that trains them: `encode` gives the Gaussian
q(z|x), `decode` what p(x|z) is made from. Input that does not fit raises ValueError.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from aigc_lib import expect
from aigc_lib.layers.labels import require_labels

Images = Float[Tensor, "B C Y X"]
Latent = Float[Tensor, "B Z"]
Labels = Int[Tensor, " B"] | None


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Sizes and choices of a VAE."""

    image_shape: tuple[int, int, int] = (1, 28, 28)  # channels, rows, columns
    latent: int = 16  # Z
    # "mlp" has two hidden layers in each net; "conv" has two convolutions of stride 2 and one
    # hidden layer in the encoder, the same backwards in the decoder, for sides in multiples of 4.
    architecture: str = "mlp"
    # Width of the hidden layers; "conv" has an eighth of it in channels at half the resolution,
    # and a quarter of it at a quarter.
    hidden: int = 256
    num_classes: int = 0  # labels that both nets are told; 0 for a VAE without
    has_log_var: bool = False  # one learned log variance of all pixels, for a Gaussian likelihood

    def __post_init__(self):
        shape = self.image_shape
        fits = isinstance(shape, tuple) and len(shape) == 3 and min(shape) >= 1
        expect.that(fits, "image_shape (channels, rows, columns)", shape)
        expect.at_least(1, latent=self.latent, hidden=self.hidden)
        expect.at_least(0, num_classes=self.num_classes)
        expect.one_of(("mlp", "conv"), architecture=self.architecture)
        if self.architecture == "conv":
            halved_twice = shape[1] % 4 == shape[2] % 4 == 0
            expect.that(halved_twice, "rows and columns of image_shape in multiples of 4", shape)
            expect.that(self.hidden % 8 == 0, "a multiple of 8 for hidden", self.hidden)


class VAE(nn.Module):
    """An encoder x → q(z|x) = N(μ, σ²) and a decoder z → ℓ, which p(x|z) is made from.

    μ, log σ² = f(x, y),   ℓ = g(z, y),   with SiLU between the layers of f and g.

    A label y adds a vector of its own to the first full layer of each net, as a one-hot code beside
    that layer's input would; the nets then give q(z|x, y) and p(x|z, y).

    Source: Kingma and Welling 2014, section 3 and appendix C; labels: Kingma et al. 2014, equations
    2 and 6, where y is always known here; start: He et al. 2015, section 2.2.
    Derived: 21_vae eq-vae-objective
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        if config.architecture == "mlp":
            pixels, sizes = math.prod(config.image_shape), (config.hidden, config.num_classes)
            self.encoder = _Perceptron(pixels, 2 * config.latent, *sizes)
            self.decoder = _Perceptron(config.latent, pixels, *sizes)
        else:
            self.encoder, self.decoder = _ConvEncoder(config), _ConvDecoder(config)
        if config.has_log_var:
            self.log_var = nn.Parameter(torch.zeros(()))
        self._initialise()

    def encode(self, x: Images, labels: Labels = None) -> tuple[Latent, Latent]:
        """The Gaussian q(z|x), or q(z|x, y), as μ and log σ²; labels run to num_classes − 1."""
        expect.shaped(("B", *self.config.image_shape), x=x)
        require_labels(labels, num_classes=self.config.num_classes, batch=len(x))
        mu, log_var = self.encoder(x, labels).chunk(2, dim=1)  #            B Z each
        return mu, log_var

    def decode(self, z: Latent, labels: Labels = None) -> Images:
        """What p(x|z) or p(x|z, y) is made from: logits of a Bernoulli, or means of a Gaussian."""
        expect.shaped(("B", self.config.latent), z=z)
        require_labels(labels, num_classes=self.config.num_classes, batch=len(z))
        return self.decoder(z, labels).reshape(-1, *self.config.image_shape)

    def forward(
        self, x: Images, noise: Latent, labels: Labels = None
    ) -> tuple[Images, Latent, Latent]:
        """Decode z = μ + exp(½ log σ²) ε; also μ and log σ². A noise ε of 0 decodes the mean."""
        mu, log_var = self.encode(x, labels)
        expect.alike(mu=mu, noise=noise)
        return self.decode(mu + torch.exp(0.5 * log_var) * noise, labels), mu, log_var

    @torch.no_grad()
    def _initialise(self) -> None:
        """Weights as He et al. propose, biases 0, labels like columns of the layer that they join.

        The last layers start a tenth as large, so that q begins near N(0, I), the image near grey.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                module.weight.normal_(0, math.sqrt(2 / _inputs(module)))
                module.bias.zero_()
        for net in (self.encoder, self.decoder):
            net.last.weight.mul_(0.1)
            if net.label is not None:
                net.label.weight.normal_(0, math.sqrt(2 / _inputs(net.first)))


def _inputs(module: nn.Module) -> float:
    """How many numbers reach one output; a transposed convolution's taps share its stride out."""
    if isinstance(module, nn.Linear):
        return module.in_features
    taps = math.prod(module.kernel_size)
    if isinstance(module, nn.ConvTranspose2d):
        taps = taps / math.prod(module.stride)
    return module.in_channels * taps


def _vectors(num_classes: int, width: int) -> nn.Embedding | None:
    return nn.Embedding(num_classes, width) if num_classes else None


def _told(h: Tensor, label: nn.Embedding | None, labels: Tensor | None) -> Tensor:
    return h if label is None else h + label(labels)


class _Perceptron(nn.Module):
    def __init__(self, inputs: int, outputs: int, hidden: int, num_classes: int):
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, outputs)
        self.label = _vectors(num_classes, hidden)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = F.silu(_told(self.first(x.flatten(1)), self.label, labels))
        return self.last(F.silu(self.second(h)))


class _ConvEncoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        (channels, rows, columns), hidden = config.image_shape, config.hidden
        self.down_1 = nn.Conv2d(channels, hidden // 8, 4, stride=2, padding=1)
        self.down_2 = nn.Conv2d(hidden // 8, hidden // 4, 4, stride=2, padding=1)
        self.first = nn.Linear(hidden // 4 * (rows // 4) * (columns // 4), hidden)
        self.last = nn.Linear(hidden, 2 * config.latent)
        self.label = _vectors(config.num_classes, hidden)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = F.silu(self.down_1(x))  #                                       B hidden/8 Y/2 X/2
        h = F.silu(self.down_2(h))  #                                       B hidden/4 Y/4 X/4
        h = F.silu(_told(self.first(h.flatten(1)), self.label, labels))  #  B hidden
        return self.last(h)  #                                              B 2Z


class _ConvDecoder(nn.Module):
    def __init__(self, config: VAEConfig):
        super().__init__()
        (channels, rows, columns), hidden = config.image_shape, config.hidden
        self.coarse = (hidden // 4, rows // 4, columns // 4)
        self.first = nn.Linear(config.latent, hidden)
        self.second = nn.Linear(hidden, math.prod(self.coarse))
        self.up = nn.ConvTranspose2d(hidden // 4, hidden // 8, 4, stride=2, padding=1)
        self.last = nn.ConvTranspose2d(hidden // 8, channels, 4, stride=2, padding=1)
        self.label = _vectors(config.num_classes, hidden)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        h = F.silu(_told(self.first(z), self.label, labels))  #             B hidden
        h = F.silu(self.second(h)).unflatten(1, self.coarse)  #             B hidden/4 Y/4 X/4
        h = F.silu(self.up(h))  #                                           B hidden/8 Y/2 X/2
        return self.last(h)  #                                              B C Y X
