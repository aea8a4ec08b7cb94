"""What `make assignments` gathers, and what it refuses to hand out."""

import copy
import shutil

import nbformat
import pytest

from tools import ROOT, Refusal
from tools.grading import release, source
from tools.grading.source import grade_id
from tools.study import notebooks

PUBLIC = ROOT / "tests" / "grading"
NB = notebooks.read(PUBLIC / "99_tiny" / "99_tiny.ipynb")


@pytest.fixture
def released():
    nb = source.blank(NB)
    for cell in nb.cells:
        cell.source = cell.source.partition(source.HIDDEN[0])[0]
    return nb


def test_a_good_release_has_no_faults(released):
    assert release.leaks(NB, released) == []
    assert release.broken(NB) == []


def test_what_must_not_be_handed_out_is_found(released):
    def fault(change):
        nb = copy.deepcopy(released)
        change(nb)
        return " ".join(release.leaks(NB, nb))

    solution = next(c.source for c in NB.cells if c.id == "t1-solution")
    body = solution.partition(source.SOLUTION[0])[2].partition(source.SOLUTION[1])[0]
    assert "BEGIN SOLUTION and" in fault(lambda nb: nb.cells[0].update(source=body))
    assert "is still in it" in fault(lambda nb: nb.cells[0].update(source=source.HIDDEN[0]))
    assert "missing" in fault(lambda nb: nb.cells.pop())
    place = next(i for i, c in enumerate(NB.cells) if c.id == "t2-solution")
    assert "no place" in fault(lambda nb: nb.cells[place].update(source="def mean(x):\n    pass"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(source=c.source.replace(source.SOLUTION[1], "")), "do not match"),
        (lambda c: c.metadata.nbgrader.update(solution=False), "outside of a solution"),
        (lambda c: c.metadata.nbgrader.update(grade_id="t2-solution"), "there twice"),
    ],
)
def test_a_broken_source_is_named(change, words):
    nb = copy.deepcopy(NB)
    change(next(cell for cell in nb.cells if grade_id(cell) == "t1-solution"))
    assert words in release.broken(nb)[0]


def test_private_assignments_replace_and_extend_the_public_ones(tmp_path, monkeypatch):
    private = tmp_path / "private"
    for name in ("99_tiny", "98_ours"):
        (private / name).mkdir(parents=True)
        nb = copy.deepcopy(NB)
        nb.cells[0].source = f"# Ours, {name}"
        nbformat.write(nb, private / name / f"{name}.ipynb")
    (private / "98_ours" / "data.csv").write_text("1,2\n")
    public = release.sources(tmp_path / "course", PUBLIC)
    monkeypatch.setenv("AIGC_ASSIGNMENTS", str(private))
    both = release.sources(tmp_path / "course", PUBLIC)
    assert set(public) == {"99_tiny"}
    assert set(both) == {"98_ours", "99_tiny"}
    assert both["99_tiny"] != public["99_tiny"]
    gathered = tmp_path / "course" / "source"
    assert (gathered / "98_ours" / "data.csv").exists()
    assert (
        notebooks.read(gathered / "99_tiny" / "99_tiny.ipynb").cells[0].source == "# Ours, 99_tiny"
    )


@pytest.mark.parametrize("kind", ["missing", "empty", "broken"])
def test_a_wrong_private_folder_is_explained(kind, tmp_path, monkeypatch):
    private = tmp_path / "private"
    if kind != "missing":
        (private / "98_ours").mkdir(parents=True)
    if kind == "broken":
        (private / "98_ours" / "98_ours.ipynb").write_text("{")
    monkeypatch.setenv("AIGC_ASSIGNMENTS", str(private))
    with pytest.raises(Refusal, match=r"AIGC_ASSIGNMENTS|not a readable notebook"):
        release.sources(tmp_path / "course", PUBLIC)
    shutil.rmtree(private, ignore_errors=True)
