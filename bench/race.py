"""Race the arms of a case: shuffled rounds, ratios within each round, noise from a peer's twin."""

import dataclasses
import json
import random
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch._functorch.config as functorch
from torch import Tensor

from bench import gate
from bench.arms import Arm, Case
from bench.clock import Call, CudaClock, ProcessorClock, calibrate

TWIN = " again"  # a peer's second arm: the same calls, so that their ratio is noise alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """Where and how long to race. `memory` gives the peak bytes of an arm's call, or None."""

    device: torch.device
    clock: ProcessorClock | CudaClock
    memory: Callable[[Case, Arm, str], int | None]
    rounds: int = 15
    # A direction of a case gets fewer rounds than asked for, at least three, if it took longer.
    seconds: float = 3.0
    seed: int = 0
    capability: tuple[int, int] | None = None
    copy_bandwidth: float | None = None  # bytes per second, read and written


def interleave(
    samples: dict[str, Callable[[], float]], rounds: int, rng: random.Random
) -> dict[str, list[float]]:
    """Let every arm run once in each round, in an order that changes from round to round."""
    times = {name: [] for name in samples}
    order = list(samples)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            times[name].append(samples[name]())
    return times


def ratios(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """theirs/ours, round by round: median, 20th and 80th percentile; above 1 we are faster."""
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"expected samples in pairs, got {len(ours)} and {len(theirs)}")
    each = sorted(peer / our for our, peer in zip(ours, theirs, strict=True))

    def quantile(share):
        place = share * (len(each) - 1)
        below = int(place)
        above = min(below + 1, len(each) - 1)
        return each[below] + (place - below) * (each[above] - each[below])

    return statistics.median(each), quantile(0.2), quantile(0.8)


def noise_band(times: list[float], again: list[float]) -> tuple[float, float]:
    """The ratios that chance alone makes: those of a peer to itself.

    Which of the two came out faster is chance too, so the band reaches as far to either side of 1.
    """
    _, low, high = ratios(times, again)
    widest = max(high, 1 / low)
    return 1 / widest, widest


def is_noise(low: float, high: float, noise: tuple[float, float] | list[float]) -> bool:
    """Whether a ratio's interval overlaps with that of a peer to its twin."""
    return low <= noise[1] and noise[0] <= high


def reaches(row: dict, goal: dict[str, float]) -> bool | None:
    """Whether a row reaches a floor or an aim; the medians count, noise is no excuse.

    `ratio` and `copy_fraction` are bounded from below, all else from above. None if nothing is
    demanded, or something demanded was not measured.
    """
    if not goal or any(row[key] is None for key in goal):
        return None
    return all(
        row[key] >= bound if key in ("ratio", "copy_fraction") else row[key] <= bound
        for key, bound in goal.items()
    )


def meets(folder: Path, op: str, capability: tuple[int, int] | None, name: str = "*.json") -> bool:
    """Whether a committed result backs an op's kernel as the fast path of a device.

    In one file of that name or pattern the op is complete, has rows with floors on that capability,
    None for the CPU, and all of them are met.
    """
    for path in sorted(folder.glob(name)):
        content = json.loads(path.read_text(encoding="utf-8"))
        wanted = None if capability is None else list(capability)
        entries = [
            (entry["complete"], row)
            for entry in content.get("ops", {}).values()  # a comparison has none
            for row in entry["rows"]
            if row["op"] == op and row["capability"] == wanted and row["floor"]
        ]
        backed = all(complete and row["meets"] is True for complete, row in entries)
        if entries and backed and not content["quick"]:
            return True
    return False


def run(case: Case, track: Track) -> list[dict]:
    """Race one case: the gate, then memory, then the clock. A row per direction, arm and peer."""
    arms = (*case.arms, *case.peers)
    has_compiled = any(arm.compiled for arm in arms)
    if has_compiled:
        torch._dynamo.reset()  # else the shapes of all cases count against one limit
    refused, seconds = gate.inspect(case, track.device)
    running = [arm for arm in arms if arm.name not in refused]
    memory = {}
    for step in sorted({_step(direction) for direction in case.directions}):
        for arm in running:
            memory[arm.name, step] = _attempt(arm, refused, track.memory, case, arm, step)
    running = [arm for arm in running if arm.name not in refused]
    if has_compiled:
        torch._dynamo.reset()
    rows = []
    # A second backward over one graph forbids compiled code to reuse what was saved for it; hence
    # after memory, where it may, and with a new compilation.
    with functorch.patch(donated_buffer=False):
        for direction in case.directions:
            times = _times(case, running, direction, track, refused)
            rows += _rows(case, direction, times, memory, refused, seconds, track)
    return rows


def make_call(arm: Arm, inputs: tuple[Tensor, ...], direction: str) -> tuple[Call, str | None]:
    """What the clock times, one direction of an arm on its own inputs; and the arm's backend.

    The forward of a backward runs here, outside the clock.
    """
    own = gate.leaves(inputs)
    call = arm.build(*own)
    backend = arm.backend(*own) if arm.backend else None

    def forward():
        with torch.no_grad():
            return call(*own)

    if direction == "forward":
        return forward, backend
    wanted = [x for x in own if x.requires_grad]
    with arm.around():
        out = call(*own)
    # A scalar loss gets the 1 that training gives it.
    grad = torch.ones_like(out) if out.ndim == 0 else torch.randn_like(out)
    if direction == "backward":
        return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True), backend
    del out
    return lambda: torch.autograd.grad(call(*own), wanted, grad), backend


def _times(case, running, direction, track, refused) -> dict[str, dict]:
    """By arm: its seconds per call in each round and its backend; peers have twins."""
    inputs = case.inputs(torch.Generator(track.device).manual_seed(track.seed))
    samples, backends, lap = {}, {}, 0.0
    peers = {peer.name for peer in case.peers}
    for arm in running:
        ready = _attempt(arm, refused, _ready, arm, inputs, direction, track.clock)
        if ready is None:
            continue
        samples[arm.name], seconds, backends[arm.name] = ready
        lap += seconds
        if arm.name in peers:
            samples[arm.name + TWIN] = samples[arm.name]
            lap += seconds
    rounds = min(track.rounds, max(3, int(track.seconds / lap))) if lap else 0
    rng = random.Random(f"{track.seed} {case.op} {case.name} {direction}")
    times = interleave(samples, rounds, rng)
    return {
        name: {"seconds": values, "backend": backends.get(name)} for name, values in times.items()
    }


def _attempt(arm: Arm, refused: dict[str, str], function: Callable, *arguments):
    """The function's result; None, and a reason in `refused`, where the arm can't do it."""
    try:
        return function(*arguments)
    except Exception as error:  # out of memory, most likely: the other arms go on
        refused[arm.name] = gate.failure(error)
        return None


def _ready(arm: Arm, inputs, direction, clock) -> tuple[Callable[[], float], float, str | None]:
    """What takes one sample of an arm's time, how long that takes, and the arm's backend."""
    call, backend = make_call(arm, inputs, direction)
    with arm.around():
        if arm.compiled:
            call()  # compiles
        repetitions, seconds = calibrate(clock, call)

    def sample():
        with arm.around():
            return clock.total(call, repetitions) / repetitions

    return sample, seconds, backend


def _step(direction: str) -> str:
    """The call whose memory stands in a direction's rows; a backward has no peak of its own."""
    return "forward" if direction == "forward" else "both"


def _rows(case, direction, times, memory, refused, seconds, track) -> list[dict]:
    rows = []
    for arm in case.arms:
        for peer in case.peers:
            goals = [
                goal
                for goal in case.goals
                if (goal.arm, goal.direction, goal.peer) == (arm.name, direction, peer.name)
            ]
            goal = goals[0] if goals else None
            row = {
                "op": case.op,
                "capability": track.capability and list(track.capability),
                "case": case.name,
                "direction": direction,
                "arm": arm.name,
                "peer": peer.name,
                **_figures(case, direction, times, arm.name, peer.name, track),
                **_memory(memory, direction, arm.name, peer.name),
                "compile_seconds": seconds.get(arm.name),
                "peer_compile_seconds": seconds.get(peer.name),
                "floor": (goal and goal.floor) or None,
                "aim": (goal and goal.aim) or None,
                "refused": {n: refused[n] for n in (arm.name, peer.name) if n in refused} or None,
            }
            row["meets"] = False if row["floor"] and arm.name in refused else None
            if row["floor"] and not row["refused"]:
                row["meets"] = reaches(row, row["floor"])
            rows.append(row)
    return rows


def _figures(case, direction, times, arm: str, peer: str, track) -> dict:
    """A row's part that comes from the clock; None where an arm was not timed."""
    names = ("ratio", "low", "high", "noise", "milliseconds", "peer_milliseconds", "copy_fraction")
    figures = dict.fromkeys((*names, "rounds", "backend", "peer_backend"))
    for name, prefix in ((arm, ""), (peer, "peer_")):
        if name in times:
            median = statistics.median(times[name]["seconds"])
            figures[f"{prefix}milliseconds"] = round(1e3 * median, 5)
            figures[f"{prefix}backend"] = times[name]["backend"]
    if arm in times and case.num_bytes.get(direction) and track.copy_bandwidth:
        at_best = case.num_bytes[direction] / track.copy_bandwidth
        figures["copy_fraction"] = round(1e3 * at_best / figures["milliseconds"], 4)
    if arm in times and peer in times:
        theirs = times[peer]["seconds"]
        ours = ratios(times[arm]["seconds"], theirs)
        noise = noise_band(theirs, times[peer + TWIN]["seconds"])
        figures |= dict(zip(("ratio", "low", "high"), (round(x, 4) for x in ours), strict=True))
        figures |= {"noise": [round(x, 4) for x in noise], "rounds": len(theirs)}
    return figures


def _memory(memory, direction, arm: str, peer: str) -> dict:
    step = _step(direction)
    ours, theirs = memory.get((arm, step)), memory.get((peer, step))
    return {
        "memory_bytes": ours,
        "peer_memory_bytes": theirs,
        "memory_ratio": round(ours / theirs, 4) if ours is not None and theirs else None,
    }
