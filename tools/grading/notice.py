"""What a visible test prints in the released notebook when it passes: that hidden ones remain."""

from itertools import pairwise
from typing import Any

from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor

from tools.grading.source import grade_id, labels, nbgrader, role

SAID = "{}: the visible test passes, for {:g} of {:g} points. The hidden test below, for the other "
SAID += "{:g}, is run when you have handed in."


class Remaining(NbGraderPreprocessor):
    """Let each visible test that a hidden one follows end with a line that it prints.

    It comes after the gradebook has taken the tests: those that grade have no such line.
    """

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        """Add the lines."""
        tests, names = [c for c in nb.cells if role(c) in ("visible", "hidden")], labels(nb)
        for cell, after in pairwise(tests):
            if (role(cell), role(after)) == ("visible", "hidden"):
                name = names.get(grade_id(cell), "This task").partition(".")[0]
                seen, rest = nbgrader(cell).points, nbgrader(after).points
                cell.source += f"\nprint({SAID.format(name, seen, seen + rest, rest)!r})"
        return nb, resources
