"""`make formgrade [PORT=8888]`: nbgrader's formgrader in a browser, to mark written answers.

Every submission that has something to be marked is listed under "Manual Grading". `make grade` with
the same SUBMISSIONS then takes the marks into marks/grades.csv and into the feedback.
"""

import argparse
import os
import sys

from tools import Refusal, bootstrap, command
from tools.grading.release import COURSE, environment


def main() -> int:
    """Become a Jupyter server that shows the formgrader."""
    parser = argparse.ArgumentParser(prog="make formgrade", description=__doc__)
    parser.add_argument("--port", default="", help="where to begin to look for a free port")
    port = parser.parse_args().port
    if not (COURSE / "gradebook.db").exists():
        raise Refusal("nothing was graded yet: make grade SUBMISSIONS=…")
    line = [sys.executable, "-m", "jupyter_server", f"--ServerApp.root_dir={COURSE}"]
    line += ["--ServerApp.default_url=/formgrader"]
    # Formulas without network, and nothing of a student's text runs; nbgrader_config.py is not
    # read for these pages.
    line += ["--HTMLExporter.filters=markdown2html=tools.grading.page.markdown2html"]
    if port:
        line.append(f"--ServerApp.port={port}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        line.append("--allow-root")
    os.chdir(COURSE)
    return bootstrap.become(line, environment(COURSE))


if __name__ == "__main__":
    command(main)
