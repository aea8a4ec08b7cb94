import math
from functools import partial

import numpy as np
import pretend
import pytest
import scipy.linalg
import scipy.ndimage
import torch

from aigc_lib.metrics import images as module
from aigc_lib.metrics.images import (
    class_coverage,
    frechet_distance,
    gaussian_blur,
    gaussian_frechet_distance,
    label_agreement,
    recognition_rate,
    within_class_variance,
)

# Three digits and junk.
P = torch.tensor(
    [
        [0.95, 0.02, 0.02, 0.01],
        [0.91, 0.04, 0.03, 0.02],
        [0.05, 0.90, 0.03, 0.02],  # not above 0.9
        [0.01, 0.01, 0.97, 0.01],
        [0.01, 0.01, 0.01, 0.97],
        [0.30, 0.30, 0.00, 0.40],
    ],
    dtype=torch.float64,
)


def covariance(width, generator, rank=None):
    a = torch.randn(width, rank or width + 2, generator=generator, dtype=torch.float64)
    return a @ a.T


def by_sqrtm(mu, s, mu2, s2):
    """The formula as it is printed, with SciPy's Schur method for the root."""
    root = scipy.linalg.sqrtm((s @ s2).numpy()).real
    return ((mu - mu2) ** 2).sum().item() + np.trace(s.numpy() + s2.numpy() - 2 * root)


def test_rates_counted_by_hand():
    assert recognition_rate(P) == pytest.approx(3 / 6)
    assert recognition_rate(P, threshold=0.93) == pytest.approx(2 / 6)
    assert recognition_rate(P, threshold=0.5) == pytest.approx(4 / 6)
    labels = torch.tensor([0, 1, 1, 2, 2, 0])
    assert label_agreement(P, labels) == pytest.approx(3 / 6)


def test_junk_is_no_digit_however_sure_the_judge_is():
    p = torch.tensor([[0.0, 0.0, 1.0]]).repeat(4, 1)
    assert recognition_rate(p) == 0
    assert label_agreement(p, torch.tensor([0, 1, 0, 1])) == 0
    spread = class_coverage(p)
    assert spread.shares.tolist() == [0, 0]
    assert (spread.covered, spread.evenness) == (0, 0)


def test_coverage_counted_by_hand():
    spread = class_coverage(P)
    assert spread.shares.tolist() == pytest.approx([2 / 3, 0, 1 / 3])
    assert spread.covered == pytest.approx(2 / 3)
    entropy = -(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3)
    assert spread.evenness == pytest.approx(entropy / math.log(3))
    lower = class_coverage(P, threshold=0.6)
    assert lower.shares.tolist() == pytest.approx([0.5, 0.25, 0.25])
    even = class_coverage(torch.eye(5, dtype=torch.float64)[:4])
    assert (even.covered, even.evenness) == pytest.approx((1, 1))


def test_variance_within_classes_by_hand():
    real = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 0.0], [10.0, 4.0]])
    labels = torch.tensor([0, 0, 1, 1])  # variances 2 and 8
    assert within_class_variance(real, labels, real, labels) == pytest.approx(1)
    samples = torch.tensor([[5.0, 5.0], [5.0, 5.0], [0.0, 0.0], [0.0, 2.0], [7.0, 7.0]])
    samples = torch.cat([samples, torch.tensor([[7.0, 9.0]])])
    asked = torch.tensor([0, 0, 1, 1, 9, 9])  # 0 and 2; no real image is a 9
    assert within_class_variance(samples, asked, real, labels) == pytest.approx(0.2)
    three = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 4.0]])  # variance 4
    assert within_class_variance(three, labels[1:].clamp(min=1), real, labels) == pytest.approx(0.4)
    alone = torch.tensor([1])
    assert within_class_variance(samples[:1], alone, real, labels) == 0
    assert within_class_variance(samples[:0], alone[:0], real, labels) == 0
    assert within_class_variance(2 * real[2:], labels[2:], real, labels) == pytest.approx(3.2)


def test_the_distance_in_one_dimension_is_that_of_means_and_deviations():
    for mu, sigma, mu2, sigma2 in ((0, 1, 0, 1), (1, 2, -3, 0.5), (0, 0, 2, 3)):
        args = [
            torch.tensor(x, dtype=torch.float64) for x in ([mu], [[sigma**2]], [mu2], [[sigma2**2]])
        ]
        want = (mu - mu2) ** 2 + (sigma - sigma2) ** 2
        assert gaussian_frechet_distance(*args) == pytest.approx(want, abs=1e-12)


def test_the_distance_of_commuting_covariances_is_that_of_their_roots(generator):
    q = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    a, b = torch.rand(2, 6, generator=generator, dtype=torch.float64)
    mu, mu2 = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    got = gaussian_frechet_distance(mu, q * a @ q.T, mu2, q * b @ q.T)
    want = (mu - mu2).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert got == pytest.approx(want.item(), abs=1e-12)


@pytest.mark.parametrize("width", [1, 2, 7, 64])
def test_the_distance_agrees_with_the_matrix_root_of_scipy(width, generator):
    for scale in (1.0, 1e-3, 1e4):
        s, s2 = (scale * covariance(width, generator) for _ in range(2))
        mu, mu2 = torch.randn(2, width, generator=generator, dtype=torch.float64)
        got = gaussian_frechet_distance(mu, s, mu2, s2)
        assert got == pytest.approx(by_sqrtm(mu, s, mu2, s2), rel=1e-9)
        low = [x.float() for x in (mu, s, mu2, s2)]
        assert gaussian_frechet_distance(*low) == gaussian_frechet_distance(
            *(x.double() for x in low)
        )


def test_no_distance_is_below_zero(generator):
    for _ in range(20):
        a = torch.randn(30, 8, generator=generator)
        assert 0 <= frechet_distance(a, a) < 1e-12


def test_the_distance_of_samples_is_that_of_their_unbiased_moments(generator):
    a = torch.randn(40, 5, generator=generator)
    b = 2 * torch.randn(25, 5, generator=generator) + 1
    moments = [
        torch.from_numpy(x)
        for f in (a, b)
        for x in (f.double().numpy().mean(0), np.cov(f.double().numpy(), rowvar=False))
    ]
    assert frechet_distance(a, b) == pytest.approx(by_sqrtm(*moments), rel=1e-9)
    assert frechet_distance(a[:, :1], b[:, :1]) > 0


def test_the_distance_is_symmetric_and_ignores_order_shift_and_rotation(generator):
    a = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    b = torch.randn(20, 4, generator=generator, dtype=torch.float64) * torch.arange(1.0, 5)
    want = frechet_distance(a, b)
    q = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))[0]
    for other in (
        frechet_distance(b, a),
        frechet_distance(a.flip(0), b),
        frechet_distance(a + 100, b + 100),
        frechet_distance(a @ q, b @ q),
        frechet_distance(3 * a, 3 * b) / 9,
    ):
        assert other == pytest.approx(want, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(16, rel=1e-9)


def test_fewer_samples_than_features_are_no_obstacle(generator):
    a, b = torch.randn(2, 10, 30, generator=generator, dtype=torch.float64)
    moments = [x for f in (a, b) for x in (f.mean(0), f.T.cov())]
    assert frechet_distance(a, b) == pytest.approx(by_sqrtm(*moments), rel=1e-4)
    one = torch.ones(3, 4)
    assert frechet_distance(one, one) == 0


def test_the_bias_of_the_distance_falls_like_one_over_the_count(generator):
    bias = [
        sum(frechet_distance(*torch.randn(2, n, 16, generator=generator)) for _ in range(20)) / 20
        for n in (200, 400, 800)
    ]
    assert bias[0] / bias[1] == pytest.approx(2, rel=0.15)
    assert bias[1] / bias[2] == pytest.approx(2, rel=0.15)


def test_the_blur_agrees_with_scipy(generator):
    x = torch.rand(2, 1, 13, 17, generator=generator, dtype=torch.float64)
    for sigma in (0.6, 1.0, 2):
        reach = math.ceil(3 * sigma)
        want = scipy.ndimage.gaussian_filter(
            x[:, 0].numpy(), sigma, mode="constant", axes=(1, 2), radius=reach
        )
        assert np.abs(gaussian_blur(x, sigma)[:, 0].numpy() - want).max() < 1e-12


def test_a_blur_keeps_the_light_and_its_place():
    x = torch.zeros(1, 1, 15, 15, dtype=torch.float64)
    x[0, 0, 7, 6] = 1
    y = gaussian_blur(x, 1.5)[0, 0]
    assert y.sum().item() == pytest.approx(1)
    assert divmod(y.argmax().item(), 15) == (7, 6)
    row = torch.arange(15) - 7.0
    assert (y.sum(1) * row**2).sum().item() == pytest.approx(1.5**2, rel=0.05)


def brightness_judge(x):
    """A stand-in: the top left corner says the class, dark images are junk."""
    features = torch.nn.functional.avg_pool2d(x, 2).flatten(1)
    corner = x[:, 0, 0, 0]
    p = torch.stack([corner, 1 - corner, torch.zeros_like(corner)], 1)
    p = torch.where(x.mean((1, 2, 3))[:, None] < 0.1, torch.tensor([0.0, 0.0, 1.0]), p)
    return features, p


def fake_images(count, generator):
    labels = torch.randint(2, (count,), generator=generator)
    x = 0.2 + 0.6 * torch.rand(count, 1, 14, 14, generator=generator)
    x[:, 0, :2, :2] = (labels == 0).float()[:, None, None]
    return x, labels


def test_a_report_sets_samples_beside_real_images_blurred_ones_and_noise(generator):
    real = fake_images(200, generator)
    good, bad = fake_images(100, generator), torch.zeros(100, 1, 14, 14)
    one = good[0][:1].expand(100, 1, 14, 14)
    half = torch.cat([good[0][:50], bad[:50]])
    table = module.report(
        brightness_judge,
        {
            "good": good,
            "black": (bad, None),
            "one": (one, good[1][:1].expand(100)),
            "half": (half, None),
        },
        real,
        generator,
        preset="full",
        judge="0123abcd",
    )
    rows = {row.name: row for row in table.rows}
    assert list(rows) == ["real", "blurred", "noise", "good", "black", "one", "half"]
    assert table.count == 100
    assert rows["real"].recognised == rows["good"].recognised == 1
    assert rows["real"].agreement == rows["good"].agreement == rows["one"].agreement == 1
    assert rows["noise"].agreement is None
    assert rows["black"].recognised == rows["black"].variance == 0
    assert rows["one"].coverage.covered == 0.5
    assert rows["one"].variance == 0
    assert 0.3 < rows["blurred"].recognised < 0.7  # corners without light stay dark
    assert 0.05 < rows["noise"].recognised < 0.4
    assert rows["real"].variance == pytest.approx(1, abs=0.2)
    near, far = rows["real"].frechet, min(rows[n].frechet for n in ("blurred", "noise", "black"))
    assert rows["good"].frechet < 2 * near < far
    first, second = brightness_judge(real[0][:100])[0], brightness_judge(real[0][100:])[0]
    assert near == pytest.approx(frechet_distance(first, second))
    variance = within_class_variance(second, real[1][100:], first, real[1][:100])
    assert rows["real"].variance == pytest.approx(variance)
    assert rows["half"].variance == pytest.approx(rows["good"].variance, rel=0.2)  # junk apart
    assert rows["half"].recognised == 0.5


def headstrong_judge(x):
    """A stand-in that looks for the class in another corner than the one asked for."""
    features, _ = brightness_judge(x)
    bright = (x[:, 0, -1, -1] > 0.5).float()
    p = torch.stack([bright, 1 - bright, 0 * bright], 1)
    unsure = torch.arange(len(x)) % 5 == 0
    return features, torch.where(unsure[:, None], torch.tensor([0.6, 0.2, 0.2]), p)


def test_each_measure_in_a_report_is_of_what_the_judge_says_not_of_what_was_asked(generator):
    real, (x, labels) = fake_images(80, generator), fake_images(40, generator)
    x = torch.where((labels == 0)[:, None, None, None], 0.1 * x, x)
    table = module.report(
        headstrong_judge, {"mine": (x, labels)}, real, generator, preset="easy", judge="0123abcd"
    )
    row = table.rows[-1]
    (reference, _), (features, p) = headstrong_judge(real[0][:40]), headstrong_judge(x)
    sure, seen = p.max(1).values > 0.9, p.argmax(1)
    assert row.recognised == pytest.approx(sure.double().mean().item()) == pytest.approx(0.8)
    assert row.agreement == pytest.approx((seen == labels).double().mean().item())
    assert 0.2 < row.agreement < 0.8
    seen, labels = seen[sure], labels[sure]
    shares = [(seen == k).double().mean().item() for k in (0, 1)]
    assert row.coverage.shares.tolist() == pytest.approx(shares)
    want = within_class_variance(features[sure], seen, reference, real[1][:40])
    assert row.variance == pytest.approx(want, rel=1e-12)
    asked = within_class_variance(features[sure], labels, reference, real[1][:40])
    every = within_class_variance(features, p.argmax(1), reference, real[1][:40])
    assert min(abs(want - asked), abs(want - every)) > 0.02
    assert row.frechet == pytest.approx(frechet_distance(features, reference), rel=1e-9)
    printed = [
        f"{row.recognised:.1%}",
        f"{row.agreement:.1%}",
        "100%",
        f"{min(shares):.1%}",
        f"{-sum(s * math.log2(s) for s in shares):.2f}",
        f"{want:.2f}",
        f"{row.frechet:.2f}",
    ]
    assert str(table).splitlines()[-1].split() == ["mine", *printed]
    assert len(set(printed)) == 7


def test_the_noise_of_a_report_comes_from_its_generator(generator):
    real, state = fake_images(20, generator), torch.get_rng_state()

    def noise(seed):
        generator.manual_seed(seed)
        table = module.report(brightness_judge, {}, real, generator, preset="full", judge="-")
        return table.rows[2].frechet

    assert noise(1) == noise(1) != noise(2)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_printed_report_names_count_preset_and_judge(generator):
    table = module.report(
        brightness_judge,
        {"mine": (fake_images(50, generator)[0], None)},
        fake_images(100, generator),
        generator,
        preset="easy",
        judge="0123abcd",
    )
    head, columns, *lines = str(table).splitlines()
    assert head == "preset easy · judge 0123abcd · 50 images a row"
    assert columns.split()[0] == "recognised"
    assert [line.split()[0] for line in lines] == ["real", "blurred", "noise", "mine"]
    assert len({len(line) for line in [columns, *lines]}) == 1
    assert lines[0].split()[1] == "100.0%"
    assert lines[3].split()[2] == "—"


def test_a_device_without_float64_gives_the_same_numbers(generator):
    real, (x, labels) = fake_images(80, generator), fake_images(40, generator)
    features, p = brightness_judge(x)
    reference = brightness_judge(real[0])[0]
    moments = (lambda x: x.mean(0), lambda x: x.T.cov())
    calls = [
        (recognition_rate, p),
        (label_agreement, p, labels),
        (class_coverage, p),
        (within_class_variance, features, labels, reference, real[1]),
        (frechet_distance, features, reference),
        (gaussian_frechet_distance, *(f(x) for x in (features, reference) for f in moments)),
    ]
    for function, *inputs in calls:
        want = function(*inputs)
        with pretend.Mps() as mps:
            got = function(*map(mps.put, inputs))
        if function is class_coverage:
            assert torch.equal(got.shares, want.shares)
            got, want = (got.covered, got.evenness), (want.covered, want.evenness)
        assert got == pytest.approx(want, rel=1e-7)


LABELS = torch.tensor([0, 0, 1, 1, 1])
FEATURES = torch.tensor([[0.0, 1], [1, 2], [4, 1], [2, 2], [0, 3]])
X = torch.ones(10, 1, 14, 14)
MU, EYE = torch.zeros(2), torch.eye(2)
NO_PROBABILITIES = [
    (ValueError, torch.tensor([[0.5, 0.5]])),  # no second digit
    (ValueError, torch.tensor([0.5, 0.3, 0.2])),
    (ValueError, torch.zeros(0, 11)),
    (TypeError, torch.tensor([[1, 0, 0]])),
    (ValueError, torch.tensor([[2.0, 1.0, -1.0]])),  # logits
    (ValueError, torch.tensor([[math.nan, 0.5, 0.5]])),
    (ValueError, torch.tensor([[0.5, 0.3, 0.1]])),
    (ValueError, torch.tensor([[1.2, -0.2, 0.0]])),
]
NO_LABELS = [
    (ValueError, torch.zeros(4).long()),
    (TypeError, torch.zeros(5)),
    (TypeError, torch.zeros(5).bool()),
    (ValueError, torch.tensor([0, 1, 2, 0, -1])),
]
NO_FEATURES = [
    (ValueError, FEATURES[0]),
    (TypeError, FEATURES.long()),
    (ValueError, FEATURES / 0),
    (ValueError, FEATURES * math.nan),
]
NO_COVARIANCE = [-EYE, torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.diag(EYE[0] - 0.1)]


def reported(samples, real):
    draw = torch.Generator().manual_seed(0)
    return module.report(brightness_judge, samples, real, draw, preset="full", judge="-")


@pytest.mark.parametrize(
    ("error", "name", "call"),
    [
        *(
            (error, "probabilities", partial(function, p))
            for error, p in NO_PROBABILITIES
            for function in (
                recognition_rate,
                class_coverage,
                lambda p: label_agreement(p, torch.zeros(len(p), dtype=torch.long)),
            )
        ),
        *(
            (ValueError, "threshold", partial(function, P, threshold=threshold))
            for function in (recognition_rate, class_coverage)
            for threshold in (0.4, 1.0, 90, math.nan)
        ),
        *((error, "labels", partial(label_agreement, P[:5], k)) for error, k in NO_LABELS),
        (ValueError, "labels", lambda: label_agreement(P[:5], torch.tensor([0, 1, 2, 3, 0]))),
        *(
            (error, "labels", partial(within_class_variance, FEATURES, k, FEATURES, LABELS))
            for error, k in NO_LABELS
        ),
        *(
            (error, "real_labels", partial(within_class_variance, FEATURES, LABELS, FEATURES, k))
            for error, k in NO_LABELS
        ),
        *(
            (error, "features", partial(within_class_variance, f, LABELS, FEATURES, LABELS))
            for error, f in NO_FEATURES
        ),
        *(
            (error, "real_features", partial(within_class_variance, FEATURES, LABELS, f, LABELS))
            for error, f in [*NO_FEATURES, (ValueError, FEATURES[:, :1])]
        ),
        *(
            (ValueError, "real_features", partial(within_class_variance, FEATURES, LABELS, f, k))
            for f, k in (
                (torch.ones(5, 2), LABELS),  # all the same
                (FEATURES[:0], LABELS[:0]),
                (FEATURES, torch.tensor([0, 0, 1, 1, 2])),  # one alone
            )
        ),
        *((error, "a", partial(frechet_distance, f, FEATURES)) for error, f in NO_FEATURES),
        *((error, "b", partial(frechet_distance, FEATURES, f)) for error, f in NO_FEATURES),
        (ValueError, "b", lambda: frechet_distance(FEATURES, FEATURES[:, :1])),
        (ValueError, "a", lambda: frechet_distance(FEATURES[:1], FEATURES)),
        (ValueError, "b", lambda: frechet_distance(FEATURES, FEATURES[:1])),
        *(
            (ValueError, "covariance", partial(gaussian_frechet_distance, MU, bad, MU, EYE))
            for bad in [*NO_COVARIANCE, EYE / 0, torch.eye(3)]
        ),
        *(
            (ValueError, "other_covariance", partial(gaussian_frechet_distance, MU, EYE, MU, bad))
            for bad in [*NO_COVARIANCE, EYE / 0, torch.eye(3)]
        ),
        (ValueError, "mu", lambda: gaussian_frechet_distance(EYE, EYE, MU, EYE)),
        (ValueError, "mu", lambda: gaussian_frechet_distance(MU * math.nan, EYE, MU, EYE)),
        (ValueError, "other_mu", lambda: gaussian_frechet_distance(MU, EYE, MU[:1], EYE)),
        (ValueError, "other_mu", lambda: gaussian_frechet_distance(MU, EYE, MU / 0, EYE)),
        *(
            (ValueError, "sigma", partial(gaussian_blur, X, sigma))
            for sigma in (0, -1, math.inf, math.nan)
        ),
        (ValueError, "samples", lambda: reported({"mine": (X[:4], None)}, (X, LABELS.repeat(2)))),
        (ValueError, "samples", lambda: reported({"mine": (X[:1], None)}, (X[:2], LABELS[:2]))),
        (ValueError, "samples", lambda: reported({}, (X[:3], LABELS[:3]))),
    ],
)
def test_bad_input_is_named(error, name, call, hook_off):
    with pytest.raises(error, match=rf"^expected .*\b{name}\b.*, got"):
        call()
