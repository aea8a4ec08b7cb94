from tools.study import suite

GOOD = ["json.tool", "--help"]
BAD = ["json.tool", "/no/such/file"]


def test_every_phase_runs_and_the_last_line_tells_them_apart(capfd):
    phases = [suite.Phase("one", [BAD, GOOD]), suite.Phase("two", [GOOD])]
    assert suite.run(phases) == 1
    out = capfd.readouterr().out
    assert "== two ==" in out
    last = out.strip().splitlines()[-1]
    assert last.startswith("FAILED: one (")
    assert "Passed: two (" in last


def test_success_is_said_in_the_last_line(capfd):
    assert suite.run([suite.Phase("one", [GOOD]), suite.Phase("two", [GOOD])]) == 0
    assert capfd.readouterr().out.strip().splitlines()[-1].startswith("All passed: one (")


def test_a_phase_has_its_environment():
    ask = ["timeit", "-n1", "-r1", "import os; assert os.environ['X'] == 'y'"]
    assert suite.run([suite.Phase("one", [ask], {"X": "y"})]) == 0
    assert suite.run([suite.Phase("one", [ask])]) == 1


def test_a_chapter_is_executed_and_its_proofs_are_compared(course, good):
    good.cells[7].source = good.cells[7].source.replace("1 == 2", "1 == 3")
    good.cells[13].source += "\nplt.ylabel('中');"
    course.write(good)
    script = "from tools import suite; exit(suite.run([suite.chapters('chapters')]))"
    (course.root / "once.py").write_text(script)
    done = course.run("once")
    assert done.returncode == 1
    assert "2 failed, 4 passed" in done.stdout
    assert "Glyph" in done.stdout
    assert "holds: False" in done.stdout
