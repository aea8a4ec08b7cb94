import ast
import difflib
import re
import sys
import sysconfig

import pytest
import torch

from aigc_lib.data import text

BOTH = pytest.mark.parametrize("make", [text.prose, text.code], ids=["prose", "code"])


@pytest.fixture(scope="module", autouse=True)
def _read_once():
    text.prose(), text.code()


def runs_of_eight(words):
    return {" ".join(words[i : i + 8]) for i in range(max(len(words) - 7, 1))}


@BOTH
def test_no_held_out_item_is_nearly_repeated_in_training(make):
    corpus = make()
    split, share = (str.split, 0.0) if make is text.prose else (text.code_words, 0.5)
    known = set()
    for item in corpus.train_items:
        known |= runs_of_eight(split(item))
    for item in corpus.held_out_items:
        found = runs_of_eight(split(item))
        assert len(found & known) <= share * len(found)


def test_no_held_out_function_is_a_training_function_with_few_signs_changed():
    # Another measure, of the whole sequence: those alike in it would share most shingles.
    corpus = text.code()
    train = {tuple(text.code_words(item)) for item in corpus.train_items}
    long = [words for item in corpus.held_out_items if len(words := text.code_words(item)) > 60]
    for words in long[:10]:
        near = [w for w in train if abs(len(w) - len(words)) < 6 and w[:2] == tuple(words[:2])]
        for other in near:
            matcher = difflib.SequenceMatcher(None, words, other, autojunk=False)
            assert matcher.ratio() < 0.97


@BOTH
def test_items_are_distinct_and_parted_by_blank_lines(make):
    corpus = make()
    items = [*corpus.train_items, *corpus.held_out_items]
    assert len(set(items)) == len(items)
    for item in items:
        assert item.isascii()
        assert item == item.strip("\n")
        assert item.strip()
        assert "\n\n" not in item
    assert tuple(corpus.train.split("\n\n")[:-1]) == corpus.train_items
    assert tuple(corpus.held_out.split("\n\n")[:-1]) == corpus.held_out_items
    assert set(corpus.alphabet) == set(corpus.train + corpus.held_out)
    assert list(corpus.alphabet) == sorted(corpus.alphabet)
    assert set(corpus.held_out) <= set(corpus.train)


@pytest.mark.parametrize(
    ("make", "size", "share"),
    [(text.prose, (230_000, 330_000), 0.1), (text.code, (1_300_000, 2_000_000), 0.05)],
    ids=["prose", "code"],
)
def test_sizes(make, size, share):
    corpus = make()
    assert size[0] < len(corpus.train) + len(corpus.held_out) < size[1]
    assert 0.6 * share < len(corpus.held_out) / len(corpus.train) < 1.4 * share
    assert f"Python {sys.version_info[0]}.{sys.version_info[1]}." in corpus.name


@BOTH
def test_a_second_reading_gives_the_same_and_imports_nothing(make, monkeypatch):
    assert make() is make()
    some = list(text._sources())[:40]
    monkeypatch.setattr(text, "_sources", lambda: iter(some))
    first, modules = make.__wrapped__(), set(sys.modules)
    assert make.__wrapped__() == first
    assert set(sys.modules) == modules


def test_every_function_stands_alone_and_fits_its_limits():
    corpus = text.code()
    for item in [*corpus.train_items, *corpus.held_out_items]:
        assert len(item) <= 500
        (function,) = ast.parse(item).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert not function.decorator_list
        assert ast.get_docstring(function) is None


def test_functions_are_read_as_they_stand_there(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        'class A:\n    @property\n    def one(self):\n        """Doc.\n\n        More."""\n'
        "\n        # kept\n        return 1\n\n\x0cdef two(x): return x\n"
        "def three():\n    'doc alone'\n"
        "async def four():\n    def inner():\n        return 4\n    return inner\n"
        'def five():\n    return """\nno\n"""\n'
        "def six():\n    return 'é'\n"
        "if True:\n    def seven(): 'doc'; return 7\n"
        "try:\n    pass\nexcept OSError:\n    def eight(): return 8\n"
        f"def long():\n    def short(): pass\n    return '{'x' * 500}'\n"
    )
    assert list(text._functions(path)) == [
        "def one(self):\n    # kept\n    return 1",
        "def two(x): return x",
        "async def four():\n    def inner():\n        return 4\n    return inner",
        "def eight(): return 8",
        "def short(): pass",
    ]
    path.write_bytes("def f():\n    return 'é'\n".encode("latin-1"))
    assert list(text._functions(path)) == []
    path.write_text("print 'of Python 2'\n")
    assert list(text._functions(path)) == []
    path.write_text("def f():\n    return '\\d'\n")
    assert list(text._functions(path)) == ["def f():\n    return '\\d'"]


def test_the_sources_are_the_standard_librarys_alone():
    names = [str(path) for path in text._sources()]
    assert len(names) > 200
    assert not [
        name for name in names if re.search(r"site-packages|[/\\](tests?|idlelib)[/\\]", name)
    ]


def test_prose_is_prose():
    corpus = text.prose()
    for item in [*corpus.train_items, *corpus.held_out_items]:
        assert "::=" not in item
        assert not item.startswith((" ", ">>>"))
    assert any("statement" in item for item in corpus.held_out_items)


def test_a_python_without_sources_is_refused_with_one_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python.zip"))
    with pytest.raises(
        FileNotFoundError, match=r"expected the standard library's sources in .*zip"
    ):
        text.code.__wrapped__()


def test_a_python_without_its_manual_is_refused_with_one_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(FileNotFoundError, match="expected the manual's text with Python"):
        text.prose.__wrapped__()


def test_shingles_are_the_runs_of_eight_words():
    words = list("abcdefghij")
    assert text.shingles(words) == {tuple("abcdefgh"), tuple("bcdefghi"), tuple("cdefghij")}
    assert text.shingles(words[:8]) == {tuple("abcdefgh")}
    assert text.shingles(words[:3]) == {("a", "b", "c")}
    assert text.code_words("f(x_1) → '9'") == ["f", "(", "x_1", ")", "→", "'", "9", "'"]


def test_windows_are_stretches_of_the_text(generator):
    tokens = torch.arange(100, 140)
    inputs, targets = text.windows(tokens, 64, 7, generator)
    assert inputs.shape == targets.shape == (64, 7)
    assert targets.equal(inputs + 1)
    assert (inputs.diff() == 1).all()
    assert inputs.min() == 100
    assert targets.max() == 139


def test_every_start_is_equally_likely(generator):
    inputs, _ = text.windows(torch.arange(14), 10_000, 4, generator)
    counts = inputs[:, 0].bincount()
    assert len(counts) == 10
    assert ((counts - 1000).abs() < 4 * 1000**0.5).all()


def test_windows_may_be_as_long_as_the_text_allows(generator):
    inputs, targets = text.windows(torch.tensor([3, 1, 2]), 2, 2, generator)
    assert inputs.tolist() == [[3, 1]] * 2
    assert targets.tolist() == [[1, 2]] * 2


def test_the_generator_alone_decides():
    tokens = torch.arange(1000)
    drawn = [text.windows(tokens, 4, 9, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2)]
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


@pytest.mark.parametrize(
    ("shape", "batch", "length", "name"),
    [
        ((3, 4), 1, 1, "tokens"),
        ((9,), 0, 1, "batch"),
        ((9,), 1, 0, "length"),
        ((9,), 1, 9, "length < 9"),
    ],
)
def test_bad_windows_are_refused(shape, batch, length, name, generator, hook_off):
    with pytest.raises(ValueError, match=f"expected {name}"):
        text.windows(torch.zeros(shape, dtype=torch.int64), batch, length, generator)
