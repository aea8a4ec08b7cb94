import os
import re
from collections import Counter
from xml.etree import ElementTree

import pytest

from tools import KERNEL_ENVIRONMENT, ROOT
from tools.study import manifest, suite

GOOD = ["json.tool", "--help"]
BAD = ["json.tool", "/no/such/file"]
PYTEST = ["pytest", "--disable-plugin-autoload", "-p", "no:cacheprovider"]
TESTS = """
import pytest

def test_passes(): pass
def test_fails(): assert 0
@pytest.mark.skip
def test_skipped(): pass
@pytest.mark.xfail
def test_expected(): assert 0
@pytest.fixture
def broken(): raise OSError
def test_error(broken): pass
"""


def test_every_phase_runs_and_the_last_lines_tell_them_apart(capfd):
    phases = [suite.Phase("one", [BAD, GOOD]), suite.Phase("two", [GOOD])]
    assert suite.run(phases, budget=" of 480") == 1
    *_, head, one, two, failed, whole, closing = capfd.readouterr().out.strip().splitlines()
    assert head == "== in all =="
    assert re.fullmatch(r"one +\d+ s   1 passed, 1 failed", one)
    assert re.fullmatch(r"two +\d+ s   1 passed, 0 failed", two)
    assert failed == "FAILED: one"
    assert re.fullmatch(r"\d+ s of 480; \d+% of \d cores used", whole)
    assert re.fullmatch(r"2 passed, 1 failed in \d+\.\d\ds", closing)


def test_success_is_said_in_the_last_lines(capfd):
    assert suite.run([suite.Phase("one", [GOOD]), suite.Phase("two", [GOOD])]) == 0
    *_, passed, _, closing = capfd.readouterr().out.strip().splitlines()
    assert passed == "All passed."
    assert closing.startswith("2 passed, 0 failed in ")


def test_a_phase_has_its_environment():
    ask = ["timeit", "-n1", "-r1", "import os; assert os.environ['X'] == 'y'"]
    assert suite.run([suite.Phase("one", [ask], {"X": "y"})]) == 0
    assert suite.run([suite.Phase("one", [ask])]) == 1


def test_processor_time_of_what_ran_is_counted(capfd, monkeypatch):
    monkeypatch.setattr(suite, "num_workers", lambda: 1)
    busy = "import time\nwhile time.process_time() < 0.4: pass"
    before = suite._used()
    suite.run([suite.Phase("one", [["timeit", "-n1", "-r1", busy]])])
    assert suite._used() - before > 0.39
    share = int(re.search(r"(\d+)% of 1 cores used", capfd.readouterr().out)[1])
    assert share > 0


def test_the_tests_of_a_pytest_are_counted_one_by_one(tmp_path, capfd):
    (tmp_path / "test_it.py").write_text(TESTS)
    phase = suite.Phase("one, two", [[*PYTEST, "test_it.py"]])
    assert suite.run([phase], tmp_path) == 1
    said = capfd.readouterr().out.strip().splitlines()
    assert said[-1].startswith("1 passed, 2 failed, 2 skipped in ")
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed, 1 error" in "".join(said)
    assert suite.count(tmp_path / phase.report) == Counter(passed=1, failed=2, skipped=2)
    ElementTree.parse(tmp_path / "build" / "test" / "one-two.xml")


def test_a_pytest_that_ran_nothing_has_failed(tmp_path, capfd):
    assert suite.run([suite.Phase("one", [[*PYTEST, "nothing.py"]])], tmp_path) == 1
    assert capfd.readouterr().out.strip().splitlines()[-1].startswith("0 passed, 1 failed in ")


@pytest.fixture
def asked(monkeypatch):
    """The phases that a command line of the suite asks for, and its budget."""

    def ask(*arguments):
        said = []
        monkeypatch.setattr("sys.argv", ["suite", *arguments])
        monkeypatch.setattr(suite, "run", lambda phases, budget="": said.append((phases, budget)))
        suite.main()
        return said[0]

    return ask


def test_everything_is_lint_units_kernels_and_every_notebook(asked):
    pytest.importorskip("triton")
    phases, budget = asked()
    names = [phase.name for phase in phases]
    assert names == ["lint", "kernels, interpreted", "kernels, compiled", "tests and notebooks"]
    (line,) = phases[-1].commands
    assert {word for word in line if word.endswith(".ipynb") and word[0] != "-"} == {
        path.relative_to(ROOT).as_posix()
        for pattern in ("chapters/*.ipynb", "assignments/*/*.ipynb")
        for path in ROOT.glob(pattern)
    }
    number = len(manifest.load().chapters)
    assert budget == f" of at most {240 + 30 * number}: 4 min + 0.5 min × {number} chapters"
    assert {"tests", "--nbval-lax"} <= {*line}
    assert "not browser" not in line


def test_tests_and_notebooks_share_the_cores_one_thread_each(asked):
    for phase in asked()[0]:
        for line in phase.commands:
            if line[0] == "pytest":
                assert line[line.index("-n") + 1] == str(suite.num_workers())
                assert phase.environment["OMP_NUM_THREADS"] == "1"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux alone counts the allowed")
def test_a_process_counts_the_cores_that_it_may_use(monkeypatch):
    for allowed, expected in (({0}, 1), ({0, 5}, 2), (set(range(64)), 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, allowed=allowed: allowed)
        assert suite.num_workers() == expected


@pytest.mark.parametrize("only", ["lint", "kernels"])
def test_a_part_may_be_asked_for(asked, only):
    phases, _ = asked("--only", only)
    assert {phase.name.partition(",")[0] for phase in phases} <= {only}


def test_a_check_runs_what_is_affected_and_says_what_it_leaves_out(asked, monkeypatch, capsys):
    monkeypatch.setattr(suite.affected, "changed", lambda root, since: [f"assignments/{since}"])
    phases, _ = asked("--only", "check", "--since", "20_elbo/20_elbo.ipynb")
    assert [phase.name for phase in phases] == ["lint", "tests and notebooks"]
    (line,) = phases[1].commands
    assert "not browser" in line
    notebook, files = "assignments/20_elbo/20_elbo.ipynb", "tests/assignments/test_answers.py"
    assert line.index("--nbval-lax") < line.index(notebook) < line.index(files)
    assert phases[1].environment == KERNEL_ENVIRONMENT
    assert "Left out, since" in capsys.readouterr().out
