"""Every limit of the sandbox, broken on purpose: small ones, so that nothing outside notices."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from sandboxed import need_sandbox

from tools.grading import sandbox

LIMITS = {"cell": 5.0, "total": 60.0, "cpu": 10.0, "memory": 3e8, "tasks": 40.0, "disk": 2e7}
RUN = """
import json, os, sys
uid, settings, program = json.loads(sys.argv[1])
if uid:
    os.setgroups([]), os.setgid(uid), os.setuid(uid)
sys.path.insert(0, {folder!r})
import sandbox
print(json.dumps(sandbox.contain(settings, program)))
"""
SYSTEM_PYTHON = Path("/usr/bin/python3")


@pytest.fixture(autouse=True)
def _sandbox():
    need_sandbox()


@pytest.fixture(params=["as it is", "as an ordinary user"])
def contain(request, tmp_path):
    """Run Python code inside; returns exit code and what is said about it."""
    import json

    uid = 0
    if request.param == "as an ordinary user":
        if os.geteuid():
            pytest.skip("the tests run as an ordinary user anyway")
        if not SYSTEM_PYTHON.exists():
            pytest.skip("a Python that every user may run is missing")
        uid = 54321
    python = str(SYSTEM_PYTHON) if uid else sys.executable
    prefixes = [] if uid else [sys.base_prefix, sys.prefix]
    folder = Path(sandbox.__file__).parent if not uid else tmp_path / "open"
    if uid:  # the repository may lie where others can't read
        folder = Path("/tmp") / f"aigc-test-{os.getpid()}"
        folder.mkdir(exist_ok=True)
        (folder / "sandbox.py").write_text(Path(sandbox.__file__).read_text())

    def run(code: str, **limits: float) -> tuple[int, str]:
        settings = {
            "readable": [path for path in prefixes if not path.startswith("/usr/")],
            "data": [],
            "channels": "",
            "environment": {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
            "limits": LIMITS | limits,
            "reason": os.devnull,
        }
        inside = sandbox.INSIDE.format(tasks=int(settings["limits"]["tasks"]), module="this")
        inside = inside.partition("runpy.run_module")[0] + f"exec({code!r}, {{}})"
        asked = json.dumps([uid, settings, [python, "-c", inside]])
        done = subprocess.run(
            [python, "-c", RUN.format(folder=str(folder)), asked],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return tuple(json.loads(done.stdout))

    yield run
    if uid:
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        folder.rmdir()


def test_what_ends_by_itself_is_left_alone(contain):
    assert contain("print(1)") == (0, "")
    assert contain("raise SystemExit(3)") == (3, "")


SLEEPERS = """
import os, time
for _ in range(60):
    try:
        if not os.fork():
            time.sleep(60)
    except OSError:
        break
else:
    time.sleep(60)
raise SystemExit("no more processes")
"""


def test_the_number_of_processes(contain):
    code, said = contain(SLEEPERS)
    assert (code, said) == (137, "more than 40 processes and threads") or "no more" in said


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import time\ntime.sleep(60)", "more than 0.5 seconds in all"),
        ("while True: pass", "more than 0.5 seconds of CPU time"),
        ("import os\nos.fork()\nwhile True: pass", "more than 0.5 seconds of CPU time"),
        (
            "import os, time\nfor _ in range(4):\n    if not os.fork():\n"
            "        x = bytearray(b'x') * 10**8\n        time.sleep(60)\ntime.sleep(60)",
            "more than 0.3 GB of memory",
        ),
        (
            "import mmap, time\nkeep = []\nwhile True:\n    keep.append(mmap.mmap(-1, 10**7))\n"
            "    keep[-1].write(b'x' * 10**7)\n    time.sleep(0.01)",
            "more than 0.3 GB of memory",
        ),
        (
            "import os, time\nwhile True:\n    f = os.memfd_create('a')\n"
            "    os.write(f, b'x' * 10**7)\n    time.sleep(0.01)",
            "more than 0.3 GB of memory",
        ),
    ],
    ids=["time", "cpu", "cpu of two", "memory of many", "shared memory", "files without a name"],
)
def test_the_watch_ends_what_breaks_a_limit(contain, code, said):
    limits = {"total": 0.5} if "in all" in said else {"cpu": 0.5} if "CPU" in said else {}
    assert contain(code, **limits) == (137, said)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("bytearray(10**9)", "MemoryError"),
        ("open('/tmp/x', 'wb').write(b'x' * 3 * 10**7)", "File too large"),
        (
            "for i in range(3): open(f'/dev/shm/{i}', 'wb').write(b'x' * 10**7)",
            "No space left",
        ),
        ("for i in range(3): open(f'{i}', 'wb').write(b'x' * 10**7)", "No space left"),
        ("open('/usr/x', 'w')", "Read-only"),
        ("open('/etc/x', 'w')", "Read-only"),
        ("open('/dev/x', 'w')", "Read-only"),
        ("import os\nos.listdir('/var')", "No such file"),
        (f"open({str(Path(__file__))!r})", "No such file"),
        ("import os\nos.environ['PYTEST_CURRENT_TEST']", "KeyError"),
        ("import os\nos.kill(2**15 - 1, 9)", "No such process"),
        (
            "import ctypes\nif ctypes.CDLL(None).shmget(0, 10**6, 0o1600) < 0: raise OSError('no')",
            "OSError: no",
        ),
        (
            "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000): raise OSError('no')",
            "OSError: no",
        ),
    ],
)
def test_what_is_refused_inside(contain, code, error):
    exit_code, said = contain(code)
    assert exit_code == 1
    assert error in said


def test_nobody_outside_can_be_called(contain):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        code, said = contain(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)")
        assert code == 1
        assert "refused" in said
        with pytest.raises(TimeoutError):
            server.accept()


def test_no_process_stays_behind(contain):
    code = "import subprocess\nsubprocess.Popen(['sleep', '98765'], start_new_session=True)"
    assert contain(code)[0] == 0
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)]
    assert not any(b"98765" in line for line in lines)


def readable(path):
    try:
        return bool(path.read_bytes())
    except OSError:
        return False
