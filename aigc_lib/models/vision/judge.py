"""The judge of digit images: a small classifier with an eleventh class for what is no digit.

A classifier of ten classes alone must call everything a digit, and is sure of pure noise. This one
was shown bad images of many kinds as well (`bench/experiments/judge.py`), so that its probability
of a digit means something. Its last hidden layer is the feature space of the Fréchet distance.

Images are grey values in [0, 1], white on black. ValueError for others, or sizes that don't fit.
The weights that come with the course never change: numbers of different chapters can be compared.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from aigc_lib import checkpoint, expect

WEIGHTS = Path(__file__).parent / "weights"
SIZES = (16, 28)

Images = Float[Tensor, "B 1 Y X"]
Features = Float[Tensor, "B C"]
Classes = Float[Tensor, "B K1"]


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Sizes of a Judge."""

    size: int = 28  # Y = X, side of the images in pixels, at least 8
    num_digits: int = 10  # K, classes besides the last one, junk
    widths: tuple[int, ...] = (24, 48, 64)  # channels of the convolutions; each halves the sides
    features: int = 64  # C, width of the last hidden layer

    def __post_init__(self):
        expect.at_least(8, size=self.size)
        expect.at_least(1, num_digits=self.num_digits, features=self.features)
        expect.at_least(1, widths=min(self.widths, default=0))


class Judge(nn.Module):
    """Convolutions with batch normalisation, one hidden layer, and a read-out of K + 1 classes.

    `checksum` is printed beside its verdicts: the first eight hexadecimal digits of the SHA-256 of
    its weights file; "unsaved" for weights other than the course's, which `load_judge` gives.
    """

    def __init__(self, config: JudgeConfig):
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
        # By index and not by name: so they stand in the course's weights, whose checksum stays.
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.hidden = nn.Linear(before * side**2, config.features)
        self.head = nn.Linear(config.features, config.num_digits + 1)

    def features(self, images: Images) -> Features:
        """The last hidden layer, before its non-linearity: what the Fréchet distance compares.

        In the judges that come with the course its unit is fixed so that, over fresh digits of the
        full preset, the variances of the C features sum to C.
        """
        expect.shaped(("B", 1, self.config.size, self.config.size), images=images)
        expect.of_dtype((self.head.weight.dtype,), images=images)
        if not ((images >= 0) & (images <= 1)).all():
            low, high = images.min().item(), images.max().item()
            raise ValueError(f"expected images in [0, 1], got pixels from {low} to {high}")
        return self.hidden(self.trunk(images))

    def forward(self, images: Images) -> Classes:
        """The logits of the ten digits, in order, and of junk, the last."""
        return self.head(F.relu(self.features(images)))  #                 B K1

    @torch.no_grad()
    def assess(self, images: Images) -> tuple[Features, Classes]:
        """Features and class probabilities, a thousand images at a time, without gradients."""
        features = torch.cat([self.features(part) for part in images.split(1000)])
        return features, self.head(F.relu(features)).softmax(1)


def load_judge(size: int = 28) -> Judge:
    """The judge that comes with the course: on the CPU, set to evaluate, its weights frozen.

    There is one for images of 16 pixels' side and one for 28; CheckpointError for a damaged file.
    """
    expect.one_of(SIZES, size=size)
    path = WEIGHTS / f"judge_{size}.safetensors"
    tree = checkpoint.load(path)
    judge = Judge(JudgeConfig(**tree["config"]))
    judge.load_state_dict(tree["weights"])
    judge.checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return judge.requires_grad_(False).eval()
