"""nbgrader's settings; nbgrader finds this file through JUPYTER_CONFIG_PATH.

AIGC_COURSE is the folder of everything generated, AIGC_JOB that of one run of the grader.
"""

import json
import os
from pathlib import Path

from traitlets.config import get_config

c = get_config()
course = os.environ["AIGC_COURSE"]
c.CourseDirectory.root = course
# Graders side by side wait for each other instead of giving up after five seconds.
c.CourseDirectory.db_url = f"sqlite:///{course}/gradebook.db?timeout=120"
c.Exchange.root = course
c.ClearSolutions.begin_solution_delimeter = "### BEGIN SOLUTION"
c.ClearSolutions.end_solution_delimeter = "### END SOLUTION"
c.HTMLExporter.sanitize_html = True  # a student's text runs nothing in a marker's browser
c.HTMLExporter.filters = {"markdown2html": "tools.grading.page.markdown2html"}
c.GenerateAssignment.preprocessors = [
    "nbgrader.preprocessors.IncludeHeaderFooter",
    "nbgrader.preprocessors.LockCells",
    "nbgrader.preprocessors.ClearSolutions",
    "nbgrader.preprocessors.ClearOutput",
    "nbgrader.preprocessors.CheckCellMetadata",
    "nbgrader.preprocessors.ComputeChecksums",
    "nbgrader.preprocessors.SaveCells",
    "tools.grading.notice.Remaining",
    "nbgrader.preprocessors.ClearHiddenTests",
    "nbgrader.preprocessors.ClearMarkScheme",
    "nbgrader.preprocessors.ComputeChecksums",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.GenerateFeedback.exporter_class = "tools.grading.page.Page"
c.GenerateFeedback.preprocessors = [
    "tools.grading.canaries.Discreet",
    "nbgrader.preprocessors.GetGrades",
    "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor",
]
c.Autograde.autograde_preprocessors = [
    "tools.grading.canaries.Insert",
    "tools.grading.canaries.Run",
    "tools.grading.canaries.Judge",
    "nbgrader.preprocessors.IgnorePattern",
    "nbconvert.preprocessors.ClearMetadataPreprocessor",
    "nbgrader.preprocessors.LimitOutput",
    "nbgrader.preprocessors.SaveAutoGrades",
    "nbgrader.preprocessors.AssignLatePenalties",
    "nbgrader.preprocessors.CheckCellMetadata",
]
c.Run.kernel_name = "aigc"  # exists in a run of the grader alone: nowhere else does code run
if job := os.environ.get("AIGC_JOB"):
    c.Run.skip_cells_with_tag = "demo"
    c.Run.shutdown_kernel = "immediate"
    c.Run.startup_timeout = 120
    c.Run.timeout = int(json.loads(Path(job, "settings.json").read_text())["limits"]["cell"])
    c.Run.iopub_timeout = min(20, c.Run.timeout)  # that an interrupted cell may take to end
    c.KernelManager.transport = "ipc"
    c.KernelManager.ip = f"{job}/k/s"
    c.KernelManager.connection_file = f"{job}/k/kernel.json"
