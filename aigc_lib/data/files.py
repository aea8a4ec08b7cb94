"""Files that are whole or not there, whatever interrupts the writing."""

import os
import tempfile
from pathlib import Path


def put(path: Path, data: bytes) -> None:
    """Write a file, and the folder if it is missing; a failure leaves the old file as it was.

    The bytes get their name only after the last of them is on the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
