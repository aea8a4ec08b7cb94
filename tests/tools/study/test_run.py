import nbformat


def test_the_result_is_where_the_command_says_and_the_chapter_is_untouched(course):
    before = course.chapter.read_bytes()
    done = course.run("tools.study.run", "--chapter", "00", "--tier", "coffee")
    assert done.returncode == 0, done.stdout
    assert "The result is build/run/00_start.ipynb" in done.stdout
    nb = nbformat.read(course.root / "build" / "run" / "00_start.ipynb", as_version=4)
    assert "after coffee" in "".join(output.text for output in nb.cells[11].outputs)
    assert course.chapter.read_bytes() == before


def test_a_failing_chapter_is_saved_as_far_as_it_ran(course):
    nb = course.read()
    nb.cells[13].source = "raise ValueError('why')"
    course.write(nb)
    done = course.run("tools.study.run", "--chapter", "00")
    assert done.returncode == 1
    assert done.stdout.endswith("cell 14 (raise ValueError('why')) failed: ValueError\n")
    nb = nbformat.read(course.root / "build" / "run" / "00_start.ipynb", as_version=4)
    assert nb.cells[11].outputs
    assert nb.cells[13].outputs[0].evalue == "why"


def test_an_unknown_chapter_is_one_line_and_no_traceback(course):
    done = course.run("tools.study.run", "--chapter", "99")
    assert done.returncode == 1
    assert done.stdout == "no chapter '99'; book.toml has: 00_start (CHAPTER=00 is enough)\n"


def test_what_the_system_refuses_is_one_line_and_no_traceback(course):
    (course.root / "build").write_text("a file, where a folder is needed")
    done = course.run("tools.study.run", "--chapter", "00")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert "build/run'" in done.stdout.splitlines()[-1]
