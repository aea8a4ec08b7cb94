import json
from types import SimpleNamespace

import pytest

from tools import ROOT
from tools.study import manifest, order

REPORT = """<testsuites><testsuite>
<testcase classname="tests.tools.study.test_order" name="a" time="3.5"/>
<testcase classname="tests.tools.study.test_order" name="b" time="1.2"/>
<testcase classname="tests.test_house" name="c" time="80"/>
<testcase classname="tests.test_expect" name="d" time="0.1"/>
<testcase classname="" name="tests.gone" time="9"/>
</testsuite></testsuites>"""


def test_files_that_take_long_come_first_and_tests_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(order, "TABLE", tmp_path / "seconds.json")
    order.TABLE.write_text(json.dumps({"tests/b.py": 9, "tests/c.py": 90, "tests/gone.py": 5}))
    names = ["a1", "a2", "b1", "b2", "c1", "d1"]
    items = [SimpleNamespace(path=ROOT / "tests" / f"{name[0]}.py", name=name) for name in names]
    items.append(SimpleNamespace(path=tmp_path / "elsewhere.py", name="e1"))
    order.pytest_collection_modifyitems(items)
    assert [item.name for item in items] == ["c1", "b1", "b2", "a1", "a2", "d1", "e1"]


def test_notebooks_are_sorted_by_the_manifest():
    chapters = sorted(manifest.load().chapters, key=lambda chapter: chapter.seconds)
    items = [SimpleNamespace(path=chapter.notebook()) for chapter in chapters]
    order.pytest_collection_modifyitems(items)
    seconds = {chapter.notebook(): chapter.seconds for chapter in chapters}
    found = [seconds[item.path] for item in items]
    assert found == sorted(seconds.values(), reverse=True) != list(seconds.values())


def test_without_a_table_the_order_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(order, "TABLE", tmp_path / "seconds.json")
    items = [SimpleNamespace(path=ROOT / "tests" / f"{name}.py") for name in "ba"]
    order.pytest_collection_modifyitems(items)
    assert [item.path.stem for item in items] == ["b", "a"]


def test_the_table_is_measured_by_file(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    assert order.measured(tmp_path / "report.xml") == {
        "tests/test_house.py": 80,
        "tests/tools/study/test_order.py": 5,
    }


def test_the_committed_table_can_be_read():
    for path, seconds in json.loads(order.TABLE.read_text()).items():
        assert path.startswith("tests/")
        assert seconds >= order.WORTH


@pytest.mark.parametrize("path", ["tests/test_order.py", "tests/x/test_order.py"])
def test_names_are_paths_from_the_root(path):
    assert order._name(ROOT / path) == path
