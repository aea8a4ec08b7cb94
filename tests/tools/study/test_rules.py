import base64

import pytest
from nbformat import v4

from tools.study import manifest, notebooks, rules

NAMES = {"file": "00_start", "title": "Start", "title_zh": "开始", "needs": ()}
CHAPTER = manifest.Chapter(**NAMES, seconds=30, minutes=3, minutes_all=3)


@pytest.fixture
def faults(good):
    """Change the good chapter, then say what the rules find; refreshed in between if asked."""

    def find(change, stale=False):
        change(good)
        nb = notebooks.normalise(good, 1)
        if stale:
            nb.metadata.aigc.code_hash = "0"
        return [fault for fault in rules.chapter_faults(nb, CHAPTER) if "to read" not in fault]

    return find


def replace(index, old, new):
    def change(nb):
        assert old in nb.cells[index].source
        nb.cells[index].source = nb.cells[index].source.replace(old, new)

    return change


def output(index, kind, *arguments, **fields):
    def change(nb):
        nb.cells[index].outputs = [v4.new_output(kind, *arguments, **fields)]

    return change


def image(size):
    return {"image/png": base64.b64encode(bytes(size)).decode(), "text/plain": "<Figure>"}


def caption(text, before=14):
    """A figure in the cell before, and a Markdown cell behind it."""

    def change(nb):
        output(before - 1, "display_data", image(9))(nb)
        nb.cells.insert(before, v4.new_markdown_cell(text))

    return change


def test_a_good_chapter_has_no_fault(faults):
    assert faults(lambda nb: None) == []


def test_an_image_that_is_too_large_is_a_fault(faults):
    def change(nb):
        caption("**Figure.** One sees nothing in it.")(nb)
        output(13, "display_data", image(150_001))(nb)

    assert ["an image of 150 kB" in fault for fault in faults(change)] == [True]


def test_changed_code_is_stale(faults):
    assert faults(lambda nb: None, stale=True) == [
        "the code has changed since it was run: make refresh CHAPTER=00"
    ]


def test_more_seconds_than_the_manifest_allows_are_a_fault(good):
    nb = notebooks.normalise(good, 31)
    assert rules.chapter_faults(nb, CHAPTER) == ["took 31 s when refreshed, book.toml allows 30"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replace(4, "\n", "\n" * 40), "cell 5 (import matplotlib.pyplot as plt): 41 lines, at"),
        (replace(4, "import matplotlib.pyplot as plt\nfrom tqdm import tqdm", " "), "empty code"),
        (lambda nb: nb.cells[13].metadata.update(tags=["hide-celll"]), "unknown tag 'hide-celll'"),
        (caption("**Figure.** One sees nothing in it.", 14), ""),
        (output(13, "display_data", image(9)), "a figure, but the next cell is no caption"),
        (caption("Figure 0.1. One sees nothing in it."), "a figure, but the next cell is no"),
        (caption("**Figure.** Nothing."), "expected a caption of one paragraph in whole sentences"),
        (caption("**Figure.** One sees nothing in it"), "expected a caption of one paragraph"),
        (caption("**Figure.** One sees nothing.\n\nIn it."), "expected a caption of one paragraph"),
        (
            lambda nb: nb.cells.insert(
                9, v4.new_markdown_cell("**Figure.** It is not there at all.")
            ),
            "cell 10 (**Figure 0.1.** It is not there at all.): a caption, but the cell before",
        ),
        (output(13, "display_data", {"text/html": "x"}), "an output of type text/html"),
        (output(13, "stream", name="stderr", text="careful"), "wrote to stderr: careful"),
        (output(13, "error", ename="E", evalue="why"), "an error is stored: E: why"),
        (output(13, "stream", text="<f at 0x7f00aa11>"), "prints a memory address"),
        (output(13, "display_data", {"text/plain": "<f at 0x7f00aa11>"}), "a memory address"),
        (lambda nb: nb.cells[8].update(source="## Build\n" + "x" * 1_500_000), "1.5 are allowed"),
        (lambda nb: nb.cells[13].update(execution_count=9), "counts are [1, 2, 3, 4, 9, 6]"),
        (lambda nb: nb.cells[13].update(execution_count=None), "counts are [1, 2, 3, 4, None, 6]"),
        (replace(0, "# 0. Start", "# Start"), "the first line is not '# 0. Start'"),
        (replace(1, "30 seconds", "31 seconds"), "the goals have no line '**Time:** about 30"),
        (replace(1, "3 minutes", "6 minutes"), "the goals have no line '**Time:** about 30"),
        (replace(0, "% If", "If"), "the first cell has no line '% If you can read this line"),
        (replace(2, "中文提要", "Summary"), "'中文提要' stands 0 times"),
        (replace(9, "### Match", "## Match"), "'### Match' stands 0 times"),
        (replace(15, "## At scale", "```\n## At scale\n```"), "'## At scale' stands 0 times"),
        (
            lambda nb: nb.cells.insert(15, v4.new_markdown_cell("## Look")),
            "'## Look' stands 2 times",
        ),
        (lambda nb: nb.cells.insert(12, nb.cells.pop(14)), "stands where '## Look' should"),
        (replace(6, r"\boxed{1", r"{1"), ""),
        (replace(8, "Words", r"$\boxed{0}$"), r"cell 9 (## Build): no cell tagged"),
        (replace(6, "Words", r"$\boxed{0}$"), r"cell 7 (## Derivation): no cell tagged"),
        (lambda nb: nb.cells[7].update(metadata={}), "cell 7 (## Derivation): no cell tagged"),
        (lambda nb: nb.cells[7].update(outputs=[]), "check-output, but no output is stored"),
        (caption("**Figure.** One sees nothing in it.", 8), "check-output, but draws a figure"),
        (
            output(7, "execute_result", {"text/plain": "5e-14"}, execution_count=3),
            "shows the value of its last line",
        ),
        (output(7, "stream", name="stderr", text="10%|█ | 1/10 [00:00<"), "wrote to stderr: 10%"),
    ],
)
def test_each_fault_is_found_and_nothing_else(faults, change, message):
    found = faults(change)
    assert len(found) == bool(message)
    assert message in "".join(found)


def test_a_band_that_rejects_nothing_is_a_fault(faults):
    claims = [["bits", 1.0, 0.0, 2.0, {}], ["loss", 1.0, 0.0, 2.0, {"half": 3.0}]]
    (fault,) = faults(lambda nb: nb.metadata.update(bands=claims))
    assert fault == "the band of 'bits' names no wrong alternative that it rejects"


def test_minutes_are_those_that_are_counted_and_the_core_path_is_short(good):
    def found(**minutes):
        return list(rules.paths(good, manifest.Chapter(**NAMES, seconds=30, **minutes)))

    assert found(minutes=3, minutes_all=3) == []
    for wrong in ({"minutes": 3, "minutes_all": 4}, {"minutes": 2, "minutes_all": 3}):
        (fault,) = found(**wrong)
        assert fault.startswith("takes (3, 3) minutes to read")
    good.cells[8].source += " word" * 130 * 88
    assert found(minutes=91, minutes_all=91) == [
        "the core path takes 91 minutes, at most 90 are allowed"
    ]
    good.cells.insert(9, good.cells[8].copy())
    good.cells[8].source = "## Build (deeper)"
    good.cells[9].source = "### Core" + " word" * 130 * 88
    assert found(minutes=3, minutes_all=91) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("Words.\n\n### Late", "a heading that does not begin its cell"),
        ("### First\n\n### Second", "a heading that does not begin its cell"),
        (":::{exercise} Sides\n:::", "an exercise without its '(5 minutes)'"),
        (":::{exercise} Sides (two minutes)\n:::", "an exercise without its '(5 minutes)'"),
    ],
)
def test_headings_and_exercises_can_be_counted(good, source, fault):
    good.cells[15].source = source
    found = [each for each in rules.paths(good, CHAPTER) if "to read" not in each]
    assert len(found) == 1
    assert found[0].endswith(fault)
    good.cells[15].source = f"```\n{source}\n```"
    assert [each for each in rules.paths(good, CHAPTER) if "to read" not in each] == []
