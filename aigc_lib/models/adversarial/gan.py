"""Generators and discriminators: perceptrons for points of the plane, a DCGAN for small images.

A discriminator answers with logits, D(x) = σ(logit); what the two players minimise is none of
their business. Images are grey, in [−1, 1], as the generator's tanh makes them. Labels run from 0
to num_classes − 1. Input that does not fit raises ValueError.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from aigc_lib import expect
from aigc_lib.layers.labels import require_labels

Noise = Float[Tensor, "B Z"]
Points = Float[Tensor, "B D"]
Images = Float[Tensor, "B 1 Y X"]
Labels = Int[Tensor, " B"] | None
Logits = Float[Tensor, " B"]


@dataclass(frozen=True, kw_only=True)
class ToyGANConfig:
    """Sizes of a pair of perceptrons."""

    data: int = 2  # D, numbers in an example
    latent: int = 2  # Z, numbers in the noise
    hidden: int = 128  # width of the hidden layers
    num_layers: int = 2  # hidden layers in each net

    def __post_init__(self):
        expect.at_least(1, **vars(self))


class _Perceptron(nn.Module):
    def __init__(self, inputs: int, outputs: int, config: ToyGANConfig):
        super().__init__()
        self.config = config
        self.first = nn.Linear(inputs, config.hidden)
        between = range(config.num_layers - 1)
        self.between = nn.ModuleList(nn.Linear(config.hidden, config.hidden) for _ in between)
        self.last = nn.Linear(config.hidden, outputs)

    def _output(self, x: Tensor) -> Tensor:
        for layer in (self.first, *self.between):
            x = F.relu(layer(x))
        return self.last(x)


class ToyGenerator(_Perceptron):
    """A perceptron z → x̃, with ReLU between the layers; torch's own start.

    Source: Goodfellow et al. 2014, section 3: "G(z; θ_g), where G is a … multilayer perceptron".
    Derived: 30_gan_minimax eq-generator
    """

    def __init__(self, config: ToyGANConfig):
        super().__init__(config.latent, config.data, config)

    def forward(self, z: Noise) -> Points:
        """G(z) of noise z from N(0, I)."""
        expect.shaped(("B", self.config.latent), z=z)
        return self._output(z)


class ToyDiscriminator(_Perceptron):
    """A perceptron x → logit of "x is real", with ReLU between the layers; torch's own start.

    Source: Goodfellow et al. 2014, section 3: "a second multilayer perceptron D(x; θ_d)".
    Derived: 30_gan_minimax eq-value
    """

    def __init__(self, config: ToyGANConfig):
        super().__init__(config.data, 1, config)

    def forward(self, x: Points) -> Logits:
        """The logit of D(x)."""
        expect.shaped(("B", self.config.data), x=x)
        return self._output(x)[:, 0]


@dataclass(frozen=True, kw_only=True)
class DCGANConfig:
    """Sizes of a DCGAN of grey images."""

    size: int = 16  # Y = X, side of the images in pixels, a multiple of 4
    latent: int = 64  # Z, numbers in the noise
    width: int = 16  # c; the nets have 2c channels at half the side and 4c at a quarter of it
    num_classes: int = 10  # labels that both nets are told; 0 for none

    def __post_init__(self):
        expect.at_least(1, size=self.size, latent=self.latent, width=self.width)
        expect.at_least(0, num_classes=self.num_classes)
        expect.that(self.size % 4 == 0, "a multiple of 4 for size", self.size)


class DCGANGenerator(nn.Module):
    """Noise, and a label, become a picture in three stages that double its side.

    x̃ = tanh(up₂(r(up₁(r(W z + v_y))))),   r = ReLU ∘ BatchNorm,   v_y a vector of the label.

    W z + v_y are 4c maps of a quarter of the side; the transposed convolutions up₁, up₂ of stride 2
    make 2c maps of half the side, and the image.

    In training, BatchNorm uses the batch's own mean and variance: a batch holds two images or more.

    Source: Radford et al. 2016, section 3 and figure 1; labels: Mirza and Osindero 2014, section 3.
    Derived: 31_dcgan eq-transposed
    """

    def __init__(self, config: DCGANConfig):
        super().__init__()
        self.config = config
        c, coarse = config.width, config.size // 4
        self.coarse = (4 * c, coarse, coarse)
        self.project = nn.Linear(config.latent, 4 * c * coarse**2, bias=False)
        self.label = _embedding(config.num_classes, 4 * c * coarse**2)
        self.norm_1 = nn.BatchNorm2d(4 * c)
        self.up_1 = nn.ConvTranspose2d(4 * c, 2 * c, 4, stride=2, padding=1, bias=False)
        self.norm_2 = nn.BatchNorm2d(2 * c)
        self.up_2 = nn.ConvTranspose2d(2 * c, 1, 4, stride=2, padding=1)
        self.tanh = nn.Tanh()
        _initialise(self)

    def forward(self, z: Noise, labels: Labels = None) -> Images:
        """G(z, y) in (−1, 1), of noise z from N(0, I)."""
        expect.shaped(("B", self.config.latent), z=z)
        require_labels(labels, num_classes=self.config.num_classes, batch=len(z))
        _check_batch(self, len(z))
        h = self.project(z)  #                                             B 4c·Y/4·X/4
        if self.label is not None:
            h = h + self.label(labels)
        h = F.relu(self.norm_1(h.unflatten(1, self.coarse)))  #            B 4c Y/4 X/4
        h = F.relu(self.norm_2(self.up_1(h)))  #                           B 2c Y/2 X/2
        return self.tanh(self.up_2(h))  #                                  B 1 Y X


class DCGANDiscriminator(nn.Module):
    """A picture, and a label, become one logit in two stages that halve its side.

    h = r(BatchNorm(down₂(r(down₁(x))))),   r = LeakyReLU of slope 0.2,

    logit = w·h + b + v_y·h,   v_y a vector of the label.

    The convolutions down₁, down₂ of stride 2 make 2c and 4c maps. A batch in training is as for the
    generator, and one of real images is judged apart from one of generated images.

    Source: Radford et al. 2016, section 3; labels: Miyato and Koyama 2018, equation 3.
    Derived: 31_dcgan eq-projection
    """

    def __init__(self, config: DCGANConfig):
        super().__init__()
        self.config = config
        c, features = config.width, 4 * config.width * (config.size // 4) ** 2
        self.down_1 = nn.Conv2d(1, 2 * c, 4, stride=2, padding=1)
        self.down_2 = nn.Conv2d(2 * c, 4 * c, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4 * c)
        self.leak = nn.LeakyReLU(0.2)
        self.read = nn.Linear(features, 1)
        self.label = _embedding(config.num_classes, features)
        _initialise(self)

    def forward(self, x: Images, labels: Labels = None) -> Logits:
        """The logit of "x is real, and shows what the label says", for pixels in [−1, 1]."""
        expect.shaped(("B", 1, self.config.size, self.config.size), x=x)
        expect.values_in(-1, 1, x=x)
        require_labels(labels, num_classes=self.config.num_classes, batch=len(x))
        _check_batch(self, len(x))
        h = self.leak(self.down_1(x))  #                                   B 2c Y/2 X/2
        h = self.leak(self.norm(self.down_2(h))).flatten(1)  #             B 4c·Y/4·X/4
        logits = self.read(h)[:, 0]  #                                     B
        if self.label is not None:
            logits = logits + (h * self.label(labels)).sum(1)
        return logits


def _embedding(num_classes: int, width: int) -> nn.Embedding | None:
    return nn.Embedding(num_classes, width) if num_classes else None


@torch.no_grad()
def _initialise(model: nn.Module) -> None:
    """Weights as in section 4 of Radford et al., BatchNorm's factors as in the code beside it."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.normal_(1.0, 0.02)
        elif isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d | nn.ConvTranspose2d):
            module.weight.normal_(0.0, 0.02)
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()


def _check_batch(model: nn.Module, batch: int) -> None:
    if model.training:
        expect.that(batch >= 2, "two images or more in training, or eval() for BatchNorm", batch)
