import pytest
from nbformat import v4

from tools.study import manifest, rules


def test_a_refreshed_chapter_keeps_every_rule_and_the_table_is_written(course):
    readme = course.root / "README.md"
    readme.write_text("<!-- chapters -->\n<!-- /chapters -->\n")
    assert course.run("tools.study.readme", "--check").returncode == 1
    nb = course.read()
    nb.cells.insert(14, v4.new_markdown_cell("**Figure.** A line that rises to one."))
    course.write(nb)
    done = course.run("tools.study.refresh", "--chapter", "00")
    assert done.returncode == 0, done.stdout
    assert "to mend" not in done.stdout
    (chapter,) = manifest.load(course.root).chapters
    assert rules.chapter_faults(course.read(), chapter) == []
    assert "| [00](chapters/00_start.ipynb) Start | — | about 30 s |" in readme.read_text()
    assert course.run("tools.study.readme", "--check").returncode == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ValueError('why')", "failed: ValueError"),
        ("import warnings; warnings.warn('careful')", "wrote to stderr: "),
    ],
)
def test_a_chapter_that_breaks_a_rule_is_left_as_it_was(course, source, message):
    nb = course.read()
    nb.cells[13].source = source
    course.write(nb)
    before = course.chapter.read_bytes()
    done = course.run("tools.study.refresh")
    assert done.returncode == 1
    assert message in done.stdout
    assert done.stdout.endswith("00_start is as it was.\n")
    assert course.chapter.read_bytes() == before
    assert list(course.chapter.parent.iterdir()) == [course.chapter]
