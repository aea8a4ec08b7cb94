"""How good generated images are, measured on what a judge of them says.

Nothing here knows a judge: the functions take its class probabilities, of which the last column is
junk, and its features. One number alone can be fooled: a model that draws one perfect "1" is
always recognised, one that copies noise into every class covers all of them. `report` prints them
side by side, with reference rows that say how good and how bad the numbers can be at that count.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# From N images to (N, C) features and (N, K + 1) class probabilities, junk the last.
Assess = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How samples spread over the K classes.

    Attributes:
        shares: (K,) share of each class among the recognised samples; zeros if there are none.
        covered: share of the classes that occur at all, from 0 to 1.
        evenness: entropy of the shares over log K: 1 if all are equal, 0 if one class is all.
    """

    shares: Float[Tensor, " K"]
    covered: float
    evenness: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measures of one set of images.

    Attributes:
        name: what they are.
        recognised: see `recognition_rate`.
        agreement: see `label_agreement`; None without labels.
        coverage: see `class_coverage`.
        variance: see `within_class_variance`; of recognised samples, in their recognised class.
        frechet: see `frechet_distance`.
    """

    name: str
    recognised: float
    agreement: float | None
    coverage: Coverage
    variance: float
    frechet: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """Measures of sets of equally many images, to be printed.

    Attributes:
        rows: references first, then the samples.
        count: N, images in each row and in the reference of the distances.
        preset: of the real images.
        judge: its checksum.
    """

    rows: tuple[Row, ...]
    count: int
    preset: str
    judge: str

    def __str__(self) -> str:
        """A table of plain text."""
        width = max(len(row.name) for row in self.rows)
        head = f"{'':{width}}  recognised   label  classes  smallest  evenness  variance  Fréchet"
        facts = f"preset {self.preset} · judge {self.judge} · {self.count} images a row"
        lines = [facts, head]
        for row in self.rows:
            label = "—" if row.agreement is None else f"{row.agreement:.1%}"
            share, smallest = row.coverage.covered, row.coverage.shares.min().item()
            lines.append(
                f"{row.name:{width}}  {row.recognised:10.1%}  {label:>6}  {share:7.0%}  "
                f"{smallest:8.1%}  {row.coverage.evenness:8.2f}  {row.variance:8.2f}  "
                f"{row.frechet:7.2f}"
            )
        return "\n".join(lines)


def recognition_rate(probabilities: Float[Tensor, "N K1"], *, threshold: float = 0.9) -> float:
    """The share of samples that the judge takes for one certain digit: max_k<K p_k > threshold.

    Args:
        probabilities: (N, K + 1), rows that sum to one, junk the last.
        threshold: from 0.5, so that only one class can pass, to below 1.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: the probabilities are not such, or the threshold is out of range.
    """
    return _recognised(probabilities, threshold)[0].double().mean().item()


def label_agreement(probabilities: Float[Tensor, "N K1"], labels: Int[Tensor, " N"]) -> float:
    """The share of samples whose most probable class, junk included, is the one asked for.

    Args:
        probabilities: (N, K + 1), rows that sum to one, junk the last.
        labels: (N,) classes below K.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: the probabilities or labels are not such.
    """
    _require_probabilities(probabilities)
    _require_labels(labels, len(probabilities), probabilities.shape[1] - 1)
    return (probabilities.argmax(1) == labels).double().mean().item()


def class_coverage(probabilities: Float[Tensor, "N K1"], *, threshold: float = 0.9) -> Coverage:
    """How the recognised samples spread over the classes; the others count nowhere.

    With the shares s_k, evenness is −Σ_k s_k ln s_k / ln K.

    Source: Pielou 1966, where it is called evenness.
    Derived: —

    Args:
        probabilities: (N, K + 1) with K ≥ 2, rows that sum to one, junk the last.
        threshold: see `recognition_rate`.

    Returns:
        The shares and two summaries of them.

    Raises:
        ValueError: the probabilities are not such, or the threshold is out of range.
    """
    sure, digit = _recognised(probabilities, threshold)
    num_classes = probabilities.shape[1] - 1
    counts = digit[sure].bincount(minlength=num_classes).double()
    shares = counts / counts.sum().clamp_min(1)
    entropy = torch.special.entr(shares).sum().item()
    return Coverage(
        shares=shares,
        covered=(counts > 0).double().mean().item(),
        evenness=entropy / math.log(num_classes),
    )


def within_class_variance(
    features: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    real_features: Float[Tensor, "M C"],
    real_labels: Int[Tensor, " M"],
) -> float:
    """How much samples of one class differ from each other, relative to real images of it.

    V / V_real with V = 1/K Σ_k tr Cov(features | class k), over the K classes of the real images,
    with the unbiased covariance. A class with fewer than two samples counts as zero, so that
    collapse within classes, and onto few classes, both make it fall. Junk can make it rise: count
    recognised samples alone.

    Args:
        features: (N, C) of the samples; N may be 0.
        labels: (N,) their classes.
        real_features: (M, C) of real images.
        real_labels: (M,) theirs; each class that occurs occurs twice or more.

    Returns:
        The ratio: 1 for real images, 0 for a single image of each class.

    Raises:
        ValueError: features or labels are not such, or the real ones do not vary.
    """
    for f, k in ((features, labels), (real_features, real_labels)):
        _require_features(f, at_least=0)
        _require_labels(k, len(f))
    if features.shape[1] != real_features.shape[1]:
        raise ValueError(
            f"expected {real_features.shape[1]} features a sample, got {features.shape[1]}"
        )
    classes = real_labels.unique().tolist()
    real = [_total_variance(real_features[real_labels == k]) for k in classes]
    if not classes or None in real or not sum(real) > 0:
        raise ValueError(
            "expected real images that differ, two or more of each class, got "
            f"{len(real_labels)} images of {len(classes)} classes"
        )
    return sum(_total_variance(features[labels == k]) or 0.0 for k in classes) / sum(real)


def frechet_distance(a: Float[Tensor, "N C"], b: Float[Tensor, "M C"]) -> float:
    """The distance of two sets of features, each taken for a normal distribution.

    It is `gaussian_frechet_distance` of the means and unbiased covariances of the sets, the square
    of a distance, in squared units of the features. Estimated from N samples it is too large, by
    about 1/N: compare only at equal counts.

    Source: Heusel et al. 2017, equation 6.
    Derived: 31_dcgan eq-frechet-bias

    Args:
        a: (N, C) features, N ≥ 2.
        b: (M, C) features, M ≥ 2.

    Returns:
        The distance; 0 between a set and itself.

    Raises:
        ValueError: a set has fewer than two rows, the widths differ, or a feature is not finite.
    """
    moments = []
    for features in (a, b):
        _require_features(features, at_least=2)
        features = features.double()
        moments += [features.mean(0), features.T.cov().reshape(2 * features.shape[1:])]
    return gaussian_frechet_distance(*moments)


def gaussian_frechet_distance(
    mu: Float[Tensor, " C"],
    covariance: Float[Tensor, "C C"],
    other_mu: Float[Tensor, " C"],
    other_covariance: Float[Tensor, "C C"],
) -> float:
    """The squared 2-Wasserstein distance of two normal distributions.

    ‖μ − μ'‖² + tr(Σ + Σ' − 2 (Σ Σ')^½).  Σ Σ' has the eigenvalues of the symmetric Σ^½ Σ' Σ^½, so
    the trace of its root is the sum of their roots; all is computed in float64.

    Source: Dowson and Landau 1982, the formula of the abstract.
    Derived: 31_dcgan eq-frechet

    Args:
        mu: μ.
        covariance: Σ, symmetric and positive semidefinite.
        other_mu: μ'.
        other_covariance: Σ', like Σ.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: shapes differ, a number is not finite, or a matrix is no covariance.
    """
    width = len(mu) if mu.ndim == 1 else -1
    for m, s in ((mu, covariance), (other_mu, other_covariance)):
        if m.shape != (width,) or s.shape != (width, width):
            raise ValueError(
                f"expected means (C,) and covariances (C, C) of one C, got {tuple(m.shape)} and "
                f"{tuple(s.shape)} beside {tuple(mu.shape)}"
            )
        if not (m.isfinite().all() and s.isfinite().all()):
            raise ValueError("expected finite means and covariances, got NaN or infinity")
    mu, covariance, other_mu, other_covariance = (
        x.double() for x in (mu, covariance, other_mu, other_covariance)
    )
    root = _root(covariance)
    _root(other_covariance)
    cross = torch.linalg.eigvalsh(_symmetric(root @ other_covariance @ root))
    trace = covariance.trace() + other_covariance.trace() - 2 * cross.clamp_min(0).sqrt().sum()
    return max(0.0, ((mu - other_mu).square().sum() + trace).item())


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

    The first half of the real images is what distances and variances are measured against; the
    second half, as many, makes the reference rows. So the Fréchet distance of the row "real" is the
    floor at this count. "blurred" is a Gaussian blur by a fourteenth of the side; "noise" has
    independent pixels, uniform in [0, 1].

    Args:
        assess: the judge, for instance `load_judge(28).assess`.
        samples: by name N images in [0, 1], and the labels asked for, or None.
        real: 2N images and their labels, drawn from what the samples shall be like.
        generator: for the noise; on the CPU.
        preset: of the real images, to be printed beside the numbers.
        judge: its checksum, likewise.

    Returns:
        The rows; print it.

    Raises:
        ValueError: a set has not N images, N < 2, or what the judge gives is unfit.
    """
    images, labels = real
    count = len(images) // 2
    if count < 2 or any(len(x) != count for x, _ in samples.values()):
        found = [len(x) for x, _ in samples.values()]
        raise ValueError(
            f"expected twice as many real images as samples in each set, 2 or more, got "
            f"{len(images)} real ones beside {found}"
        )
    features, _ = assess(images[:count])
    fresh = images[count : 2 * count]
    fresh_labels = labels[count : 2 * count]
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
    """Each pixel becomes an average of its neighbours, weighted by exp(−distance² / 2σ²).

    The weights sum to one and end at three sigma; outside the image all is black.

    Args:
        images: (N, 1, Y, X).
        sigma: σ > 0 in pixels.

    Returns:
        The blurred images.

    Raises:
        ValueError: sigma is not positive.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"expected sigma > 0, got {sigma}")
    reach = math.ceil(3 * sigma)
    steps = torch.arange(-reach, reach + 1, dtype=images.dtype, device=images.device)
    weights = (-0.5 * (steps / sigma) ** 2).softmax(0)
    images = F.conv2d(images, weights[None, None, :, None], padding=(reach, 0))
    return F.conv2d(images, weights[None, None, None], padding=(0, reach))


def _row(name, features, probabilities, labels, reference) -> Row:
    sure, digit = _recognised(probabilities, 0.9)
    return Row(
        name=name,
        recognised=sure.double().mean().item(),
        agreement=None if labels is None else label_agreement(probabilities, labels),
        coverage=class_coverage(probabilities),
        variance=within_class_variance(features[sure], digit[sure], *reference),
        frechet=frechet_distance(features, reference[0]),
    )


def _recognised(probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    _require_probabilities(probabilities)
    if not 0.5 <= threshold < 1:
        raise ValueError(f"expected a threshold in [0.5, 1), got {threshold}")
    best, digit = probabilities[:, :-1].max(1)
    return best > threshold, digit


def _total_variance(features: Tensor) -> float | None:
    return features.double().var(0).sum().item() if len(features) > 1 else None


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(_symmetric(covariance))
    slack = 1e-6 * values.abs().max().clamp_min(1e-300)
    if (covariance - covariance.T).abs().max() > slack or values.min() < -slack:
        raise ValueError(
            "expected symmetric positive semidefinite covariances, got one with least eigenvalue "
            f"{values.min().item():.3g}"
        )
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _require_features(features: Tensor, at_least: int) -> None:
    if features.ndim != 2 or len(features) < at_least or not features.is_floating_point():
        raise ValueError(
            f"expected at least {at_least} rows of floating-point features, got "
            f"{features.dtype} of shape {tuple(features.shape)}"
        )
    if not features.isfinite().all():
        raise ValueError("expected finite features, got NaN or infinity")


def _require_probabilities(p: Tensor) -> None:
    if p.ndim != 2 or len(p) < 1 or p.shape[1] < 3 or not p.is_floating_point():
        raise ValueError(
            "expected floating-point probabilities of shape (N, K + 1) with N >= 1 and K >= 2, got "
            f"{p.dtype} of shape {tuple(p.shape)}"
        )
    if not ((p >= 0).all() and ((p.sum(1) - 1).abs() < 1e-3).all()):
        raise ValueError("expected rows of probabilities that sum to one, got others (or NaN)")


def _require_labels(labels: Tensor, count: int, classes: int | None = None) -> None:
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            f"expected {count} whole numbers as labels, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    high = labels.max().item() if count else 0
    if count and (labels.min() < 0 or (classes is not None and high >= classes)):
        raise ValueError(
            f"expected labels from 0 to {'K − 1' if classes is None else classes - 1}, got labels "
            f"from {labels.min().item()} to {high}"
        )
