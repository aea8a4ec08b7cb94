"""`python -m bench [--only attention norm] [--rounds 15] [--quick] [--compile] [--keep]`."""

import argparse
import dataclasses
import importlib
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from aigc_lib import device as devices
from aigc_lib.ops.registry import OPS
from bench import clock, memory, race, report
from bench.arms import Arm, Case
from tools import Refusal, command

# In the order in which they run.
SCRIPTS = (*dict.fromkeys(op.module for op in OPS), "decode")


def cases(script: str, device: torch.device, *, quick: bool, compiled: bool) -> list[Case]:
    """The cases of one of the SCRIPTS; a quick one owes nothing."""
    found = importlib.import_module(f"bench.{script}").cases(device, quick=quick, compiled=compiled)
    return [dataclasses.replace(case, goals=()) if quick else case for case in found]


def call_of(script: str, quick: bool, compiled: bool, case: str, arm: str, step: str) -> clock.Call:
    """One call of an arm on the CPU, for a process that measures its memory."""
    found = cases(script, torch.device("cpu"), quick=quick, compiled=compiled)
    one = next(entry for entry in found if entry.name == case)
    which = next(entry for entry in (*one.arms, *one.peers) if entry.name == arm)
    inputs = one.inputs(torch.Generator().manual_seed(0))
    if which.compiled:  # compiling is not part of the call
        call, _ = race.make_call(which, inputs, step)
        call()
        return call
    return _first_call(which, inputs, step)


def _first_call(arm: Arm, inputs, step: str) -> clock.Call:
    """A call that did not run before, so that nothing of its memory is already resident."""
    function = arm.build(*inputs)
    if step == "forward":
        return lambda: torch.no_grad()(function)(*inputs)
    own = [x.requires_grad_(x.is_floating_point()) for x in inputs]
    wanted = [x for x in own if x.requires_grad]

    def both():
        out = function(*own)
        return torch.autograd.grad(out, wanted, torch.ones_like(out))

    return both


def _memory(script: str, device: torch.device, arguments) -> Callable[..., int | None]:
    """How the peak memory of an arm's call is found here."""

    def on_cpu(case, arm, step):
        if not case.cpu_memory:
            return None
        return memory.in_fresh_process(
            "bench.__main__:call_of",
            *(script, arguments.quick, arguments.compile, case.name, arm.name, step),
        )

    def on_cuda(case, arm, step):
        inputs = case.inputs(torch.Generator(device).manual_seed(0))
        with arm.around():
            return memory.on_cuda(race.make_call(arm, inputs, step)[0])

    return on_cuda if device.type == "cuda" else on_cpu


def run_script(
    script: str, found: list[Case], results: report.Results, track: race.Track, head: dict
) -> None:
    """Race all cases of a script, print them, and store them, however far they get."""
    print(f"\n== {script} ==\n{report.HEADING}", flush=True)
    start = time.perf_counter()
    entry = {**head, "complete": False, "rows": []}
    try:
        for case in found:
            print(f"{case.op}: {case.name}", flush=True)
            rows = race.run(case, track)
            print("\n".join(report.lines(rows)), flush=True)
            entry["rows"] += rows
        entry["complete"] = True
    finally:
        entry["seconds"] = round(time.perf_counter() - start, 1)
        results.put(script, entry)


def _arguments(line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Race the ops.")
    parser.add_argument("--only", nargs="+", default=list(SCRIPTS), metavar="OP")
    parser.add_argument("--rounds", type=int, default=15, help="at most, for each case")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is judged")
    parser.add_argument("--compile", action="store_true", help="torch.compile on the CPU too")
    parser.add_argument("--keep", action="store_true", help="store in bench/results/, to commit")
    parser.add_argument(
        "--out", type=Path, help="the file to write, instead of one in build/bench/"
    )
    arguments = parser.parse_args(line)
    if unknown := [name for name in arguments.only if name not in SCRIPTS]:
        raise Refusal(f"no op {unknown[0]!r} to race; there are {', '.join(SCRIPTS)}")
    if arguments.rounds < 3:
        raise Refusal(f"expected at least 3 rounds, got {arguments.rounds}")
    if arguments.compile and not (shutil.which("c++") or shutil.which("g++")):
        raise Refusal("--compile needs a C++ compiler, and none was found")
    return arguments


def _command(arguments: argparse.Namespace) -> str:
    """The command that repeats a run; where its file went is nobody else's concern."""
    words = ["python -m bench"]
    if arguments.only != list(SCRIPTS):
        words += ["--only", *arguments.only]
    words += ["--rounds", str(arguments.rounds)]
    words += [f"--{name}" for name in ("quick", "compile") if getattr(arguments, name)]
    return " ".join(words)


def main() -> int:
    """Race what the command line asks for; a floor that is not met is a result, not an error."""
    arguments = _arguments(sys.argv[1:])
    start = time.perf_counter()
    devices.limit_threads()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    timer = clock.CudaClock(device) if device.type == "cuda" else clock.ProcessorClock()
    setting = report.setting(device, arguments.quick)
    results = report.Results(setting, list(arguments.only), arguments.out, keep=arguments.keep)
    print(f"{setting['device']}, {setting['threads']} threads, torch {torch.__version__}")
    ceilings = clock.ceilings(timer, device, arguments.quick)
    copy = ceilings["copy_gigabytes_per_second"]
    print(f"copy {copy:.0f} GB/s, matmul {ceilings['matmul_teraflops']:.3g} TFLOP/s", flush=True)
    compiled = arguments.compile or device.type == "cuda"
    for script in arguments.only:
        track = race.Track(
            device=device,
            clock=timer,
            memory=_memory(script, device, arguments),
            rounds=arguments.rounds,
            capability=setting["capability"] and tuple(setting["capability"]),
            copy_bandwidth=1e9 * copy,
        )
        found = cases(script, device, quick=arguments.quick, compiled=compiled)
        head = {"command": _command(arguments), "ceilings": ceilings}
        run_script(script, found, results, track, head)
    print(f"\nDone in {time.perf_counter() - start:.0f} s. The result is {results.path}.")
    return 0


if __name__ == "__main__":
    command(main)
