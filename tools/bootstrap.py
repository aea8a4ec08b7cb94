"""Make sure that .venv holds what the course needs, then run a module with its Python.

    python3 tools/bootstrap.py -m tools.study.lab ARGUMENTS

Standard library only. The file must run up to its first check on Python 3.6, so that an old Python
gets one clear line and not a syntax error: no newer syntax, and only annotations it can evaluate.

`.venv/.ready`, the stamp, is written last. Without it the environment is half built and is made
anew; with a stamp of other inputs (pyproject.toml, constraints.txt …) it is brought up to date.
`.venv/.course` says that this file made the folder: one of another making is never touched. The
Python that made it stays in use until another one is named (`PYTHON=`, which sets NEW_PYTHON).
"""

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
EXTRAS = "course,test,site,kernels"

# Sizes of the versions in constraints.txt, measured on Linux.
PACKAGES = "270 MB of packages (470 MB on Linux, with Triton)"
CPU_TORCH = "0.2 GB as CPU build (needs 3.3 GB of disk)"
CUDA_TORCH = "2.7 GB as CUDA build (needs 9 GB)"
DISK_NEEDED = 3.3e9  # bytes: 2.5 GB for the environment with the CPU build, the rest to unpack it

NO_NETWORK = re.compile(
    "NewConnectionError|ConnectTimeout|ReadTimeout|NameResolutionError|IncompleteRead|ProxyError"
    "|Network is unreachable|Temporary failure in name resolution|getaddrinfo failed"
    "|Connection (refused|reset|aborted|broken)"
)
NO_SPACE = re.compile("No space left on device|not enough space|Disk quota exceeded")
NO_TRUST = re.compile(
    "CERTIFICATE_VERIFY_FAILED|certificate verify failed|SSLCertVerificationError"
)
NO_TORCH = re.compile("No matching distribution found for torch|ResolutionImpossible")
EVERY = 30  # seconds between two lines of progress where there is no terminal


class SetUpError(Exception):
    """Set-up can't go on; the text is the line to show."""


def check_python(version: tuple) -> None:
    """Refuse a Python, given as `sys.version_info`, that is too old for the course."""
    if tuple(version[:2]) < OLDEST:
        have, need = ".".join(map(str, version[:3])), ".".join(map(str, OLDEST))
        raise SetUpError(
            f"Python {need} or newer is needed, but {sys.executable} is {have}: "
            f"name a newer one, for example `make lab PYTHON=python{need}`."
        )


def check_folder(root: Path) -> None:
    """Refuse a folder whose name is no UTF-8: torch can't be imported from there."""
    try:
        str(root).encode()
    except UnicodeEncodeError:
        raise SetUpError(
            f"The name of the folder {str(root)!a} is not UTF-8, and torch can't be imported "
            "from there: rename it, or move the course."
        ) from None


def venv_python(root: Path) -> Path:
    """The Python of the course's environment, whether or not it exists."""
    return root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def ensure(root: Path, install: Callable) -> None:
    """Bring the environment to what it should be; do nothing if it is that already.

    `install` is called with (root, torch_index, fresh) if there is something to install.
    """
    index = os.environ.get("TORCH_INDEX")
    if index and "://" not in index and not Path(index).exists():
        raise SetUpError(f"TORCH_INDEX is an address (https://...) or a folder, got {index!r}.")
    stamp, old = root / ".venv" / ".ready", root / ".venv.old"
    found = read(stamp) or read(old / ".ready")
    files = hashlib.sha256(f"{root} {EXTRAS}".encode())  # an environment can't be moved
    for name in ("pyproject.toml", "constraints.txt"):
        files.update((root / name).read_bytes())
    with contextlib.suppress(OSError):  # a killed set-up had put it aside
        if (old / ".ready").exists():
            with lock(root):
                shutil.rmtree(str(root / ".venv"), ignore_errors=True)
                old.rename(root / ".venv")
    there, own = venv_python(root).exists(), root / ".venv" / ".course"
    current = "{}.{}".format(*sys.version_info[:2])
    python = current
    if there and not os.environ.get("NEW_PYTHON"):
        python = found.get("python", current)
    wanted = {
        "python": python,
        # An index asked for once stays in use: only another one, asked for now, replaces it.
        "torch_index": index or found.get("torch_index", ""),
        "files": files.hexdigest(),
    }
    if there and found == wanted:
        return
    if (root / ".venv").exists() and not found and not own.exists() and not old.exists():
        raise SetUpError(f"{root / '.venv'} was not made by the course: move it away or delete it.")
    same_base = all(found.get(key) == wanted[key] for key in ("python", "torch_index"))
    with lock(root):
        fresh = not (there and same_base)
        if there and found:
            own.touch()  # made before there was this mark: an update that fails must not lose it
        with aside(root, there and bool(found)) if fresh else contextlib.nullcontext():
            with contextlib.suppress(FileNotFoundError):
                stamp.unlink()
            install(root, wanted["torch_index"], fresh)
            wanted["python"] = current if fresh else python
            stamp.write_text(json.dumps(wanted))


def read(stamp: Path) -> dict:
    """What a stamp says, {} if there is none."""
    try:
        return json.loads(stamp.read_text())
    except (OSError, ValueError):
        return {}


@contextlib.contextmanager
def aside(root: Path, keep: bool) -> Iterator:
    """Make room for a new environment; the old one, to keep, comes back if that fails.

    An environment is removed under another name, so that no half of one is ever in its place.
    """
    now, old = root / ".venv", root / ".venv.old"
    shutil.rmtree(str(old), ignore_errors=True)
    if now.exists():
        print(
            "Making .venv anew: "
            + (
                "for another Python or TORCH_INDEX; the old one comes back if that fails."
                if keep
                else "it was unfinished."
            )
        )
        now.rename(old)
        if not keep:
            shutil.rmtree(str(old), ignore_errors=True)
    try:
        yield
    except BaseException:
        if keep:
            shutil.rmtree(str(now), ignore_errors=True)
            old.rename(now)
        raise
    with contextlib.suppress(FileNotFoundError):
        (old / ".ready").unlink()  # from now on it is not to come back
    shutil.rmtree(str(old), ignore_errors=True)


def lock(root: Path) -> IO:
    """Keep a second terminal from setting up in the same folder at the same time.

    Whoever closes the file gives the lock back.
    """
    (root / "build").mkdir(exist_ok=True)
    file = (root / "build" / "setup.lock").open("w")
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise SetUpError("Another set-up is running in this folder: wait for it.") from None
    return file


def install(root: Path, torch_index: str, fresh: bool) -> None:
    """Build the environment from nothing if `fresh`, else bring it up to date.

    torch comes from the wheel index `torch_index`, "" for pip's own choice.
    """
    start = time.time()
    if fresh:
        for module in ("venv", "ensurepip"):
            if importlib.util.find_spec(module) is None:
                raise SetUpError(
                    f"{sys.executable} has no module {module}: install it (Debian and Ubuntu: "
                    "`apt install python3-venv`), then run the same command again."
                )
        announce(root, torch_index)
        if shutil.disk_usage(str(root)).free < DISK_NEEDED:
            raise no_space(root)
        (root / ".venv").mkdir()
        (root / ".venv" / ".course").touch()
        run([sys.executable, "-m", "venv", ".venv"], root)
    else:
        print("The versions asked for have changed: bringing .venv up to date.", flush=True)
    pip = [str(venv_python(root)), "-m", "pip", "install", "--disable-pip-version-check"]
    pip += ["-c", "constraints.txt"]
    if torch_index:
        # Without dependencies: those come from the usual index, in the tested versions.
        run([*pip, "--no-deps", "--index-url", torch_index, "torch"], root)
    run([*pip, "-e", f".[{EXTRAS}]"], root)
    print(f"The environment is ready ({time.time() - start:.0f} s).", flush=True)


def announce(root: Path, torch_index: str) -> None:
    """Say what set-up will download, and how much of it."""
    print(f"Setting up .venv, once, in a few minutes. To download: {PACKAGES}, and torch:")
    if torch_index:
        print(f"  from {torch_index}")
    elif sys.platform.startswith("linux"):
        print(f"  {CPU_TORCH} or {CUDA_TORCH}.")
        print("  pip's usual index has the CUDA build. Without an NVIDIA card, stop here (Ctrl-C)")
        print("  and add TORCH_INDEX=<the wheel index that PyTorch's install page shows for CPU>.")
    else:
        print(f"  {CPU_TORCH}.")
    free = shutil.disk_usage(str(root)).free
    print(f"  {free / 1e9:.1f} GB of disk are free. Details go to build/setup.log.", flush=True)


def no_space(root: Path) -> SetUpError:
    """The error for a disk that is full, or too full to begin."""
    folders = {str(root), tempfile.gettempdir()}
    free = ", ".join(f"{shutil.disk_usage(f).free / 1e9:.1f} GB in {f}" for f in sorted(folders))
    return SetUpError(
        f"Not enough disk: set-up needs {DISK_NEEDED / 1e9:.1f} GB, or 9 GB with torch's CUDA "
        f"build; free are {free}."
    )


def run(arguments: list, root: Path) -> None:
    """Run one step; its output goes to the log and, in a terminal, to one line, rewritten."""
    lines = []
    terminal, said = sys.stdout.isatty(), time.time()
    try:
        with subprocess.Popen(
            arguments,
            cwd=str(root),
            env=dict(os.environ, PIP_USER="0"),  # whatever the user's own settings of pip say
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        ) as process:
            try:
                for line in process.stdout:
                    lines.append(line)
                    if terminal:
                        print("\r\033[K  " + line.strip()[:76], end="", flush=True)
                    elif time.time() - said > EVERY:
                        said = time.time()
                        print("  " + line.strip()[:76], flush=True)
            except BaseException:
                process.kill()  # it would go on installing
                raise
    finally:
        if terminal:
            print("\r\033[K", end="", flush=True)
        with contextlib.suppress(OSError):  # a full disk is told by the step's own output
            (root / "build" / "setup.log").write_text("".join(lines), encoding="utf-8")
    if process.returncode < 0:
        raise SetUpError(
            f"Set-up was killed by signal {-process.returncode} (is memory short?): "
            "run the same command again."
        )
    if process.returncode:
        raise failure("".join(lines), root)


def failure(output: str, root: Path) -> SetUpError:
    """The error to raise for a failed step, with the reason found in its output."""
    if NO_SPACE.search(output):
        return no_space(root)
    if NO_TRUST.search(output):
        return SetUpError(
            "The certificate of the package server is not trusted on this machine. Behind a proxy "
            "that reads along, name its certificate: PIP_CERT=/path/to/it.pem (details: "
            "build/setup.log)."
        )
    if NO_TORCH.search(output) and os.environ.get("TORCH_INDEX"):
        return SetUpError(
            f"TORCH_INDEX={os.environ['TORCH_INDEX']} has no torch of the version in "
            "constraints.txt for this Python and system: name another index, or none."
        )
    if NO_NETWORK.search(output):
        return SetUpError(
            "No network: the packages could not be downloaded (details: build/setup.log). "
            "Set-up needs a connection once; with one, run the same command again."
        )
    lines = output.strip().splitlines() or ["no output"]
    reason = [line.strip() for line in lines if line.startswith("ERROR")] or lines[-1:]
    return SetUpError(f"Set-up failed (details: build/setup.log). {reason[-1]}")


def main(arguments: list) -> int:
    """Set up, then become the environment's Python with these arguments, from `-m` on."""
    try:
        check_python(sys.version_info)
        check_folder(ROOT)
        ensure(ROOT, install)
    except SetUpError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        print(no_space(ROOT) if full else f"Set-up failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command starts set-up again.", file=sys.stderr)
        return 130
    return become([str(venv_python(ROOT)), *arguments], os.environ)


def become(command: list, environment: dict) -> int:
    """Turn this process into another program, which then gets every signal itself.

    On Windows, where a process can't be replaced, the exit code comes back.
    """
    if os.name == "nt":
        return subprocess.call(command, env=environment)
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
