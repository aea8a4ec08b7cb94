"""Every chapter's page in a real browser: a build without warnings says nothing about equations."""

import pytest
import sample
from browsing import broken_images, raw_markup, watch
from equations import Equations, in_notebook

from tools import manifest

pytestmark = pytest.mark.browser

CHAPTERS = [*(chapter.file for chapter in manifest.load().chapters), sample.NAME]
# MathJax prints a command that it does not know as red text and calls it no error.
UNKNOWN = """containers => containers.flatMap(container =>
    [...container.querySelectorAll("mjx-assistive-mml mtext")]
        .map(text => text.textContent).filter(text => text.startsWith("\\\\")))"""


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_reads_well_in_the_book(name, course, book, page):
    trouble = watch(page, book)
    page.goto(f"{book}/{name}.html")
    page.evaluate("() => window.MathJax?.startup.promise")  # a page without math has none
    equations = page.locator("article mjx-container")
    display = page.locator("article mjx-container[display=true]").count()
    shown = Equations(display, equations.count() - display)

    assert shown == in_notebook(course / "chapters" / f"{name}.ipynb")
    assert equations.evaluate_all(UNKNOWN) == []
    assert page.locator("mjx-merror").count() == 0
    assert raw_markup(page, "article") == []
    assert broken_images(page, "article") == []
    assert trouble == []


def test_the_first_page_leads_to_every_chapter(book, page):
    trouble = watch(page, book)
    page.goto(f"{book}/index.html")
    links = page.locator("article a").evaluate_all("all => all.map(link => link.pathname)")

    assert {f"/{name}.html" for name in CHAPTERS} <= set(links)
    assert trouble == []
