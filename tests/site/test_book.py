"""The built book: what its pages hold, and what a reader sees of them in a real browser.

Everything that needs the built book stands here, so that one process builds it and opens each page
once.
"""

import functools
import re
import zlib
from html import escape, unescape
from pathlib import Path

import links
import nbformat
import pytest
import sample
from browsing import (
    COLOURS,
    LAYOUT,
    accessibility_faults,
    equation_faults,
    layout_faults,
    raw_markup,
    settle,
    shown_equations,
    thin_out,
    watch,
)
from equations import in_notebook

from tools import ROOT
from tools.book import library, npm
from tools.study import manifest

BOOK = manifest.load()
ENTRIES = library.entries(ROOT)
CHAPTERS = [*(chapter.file for chapter in BOOK.chapters), sample.NAME]
LIBRARY = ["api", *dict.fromkeys(entry.page for entry in ENTRIES)]
OTHERS = ["index", "glossary", "bibliography", "speed", "teach", "grading", *LIBRARY]
DESKTOP, PHONE = {"width": 1300, "height": 900}, {"width": 390, "height": 844}
# The frame around a page is the same on all: menus, search, buttons.
FRAMED = ("index", sample.NAME)
MAX_WEIGHT = 1_000_000  # bytes, as servers send them: what gains by it is compressed


@pytest.fixture(scope="session")
def html(course):
    """A page's HTML by its name."""
    return lambda name: (course / f"_build/html/{name}.html").read_text(encoding="utf-8")


# What the pages hold


def test_the_book_is_built_and_its_place_is_told(course, said):
    index = course / "_build/html/index.html"
    pages = {path.stem for path in index.parent.glob("*.html")}
    assert pages == {*CHAPTERS, *OTHERS, "search"}
    last = said["stdout"].splitlines()[-1]
    assert last.startswith(f"{len(pages) - 1} pages in ")
    assert last.endswith(f": {index}")
    assert (index.parent / "_images/sample.webp").is_file()


def test_every_link_inside_the_book_leads_somewhere(course):
    folder = course / "_build/html"
    pages = links.read(folder)
    assert sum(len(page.links) for page in pages.values()) > 20 * len(pages)
    assert links.dead(folder, pages) == []


def test_numbers_begin_anew_in_each_chapter(html):
    numbers = re.findall(r'caption-number">(\w+\.? \d+)', html(sample.NAME))
    assert numbers == ["Theorem 1", "Fig. 1", "Table 1", "Exercise 1"]
    assert re.findall(r'eqno">(\(\d+\))', html(sample.NAME)) == [f"({n})" for n in range(1, 8)]


def test_an_equation_of_another_chapter_is_linked(html):
    link = r'href="00_start_here.html#equation-eq-gibbs"><[^>]+>Gibbs’ inequality<'
    assert re.search(link, html(sample.NAME))


def test_a_function_and_the_equation_that_it_computes_link_to_each_other(html):
    chapter, label = html("20_elbo"), "equation-eq-gaussian-kl"
    number = re.search(rf'id="{label}">\s*<span class="eqno">\((\d+)\)', chapter)[1]
    _, _, function = html("api-objectives").partition('id="aigc_lib.objectives.elbo.gaussian_kl"')
    derived = rf'<strong>Derived</strong> in <a [^>]*href="20_elbo.html#{label}">'
    assert re.search(rf"{derived}<span[^>]*>chapter 20, equation \({number}\)<", function)
    note = chapter[chapter.index(f'id="{label}"') :].partition("</p>")[0]
    assert "In the library:" in note
    assert 'href="api-objectives.html#aigc_lib.objectives.elbo.gaussian_kl"' in note


def test_a_function_is_shown_with_types_formula_sources_and_code(html):
    entry = next(entry for entry in ENTRIES if entry.name == "gaussian_kl")
    text = html(entry.page).partition(f'id="{entry.anchor}"')[2].partition('<dl class="py')[0]
    head, _, body = text.partition("</dt>")
    head = re.sub(r"\s+", " ", re.sub("<[^>]+>", "", head))
    assert "mu: Float[Tensor, 'B *Z'], " in head
    assert "prior_mu: Float[Tensor, 'B *Z'] | None = None, " in head
    assert "→ Float[Tensor, 'B']" in unescape(head)
    formula = escape(entry.docstring.partition(" =")[0])
    assert re.search(rf'<div class="formula[^>]*>\s*<p>{re.escape(formula)}', body)
    link = 'href="bibliography.html#cite-kingma2014">Kingma and Welling 2014</a>, appendix B'
    assert link in body
    assert "Code: aigc_lib/objectives/elbo.py, line " in body
    assert "def gaussian_kl(" in re.sub("<[^>]+>", "", body)


def test_everything_public_is_shown_and_no_type_of_a_shape(html):
    shown = {
        name
        for page in LIBRARY
        for name in re.findall(r'<dt class="sig sig-object py" id="([^"]+)"', html(page))
    }
    assert shown == {entry.anchor for entry in ENTRIES if entry.docstring}


def test_mathjax_is_the_course_s_own(html):
    if npm.MATHJAX.home(ROOT).is_dir():
        assert 'src="_static/mathjax/startup.js' in html(sample.NAME)


def test_a_figure_has_its_caption(html):
    figure = re.search(r'<figure [^>]*id="figure-99-1">.*?</figure>', html(sample.NAME), re.S)[0]
    assert re.search(r'<img alt="Figure[^>]* src="_images/\w+.(webp|png)"', figure)
    assert "<strong>Figure 99.1.</strong> A single pixel, which is blue, for <span" in figure
    assert html(sample.NAME).count("A single pixel") == 1
    for chapter in BOOK.chapters:
        notebook = nbformat.read(chapter.notebook(), as_version=4)
        captions = [c.source for c in notebook.cells if c.source.startswith("**Figure ")]
        assert html(chapter.file).count("<figcaption>") == len(captions) > 0


def test_figures_are_described_for_those_who_do_not_see_them(html):
    for chapter in BOOK.chapters:
        outputs = html(chapter.file).partition('<div class="cell_output')[2]
        images = re.findall(r'<img alt="([^"]*)"[^>]*src="_images/\w{40}', outputs)
        cells = nbformat.read(chapter.notebook(), as_version=4).cells
        drawn = [o for c in cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
        assert len(images) == len(drawn) > 0
        assert all(text.startswith("Figure") for text in images)


def test_the_bibliography_says_where_a_source_is_used(html):
    text = html("bibliography")
    entry = text[text.index("Auto-encoding variational") :].partition('class="citation"')[0]
    assert 'href="20_elbo.html#sources"' in entry
    assert "Equation 3: " in entry
    assert 'href="api-objectives.html#aigc_lib.objectives.elbo.elbo"' in entry
    assert re.search(r'href="20_elbo.html#equation-eq-three-forms">.*chapter 20, equation', entry)


def test_a_chapter_names_its_assignment(course, html):
    note = re.search('<p class="assignment">.*?</p>', html(sample.NAME), re.S)[0]
    assert 'href="teach.html#assignments"' in note
    assert "What a pixel knows" in note
    assert "100 points, 105 minutes." in note
    assert "What a pixel knows" in html("teach")
    assert not list((course / "_build/html").rglob("assignments*"))  # solutions stay out


def test_a_chapter_has_its_chinese_title_and_its_notebook(course, html):
    for chapter in BOOK.chapters:
        text = html(chapter.file)
        subtitle = re.search('<p class="subtitle">(.*?)</p>', text, re.S)[1]
        assert re.sub("<[^>]+>", "", subtitle) == chapter.title_zh
        copy = re.search(r'href="(_sources/[^"]+\.ipynb)"', text)[1]
        notebook = (course / "_build/html" / copy).read_text(encoding="utf-8")
        assert notebook == chapter.notebook(course).read_text(encoding="utf-8")


# What a reader sees


@pytest.fixture(scope="module")
def watched(tab, book):
    """The tab, and what goes wrong in it and what it asks for."""
    return tab, *watch(tab, book)


@pytest.fixture
def page(watched, book):
    """The tab, in which nothing goes wrong."""
    page, trouble, asked = watched
    page.set_viewport_size(DESKTOP)
    page.emulate_media(color_scheme="light")
    trouble.clear()
    asked.clear()
    yield page
    page.goto("about:blank")
    assert trouble == []


@pytest.mark.browser
@pytest.mark.parametrize("name", [*CHAPTERS, *OTHERS])
def test_a_page_reads_well_on_every_screen(name, course, book, axe, watched, page):
    page.goto(f"{book}/{name}.html")
    settle(page)
    assert equation_faults(page) == []
    assert raw_markup(page, "article") == []
    if name in CHAPTERS:
        assert shown_equations(page) == in_notebook(course / f"chapters/{name}.ipynb")
        assert open_solutions(page) == []
    assert weight(course / "_build/html", watched[2]) < MAX_WEIGHT
    wide = []
    for screen in (DESKTOP, PHONE):
        page.set_viewport_size(screen)
        assert layout_faults(page) == [], screen
        wide.append(page.locator("mjx-container[tabindex='0']").count())
    if name in CHAPTERS[:-1]:
        assert wide[0] < wide[1] < sum(shown_equations(page)) / 4
    thin_out(page)
    page.add_script_tag(content=axe)
    assert accessibility_faults(page, "light", () if name in FRAMED else LAYOUT) == []
    if name in FRAMED:
        assert accessibility_faults(page, "dark", COLOURS) == []
    page.set_viewport_size(DESKTOP)
    assert accessibility_faults(page, "light", frame=name in FRAMED) == []
    assert accessibility_faults(page, "dark", COLOURS, frame=name in FRAMED) == []


def weight(folder: Path, asked: set[str]) -> int:
    """Bytes that a server sends for what a page has asked for."""
    return sum(compressed(folder / path) for path in asked)


@functools.cache
def compressed(path: Path) -> int:
    """The size of a file, packed if that makes it smaller."""
    content = path.read_bytes()
    return min(len(content), len(zlib.compress(content)))


def open_solutions(page) -> list[str]:
    """What of a chapter's solutions is not folded."""
    code = page.locator("div.cell:not(:has(details)) div.cell_input pre")
    texts = code.evaluate_all("all => all.map(code => code.textContent)")
    assert page.locator("div.cell:has(details) pre", has_text="# Solution").count() > 0
    titles = page.locator(".solution > .admonition-title")
    assert titles.count() == page.locator(".solution.dropdown").count() > 0
    return [text[:60] for text in texts if text.startswith("# Solution")]


@pytest.mark.browser
def test_the_front_page_leads_to_every_chapter_in_lines_of_about_seventy_characters(book, page):
    page.goto(f"{book}/index.html")
    found = page.locator("article a").evaluate_all(
        "all => all.map(link => (link.pathname ?? new URL(link.href.baseVal, document.baseURI)"
        ".pathname))"
    )
    assert {f"/{name}.html" for name in CHAPTERS} <= set(found)
    on_the_map = page.locator(".course-map a").evaluate_all("all => all.map(a => a.href.baseVal)")
    assert sorted(on_the_map) == sorted(f"{c.file}.html" for c in BOOK.chapters)
    characters = (
        page.locator("article p")
        .nth(1)
        .evaluate("""p => {
        const range = document.createRange();
        range.selectNodeContents(p);
        const tops = new Set([...range.getClientRects()].map(r => Math.round(r.top)));
        return p.textContent.length / tops.size;
    }""")
    )
    assert 55 < characters < 90


@pytest.mark.browser
def test_the_search_finds_what_is_there_in_two_languages_and_nothing_else(book, page):
    for words, found in (
        ("ELBO", "20_elbo"),
        ("注意力", "11_attention"),
        ("expectations", "00_start_here"),
        ("gaussian_kl", "api-objectives"),
    ):
        page.goto(f"{book}/search.html?q={words}")
        page.locator("#search-results .search-summary").wait_for()
        page.locator("#search-results li a").first.wait_for()
        hits = page.locator("#search-results li a").evaluate_all("all => all.map(a => a.pathname)")
        assert f"/{found}.html" in hits
    page.goto(f"{book}/search.html?q=量子色动力学")
    page.get_by_text("did not match any documents").wait_for()
    assert page.locator("#search-results li").count() == 0


@pytest.mark.browser
def test_a_chapter_answers_to_the_keyboard(book, page):
    page.goto(f"{book}/{sample.NAME}.html")
    settle(page)
    assert page.locator("div.cell_input button.copybtn").count() == 1
    page.keyboard.press("Tab")
    assert "main-content" in page.evaluate("document.activeElement.getAttribute('href')")
    page.keyboard.press("Control+k")
    page.locator("dialog input[type=search], .search-button__wrapper input").first.wait_for()
    page.keyboard.press("Escape")
    inside = page.locator(".solution mjx-container").first
    assert not inside.is_visible()
    page.locator(".solution button.toggle-button").focus()
    page.keyboard.press("Enter")
    inside.wait_for()
    page.locator(".prev-next-area a.right-next").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/glossary.html")


@pytest.mark.browser
def test_what_goes_deeper_can_be_folded_away_for_all_pages(book, page):
    page.goto(f"{book}/{sample.NAME}.html")
    switch = page.get_by_role("button", name="what goes deeper")
    heading, words = page.locator("#further-on-deeper h3"), page.get_by_text("Not needed next.")
    below = page.get_by_text("This is deeper, too.")
    for shown in (True, False):
        assert heading.is_visible()
        assert words.is_visible() == below.is_visible() == shown
        switch.click()
    page.get_by_text("Fold what").wait_for()
    switch.click()
    page.goto(f"{book}/{sample.NAME}.html")
    switch.wait_for()
    assert not words.is_visible()
    page.goto(f"{book}/{sample.NAME}.html#sec-below")
    below.wait_for()
    assert words.is_visible()
    assert page.get_by_text("Fold what").is_visible()


@pytest.mark.browser
def test_a_term_shows_its_chinese_name_and_leads_to_the_glossary(book, page):
    page.goto(f"{book}/{sample.NAME}.html")
    term = page.locator("a.term[href$='#term-cross-entropy']")
    term.focus()
    tip = term.evaluate("term => getComputedStyle(term, '::after').content")
    assert tip.startswith('"交叉熵 · ')
    term.press("Enter")
    page.wait_for_url("**/glossary.html#term-cross-entropy")
    assert page.locator("#term-cross-entropy").inner_text().startswith("cross-entropy")


@pytest.mark.browser
def test_what_is_wrong_with_an_equation_is_noticed(book, page):
    page.set_viewport_size(PHONE)
    page.goto(f"{book}/{sample.NAME}.html")
    assert layout_faults(page) == []
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
    page.evaluate("document.querySelector('article p').style.width = '2000px'")
    assert layout_faults(page) == ["wider than the window"]
