"""The course's own machinery: one module per `make` target and what they share."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Every notebook runs on one thread, so that several run side by side and take the same time on any
# machine; a missing glyph is a fault, not a warning.
KERNEL_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error:Glyph"}


class Refusal(Exception):
    """Something that the person at the keyboard can mend: its text is shown, without traceback."""


def kernel_environment(root: Path = ROOT) -> dict[str, str]:
    """What a notebook's kernel starts with: KERNEL_ENVIRONMENT, and `root` first on its path.

    A kernel starts in chapters/, so it would otherwise import the library of the clone from which
    the environment was installed, not that of the clone it stands in.
    """
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    return os.environ | KERNEL_ENVIRONMENT | {"PYTHONPATH": path}


def num_workers() -> int:
    """How many processes may work side by side: the cores that this process may use, at most 4."""
    allowed = getattr(os, "sched_getaffinity", None)
    return min(4, len(allowed(0)) if allowed else os.cpu_count() or 1)


def command(main: Callable[[], int]) -> None:
    """Run a module's `main` and leave with the exit code that it returns.

    What it refuses is printed as plain text, with exit code 1, and so is what the system refuses:
    a full disk, a read-only folder.
    """
    try:
        code = main()
    except (Refusal, OSError) as error:
        print(error, file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        code = 130
    sys.exit(code)


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it is always the old or the new one; its folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)  # mkstemp's file is for its owner alone
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
