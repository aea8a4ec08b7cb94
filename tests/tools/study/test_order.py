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


def sorted_names(*names):
    """The names of tests, each with its file before the colons, as the plugin sorts them."""
    items = [SimpleNamespace(path=ROOT / name.split("::")[0], name=name) for name in names]
    order.pytest_collection_modifyitems(items)
    return [item.name for item in items]


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Put seconds into the table."""
    monkeypatch.setattr(order, "TABLE", tmp_path / "seconds.json")
    return lambda **seconds: order.TABLE.write_text(
        json.dumps({f"tests/{name.replace('_', '/')}.py": own for name, own in seconds.items()})
    )


def test_files_that_take_long_come_first_and_tests_keep_their_order(table):
    table(b=9, c=90, gone=5)
    names = ["a.py::1", "a.py::2", "b.py::2", "b.py::1", "c.py::1", "d.py::1"]
    found = sorted_names(*(f"tests/{name}" for name in names), "/else/where.py::1")
    names = ["c.py::1", "b.py::2", "b.py::1", "a.py::1", "a.py::2", "d.py::1"]
    assert [name for name in found if "else" not in name] == [f"tests/{name}" for name in names]


def test_a_folder_that_shares_something_runs_on_one_core_and_counts_as_one(table):
    table(site_a=5, site_b=6, c=10)
    names = ["tests/c.py::1", "tests/site/a.py::1", "tests/d.py::1", "tests/site/b.py::1"]
    assert sorted_names(*names) == [names[1], names[3], names[0], names[2]]
    assert order.scope("tests/site/b.py::test[a::b]") == order.scope("tests/site/a.py")
    assert order.scope("tests/c.py::test[a::b]") == "tests/c.py"


def test_xdist_takes_it_only_by_file(monkeypatch):
    monkeypatch.setattr(order, "Scheduler", lambda config, log: "ours")
    for dist, expected in (("loadfile", "ours"), ("load", None)):
        config = SimpleNamespace(option=SimpleNamespace(dist=dist))
        assert order.pytest_xdist_make_scheduler(config, None) == expected


def test_notebooks_are_sorted_by_the_manifest():
    chapters = sorted(manifest.load().chapters, key=lambda chapter: chapter.seconds)
    items = [SimpleNamespace(path=chapter.notebook()) for chapter in chapters]
    order.pytest_collection_modifyitems(items)
    seconds = {chapter.notebook(): chapter.seconds for chapter in chapters}
    found = [seconds[item.path] for item in items]
    assert found == sorted(seconds.values(), reverse=True) != list(seconds.values())


def test_without_a_table_files_keep_together(table):
    assert sorted_names("tests/b.py::1", "tests/a.py::1", "tests/b.py::2") == [
        "tests/a.py::1",
        "tests/b.py::1",
        "tests/b.py::2",
    ]


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
