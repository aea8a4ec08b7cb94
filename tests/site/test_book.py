"""Every page in a real browser: a build without warnings says nothing about what a reader sees."""

import nbformat
import pytest
import sample
from browsing import (
    accessibility_faults,
    broken_images,
    equation_faults,
    raw_markup,
    settle,
    shown_equations,
    watch,
)
from equations import in_notebook

from tools import ROOT
from tools.book import api
from tools.study import manifest

pytestmark = pytest.mark.browser

BOOK = manifest.load()
CHAPTERS = [*(chapter.file for chapter in BOOK.chapters), sample.NAME]
OTHERS = ["index", "glossary", "bibliography", "speed", "teach", "grading", *api.pages(ROOT, None)]
SCREENS = {"phone": {"width": 390, "height": 844}, "desktop": {"width": 1300, "height": 900}}
MAX_WEIGHT = 2_000_000  # bytes, without compression
# Beyond the window, and not inside something that scrolls by itself.
TOO_WIDE = """() => document.documentElement.scrollWidth > window.innerWidth + 1"""


def test_all_pages_are_looked_at(course):
    built = {path.stem for path in (course / "_build/html").glob("*.html")}
    assert built == {*CHAPTERS, *OTHERS, "search"}


@pytest.mark.parametrize("name", [*CHAPTERS, *OTHERS])
def test_a_page_reads_well_on_every_screen(name, course, book, axe, browser):
    with browser.new_context(viewport=SCREENS["phone"], reduced_motion="reduce") as context:
        context.set_default_timeout(120_000)
        page = context.new_page()
        trouble, weights = watch(page, book), []
        page.on("response", lambda r: weights.append(int(r.headers.get("content-length", 0))))
        page.goto(f"{book}/{name}.html")
        settle(page)

        if name in CHAPTERS:
            assert shown_equations(page) == in_notebook(course / f"chapters/{name}.ipynb")
        assert equation_faults(page) == []
        assert raw_markup(page, "article") == []
        assert sum(weights) < MAX_WEIGHT
        page.add_script_tag(content=axe)
        for screen in SCREENS.values():
            page.set_viewport_size(screen)
            settle(page)
            assert not page.evaluate(TOO_WIDE), screen
            assert broken_images(page, "article") == []
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.locator(f"html[data-theme={scheme}]").wait_for()
                assert accessibility_faults(page, only_contrast=scheme == "dark") == []
        assert trouble == []


def test_the_first_page_leads_to_every_chapter(book, page):
    page.goto(f"{book}/index.html")
    links = page.locator("article a").evaluate_all(
        "all => all.map(link => (link.pathname ?? new URL(link.href.baseVal, document.baseURI)"
        ".pathname))"
    )
    assert {f"/{name}.html" for name in CHAPTERS} <= set(links)
    on_the_map = page.locator(".course-map a").evaluate_all("all => all.map(a => a.href.baseVal)")
    assert sorted(on_the_map) == sorted(f"{c.file}.html" for c in BOOK.chapters)


@pytest.mark.parametrize(
    ("words", "found"),
    [("ELBO", "20_elbo"), ("注意力", "11_attention"), ("expectations", "00_start_here")],
)
def test_the_search_finds(words, found, book, page):
    trouble = watch(page, book)
    page.goto(f"{book}/search.html?q={words}")
    page.locator("#search-results li a").first.wait_for()
    page.wait_for_function("document.querySelector('#search-results .search-summary')")
    links = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.pathname)")
    assert f"/{found}.html" in links
    assert trouble == []


def test_the_search_does_not_find_what_is_not_there(book, page):
    page.goto(f"{book}/search.html?q=量子色动力学")
    page.get_by_text("did not match any documents").wait_for()
    assert page.locator("#search-results li").count() == 0


def test_a_solution_is_folded_until_it_is_asked_for_by_key(book, page):
    page.goto(f"{book}/{sample.NAME}.html")
    settle(page)
    solution = page.locator(".solution")
    inside = solution.locator("mjx-container").first
    assert not inside.is_visible()
    solution.locator("button.toggle-button").focus()
    page.keyboard.press("Enter")
    inside.wait_for()


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_solution_is_folded(name, book, page):
    trouble = watch(page, book)
    page.goto(f"{book}/{name}.html")
    settle(page)
    assert trouble == []
    open_code = page.locator("div.cell:not(:has(details)) div.cell_input pre")
    texts = open_code.evaluate_all("all => all.map(code => code.textContent)")
    assert [text[:60] for text in texts if text.startswith("# Solution")] == []
    assert page.locator("div.cell:has(details) pre", has_text="# Solution").count() > 0
    titles = page.locator(".solution > .admonition-title")
    assert titles.count() == page.locator(".solution.dropdown").count() > 0


def test_the_keyboard_reaches_content_search_and_next_page(book, page):
    page.goto(f"{book}/00_start_here.html")
    page.keyboard.press("Tab")
    assert "main-content" in page.evaluate("document.activeElement.getAttribute('href')")
    page.keyboard.press("Control+k")
    page.locator("dialog input[type=search], .search-button__wrapper input").first.wait_for()
    page.keyboard.press("Escape")
    page.locator(".prev-next-area a.right-next").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/11_attention.html")


def test_a_term_shows_its_chinese_name_and_leads_to_the_glossary(book, page):
    page.goto(f"{book}/20_elbo.html")
    term = page.locator("a.term[href$='#term-entropy']")
    term.focus()
    tip = term.evaluate("term => getComputedStyle(term, '::after').content")
    assert tip.startswith('"熵 · ')
    term.press("Enter")
    page.wait_for_url("**/glossary.html#term-entropy")
    assert page.locator("#term-entropy").inner_text().startswith("entropy")


def test_a_chapter_has_its_chinese_title_a_notebook_and_buttons_to_copy(course, book, page):
    chapter = BOOK.chapters[0]
    page.goto(f"{book}/{chapter.file}.html")
    assert page.locator("article .subtitle").inner_text() == chapter.title_zh
    link = page.locator("a.btn-download-source-button").get_attribute("href")
    copy = (course / "_build/html" / link).read_text(encoding="utf-8")
    assert copy == chapter.notebook().read_text(encoding="utf-8")
    code = page.locator("div.cell_input div.highlight")
    assert page.locator("div.cell_input button.copybtn").count() == code.count() > 20


def test_figures_are_described_for_those_who_do_not_see_them(book, page):
    page.goto(f"{book}/00_start_here.html")
    figures = page.locator(".cell_output img").evaluate_all("all => all.map(i => i.alt)")
    notebook = nbformat.read(BOOK.chapters[0].notebook(), as_version=4)
    drawn = [
        o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    assert len(figures) == len(drawn)
    assert all(text.startswith("Figure") for text in figures)


def test_a_wide_equation_is_reached_by_tab_and_no_other(book, page):
    page.set_viewport_size(SCREENS["phone"])
    page.goto(f"{book}/20_elbo.html")
    settle(page)
    wide = "m => m.scrollWidth > m.clientWidth"
    equations = page.locator("article mjx-container")
    page.wait_for_function("document.querySelector('mjx-container[tabindex]')")
    reached = equations.evaluate_all("all => all.map(m => m.tabIndex === 0)")
    assert reached == equations.evaluate_all(
        f"all => all.map(m => m.getAttribute('display') === 'true' && ({wide})(m))"
    )
    assert 0 < sum(reached) < len(reached) / 4
    page.set_viewport_size({"width": 3000, "height": 900})
    page.wait_for_function("!document.querySelector('mjx-container[tabindex]')")


def test_a_line_of_text_has_about_seventy_characters(book, page):
    page.goto(f"{book}/index.html")
    text = page.locator("article p").nth(1)
    lines = text.evaluate("""p => {
        const range = document.createRange();
        range.selectNodeContents(p);
        const tops = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
        return p.textContent.length / tops.size;
    }""")
    assert 55 < lines < 90


def test_bad_latex_is_named(book, page):
    page.goto(f"{book}/{sample.NAME}.html")
    settle(page)
    page.evaluate(r"""() => {
        const math = tex => `<span class="math">\\(${tex}\\)</span>`;
        const bad = [String.raw`\left( x`, String.raw`\nonsense x`, String.raw`\frac{1`];
        document.querySelector("article p").innerHTML = "Bad: " + bad.map(math).join(", ");
        return MathJax.typesetPromise();
    }""")
    place = "in: Bad: …, …, \\(\\frac{1\\)"
    assert equation_faults(page) == [
        f"Extra \\left or missing \\right, {place}",
        f"\\nonsense, {place}",
    ]
    assert raw_markup(page, "article") == ["\\frac{"]
