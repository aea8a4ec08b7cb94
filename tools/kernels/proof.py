"""`make kernels`: compile every shipped configuration of every kernel, on any Linux machine.

No GPU is needed. Triton gets a driver that only says what to compile for, and the launchers get
tensors without memory; what they launch is compiled instead. The table shows what the compiler
made of it, and the exit code is 1 if a kernel spills registers, asks for more shared memory than
the device has, or multiplies 16-bit or TF32 matrices without tensor cores.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from aigc_lib.ops import registry
from tools import Refusal, command, num_workers

# Bytes of shared memory that one block may use.
SHARED_LIMIT = {80: 166_912, 90: 232_448}
DTYPES = ("float32", "float16", "bfloat16")
# The tensor cores' instructions: Ampere's HMMA, which Hopper has too, and Hopper's HGMMA, and what
# they are called in PTX.
TENSOR_CORES = re.compile(r"\bHG?MMA\b|\bmma\.sync|\bwgmma\.mma_async")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of one kernel in one configuration."""

    kernel: str
    label: str
    dtype: str
    capability: int
    warps: int
    registers: int
    stack: int
    shared: int
    multiplies: str
    tensor_cores: int

    def faults(self) -> list[str]:
        """What keeps this configuration from being shipped, a sentence each."""
        limit = SHARED_LIMIT[self.capability]
        found = []
        if self.stack:
            found.append(f"spills {self.stack} bytes of registers")
        if self.shared > limit:
            found.append(
                f"needs {self.shared} bytes of shared memory, sm_{self.capability} has {limit}"
            )
        if self.multiplies == "tensor cores" and not self.tensor_cores:
            found.append("multiplies 16-bit or TF32 matrices without tensor cores")
        return found


def parts() -> list[str]:
    """The files of tools/kernels/shipped, one for each folder of kernels in the registry."""
    return sorted({op.kernels for op in registry.OPS if op.kernels})


def compile_part(part: str, capability: int, dtype: str) -> list[Compiled]:
    """Compile everything that one file of kernels ships for one device and one dtype.

    Changes Triton's driver for the rest of the process, which must not be interpreting.
    """
    import torch
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    from aigc_lib.kernels import launch

    driver.set_active(_Driver(capability))
    found = {}
    run, label = JITFunction.run, ""
    processors = 108 if capability == 80 else 132

    def compile_only(kernel, *arguments, grid, warmup, **options):
        binary = run(kernel, *arguments, grid=grid, warmup=True, **options)
        if binary.hash not in found:
            found[binary.hash] = _inspect(binary, label, capability, dtype)
        return binary

    calls = importlib.import_module(f"tools.kernels.shipped.{part}").calls
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(launch, "capability", return_value=divmod(capability, 10)),
        mock.patch.object(launch, "num_processors", return_value=processors),
    ):
        for label, call in calls(getattr(torch, dtype)):  # noqa: B007 (compile_only reads it)
            call()
    return list(found.values())


class _Driver:
    """Says what to compile for; there is no device, and nothing is ever launched."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device=None):
        return 0

    def get_active_torch_device(self):
        import torch

        return torch.device("meta")


def _inspect(binary, label, capability, dtype) -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(binary.asm["cubin"])
        registers, stack = map(
            int, USAGE.search(_cuobjdump("--dump-resource-usage", file)).groups()
        )
        multiplies = _multiplies(binary.asm["ttir"])
        # To take a binary apart costs more than to make it: that of bfloat16 differs from that of
        # float16 in one suffix, and is judged by the text that it was assembled from.
        listing = ""
        if multiplies == "tensor cores":
            is_twin = dtype == "bfloat16"
            listing = binary.asm["ptx"] if is_twin else _cuobjdump("--dump-sass", file)
    return Compiled(
        kernel=binary.metadata.name,
        label=label,
        dtype=dtype,
        capability=capability,
        warps=binary.metadata.num_warps,
        registers=registers,
        stack=stack,
        shared=binary.metadata.shared,
        multiplies=multiplies,
        tensor_cores=len(TENSOR_CORES.findall(listing)),
    )


def _multiplies(ttir) -> str:
    """How a kernel multiplies matrices, from Triton's own intermediate text."""
    products = [line for line in ttir.splitlines() if "tt.dot " in line]
    if not products:
        return "no matrices"
    wide = all(re.search(r":\s*tensor<\w+xf32>", line) for line in products)
    exact = wide and not any("inputPrecision = tf32" in line for line in products)
    return "float32 units" if exact else "tensor cores"


def _cuobjdump(option, file) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([tool, option, file], check=True, capture_output=True, text=True).stdout


def compile_all(only: list[str]) -> Iterator[Compiled]:
    """Compile parts in as many processes as there are cores; the entries in a fixed order."""
    if importlib.util.find_spec("triton") is None:
        raise Refusal("Triton is not installed: make kernels needs Linux on x86-64.")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise Refusal("TRITON_INTERPRET=1 is set: a process that interprets can't compile.")
    jobs = [(p, c, d) for p in only for c in SHARED_LIMIT for d in DTYPES]
    # A fresh process each: fork would share Triton's state, and torch's threads don't survive it.
    with concurrent.futures.ProcessPoolExecutor(
        num_workers(), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        for entries in pool.map(compile_part, *zip(*jobs, strict=True)):
            yield from entries


def table(entries: list[Compiled]) -> str:
    """One line for each binary."""
    lines = [
        f"{'kernel':26} {'configuration':34} {'dtype':9} {'for':6} {'warps':>5} {'regs':>5} "
        f"{'stack':>5} {'shared':>7} tensor cores"
    ]
    for e in entries:
        cores = {"no matrices": "—", "float32 units": "none, exact float32"}.get(
            e.multiplies, f"{e.tensor_cores} instructions"
        )
        lines.append(
            f"{e.kernel:26} {e.label:34} {e.dtype:9} sm_{e.capability:<3} {e.warps:5} "
            f"{e.registers:5} {e.stack:5} {e.shared:7} {cores}"
        )
    return "\n".join(lines)


def main() -> int:
    """Compile, print the table and the faults; 1 if there are any."""
    parser = argparse.ArgumentParser(prog="make kernels", description=__doc__)
    parser.add_argument("--only", default="", help=f"one of {', '.join(parts())}")
    only = parser.parse_args().only
    if only and only not in parts():
        raise Refusal(f"no kernels of the name {only!r}; there are {', '.join(parts())}")
    entries = list(compile_all([only] if only else parts()))
    print(table(entries))
    faults = [
        f"{e.kernel}, {e.label}, {e.dtype}, sm_{e.capability}: {fault}"
        for e in entries
        for fault in e.faults()
    ]
    print("\n".join(["", *faults, f"{len(entries)} binaries, {len(faults)} faults."]))
    return bool(faults)


if __name__ == "__main__":
    command(main)
