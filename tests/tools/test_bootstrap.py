import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import bootstrap


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name in ("TORCH_INDEX", "NEW_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("one")
    return tmp_path


@pytest.fixture
def ensure(root):
    """Call `ensure`; returns whether it installed, and then how: "fresh", "update" or "nothing"."""

    def call(fail=False):
        done = []

        def install(root, torch_index, fresh):
            done.append("fresh" if fresh else "update")
            (root / ".venv").mkdir(exist_ok=True)
            if fresh:
                (root / ".venv" / ".course").touch()
            if fail:
                raise bootstrap.SetUpError("fails")
            python = bootstrap.venv_python(root)
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()

        bootstrap.ensure(root, install)
        return done[0] if done else "nothing"

    return call


def test_the_file_parses_on_python_3_6():
    source = Path(bootstrap.__file__).read_text()
    ast.parse(source, feature_version=(3, 6))
    assert "|" not in "".join(
        ast.unparse(node.annotation)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.arg) and node.annotation
    )


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 10, 13)])
def test_an_old_python_is_refused_in_one_line(version):
    with pytest.raises(bootstrap.SetUpError) as error:
        bootstrap.check_python(version)
    text = str(error.value)
    assert "3.11 or newer" in text
    assert ".".join(map(str, version)) in text
    assert "\n" not in text


def test_a_folder_whose_name_is_no_utf_8_is_refused_in_one_printable_line(tmp_path):
    bootstrap.check_folder(tmp_path / "课程 é")
    with pytest.raises(bootstrap.SetUpError) as error:
        bootstrap.check_folder(tmp_path / os.fsdecode(b"\xc4\xe3"))
    text = str(error.value)
    assert text.isascii()
    assert "rename it" in text
    assert "\n" not in text


def test_python_3_11_and_newer_are_accepted():
    bootstrap.check_python((3, 11, 0))
    bootstrap.check_python((4, 0, 0))


def test_a_second_start_installs_nothing(ensure):
    assert ensure() == "fresh"
    assert ensure() == "nothing"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_in_place(root, ensure, name):
    ensure()
    (root / name).write_text("two")
    assert ensure() == "update"
    assert ensure() == "nothing"


def test_an_interrupted_build_is_never_trusted(root, ensure):
    with pytest.raises(bootstrap.SetUpError):
        ensure(fail=True)
    assert ensure() == "fresh"
    (root / "constraints.txt").write_text("two")
    with pytest.raises(bootstrap.SetUpError):
        ensure(fail=True)
    assert ensure() == "fresh"


def test_an_environment_comes_back_if_its_successor_can_not_be_built(root, ensure, monkeypatch):
    ensure()
    mine, old = root / ".venv" / "mine", root / ".venv.old"
    mine.touch()
    monkeypatch.setenv("TORCH_INDEX", "https://other")
    with pytest.raises(bootstrap.SetUpError):
        ensure(fail=True)
    assert mine.exists()
    monkeypatch.delenv("TORCH_INDEX")
    assert ensure() == "nothing"
    assert not old.exists()


@pytest.mark.parametrize("half", ["nothing", "half a new one", "half removed, without its marks"])
def test_what_a_killed_set_up_had_put_aside_is_taken_up_again(root, ensure, half):
    ensure()
    (root / ".venv" / "mine").touch()
    (root / ".venv").rename(root / ".venv.old")
    if half != "nothing":
        (root / ".venv").mkdir()
        (root / ".venv" / ("lib" if "removed" in half else ".course")).touch()
    assert ensure() == "nothing"
    assert (root / ".venv" / "mine").exists()


def test_half_of_a_removed_environment_is_never_in_its_place(root, ensure, monkeypatch):
    ensure()
    (root / ".venv" / ".ready").unlink()

    def stop(path, **_):
        if Path(path).exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap.shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            ensure()
    assert not (root / ".venv").exists()
    assert ensure() == "fresh"
    assert not (root / ".venv.old").exists()


def test_an_index_that_can_be_none_is_refused_before_anything_is_removed(root, ensure, monkeypatch):
    ensure()
    monkeypatch.setenv("TORCH_INDEX", "cpu")
    with pytest.raises(bootstrap.SetUpError, match=r"TORCH_INDEX is an address .* got 'cpu'"):
        ensure()
    assert (root / ".venv" / ".ready").exists()
    monkeypatch.setenv("TORCH_INDEX", str(root))
    assert ensure() == "fresh"


def test_a_broken_stamp_or_a_vanished_python_means_a_new_build(root, ensure):
    ensure()
    (root / ".venv" / ".ready").write_text("{")
    assert ensure() == "fresh"
    bootstrap.venv_python(root).unlink()
    assert ensure() == "fresh"


def test_a_python_is_kept_until_another_is_named(root, ensure, monkeypatch):
    ensure()
    monkeypatch.setattr(sys, "version_info", (3, 99, 0, "final", 0))
    assert ensure() == "nothing"
    (root / "constraints.txt").write_text("two")
    assert ensure() == "update"
    monkeypatch.setenv("NEW_PYTHON", "1")
    assert ensure() == "fresh"
    assert '"3.99"' in (root / ".venv" / ".ready").read_text()
    monkeypatch.delenv("NEW_PYTHON")
    monkeypatch.setattr(sys, "version_info", (3, 11, 0, "final", 0))
    assert ensure() == "nothing"


@pytest.mark.parametrize("with_python", [True, False])
def test_an_environment_of_another_making_is_never_touched(root, ensure, with_python):
    python = bootstrap.venv_python(root)
    python.parent.mkdir(parents=True)
    if with_python:
        python.touch()
    (root / ".venv" / "mine").touch()
    with pytest.raises(bootstrap.SetUpError, match=r"\.venv was not made by the course: move it"):
        ensure()
    assert (root / ".venv" / "mine").exists()


def test_an_environment_from_before_the_marker_is_known_by_its_stamp(root, ensure):
    ensure()
    (root / ".venv" / ".course").unlink()
    (root / "constraints.txt").write_text("two")
    with pytest.raises(bootstrap.SetUpError, match="fails"):
        ensure(fail=True)
    assert ensure() == "fresh"


def test_a_new_build_is_stamped_with_the_python_that_made_it(root, ensure, monkeypatch):
    ensure()
    monkeypatch.setattr(sys, "version_info", (3, 99, 0, "final", 0))
    monkeypatch.setenv("TORCH_INDEX", "https://elsewhere")
    assert ensure() == "fresh"
    assert '"3.99"' in (root / ".venv" / ".ready").read_text()


def test_a_torch_index_is_kept_until_another_is_named(ensure, monkeypatch):
    ensure()
    monkeypatch.setenv("TORCH_INDEX", "https://somewhere")
    assert ensure() == "fresh"
    monkeypatch.delenv("TORCH_INDEX")
    assert ensure() == "nothing"
    monkeypatch.setenv("TORCH_INDEX", "https://elsewhere")
    assert ensure() == "fresh"


@pytest.mark.skipif(os.name == "nt", reason="no lock on Windows")
def test_two_set_ups_at_once_are_refused(root):
    with (
        bootstrap.lock(root),
        pytest.raises(bootstrap.SetUpError, match="Another set-up is running"),
    ):
        bootstrap.lock(root)
    bootstrap.lock(root).close()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("OSError: [Errno 28] No space left on device", "Not enough disk"),
        ("NewConnectionError('…: [Errno -2] Name or service not known')", "No network"),
        ("ERROR: No matching distribution found for torch==9", "No matching distribution"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]", "PIP_CERT="),
        ("ERROR: ResolutionImpossible: for help visit", "ResolutionImpossible"),
        ("", "no output"),
    ],
)
def test_a_failed_step_is_explained_in_one_line(tmp_path, output, expected):
    text = str(bootstrap.failure(output, tmp_path))
    assert expected in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "output", ["No matching distribution found for torch", "ResolutionImpossible: for help"]
)
def test_an_index_without_torch_is_named(tmp_path, monkeypatch, output):
    monkeypatch.setenv("TORCH_INDEX", "there")
    text = str(bootstrap.failure(f"ERROR: {output}", tmp_path))
    assert "TORCH_INDEX=there has no torch" in text


def test_a_step_has_no_user_settings_of_pip_and_tells_of_its_progress(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "build").mkdir()
    monkeypatch.setattr(bootstrap, "EVERY", -1)
    monkeypatch.setenv("PIP_USER", "1")
    ask = "import os; print('PIP_USER', os.environ['PIP_USER'])"
    bootstrap.run([sys.executable, "-c", ask], tmp_path)
    assert capsys.readouterr().out == "  PIP_USER 0\n"


@pytest.mark.skipif(os.name == "nt", reason="signals are those of POSIX")
def test_a_killed_step_says_so(tmp_path):
    (tmp_path / "build").mkdir()
    kill = "import os, signal; print('  50% |###'); os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(bootstrap.SetUpError, match="killed by signal 9"):
        bootstrap.run([sys.executable, "-c", kill], tmp_path)


def test_a_step_that_fails_raises_and_leaves_its_log(tmp_path):
    (tmp_path / "build").mkdir()
    with pytest.raises(bootstrap.SetUpError, match="No network"):
        bootstrap.run([sys.executable, "-c", "exit('Network is unreachable')"], tmp_path)
    assert "unreachable" in (tmp_path / "build" / "setup.log").read_text()


def test_a_python_without_venv_is_named(root, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(bootstrap.SetUpError, match=r"has no module venv.*python3-venv"):
        bootstrap.install(root, "", fresh=True)


def test_a_full_disk_is_found_before_anything_is_installed(root, monkeypatch, capsys):
    usage = type(shutil.disk_usage("/"))(10**9, 10**9, 10**6)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(bootstrap.SetUpError, match=r"Not enough disk.*0\.0 GB in"):
        bootstrap.install(root, "", fresh=True)
    assert not (root / ".venv").exists()


@pytest.mark.parametrize("index", ["", "an index"])
def test_the_download_is_announced_and_torch_comes_from_its_index(root, monkeypatch, capsys, index):
    steps = []
    monkeypatch.setattr(bootstrap, "run", lambda arguments, root: steps.append(arguments))
    bootstrap.install(root, index, fresh=True)
    assert "270 MB" in capsys.readouterr().out
    torch = [step for step in steps if step[-1] == "torch"]
    assert [step[-2] for step in torch] == ([index] if index else [])
    assert all("constraints.txt" in step for step in steps[1:])
    assert steps[-1][-2:] == ["-e", f".[{bootstrap.EXTRAS}]"]


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (bootstrap.SetUpError("why"), 1, "why"),
        (KeyboardInterrupt(), 130, "Stopped."),
        (OSError(28, "no space"), 1, "Not enough disk"),
        (PermissionError(13, "Permission denied", "here"), 1, "Permission denied: 'here'"),
    ],
)
def test_main_says_what_went_wrong_without_traceback(monkeypatch, capsys, error, code, expected):
    def fail(root, install):
        raise error

    monkeypatch.setattr(bootstrap, "ensure", fail)
    assert bootstrap.main(["-m", "this"]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert expected in lines[0]


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_the_module_runs_in_the_environment_and_its_exit_code_comes_through(course):
    course.take_tools()
    python = bootstrap.venv_python(course.root)

    def install(root, torch_index, fresh):
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)

    bootstrap.ensure(course.root, install)
    script = [str(course.root / "tools" / "bootstrap.py"), "-c", "exit(7)"]
    assert subprocess.run([sys.executable, *script]).returncode == 7
