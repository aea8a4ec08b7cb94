"""Every chapter in JupyterLab with the course's extensions reads well; the shortest is also run."""

import contextlib
from pathlib import Path

import nbformat
import pytest
import sample
from browsing import broken_images, raw_markup
from equations import Equations, in_notebook
from playwright.sync_api import Page, expect

from tools.study import manifest

pytestmark = pytest.mark.browser

BOOK = manifest.load()
CHAPTERS = [*(chapter.file for chapter in BOOK.chapters), sample.NAME]
# Every chapter is run without a browser by `make test`; here the shortest stands for all.
SHORTEST = min(BOOK.chapters, key=lambda chapter: chapter.seconds).file
TEXT = ".jp-MarkdownCell .myst"
COMPLAINTS = f"""() => [...document.querySelectorAll(
    "{TEXT} .text-yellow-600, {TEXT} .text-red-500")].map(
    mark => (mark.closest("[title]")?.title ?? "") + ": " + mark.textContent)"""
NO_BIBLIOGRAPHY = "Citation Not Found"  # JupyterLab shows the key instead


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_reads_well_in_jupyterlab(name, course, lab, page):
    path = course / "chapters" / f"{name}.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    open_notebook(page, lab, name)
    shown, complaints = settled(page, sum(cell.cell_type == "markdown" for cell in cells))

    assert shown == in_notebook(path)
    assert [text for text in complaints if not text.startswith(NO_BIBLIOGRAPHY)] == []
    assert raw_markup(page, TEXT) == []
    assert broken_images(page, ".jp-Notebook") == []


@pytest.mark.parametrize("name", [SHORTEST, sample.NAME])
def test_a_chapter_runs_in_jupyterlab(name, course, lab, page):
    path = course / "chapters" / f"fresh_{name}.ipynb"
    notebook = nbformat.read(course / "chapters" / f"{name}.ipynb", as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)

    open_notebook(page, lab, path.stem)
    page.locator("#jp-bottom-panel").get_by_text("| Idle").wait_for()  # earlier clicks are lost
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    cells = run_and_saved(page, path)

    assert errors(cells) == []
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0


def open_notebook(page: Page, lab: str, name: str) -> None:
    """Open a notebook in a clean workspace and wait until it is there."""
    page.goto(f"{lab}/lab/tree/{name}.ipynb?reset")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()


def settled(page: Page, cells: int) -> tuple[Equations, list[str]]:
    """What the notebook shows once all text cells are there and two seconds change nothing.

    JupyterLab renders cell after cell; a reference to a later one is an error until that is there.
    """
    expect(page.locator(TEXT)).to_have_count(cells, timeout=120_000)
    seen, same = None, 0
    while same < 8:
        every = page.locator(f"{TEXT} .katex").count()
        display = page.locator(f"{TEXT} .katex-display").count()
        now = Equations(display, every - display), page.evaluate(COMPLAINTS)
        seen, same = now, same + 1 if now == seen else 0
        page.wait_for_timeout(250)
    return seen


def run_and_saved(page: Page, path: Path) -> list[nbformat.NotebookNode]:
    """The code cells as saved after the last one has run, or one has failed."""
    for _ in range(400):
        page.keyboard.press("Control+s")
        page.wait_for_timeout(3000)
        with contextlib.suppress(nbformat.reader.NotJSONError):  # caught while it was written
            cells = code_cells(nbformat.read(path, as_version=4))
            if cells[-1].execution_count or errors(cells):
                break
    return cells


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that hold code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def errors(cells: list[nbformat.NotebookNode]) -> list[str]:
    """The exceptions that the cells show."""
    outputs = [output for cell in cells for output in cell.outputs]
    return [f"{o.ename}: {o.evalue}" for o in outputs if o.output_type == "error"]
