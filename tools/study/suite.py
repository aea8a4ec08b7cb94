"""`make test`, `make check` and `make lint`: every check, one after the other.

A phase that fails does not stop the next one; the last line says what passed and what failed.
"""

import argparse
import dataclasses
import importlib.util
import os
import subprocess
import sys
import time

from tools import KERNEL_ENVIRONMENT, ROOT, command, num_workers
from tools.study import manifest


@dataclasses.dataclass(frozen=True)
class Phase:
    """Commands that are run together under one name."""

    name: str
    commands: list[list[str]]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


LINT = Phase(
    "lint",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["pydoclint.main", "--quiet", "aigc_lib", "tools", "bench"],
    ],
)


def unit_tests(browser: bool) -> Phase:
    """The tests in tests/, several at a time.

    Args:
        browser: whether to include those that open pages in Chromium.

    Returns:
        The phase.
    """
    workers = str(num_workers())
    line = ["pytest", "tests", "--ignore=tests/kernels", "-n", workers, "--dist", "loadfile"]
    if not browser:
        line += ["-m", "not browser"]
    return Phase("unit tests", [line], {"OMP_NUM_THREADS": "1"})


def kernels() -> list[Phase]:
    """The Triton kernels, without a GPU: interpreted against their references, then compiled.

    Returns:
        Two phases, for a process can't do both; none where there is no Triton.
    """
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed (it exists for Linux on x86-64): its kernels stay untested.")
        return []
    workers = str(num_workers())
    line = ["pytest", "tests/kernels", "-m", "not gpu", "-n", workers, "--dist", "load"]
    return [
        Phase("kernels, interpreted", [line], {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}),
        Phase("kernels, compiled", [["tools.kernels.proof"]], {"TRITON_INTERPRET": "0"}),
    ]


def chapters(*paths: str) -> Phase:
    """Notebooks, executed one after the other, their proofs compared.

    Args:
        *paths: which.

    Returns:
        The phase.
    """
    line = ["pytest", "-p", "tools.study.nbval_ipc", "--nbval-lax", "--nbval-current-env"]
    line += ["--nbval-cell-timeout=400", "--nbval-kernel-startup-timeout=120", *paths]
    return Phase("chapters", [line], KERNEL_ENVIRONMENT)


def run(phases: list[Phase]) -> int:
    """Run phases and say how each went.

    Args:
        phases: in this order.

    Returns:
        The exit code, 1 if any of them failed.
    """
    passed, failed = [], []
    for phase in phases:
        print(f"\n== {phase.name} ==", flush=True)
        start = time.perf_counter()
        codes = [
            subprocess.run(
                [sys.executable, "-m", *line], cwd=ROOT, env=os.environ | phase.environment
            ).returncode
            for line in phase.commands
        ]
        seconds = time.perf_counter() - start
        (failed if any(codes) else passed).append(f"{phase.name} ({seconds:.0f} s)")
    print()
    if failed:
        print(f"FAILED: {', '.join(failed)}. Passed: {', '.join(passed) or 'nothing'}.")
    else:
        print(f"All passed: {', '.join(passed)}.")
    return bool(failed)


def main() -> int:
    """Run the checks that the command line asks for.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="make test", description=__doc__)
    parser.add_argument("--only", choices=["lint", "check", "kernels"], help="less than everything")
    parser.add_argument("--chapter", default="00", help="the one that `check` runs")
    arguments = parser.parse_args()
    if arguments.only == "lint":
        return run([LINT])
    if arguments.only == "kernels":
        return run(kernels())
    book = manifest.load()
    if arguments.only == "check":
        chapter = manifest.find(book, arguments.chapter)
        return run([LINT, unit_tests(browser=False), chapters(str(chapter.notebook()))])
    paths = [str(chapter.notebook()) for chapter in book.chapters]
    paths += [str(chapter.homework()) for chapter in book.chapters if chapter.assignment]
    return run([LINT, unit_tests(browser=True), *kernels(), chapters(*paths)])


if __name__ == "__main__":
    command(main)
