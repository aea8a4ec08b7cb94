import base64

import pytest
from nbformat import v4

from tools import ROOT, Refusal
from tools.study import manifest, readme


def test_tables_and_figure_of_the_repository_are_those_of_the_chapters():
    assert readme.figure(ROOT, manifest.load()).startswith(b"\x89PNG")
    assert readme.stale(ROOT, manifest.load()) == []
    for name in ("README.md", "README.zh.md"):
        assert f"]({readme.FIGURE})" in (ROOT / name).read_text(encoding="utf-8")


def test_the_figure_is_what_the_tagged_cell_drew(course):
    nb = course.read()
    cell = next(cell for cell in nb.cells if "plt.plot" in cell.source)
    cell.metadata["tags"] = ["readme-figure"]
    cell.outputs = [
        v4.new_output("display_data", {"image/png": base64.b64encode(b"picture").decode()})
    ]
    course.write(nb)
    assert readme.stale(course.root, manifest.load(course.root)) == [readme.FIGURE]
    readme.write(course.root, manifest.load(course.root))
    assert (course.root / readme.FIGURE).read_bytes() == b"picture"
    assert readme.stale(course.root, manifest.load(course.root)) == []


def test_both_languages_are_written_and_the_rest_stays(course):
    for name in ("README.md", "README.zh.md"):
        text = "before\n<!-- chapters -->\nold\n<!-- /chapters -->\nafter\n"
        (course.root / name).write_text(text, encoding="utf-8")
    book = manifest.load(course.root)
    assert readme.write(course.root, book) == ["README.md", "README.zh.md"]
    english = (course.root / "README.md").read_text(encoding="utf-8")
    chinese = (course.root / "README.zh.md").read_text(encoding="utf-8")
    assert english.startswith("before\n<!-- chapters -->\n| chapter |")
    assert english.endswith("<!-- /chapters -->\nafter\n")
    assert "Start" in english
    assert "开始" in chinese
    assert readme.write(course.root, book) == []


def test_a_readme_without_the_marks_is_refused(course):
    (course.root / "README.md").write_text("no marks")
    with pytest.raises(Refusal, match=r"README\.md: expected one <!-- chapters -->"):
        readme.stale(course.root, manifest.load(course.root))
