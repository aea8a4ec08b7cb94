import json
import subprocess

import pytest

from tools import ROOT, Refusal
from tools.study import affected, manifest

TREE = {
    "aigc_lib/__init__.py": "",
    "aigc_lib/leaf.py": "x = 1",
    "aigc_lib/part/__init__.py": "",
    "aigc_lib/part/one.py": "def f():\n    from aigc_lib import leaf",
    "aigc_lib/part/two.py": "from aigc_lib.part import one",
    "aigc_lib/part/lazy.py": "import importlib\nimportlib.import_module('aigc_lib.leaf')",
    "aigc_lib/part/every.py": "import importlib\nimportlib.import_module(f'aigc_lib.part.{x}')",
    "aigc_lib/other.py": '"""Says aigc_lib.leaf, and data.json, in its docstring alone."""',
    "bench/run.py": "PATH = 'bench/data.json'",
    "tests/conftest.py": "from tests import parts",
    "tests/parts.py": "",
    "tests/helper.py": "from aigc_lib.part.two import f",
    "tests/test_house.py": "",
    "tests/test_leaf.py": "import aigc_lib.leaf",
    "tests/part/conftest.py": "",
    "tests/part/test_two.py": "from ..helper import f",
    "tests/part/beside.py": "import bench.run",
    "tests/part/test_beside.py": "import beside",
    "tests/part/test_globs.py": "list(root.glob('*.json'))",
    "tests/kernels/test_kernel.py": "import aigc_lib.leaf",
    "tests/site/test_page.py": "",
}


@pytest.fixture
def root(course):
    """A small course whose sources import one another."""
    for name, text in TREE.items():
        (course.root / name).parent.mkdir(parents=True, exist_ok=True)
        (course.root / name).write_text(text)
    course.write_cells("%matplotlib inline\nfrom aigc_lib.part.two import f", "not python (")
    return course.root


@pytest.fixture
def tests(root):
    """The tests that a change of these files asks for, besides those of the house."""

    def find(*changed):
        found = affected.choose(root, manifest.load(root), list(changed)).tests
        assert "tests/test_house.py" in found
        return {name.removeprefix("tests/") for name in found} - {"test_house.py"}

    return find


def test_a_change_reaches_those_that_import_it_directly_or_not(tests):
    assert tests("aigc_lib/leaf.py") == {"test_leaf.py", "part/test_two.py"}
    assert tests("aigc_lib/part/one.py") == {"part/test_two.py"}
    assert tests("aigc_lib/other.py") == set()


def test_every_way_to_import_is_seen(root):
    needs = affected.needs(root)
    assert needs["aigc_lib/part/one.py"] == {"aigc_lib/__init__.py", "aigc_lib/leaf.py"}
    assert "aigc_lib/leaf.py" in needs["aigc_lib/part/lazy.py"]
    assert "aigc_lib/part/two.py" in needs["aigc_lib/part/every.py"]
    assert "aigc_lib/part/__init__.py" in needs["aigc_lib/part/two.py"]
    assert "aigc_lib/part/two.py" in needs["chapters/00_start.ipynb"]
    assert "tests/helper.py" in needs["tests/part/test_two.py"]
    assert {"tests/conftest.py", "tests/part/conftest.py"} <= needs["tests/part/test_two.py"]
    assert needs["aigc_lib/other.py"] == set()


def test_a_package_and_what_all_tests_share_reach_everything_there(tests):
    assert tests("aigc_lib/__init__.py") >= {"test_leaf.py", "part/test_two.py"}
    everything = {"test_leaf.py", "site/test_page.py"}
    everything |= {f"part/test_{name}.py" for name in ("two", "beside", "globs")}
    assert tests("tests/parts.py") == tests("tests/conftest.py") == everything
    assert tests("tests/part/conftest.py") == {
        name for name in everything if name.startswith("part/")
    }


def test_a_file_reaches_those_that_name_it_or_look_for_its_kind(tests):
    assert tests("bench/data.json") == {"part/test_beside.py", "part/test_globs.py"}
    assert tests("notes.txt") == set()


def test_a_module_that_is_gone_still_reaches_its_importers(root, tests):
    (root / "aigc_lib" / "leaf.py").unlink()
    assert tests("aigc_lib/leaf.py") == {"test_leaf.py", "part/test_two.py"}


def test_a_test_that_changed_is_run(tests):
    assert tests("tests/part/test_two.py") == {"part/test_two.py"}


def test_browser_and_kernels_only_when_their_own_code_changed(root):
    for name, expected in {
        "aigc_lib/leaf.py": (False, False),
        "site/style.css": (True, False),
        "tests/site/test_page.py": (True, False),
        "tools/book/site.py": (True, False),
        "aigc_lib/kernels/norm/kernels.py": (False, True),
        "tests/kernels/test_kernel.py": (False, True),
    }.items():
        choice = affected.choose(root, manifest.load(root), [name])
        assert (choice.browser, choice.kernels) == expected
        assert not any("kernel" in test for test in choice.tests)


def test_notebooks_that_changed_run_and_others_if_there_is_time(root, monkeypatch):
    text = (root / "book.toml").read_text(encoding="utf-8")
    table = text[text.index("[[chapter]]") :]
    cells = json.dumps({"cells": [{"cell_type": "code", "source": ["import aigc_lib.leaf"]}]})
    for number, seconds in ((11, 90), (12, 40), (13, 60), (14, 70), (15, 130)):
        text += table.replace("00_start", f"{number}_x").replace("= 30", f"= {seconds}")
        (root / "chapters" / f"{number}_x.ipynb").write_text(cells)
    (root / "book.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(affected, "num_workers", lambda: 2)
    book = manifest.load(root)
    choice = affected.choose(root, book, ["aigc_lib/leaf.py"])
    # The direct ones come first: 40, 60, 70 = 170 seconds on two cores; with 90 it is too much.
    assert [name[9:11] for name in choice.notebooks] == ["12", "13", "14", "00"]
    assert [name[9:11] for name in choice.too_long] == ["11", "15"]
    changed = ["chapters/15_x.ipynb", "chapters/results/11_x.coffee.safetensors"]
    choice = affected.choose(root, book, changed)
    assert [name[9:11] for name in choice.notebooks] == ["11", "15"]
    said = affected.explained(changed, choice)
    assert "Runs: lint, 1 test files, chapters 11, 15." in said
    assert "chapters 00, 12, 13, 14, browser tests, kernels." in said


def test_what_changed_is_asked_of_git(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=x", "-c", "user.email=x", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def commit(*names):
        for name in names:
            (tmp_path / name).write_text(name)
        git("add", "-A")
        git("commit", "-m", "x")

    git("init", "-b", "main")
    (tmp_path / ".gitignore").write_text("ignored")
    commit("a.py")
    commit("b.py", "中 文.md")
    assert affected.changed(tmp_path) == ["b.py", "中 文.md"]
    (tmp_path / "ignored").touch()
    (tmp_path / "new.py").touch()
    git("mv", "a.py", "c.py")
    assert affected.changed(tmp_path) == ["a.py", "c.py", "new.py"]
    assert affected.changed(tmp_path, "main~1") == ["a.py", "b.py", "c.py", "new.py", "中 文.md"]
    with pytest.raises(Refusal, match="nowhere"):
        affected.changed(tmp_path, "nowhere")


@pytest.fixture(scope="module")
def graph():
    """The graph of this repository."""
    return affected.needs(ROOT, ["references.bib", "book.toml"])


def test_the_graph_of_this_repository_is_what_one_expects(graph):
    reached = affected.reached(graph, ["aigc_lib/models/latent/vae.py"])
    assert reached["tests/models/latent/test_vae.py"] == reached["chapters/21_vae.ipynb"] == 1
    assert not reached.keys() & {"chapters/11_attention.ipynb", "tests/test_train.py"}
    reached = affected.reached(graph, ["book.toml"])
    assert {"tests/test_chapters.py", "tests/test_house.py"} <= reached.keys()
    assert "tests/models/latent/test_vae.py" not in reached
    assert "tests/site/test_book.py" in affected.reached(graph, ["references.bib"])
    reached = affected.reached(graph, ["aigc_lib/device.py"])
    assert {"tests/models/latent/test_vae.py", "chapters/00_start_here.ipynb"} <= reached.keys()


def test_every_test_of_the_library_depends_on_what_it_tests(graph):
    for path in (ROOT / "aigc_lib").rglob("*.py"):
        name = path.relative_to(ROOT / "aigc_lib")
        test = f"tests/{name.with_name(f'test_{path.name}').as_posix()}"
        if test in graph:
            assert test in affected.reached(graph, [f"aigc_lib/{name.as_posix()}"])
