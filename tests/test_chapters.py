"""The committed chapters: listed, run to the end, within their budgets, in their order."""

import pytest

from tools import ROOT
from tools.study import manifest, notebooks, rules

BOOK = manifest.load(ROOT)


def test_every_notebook_is_listed_in_the_manifest():
    found = {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    assert found == {chapter.file for chapter in BOOK.chapters}


@pytest.mark.parametrize("chapter", BOOK.chapters, ids=lambda chapter: chapter.file)
def test_a_chapter_keeps_every_rule(chapter):
    faults = rules.chapter_faults(notebooks.read(chapter.notebook()), chapter)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("chapter", BOOK.chapters, ids=lambda chapter: chapter.file)
def test_a_chapter_is_stored_as_refresh_writes_it(chapter):
    nb = notebooks.read(chapter.notebook())
    seconds = nb.metadata.get("aigc", {}).get("seconds", 0)
    same = notebooks.normalise(nb, seconds) == nb
    assert same, f"not written by make refresh CHAPTER={chapter.number}"
