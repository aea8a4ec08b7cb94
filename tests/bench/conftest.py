"""A case with a virtual clock: an op that squares, and arms whose calls take what they are told."""

import pytest
import torch
from torch import Tensor

from bench.arms import Arm, Case, plain
from bench.race import Track


class VirtualClock:
    """Time that passes only when a call says so."""

    minimum = 0.02
    patience = 1.0

    def __init__(self):
        self.now = 0.0

    def total(self, call, repetitions):
        """Seconds that the calls claim to have taken."""
        start = self.now
        for _ in range(repetitions):
            call()
        return self.now - start


class Workshop:
    """Makes arms on one clock, and the case and the track to race them on."""

    def __init__(self):
        self.clock = VirtualClock()
        self.calls: list[str] = []

    def arm(self, name: str, forward=1.0, backward=2.0, compute=torch.square, **options) -> Arm:
        """An arm whose calls take `forward` and `backward`: seconds, or what gives seconds."""
        workshop = self

        class Slow(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, dx):
                workshop.spend(name, backward)
                return dx.clone()

        def function(x: Tensor) -> Tensor:
            workshop.spend(name, forward)
            return compute(Slow.apply(x))

        return plain(name, function, **options)

    def spend(self, name, seconds):
        """Let time pass."""
        self.calls.append(name)
        self.clock.now += seconds() if callable(seconds) else seconds

    def case(self, arms, peers, **options) -> Case:
        """A case of squaring."""
        return Case(
            **{
                "op": "square",
                "name": "N 8",
                "inputs": lambda draw: (torch.randn(8, generator=draw),),
                "reference": torch.square,
                "eager": torch.square,
                "arms": tuple(arms),
                "peers": tuple(peers),
                **options,
            }
        )

    def track(self, **options) -> Track:
        """Nine rounds on the virtual clock; the memory is that of the name."""
        return Track(
            **{
                "device": torch.device("cpu"),
                "clock": self.clock,
                "memory": lambda case, arm, step: len(arm.name),
                "rounds": 9,
                "seconds": 1e9,
                **options,
            }
        )


@pytest.fixture
def workshop() -> Workshop:
    """A fresh one."""
    return Workshop()
