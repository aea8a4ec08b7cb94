import math
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from torch import nn

from aigc_lib import checkpoint, train
from aigc_lib.ema import EMA
from aigc_lib.optimizers import Together


class Problem:
    """A regression with all that a resume must restore: dropout, statistics, a generator."""

    def __init__(self, path=None, *, ema=None, steps=12, save_every=None):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.generator = torch.Generator().manual_seed(1)
        self.ema = None if ema is None else EMA(self.model, ema)
        self.settings = {
            "steps": steps,
            "schedule": train.warmup_cosine(12, warmup=2),
            "clip": 1.0,
            "ema": self.ema,
            "save_every": save_every,
        }
        if path is not None:
            self.settings["checkpoint"] = train.Checkpoint(
                path=path, generators={"data": self.generator}
            )

    def loss(self, index):
        x = torch.randn(16, 3, generator=self.generator)
        return (self.model(x) - x.sum(1, keepdim=True)).square().mean()

    def run(self):
        return train.run(self.loss, self.model, self.optimizer, **self.settings)

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def quadratic(lr=0.1, curvature=2.0):
    weight = nn.Parameter(torch.tensor([3.0]))
    model = nn.ParameterList([weight])
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, optimizer, lambda _: 0.5 * curvature * weight.square().sum()


def quadratic_run():
    model, optimizer, loss = quadratic()
    return loss, model, optimizer


def test_steps_of_gradient_descent_on_a_quadratic_have_their_closed_form():
    model, optimizer, loss = quadratic()
    records = list(train.run(loss, model, optimizer, steps=5))
    weights = [3 * 0.8**k for k in range(6)]
    assert model[0].item() == pytest.approx(weights[5], rel=1e-6)
    for k, record in enumerate(records):
        assert record.index == k
        assert record.loss == pytest.approx(weights[k] ** 2, rel=1e-6)
        assert record.grad_norm == pytest.approx(2 * weights[k], rel=1e-6)
        assert record.lr == 0.1


def test_the_yield_comes_after_the_update():
    model, optimizer, loss = quadratic()
    next(train.run(loss, model, optimizer, steps=5))
    assert model[0].item() == pytest.approx(2.4)


def test_a_loop_by_hand_gives_bitwise_the_same_weights():
    by_run, by_hand = Problem(), Problem()
    losses = [step.loss for step in by_run.run()]
    torch.manual_seed(0)
    by_hand = Problem()
    for index in range(12):
        for group in by_hand.optimizer.param_groups:
            group["lr"] = 0.01 * train.warmup_cosine(12, warmup=2)(index)
        by_hand.optimizer.zero_grad()
        loss = by_hand.loss(index)
        loss.backward()
        nn.utils.clip_grad_norm_(by_hand.model.parameters(), 1.0)
        by_hand.optimizer.step()
        assert loss.item() == losses[index]
    assert torch.equal(by_run.weights(), by_hand.weights())


def test_clipping_bounds_the_update_and_reports_the_norm_before():
    model, optimizer, loss = quadratic()
    record = next(train.run(loss, model, optimizer, steps=1, clip=0.5))
    assert record.grad_norm == pytest.approx(6.0)
    assert model[0].item() == pytest.approx(3 - 0.1 * 0.5, rel=1e-5)


def test_schedule_scales_each_group_by_its_own_rate():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    model = nn.ParameterList([a, b])
    list(train.run(lambda _: (a + b).sum(), model, optimizer, steps=2, schedule=lambda i: 0.5**i))
    assert a.item() == pytest.approx(1 - 1.5)
    assert b.item() == pytest.approx(1 - 0.15)


def test_the_rate_told_is_that_of_the_first_group():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}])
    steps = train.run(lambda _: (a + b).sum(), nn.ParameterList([a, b]), optimizer, steps=1)
    assert [step.lr for step in steps] == [1.0]


def test_a_rate_that_the_caller_sets_counts_in_the_next_run():
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def rates(schedule):
        loop = train.run(lambda _: model.weight.sum(), model, optimizer, steps=2, schedule=schedule)
        return [step.lr for step in loop]

    half = [1.0, 0.5].__getitem__
    assert rates(half) == [0.01, 0.005]
    assert rates(half) == [0.01, 0.005]  # what a schedule left behind is nobody's wish
    assert rates(None) == [0.01, 0.01]
    optimizer.param_groups[0]["lr"] = 1e-5
    assert rates(half) == [1e-5, 5e-6]
    assert rates(None) == [1e-5, 1e-5]


def test_warmup_cosine_starts_low_peaks_and_ends():
    factor = train.warmup_cosine(110, warmup=10, end=0.1)
    assert [factor(0), factor(4), factor(9), factor(10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert factor(60) == pytest.approx(0.55)
    assert factor(110) == factor(160) == pytest.approx(0.1)
    assert all(factor(i) >= factor(i + 1) for i in range(9, 110))


def test_ema_averages_the_weights_after_each_update():
    model, optimizer, loss = quadratic()
    ema = EMA(model, 0.9)
    expected = 3.0
    for _ in train.run(loss, model, optimizer, steps=4, ema=ema):
        expected = 0.9 * expected + 0.1 * model[0].item()
        assert ema.model[0].item() == pytest.approx(expected, rel=1e-6)
    assert not ema.model[0].requires_grad


def stop_by_break(problem):
    for step in problem.run():
        if step.index == 4:
            break


def stop_by_interrupt_in_the_loss(problem):
    loss = problem.loss

    def interrupted(index):
        value = loss(index)  # draws numbers and moves the running statistics
        if index == 5:
            raise KeyboardInterrupt
        return value

    problem.loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        list(problem.run())


def stop_by_save_and_kill(problem):
    """As if killed later: step 5 happens and is lost."""
    steps = problem.run()
    for _ in range(5):
        next(steps)
    kept = checkpoint.load(problem.settings["checkpoint"].path)
    next(steps)
    steps.close()
    checkpoint.save(problem.settings["checkpoint"].path, kept)


@pytest.mark.parametrize(
    "stop", [stop_by_break, stop_by_interrupt_in_the_loss, stop_by_save_and_kill]
)
def test_a_resumed_run_is_bitwise_the_same(tmp_path, stop):
    whole = Problem(ema=0.9)
    losses = [step.loss for step in whole.run()]
    path = tmp_path / "run"
    stop(Problem(path, ema=0.9, save_every=5))
    assert checkpoint.load(path)["updates"] == 5
    resumed = Problem(path, ema=0.9, save_every=5)
    torch.manual_seed(99)
    assert [step.loss for step in resumed.run()] == losses[5:]
    assert torch.equal(resumed.weights(), whole.weights())
    for name, value in whole.ema.model.state_dict().items():
        assert torch.equal(resumed.ema.model.state_dict()[name], value)


def test_a_finished_run_is_saved_and_not_run_again(tmp_path):
    path = tmp_path / "run"
    assert len(list(Problem(path).run())) == 12
    assert list(Problem(path).run()) == []
    assert len(list(Problem(path, steps=14).run())) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path, value):
    model, optimizer, loss = quadratic()
    path = tmp_path / "run"
    steps = train.run(
        lambda i: loss(i) * (value if i == 3 else 1.0),
        model,
        optimizer,
        steps=9,
        checkpoint=train.Checkpoint(path=path),
        save_every=2,
    )
    for _ in range(3):
        next(steps)
    before = model[0].item()
    with pytest.raises(train.NonFiniteLoss, match=r"step 3: expected a finite loss, got (nan|inf)"):
        next(steps)
    assert model[0].item() == before
    assert checkpoint.load(path)["updates"] == 2


def test_a_gradient_that_is_not_finite_stops_before_the_update():
    weight = nn.Parameter(torch.zeros(1))
    model = nn.ParameterList([weight])
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with pytest.raises(train.NonFiniteLoss, match="step 0: expected a finite gradient"):
        list(train.run(lambda _: weight.abs().sqrt().sum() + 1, model, optimizer, steps=1))
    assert weight.item() == 0


@pytest.fixture
def _ctrl_c():
    """Python's own handler, which a process started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_interrupts_wait_until_the_update_is_whole():
    model, optimizer, loss = quadratic()
    half = optimizer.step

    def step(*arguments):
        signal.raise_signal(signal.SIGINT)
        return half(*arguments)

    optimizer.step = step
    with pytest.raises(KeyboardInterrupt):
        list(train.run(loss, model, optimizer, steps=5))
    assert model[0].item() == pytest.approx(2.4)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_run_works_outside_the_main_thread():
    model, optimizer, loss = quadratic()
    thread = threading.Thread(target=lambda: list(train.run(loss, model, optimizer, steps=2)))
    thread.start()
    thread.join()
    assert model[0].item() == pytest.approx(3 * 0.64)


# One process imports torch, and each of its children is a run of its own.
RUNNER = """
    import os, signal, sys, torch
    from torch import nn
    from aigc_lib import train

    def run(name, kill_at):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        data = torch.Generator().manual_seed(1)
        def loss(index):
            x = torch.randn(8, 4, generator=data)
            return (model(x) - x.sum(1, keepdim=True)).square().mean()
        keep = train.Checkpoint(path=os.path.join(sys.argv[1], name), generators={"data": data})
        for step in train.run(loss, model, optimizer, steps=40, checkpoint=keep, save_every=3):
            print(step.index, step.loss.hex(), flush=True)
            if step.index == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    torch.optim.AdamW(nn.Linear(1, 1).parameters())  # the first one imports for seconds
    for name, kill_at in (("whole", -1), ("killed", 22), ("killed", -1)):
        if not (child := os.fork()):
            run(name, kill_at)
            os._exit(0)
        print("ended", os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_killed_process_goes_on_with_the_same_losses(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(RUNNER), str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    runs = re.split(r"ended (\d+)\n", said)
    whole, killed, resumed = (dict(line.split() for line in run.splitlines()) for run in runs[:5:2])
    assert runs[1::2] == ["0", str(int(signal.SIGKILL)), "0"]
    assert len(whole) == 40
    assert max(map(int, killed)) == 22
    assert min(map(int, resumed)) == 21
    assert {**killed, **resumed} == whole


def other_model(problem):
    problem.model = nn.Linear(3, 1)
    problem.optimizer = torch.optim.AdamW(problem.model.parameters())


def other_generators(problem):
    problem.settings["checkpoint"].generators["more"] = torch.Generator()


def no_generators(problem):
    problem.settings["checkpoint"].generators.clear()


def no_average(problem):
    problem.settings["ema"] = None


@pytest.mark.parametrize("change", [other_model, other_generators, no_generators, no_average])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change):
    path = tmp_path / "run"
    list(Problem(path, ema=0.9, steps=2).run())
    problem = Problem(path, ema=0.9)
    change(problem)
    with pytest.raises(checkpoint.CheckpointError, match="expected a checkpoint of this run"):
        list(problem.run())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"clip": 0.0}, "clip"),
        ({"clip": math.nan}, "clip"),
        ({"save_every": 2}, "a checkpoint with save_every"),
        ({"save_every": 0, "checkpoint": train.Checkpoint(path="none")}, "save_every"),
    ],
)
def test_settings_out_of_range_are_named(hook_off, settings, name):
    with pytest.raises(ValueError, match=f"expected {name}"):
        next(train.run(*quadratic_run(), **{"steps": 1, **settings}))
    game = Game()
    with pytest.raises(ValueError, match=f"expected {name}"):
        next(train.alternating(game.players(), **{"steps": 1, **settings}))


def test_a_loss_per_example_is_refused(hook_off):
    model, optimizer, loss = quadratic()
    with pytest.raises(ValueError, match="expected loss"):
        next(train.run(lambda i: loss(i).expand(2), model, optimizer, steps=1))
    assert model[0].item() == 3


@pytest.mark.parametrize("warmup", [-1, 5, 6])
def test_a_warmup_that_does_not_fit_into_the_run_is_named(warmup):
    with pytest.raises(ValueError, match="warmup"):
        train.warmup_cosine(5, warmup=warmup)
    assert train.warmup_cosine(5, warmup=4)(4) == 1


# Two players


class Game:
    """A small GAN with all that a resume must restore: dropout, statistics, a generator, an EMA."""

    def __init__(self, path=None, *, steps=6, save_every=None, ema=0.9):
        torch.manual_seed(0)
        self.draw = torch.Generator().manual_seed(1)
        self.g = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.d = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.g_optimizer = torch.optim.Adam(self.g.parameters(), lr=0.01, betas=(0.5, 0.999))
        self.d_optimizer = torch.optim.Adam(self.d.parameters(), lr=0.02, betas=(0.5, 0.999))
        self.ema = None if ema is None else EMA(self.g, ema)
        self.settings = {"steps": steps, "save_every": save_every}
        if path is not None:
            self.settings["checkpoint"] = train.Checkpoint(
                path=path, generators={"data": self.draw}
            )

    def noise(self):
        return torch.randn(16, 2, generator=self.draw)

    def d_loss(self, index):
        real, fake = 0.5 * self.noise() + 1, self.g(self.noise()).detach()
        return nn.functional.softplus(-self.d(real)).mean() + (
            nn.functional.softplus(self.d(fake)).mean()
        )

    def g_loss(self, index):
        return nn.functional.softplus(-self.d(self.g(self.noise()))).mean()

    def players(self):
        return {
            "discriminator": train.Player(
                loss_fn=lambda i: self.d_loss(i), model=self.d, optimizer=self.d_optimizer
            ),
            "generator": train.Player(
                loss_fn=lambda i: self.g_loss(i),
                model=self.g,
                optimizer=self.g_optimizer,
                ema=self.ema,
            ),
        }

    def run(self):
        return train.alternating(self.players(), **self.settings)

    def state(self):
        models = [self.g, self.d] + ([self.ema.model] if self.ema else [])
        return torch.cat([v.flatten().double() for m in models for v in m.state_dict().values()])


@pytest.mark.parametrize("eta", [0.1, 1.0, 1.9])
def test_two_players_on_a_saddle_follow_the_matrix_of_alternating_steps(eta):
    x, y = (nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(2))

    def player(loss_fn, weight):
        optimizer = torch.optim.SGD([weight], lr=eta)
        return train.Player(loss_fn=loss_fn, model=nn.ParameterList([weight]), optimizer=optimizer)

    players = {"x": player(lambda _: x * y, x), "y": player(lambda _: -x * y, y)}
    matrix = torch.tensor([[1, -eta], [eta, 1 - eta**2]], dtype=torch.float64)
    expected = torch.ones(2, dtype=torch.float64)
    records = []
    for record in train.alternating(players, steps=7):
        records.append(record)
        if record.player == "y":
            expected = matrix @ expected
            assert torch.allclose(torch.stack([x, y]), expected, rtol=1e-12)
    assert [(r.index, r.player) for r in records[:3]] == [(0, "x"), (0, "y"), (1, "x")]
    assert records[0].loss == 1.0
    assert records[1].loss == pytest.approx(-(1 - eta))  # y answers the new x
    assert records[1].grad_norm == pytest.approx(abs(1 - eta))
    assert records[1].lr == eta


def test_a_game_by_hand_gives_bitwise_the_same_weights():
    by_call = Game()
    losses = [step.loss for step in by_call.run()]
    by_hand = Game()
    averages = [p.detach().clone() for p in by_hand.g.parameters()]
    for index in range(6):
        by_hand.d_optimizer.zero_grad()
        loss_d = by_hand.d_loss(index)
        loss_d.backward()
        by_hand.d_optimizer.step()
        by_hand.g_optimizer.zero_grad()
        loss_g = by_hand.g_loss(index)
        loss_g.backward()
        by_hand.g_optimizer.step()
        assert [loss_d.item(), loss_g.item()] == losses[2 * index : 2 * index + 2]
        for mean, now in zip(averages, by_hand.g.parameters(), strict=True):
            mean += 0.1 * (now.detach() - mean)
    by_hand.ema = None
    assert torch.equal(by_hand.state(), by_call.state()[: len(by_hand.state())])
    for mean, other in zip(averages, by_call.ema.model.parameters(), strict=True):
        assert torch.allclose(mean, other, atol=1e-6)
    for mean, now in zip(by_call.ema.model.buffers(), by_call.g.buffers(), strict=True):
        assert torch.equal(mean, now)


def test_only_the_weights_of_the_player_whose_turn_it_is_move():
    game = Game()
    weights = {
        name: [p.detach().clone() for p in model.parameters()]
        for name, model in (("discriminator", game.d), ("generator", game.g))
    }
    for step in game.run():
        for name, model in (("discriminator", game.d), ("generator", game.g)):
            same = [
                torch.equal(a, b) for a, b in zip(weights[name], model.parameters(), strict=True)
            ]
            assert not any(same) if name == step.player else all(same)
            weights[name] = [p.detach().clone() for p in model.parameters()]


def test_a_schedule_counts_rounds_and_scales_each_players_own_rate():
    game = Game(steps=3)
    game.settings["schedule"] = lambda index: 0.5**index
    rates = [(step.player, step.lr) for step in game.run()]
    d, g = ([rate for name, rate in rates if name[0] == letter] for letter in "dg")
    assert d == pytest.approx([0.02, 0.01, 0.005])
    assert g == pytest.approx([0.01, 0.005, 0.0025])


def test_clipping_bounds_each_players_gradient_by_itself():
    game = Game(steps=1)
    game.d_optimizer = torch.optim.SGD(game.d.parameters(), lr=1.0)
    game.g_optimizer = torch.optim.SGD(game.g.parameters(), lr=1.0)
    before = {m: nn.utils.parameters_to_vector(m.parameters()).clone() for m in (game.d, game.g)}
    game.settings["clip"] = 0.01
    for step in game.run():
        model = game.d if step.player == "discriminator" else game.g
        moved = nn.utils.parameters_to_vector(model.parameters()) - before[model]
        assert step.grad_norm > 0.01
        assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def stop_game_by_break(game):
    """After the discriminator's update of round 3: half a round."""
    for step in game.run():
        if (step.index, step.player) == (3, "discriminator"):
            break


def stop_game_between_rounds(game):
    for step in game.run():
        if (step.index, step.player) == (2, "generator"):
            break


def stop_game_by_interrupt(player):
    def stop(game):
        whole = getattr(game, f"{player}_loss")

        def interrupted(index):
            value = whole(index)  # draws numbers and moves the statistics of both models
            if index == 3:
                raise KeyboardInterrupt
            return value

        setattr(game, f"{player}_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(game.run())

    return stop


@pytest.mark.parametrize(
    ("stop", "done"),
    [
        (stop_game_by_break, 7),
        (stop_game_between_rounds, 6),
        (stop_game_by_interrupt("d"), 6),
        (stop_game_by_interrupt("g"), 7),
    ],
)
def test_a_resumed_game_is_bitwise_the_same(tmp_path, stop, done):
    whole = Game()
    losses = [step.loss for step in whole.run()]
    path = tmp_path / "game"
    stop(Game(path))
    assert checkpoint.load(path)["updates"] == done
    resumed = Game(path)
    torch.manual_seed(99)
    records = list(resumed.run())
    assert [step.loss for step in records] == losses[done:]
    assert records[0].player == ("discriminator", "generator")[done % 2]
    assert torch.equal(resumed.state(), whole.state())
    assert list(Game(path).run()) == []


def test_a_game_is_saved_after_whole_rounds(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda path, tree: saved.append(tree["updates"]))
    list(Game(tmp_path / "game", steps=5, save_every=2).run())
    assert saved == [4, 8, 10]


def test_a_loss_that_is_not_finite_names_the_player_and_stops_before_its_update(tmp_path):
    path = tmp_path / "game"
    game = Game(path, save_every=1)
    g_loss = game.g_loss
    game.g_loss = lambda index: g_loss(index) * (math.nan if index == 2 else 1.0)
    steps = game.run()
    for _ in range(5):
        next(steps)
    before = [p.detach().clone() for p in game.g.parameters()]
    with pytest.raises(train.NonFiniteLoss, match="step 2, generator: expected a finite loss, got"):
        next(steps)
    for a, b in zip(before, game.g.parameters(), strict=True):
        assert torch.equal(a, b)
    assert checkpoint.load(path)["updates"] == 4


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize(("player", "done"), [("d", 1), ("g", 2)])
def test_interrupts_wait_until_a_players_update_is_whole(tmp_path, player, done):
    whole = Game()
    list(whole.run())
    path = tmp_path / "game"
    game = Game(path)
    optimizer = getattr(game, f"{player}_optimizer")
    half = optimizer.step

    def step(*arguments):
        signal.raise_signal(signal.SIGINT)
        return half(*arguments)

    optimizer.step = step
    with pytest.raises(KeyboardInterrupt):
        list(game.run())
    assert checkpoint.load(path)["updates"] == done
    resumed = Game(path)
    list(resumed.run())
    assert torch.equal(resumed.state(), whole.state())


def swap_optimizers(game):
    game.d_optimizer, game.g_optimizer = game.g_optimizer, game.d_optimizer


def one_optimizer_for_both(game):
    both = [*game.d.parameters(), *game.g.parameters()]
    game.d_optimizer = torch.optim.Adam(both)


@pytest.mark.parametrize("fault", [swap_optimizers, one_optimizer_for_both])
def test_an_optimizer_of_another_players_weights_is_refused(fault):
    game = Game()
    fault(game)
    with pytest.raises(ValueError, match="expected the optimizer of discriminator to hold its"):
        next(game.run())


def test_a_game_needs_two_players():
    game = Game()
    with pytest.raises(ValueError, match="expected two or more players, got 1"):
        next(train.alternating({"alone": game.players()["generator"]}, steps=1))


def rename(players):
    return {"critic" if name == "discriminator" else name: p for name, p in players.items()}


def reverse(players):
    return dict(reversed(players.items()))


@pytest.mark.parametrize("change", [rename, reverse])
def test_a_checkpoint_of_another_game_is_refused(tmp_path, change):
    path = tmp_path / "game"
    list(Game(path, steps=1).run())
    game = Game(path)
    with pytest.raises(checkpoint.CheckpointError, match="expected a checkpoint of this run"):
        next(train.alternating(change(game.players()), **game.settings))
    problem = Problem(path)
    with pytest.raises(checkpoint.CheckpointError, match="expected a checkpoint of this run"):
        next(problem.run())


# Two optimizers


def test_optimizers_together_are_resumed_bit_for_bit(tmp_path):
    def parted(*arguments, **settings):
        problem = Problem(*arguments, **settings)
        matrix, *others = problem.model.parameters()
        muon, adamw = torch.optim.Muon([matrix], lr=0.02), torch.optim.AdamW(others, lr=0.01)
        problem.optimizer = Together(muon, adamw)
        return problem

    whole = [record.loss for record in parted().run()]
    parts = [record.loss for record in parted(tmp_path / "a", steps=7).run()]
    resumed = parted(tmp_path / "a")
    parts += [record.loss for record in resumed.run()]
    assert parts == whole
    assert len(resumed.optimizer.param_groups) == 2
