"""Chapters in JupyterLab with the course's extensions: they read well; the sample is also run.

Every chapter is run without a browser by `make test`; here the sample stands for all.
"""

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

TEXT = ".jp-MarkdownCell .myst"
SHOWN = f"""() => {{
    const count = selector => document.querySelectorAll("{TEXT} " + selector).length;
    const marks = document.querySelectorAll("{TEXT} .text-yellow-600, {TEXT} .text-red-500");
    return [count(".katex-display"), count(".katex"), [...marks].map(
        mark => (mark.closest("[title]")?.title ?? "") + ": " + mark.textContent)];
}}"""
NO_BIBLIOGRAPHY = "Citation Not Found"  # JupyterLab shows the key instead


@pytest.fixture(scope="module")
def opened(tab, lab):
    """Open a notebook in JupyterLab, in place of the one before, with a kernel or without."""
    folder, address = lab
    sample.put(folder)
    tab.set_viewport_size({"width": 1300, "height": 900})
    tab.goto(f"{address}/lab")
    tab.wait_for_function("window.jupyterapp?.restored")
    tab.evaluate("jupyterapp.restored")

    def run(path: Path, kernel: bool) -> Page:
        tab.evaluate(
            """async ([path, kernel]) => {
                const { commands, serviceManager } = jupyterapp;
                await commands.execute("application:close-all");
                delete serviceManager.sessions.startNew;
                if (!kernel) serviceManager.sessions.startNew = () => new Promise(() => {});
                await commands.execute("docmanager:open", { path });
            }""",
            [str(path.relative_to(folder)), kernel],
        )
        tab.locator(".jp-Notebook .jp-Cell").first.wait_for()
        return tab

    return run


@pytest.mark.parametrize("name", [*(each.file for each in manifest.load().chapters), sample.NAME])
def test_a_chapter_reads_well_in_jupyterlab(name, lab, opened):
    path = lab[0] / f"chapters/{name}.ipynb"
    if name != sample.NAME:
        put_words(manifest.find(manifest.load(), name).notebook(), path)
    cells = nbformat.read(path, as_version=4).cells
    page = opened(path, kernel=False)
    shown, complaints = settled(page, sum(cell.cell_type == "markdown" for cell in cells))

    assert shown == in_notebook(path)
    assert [text for text in complaints if not text.startswith(NO_BIBLIOGRAPHY)] == []
    assert raw_markup(page, TEXT) == []
    assert broken_images(page, ".jp-Notebook") == []


def test_the_sample_runs_in_jupyterlab(lab, opened):
    path = lab[0] / "chapters/fresh.ipynb"
    notebook = nbformat.read(lab[0] / f"chapters/{sample.NAME}.ipynb", as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)

    page = opened(path, kernel=True)
    page.locator("#jp-bottom-panel").get_by_text("| Idle").wait_for()  # earlier clicks are lost
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    cells = run_and_saved(page, path)

    assert errors(cells) == []
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0


def put_words(chapter: Path, path: Path) -> None:
    """Copy a chapter's words in one cell, for with each cell JupyterLab renders all others anew.

    Cells that refer to each other, code and pictures are the sample's part.
    """
    notebook = nbformat.read(chapter, as_version=4)
    words = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    notebook.cells = [nbformat.v4.new_markdown_cell("\n\n".join(words))]
    nbformat.write(notebook, path)


def settled(page: Page, cells: int) -> tuple[Equations, list[str]]:
    """What the notebook shows once all text cells are there and two seconds change nothing.

    JupyterLab renders cell after cell; a reference to a later one is an error until that is there.
    """
    expect(page.locator(TEXT)).to_have_count(cells, timeout=120_000)
    seen, same = None, 0
    while same < 4:
        display, every, complaints = page.evaluate(SHOWN)
        now = Equations(display, every - display), complaints
        seen, same = now, same + 1 if now == seen else 0
        page.wait_for_timeout(500)
    return seen


def run_and_saved(page: Page, path: Path) -> list[nbformat.NotebookNode]:
    """The code cells as saved after the last one has run, or one has failed."""
    for _ in range(400):
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
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
