"""How good generated images are, measured on what a judge of them says.

Nothing here knows a judge: the functions take its class probabilities, rows that sum to one over
K ≥ 2 classes and, in the last column, junk; and its features, finite. One number alone can be
fooled: a model that draws one perfect "1" is always recognised, one that copies noise into every
class covers all of them. `report` prints them side by side, with reference rows that say how good
and how bad the numbers can be at that count. Anything else raises ValueError, another dtype (not
floating-point; for labels, not whole) TypeError. Computed in float64, on the CPU.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib import expect

# From N images to (N, C) features and (N, K + 1) class probabilities, junk the last.
Assess = Callable[[Tensor], tuple[Tensor, Tensor]]
Features = Float[Tensor, "N C"]
Labels = Int[Tensor, " N"]
Probabilities = Float[Tensor, "N K1"]
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Shares s_k of K classes, the share of classes with s_k > 0, and −Σ_k s_k ln s_k / ln K."""

    shares: Float[Tensor, " K"]
    covered: float
    evenness: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One set of images in a `Report`; its variance is within classes recognised, not asked for."""

    name: str
    recognised: float
    agreement: float | None
    coverage: Coverage
    variance: float
    frechet: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Rows of count = N images each, references first, made to be printed."""

    rows: tuple[Row, ...]
    count: int
    preset: str
    judge: str

    def __str__(self) -> str:
        """A table of plain text."""
        width = max(len(row.name) for row in self.rows)
        lines = [
            f"preset {self.preset} · judge {self.judge} · {self.count} images a row",
            f"{'':{width}}  recognised   label  classes  smallest  evenness  variance  Fréchet",
        ]
        for row in self.rows:
            label = "—" if row.agreement is None else f"{row.agreement:.1%}"
            share, smallest = row.coverage.covered, row.coverage.shares.min().item()
            lines.append(
                f"{row.name:{width}}  {row.recognised:10.1%}  {label:>6}  {share:7.0%}  "
                f"{smallest:8.1%}  {row.coverage.evenness:8.2f}  {row.variance:8.2f}  "
                f"{row.frechet:7.2f}"
            )
        return "\n".join(lines)


def recognition_rate(probabilities: Probabilities, *, threshold: float = 0.9) -> float:
    """The share of samples with max_{k<K} p_k > threshold: one certain class, and not junk.

    The threshold is in [0.5, 1), so that only one class can pass.
    """
    return _recognised(probabilities, threshold)[0].cpu().double().mean().item()


def label_agreement(probabilities: Probabilities, labels: Labels) -> float:
    """The share of samples whose most probable class, junk included, is the one asked for, < K."""
    _check_probabilities(probabilities)
    _check_labels(len(probabilities), probabilities.shape[1] - 1, labels=labels)
    return (probabilities.argmax(1) == labels).cpu().double().mean().item()


def class_coverage(probabilities: Probabilities, *, threshold: float = 0.9) -> Coverage:
    """evenness = −Σ_k s_k ln s_k / ln K, s_k the shares of classes among recognised samples.

    Recognised as by `recognition_rate`. All is 0 where nothing is.

    Source: Pielou 1966, where it is called evenness.
    Derived: —
    """
    sure, digit = _recognised(probabilities, threshold)
    num_classes = probabilities.shape[1] - 1
    counts = digit[sure].bincount(minlength=num_classes).cpu().double()
    shares = counts / counts.sum().clamp_min(1)
    return Coverage(
        shares=shares,
        covered=(counts > 0).double().mean().item(),
        evenness=torch.special.entr(shares).sum().item() / math.log(num_classes),
    )


def within_class_variance(
    features: Features,
    labels: Labels,
    real_features: Float[Tensor, "M C"],
    real_labels: Int[Tensor, " M"],
) -> float:
    """V / V_real with V = 1/K Σ_k tr Cov(features | class k), over the K classes of real images.

    Cov is unbiased; a class of fewer than two samples adds 0, so that collapse within classes and
    onto few classes both make it fall. 1 for real images, 0 for a single image of each class. Junk
    can make it rise: count recognised samples alone. A real class needs two images or more.
    """
    _check_features(features=features, real_features=real_features)
    _check_labels(len(features), labels=labels)
    _check_labels(len(real_features), real_labels=real_labels)
    classes = real_labels.unique().tolist()
    real = [_total_variance(real_features[real_labels == k]) for k in classes]
    vary = None not in real and sum(real) > 0
    expect.that(vary, "real_features that differ, two or more of each class", f"variances {real}")
    return sum(_total_variance(features[labels == k]) or 0.0 for k in classes) / sum(real)


def frechet_distance(a: Features, b: Float[Tensor, "M C"]) -> float:
    """`gaussian_frechet_distance` of the means and unbiased covariances of two sets of features.

    In squared units of the features. Estimated from N ≥ 2 samples it is too large, by about 1/N:
    compare only at equal counts.

    Source: Heusel et al. 2017, equation 6.
    Derived: 31_dcgan eq-frechet-bias
    """
    _check_features(a=a, b=b)
    expect.that(min(len(a), len(b)) > 1, "two rows or more in a and b", f"{len(a)} and {len(b)}")
    moments = []
    for features in (a.cpu().double(), b.cpu().double()):
        moments += [features.mean(0), features.T.cov().reshape(2 * features.shape[1:])]
    return gaussian_frechet_distance(*moments)


def gaussian_frechet_distance(
    mu: Float[Tensor, " C"],
    covariance: Float[Tensor, "C C"],
    other_mu: Float[Tensor, " C"],
    other_covariance: Float[Tensor, "C C"],
) -> float:
    """‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½), the squared 2-Wasserstein distance of two Gaussians.

    Covariances are symmetric and positive semidefinite.

    Source: Dowson and Landau 1982, the formula of the abstract.
    Derived: 31_dcgan eq-frechet
    """
    expect.shaped(("C",), mu=mu, other_mu=other_mu)
    expect.shaped((len(mu),) * 2, covariance=covariance, other_covariance=other_covariance)
    _check_finite(mu=mu, other_mu=other_mu)
    first, second = covariance.cpu().double(), other_covariance.cpu().double()
    root, _ = _root(covariance=first), _root(other_covariance=second)
    product = root @ second @ root  # Σ^½ Σ' Σ^½, symmetric, has the eigenvalues of Σ Σ'
    cross = torch.linalg.eigvalsh((product + product.T) / 2)
    trace = first.trace() + second.trace() - 2 * cross.clamp_min(0).sqrt().sum()
    shift = mu.cpu().double() - other_mu.cpu().double()
    return max(0.0, (shift.square().sum() + trace).item())


def report(
    assess: Assess,
    samples: Mapping[str, tuple[Tensor, Tensor | None]],
    real: tuple[Tensor, Tensor],
    generator: torch.Generator,
    *,
    preset: str,
    judge: str,
) -> Report:
    """Measure sets of samples, below reference rows: real images, the same blurred, and noise.

    A set has N images in [0, 1] and the labels asked for, or None; real has 2N images, of what the
    samples should be like, and their labels. The first half of them is what distances and variances
    are measured against; the second makes the reference rows, so that the Fréchet distance of
    "real" is the floor at this count. "blurred" is by a fourteenth of the side; "noise" has
    independent pixels, uniform in [0, 1]. The preset and the judge's checksum are only printed.
    """
    images, labels = real
    count = len(images) // 2
    found = f"{len(images)} beside {[len(x) for x, _ in samples.values()]}"
    fits = count >= 2 and all(len(x) == count for x, _ in samples.values())
    expect.that(fits, "twice as many real images as samples in each set, 2 or more", found)
    features, _ = assess(images[:count])
    fresh, fresh_labels = images[count : 2 * count], labels[count : 2 * count]
    noise = torch.rand(fresh.shape, generator=generator).to(fresh)
    sets = {
        "real": (fresh, fresh_labels),
        "blurred": (gaussian_blur(fresh, fresh.shape[-1] / 14), fresh_labels),
        "noise": (noise, None),
        **samples,
    }
    reference = (features, labels[:count])
    rows = tuple(_row(name, *assess(x), k, reference) for name, (x, k) in sets.items())
    return Report(rows=rows, count=count, preset=preset, judge=judge)


def gaussian_blur(images: Float[Tensor, "N 1 Y X"], sigma: float) -> Float[Tensor, "N 1 Y X"]:
    """Each pixel becomes Σ_d w_d x_d over the neighbours at distance d, w_d ∝ exp(−d² / 2σ²).

    σ is in pixels. The weights sum to one and end at 3σ; outside the image all is black.
    """
    expect.that(0 < sigma < math.inf, "a finite sigma > 0", sigma)
    reach = math.ceil(3 * sigma)
    steps = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    weights = (-0.5 * (steps / sigma) ** 2).softmax(0)
    images = F.conv2d(images, weights[None, None, :, None], padding=(reach, 0))
    return F.conv2d(images, weights[None, None, None], padding=(0, reach))


def _row(name, features, probabilities, labels, reference) -> Row:
    sure, digit = _recognised(probabilities, 0.9)
    return Row(
        name=name,
        recognised=sure.cpu().double().mean().item(),
        agreement=None if labels is None else label_agreement(probabilities, labels),
        coverage=class_coverage(probabilities),
        variance=within_class_variance(features[sure], digit[sure], *reference),
        frechet=frechet_distance(features, reference[0]),
    )


def _recognised(probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    _check_probabilities(probabilities)
    expect.that(0.5 <= threshold < 1, "threshold in [0.5, 1)", threshold)
    best, digit = probabilities[:, :-1].max(1)
    return best > threshold, digit


def _total_variance(features: Tensor) -> float | None:
    return features.cpu().double().var(0).sum().item() if len(features) > 1 else None


def _root(**covariance: Tensor) -> Tensor:
    ((name, sigma),) = covariance.items()
    _check_finite(**covariance)
    values, vectors = torch.linalg.eigh((sigma + sigma.T) / 2)
    slack = 1e-6 * values.abs().max().clamp_min(1e-300)
    fits = bool((sigma - sigma.T).abs().max() <= slack and values.min() >= -slack)
    least = f"one with least eigenvalue {values.min().item():.3g}"
    expect.that(fits, f"a symmetric positive semidefinite {name}", least)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def _check_finite(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        expect.that(bool(x.isfinite().all()), f"finite {name}", "NaN or infinity")


def _check_features(**sets: Tensor) -> None:
    expect.shaped((None, "C"), **sets)
    expect.floating(**sets)
    _check_finite(**sets)


def _check_probabilities(p: Tensor) -> None:
    expect.floating(probabilities=p)
    fits = p.ndim == 2 and len(p) >= 1 and p.shape[1] >= 3
    expect.that(fits, "probabilities of shape (N, K + 1), N >= 1 and K >= 2", tuple(p.shape))
    fits = bool((p >= 0).all() and ((p.sum(1) - 1).abs() < 1e-3).all())
    expect.that(fits, "probabilities >= 0 whose rows sum to one", "others (or NaN)")


def _check_labels(count: int, num_classes: float = math.inf, **labels: Tensor) -> None:
    expect.shaped((count,), **labels)
    expect.of_dtype(_WHOLE, **labels)
    for name, k in labels.items():
        wrong = k[(k < 0) | (k >= num_classes)].tolist()
        expect.that(not wrong, f"{name} >= 0 and < {num_classes}", wrong[:1])
