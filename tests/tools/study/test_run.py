import contextlib
import runpy
import sys

import nbformat
import pytest

from tools import Refusal, command
from tools.study import notebooks, run


def result(course):
    return nbformat.read(course.root / "build" / "run" / "00_start.ipynb", as_version=4)


def test_the_result_is_where_the_command_says_and_the_chapter_is_untouched(course, capsys):
    nb = course.write_cells('RUN = "minute"', "print('after', RUN)")
    nb.cells[0].metadata["tags"] = ["parameters"]
    course.write(nb)
    before = course.chapter.read_bytes()
    assert run.main(["--chapter", "00", "--tier", "coffee"], course.root) == 0
    assert "The result is build/run/00_start.ipynb" in capsys.readouterr().out
    assert result(course).cells[1].outputs[0].text == "after coffee\n"
    assert course.chapter.read_bytes() == before


@pytest.mark.parametrize("tier", ["gpu", "coffee"])
@pytest.mark.parametrize("has_cuda", [True, False])
def test_a_tier_for_gpus_is_refused_where_there_is_none(course, monkeypatch, tier, has_cuda):
    nb = course.write_cells('RUN = "minute"')
    nb.cells[0].metadata["tags"] = ["parameters"]
    course.write(nb)
    monkeypatch.setattr(run, "_has_cuda", lambda: has_cuda)
    monkeypatch.setattr(run.notebooks, "execute", lambda *_: 1.0)
    refused = tier == "gpu" and not has_cuda
    refusal = pytest.raises(Refusal, match="RUN=gpu needs a CUDA device")
    with refusal if refused else contextlib.nullcontext():
        assert run.main(["--chapter", "00", "--tier", tier], course.root) == 0


def test_a_failing_chapter_is_saved_as_far_as_it_ran(course, capsys):
    course.write_cells("print(1)", "raise ValueError('why')", "print(2)")
    with pytest.raises(Refusal, match=r"cell 2 \(raise ValueError\('why'\)\) failed: ValueError$"):
        run.main(["--chapter", "00"], course.root)
    assert "what ran is in build/run/00_start.ipynb" in capsys.readouterr().out
    first, second, third = result(course).cells
    assert first.outputs
    assert second.outputs[0].evalue == "why"
    assert not third.outputs


def test_an_unknown_chapter_is_one_line_and_no_traceback(course, capsys):
    with pytest.raises(SystemExit, match="1"):
        command(lambda: run.main(["--chapter", "99"], course.root))
    said = capsys.readouterr()
    assert said.err == "no chapter '99'; book.toml has: 00_start (CHAPTER=00 is enough)\n"
    assert said.out == ""


def test_what_the_system_refuses_is_one_line_and_no_traceback(course, capsys, monkeypatch):
    monkeypatch.setattr(notebooks, "execute", lambda *arguments: 1.0)
    (course.root / "build").write_text("a file, where a folder is needed")
    with pytest.raises(SystemExit, match="1"):
        command(lambda: run.main(["--chapter", "00"], course.root))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("build/run'")


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", ["run", "refresh"])
def test_the_command_is_a_module(monkeypatch, capsys, name):
    monkeypatch.setattr(sys, "argv", [name, "--chapter", "99"])
    with pytest.raises(SystemExit, match="1"):
        runpy.run_module(f"tools.study.{name}", run_name="__main__")
    assert capsys.readouterr().err.startswith("no chapter '99'")
