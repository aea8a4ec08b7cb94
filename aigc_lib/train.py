"""The training loop, written once: a generator that yields a Step after every update.

    for step in train.run(loss_fn, model, optimizer, steps=1000):
        losses.append(step.loss)

`alternating` is the same loop for models that are trained against each other. The caller keeps the
control: it draws curves, stops with `break`, or presses Ctrl-C, and each model always holds the
weights of its last whole update.
"""

import contextlib
import copy
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aigc_lib import checkpoint as files


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one update did.

    Attributes:
        index: number of the step, from 0; the updates of one round of a game share it.
        player: whose update; "model" in `run`.
        loss: the loss before the update, in the unit of the loss function.
        lr: learning rate of the first parameter group.
        grad_norm: Euclidean norm of all gradients together, before clipping.
    """

    index: int
    player: str
    loss: float
    lr: float
    grad_norm: float


class NonFiniteLoss(FloatingPointError):
    """A loss or gradient is NaN or infinite; the weights are those before this step."""


class Together(torch.optim.Optimizer):
    """Several optimizers that step as one, each with parameters of its own.

    For instance Muon for the matrices inside a Transformer, which takes nothing else, and AdamW for
    its embeddings and norms: `matrices_by_muon`.

    Attributes:
        optimizers: in the order given.
        param_groups: those of all of them.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer):
        """Put optimizers together.

        Args:
            *optimizers: at least one.

        Raises:
            ValueError: there is none, or two of them hold the same parameter.
        """
        parameters = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
        if not optimizers or len(parameters) != len(set(parameters)):
            raise ValueError("expected one or more optimizers with parameters of their own")
        self.optimizers = optimizers
        self.param_groups = [group for o in optimizers for group in o.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients.

        Args:
            set_to_none: rather than fill them with zeros.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def step(self, closure: None = None) -> None:
        """Let each take its step.

        Args:
            closure: not supported.
        """
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict:
        """The state of each.

        Returns:
            A tree for `load_state_dict`.
        """
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over what `state_dict` gave.

        Args:
            state_dict: of the same optimizers.
        """
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]


def matrices_by_muon(
    model: nn.Module, *, muon_lr: float = 0.02, adamw_lr: float = 3e-3
) -> Together:
    """Muon for the matrices inside a model's blocks, AdamW for all else, without weight decay.

    Muon steps along the orthogonal matrix nearest to the averaged gradient, so that all directions
    of a matrix are used equally. Embeddings and read-outs, whose rows stand for single tokens, and
    vectors (norms, biases) are left to AdamW.

    Source: Jordan et al. 2024, for Muon and for the division of labour.
    Derived: —

    Args:
        model: a module whose attribute `blocks` holds its layers, such as `models.text.gpt.GPT`.
        muon_lr: learning rate of the two-dimensional weights inside `blocks`.
        adamw_lr: learning rate of all other parameters.

    Returns:
        One optimizer of the two, Muon's group first.

    Raises:
        ValueError: the model has no `blocks`, or there is no matrix in them.
    """
    blocks = getattr(model, "blocks", None)
    inside = blocks.parameters() if isinstance(blocks, nn.Module) else ()
    matrices = [p for p in inside if p.ndim == 2]
    if not matrices:
        raise ValueError(
            f"expected a model with matrices in its `blocks`, got a {type(model).__name__}"
        )
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    return Together(
        torch.optim.Muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(others, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    )


class EMA:
    """An exponential moving average of a model's weights: m ← decay·m + (1 − decay)·θ.

    Source: Polyak and Juditsky 1992 average the iterates; this is the exponentially weighted form.
    Derived: —

    Attributes:
        model: the averaged copy, for evaluation.
        decay: the factor.
    """

    def __init__(self, model: nn.Module, decay: float):
        """Start the average at the weights as they are.

        Args:
            model: what is averaged; it is copied.
            decay: from 0 (the weights themselves) to below 1; about 1 / (1 − decay) steps count.

        Raises:
            ValueError: the decay is out of range.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"expected a decay in [0, 1), got {decay}")
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model; buffers are copied.

        Args:
            model: of the same architecture as the average.
        """
        for mean, now in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, 1 - self.decay)
        for mean, now in zip(self.model.buffers(), model.buffers(), strict=True):
            mean.copy_(now)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a run keeps its state, and the generators that its loss function draws from.

    Attributes:
        path: the file; a run that finds it there goes on from it.
        generators: by name, each generator the loss function owns; without them a resumed run
            would draw other batches.
    """

    path: str | Path
    generators: dict[str, torch.Generator] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Player:
    """One side of a game: what it minimises, and the weights that it may move.

    Attributes:
        loss_fn: from the round's index to a scalar; it makes its own batch.
        model: the module whose weights the optimizer holds.
        optimizer: any torch optimizer over the model's parameters whose step needs no closure.
        ema: updated after each update of this player.
    """

    loss_fn: Callable[[int], Tensor]
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMA | None = None


def warmup_cosine(steps: int, *, warmup: int = 0, end: float = 0.0) -> Callable[[int], float]:
    """A schedule: rise linearly over `warmup` steps, then fall along half a cosine to `end`.

    Source: Loshchilov and Hutter 2017, equation 5, without restarts.
    Derived: —

    Args:
        steps: length of the run, more than `warmup`.
        warmup: number of rising steps.
        end: factor that the cosine falls to.

    Returns:
        A function from the step's index to the factor on the optimizer's learning rate.

    Raises:
        ValueError: the warm-up does not fit into the run.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"expected 0 <= warmup < steps, got warmup {warmup} and steps {steps}")

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
    """Train one model: θ ← optimizer(θ, ∇θ loss), for a fixed number of steps.

    The finite check comes before the update and the yield after it. With a checkpoint the state
    (weights, optimizer, average, generators) is saved every `save_every` steps, at the end, and on
    Ctrl-C or `break`; a run that finds the file goes on from there, on a CPU bit for bit as if it
    had never stopped.

    Source: Robbins and Monro 1951, the stochastic approximation that every optimizer here refines.
    Derived: 00_start_here eq-sgd

    Args:
        loss_fn: from the step's index to a scalar; it makes its own batch.
        model: the module whose weights the optimizer holds.
        optimizer: any torch optimizer over the model's parameters whose step needs no closure.
        steps: in all, those of an earlier, resumed run included.
        schedule: from the step's index to a factor on each group's learning rate.
        clip: largest norm of all gradients together.
        ema: updated after each step.
        checkpoint: where the state is kept.
        save_every: number of steps between two saves; None saves only at the end or on a stop.

    Yields:
        One record per step, after the update.

    Raises:
        NonFiniteLoss: with the step's number; the weights are those before it.
        CheckpointError: the file there is not a checkpoint of this model.
        ValueError: a setting is out of range, or the loss is not a scalar.
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
    """Train models against each other: in each round every player takes one step, in turn.

    θ_k ← optimizer_k(θ_k, ∇θ_k loss_k(θ_1, …, θ_K)),   k = 1, …, K,

    so the second player answers the first one's new weights. Each update is a step of its own: the
    finite check comes before it, the yield after it, and a run that stops between the updates of
    a round goes on with the next player. All else is as in `run`.

    Source: Goodfellow et al. 2014, algorithm 1, with k = 1 and any loss for either player.
    Derived: 30_gan_minimax eq-alternating

    Args:
        players: by name, in the order of their turns. A loss function may run all models, but only
            its own player's weights move: detach what must not carry a gradient.
        steps: number of rounds in all, those of an earlier, resumed run included.
        schedule: from the round's index to a factor on each group's learning rate.
        clip: largest norm of all gradients of one player together.
        checkpoint: where the state is kept.
        save_every: number of rounds between two saves; None saves only at the end or on a stop.

    Yields:
        One record per update, after it.

    Raises:
        NonFiniteLoss: with the round's number and the player's name.
        CheckpointError: the file there is not a checkpoint of this game.
        ValueError: a setting is out of range, there are no two players, a player's optimizer holds
            other weights than its model's, or a loss is not a scalar.
    """
    if len(players) < 2:
        raise ValueError(f"expected two or more players, got {len(players)}")
    for name, player in players.items():
        own = {id(p) for p in player.model.parameters()}
        if not all(id(p) in own for p in _parameters(player)):
            raise ValueError(f"expected the optimizer of {name} to hold its model's weights alone")
    yield from _updates(players, steps, schedule, clip, checkpoint, save_every)


def _updates(players, steps, schedule, clip, checkpoint, save_every) -> Iterator[Step]:
    """Update number u is the turn of player u mod K in round u div K."""
    _validate(steps, clip, checkpoint, save_every)
    state, turns = _State(players, checkpoint), list(players.items())
    try:
        for update in range(state.restore(), steps * len(turns)):
            index, turn = divmod(update, len(turns))
            name, player = turns[turn]
            where = f"step {index}" if len(turns) == 1 else f"step {index}, {name}"
            optimizer, parameters = player.optimizer, _parameters(player)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (schedule(index) if schedule else 1.0)
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
        for player in players.values():
            for group in player.optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        self.updates = self.saved = 0

    def completed(self, updates: int) -> None:
        self.updates = updates
        if self.checkpoint is not None:
            # An interrupted forward pass may draw numbers and move any model's running statistics.
            self.random = {k: g.get_state() for k, g in self.checkpoint.generators.items()}
            self.rng = files.rng_state()
            self.buffers = {
                name: {key: b.clone() for key, b in player.model.named_buffers()}
                for name, player in self.players.items()
            }

    def save(self) -> None:
        if self.checkpoint is None or self.updates == self.saved:
            return
        tree: dict[str, Any] = {
            "updates": self.updates,
            "players": {name: self._player(name) for name in self.players},
            "generators": self.random,
            "rng": self.rng,
        }
        files.save(self.checkpoint.path, tree)
        self.saved = self.updates

    def restore(self) -> int:
        if self.checkpoint is None or not Path(self.checkpoint.path).exists():
            return 0
        path, generators = self.checkpoint.path, self.checkpoint.generators
        tree = files.load(path)
        try:
            if list(self.players) != list(tree["players"]):
                raise ValueError(f"players {list(tree['players'])}")
            for name, player in self.players.items():
                part = tree["players"][name]
                player.model.load_state_dict(part["model"])
                player.optimizer.load_state_dict(part["optimizer"])
                if (player.ema is None) != (part["ema"] is None):
                    raise ValueError("one of the two runs has an EMA, the other has none")
                if player.ema is not None:
                    player.ema.model.load_state_dict(part["ema"])
            if generators.keys() != tree["generators"].keys():
                raise ValueError(f"generators {sorted(tree['generators'])}")
            for name, generator in generators.items():
                generator.set_state(tree["generators"][name])
            files.set_rng_state(tree["rng"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise files.CheckpointError(
                f"{path}: expected a checkpoint of this run, got another ({error}); "
                "name another file, or delete it to start anew"
            ) from error
        self.completed(tree["updates"])
        self.saved = self.updates
        return self.updates

    def _player(self, name: str) -> dict[str, Any]:
        player, buffers = self.players[name], self.buffers[name]
        weights = player.model.state_dict()
        return {
            "model": {**weights, **{key: b for key, b in buffers.items() if key in weights}},
            "optimizer": player.optimizer.state_dict(),
            "ema": player.ema.model.state_dict() if player.ema is not None else None,
        }


def _parameters(player: Player) -> list[Tensor]:
    return [p for group in player.optimizer.param_groups for p in group["params"]]


def _validate(steps, clip, checkpoint, save_every) -> None:
    if steps < 1:
        raise ValueError(f"expected steps >= 1, got {steps}")
    if clip is not None and not clip > 0:
        raise ValueError(f"expected clip > 0, got {clip}")
    if save_every is not None and save_every < 1:
        raise ValueError(f"expected save_every >= 1, got {save_every}")
    if save_every is not None and checkpoint is None:
        raise ValueError("expected a checkpoint to go with save_every, got None")


def _require_finite(value: Tensor, where: str, what: str) -> None:
    if value.ndim != 0:
        raise ValueError(f"expected a scalar {what}, got shape {tuple(value.shape)}")
    if not math.isfinite(value.item()):
        raise NonFiniteLoss(
            f"{where}: expected a finite {what}, got {value.item()}; "
            "the weights are those before this update"
        )


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
