"""The one data set that has to be fetched: MNIST, 70 000 handwritten digits. It is optional.

Nothing here runs at import, and nothing is fetched unless `mnist` is called. Each file is taken
from the first mirror that gives the right bytes, checked by length and SHA-256, and only then put
in place, so that a file under its own name is always whole.
"""

import gzip
import hashlib
import http.client
import math
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
_CHUNK = 1 << 16


class DownloadError(OSError):
    """A file could be had from nowhere; the message says what each mirror answered."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file somewhere else, and how to know it.

    Attributes:
        name: below each mirror's address, and in the folder that it is kept in.
        length: number of bytes.
        sha256: of all its bytes, in hexadecimal.
    """

    name: str
    length: int
    sha256: str


MNIST = {
    "train": (
        RemoteFile(
            name="train-images-idx3-ubyte.gz",
            length=9_912_422,
            sha256="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        RemoteFile(
            name="train-labels-idx1-ubyte.gz",
            length=28_881,
            sha256="3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
    ),
    "test": (
        RemoteFile(
            name="t10k-images-idx3-ubyte.gz",
            length=1_648_877,
            sha256="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        RemoteFile(
            name="t10k-labels-idx1-ubyte.gz",
            length=4_542,
            sha256="f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    ),
}


def mnist(
    folder: str | os.PathLike,
    *,
    split: str = "train",
    mirrors: tuple[str, ...] = MIRRORS,
    timeout: float = 30.0,
) -> tuple[Float[Tensor, "N 1 28 28"], Int[Tensor, " N"]]:
    """Handwritten digits, white on black; fetched once, then read from the folder.

    Source: LeCun et al. 1998, section III.A, for the data; the format is IDX.
    Derived: —

    Args:
        folder: where the two files of a split are kept; made if missing.
        split: "train", 60 000 images, or "test", 10 000.
        mirrors: addresses to try in order, each ending in "/".
        timeout: seconds that a mirror may stay silent.

    Returns:
        Images with grey values in [0, 1], and the digits that they show.

    Raises:
        DownloadError: a file is not in the folder and no mirror gave it.
        ValueError: there is no such split, or a setting is out of range.
    """
    if split not in MNIST:
        raise ValueError(f"expected a split out of {', '.join(MNIST)}, got {split!r}")
    images, labels = (
        read_idx(fetch(file, folder, mirrors=mirrors, timeout=timeout)) for file in MNIST[split]
    )
    return images[:, None].float() / 255, labels.long()


def fetch(
    file: RemoteFile,
    folder: str | os.PathLike,
    *,
    mirrors: tuple[str, ...] = MIRRORS,
    timeout: float = 30.0,
) -> Path:
    """Have a file in a folder: as it is if it is there and right, else from the first good mirror.

    Args:
        file: what to fetch.
        folder: where it is kept; made if missing.
        mirrors: addresses to try in order, each ending in "/".
        timeout: seconds that a mirror may stay silent, above 0.

    Returns:
        The path of the whole, checked file.

    Raises:
        DownloadError: no mirror gave it; what stood in the folder is untouched.
        ValueError: no mirror, one without "/" at its end, or a timeout that is not above 0.
    """
    if not mirrors or any(not mirror.endswith("/") for mirror in mirrors):
        raise ValueError(f'expected one or more mirrors that end in "/", got {mirrors}')
    if not 0 < timeout < math.inf:
        raise ValueError(f"expected a finite timeout > 0, got {timeout}")
    path = Path(folder, file.name)
    if path.is_file() and _fault(file, path.read_bytes()) is None:
        return path
    answers = []
    for mirror in mirrors:
        try:
            data = _get(mirror + file.name, file.length, timeout)
            fault = _fault(file, data)
        # A timeout is an OSError, and so is every refusal of urllib's.
        except (OSError, http.client.HTTPException) as error:
            fault = str(getattr(error, "reason", "") or error) or type(error).__name__
            if isinstance(error, urllib.error.HTTPError):
                fault = f"status {error.code}"
        if fault is None:
            _put(path, data)
            return path
        answers.append(f"{mirror}: {fault}")
    raise DownloadError(
        f"{path}: could not be fetched ({'; '.join(answers)}); without a network, put the file "
        "there by hand, or use data.glyphs, which needs none"
    )


def read_idx(path: str | os.PathLike) -> UInt8[Tensor, "N *rest"]:
    """Read a gzipped IDX file of bytes: two zeros, type 8, the number of axes, the sizes, the data.

    Args:
        path: the file.

    Returns:
        (N, …) numbers from 0 to 255, in uint8.

    Raises:
        ValueError: the file is not gzipped, not IDX of unsigned bytes, or too short or too long.
    """
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole gzip file, got {error}") from error
    axes = data[3] if len(data) > 3 else 0
    if data[:3] != b"\0\0\x08" or axes < 1 or len(data) < 4 + 4 * axes:
        raise ValueError(f"{path}: expected IDX data of unsigned bytes, got {data[:4].hex()}")
    shape = tuple(np.frombuffer(data, ">u4", axes, 4).tolist())
    if len(data) != 4 + 4 * axes + math.prod(shape):
        raise ValueError(
            f"{path}: expected {math.prod(shape)} numbers for shape {shape}, got "
            f"{len(data) - 4 - 4 * axes}"
        )
    numbers = np.frombuffer(data, np.uint8, offset=4 + 4 * axes)
    return torch.from_numpy(numbers.copy()).reshape(shape)


def _get(address: str, length: int, timeout: float) -> bytes:
    """At most one byte more than wanted: enough to see that there is too much."""
    data = bytearray()
    with urllib.request.urlopen(address, timeout=timeout) as answer:
        if answer.status != 200:
            raise OSError(f"status {answer.status}")
        while len(data) <= length and (part := answer.read(min(_CHUNK, length + 1 - len(data)))):
            data += part
    return bytes(data)


def _fault(file: RemoteFile, data: bytes) -> str | None:
    if len(data) != file.length:
        size = f"{len(data)} bytes" if len(data) < file.length else "more"
        return f"expected {file.length} bytes, got {size}"
    found = hashlib.sha256(data).hexdigest()
    return None if found == file.sha256 else f"expected SHA-256 {file.sha256}, got {found}"


def _put(path: Path, data: bytes) -> None:
    """The file is whole or not there: it gets its name only after its last byte is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
