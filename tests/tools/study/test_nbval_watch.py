import os
import subprocess
import sys

import pytest

from tools.study import nbval_watch, suite

BUSY = "import time\nend = time.process_time() + 0.9\nwhile time.process_time() < end:\n    pass"
CHILD = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BUSY!r}])"
WAIT = "import time\ntime.sleep(9999)"
# With little patience, but only after the kernel has started.
SHORT = """
from tools.study import nbval_watch

def pytest_runtest_call(item):
    if "stuck" in item.nodeid:
        nbval_watch.LOOK, nbval_watch.NOTHING, item.parent.kernel.looks = 0.1, 0.02, 6
"""


@pytest.fixture
def kernel(monkeypatch):
    """A kernel with little patience, in which a cell may run as long as `await_reply` lets it."""
    kernel = nbval_watch.WatchedKernel(":nbval-parent-env")
    monkeypatch.setattr(nbval_watch, "LOOK", 0.1)
    monkeypatch.setattr(nbval_watch, "NOTHING", 0.02)
    kernel.looks = 6
    yield kernel
    if kernel.is_alive():
        kernel.stop()


def watched(*spent, looks=3, limit=900.0):
    """What a watch says, look by look, of a process that has used so many processor seconds."""
    values = iter(spent)
    watch = nbval_watch.Watch(lambda: next(values), looks, limit)
    return [watch.look() for _ in spent[1:]]


def test_a_process_without_work_is_stuck_after_so_many_looks_in_a_row():
    assert watched(5, 5, 5.1, 5.1) == ["", "", "stuck: no processor time used for 3 seconds"]
    assert watched(5, 5, 5, 5.3, 5.3, 5.3) == [""] * 5
    assert watched(5, 5.1, 5.2, 5.3, 5.4, 5.5) == [""] * 5


def test_work_that_a_child_took_with_it_is_work():
    assert watched(5, 9, 9, 9, 6, 6, 6) == [""] * 6


def test_a_process_that_works_is_endless_only_by_its_own_processor_time():
    assert watched(100, 500, 999, 1000.1)[-1].startswith("endless: it used more than 900 seconds")
    assert watched(100, 500, 999, 1000)[-1] == ""


def test_the_time_of_children_counts_and_a_process_that_is_gone_has_used_none():
    before = nbval_watch.spent(os.getpid())
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"])
    assert nbval_watch.spent(os.getpid()) - before > 0.29
    assert nbval_watch.spent(2**22 + 1) == 0


def test_busy_cells_may_take_long_and_a_kernel_that_dies_is_noticed(kernel):
    for source in (BUSY, CHILD):
        kernel.await_reply(kernel.execute_cell_input(source, allow_stdin=False))
    with pytest.raises(nbval_watch.Stuck, match="dead: its kernel has ended"):
        kernel.await_reply(kernel.execute_cell_input("import os\nos._exit(3)", allow_stdin=False))
    assert not kernel.is_alive()


def test_a_cell_without_end_is_stopped_by_its_own_processor_time(kernel):
    kernel.limit = 0.5
    with pytest.raises(nbval_watch.Stuck, match=r"more than 0\.5 seconds of processor") as stuck:
        kernel.await_reply(kernel.execute_cell_input("while True:\n    pass", allow_stdin=False))
    assert "KeyboardInterrupt" in stuck.value.traceback
    assert not kernel.is_alive()


def test_notebooks_are_executed_and_compared_in_their_tree_and_one_that_waits_is_stopped(
    course, good, capfd
):
    course.write_cells("1 + 1", WAIT, "print(1)")
    course.chapter.rename(course.chapter.with_name("11_stuck.ipynb"))
    good.cells[4].source += "\nimport aigc_lib"
    good.cells[7].source = good.cells[7].source.replace("1 == 2", "1 == 3, aigc_lib.OWN")
    good.cells[13].source += "\nplt.ylabel('中');"
    course.write(good)
    course.take_tools()
    (course.root / "aigc_lib").mkdir()
    (course.root / "aigc_lib" / "__init__.py").write_text("OWN = 'of this tree'")
    (course.root / "short.py").write_text(SHORT)
    phase = suite.together("chapters")
    (line,) = phase.commands
    line[line.index("-n") : line.index("--dist")] = []
    line += ["-p", "short"]
    assert suite.run([phase], course.root) == 1
    said = capfd.readouterr().out
    assert "5 passed, 4 failed in" in said
    assert "Glyph" in said
    assert "holds: False of this tree" in said
    assert "Cell 1: The cell is stuck: no processor time used for 0.6 seconds" in said
    assert "----> 2 time.sleep(9999)" in said
    assert "KeyboardInterrupt" in said
    assert "Kernel dead on test start" in said
