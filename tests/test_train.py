import math
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from torch import nn

from aigc_lib import checkpoint, train
from aigc_lib.models.gpt import GPT, GPTConfig


class Problem:
    """A regression with all that a resume must restore: dropout, statistics, a generator."""

    def __init__(self, path=None, *, ema=None, steps=12, save_every=None):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.generator = torch.Generator().manual_seed(1)
        self.ema = None if ema is None else train.EMA(self.model, ema)
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


def test_warmup_cosine_starts_low_peaks_and_ends():
    factor = train.warmup_cosine(110, warmup=10, end=0.1)
    assert [factor(0), factor(4), factor(9), factor(10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert factor(60) == pytest.approx(0.55)
    assert factor(110) == pytest.approx(0.1)
    assert all(factor(i) >= factor(i + 1) for i in range(9, 110))


def test_ema_averages_the_weights_after_each_update():
    model, optimizer, loss = quadratic()
    ema = train.EMA(model, 0.9)
    expected = 3.0
    for _ in train.run(loss, model, optimizer, steps=4, ema=ema):
        expected = 0.9 * expected + 0.1 * model[0].item()
        assert ema.model[0].item() == pytest.approx(expected, rel=1e-6)
    assert not ema.model[0].requires_grad


def test_ema_of_decay_zero_is_the_model_buffers_included():
    problem = Problem(ema=0.0)
    list(problem.run())
    for name, value in problem.model.state_dict().items():
        assert torch.equal(problem.ema.model.state_dict()[name], value)


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
    assert checkpoint.load(path)["steps"] == 5
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
    assert checkpoint.load(path)["steps"] == 2


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


RUNNER = """
    import os, signal, sys, torch
    from torch import nn
    from aigc_lib import train
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = torch.Generator().manual_seed(1)
    def loss(index):
        x = torch.randn(8, 4, generator=data)
        return (model(x) - x.sum(1, keepdim=True)).square().mean()
    keep = train.Checkpoint(path=sys.argv[1], generators={"data": data})
    for step in train.run(loss, model, optimizer, steps=40, checkpoint=keep, save_every=3):
        print(step.index, step.loss.hex(), flush=True)
        if step.index == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_killed_process_goes_on_with_the_same_losses(tmp_path):
    def losses(name, kill_at):
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(RUNNER),
            str(tmp_path / name),
            str(kill_at),
        ]
        lines = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
        return dict(line.split() for line in lines if line)

    whole = losses("whole", -1)
    killed = losses("killed", 22)
    resumed = losses("killed", -1)
    assert len(whole) == 40
    assert max(map(int, killed)) == 22
    assert min(map(int, resumed)) == 21
    assert {**killed, **resumed} == whole


def other_model(problem):
    problem.model = nn.Linear(3, 1)
    problem.optimizer = torch.optim.AdamW(problem.model.parameters())


def other_generators(problem):
    problem.settings["checkpoint"].generators["more"] = torch.Generator()


def no_average(problem):
    problem.settings["ema"] = None


@pytest.mark.parametrize("change", [other_model, other_generators, no_average])
def test_a_checkpoint_of_another_run_is_refused(tmp_path, change):
    path = tmp_path / "run"
    list(Problem(path, ema=0.9, steps=2).run())
    problem = Problem(path, ema=0.9)
    change(problem)
    with pytest.raises(checkpoint.CheckpointError, match="expected a checkpoint of this run"):
        list(problem.run())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "expected steps >= 1, got 0"),
        ({"steps": 1, "clip": 0.0}, r"expected clip > 0, got 0\.0"),
        ({"steps": 1, "save_every": 2}, "expected a checkpoint to go with save_every"),
        (
            {"steps": 1, "save_every": 0, "checkpoint": train.Checkpoint(path="none")},
            "expected save_every >= 1, got 0",
        ),
    ],
)
def test_settings_out_of_range_are_named(hook_off, settings, message):
    model, optimizer, loss = quadratic()
    with pytest.raises(ValueError, match=message):
        list(train.run(loss, model, optimizer, **settings))


def test_a_loss_per_example_is_refused(hook_off):
    model, optimizer, loss = quadratic()
    with pytest.raises(ValueError, match=r"expected a scalar loss, got shape \(2,\)"):
        list(train.run(lambda i: loss(i).expand(2), model, optimizer, steps=1))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_ema_decay_out_of_range_is_named(decay):
    with pytest.raises(ValueError, match=r"expected a decay in \[0, 1\)"):
        train.EMA(nn.Linear(1, 1), decay)


def test_a_warmup_longer_than_the_run_is_named():
    with pytest.raises(ValueError, match="expected 0 <= warmup < steps, got warmup 5 and steps 5"):
        train.warmup_cosine(5, warmup=5)


class Parted(Problem):
    """The same with Muon for one matrix and AdamW for all else."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        matrix, *others = self.model.parameters()
        self.optimizer = train.Together(
            torch.optim.Muon([matrix], lr=0.02), torch.optim.AdamW(others, lr=0.01)
        )


def test_optimizers_together_step_as_each_would_alone():
    whole = Problem()
    losses = [record.loss for record in whole.run()]
    parted = Problem()
    first, *others = parted.model.parameters()
    parted.optimizer = train.Together(
        torch.optim.AdamW([first], lr=0.01), torch.optim.AdamW(others, lr=0.01)
    )
    assert [record.loss for record in parted.run()] == losses
    assert torch.equal(parted.weights(), whole.weights())
    assert parted.optimizer.param_groups[1]["lr"] == whole.optimizer.param_groups[0]["lr"]


def test_optimizers_together_are_resumed_bit_for_bit(tmp_path):
    whole = [record.loss for record in Parted().run()]
    parts = [record.loss for record in Parted(tmp_path / "a", steps=7).run()]
    resumed = Parted(tmp_path / "a")
    parts += [record.loss for record in resumed.run()]
    assert parts == whole
    assert len(resumed.optimizer.param_groups) == 2


def test_optimizers_together_need_parameters_of_their_own():
    model, optimizer, _ = quadratic()
    for wrong in ([], [optimizer, torch.optim.SGD(model.parameters(), lr=1)]):
        with pytest.raises(ValueError, match="with parameters of their own"):
            train.Together(*wrong)


def small_gpt(**choices):
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "context": 8, "width": 8, "num_layers": 2, "num_heads": 2}
    return GPT(GPTConfig(**sizes, **choices)).double()


@pytest.mark.parametrize(
    "choices", [{}, {"tied": False, "bias": True}, {"positions": "learned", "activation": "swiglu"}]
)
def test_muon_takes_the_matrices_inside_the_blocks_and_adamw_every_other_parameter(choices):
    model = small_gpt(**choices)
    together = train.matrices_by_muon(model, muon_lr=0.5, adamw_lr=0.25)
    muon, adamw = together.optimizers
    assert isinstance(muon, torch.optim.Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    names = {id(p): name for name, p in model.named_parameters()}
    by_muon, by_adamw = (
        [names[id(p)] for group in o.param_groups for p in group["params"]] for o in (muon, adamw)
    )
    assert sorted(by_muon + by_adamw) == sorted(names.values())
    assert sorted(by_muon) == sorted(
        name for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2
    )
    assert "embedding.weight" in by_adamw
    assert not any(word in name for name in by_muon for word in ("embedding", "positions", "head"))
    assert [group["lr"] for group in together.param_groups] == [0.5, 0.25]
    assert [group["weight_decay"] for group in together.param_groups] == [0.0, 0.0]
    assert muon.param_groups[0]["momentum"] == 0.95
    assert adamw.param_groups[0]["betas"] == (0.9, 0.95)


def test_a_step_of_muon_is_nearly_orthogonal_and_one_of_adamw_a_sign():
    model = small_gpt()
    optimizer = train.matrices_by_muon(model, muon_lr=0.02, adamw_lr=1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens = torch.randint(11, (4, 8))
    model(tokens).logsumexp(-1).square().mean().backward()
    optimizer.step()
    for name, p in model.named_parameters():
        change = p.detach() - before[name]
        if name.startswith("blocks.") and p.ndim == 2:
            # Five rounds of Newton and Schulz bring most singular values near 1, not those that
            # were tiny; with more rows than columns the rate grows by the root of their ratio.
            scale = 0.02 * math.sqrt(max(1, p.shape[0] / p.shape[1]))
            values = torch.linalg.svdvals(change) / scale
            assert 0.6 < values.median() <= values.max() < 1.3, name
        else:
            clear = p.grad.abs() > 1e-5
            assert torch.allclose(change[clear], -1e-3 * p.grad[clear].sign(), rtol=1e-2), name


@pytest.mark.parametrize("blocks", [None, 3, [nn.Linear(3, 1)], nn.Sequential(nn.LayerNorm(3))])
def test_a_model_without_blocks_or_matrices_in_them_is_refused(blocks):
    model = nn.Linear(3, 1)
    if blocks is not None:
        model.blocks = blocks
    with pytest.raises(
        ValueError, match="expected a model with matrices in its `blocks`, got a Linear"
    ):
        train.matrices_by_muon(model)
