"""Diffusion under three losses, on few images and for few steps."""

import json
import math
import re
from dataclasses import replace

import pytest
import torch
from comparisons import fits
from torch import nn

from aigc_lib.schedules import cosine, linear
from bench import report
from bench.experiments import diffusion
from tools import Refusal

FILES = sorted(report.RESULTS.glob("*-diffusion*.json"))
NUMBER = (int, float)
HEAD = {
    **dict.fromkeys(("date", "device", "processor", "command", "judge"), str),
    **dict.fromkeys(("versions", "recipe", "arms"), dict),
    **dict.fromkeys(("seeds", "rows"), list),
    **dict.fromkeys(("quick", "complete"), bool),
    **dict.fromkeys(("threads", "jobs"), int),
    "capability": type(None),
    "wait_policy": (str, type(None)),
}
PARTS = ("decoder", "steps_of_bound", "prior")
ROW = {
    "arm": str,
    "samples": dict,
    **dict.fromkeys(("seed", "steps"), int),
    **dict.fromkeys(("wall_seconds", "cpu_seconds", "loss", "bound", *PARTS), NUMBER),
}
MEASURES = dict.fromkeys(("recognised", "smallest", "label", "variance", "frechet"), NUMBER)
TINY = diffusion.Recipe(width=16, batch=4, steps=3, images=12, samples=40, bounded=2)


def check_row(row):
    fits(row, ROW)
    assert row["bound"] == pytest.approx(sum(row[part] for part in PARTS))
    assert {"real", *diffusion.USUAL} <= set(row["samples"])
    for found in row["samples"].values():
        fits(found, MEASURES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_committed_comparison_is_whole_and_named_after_its_device_and_day(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    fits(content, HEAD)
    name = re.escape(f"{content['date']}-{report.slug(content['device'])}")
    assert re.fullmatch(rf"{name}-diffusion(-\d+)?\.json", path.name)
    assert content["complete"]
    assert not content["quick"]
    assert content["arms"] == {name: diffusion.ARMS[name].words for name in content["arms"]}
    assert len(content["seeds"]) >= 5
    found = [(row["seed"], row["arm"]) for row in content["rows"]]
    assert found == [(seed, arm) for seed in content["seeds"] for arm in content["arms"]]
    for row in content["rows"]:
        check_row(row)
        assert row["samples"]["real"]["recognised"] > 0.9
        assert row["samples"]["real"]["frechet"] < 0.8


def test_the_weights_are_those_of_the_bound_and_of_v():
    schedule, bound, whole = (
        diffusion.LINEAR,
        diffusion.ARMS["bound"].weights,
        diffusion.ARMS[diffusion.WHOLE].weights,
    )
    x0, eps, wrong = torch.randn(3, 2, 5, dtype=torch.float64)
    for place in (1, 40, 500, 999):
        t = torch.full((2,), place)
        x_t = schedule.noised(x0, t, eps)
        guess = schedule.convert(eps + wrong, x_t, t, source="eps", target="x0")
        means = [schedule.posterior(x, x_t, t)[0] for x in (x0, guess)]
        beta = schedule.beta[place]
        nats = (means[0] - means[1]).square().sum(1) / (2 * beta)
        assert torch.allclose(bound[place] * wrong.square().sum(1), nats, rtol=1e-6)
        x_t = diffusion.COSINE.noised(x0, t, eps)
        vs = [
            diffusion.COSINE.convert(x, x_t, t, source="x0", target="v") for x in (x0, x0 + wrong)
        ]
        expected = (vs[0] - vs[1]).square().sum(1)
        if whole[place] < 100:
            assert torch.allclose(whole[place] * wrong.square().sum(1), expected, rtol=1e-6)
    assert (whole[0], whole[-1].round(decimals=3)) == (100, 1)


def test_times_come_from_all_slices_evenly_or_about_the_middle():
    draws = torch.Generator().manual_seed(0)
    even = diffusion.times_of(diffusion.ARMS["simple"], 100, draws)
    assert torch.equal(even // 10, torch.arange(100))
    arm = diffusion.ARMS[diffusion.WHOLE]
    t = diffusion.times_of(arm, 20_000, draws)
    logits = torch.logit((t.double() + 0.5) / 1000)
    assert logits.mean().item() == pytest.approx(0.3, abs=0.02)
    assert logits.std().item() == pytest.approx(0.9, abs=0.02)
    assert 0 <= t.min() < t.max() <= 999
    drawn, factors = diffusion.ARMS["bound, drawn"], diffusion.ARMS["bound"]
    share = (
        torch.bincount(diffusion.times_of(drawn, 100_000, draws), minlength=1000).double() / 100_000
    )
    assert torch.allclose(share, factors.weights / factors.weights.sum(), atol=1e-4)
    assert torch.equal(drawn.weights, diffusion.ARMS["simple"].weights)


@pytest.mark.parametrize("schedule", [diffusion.COSINE, diffusion.LINEAR])
def test_a_sampler_asks_at_times_even_in_log_snr(schedule):
    times = diffusion.even_in_snr(schedule, 20)
    assert (len(times), times[0], times[-1]) == (20, 999, 0)
    assert times == sorted(times, reverse=True)
    steps = torch.logit(schedule.alpha_bars)[times].diff()[1:-1]
    assert steps.std() < 0.15 * steps.mean()


def shortened(name, steps=12):
    arm = diffusion.ARMS[name]
    schedule = {diffusion.COSINE: cosine, diffusion.LINEAR: linear}[arm.schedule](steps)
    short = {"weights": arm.weights[:steps], "chances": arm.chances[:steps]}
    return replace(arm, schedule=schedule, **short)


def test_all_arms_start_alike_and_a_seed_fixes_a_row_but_for_its_seconds(monkeypatch):
    for name in diffusion.ARMS:
        monkeypatch.setitem(diffusion.ARMS, name, shortened(name, 21))
    starts = [diffusion.new_net(TINY, seed).state_dict() for seed in (1, 1, 2)]
    first, again, other = (start["first.weight"] for start in starts)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    rows = []
    for name in ("simple", "simple"):
        row = diffusion.play(name, TINY, 1)
        check_row(row)
        for key in ("wall_seconds", "cpu_seconds"):
            row.pop(key)
        rows.append(row)
    assert rows[0] == rows[1]


class Oracle(nn.Module):
    """A net that knows the image under the noise."""

    def __init__(self, images, off=0.0):
        super().__init__()
        self.images, self.off = images, off

    def forward(self, x, condition, labels):
        return self.images[: len(x)] + self.off


def test_the_bound_of_the_truth_is_small_and_one_off_is_worse():
    arm = shortened(diffusion.WHOLE)
    *_, fresh, _ = diffusion._data(0, TINY.images, TINY.samples)
    images = 2 * (255 * fresh).round() / 255 - 1
    right, wrong = (diffusion.bound_of(Oracle(images, off), arm, TINY, 0) for off in (0.0, 0.02))
    assert right["bound"] < wrong["bound"]
    assert right["prior"] == wrong["prior"]


def test_a_sample_of_the_truth_is_the_truth():
    recipe = replace(TINY, samples=20)
    images = torch.rand(20, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for way in diffusion.WAYS:
        found = diffusion.drawn(Oracle(images), diffusion.ARMS[diffusion.WHOLE], way, 5, recipe, 0)
        assert torch.allclose(found, images / 2 + 0.5, atol=1e-5), way


def test_bad_arguments_are_refused():
    for line in (["--only", "nothing"], ["--seeds", "0"], ["--out", "."]):
        with pytest.raises(Refusal):
            diffusion._arguments(line)


each = pytest.mark.parametrize("name", diffusion.ARMS)


class Spy(nn.Module):
    """A net that gives zeros and keeps what it was given."""

    def forward(self, *given):
        self.given = given
        return torch.zeros_like(given[0])


@each
def test_a_loss_puts_image_level_label_and_weight_together(name):
    arm, spy, recipe = diffusion.ARMS[name], Spy(), replace(TINY, batch=64)
    greys = torch.linspace(-1, 1, 10)[:, None, None, None].expand(10, 1, 16, 16)
    draws = torch.Generator().manual_seed(0)
    loss = diffusion.loss_of(arm, recipe, spy, greys, torch.arange(10), draws)(0)
    x_t, condition, label = spy.given
    told = arm.schedule.condition(torch.arange(1000), torch.float64)
    t, x0 = (condition[:, None] - told).abs().argmin(1), greys[label]
    eps = arm.schedule.convert(x0, x_t, t, source="x0", target="eps")
    assert eps.std((1, 2, 3)).sub(1).abs().max() < 0.25
    wanted = {"eps": eps, "x0": x0}[arm.predicts].square().mean((1, 2, 3))
    assert loss.item() == pytest.approx((arm.weights[t] * wanted).mean().item(), rel=1e-4)


def test_the_average_of_the_weights_is_what_is_measured(monkeypatch):
    made, real = [], diffusion.EMA
    monkeypatch.setattr(diffusion, "EMA", lambda *given: made.append(real(*given)) or made[-1])
    net, _ = diffusion.fit(shortened("simple", 21), TINY, 0)
    assert net is made[0].model


class Knows(nn.Module):
    """The best net: it knows the image of each label, and the level by the condition."""

    def __init__(self, arm, image_of):
        super().__init__()
        self.arm, self.image_of, self.told = arm, image_of, []

    def forward(self, x, condition, labels):
        self.told.append(condition[0].item())
        x0, bar = self.image_of(labels), torch.sigmoid(4 * condition.double())[:, None, None, None]
        if self.arm.predicts == "x0":
            return x0
        return ((x - bar.sqrt() * x0) / (1 - bar).sqrt()).to(x.dtype)


@each
def test_samples_have_the_label_asked_for_and_the_arm_s_levels(name):
    arm = diffusion.ARMS[name]
    net = Knows(arm, lambda k: (k / 4.5 - 1)[:, None, None, None].expand(-1, 1, 16, 16))
    found = diffusion.drawn(net, arm, "DDIM", 5, TINY, 0)
    assert torch.allclose(9 * found.mean((1, 2, 3)), torch.arange(40.0) % 10, atol=1e-2)
    times = torch.tensor(diffusion.even_in_snr(arm.schedule, 5))
    assert net.told == pytest.approx(arm.schedule.condition(times).tolist())


@each
def test_the_steps_of_the_truth_s_bound_cost_their_variance_alone(name):
    arm, (*_, fresh, labels) = shortened(name, 21), diffusion._data(0, TINY.images, TINY.samples)
    images, wanted = 2 * (255 * fresh[:2]).round() / 255 - 1, labels[:2]

    def image_of(label):
        assert torch.equal(label, wanted)
        return images

    assert wanted[0] != wanted[1]
    found = diffusion.bound_of(Knows(arm, image_of), arm, TINY, 0)
    ratio = (arm.schedule.posterior_variances / arm.schedule.beta)[1:]
    nats = 0.5 * (ratio - 1 - ratio.log()).sum().item()
    assert found["steps_of_bound"] == pytest.approx(nats / math.log(2), rel=1e-3)
