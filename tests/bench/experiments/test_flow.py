"""Flow matching, its transformer and its student, on few images and for few steps."""

import json
import re
from dataclasses import replace

import pytest
import torch
from comparisons import fits
from torch import nn

from bench import report
from bench.experiments import diffusion, flow

FILES = sorted(report.RESULTS.glob("*-flow*.json"))
NUMBER = (int, float)
HEAD = {
    **dict.fromkeys(("date", "device", "processor", "command", "judge"), str),
    **dict.fromkeys(("versions", "recipe", "arms"), dict),
    **dict.fromkeys(("seeds", "rows"), list),
    **dict.fromkeys(("quick", "complete"), bool),
    "threads": int,
    "capability": type(None),
    "wait_policy": (str, type(None)),
}
SECONDS = ("wall_seconds", "cpu_seconds", "cpu_seconds_teacher")
ROW = {
    "arm": str,
    "samples": dict,
    **dict.fromkeys(("seed", "steps"), int),
    **dict.fromkeys((*SECONDS, "loss"), NUMBER),
}
MEASURES = {
    **dict.fromkeys(("recognised", "smallest", "label", "variance", "frechet"), NUMBER),
    "images_per_second": (int, float, type(None)),
}
TINY = flow.Recipe(batch=4, images=12, samples=40, shorter=0.001)


def check_row(row):
    fits(row, ROW)
    ways = flow.STEPS if flow.ARMS[row["arm"]].student else flow.FLOWS
    assert set(row["samples"]) == {"real", *ways}
    for found in row["samples"].values():
        fits(found, MEASURES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_committed_comparison_is_whole_and_named_after_its_device_and_day(path):
    arms = flow.comparison().arms
    content = json.loads(path.read_text(encoding="utf-8"))
    fits(content, HEAD)
    name = re.escape(f"{content['date']}-{report.slug(content['device'])}")
    assert re.fullmatch(rf"{name}-flow(-\d+)?\.json", path.name)
    assert content["complete"]
    assert not content["quick"]
    assert content["arms"] == {name: arms[name] for name in content["arms"]}
    assert len(content["seeds"]) >= 5
    found = [(row["seed"], row["arm"]) for row in content["rows"]]
    assert found == [(seed, arm) for seed in content["seeds"] for arm in content["arms"]]
    for row in content["rows"]:
        check_row(row)
        assert row["samples"]["real"]["recognised"] > 0.9
        assert row["samples"]["real"]["frechet"] < 0.8


class Spy(nn.Module):
    """A net that gives zeros and keeps what it was given."""

    def forward(self, *given):
        self.given = given
        return torch.zeros_like(given[0])


def test_the_loss_is_the_velocity_s_error_of_image_level_and_label_together():
    spy, recipe = Spy(), replace(TINY, batch=2000, dropped=0.3)
    greys = torch.linspace(-1, 1, 10)[:, None, None, None].expand(10, *flow.SHAPE)
    draws = torch.Generator().manual_seed(0)
    loss = flow.loss_of(recipe, spy, greys, torch.arange(10), draws)(0)
    x_t, condition, label = spy.given
    assert (label == flow.CLASSES).double().mean().item() == pytest.approx(0.3, abs=0.04)
    t, told = torch.sigmoid(-2 * condition), label < flow.CLASSES
    level = t[:, None, None, None]
    eps = (x_t[told] - (1 - level[told]) * greys[label[told]]) / level[told]
    assert eps.std((1, 2, 3)).sub(1).abs().max() < 0.25
    velocity = spy(x_t, condition, label).sub(x_t).neg() / level  # of a predicted x₀ of 0
    x0 = ((x_t.mean((1, 2, 3)) / (1 - t))[:, None] - greys[:, 0, 0, 0]).abs().argmin(1)
    x0 = torch.where(told, label, x0)[:, None, None, None] / 4.5 - 1
    truth = (x_t - x0) / level
    errors = (velocity - truth).square().mean((1, 2, 3))
    expected = torch.where(t < recipe.most**-0.5, errors * t**2 * recipe.most, errors)
    assert loss.item() == pytest.approx(expected.mean().item(), rel=0.02)
    logits = torch.logit(t.double())
    assert logits.mean().item() == pytest.approx(recipe.middle, abs=0.02)
    assert logits.std().item() == pytest.approx(recipe.spread, abs=0.02)


def test_a_sampler_asks_first_at_pure_noise_then_evenly_in_log_snr():
    times = flow.even_in_snr(20)
    assert (len(times), times[0]) == (20, 1.0)
    assert times == sorted(times, reverse=True)
    steps = torch.logit(torch.tensor(times[1:], dtype=torch.float64)).diff()
    assert torch.allclose(steps, steps[0])
    assert flow.even_in_snr(1) == [1.0]


class Knows(nn.Module):
    """The best net: it knows the grey of each label, and of no label another."""

    def __init__(self):
        super().__init__()
        self.factor, self.told = nn.Parameter(torch.ones(())), []

    def forward(self, x, condition, label):
        self.told.append(condition[0].item())
        return self.factor * (label / 5 - 1)[:, None, None, None].expand_as(x)


def test_samples_have_the_label_asked_for_and_the_way_s_levels_and_guidance():
    net = Knows()
    for way in flow.FLOWS.values():
        net.told.clear()
        found, speed = flow.drawn({"teacher": net}, way, TINY, 0)
        asked, none = (torch.arange(40) % 10) / 5 - 1, 1.0
        x = (none + way.scale * (asked - none)).clamp(-1, 1)
        assert torch.allclose(2 * found.mean((1, 2, 3)) - 1, x, atol=1e-5)
        times = torch.tensor(flow.even_in_snr(way.steps))
        assert net.told == pytest.approx(flow.STRAIGHT.condition(times).tolist(), abs=1e-5)
        assert speed > 0


def test_a_student_starts_as_its_teacher_and_learns_where_the_flow_ends():
    class Shrinks(Knows):
        """Predicts a part of x: its flow goes elsewhere than one step from noise."""

        def forward(self, x, condition, label):
            return self.factor * torch.tanh(x) * (condition[:, None, None, None] > -4)

    way = flow.Student(pairs=32, questions=4, steps=2, lr=0.0)
    teacher = Shrinks().requires_grad_(False)
    same = flow.taught(way, TINY, teacher, 0)
    assert same.factor == teacher.factor == 1

    class Everywhere(Knows):
        def forward(self, x, condition, label):
            return self.factor * torch.tanh(x)

    teacher = Everywhere()
    noise, labels = torch.randn(200, *flow.SHAPE), torch.zeros(200, dtype=torch.long)
    many = flow.flowed(teacher, noise, labels, flow.Way(4))
    student = flow.taught(replace(way, steps=150, lr=0.05, at_noise=1.0), TINY, teacher, 0)
    before, after = (
        (flow.flowed(net, noise, labels, flow.Way(1)) - many).square().mean()
        for net in (teacher, student)
    )
    assert after < 0.7 * before
    assert teacher.factor == 1


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_student_is_asked_at_pure_noise_in_the_share_of_rows_that_it_is_told(share, monkeypatch):
    asked, real = [], flow.velocity_error

    def spied(recipe, net, x0, t, eps, label):
        asked.append(t)
        return real(recipe, net, x0, t, eps, label)

    monkeypatch.setattr(flow, "velocity_error", spied)
    student = flow.Student(pairs=8, questions=1, batch=500, steps=2, at_noise=share)
    flow.taught(student, TINY, Knows(), 0)
    assert (torch.cat(asked) == 1).double().mean().item() == pytest.approx(share, abs=0.05)


def test_a_seed_fixes_a_row_but_for_its_seconds_and_speed(monkeypatch):
    ways = {"teacher 2": flow.Way(2), "student 1": flow.Way(1, by_student=True)}
    monkeypatch.setattr(flow, "STEPS", ways)
    rows = []
    for seed in (1, 1, 2):
        row = flow.play("student", TINY, seed)
        check_row(row)
        for key in SECONDS:
            row.pop(key)
        for found in row["samples"].values():
            found.pop("images_per_second")
        rows.append(row)
    assert rows[0] == rows[1]
    assert rows[0]["loss"] != rows[2]["loss"]


def test_the_average_of_the_weights_is_what_is_measured(monkeypatch):
    made, real = [], flow.EMA
    monkeypatch.setattr(flow, "EMA", lambda *given: made.append(real(*given)) or made[-1])
    net = flow.unet()
    draws = torch.Generator().manual_seed(0)
    images, labels, *_ = diffusion._data(0, TINY.images, TINY.samples)
    loss_fn = flow.loss_of(TINY, net, images, labels, draws)
    found, _ = flow.fit(net, loss_fn, steps=3, lr=1e-3)
    assert found is made[0].model
    assert made[0].decay == 0


def test_an_arm_of_each_kind_is_played_and_told_in_lines(monkeypatch):
    ways = {"Euler 5": flow.Way(5)}
    monkeypatch.setattr(flow, "FLOWS", ways)
    monkeypatch.setattr(flow, "STEPS", {"student 1": flow.Way(1, by_student=True)})
    rows = [flow.play(name, TINY, 0) for name in ("DiT", "student")]
    text = "\n".join(flow.lines(rows))
    for words in ("DiT, Euler 5", "student, student 1", "student, real", "processor seconds"):
        assert words in text
