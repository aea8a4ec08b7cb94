"""What enters a race: arms, the cases that they run, and the goals that a result is held to."""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[..., Tensor]
# forward: without gradients, as in inference. backward: the gradients alone, after a forward
# outside the clock. both: one training step's forward and backward together.
DIRECTIONS = ("forward", "backward", "both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One implementation. `build` gets the inputs, works outside the clock, and returns what runs.

    A `reference` of its own makes a peer a yardstick that computes something else; `around` holds
    while it is called; `backend` names, from the inputs, what runs underneath.
    """

    name: str
    build: Callable[..., Function]
    compiled: bool = False
    reference: Function | None = None
    around: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    backend: Callable[..., str] | None = None


@dataclasses.dataclass(frozen=True)
class Goal:
    """What one arm owes against one peer in one direction: keys of `floor` and `aim` are
    `ratio` (at least), `memory_ratio` (at most), `copy_fraction` (at least), `milliseconds`
    (at most)."""

    arm: str
    direction: str
    peer: str
    floor: dict[str, float] = dataclasses.field(default_factory=dict)
    aim: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one size: its inputs, the formula, our arms, their peers, and the goals."""

    op: str
    name: str
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]]
    reference: Function
    eager: Function
    arms: tuple[Arm, ...]
    peers: tuple[Arm, ...]
    directions: tuple[str, ...] = ("forward", "backward")
    goals: tuple[Goal, ...] = ()
    # Smaller inputs for the gate, where float64 at full size would take minutes on a CPU.
    gate_inputs: Callable[[torch.Generator], tuple[Tensor, ...]] | None = None
    # For an op whose outputs are random: gets a built arm and its inputs, says what is wrong.
    gate: Callable[[Function, tuple[Tensor, ...]], str | None] | None = None
    # On the CPU each arm's memory costs a fresh process: only where it is the point.
    cpu_memory: bool = False
    # What must at least be read and written, for the share of the copy bandwidth.
    num_bytes: dict[str, int] = dataclasses.field(default_factory=dict)


def plain(name: str, function: Function, **options) -> Arm:
    """An arm that is a function as it stands."""
    return Arm(name=name, build=lambda *inputs: function, **options)


def compiled(function: Function, name: str = "compile", **options) -> Arm:
    """An arm that is a function through torch.compile with its best settings.

    On CUDA the GEMM templates are tuned too; on CPU that would take minutes and gains little.
    """

    def build(*inputs):
        mode = "max-autotune-no-cudagraphs" if inputs[0].is_cuda else None
        return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)

    return Arm(name=name, build=build, compiled=True, **options)


def ours(
    function: Function, device: torch.device, *also: str, has_kernel: bool = True
) -> tuple[Arm, ...]:
    """Our implementations that run on a device: "torch", on CUDA "triton", and those named also."""
    names = [*also, "torch", *(["triton"] if device.type == "cuda" and has_kernel else [])]

    def arm(impl):
        return plain(impl, lambda *inputs: function(*inputs, impl=impl))

    return tuple(arm(name) for name in names)


def has_liger() -> bool:
    """Whether Liger's kernels can race."""
    return importlib.util.find_spec("liger_kernel") is not None
