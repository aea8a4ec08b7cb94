import pytest
from nbformat import v4

from tools import Refusal
from tools.study import manifest, notebooks, reading

WORDS = "word " * 130  # a minute
EQUATION = "\n\n$$\nx = 1\n$$ (eq-one)\n\n"


def markdown(text):
    return v4.new_markdown_cell(text)


def code(text, *tags, figures=0):
    picture = v4.new_output("display_data", {"image/png": "AA=="})
    return v4.new_code_cell(text, metadata={"tags": list(tags)}, outputs=[picture] * figures)


def notebook(*cells):
    return v4.new_notebook(cells=list(cells))


@pytest.mark.parametrize(
    ("cell", "minutes"),
    [
        (markdown(WORDS), 1),
        (markdown("$x$ " * 130), 1),
        (markdown(WORDS + EQUATION), 2.5),
        (markdown(EQUATION * 2 + WORDS), 4),
        (markdown("$$\n" + WORDS + "\n$$ (eq-wide)"), 1.5),
        (markdown(":::{exercise} Sides (7 minutes)\n:label: ex-sides\n\n" + WORDS + "\n:::"), 8),
        (markdown(":::{exercise} Sides (20 minutes, open)\n:label: ex-sides\n:::"), 20),
        (markdown(":::{solution} ex-sides\n:class: dropdown\n" + WORDS + EQUATION + ":::"), 0),
        (markdown(":::{dropdown} 中文提要\n" + WORDS + "\n:::"), 0),
        (markdown(":::{note}\n" + WORDS + "\n:::"), 1),
        (markdown("Words.\n\n% " + WORDS), 0),
        (code("a = 1\n\nb = 2\n" * 5), 1),
        (code("a = 1\n" * 10, figures=2), 3),
        (code("a = 1\n" * 10, "hide-input", figures=1), 1),
        (code("# Your turn", "remove-cell"), 0),
        (code("# Solution\n" + "a = 1\n" * 20, "hide-cell", figures=1), 0),
        (v4.new_raw_cell(WORDS), 0),
    ],
)
def test_each_kind_of_cell_has_its_minutes(cell, minutes):
    assert reading.cell_minutes(cell) == pytest.approx(minutes, abs=0.03)


def test_what_goes_deeper_ends_with_the_next_heading_of_its_level():
    cells = ["## A", "### B (deeper)", "b", "#### C", "c", "### D", "d", "## E (deeper)", "### F"]
    cells += ["f", "## G", "### H (deeper) no", "# I"]
    found = [deeper for _, deeper in reading.parts(notebook(*map(markdown, cells)))]
    assert found == [False, True, True, True, True, False, False, True, True, True] + [False] * 3


def test_the_core_path_is_all_but_what_goes_deeper():
    more = markdown("### More (deeper)\n\n" + EQUATION)
    nb = notebook(markdown("## Core\n\n" + 3 * WORDS), more, code("a = 1\n" * 35))
    assert reading.minutes(nb) == (3, 8)
    assert reading.minutes(notebook(markdown("## Core"))) == (1, 1)


def test_headings_of_what_goes_deeper_start_collapsed_in_jupyterlab():
    texts = "# 0. A", "### B (deeper)", "### C", "words (deeper)", "## D (deeper)\n\nWords."
    nb = notebooks.normalise(notebook(*map(markdown, texts)), 1)
    collapsed = [cell.metadata.get("jp-MarkdownHeadingCollapsed") for cell in nb.cells]
    assert collapsed == [None, True, None, None, True]


def test_minutes_are_written_where_they_are_read(course, good):
    good.cells[6].source += EQUATION * 4
    good.cells.insert(9, markdown("### More (deeper)\n\n" + 20 * WORDS))
    course.write(good)
    reading.update(manifest.load(course.root), course.root)
    (chapter,) = manifest.load(course.root).chapters
    assert (chapter.minutes, chapter.minutes_all) == reading.minutes(good)
    assert chapter.minutes_all - chapter.minutes == 20
    text = course.chapter.read_text(encoding="utf-8")
    assert text.count(reading.time_line(chapter)) == 1
    assert f"{chapter.minutes} minutes for the core path, {chapter.minutes_all} with all" in text
    before = course.chapter.stat().st_mtime_ns
    reading.update(manifest.load(course.root), course.root)
    assert course.chapter.stat().st_mtime_ns == before


def test_a_book_without_a_place_for_minutes_is_refused(course):
    book = manifest.load(course.root)
    path = course.root / "book.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("minutes = ", "minutes  = "))
    with pytest.raises(Refusal, match=r"book.toml: chapter '00_start': no line minutes"):
        reading.update(book, course.root)
