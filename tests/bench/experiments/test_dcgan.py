"""The DCGAN without one of its rules, on few images and for few rounds."""

import json
import pickle
import re
import runpy
import statistics
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from comparisons import contents, fits
from noise import filled, normal
from torch import nn

from aigc_lib import train
from aigc_lib.models.adversarial.gan import DCGANDiscriminator
from aigc_lib.models.vision.judge import load_judge
from bench import report
from bench.experiments import dcgan
from tools import ROOT, Refusal

FILES = sorted(report.RESULTS.glob("*-dcgan*.json"))
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
ROW = {
    "arm": str,
    **dict.fromkeys(("seed", "steps"), int),
    **dict.fromkeys(("wall_seconds", "discriminator_loss", "generator_loss"), NUMBER),
    **dict.fromkeys(("real", "averaged", "played"), dict),
}
MEASURES = dict.fromkeys(("recognised", "smallest", "label", "variance", "frechet"), NUMBER)
ARMS = list(dcgan.ARMS)
OTHERS = [name for name in ARMS if name != dcgan.WHOLE]
TINY = dcgan.Recipe(width=2, latent=3, batch=4, steps=5, images=12, samples=100)


def check(content):
    """A result has the form that readers rely on, and every row that its head promises."""
    fits(content, HEAD)
    # The oldest were made when the file stood one folder higher.
    assert re.match(r"python -m bench\.(experiments\.)?dcgan --seeds ", content["command"])
    for row in content["rows"]:
        fits(row, ROW)
        assert row["steps"] == content["recipe"]["steps"]
        for name in ("real", "averaged", "played"):
            fits(row[name], MEASURES)
    found = [(row["seed"], row["arm"]) for row in content["rows"]]
    promised = [(seed, arm) for seed in content["seeds"] for arm in content["arms"]]
    assert found == (promised if content["complete"] else [p for p in promised if p in found])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_committed_comparison_is_whole_and_named_after_its_device_and_day(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    check(content)
    name = re.escape(f"{content['date']}-{report.slug(content['device'])}")
    assert re.fullmatch(rf"{name}-dcgan(-\d+)?\.json", path.name)
    assert content["complete"]
    assert not content["quick"]
    assert content["arms"] == {name: dcgan.ARMS[name].words for name in content["arms"]}
    assert dcgan.WHOLE in content["arms"]  # what a row is compared with, of the same run
    assert len(content["seeds"]) >= 5
    for row in content["rows"]:
        assert row["real"]["recognised"] > 0.9
        assert row["real"]["frechet"] < 0.5


def test_every_arm_has_been_measured_at_the_recipes_length():
    contents = [json.loads(path.read_text(encoding="utf-8")) for path in FILES]
    same = [c["arms"] for c in contents if c["recipe"]["steps"] == dcgan.Recipe().steps]
    assert {arm for arms in same for arm in arms} == set(ARMS)


# --- the arms


def pair(name, recipe=TINY):
    return dcgan.new_pair(dcgan.ARMS[name], recipe, 0)


def images(count=8):
    return torch.tanh(normal(count, 1, 16, 16)).float(), torch.arange(count) % 10


def weights(net):
    return {name: p for name, p in net.named_parameters() if p.ndim > 1}


def norms(net):
    return sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize("name", OTHERS)
def test_an_arm_departs_from_the_recipe_in_one_thing(name):
    whole, arm = dcgan.ARMS[dcgan.WHOLE], dcgan.ARMS[name]
    fields = ("change", "beta1", "generator_loss", "together")
    assert sum(getattr(arm, field) != getattr(whole, field) for field in fields) == 1
    for net in pair(name):
        assert type(net).__mro__[-2] is nn.Module or net.config.num_classes == 10


@pytest.mark.parametrize("name", OTHERS)
def test_an_arm_starts_from_the_recipes_weights_where_it_has_their_layers(name):
    for ours, theirs in zip(pair(name), pair(dcgan.WHOLE), strict=True):
        before, after = weights(theirs), weights(ours)
        same = [key for key in after if key in before and torch.equal(before[key], after[key])]
        if name == "torch's start":
            assert not same
        elif name == "upsampling" and "project.weight" in before:
            assert sorted(same) == ["label.weight", "project.weight"]
        elif name == "ends normalised":  # a layer of each net has got a longer name
            assert len(same) == len(before) - 1 == len(after) - 1
        else:
            assert same == list(before) == list(after)


@pytest.mark.parametrize(
    ("name", "in_G", "in_D"),
    [
        (dcgan.WHOLE, 2, 1),
        ("G unnormalised", 0, 1),
        ("D unnormalised", 2, 0),
        ("ends normalised", 3, 2),
        ("upsampling", 2, 1),
        ("torch's start", 2, 1),
    ],
)
def test_batch_normalisation_stands_where_the_arm_says(name, in_G, in_D):
    G, D = pair(name)
    assert (norms(G), norms(D)) == (in_G, in_D)
    x, y = images()
    for net, given, count in ((G, normal(8, 3).float(), in_G), (D, x, in_D)):
        alone = net(given[:4], y[:4])
        assert torch.allclose(net(given, y)[:4], alone, atol=1e-7) == (count == 0)


@pytest.mark.parametrize("name", ["G unnormalised", "D unnormalised"])
def test_a_layer_without_batch_normalisation_has_a_bias_that_is_used(name):
    G, D = pair(name)
    layer = G.up_1 if name[0] == "G" else D.down_2
    assert layer.bias.count_nonzero() == 0
    D(G(normal(8, 3).float(), torch.arange(8)), torch.arange(8)).square().sum().backward()
    assert layer.bias.grad.abs().max() > 0


def test_normalised_ends_are_before_tanh_and_after_the_first_convolution():
    G, D = (filled(net) for net in pair("ends normalised"))
    seen = {}
    for key, layer in (("G", G.up_2[1]), ("D", D.down_1[1])):
        layer.register_forward_hook(lambda _, given, out, key=key: seen.update({key: out}))
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    x, y = images()
    drawn = G(normal(8, 3), y)
    D(x.double(), y)
    assert torch.equal(drawn, torch.tanh(seen["G"]))
    assert seen["G"].shape == (8, 1, 16, 16)
    assert seen["D"].shape == (8, 4, 8, 8)
    for out in seen.values():
        assert out.mean((0, 2, 3)).abs().max() < 1e-9
        assert (out.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-2


def test_upsampling_repeats_pixels_then_convolves():
    G = filled(pair("upsampling")[0]).eval()
    w, y, z = dict(G.named_parameters()), torch.arange(6), normal(6, 3)
    h = (z @ w["project.weight"].T + w["label.weight"][y]).reshape(6, 8, 4, 4)
    for norm, layer in (("norm_1", "up_1.1"), ("norm_2", "up_2.1")):
        gamma, beta = (w[f"{norm}.{part}"][:, None, None] for part in ("weight", "bias"))
        h = ((1 + 1e-5) ** -0.5 * gamma * h + beta).relu()
        h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = F.conv2d(h, w[f"{layer}.weight"], w.get(f"{layer}.bias"), padding=1)
    assert torch.allclose(G(z, y), h.tanh(), atol=1e-12)


def test_without_tanh_pixels_leave_the_range_and_the_discriminator_sees_them():
    G, D = (filled(net, std=0.6).eval() for net in pair("no tanh"))
    z, y, usual = normal(8, 3), torch.arange(8), filled(pair(dcgan.WHOLE)[0], std=0.6).eval()
    drawn = G(z, y)
    assert drawn.abs().max() > 1
    assert torch.allclose(drawn.tanh(), usual(z, y), atol=1e-12)
    inside = DCGANDiscriminator(D.config).double().eval()
    inside.load_state_dict(D.state_dict())
    assert torch.equal(D(drawn.tanh(), y), inside(drawn.tanh(), y))
    assert not torch.allclose(D(drawn, y), D(drawn.clamp(-1, 1), y), atol=1e-3)


def test_a_strict_discriminator_has_no_leaky_unit():
    _, D = pair("ReLU in D")
    kinds = [type(module) for module in D.children()]
    assert (kinds.count(nn.ReLU), kinds.count(nn.LeakyReLU)) == (1, 0)


def test_torchs_start_is_torchs():
    for net, name in zip(pair("torch's start", dcgan.Recipe()), ("up_1", "down_2"), strict=True):
        assert net.label.weight.std().item() == pytest.approx(1, rel=0.05)
        weight = getattr(net, name).weight
        bound = weight[0].numel() ** -0.5  # both layers have as many numbers to an entry of axis 0
        assert 0.9 * bound < weight.abs().max() <= bound
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert (module.weight == 1).all()


# --- the game


@pytest.mark.parametrize("name", ARMS)
def test_a_round_is_what_a_loop_by_hand_does(name):
    arm, (x, y) = dcgan.ARMS[name], images(12)
    sides = dcgan.players(arm, TINY, pair(name), x, y, torch.Generator().manual_seed(3))
    list(train.alternating(sides, steps=5))

    (G, D), draws = pair(name), torch.Generator().manual_seed(3)
    order = [torch.randperm(12, generator=draws) for _ in range(2)]  # three batches each
    beta = {"β₁ = 0.9": 0.9, "β₁ = 0": 0.0}.get(name, 0.5)
    adam_D, adam_G = (
        torch.optim.Adam(net.parameters(), lr=2e-3, betas=(beta, 0.999)) for net in (D, G)
    )
    average = [p.detach().clone() for p in G.parameters()]
    for step in range(5):
        chosen = order[step // 3][4 * (step % 3) : 4 * (step % 3) + 4]
        fakes = G(torch.randn(4, 3, generator=draws), y[chosen]).detach()
        if name == "one batch":
            both = D(torch.cat([x[chosen], fakes]), torch.cat([y[chosen], y[chosen]]))
            real, fake = both[:4], both[4:]
        else:
            real, fake = D(x[chosen], y[chosen]), D(fakes, y[chosen])
        adam_D.zero_grad()
        (F.softplus(-real) + F.softplus(fake)).mean().backward()
        adam_D.step()
        fake = D(G(torch.randn(4, 3, generator=draws), y[chosen]), y[chosen])
        adam_G.zero_grad()
        (-F.softplus(fake) if name == "saturating" else F.softplus(-fake)).mean().backward()
        adam_G.step()
        average = [
            0.998 * m + 0.002 * p.detach() for m, p in zip(average, G.parameters(), strict=True)
        ]
    idle = ("down_1.0.bias", "up_2.0.bias")  # before a normalisation; moved by rounding alone
    for net, player in ((D, "discriminator"), (G, "generator")):
        ours = dict(sides[player].model.named_parameters())
        for key, theirs in net.named_parameters():
            assert key in idle or torch.allclose(ours[key], theirs, atol=2e-5), key
    averaged = sides["generator"].ema.model.named_parameters()
    for (key, ours), theirs in zip(averaged, average, strict=True):
        assert key in idle or torch.allclose(ours, theirs, atol=2e-5), key


@pytest.mark.parametrize("name", [dcgan.WHOLE, "one batch"])
def test_the_discriminators_turn_leaves_the_generator_alone(name):
    (G, D), (x, y) = pair(name), images(12)
    sides = dcgan.players(dcgan.ARMS[name], TINY, (G, D), x, y, torch.Generator())
    sides["discriminator"].loss_fn(0).backward()
    assert all(p.grad is None for p in G.parameters())
    assert all(p.grad is not None for p in D.parameters())


def test_a_seed_fixes_a_row_but_for_its_seconds():
    rows = [dcgan.play(dcgan.WHOLE, TINY, seed) for seed in (1, 1, 2)]
    for row in rows:
        fits(row, ROW)
        assert row.pop("wall_seconds") > 0
    assert rows[0] == rows[1] != rows[2]


def test_losses_are_means_over_the_last_rounds(monkeypatch):
    settings = {"lr": 1.0, "grad_norm": 1.0}
    steps = [
        train.Step(index=i, player=name, loss=i + 1000.0 * (name == "generator"), **settings)
        for i in range(300)
        for name in ("discriminator", "generator")
    ]
    monkeypatch.setattr(dcgan.train, "alternating", lambda *_, **__: steps)
    row = dcgan.play(dcgan.WHOLE, TINY, 0)
    assert row["discriminator_loss"] == statistics.fmean(range(100, 300))
    assert row["generator_loss"] == 1000 + statistics.fmean(range(100, 300))


class Copier(nn.Module):
    """A generator that knows images by heart."""

    def __init__(self, pixels, contrast=1.0):
        super().__init__()
        self.pixels, self.contrast = pixels, contrast

    def forward(self, z, labels):
        return self.contrast * (2 * self.pixels - 1)


def test_what_is_judged_are_the_samples_of_each_generator():
    recipe = replace(TINY, samples=200)
    *_, fresh, labels = dcgan._data(0, recipe.images, 200)
    asked = [(labels == n % 10).nonzero()[n // 10 % 15, 0] for n in range(200)]
    right = fresh[asked]
    models = {"right": Copier(right), "wrong": Copier(right.roll(1, 0)), "loud": Copier(right, 9.0)}
    found = dcgan.judged(models, recipe, 0)
    assert set(found) == {*models, "real"}
    assert found["right"]["label"] > 0.97
    assert found["wrong"]["label"] < 0.03
    assert found["wrong"]["recognised"] == found["right"]["recognised"] > 0.9
    assert found["right"]["smallest"] > 0.05
    judge = load_judge(16)
    features, _ = judge.assess((4.5 * (2 * right - 1) + 0.5).clamp(0, 1))
    expected = dcgan.measures.frechet_distance(features, judge.assess(fresh[:200])[0])
    assert found["loud"]["frechet"] == pytest.approx(expected)


def test_images_to_learn_from_are_not_those_to_judge_by():
    x, y, fresh, fresh_labels = dcgan._data(0, 50, 20)
    assert (x.shape, fresh.shape) == ((50, 1, 16, 16), (40, 1, 16, 16))
    assert (len(y), len(fresh_labels)) == (50, 40)
    assert (x.min(), x.max()) == (-1, 1)
    assert (fresh.min(), fresh.max()) == (0, 1)
    assert torch.cdist(x.flatten(1) / 2 + 0.5, fresh.flatten(1)).min() > 0.1


# --- the table


def row(arm, seed, *, recognised=0.9, frechet=1.0, loss=0.5):
    own = {"recognised": recognised, "smallest": 0.08, "label": 0.99, "variance": 0.9}
    own |= {"frechet": frechet}
    real = {"recognised": 0.96, "smallest": 0.09, "label": 1.0, "variance": 1.0, "frechet": 0.15}
    which = {"averaged": own, "played": own | {"frechet": 2 * frechet}, "real": real}
    losses = {"discriminator_loss": loss, "generator_loss": 1.5}
    return {"arm": arm, "seed": seed, "steps": 1400, "wall_seconds": 1.0, **losses, **which}


def test_the_table_tells_means_and_worst_seeds():
    rows = [row(dcgan.WHOLE, 0), row(dcgan.WHOLE, 1, recognised=0.48, frechet=3.0, loss=0.7)]
    rows += [row("no tanh", 0, recognised=0.0, frechet=50.0)]
    table = [" ".join(line.split()) for line in dcgan.lines(rows)]
    assert table[1:] == [
        "the recipe 0.719 0.500 0.080 0.080 0.990 0.990 0.900 0.900 2.000 3.000 0.60",
        "no tanh 0.000 0.000 0.080 0.080 0.990 0.990 0.900 0.900 50.000 50.000 0.50",
        "its last G 0.719 0.500 0.080 0.080 0.990 0.990 0.900 0.900 4.000 6.000 0.60",
    ]
    assert len(dcgan.lines([])) == 1


# --- the command


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Runs `main`; results go to a folder of the test's own."""
    monkeypatch.setattr(dcgan.devices, "limit_threads", lambda _: 1)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "TRIALS", tmp_path / "trials")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["bench.experiments.dcgan", *words])
        return dcgan.main()

    run.folder = tmp_path
    return run


def test_a_trial_runs_from_end_to_end(bench, capsys):
    assert bench("--quick", "--steps", "2", "--only", "β₁ = 0.9", "--jobs", "1") == 0
    (content,) = contents(bench.folder / "trials")
    check(content)
    assert content["complete"]
    assert content["quick"]
    assert len(content["rows"]) == 1
    words = "--seeds 1 --steps 2 --only 'β₁ = 0.9' --jobs 1 --quick"
    assert content["command"] == f"python -m bench.experiments.dcgan {words}"
    assert capsys.readouterr().out.strip().endswith("-dcgan.json.")


def test_every_arm_is_trained_with_every_seed_in_processes_of_one_thread(monkeypatch):
    class Pool:
        def __init__(self, jobs, begin):
            assert (jobs, begin) == (3, dcgan._begin)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def imap_unordered(self, work, tasks):
            return map(work, pickle.loads(pickle.dumps(tasks)))  # as another process gets them

    monkeypatch.setattr(dcgan.multiprocessing.get_context("spawn"), "Pool", Pool)
    monkeypatch.setattr(dcgan, "play", lambda *given: given)
    tasks = list(dcgan.compare(ARMS, TINY, 2, 3))
    assert tasks == [(name, TINY, seed) for seed in (0, 1) for name in ARMS]


def done_out_of_order(names, recipe, seeds, jobs):
    assert (recipe, jobs) == (dcgan.Recipe(), 2)
    for name in reversed(names):
        for seed in reversed(range(seeds)):
            yield row(name, seed)


def test_rows_are_in_order_whichever_training_ends_first(bench, monkeypatch):
    monkeypatch.setattr(dcgan, "compare", done_out_of_order)
    assert bench("--seeds", "2") == bench("--only", "no tanh") == 0
    first, second = contents(bench.folder / "results")
    for content in (first, second):
        check(content)
        assert content["complete"]
    assert list(first["arms"]) == ARMS
    assert "--only" not in first["command"]
    assert list(second["arms"]) == ["no tanh"]
    assert len(second["seeds"]) == 5


def test_ctrl_c_loses_only_what_is_under_way(bench, monkeypatch, capsys):
    def stopped(names, recipe, seeds, jobs):
        yield row(names[1], 0)
        yield row(names[0], 0)
        raise KeyboardInterrupt

    monkeypatch.setattr(dcgan, "compare", stopped)
    path = bench.folder / "deeper" / "mine.json"
    with pytest.raises(KeyboardInterrupt):
        bench("--out", str(path))
    (content,) = contents(path.parent)
    check(content)
    assert not content["complete"]
    assert [entry["arm"] for entry in content["rows"]] == ARMS[:2]
    assert f"The result is {path}." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "no hat"], "no arm 'no hat'; there are the recipe, "),
        (["--seeds", "0"], "expected at least 1 for --seeds, got 0"),
        (["--steps", "-3"], "expected at least 1 for --steps, got -3"),
        (["--jobs", "0"], "expected at least 1 for --jobs, got 0"),
        (["--out", str(ROOT)], "expected a file to write, got the folder"),
    ],
)
def test_a_setting_out_of_range_is_refused(bench, words, message):
    with pytest.raises(Refusal, match=message):
        bench(*words)
    assert not list(bench.folder.iterdir())


def test_an_unknown_arm_is_one_line_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.experiments.dcgan", "--only", "no hat"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(dcgan.__file__, run_name="__main__")
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("no arm 'no hat'; there are ")
    assert error.count("\n") == 1
