import pytest

from tools import ROOT, Refusal
from tools.study import manifest

SECOND = """
[[chapter]]
file = "11_next"
title = "Next"
title_zh = "下一章"
needs = ["00_start"]
seconds = 20
minutes = 40
minutes_all = 70
"""


@pytest.fixture
def book(course):
    """Write a book.toml with two chapters, some text replaced, and load it."""
    (course.root / "chapters" / "11_next.ipynb").touch()
    text = (course.root / "book.toml").read_text(encoding="utf-8") + SECOND

    def load(old="", new=""):
        assert old in text
        (course.root / "book.toml").write_text(text.replace(old, new, 1), encoding="utf-8")
        return manifest.load(course.root)

    return load


def test_a_good_book_is_read(book):
    read = book()
    assert (read.title, read.title_zh, read.authors) == ("A book", "一本书", ("Somebody",))
    assert [chapter.file for chapter in read.chapters] == ["00_start", "11_next"]
    assert read.chapters[1].needs == ("00_start",)
    assert (read.chapters[1].seconds, read.chapters[1].minutes) == (20, 40)
    assert read.chapters[1].minutes_all == 70
    assert read.chapters[1].assignment is None


def test_the_repository_has_a_good_book():
    assert manifest.load(ROOT).chapters


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seconds = 20", "second = 20", "chapter '11_next': unknown key 'second'"),
        ("seconds = 20", "", "chapter '11_next': the key 'seconds' is missing"),
        ("seconds = 20", "seconds = '20'", "chapter '11_next': seconds: expected a positive whole"),
        ("seconds = 20", "seconds = true", "chapter '11_next': seconds: expected a positive whole"),
        ("seconds = 20", "seconds = 0", "chapter '11_next': seconds: expected a positive whole"),
        ('title = "Next"', "title = ''", "chapter '11_next': title: expected a string"),
        ('needs = ["00_start"]', "needs = '00_start'", "needs: expected a list of strings"),
        ('needs = ["00_start"]', "needs = ['01_gone']", "'11_next': needs unknown '01_gone'"),
        ("needs = []", 'needs = ["11_next"]', "circle: 00_start needs 11_next needs 00_start"),
        ("needs = []", 'needs = ["00_start"]', "circle: 00_start needs 00_start"),
        ("11_next", "12_gone", "chapter '12_gone': missing file chapters/12_gone.ipynb"),
        ("11_next", "00_start", "chapter '00_start': duplicate: number 00"),
        ("11_next", "next", "chapter 'next': file: expected two digits"),
        ('file = "11_next"', "", "chapter number 2 in the file: the key 'file' is missing"),
        ("minutes = 40", 'assignment = "11_x"\nminutes = 40', "missing file assignments/11_x/11_x"),
        ('language = "en"', 'langage = "en"', r"[book]: unknown key 'langage'"),
        ('language = "en"', "", "[book]: the key 'language' is missing"),
        ("[book]", "[books]", "unknown table or key 'books'"),
        ("[book]", "x = 1\n[book]", "unknown table or key 'x'"),
        ('title = "Next"', 'title = "Next', "not valid TOML: Illegal character"),
    ],
)
def test_a_fault_is_refused_by_a_message_that_names_it(book, old, new, message):
    with pytest.raises(Refusal) as refusal:
        book(old, new)
    assert str(refusal.value).startswith("book.toml: ")
    assert message in str(refusal.value)


def test_every_notebook_is_known_with_its_seconds(course, book):
    homework = course.root / "assignments" / "11_x" / "11_x.ipynb"
    homework.parent.mkdir(parents=True)
    homework.touch()
    assert manifest.notebooks(book("minutes = 40", 'assignment = "11_x"\nminutes = 40')) == {
        "chapters/00_start.ipynb": 30,
        "chapters/11_next.ipynb": 20,
        "assignments/11_x/11_x.ipynb": 10,
    }


def test_a_missing_book_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"book\.toml: no such file"):
        manifest.load(tmp_path)


@pytest.mark.parametrize("name", ["11", "11_next"])
def test_a_chapter_is_found_by_number_or_file(book, name):
    assert manifest.find(book(), name).title == "Next"


@pytest.mark.parametrize("name", ["99", "1", "11_nex", ""])
def test_an_unknown_chapter_is_refused_with_a_list(book, name):
    with pytest.raises(Refusal, match="00_start, 11_next"):
        manifest.find(book(), name)
