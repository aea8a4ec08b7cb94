"""A small course in a temporary folder, to run commands in, with this repository's tools."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from tools.study import refresh, rules

ROOT = Path(__file__).resolve().parents[2]
BOOK = """
[book]
title = "A book"
title_zh = "一本书"
authors = ["Somebody"]
language = "en"

[[chapter]]
file = "00_start"
title = "Start"
title_zh = "开始"
needs = []
seconds = 30
minutes = 3
minutes_all = 3
"""
GOALS = """## Goals

See.

**Time:** about 30 seconds to run; 3 minutes for the core path, 3 with all that goes deeper."""
PARTS = ("Derivation", "Build", "Train", "Look", "What goes wrong", "At scale", "Exercises")


def tagged(source: str, *tags: str) -> nbformat.NotebookNode:
    """A code cell that carries tags."""
    return v4.new_code_cell(source, metadata={"tags": list(tags)})


def good_chapter() -> nbformat.NotebookNode:
    """A chapter, not yet run, in which nothing is wrong."""
    text = {part: v4.new_markdown_cell(f"## {part}\n\nWords.") for part in PARTS}
    text["Derivation"].source += "\n\n$$\n\\boxed{1 + 1 = 2}\n$$ (eq-sum)"
    cells = [
        v4.new_markdown_cell(f"# 0. Start\n\nOne sentence.\n\n{rules.ELSEWHERE}"),
        v4.new_markdown_cell(GOALS),
        v4.new_markdown_cell(":::{dropdown} 中文提要\n一句话。\n:::"),
        v4.new_markdown_cell("## Setup"),
        v4.new_code_cell("import matplotlib.pyplot as plt\nfrom tqdm import tqdm"),
        tagged('RUN = "minute"', "parameters"),
        text["Derivation"],
        tagged('print("holds:", 1 + 1 == 2)', "nbval-check-output"),
        text["Build"],
        v4.new_markdown_cell("### Match"),
        text["Train"],
        v4.new_code_cell(
            'print("before")\nfor _ in tqdm(range(3)):\n    pass\nprint("after", RUN)'
        ),
        text["Look"],
        v4.new_code_cell('plt.figure(figsize=(2, 2))\nplt.plot([0, 1])\nplt.xlabel("x");'),
        text["What goes wrong"],
        text["At scale"],
        text["Exercises"],
        tagged("# Solution\n6 * 7", "hide-cell"),
        v4.new_markdown_cell("## Sources\n\n- None."),
    ]
    return v4.new_notebook(cells=cells)


class Course:
    """A course with one chapter of its own."""

    def __init__(self, root: Path):
        self.root = root
        self.chapter = root / "chapters" / "00_start.ipynb"
        (root / "book.toml").write_text(BOOK, encoding="utf-8")
        (root / "chapters").mkdir()
        self.write(good_chapter())

    def take_tools(self) -> None:
        """Give it a copy of this repository's machinery, to run commands with."""
        if not (self.root / "tools").exists():
            skip = shutil.ignore_patterns("__py*")
            shutil.copytree(ROOT / "tools", self.root / "tools", ignore=skip)
            for name in ("pyproject.toml", "constraints.txt", "Makefile"):
                shutil.copy(ROOT / name, self.root)

    def write(self, nb: nbformat.NotebookNode) -> None:
        """Make this the chapter."""
        nbformat.write(nb, self.chapter)

    def write_cells(self, *sources: str) -> nbformat.NotebookNode:
        """Make a notebook of these code cells alone the chapter: it breaks rules, but runs fast."""
        nb = v4.new_notebook(cells=[v4.new_code_cell(source) for source in sources])
        self.write(nb)
        return nb

    def read(self) -> nbformat.NotebookNode:
        """The chapter as it is now."""
        return nbformat.read(self.chapter, as_version=4)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Run `python -m` something in the course; its output is text, both streams together."""
        self.take_tools()
        return subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=self.root,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def course(tmp_path: Path) -> Course:
    """A fresh course for one test."""
    return Course(tmp_path)


@pytest.fixture(scope="session")
def refreshed(tmp_path_factory) -> Course:
    """A course, refreshed, in whose chapter nothing is wrong; with a library of its own."""
    course = Course(tmp_path_factory.mktemp("refreshed"))
    nb = good_chapter()
    nb.cells[4].source += "\nimport os\n\nimport aigc_lib"
    nb.cells[11].source += "\nprint(os.getcwd(), os.environ['OMP_NUM_THREADS'], aigc_lib.OWN)"
    nb.cells.insert(14, v4.new_markdown_cell("**Figure.** A line that rises to one."))
    course.write(nb)
    (course.root / "aigc_lib").mkdir()
    (course.root / "aigc_lib" / "__init__.py").write_text("OWN = 'of this tree'")
    (course.root / "README.md").write_text("<!-- chapters -->\n<!-- /chapters -->\n")
    assert refresh.main(["--chapter", "00"], course.root) == 0
    return course


@pytest.fixture
def good() -> nbformat.NotebookNode:
    """A chapter in which nothing is wrong, as if it had been run and refreshed."""
    nb = good_chapter()
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
        if "nbval-check-output" in cell.metadata.get("tags", []):
            cell.outputs = [v4.new_output("stream", name="stdout", text="holds: True\n")]
    return nb
