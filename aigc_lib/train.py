"""The training loop, written once: a generator that yields a Step after every update.

    for step in train.run(loss_fn, model, optimizer, steps=1000):
        losses.append(step.loss)

`alternating` is the same loop for models that play against each other. The caller keeps the control
(curves, `break`, Ctrl-C), and each model always holds the weights of its last whole update.
"""

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from aigc_lib import checkpoint as files
from aigc_lib import expect
from aigc_lib.ema import EMA


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one update did."""

    index: int  # from 0; the updates of one round of a game share it
    player: str  # whose update; "model" in `run`
    loss: float  # before the update, in the unit of the loss function
    lr: float  # of the first parameter group
    grad_norm: float  # Euclidean norm of all gradients together, before clipping


class NonFiniteLoss(FloatingPointError):
    """A loss or gradient is NaN or infinite; the weights are those before this step."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a run keeps its state, and the generators that its loss function draws from, by name.

    A run that finds the file goes on from it; without its generators it would draw other batches.
    """

    path: str | Path
    generators: dict[str, torch.Generator] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Player:
    """One side of a game: what it minimises, and the weights that it may move."""

    loss_fn: Callable[[int], Tensor]  # from the round's index to a scalar; makes its own batch
    model: nn.Module
    optimizer: torch.optim.Optimizer  # of the model's weights alone; its step needs no closure
    ema: EMA | None = None  # updated after each update of this player


def warmup_cosine(steps: int, *, warmup: int = 0, end: float = 0.0) -> Callable[[int], float]:
    """A schedule: (i + 1) / w for i < w, then e + (1 − e)·½[1 + cos(π (i − w) / (S − w))].

    It multiplies the optimizer's learning rate at step i of S. ValueError unless 0 ≤ w < S.

    Source: Loshchilov and Hutter 2017, equation 5, without restarts.
    Derived: —
    """
    expect.between(0, steps - 1, warmup=warmup)

    def factor(index: int) -> float:
        if index < warmup:
            return (index + 1) / warmup
        progress = min(1.0, (index - warmup) / (steps - warmup))
        return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def run(
    loss_fn: Callable[[int], Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    ema: EMA | None = None,
    checkpoint: Checkpoint | None = None,
    save_every: int | None = None,
) -> Iterator[Step]:
    """Train one model: θ ← optimizer(θ, ∇θ loss), for `steps` steps, those of a resumed run too.

    `schedule` turns a step's index into a factor on each learning rate as the caller last set it;
    `clip` bounds the norm of all gradients together. The state (weights, optimizer, average,
    generators) is saved every `save_every` steps, at the end, and on Ctrl-C or `break`; a run that
    finds the file goes on, on a CPU bit for bit. NonFiniteLoss stops before the step,
    CheckpointError refuses another's file.

    Source: Robbins and Monro 1951, the stochastic approximation that every optimizer here refines.
    Derived: 00_start_here eq-sgd
    """
    player = Player(loss_fn=loss_fn, model=model, optimizer=optimizer, ema=ema)
    yield from _updates({"model": player}, steps, schedule, clip, checkpoint, save_every)


def alternating(
    players: Mapping[str, Player],
    *,
    steps: int,
    schedule: Callable[[int], float] | None = None,
    clip: float | None = None,
    checkpoint: Checkpoint | None = None,
    save_every: int | None = None,
) -> Iterator[Step]:
    """In each round every player steps, in turn: θ_k ← optimizer_k(θ_k, ∇θ_k loss_k(θ_1, …, θ_K)).

    So the second answers the first one's new weights. A loss function may run all models: detach
    what must carry no gradient. `steps`, `schedule` and `save_every` count rounds; a stopped run
    goes on with the next player. All else is as in `run`, but an optimizer of other weights than
    its model's, or fewer than two players, raise ValueError.

    Source: Goodfellow et al. 2014, algorithm 1, with k = 1 and any loss for either player.
    Derived: 30_gan_minimax eq-alternating
    """
    expect.that(len(players) >= 2, "two or more players", len(players))
    for name, player in players.items():
        alone = set(player.model.parameters()) >= set(_parameters(player))
        expect.that(alone, f"the optimizer of {name} to hold its model's weights alone", "others")
    yield from _updates(players, steps, schedule, clip, checkpoint, save_every)


def _updates(players, steps, schedule, clip, checkpoint, save_every) -> Iterator[Step]:
    """Update number u is the turn of player u mod K in round u div K."""
    expect.at_least(1, steps=steps, save_every=save_every)
    expect.above(0, clip=clip)
    expect.that(checkpoint is not None or save_every is None, "a checkpoint with save_every", None)
    state, turns = _State(players, checkpoint), list(players.items())
    try:
        for update in range(state.restore(), steps * len(turns)):
            index, turn = divmod(update, len(turns))
            name, player = turns[turn]
            where = f"step {index}" if len(turns) == 1 else f"step {index}, {name}"
            optimizer, parameters = player.optimizer, _parameters(player)
            factor = schedule(index) if schedule else 1.0
            for group in optimizer.param_groups:
                if "initial_lr" not in group or group["lr"] != group.get("set_lr", group["lr"]):
                    group["initial_lr"] = group["lr"]  # new, or set anew by the caller
                group["lr"] = group["set_lr"] = factor * group["initial_lr"]
            optimizer.zero_grad(set_to_none=True)
            loss = player.loss_fn(index)
            _require_finite(loss, where, "loss")
            loss.backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            _require_finite(norm, where, "gradient")
            if clip is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
            with _interrupts_wait():
                optimizer.step()
                if player.ema is not None:
                    player.ema.update(player.model)
                state.completed(update + 1)
            rounds, over = divmod(update + 1, len(turns))
            if not over and (rounds == steps or (save_every and rounds % save_every == 0)):
                state.save()
            lr, grad_norm = optimizer.param_groups[0]["lr"], norm.item()
            yield Step(index=index, player=name, loss=loss.item(), lr=lr, grad_norm=grad_norm)
    except (KeyboardInterrupt, GeneratorExit):
        state.save()
        raise


class _State:
    """Everything that a resumed run needs, as of the last whole update."""

    def __init__(self, players: Mapping[str, Player], checkpoint: Checkpoint | None):
        self.players, self.checkpoint = players, checkpoint
        self.updates = self.saved = 0

    def completed(self, updates: int) -> None:
        self.updates = updates
        if self.checkpoint is not None:
            # An interrupted forward pass may draw numbers and move any model's running statistics.
            drawn = {key: g.get_state() for key, g in self.checkpoint.generators.items()}
            self.kept = {"updates": updates, "generators": drawn, "rng": files.rng_state()}
            self.buffers = {
                name: {key: b.clone() for key, b in player.model.named_buffers()}
                for name, player in self.players.items()
            }

    def save(self) -> None:
        if self.checkpoint is None or self.updates == self.saved:
            return
        players = {
            name: {key: part.state_dict() for key, part in _parts(player).items()}
            for name, player in self.players.items()
        }
        for name, buffers in self.buffers.items():
            weights = players[name]["model"]
            weights.update({key: b for key, b in buffers.items() if key in weights})
        files.save(self.checkpoint.path, {**self.kept, "players": players})
        self.saved = self.updates

    def restore(self) -> int:
        if self.checkpoint is None or not Path(self.checkpoint.path).exists():
            return 0
        path, generators = self.checkpoint.path, self.checkpoint.generators
        tree = files.load(path)
        try:
            _same("players", self.players, tree["players"])
            _same("generators", sorted(generators), sorted(tree["generators"]))
            for name, player in self.players.items():
                saved, parts = tree["players"][name], _parts(player)
                _same(f"parts of {name}", parts, saved)
                for key, part in parts.items():
                    part.load_state_dict(saved[key])
            for name, generator in generators.items():
                generator.set_state(tree["generators"][name])
            files.set_rng_state(tree["rng"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            what = f"{path}: expected a checkpoint of this run, got another ({error})"
            advice = "name another file, or delete it to start anew"
            raise files.CheckpointError(f"{what}; {advice}") from error
        self.completed(tree["updates"])
        self.saved = self.updates
        return self.updates


def _parts(player: Player) -> dict[str, nn.Module | torch.optim.Optimizer]:
    averages = {"ema": player.ema.model} if player.ema is not None else {}
    return {"model": player.model, "optimizer": player.optimizer, **averages}


def _same(what: str, ours: Iterable[str], theirs: Iterable[str]) -> None:
    expect.that(list(ours) == list(theirs), f"{what} {list(ours)}", list(theirs))


def _parameters(player: Player) -> list[Tensor]:
    return [p for group in player.optimizer.param_groups for p in group["params"]]


def _require_finite(value: Tensor, where: str, what: str) -> None:
    expect.shaped((), **{what: value})
    if not math.isfinite(value.item()):
        found = f"expected a finite {what}, got {value.item()}"
        raise NonFiniteLoss(f"{where}: {found}; the weights are those before this update")


@contextlib.contextmanager
def _interrupts_wait():
    """Hold Ctrl-C back while the weights are between two states."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = []
    previous = signal.signal(signal.SIGINT, lambda *_: seen.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
    if seen:
        signal.raise_signal(signal.SIGINT)
