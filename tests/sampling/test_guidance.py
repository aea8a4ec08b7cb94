import math

import pytest
import torch

from aigc_lib.sampling.diffusion import ddim
from aigc_lib.sampling.guidance import guided
from aigc_lib.schedules import VE, VP, Straight, SubVP, linear
from tests.noise import normal


def gaussian(schedule, target="eps"):
    """The best prediction for data N(mean, spread²), of which it is told both, a row each."""

    def net(x, condition, *, mean, spread):
        snr = torch.exp(4 * condition)
        a = torch.ones_like(snr) if isinstance(schedule, VE) else (snr / (1 + snr)).sqrt()
        a, s = a[:, None], (a / snr.sqrt())[:, None]
        score = (a * mean - x) / (a**2 * spread**2 + s**2)
        eps = -s * score
        x0 = (x - s * eps) / a
        return {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": score}[target]

    return net


def told(mean, spread, rows=1):
    full = torch.full((rows, 1), 1.0, dtype=torch.float64)
    return {"mean": mean * full, "spread": spread * full}


class Recorded:
    """A net that notes what it was asked, and answers anything at all."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, condition, *, label):
        self.calls.append((len(x), label.tolist()))
        return torch.sin(3 * x + label[:, None]) + condition[:, None]


X, CONDITION = normal(4, 3), torch.tensor([-2.0, -1.0, 0.5, 1.0], dtype=torch.float64)
LABEL, NONE = torch.arange(4), torch.tensor([9])


def answer(label):
    return Recorded()(X, CONDITION, label=label)


# Closed forms


@pytest.mark.parametrize("schedule", [VP(), linear(60), pytest.param(VE(), id="VE")])
@pytest.mark.parametrize("target", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_the_score_of_two_gaussians_is_tilted_at_every_level(schedule, target, scale):
    times = torch.tensor([5, 30, 59]) if schedule.__class__.__name__ == "Discrete" else None
    times = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64) if times is None else times
    x, a, s = normal(3, 2), schedule.signal(times)[:, None], schedule.sigma(times)[:, None]
    predict = guided(gaussian(schedule, target), told(0.7, 0.3, 3), told(-0.2, 1.1), scale)
    output = predict(x, schedule.condition(times, torch.float64))
    got = schedule.convert(output, x, times, source=target, target="score")
    narrow = (0.7 * a - x) / (a**2 * 0.09 + s**2)
    wide = (-0.2 * a - x) / (a**2 * 1.21 + s**2)
    # N(m, v)^s N(n, w)^(1 − s) is a Gaussian again: this is its score.
    precision = scale / (a**2 * 0.09 + s**2) + (1 - scale) / (a**2 * 1.21 + s**2)
    mean = scale * 0.7 * a / (a**2 * 0.09 + s**2) - (1 - scale) * 0.2 * a / (a**2 * 1.21 + s**2)
    assert torch.allclose(got, mean - precision * x, rtol=1e-9, atol=1e-9)
    assert torch.allclose(got, wide + scale * (narrow - wide), rtol=1e-9, atol=1e-9)


def test_gaussians_of_one_spread_are_moved_to_where_the_tilt_says():
    # For equal spreads N(m, v)^s N(n, v)^(1 − s) is N(n + s (m − n), v), noised or not.
    schedule, start = VP(), normal(50, 1)
    net, first = gaussian(schedule), told(0.7, 0.3, 50)
    predict = guided(net, first, told(-0.2, 0.3), 2.5)
    want = net, told(-0.2 + 2.5 * 0.9, 0.3, 50)
    *_, last = ddim(predict, schedule, (50, 1), num_steps=40, start=start)
    *_, other = ddim(lambda x, c: want[0](x, c, **want[1]), schedule, (50, 1), num_steps=40,
                     start=start)  # fmt: skip
    assert torch.allclose(last.x, other.x, atol=1e-10)
    assert (last.x.mean() - 2.05).abs() < 0.2


def test_gaussians_of_two_spreads_are_not_drawn_from_the_tilt_of_the_data():
    # The tilt of the data has the precision Σ s/v; guided sampling ends elsewhere, and no finer
    # steps mend it.
    schedule, scale, start = VP(), 3.0, normal(4000, 1)
    predict = guided(gaussian(schedule), told(0.0, 0.5, 4000), told(0.0, 1.0), scale)
    spreads = []
    for steps in (100, 200):
        *_, last = ddim(predict, schedule, (4000, 1), num_steps=steps, start=start)
        spreads.append(float(last.x.std() / start.std()))
    tilted = (scale / 0.25 + (1 - scale) / 1.0) ** -0.5
    assert abs(spreads[0] - spreads[1]) < 0.01
    assert abs(spreads[1] - tilted) > 0.03
    *_, plain = ddim(guided(gaussian(schedule), told(0.0, 0.5, 4000), told(0.0, 1.0), 1.0),
                     schedule, (4000, 1), num_steps=200, start=start)  # fmt: skip
    assert abs(float(plain.x.std() / start.std()) - 0.5) < 0.01


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 2.0, 7.5])
def test_it_is_the_formula_row_by_row(scale):
    got = guided(Recorded(), {"label": LABEL}, {"label": NONE}, scale)(X, CONDITION)
    given, without = answer(LABEL), answer(NONE.expand(4))
    assert torch.allclose(got, without + scale * (given - without), atol=1e-13)


# Invariances


def test_a_scale_of_one_is_the_told_net_bit_for_bit_asked_once():
    net = Recorded()
    got = guided(net, {"label": LABEL}, {"label": NONE}, 1.0)(X, CONDITION)
    assert torch.equal(got, answer(LABEL))
    assert net.calls == [(4, [0, 1, 2, 3])]


def test_other_scales_ask_once_for_both():
    net = Recorded()
    guided(net, {"label": LABEL}, {"label": NONE}, 2.0)(X, CONDITION)
    assert net.calls == [(8, [0, 1, 2, 3, 9, 9, 9, 9])]


def test_one_row_untold_is_as_good_as_all_rows():
    one = guided(Recorded(), {"label": LABEL}, {"label": NONE}, 2.0)(X, CONDITION)
    all_of_them = guided(Recorded(), {"label": LABEL}, {"label": NONE.repeat(4)}, 2.0)
    assert torch.equal(one, all_of_them(X, CONDITION))
    negative = guided(Recorded(), {"label": LABEL}, {"label": LABEL.flip(0)}, 2.0)(X, CONDITION)
    want = answer(LABEL.flip(0)) + 2 * (answer(LABEL) - answer(LABEL.flip(0)))
    assert torch.allclose(negative, want, atol=1e-13)


def test_outside_of_the_interval_there_is_no_guidance():
    net = Recorded()
    predict = guided(net, {"label": LABEL}, {"label": NONE}, 3.0, (-1.0, 0.5))
    got = predict(X, CONDITION)
    free = guided(Recorded(), {"label": LABEL}, {"label": NONE}, 3.0)(X, CONDITION)
    assert torch.equal(got[1:3], free[1:3])  # the ends count
    assert torch.equal(got[[0, 3]], answer(LABEL)[[0, 3]])
    assert not torch.allclose(free[[0, 3]], got[[0, 3]], atol=0.1)
    net.calls.clear()
    assert torch.equal(predict(X, 0 * CONDITION + 2), Recorded()(X, 0 * CONDITION + 2, label=LABEL))
    assert net.calls == [(4, [0, 1, 2, 3])]


def test_texts_and_their_masks_travel_together():
    def net(x, condition, *, text, text_mask):
        return x + (text * text_mask[:, :, None]).sum((1, 2))[:, None]

    text, mask = normal(4, 5, 2), torch.arange(5) < torch.tensor([[5], [3], [2], [1]])
    none, seen = normal(1, 5, 2, seed=1), torch.arange(5)[None] < 1
    got = guided(net, {"text": text, "text_mask": mask}, {"text": none, "text_mask": seen}, 2.0)
    given = (text * mask[:, :, None]).sum((1, 2))[:, None]
    assert torch.allclose(got(X, CONDITION), X + 2 * given - none[0, 0].sum(), atol=1e-13)


def test_the_dtype_stays():
    predict = guided(Recorded(), {"label": LABEL}, {"label": NONE}, 1.7, (-1.5, 2.0))
    assert predict(X.float(), CONDITION.float()).dtype == torch.float32
    exact = answer(NONE.expand(4)) + 1.7 * (answer(LABEL) - answer(NONE.expand(4)))
    assert torch.allclose(predict(X, CONDITION)[1:], exact[1:], atol=1e-14)


# An independent reference


@pytest.mark.parametrize("scale", [0.0, 2.0, 7.5])
def test_it_is_that_of_diffusers(scale):
    from diffusers.guiders.classifier_free_guidance import ClassifierFreeGuidance

    guider = ClassifierFreeGuidance(guidance_scale=scale)
    theirs = guider.forward(answer(LABEL), answer(NONE.expand(4)))
    got = guided(Recorded(), {"label": LABEL}, {"label": NONE}, scale)(X, CONDITION)
    assert torch.allclose(got, theirs.pred, atol=1e-13)


def test_every_parameterisation_is_guided_to_the_same_samples():
    schedule, ends = SubVP(), []
    for kind in ("eps", "x0", "v", "score"):

        def net(x, condition, kind=kind, **given):
            a = schedule_levels(schedule, condition)
            eps = gaussian_eps(x, *a, **given)
            x0 = (x - a[1] * eps) / a[0]
            wanted = {"x0": x0, "v": a[0] * eps - a[1] * x0, "score": -eps / a[1]}
            return wanted.get(kind, eps)

        predict = guided(net, told(0.5, 0.4, 4), told(0.0, 1.0), 2.0)
        *_, last = ddim(predict, schedule, (4, 3), num_steps=10, start=X, parameterisation=kind)
        ends.append(last.x)
    for end in ends[1:]:
        assert torch.allclose(end, ends[0], atol=1e-8)


def test_the_velocity_of_the_straight_path_is_guided_as_the_noise_is():
    schedule, t = Straight(), torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    condition = schedule.condition(t, torch.float64)

    def net(x, condition, *, label, kind="eps"):
        out = Recorded()(x, condition, label=label)
        return schedule.convert(out, x, t.repeat(len(x) // 4), source="eps", target=kind)

    def velocity(x, condition, *, label):
        return net(x, condition, label=label, kind="velocity")

    want, got = (
        guided(f, {"label": LABEL}, {"label": NONE}, 3.0)(X, condition) for f in (net, velocity)
    )
    assert torch.allclose(schedule.convert(got, X, t, source="velocity", target="eps"), want)


def schedule_levels(schedule, condition):
    """Signal and sigma of SubVP where ¼ log snr is the condition: signal/(1 − signal²) = e^{2c}."""
    ratio = torch.exp(2 * condition)
    a = (torch.sqrt(1 + 4 * ratio**2) - 1) / (2 * ratio)
    return a[:, None], (1 - a**2)[:, None]


def gaussian_eps(x, a, s, *, mean, spread):
    return s * (x - a * mean) / (a**2 * spread**2 + s**2)


# Bad input


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *(("scale", {"scale": scale}) for scale in (-0.1, -1.0, math.nan, math.inf)),
        ("interval", {"interval": (1.0, 1.0)}),
        ("interval", {"interval": (1.0, -1.0)}),
        ("interval", {"interval": (math.nan, 1.0)}),
        ("untold", {"untold": {}}),
        ("untold", {"untold": {"text": NONE}}),
        ("untold", {"untold": {"label": NONE, "text": NONE}}),
        ("told", {"told": {}, "untold": {}}),
        ("untold label", {"untold": {"label": torch.arange(3)}}),
        ("untold label", {"untold": {"label": NONE[:, None]}}),
        ("untold label", {"untold": {"label": NONE[0]}}),
    ],
)
def test_what_does_not_fit_is_named_at_once(hook_off, name, change):
    given = {"told": {"label": LABEL}, "untold": {"label": NONE}, "scale": 2.0} | change
    with pytest.raises(ValueError, match=f"^expected .*{name}"):
        guided(Recorded(), **given)
