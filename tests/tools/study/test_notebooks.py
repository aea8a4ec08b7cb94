import os

import pytest
from nbformat import v4

from tools import Refusal, write_file
from tools.study import notebooks


def bar(text):
    return v4.new_output("stream", name="stderr", text=text)


def test_the_hash_depends_on_code_and_nothing_else(good):
    before = notebooks.code_hash(good)
    good.cells[0].source += "more words"
    good.cells[4].outputs = [v4.new_output("stream", text="x")]
    good.cells[4].metadata["tags"] = ["new"]
    assert notebooks.code_hash(good) == before
    good.cells[4].source += " "
    assert notebooks.code_hash(good) != before


def test_the_hash_sees_where_one_cell_ends_and_the_next_begins():
    one = v4.new_notebook(cells=[v4.new_code_cell("a"), v4.new_code_cell("bc")])
    other = v4.new_notebook(cells=[v4.new_code_cell("ab"), v4.new_code_cell("c")])
    assert notebooks.code_hash(one) != notebooks.code_hash(other)


def test_normalise_keeps_what_is_committed_and_drops_the_rest(good):
    cell = good.cells[11]
    cell.metadata.update(collapsed=True, tags=["hide-input"], execution={"iopub.status.busy": "1"})
    cell.outputs = [
        v4.new_output("stream", name="stdout", text="a\n"),
        bar("\r 33%|███ | 1/3 [00:00<00:01, 2.0it/s]"),
        bar("\rtrain: 100%|█| 3/3 [00:00<00:00]\n\x1b[A7it [00:01, 6.1it/s]"),
        v4.new_output("stream", name="stdout", text="b\n"),
        v4.new_output("display_data", {"text/plain": "x"}, metadata={"needs": "light"}),
    ]
    good.metadata["widgets"] = {}
    clean = notebooks.normalise(good, 1.234)
    assert [cell.id for cell in clean.cells] == [f"cell-{i:03d}" for i in range(len(good.cells))]
    assert clean.cells[11].metadata == {"tags": ["hide-input"], "jupyter": {"source_hidden": True}}
    assert clean.cells[11].outputs == [
        v4.new_output("stream", name="stdout", text="a\nb\n"),
        v4.new_output("display_data", {"text/plain": "x"}),
    ]
    hidden = {"source_hidden": True, "outputs_hidden": True}
    assert clean.cells[17].metadata == {"tags": ["hide-cell"], "jupyter": hidden}
    assert clean.metadata == {
        "aigc": {"code_hash": notebooks.code_hash(good), "seconds": 1.2},
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def test_normalise_numbers_the_figures(good):
    for place, text in ((4, "**Figure 7.9.** Two.\n\n**Figure.** x"), (2, "**Figure.** One.")):
        good.cells.insert(place, v4.new_markdown_cell(text))
    good.cells.append(v4.new_markdown_cell("**Figures** and **Figure.** within."))
    clean = notebooks.normalise(good, 1)
    captions = [cell.source for cell in clean.cells if "**Figure" in cell.source]
    assert captions == [
        "**Figure 0.1.** One.",
        "**Figure 0.2.** Two.\n\n**Figure.** x",
        "**Figures** and **Figure.** within.",
    ]


def test_normalise_keeps_what_must_be_refused(good):
    good.cells[11].outputs = [bar("Warning: 50% of it\n"), bar("10%|█ | 1/10 [00:00<00:01]")]
    good.cells[7].outputs = [bar("10%|█ | 1/10 [00:00<00:01]")]  # a proof cell may show no bar
    clean = notebooks.normalise(good, 1)
    assert clean.cells[11].outputs == [bar("Warning: 50% of it")]
    assert clean.cells[7].outputs == good.cells[7].outputs


def test_normalising_twice_changes_nothing(good):
    once = notebooks.normalise(good, 1)
    assert notebooks.normalise(once, 1) == once


def test_the_tier_is_set_in_the_tagged_cell_alone(good):
    good.cells.insert(5, v4.new_code_cell('RUN = "minute"'))
    notebooks.set_tier(good, "coffee")
    assert [cell.source for cell in good.cells[5:7]] == ['RUN = "minute"', 'RUN = "coffee"']


def test_an_unknown_tier_is_refused(good):
    with pytest.raises(Refusal, match="minute, coffee, gpu"):
        notebooks.set_tier(good, "hour")


def test_a_chapter_without_tiers_has_only_the_shortest(good):
    good.cells[5].source = "run = 1"
    notebooks.set_tier(good, "minute")
    with pytest.raises(Refusal, match="no tier 'coffee'"):
        notebooks.set_tier(good, "coffee")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cells": 1}', '{"nbformat": 4}'])
def test_what_is_no_notebook_is_refused(tmp_path, text):
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(Refusal, match="not a readable notebook"):
        notebooks.read(tmp_path / "x.ipynb")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "no space")

    path = tmp_path / "file"
    write_file(path, b"old")
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_executing_fills_outputs_in_place_on_one_thread_with_the_library_of_its_tree(refreshed):
    nb = refreshed.read()
    folder = refreshed.root / "chapters"
    assert nb.cells[11].outputs[0].text == f"before\nafter minute\n{folder} 1 of this tree\n"
    assert [cell.execution_count for cell in nb.cells if cell.cell_type == "code"] == [*range(1, 7)]
    assert "image/png" in nb.cells[13].outputs[-1].data
    assert list(folder.iterdir()) == [refreshed.chapter]


LATE = "import IPython\nshell = IPython.get_ipython()\n"
LATE += "late = (ValueError, ValueError('why'), None)\n"
LATE += "shell.events.register('post_execute', lambda: shell.showtraceback(late))"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ValueError('why')", r"why[^$]*cell 3 \(raise ValueError\('why'\)\) failed: Value"),
        (LATE, r"why[^$]*cell 3 \(import IPython\) failed: ValueError"),
        ("import os; os._exit(3)", "cell 3.*the kernel died"),
    ],
)
def test_a_cell_that_fails_is_named_and_ends_the_run(course, source, message):
    nb = course.write_cells("print(1)", "raise ValueError('announced')", source, "print(2)")
    nb.cells[1].metadata["tags"] = ["raises-exception"]
    with pytest.raises(Refusal, match=message):
        notebooks.execute(nb, course.root)
    assert nb.cells[0].outputs
    assert nb.cells[1].outputs[0].evalue == "announced"
    assert not nb.cells[3].outputs


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such sockets")
def test_sockets_of_kernels_have_short_names_whatever_tmpdir_says(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(notebooks.tempfile, "tempdir", str(long))
    monkeypatch.setattr(notebooks, "_socket_folder", notebooks._socket_folder.__wrapped__)
    assert len(notebooks.channels()["ip"]) < 60
