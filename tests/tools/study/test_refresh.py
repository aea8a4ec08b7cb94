import pytest

from tools import Refusal
from tools.study import manifest, readme, refresh, rules


def test_a_refreshed_chapter_keeps_every_rule_and_the_table_is_written(refreshed):
    book = manifest.load(refreshed.root)
    assert rules.chapter_faults(refreshed.read(), *book.chapters) == []
    assert readme.stale(refreshed.root, book) == []
    table = (refreshed.root / "README.md").read_text()
    assert "| [00](chapters/00_start.ipynb) Start | — | about 30 s |" in table


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ValueError('why')", "failed: ValueError"),
        ("import warnings; warnings.warn('careful')", "wrote to stderr: "),
    ],
)
def test_a_chapter_that_breaks_a_rule_is_left_as_it_was(course, source, message):
    course.write_cells(source)
    before = course.chapter.read_bytes()
    with pytest.raises(Refusal, match=message) as refusal:
        refresh.main(["--chapter", "00"], course.root)
    assert str(refusal.value).endswith("00_start is as it was.")
    assert course.chapter.read_bytes() == before
    assert list(course.chapter.parent.iterdir()) == [course.chapter]


def test_without_a_name_all_are_refreshed_even_if_one_fails(course, capsys, monkeypatch):
    monkeypatch.setattr(refresh, "num_workers", lambda: 1)
    text = (course.root / "book.toml").read_text(encoding="utf-8")
    table = text[text.index("[[chapter]]") :].replace("00_start", "11_next")
    (course.root / "book.toml").write_text(text + table, encoding="utf-8")
    course.write_cells("raise ValueError('why')")
    course.chapter.rename(course.chapter.with_name("11_next.ipynb"))
    course.write_cells("print('fresh')")
    with pytest.raises(Refusal, match=r"failed: ValueError\n11_next is as it was\.$"):
        refresh.main([], course.root)
    assert course.read().cells[0].outputs[0].text == "fresh\n"
    said = capsys.readouterr().out
    assert "00_start: written, " in said
    assert "still to mend: the first line is not" in said
    assert "11_next: written" not in said
