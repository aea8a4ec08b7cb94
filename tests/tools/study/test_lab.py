import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from nbformat import read, v4

from tools import Refusal
from tools.study import lab, manifest


@pytest.fixture
def update(course):
    """Bring the course's study/ up to date; returns the lines about kept chapters."""
    return lambda: lab.update(course.root, manifest.load(course.root))


@pytest.fixture
def copy(course):
    """The learner's copy of the chapter."""
    return course.root / "study" / "00_start.ipynb"


def edit(path, index, text):
    nb = json.loads(path.read_text(encoding="utf-8"))
    nb["cells"][index]["source"] = text
    text = json.dumps(nb, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def run_cells(path):
    """What Jupyter does to a file when its cells are run and it is saved."""
    nb = json.loads(path.read_text(encoding="utf-8"))
    nb["metadata"]["language_info"] = {"name": "python", "version": "3.11.7"}
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            cell["execution_count"] = 7
            cell["metadata"]["scrolled"] = True
    path.write_text(json.dumps(nb), encoding="utf-8")


def test_a_new_and_a_deleted_chapter_are_copied(course, update, copy):
    assert update() == []
    assert copy.read_bytes() == course.chapter.read_bytes()
    copy.unlink()
    assert update() == []
    assert copy.read_bytes() == course.chapter.read_bytes()


def test_what_cells_print_is_left_to_the_reader_and_figures_stay(course, good, update, copy):
    shown = v4.new_output("display_data", {"image/png": "AA=="})
    good.cells[13].outputs = [v4.new_output("stream", text="1.75 bits"), shown]
    course.write(good)
    assert update() == []
    cells = read(copy, as_version=4).cells
    assert [cell.source for cell in cells] == [cell.source for cell in good.cells]
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code if cell.outputs] == [[shown]]
    assert {cell.execution_count for cell in code} == {None}
    before = copy.read_bytes()
    assert update() == []
    assert copy.read_bytes() == before


def test_an_untouched_chapter_follows_the_course(course, update, copy):
    update()
    edit(course.chapter, 0, "# 0. Better")
    assert update() == []
    assert copy.read_bytes() == course.chapter.read_bytes()


def test_running_cells_is_no_change_and_its_outputs_stay_until_there_is_something_new(
    course, update, copy
):
    update()
    run_cells(copy)
    ran = copy.read_bytes()
    assert update() == []
    assert copy.read_bytes() == ran
    edit(course.chapter, 0, "# 0. Better")
    assert update() == []
    assert copy.read_bytes() == course.chapter.read_bytes()


def test_a_changed_chapter_survives_an_update_and_the_learner_is_told(course, update, copy):
    update()
    edit(copy, 4, "my = 'work'")
    mine = copy.read_bytes()
    assert update() == ["study/00_start.ipynb: you have changed it, so it stays as it is."]
    edit(course.chapter, 0, "# 0. Better")
    for _ in range(2):
        (line,) = update()
        assert "newer version: to get it, rename yours" in line
        assert copy.read_bytes() == mine
    copy.rename(copy.with_name("mine.ipynb"))
    assert update() == []
    assert copy.read_bytes() == course.chapter.read_bytes()
    assert copy.with_name("mine.ipynb").read_bytes() == mine


def test_a_cell_turned_into_text_is_a_change(update, copy):
    update()
    nb = json.loads(copy.read_text(encoding="utf-8"))
    nb["cells"][4] = {"cell_type": "markdown", "id": "a", "metadata": {}} | {
        "source": nb["cells"][4]["source"]
    }
    copy.write_text(json.dumps(nb), encoding="utf-8")
    assert len(update()) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b'{"cells": []}'])
def test_what_can_not_be_read_counts_as_changed(course, update, copy, content):
    update()
    copy.write_bytes(content)
    edit(course.chapter, 0, "# 0. Better")
    assert len(update()) == 1
    assert copy.read_bytes() == content


@pytest.mark.parametrize("origin", [None, "", "[]", "{"])
def test_without_its_record_a_copy_that_differs_is_kept(course, update, copy, origin):
    update()
    record = copy.with_name(lab.ORIGIN)
    record.unlink() if origin is None else record.write_text(origin)
    assert update() == []
    edit(course.chapter, 0, "# 0. Better")
    record.unlink() if origin is None else record.write_text(origin)
    assert len(update()) == 1


def test_results_follow_the_course_until_the_learner_makes_them(course, update, copy):
    results = course.root / "chapters" / "results" / "00"
    results.mkdir(parents=True)
    (results / "curve.json").write_text("1")
    update()
    study = copy.parent / "results" / "00"
    assert (study / "curve.json").read_text() == "1"
    (study / "mine.json").write_text("mine")
    (results / "curve.json").write_text("2")
    assert update() == []
    assert (study / "curve.json").read_text() == "2"
    (study / "curve.json").write_text("my own run")
    (line,) = update()
    assert line.startswith("study/results/00/curve.json: you have changed it")
    assert (study / "curve.json").read_text() == "my own run"
    assert (study / "mine.json").read_text() == "mine"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux asks for a display")
def test_a_browser_is_opened_only_where_there_is_a_screen(course, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert "--no-browser" in lab.jupyter(course.root, "")[0]
    monkeypatch.setenv("DISPLAY", ":0")
    assert "--no-browser" not in lab.jupyter(course.root, "")[0]


@pytest.mark.parametrize(("user", "expected"), [(0, True), (1000, False)])
def test_root_is_allowed_only_as_root(course, monkeypatch, user, expected):
    monkeypatch.setattr(os, "geteuid", lambda: user, raising=False)
    assert ("--allow-root" in lab.jupyter(course.root, "")[0]) == expected


def test_the_first_start_opens_the_first_chapter_and_later_ones_what_was_open(course):
    line, _ = lab.jupyter(course.root, "", "00_start.ipynb")
    assert "--LabApp.default_url=/lab/tree/00_start.ipynb" in line
    assert not any("default_url" in word for word in lab.jupyter(course.root, "")[0])


@pytest.mark.parametrize("writable", [True, False])
def test_what_jupyter_keeps_goes_to_the_course_where_home_is_read_only(
    course, monkeypatch, writable
):
    monkeypatch.setattr(os, "access", lambda path, mode: writable)
    monkeypatch.delenv("JUPYTER_DATA_DIR", raising=False)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", "mine")
    _, environment = lab.jupyter(course.root, "")
    place = str(course.root / "build" / "jupyter" / "jupyter_data_dir")
    assert environment.get("JUPYTER_DATA_DIR") == (None if writable else place)
    assert environment["JUPYTER_RUNTIME_DIR"] == "mine"


@pytest.mark.parametrize("port", ["x", "65536", "-1"])
def test_a_bad_port_is_refused(monkeypatch, port):
    monkeypatch.setattr(sys, "argv", ["lab", f"--port={port}"])
    with pytest.raises(Refusal, match=f"PORT is a number below 65536, got '{port}'"):
        lab.main()


def test_the_server_starts_prints_its_address_and_lists_the_chapter(course):
    course.take_tools()
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.study.lab"],
        cwd=course.root,
        env=os.environ | {"JUPYTER_RUNTIME_DIR": str(course.root / "runtime"), "BROWSER": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed = []
    try:
        for line in process.stdout:
            printed.append(line)
            if match := re.search(
                r"http://127\.0\.0\.1:(\d+)/lab/tree/00_start\.ipynb\?(token=\w+)", line
            ):
                break
        else:
            pytest.fail("".join(printed))

        def get(path):
            address = f"http://127.0.0.1:{match[1]}/{path}?{match[2]}"
            while process.poll() is None:
                try:
                    with urllib.request.urlopen(address) as reply:
                        return json.load(reply)
                except urllib.error.URLError:
                    time.sleep(0.1)  # the address is printed just before the server listens
            pytest.fail("the server has ended")

        assert not [line for line in printed if "warn" in line.lower() or line.startswith("[W")]
        assert "version" in get("api")
        assert [file["name"] for file in get("api/contents")["content"]] == ["00_start.ipynb"]
        news = get("lab/api/settings/@jupyterlab/apputils-extension:notification")
        assert news["schema"]["properties"]["fetchNews"]["default"] == "false"
    finally:
        process.terminate()
        process.communicate()
