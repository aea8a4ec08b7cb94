"""The judge of digit images: a small classifier with an eleventh class for what is no digit.

A classifier of ten classes alone must call everything a digit, and is sure of pure noise. This one
was shown bad images of many kinds as well (`bench/experiments/judge.py`), so that its probability of a digit
means something. Its last hidden layer serves as the feature space of the Fréchet distance.

The weights that come with the course never change: numbers of different chapters can be compared.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from aigc_lib import checkpoint

WEIGHTS = Path(__file__).parent / "weights"
SIZES = (16, 28)


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Sizes of a Judge.

    Attributes:
        size: Y = X, side of the images in pixels, at least 8.
        num_digits: classes besides the last one, junk.
        widths: channels of the convolutions, each of which halves the sides.
        features: C, width of the last hidden layer.
    """

    size: int = 28
    num_digits: int = 10
    widths: tuple[int, ...] = (24, 48, 64)
    features: int = 64

    def __post_init__(self):
        if self.size < 8:
            raise ValueError(f"expected size >= 8, got {self.size}")
        if self.num_digits < 1 or self.features < 1 or not self.widths or min(self.widths) < 1:
            raise ValueError(
                "expected num_digits, features and every width >= 1, got "
                f"{self.num_digits}, {self.features} and {self.widths}"
            )


class Judge(nn.Module):
    """Convolutions with batch normalisation, one hidden layer, and a read-out of K + 1 classes.

    Attributes:
        config: its sizes.
        checksum: the first eight hexadecimal digits of the SHA-256 of its weights file, to be
            printed beside its verdicts; "unsaved" for any other weights.
    """

    def __init__(self, config: JudgeConfig):
        """Make a judge that has yet to be trained; `load_judge` gives the course's own.

        Args:
            config: its sizes.
        """
        super().__init__()
        self.config = config
        self.checksum = "unsaved"
        layers, side, before = [], config.size, 1
        for i, width in enumerate(config.widths):
            kernel = 5 if i == 0 else 3
            layers += [
                nn.Conv2d(before, width, kernel, stride=2, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            side, before = (side + 1) // 2, width
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(before * side**2, config.features)
        self.head = nn.Linear(config.features, config.num_digits + 1)

    def features(self, images: Float[Tensor, "B 1 Y X"]) -> Float[Tensor, "B C"]:
        """The last hidden layer, before its non-linearity: what the Fréchet distance compares.

        In the judges that come with the course its unit is fixed so that, over fresh digits of the
        full preset, the variances of the C features sum to C.

        Args:
            images: grey values in [0, 1], white on black.

        Returns:
            (B, C) features.

        Raises:
            ValueError: the images are of another shape or dtype, or a pixel is outside [0, 1].
        """
        side = self.config.size
        if images.ndim != 4 or images.shape[1:] != (1, side, side):
            raise ValueError(
                f"expected images of shape (B, 1, {side}, {side}), got {tuple(images.shape)}"
            )
        if images.dtype != self.head.weight.dtype:
            raise ValueError(f"expected {self.head.weight.dtype} images, got {images.dtype}")
        if not ((images >= 0) & (images <= 1)).all():
            low, high = images.min().item(), images.max().item()
            raise ValueError(f"expected pixels in [0, 1], got pixels from {low} to {high}")
        return self.hidden(self.trunk(images))

    def forward(self, images: Float[Tensor, "B 1 Y X"]) -> Float[Tensor, "B K1"]:
        """The logits of the ten digits, in order, and of junk, the last.

        Args:
            images: as for `features`.

        Returns:
            (B, K + 1) logits.
        """
        return self.head(F.relu(self.features(images)))  #                 B K1

    @torch.no_grad()
    def assess(
        self, images: Float[Tensor, "N 1 Y X"]
    ) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N K1"]]:
        """Features and class probabilities, a thousand images at a time, without gradients.

        Args:
            images: as for `features`.

        Returns:
            (N, C) features and (N, K + 1) probabilities, junk the last.
        """
        features = torch.cat([self.features(part) for part in images.split(1000)])
        return features, self.head(F.relu(features)).softmax(1)


def load_judge(size: int = 28) -> Judge:
    """The judge that comes with the course, for images of a size; one for both presets.

    Args:
        size: 16 or 28.

    Returns:
        The judge on the CPU, set to evaluate, its weights frozen.

    Raises:
        ValueError: there is no judge of that size, or its file is damaged.
    """
    if size not in SIZES:
        raise ValueError(f"expected a size out of {', '.join(map(str, SIZES))}, got {size}")
    path = WEIGHTS / f"judge_{size}.safetensors"
    tree = checkpoint.load(path)
    judge = Judge(JudgeConfig(**tree["config"]))
    judge.load_state_dict(tree["weights"])
    judge.checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return judge.requires_grad_(False).eval()
