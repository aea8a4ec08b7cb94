"""nbgrader's autograde, forked from a process that has imported nbgrader: that takes seconds.

Whoever imports this module imports nbgrader; `job.autograde` lets a fork server do that, once.
"""

import multiprocessing
import os
import sys
from pathlib import Path

from nbgrader.apps.nbgraderapp import NbGraderApp

from tools.grading import canaries, sandbox  # noqa: F401  named by nbgrader_config.py


def main(folder: Path, course: Path, line: list[str], environment: dict[str, str]) -> None:
    """Run one of nbgrader's commands, its log in `folder`; leaves with its exit code."""
    sandbox.die_with_parent()  # that is the fork server, which dies with the grader
    if not multiprocessing.parent_process().is_alive():
        return
    with (folder / "log").open("wb") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(course)
    NbGraderApp.launch_instance(line)
