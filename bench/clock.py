"""Time of one call, and what the machine can do at most."""

import math
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]


class ProcessorClock:
    """Wall-clock time on the CPU; a sample repeats short calls until it lasts 20 ms."""

    minimum = 0.02
    patience = 1.0

    def total(self, call: Call, repetitions: int) -> float:
        """Seconds for several calls in a row."""
        start = time.perf_counter()
        for _ in range(repetitions):
            call()
        return time.perf_counter() - start


class CudaClock:
    """Device time between two events around each call; before each, the L2 cache is flushed.

    The flush also keeps the device busy while the CPU prepares the launch, so that launching is
    seen only where it takes longer than the flush, some 80 µs on an H100.
    """

    minimum = 0.001
    patience = math.inf

    def __init__(self, device: torch.device):
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        self.flush = torch.empty(max(4 * cache, 2**28), dtype=torch.int8, device=device)

    def total(self, call: Call, repetitions: int) -> float:
        """Seconds for several calls, each with a cold cache, without the flushes."""
        pairs = [
            [torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions)
        ]
        torch.cuda.synchronize()
        for start, end in pairs:
            self.flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1e3


def calibrate(clock: ProcessorClock | CudaClock, call: Call) -> tuple[int, float]:
    """How often to repeat a call so that a sample is long enough, and its seconds; warms up."""
    repetitions, seconds = 1, clock.total(call, 1)
    if seconds < clock.patience:  # else the warm-up is as good a measurement as any
        seconds = clock.total(call, 1)
    while seconds < clock.minimum and repetitions < 10_000:
        more = 1.2 * repetitions * clock.minimum / max(seconds, 1e-9)
        repetitions = min(max(math.ceil(more), repetitions + 1), 10_000)
        seconds = clock.total(call, repetitions)
    return repetitions, seconds


def ceilings(
    clock: ProcessorClock | CudaClock, device: torch.device, quick: bool = False
) -> dict[str, float | str]:
    """What the machine reaches at best: GB/s of a copy, both ways, and TFLOP/s of a product."""
    is_cuda = device.type == "cuda"
    size = 2**31 if is_cuda else 2**28
    side, dtype = (8192, torch.bfloat16) if is_cuda else (2048, torch.float32)
    if quick:
        size, side = size // 8, side // 4
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = _best(clock, lambda: target.copy_(source))
    del source, target
    draw = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, generator=draw, device=device, dtype=dtype) for _ in range(2))
    multiplying = _best(clock, lambda: a @ b)
    return {
        "copy_gigabytes_per_second": round(2 * size / copying / 1e9, 2),
        "matmul_teraflops": round(2 * side**3 / multiplying / 1e12, 4),
        "matmul": f"{side}, {str(dtype).removeprefix('torch.')}",
    }


def _best(clock, call: Call, samples: int = 5) -> float:
    repetitions, _ = calibrate(clock, call)
    return min(clock.total(call, repetitions) for _ in range(samples)) / repetitions
