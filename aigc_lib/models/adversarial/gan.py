"""Generators and discriminators: perceptrons for points of the plane, a DCGAN for small images.

A discriminator answers with logits, D(x) = σ(logit); what the two players minimise is none of
their business. Images are grey, in [−1, 1], as the generator's tanh makes them.
"""

import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from aigc_lib.layers.labels import are_used


@dataclass(frozen=True, kw_only=True)
class ToyGANConfig:
    """Sizes of a pair of perceptrons.

    Attributes:
        data: D, numbers in an example.
        latent: Z, numbers in the noise.
        hidden: C, width of the hidden layers.
        num_layers: number of hidden layers in each net.
    """

    data: int = 2
    latent: int = 2
    hidden: int = 128
    num_layers: int = 2

    def __post_init__(self):
        _require_positive(self, "data", "latent", "hidden", "layers")


class ToyGenerator(nn.Module):
    """A perceptron z → x̃, with ReLU between the layers; torch's own start.

    Source: Goodfellow et al. 2014, section 3: "G(z; θ_g), where G is a … multilayer perceptron".
    Derived: 30_gan_minimax eq-generator
    """

    def __init__(self, config: ToyGANConfig):
        super().__init__()
        self.config = config
        self.net = _perceptron(config.latent, config.hidden, config.num_layers, config.data)

    def forward(self, z: Float[Tensor, "B Z"]) -> Float[Tensor, "B D"]:
        """Generate.

        Args:
            z: noise, drawn from N(0, I).

        Returns:
            (B, D) examples.

        Raises:
            ValueError: noise of another shape.
        """
        return self.net(_checked(z, "noise", (self.config.latent,)))


class ToyDiscriminator(nn.Module):
    """A perceptron x → logit of "x is real", with ReLU between the layers; torch's own start.

    Source: Goodfellow et al. 2014, section 3: "a second multilayer perceptron D(x; θ_d)".
    Derived: 30_gan_minimax eq-value
    """

    def __init__(self, config: ToyGANConfig):
        super().__init__()
        self.config = config
        self.net = _perceptron(config.data, config.hidden, config.num_layers, 1)

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Judge.

        Args:
            x: examples.

        Returns:
            (B,) logits.

        Raises:
            ValueError: examples of another shape.
        """
        return self.net(_checked(x, "examples", (self.config.data,)))[:, 0]


@dataclass(frozen=True, kw_only=True)
class DCGANConfig:
    """Sizes of a DCGAN of grey images.

    Attributes:
        size: Y = X, side of the images in pixels, a multiple of 4; the course uses 16 and 28.
        latent: Z, numbers in the noise.
        width: c; the nets have 2c channels at half the side and 4c at a quarter of it.
        num_classes: number of labels that both nets are told; 0 for none.
    """

    size: int = 16
    latent: int = 64
    width: int = 16
    num_classes: int = 10

    def __post_init__(self):
        _require_positive(self, "size", "latent", "width")
        if self.size % 4:
            raise ValueError(f"expected a multiple of 4 for size, got {self.size}")
        if self.num_classes < 0:
            raise ValueError(f"expected num_classes >= 0, got {self.num_classes}")


class DCGANGenerator(nn.Module):
    """Noise, and a label, become a picture in three stages that double its side.

    A full layer makes 4c maps of a quarter of the side; two transposed convolutions of stride 2
    make 2c maps of half the side, and the image. Batch normalisation and ReLU stand between them,
    tanh at the end. A label adds a vector of its own to the full layer's output: what a one-hot
    code beside the noise would do.

    In training, BatchNorm uses the batch's own mean and variance: a batch holds two images or more.

    Source: Radford et al. 2016, section 3 and figure 1; labels: Mirza and Osindero 2014, section 3.
    Derived: 31_dcgan eq-transposed
    """

    def __init__(self, config: DCGANConfig):
        super().__init__()
        self.config = config
        c, coarse = config.width, config.size // 4
        maps = (4 * c, coarse, coarse)
        self.project = nn.Linear(config.latent, 4 * c * coarse**2, bias=False)
        self.label = _embedding(config.num_classes, 4 * c * coarse**2)
        self.net = nn.Sequential(
            nn.Unflatten(1, maps),
            nn.BatchNorm2d(4 * c),
            nn.ReLU(),
            nn.ConvTranspose2d(4 * c, 2 * c, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * c),
            nn.ReLU(),
            nn.ConvTranspose2d(2 * c, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )
        _initialise(self)

    def forward(
        self, z: Float[Tensor, "B Z"], labels: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B 1 Y X"]:
        """Generate.

        Args:
            z: noise, drawn from N(0, I).
            labels: what to draw, from 0 to num_classes − 1; None without labels.

        Returns:
            (B, 1, Y, X) images in (−1, 1).

        Raises:
            ValueError: noise of another shape; a batch of one in training; labels missing, not
                wanted, of another shape or (seen on the CPU alone) out of range.
        """
        _checked(z, "noise", (self.config.latent,))
        _require_batch(self, len(z))
        h = self.project(z)  #                                             B 4c·Y/4·X/4
        if are_used(labels, num_classes=self.config.num_classes, batch=len(z)):
            h = h + self.label(labels)
        return self.net(h)  #                                              B 1 Y X


class DCGANDiscriminator(nn.Module):
    """A picture, and a label, become one logit in two stages that halve its side.

    Two convolutions of stride 2 make 2c and 4c maps, with LeakyReLU of slope 0.2 after each and
    batch normalisation before the second one's; all that is left, h, is read out at once:

    logit = w·h + b + v_y·h,   v_y a vector that belongs to the label.

    In training, BatchNorm uses the batch's own mean and variance: a batch holds two images or more,
    and a batch of real images is judged apart from one of generated images.

    Source: Radford et al. 2016, section 3; labels: Miyato and Koyama 2018, equation 3.
    Derived: 31_dcgan eq-projection
    """

    def __init__(self, config: DCGANConfig):
        super().__init__()
        self.config = config
        c, features = config.width, 4 * config.width * (config.size // 4) ** 2
        self.net = nn.Sequential(
            nn.Conv2d(1, 2 * c, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * c, 4 * c, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(4 * c),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
        )
        self.read = nn.Linear(features, 1)
        self.label = _embedding(config.num_classes, features)
        _initialise(self)

    def forward(
        self, x: Float[Tensor, "B 1 Y X"], labels: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, " B"]:
        """Judge.

        Args:
            x: images in [−1, 1].
            labels: what they are said to show, as for the generator.

        Returns:
            (B,) logits of "x is real, and shows what the label says".

        Raises:
            ValueError: images of another shape or (seen on the CPU alone) outside of [−1, 1]; a
                batch of one in training; labels as for the generator.
        """
        _checked(x, "images", (1, self.config.size, self.config.size))
        _require_range(x)
        _require_batch(self, len(x))
        h = self.net(x)  #                                                 B 4c·Y/4·X/4
        logits = self.read(h)[:, 0]  #                                     B
        if are_used(labels, num_classes=self.config.num_classes, batch=len(x)):
            logits = logits + (h * self.label(labels)).sum(1)
        return logits


def _perceptron(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    widths = [inputs, *[hidden] * layers]
    steps = [step for i, o in itertools.pairwise(widths) for step in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*steps, nn.Linear(hidden, outputs))


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


def _require_positive(config, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"expected {name} >= 1, got {getattr(config, name)}")


def _checked(x: Tensor, what: str, shape: tuple[int, ...]) -> Tensor:
    if tuple(x.shape[1:]) != shape:
        wanted = ", ".join(map(str, ("B", *shape)))
        raise ValueError(f"expected {what} of shape ({wanted}), got {tuple(x.shape)}")
    return x


def _require_range(images: Tensor) -> None:
    if images.device.type == "cpu" and not torch.compiler.is_compiling() and images.numel():
        least, most = (limit.item() for limit in images.aminmax())
        if not (least >= -1 and most <= 1):
            raise ValueError(f"expected images in [-1, 1], got values from {least:g} to {most:g}")


def _require_batch(model: nn.Module, batch: int) -> None:
    if model.training and batch < 2:
        raise ValueError(
            f"expected two or more images in training, where BatchNorm needs them, got {batch}; "
            "use eval()"
        )
