"""`make test`, `make check`, `make kernels`, `make lint`: every check, phase after phase.

A phase that fails does not stop the next one. The last lines say what passed and what failed, and
how long it took beside what it may take.
"""

import argparse
import dataclasses
import importlib.util
import math
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from tools import KERNEL_ENVIRONMENT, ROOT, command, num_workers
from tools.study import affected, manifest

try:
    import resource
except ImportError:  # Windows
    resource = None

REPORTS = Path("build", "test")
# A notebook in there is material of a test; kernels' tests have their own phase.
TESTS = ["tests", "--ignore=tests/kernels", "--ignore-glob=tests/*.ipynb"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclasses.dataclass(frozen=True)
class Phase:
    """`python -m` commands that are run together under one name; pytest's write a report."""

    name: str
    commands: list[list[str]]
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def report(self) -> Path:
        """Where pytest says what became of each test, from the repository's root."""
        return REPORTS / f"{re.sub('[^a-z]+', '-', self.name)}.xml"


LINT = Phase("lint", [["ruff", "check", "."], ["ruff", "format", "--check", "."]])


LONGEST_FIRST = ["--dist", "loadfile", "--no-loadscope-reorder", "-p", "tools.study.order"]
PROOFS = ["-p", "tools.study.nbval_watch", "--nbval-lax", "--nbval-current-env"]


def together(*paths: str, browser: bool = True) -> Phase:
    """Test files and, beside them, notebooks, executed on one thread each with proofs compared.

    On all cores, what takes longest first: together they leave no core idle at their ends.
    """
    line = ["pytest", "-n", str(num_workers()), *LONGEST_FIRST, *PROOFS]
    line += [] if browser else ["-m", "not browser"]
    return Phase("tests and notebooks", [[*line, *paths]], KERNEL_ENVIRONMENT)


def kernels() -> list[Phase]:
    """The Triton kernels without a GPU: interpreted against their references, then compiled.

    One process can't do both. Nothing where there is no Triton.
    """
    if importlib.util.find_spec("triton") is None:
        print("Triton is not installed (it exists for Linux on x86-64): its kernels stay untested.")
        return []
    line = ["pytest", "-n", str(num_workers()), "--dist", "load", "-m", "not gpu", "tests/kernels"]
    return [
        Phase("kernels, interpreted", [line], ONE_THREAD | {"TRITON_INTERPRET": "1"}),
        Phase("kernels, compiled", [["tools.kernels.proof"]], {"TRITON_INTERPRET": "0"}),
    ]


def check(since: str) -> list[Phase]:
    """What the changes since a commit can have broken; says what that is, and what is left out."""
    changed = affected.changed(ROOT, since)
    choice = affected.choose(ROOT, manifest.load(), changed)
    print(affected.explained(changed, choice))
    tests = together(*choice.notebooks, *choice.tests, browser=choice.browser)
    return [LINT, tests, *(kernels() if choice.kernels else [])]


def run(phases: list[Phase], root: Path = ROOT, budget: str = "") -> int:
    """Run phases and say how each went; returns 1 if any of them failed."""
    start, used, lines, failed, total = time.monotonic(), _used(), [], [], Counter()
    for phase in phases:
        print(f"\n== {phase.name} ==", flush=True)
        begun = time.monotonic()
        counts = _run(phase, root)
        total += counts
        lines.append(f"{phase.name:22} {time.monotonic() - begun:5.0f} s   {_said(counts)}")
        failed += [phase.name] if counts["failed"] else []
    seconds = time.monotonic() - start
    share = f"{(_used() - used) / (seconds * num_workers()):.0%} of {num_workers()} cores used"
    print("\n== in all ==", *lines, sep="\n")
    print(f"FAILED: {', '.join(failed)}" if failed else "All passed.")
    print(f"{seconds:.0f} s{budget}; {share}")
    print(f"{_said(total)} in {seconds:.2f}s", flush=True)
    return int(bool(failed))


def _run(phase: Phase, root: Path) -> Counter:
    """How many tests passed, failed and were skipped; another command is one test."""
    total = Counter()
    for line in phase.commands:
        report = root / phase.report
        report.unlink(missing_ok=True)
        more = [f"--junitxml={report}"] if line[0] == "pytest" else []
        done = subprocess.run(
            [sys.executable, "-m", *line, *more], cwd=root, env=os.environ | phase.environment
        )
        counts = count(report) if more and report.exists() else Counter(passed=done.returncode == 0)
        counts["failed"] += bool(done.returncode and not counts["failed"])
        total += counts
    return total


def count(report: Path) -> Counter:
    """How many tests of a JUnit report passed, failed and were skipped.

    Errors, in a fixture or while tests are collected, have failed; expected failures are skipped.
    """
    counts = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = {child.tag for child in case}
        failed = kinds & {"failure", "error"}
        counts["failed" if failed else "skipped" if "skipped" in kinds else "passed"] += 1
    return counts


def _said(counts: Counter) -> str:
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    return f"{counts['passed']} passed, {counts['failed']} failed{skipped}"


def _used() -> float:
    """Processor seconds of all processes that were started here and have ended; nan on Windows."""
    if resource is None:
        return math.nan
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Run the checks that the command line asks for."""
    parser = argparse.ArgumentParser(prog="make test", description=__doc__)
    parser.add_argument("--only", choices=["lint", "check", "kernels"], help="less than everything")
    parser.add_argument("--since", default="", help="`check`: the commit to compare with")
    arguments = parser.parse_args()
    if arguments.only == "lint":
        return run([LINT])
    if arguments.only == "kernels":
        return run(kernels())
    if arguments.only == "check":
        return run(check(arguments.since))
    book = manifest.load()
    number = len(book.chapters)
    budget = f" of at most {240 + 30 * number}: 4 min + 0.5 min × {number} chapters"
    phases = [LINT, *kernels(), together(*manifest.notebooks(book), *TESTS)]
    return run(phases, budget=budget)


if __name__ == "__main__":
    command(main)
