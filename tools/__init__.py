"""The course's own machinery: one module per `make` target and what they share."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Every notebook runs with the same two threads; a missing glyph is a fault, not a warning. A thread
# that waits spins for some microseconds, then sleeps: to sleep at once makes small models two to
# three times slower, to spin for long does so where others want the cores.
KERNEL_ENVIRONMENT = {
    "OMP_NUM_THREADS": "2",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "30000",
    "PYTHONWARNINGS": "error:Glyph",
}


class Refusal(Exception):
    """Something that the person at the keyboard can mend: its text is shown, without traceback."""


def num_workers() -> int:
    """How many processes may work side by side: the cores that this process may use, at most 4.

    Returns:
        At least 1.
    """
    allowed = getattr(os, "sched_getaffinity", None)
    return min(4, len(allowed(0)) if allowed else os.cpu_count() or 1)


def command(main: Callable[[], int]) -> None:
    """Run a module's `main` as a command and leave with its exit code.

    Args:
        main: returns the exit code; what it refuses is printed as plain text, with exit code 1,
            and so is what the system refuses: a full disk, a read-only folder.
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
    """Write a file so that it is at every moment either the old or the new one.

    Args:
        path: where to; the folder is made if it is missing.
        content: what the file is to hold.
    """
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
