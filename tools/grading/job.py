"""Grade one submission: nbgrader's autograde in a process of its own, its kernel in a sandbox."""

import dataclasses
import functools
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tools import KERNEL_ENVIRONMENT, ROOT
from tools.grading import sandbox
from tools.grading.release import environment
from tools.grading.sandbox import LIMITS

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["__main__", "tools.grading.autograde"])
UNSAFE = """Without a sandbox students' code runs as you, on this machine: it can read the hidden
tests and every other submission, change every student's grade, delete or send away your files,
and go on running after the grader has ended."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one run."""

    reason: str  # why there is no score, "" if there is one
    look: list[str]  # what a person should look at though there is a score
    seconds: float


@functools.cache
def fonts() -> list[str]:
    """matplotlib's list of fonts, which takes seconds to make, so it is made once: its files."""
    import matplotlib.font_manager  # imported, it writes the list

    return [str(path) for path in Path(matplotlib.get_cachedir()).glob("fontlist-*.json")]


def settings(folder: Path, data: list[str], limits: dict) -> dict:
    """What the sandbox shows to a kernel, as sandbox.py reads it."""
    readable = [sys.base_prefix, sys.prefix, str(ROOT / "aigc_lib")]
    kernel = {
        "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
        "HOME": sandbox.HOME,
        "USER": "student",
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLCONFIGDIR": sandbox.HOME,
    }
    return {
        "readable": sorted({path for path in readable if not path.startswith("/usr/")}),
        "data": [*data, *fonts()],
        "channels": str(folder / "k"),
        "environment": kernel | KERNEL_ENVIRONMENT,
        "limits": limits,
        "reason": str(folder / "reason"),
    }


def available() -> str:
    """Why the sandbox does not work here, found out by opening one; "" if it does."""
    shown = settings(Path("/"), [], LIMITS) | {"channels": "", "reason": os.devnull}
    try:
        code, said = sandbox.contain(shown, sandbox.python(shown, "this"))
    except OSError as error:
        advice = "Debian and Ubuntu: sudo apt install bubblewrap"
        return f"bubblewrap (the command bwrap) can't be started: {error}. {advice}"
    return f"bubblewrap can't open a sandbox here: {said[:300]}" if code else ""


def run(course: Path, student: str, assignment: str, limits: dict, unsafe: bool) -> Outcome:
    """Grade what lies in the course's folder `submitted`."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aigc-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        prepare(folder, course / "source" / assignment, limits, unsafe)
        reason = autograde(folder, course, student, assignment, limits)
        notes = {"withheld": "", "look": []}
        if not reason:
            notes = json.loads((folder / "notes.json").read_text())
    seconds = time.monotonic() - started
    return Outcome(reason or notes["withheld"], notes["look"], seconds)


def prepare(folder: Path, source: Path, limits: dict, unsafe: bool) -> None:
    """Write what the run's nbgrader and kernel read."""
    (folder / "k").mkdir()
    (folder / "kernels" / "aigc").mkdir(parents=True)
    data = [str(path) for path in sorted(source.iterdir()) if path.suffix != ".ipynb"]
    (folder / "settings.json").write_text(json.dumps(settings(folder, data, limits)))
    start = [sys.executable, str(Path(sandbox.__file__)), str(folder / "settings.json")]
    if unsafe:
        start = [sys.executable, "-m"]
    argv = [*start, "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python", "language": "python"}
    spec["interrupt_mode"] = "message"
    (folder / "kernels" / "aigc" / "kernel.json").write_text(json.dumps(spec))


def autograde(folder: Path, course: Path, student: str, assignment: str, limits: dict) -> str:
    """Run nbgrader's autograde: why there is no score, or ""."""
    seconds = limits["total"] + 180
    here = {"AIGC_JOB": str(folder), "JUPYTER_PATH": str(folder)}
    here["JUPYTER_RUNTIME_DIR"] = str(folder / "k")
    line = ["autograde", assignment, "--force", f"--student={student}"]
    arguments = (folder, course, line, environment(course, **here))
    process = FORKS.Process(target=_nbgrader, args=arguments)
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()  # its kernel dies with it
        process.join()
        return f"nbgrader did not end within {seconds:g} seconds"
    if process.exitcode == 0 and (folder / "notes.json").exists():
        return ""
    broke, running = folder / "reason", folder / "cell"
    where = running.read_text(encoding="utf-8") if running.exists() else "before the first cell"
    if broke.exists() and (reason := broke.read_text(encoding="utf-8").strip()):
        return f"{where}: stopped: {reason[:300]}"
    return why(
        (folder / "log").read_text(encoding="utf-8", errors="replace"), where, limits["cell"]
    )


def _nbgrader(*arguments: Any) -> None:
    from tools.grading import autograde  # the fork server has it, this process need not

    autograde.main(*arguments)


def why(said: str, where: str, seconds: float) -> str:
    """The reason of a failure, from nbgrader's log and the cell that ran, in one sentence."""
    if "DeadKernelError" in said:
        return f"{where}: the kernel died (a crash, os._exit, or one process took too much memory)"
    if "CellTimeoutError" in said or "unresponsive" in said:
        limit = f"within {seconds:g} seconds, the most that one cell may take"
        return f"{where}: did not end {limit}, and could not be interrupted"
    lines = [line.strip() for line in said.splitlines() if "Error" in line or "ERROR" in line]
    return f"nbgrader failed: {(lines or ['no reason given'])[-1][:300]}"
