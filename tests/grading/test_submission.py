"""What becomes of a student's file before any of it runs."""

import copy
import json
import zipfile

import nbformat
import pytest

from tools import ROOT, Refusal
from tools.grading import source, submission
from tools.grading.source import grade_id, nbgrader
from tools.study import notebooks

NB = notebooks.read(ROOT / "tests" / "grading" / "99_tiny" / "99_tiny.ipynb")


@pytest.fixture
def released():
    """As nbgrader makes it, but for checksums."""
    nb = source.blank(NB)
    for cell in nb.cells:
        cell.source = cell.source.partition(source.HIDDEN[0])[0].strip()
    return nb


@pytest.fixture
def theirs(released):
    nb = copy.deepcopy(released)
    cell(nb, "t1-solution").source = "mine"
    return nb


def cell(nb, name):
    return next(c for c in nb.cells if grade_id(c) == name)


def names(nb):
    return [grade_id(c) for c in nb.cells if grade_id(c)]


def test_answers_are_taken_and_nothing_is_noted(released, theirs):
    nb, notes = submission.compose(released, theirs)
    assert notes == []
    assert cell(nb, "t1-solution").source == "mine"
    assert [c.source for c in nb.cells] == [c.source for c in theirs.cells]


def test_locked_cells_order_and_metadata_are_the_teachers(released, theirs):
    theirs.cells.reverse()
    theirs.metadata["kernelspec"] = {"name": "bash"}
    for c in theirs.cells:
        c.metadata["tags"] = ["skip-execution"]
        if nbgrader(c):
            nbgrader(c).points = 1000
    cell(theirs, "t1-visible").source = "pass"
    theirs.cells.remove(cell(theirs, "t2-hidden"))
    nb, notes = submission.compose(released, theirs)
    assert names(nb) == names(released)
    assert nb.metadata == released.metadata
    for name in names(nb):
        assert cell(nb, name).metadata == cell(released, name).metadata
    assert cell(nb, "t1-visible").source == cell(released, "t1-visible").source
    assert notes == [
        "the locked cell t1-visible was edited and was restored",
        "the cell t2-hidden was missing and was put back",
    ]


def test_cells_of_their_own_stay_where_they_were(released, theirs):
    at = theirs.cells.index(cell(theirs, "t1-solution"))
    own = nbformat.v4.new_code_cell("mine = 2", metadata={"tags": ["demo"]})
    theirs.cells.insert(at + 1, own)
    theirs.cells.insert(0, nbformat.v4.new_code_cell("first"))
    nb, notes = submission.compose(released, theirs)
    assert notes == []
    sources = [c.source for c in nb.cells]
    assert sources[0] == "first"
    assert sources[sources.index("mine") + 1] == "mine = 2"
    assert nb.cells[sources.index("mine = 2")].metadata == {}
    assert len({c.id for c in nb.cells}) == len(nb.cells)
    nbformat.validate(nb)


def test_pictures_pasted_into_a_written_answer_come_along_and_nothing_else_does(released, theirs):
    picture = {"image/png": "aGk="}
    pasted = {"a.png": picture | {"text/html": "<script>"}, "b.png": 3, "c.png": {"image/png": 1}}
    cell(theirs, "t4-written").attachments = pasted
    cell(theirs, "t1-solution").attachments = pasted
    nb, notes = submission.compose(released, theirs)
    assert notes == []
    assert cell(nb, "t4-written").attachments == {"a.png": picture, "c.png": {}}
    assert "attachments" not in cell(nb, "t1-solution")
    cell(theirs, "t4-written").attachments = "x"
    assert "attachments" not in cell(submission.compose(released, theirs)[0], "t4-written")


@pytest.mark.parametrize("with_metadata", [True, False])
def test_a_solution_that_was_split_is_joined(released, theirs, with_metadata):
    first = cell(theirs, "t1-solution")
    second = copy.deepcopy(first)
    first.source, second.source = "def f(x):", "    return x"
    if not with_metadata:
        second.metadata = {}
    theirs.cells.insert(theirs.cells.index(first) + 1, second)
    nb, notes = submission.compose(released, theirs)
    assert cell(nb, "t1-solution").source == "def f(x):\n    return x"
    assert notes == ["the cell t1-solution was split and was joined"]
    assert len(nb.cells) == len(released.cells)


def test_a_syntax_error_is_told_to_the_teacher_and_to_the_student(released, theirs):
    cell(theirs, "t1-solution").source = "x = 1\nif x\n    y = 2"
    nb, notes = submission.compose(released, theirs)
    said = "syntax error in line 2: expected ':'"
    assert notes == [f"t1-solution: {said}"]
    place = nb.cells.index(cell(nb, "t1-solution"))
    assert nb.cells[place + 1].source == f"**The cell above has a {said}.**"
    cell(theirs, "t1-solution").source = "%timeit f(\n"
    assert submission.compose(released, theirs)[1] == []


def test_of_two_cells_with_one_name_the_last_counts(released, theirs):
    second = copy.deepcopy(cell(theirs, "t1-solution"))
    second.source = "second"
    theirs.cells.append(second)
    nb, notes = submission.compose(released, theirs)
    assert cell(nb, "t1-solution").source == "second"
    assert notes == ["two cells are called t1-solution: the last one counts"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"cells": 3, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
        b'{"cells": [{}], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
        b'{"cells": [{"cell_type": "x", "source": ""}], "nbformat": 4, "nbformat_minor": 5}',
        b"[" * 100_000,
        b"\xff\xfe\x00",
        b" " * 21_000_000,
    ],
    ids=range(10),
)
def test_a_broken_file_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "99_tiny.ipynb"
    path.write_bytes(content)
    with pytest.raises(
        Refusal, match=r"^(not a readable notebook: .+|the notebook has more than .+)$"
    ):
        submission.parse(path)


@pytest.mark.filterwarnings("ignore::nbformat.warnings.MissingIDFieldWarning")
def test_an_older_format_is_read(tmp_path):
    path = tmp_path / "99_tiny.ipynb"
    data = json.loads(nbformat.writes(NB))
    data["nbformat_minor"] = 4
    for c in data["cells"]:
        del c["id"]
    path.write_text(json.dumps(data))
    assert names(submission.parse(path)) == names(NB)


@pytest.fixture
def handed_in(tmp_path):
    """Put files into a folder of submissions; returns students with their files, and the rest."""
    folder, unpacked = tmp_path / "in", tmp_path / "out"
    folder.mkdir()

    def discover(*places):
        for place in places:
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text(place)
        found, strange = submission.discover(folder, ["11_a", "20_b"], unpacked)
        assert all(s.path.is_file() for s in found)
        return {(s.student, s.assignment): s.path.read_text() for s in found}, sorted(strange)

    discover.folder = folder
    return discover


def test_both_layouts_are_found_and_the_rest_is_named(handed_in):
    for name in ("eve", "nobody", "a b*"):
        (handed_in.folder / name).mkdir()
    (handed_in.folder / "eve" / "11_a.ipynb").symlink_to("/etc/passwd")
    places = "ada/11_a.ipynb", "ada/11_a/11_a.ipynb", "bo/11_a/11_a.ipynb", "bo/notes.txt"
    found, strange = handed_in(*places, "stray.ipynb")
    assert found == {("ada", "11_a"): places[0], ("bo", "11_a"): places[2]}
    assert [line.partition(":")[0] for line in strange] == [
        *("a b*", "ada/11_a/11_a.ipynb", "bo/notes.txt", "eve/11_a.ipynb", "eve", "nobody"),
        "stray.ipynb",
    ]


@pytest.mark.parametrize(
    ("place", "student"),
    [
        ("ada/11_a (1).ipynb", "ada"),
        ("ada/11_a-1.ipynb", "ada"),
        ("ada/11_a copy.ipynb", "ada"),
        ("ada/Copy of 11_a.ipynb", "ada"),
        ("ada/My work/11_a.ipynb", "ada"),
        ("ada/one/two/11_a.ipynb", "ada"),
        (
            "Ada Lovelace_123_assignsubmission_file/11_a.ipynb",
            "Ada_Lovelace_123_assignsubmission_file",
        ),
        ("lovelaceada_123_456_11_a.ipynb", "lovelaceada"),
        ("lovelaceada_LATE_123_456_11_a-1.ipynb", "lovelaceada"),
        ("Zoe\u0301/11_a.ipynb", "Zo\xe9"),
        ("\u0930\u0935\u093f/11_a.ipynb", "\u0930\u0935\u093f"),
        ("\u674e\u56db/11_a.ipynb", "\u674e\u56db"),
    ],
)
def test_names_and_layouts_that_people_hand_in_are_taken(handed_in, place, student):
    found, strange = handed_in(place)
    assert found == {(student, "11_a"): place}
    assert strange == []


def test_a_zip_is_opened_and_what_is_none_is_named(handed_in):
    (handed_in.folder / "ada").mkdir()
    with zipfile.ZipFile(handed_in.folder / "ada" / "work.zip", "w") as archive:
        archive.writestr("home/../../11_a (2).ipynb", "mine")
        archive.writestr("__MACOSX/._11_a.ipynb", "no")
        archive.writestr("home/data.csv", "no")
    found, strange = handed_in("bo/20_b.zip", "bo/20_b.ipynb")
    assert found == {("ada", "11_a"): "mine", ("bo", "20_b"): "bo/20_b.ipynb"}
    assert len(strange) == 1
    assert strange[0].startswith("bo/20_b.zip: not a readable zip")


def test_what_lies_in_a_wrong_place_is_told_where_it_belongs(handed_in):
    _, strange = handed_in("ada/11_a.ipynb", "canvas/bo_12_34_11_a.ipynb", "All of them.zip")
    assert (
        strange[0]
        == "All of them.zip: not a student's folder; if it is the whole class, unzip it first"
    )
    assert strange[1].endswith("named as by Canvas: move it up, it belongs beside the folders")


def test_of_two_the_released_name_and_the_higher_place_count_and_a_tie_is_told(handed_in):
    places = "ada/11_a.ipynb", "ada/11_a (1).ipynb", "bo/old/11_a.ipynb", "bo/11_a.ipynb"
    found, strange = handed_in(*places, "cy/11_a (1).ipynb", "cy/11_a (2).ipynb", "cy/20_b.ipynb")
    assert found == {
        ("ada", "11_a"): places[0],
        ("bo", "11_a"): places[3],
        ("cy", "20_b"): "cy/20_b.ipynb",
    }
    assert strange == [
        "ada/11_a (1).ipynb: there are two; ada/11_a.ipynb was graded, by its name or place: "
        "remove one if that is wrong",
        "bo/old/11_a.ipynb: there are two; bo/11_a.ipynb was graded, by its name or place: "
        "remove one if that is wrong",
        "cy: 11_a (1).ipynb, 11_a (2).ipynb: which one is 11_a? None of them was graded",
    ]


def test_two_folders_of_one_student_are_told(handed_in):
    found, strange = handed_in("a b/11_a.ipynb", "a_b/11_a.ipynb")
    assert list(found) == [("a_b", "11_a")]
    assert strange == ["a_b: as a_b the same student as a b"]


def test_another_notebook_is_no_submission(released):
    theirs = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# 11. The chapter")])
    with pytest.raises(Refusal, match="none of the assignment's cells is in it"):
        submission.compose(released, theirs)


@pytest.mark.parametrize("make", [lambda p: p / "none", lambda p: p], ids=["missing", "empty"])
def test_nothing_to_grade_is_explained(make, tmp_path):
    with pytest.raises(Refusal, match="one folder per student"):
        submission.discover(make(tmp_path), ["11_a"], tmp_path / "out")


SUSPICIOUS = {
    "import os": "import os",
    "from builtins import print": "import builtins",
    "get_ipython()": "get_ipython",
    "grading.answer = print": "grading.answer = …",
    "torch.Tensor.tolist = print": "torch.Tensor.tolist = …",
    "grading = 3": "grading = …",
    "class A(torch.Tensor): pass": "class …(Tensor)",
    "class A:\n    def __eq__(self, other): return True": "def __eq__",
    "setattr(grading, 'answer', print)": "setattr",
    "In[-1]": "In",
    "(lambda: 0).__globals__": ".__globals__",
    "%run x": "a magic or a shell command",
}


@pytest.mark.parametrize("code", SUSPICIOUS)
def test_what_no_solution_needs_is_told(released, code):
    cell(released, "t1-solution").source = code
    notes = submission.suspicious(released)
    assert [n.partition(": ")[2].removeprefix("uses ") for n in notes] == [SUSPICIOUS[code]]


def test_honest_code_is_not_suspected(released):
    cell(released, "t1-solution").source = (
        "import math\nfrom torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.grading = torch.zeros(3)\n"
        "    def forward(self, x):\n        y = x.clone()\n        y[0] = 1\n        return y\n"
    )
    assert submission.suspicious(released) == []
    assert submission.suspicious(NB) == []
