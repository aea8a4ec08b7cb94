"""Peak memory of one call above what was held before it.

On CUDA the allocator knows. On the CPU only a fresh process can tell, and only Linux: this module
is then started as `python -m bench.memory module:function [arguments as JSON]`; the function makes
the inputs and returns the call.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from aigc_lib import device
from tools import ROOT, Refusal

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def on_cuda(call: Callable[[], object]) -> int:
    """Peak bytes of the allocator during a call, above those before; warms up first."""
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def in_fresh_process(target: str, *arguments) -> int | None:
    """Peak resident bytes of a call above what the process held before it; None without Linux.

    `target` is "module:function"; the function gets the arguments, through JSON, and returns the
    call. Refusal, with the end of what it said, where the process failed.
    """
    if not CLEAR.exists():
        return None
    line = [sys.executable, "-m", "bench.memory", target, json.dumps(arguments)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Refusal(f"memory of {target}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def _resident(field: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise Refusal(f"{STATUS} does not tell {field}")


def _peak(call: Callable[[], object]) -> int:
    CLEAR.write_text("5")  # sets the high-water mark to what is resident now
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def main() -> None:
    """Measure the function named on the command line; the last line printed is the result."""
    target, arguments = sys.argv[1:]
    module, function = target.split(":")
    device.limit_threads()
    call = getattr(importlib.import_module(module), function)(*json.loads(arguments))
    torch.ones(64, 64) @ torch.ones(64, 64)  # loads the BLAS and starts its threads
    print(_peak(call))


if __name__ == "__main__":
    main()
