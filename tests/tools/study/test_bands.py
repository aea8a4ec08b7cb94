import math

import pytest
from nbformat import v4

from tools.study import bands, notebooks

LIBRARY = """
def band(claim, value, low, high, *, wrong=None):
    print(f"{claim}: within [{low}, {high}]")
    return value
"""


@pytest.fixture
def library(course):
    """A library with bands, beside the course's chapter."""
    (course.root / "aigc_lib").mkdir()
    (course.root / "aigc_lib" / "__init__.py").touch()
    (course.root / "aigc_lib" / "check.py").write_text(LIBRARY)
    return course


def test_bands_are_noted_while_a_chapter_runs_and_the_chapter_does_not_see_it(library):
    sources = "from aigc_lib import check", "check.band('loss', 1.5, 1, 2, wrong={'half': 2.5})"
    last = "try:\n    check.band('bits', 3, 1, 2)\nfinally:\n    print(len(dir()))"
    nb = v4.new_notebook(cells=[v4.new_code_cell(source) for source in (*sources, last)])
    notebooks.execute(nb, library.root / "chapters", library.root, bar=False)
    assert [cell.execution_count for cell in nb.cells] == [1, 2, 3]
    assert nb.cells[1].outputs[0].text == "loss: within [1, 2]\n"
    clean = notebooks.normalise(nb, 1)
    assert clean.metadata.aigc.bands == [
        ["loss", 1.5, 1.0, 2.0, {"half": 2.5}],
        ["bits", 3.0, 1.0, 2.0, {}],
    ]
    assert notebooks.normalise(clean, 1) == clean


def test_a_chapter_without_bands_has_none(course):
    nb = v4.new_notebook(cells=[v4.new_code_cell("1")])
    notebooks.execute(nb, course.root / "chapters", course.root, bar=False)
    assert "bands" not in notebooks.normalise(nb, 1).metadata.aigc


def test_the_table_names_the_nearest_wrong_alternative():
    others = {"far": -5.0, "half": 2.25, "untrained": 0.0, "diverged": math.nan}
    found = [["loss", 1.5, 1.0, 2.0, others], ["bits", 3.25, 3.0, 4.0, {}]]
    assert list(bands.rows(found)) == [
        ("loss", "1.5", "1 … 2", "half", "2.25"),
        ("bits", "3.25", "3 … 4", "—", "—"),
    ]
    assert next(bands.rows([["x", 1.0, 0.0, 2.0, {"a": math.nan, "b": 9.0}]]))[3] == "b"


def test_the_table_holds_every_band_of_the_course(capsys):
    assert bands.main() == 0
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert head.count("|") == rule.count("|") == 7
    assert all(row.count("|") == 7 for row in rows)
