"""The one data set that has to be fetched: MNIST, 70 000 handwritten digits. It is optional.

Nothing here runs at import, and nothing is fetched unless `mnist` is called. Each file is taken
from the first mirror that gives the right bytes, checked by length and SHA-256, and only then put
in place, so that a file under its own name is always whole. Why not pooch: it writes to the disk
whatever a server sends, without end, and checks only then (1.9).
"""

import gzip
import hashlib
import http.client
import math
import os
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from aigc_lib import expect
from aigc_lib.data import files

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


class DownloadError(OSError):
    """A file could be had from nowhere; the message says what each mirror answered."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file somewhere else, and how to know it."""

    name: str  # below each mirror's address, and in the folder that it is kept in
    length: int  # bytes
    sha256: str  # of all its bytes, in hexadecimal


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
    """Handwritten digits, white on black, in [0, 1], and what they show: 60 000, or 10 000 to test.

    Fetched once, then read from the folder; see `fetch`.

    Source: LeCun et al. 1998, section III.A, for the data; the format is IDX.
    Derived: —
    """
    expect.one_of(MNIST, split=split)
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
    """The file in the folder: as it is if it is there and right, else from the first good mirror.

    A mirror's address ends in "/"; it may stay silent for `timeout` seconds. DownloadError if none
    gave the right bytes: then what stood in the folder is untouched.
    """
    slashed = len(mirrors) > 0 and all(mirror.endswith("/") for mirror in mirrors)
    expect.that(slashed, 'one or more mirrors that end in "/"', mirrors)
    expect.above(0, timeout=timeout)
    expect.finite(timeout=timeout)
    path = Path(folder, file.name)
    if path.is_file() and not _fault(file, path.read_bytes()):
        return path
    answers = []
    for mirror in mirrors:
        data, fault = _get(mirror, file, timeout)
        if not fault:
            files.put(path, data)
            return path
        answers.append(f"{mirror}: {fault}")
    raise DownloadError(
        f"{path}: could not be fetched ({'; '.join(answers)}); without a network, put the file "
        "there by hand, or use data.glyphs, which needs none"
    )


def read_idx(path: str | os.PathLike) -> UInt8[Tensor, "N *rest"]:
    """A gzipped IDX file of bytes: two zeros, type 8, the number of axes, the sizes, the data.

    ValueError, with the file's name, for anything else.
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


def _get(mirror: str, file: RemoteFile, timeout: float) -> tuple[bytes, str]:
    """What a mirror gives, and what is wrong with it."""
    try:
        with urllib.request.urlopen(mirror + file.name, timeout=timeout) as answer:
            if answer.status != 200:
                return b"", f"status {answer.status}"
            data = answer.read(file.length + 1)  # Enough to see that there is too much.
    except urllib.error.HTTPError as error:
        return b"", f"status {error.code}"
    # A timeout is an OSError, and so is every refusal of urllib's.
    except (OSError, http.client.HTTPException) as error:
        return b"", str(getattr(error, "reason", "") or error) or type(error).__name__
    return data, _fault(file, data)


def _fault(file: RemoteFile, data: bytes) -> str:
    if len(data) != file.length:
        size = f"{len(data)} bytes" if len(data) < file.length else "more"
        return f"expected {file.length} bytes, got {size}"
    found = hashlib.sha256(data).hexdigest()
    return "" if found == file.sha256 else f"expected SHA-256 {file.sha256}, got {found}"
