import gzip
import hashlib
import http.server
import math
import os
import runpy
import socket
import struct
import threading
import urllib.request

import pytest
import torch

from aigc_lib.data import download
from aigc_lib.data.download import DownloadError, RemoteFile, fetch, mnist, read_idx


def packed(data):
    """Compressed without the time of day, which would be part of a test's name."""
    return gzip.compress(data, mtime=0)


RIGHT = packed(bytes(range(256)) * 40)
FILE = RemoteFile(name="file.gz", length=len(RIGHT), sha256=hashlib.sha256(RIGHT).hexdigest())
SILENT = {"mute", "stalls"}


class Mirror(http.server.ThreadingHTTPServer):
    """A server on this machine: the first part of the path says how it behaves."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.files = {"file.gz": RIGHT}
        self.over = threading.Event()

    def address(self, behaviour):
        return f"http://127.0.0.1:{self.server_port}/{behaviour}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        _, behaviour, name = self.path.split("/")
        self.server.asked.append(behaviour)
        if behaviour == "mute":
            self.server.over.wait(20)
            return
        if behaviour == "moved":
            self.send_response(302)
            self.send_header("Location", f"/right/{name}")
            self.end_headers()
            return
        body = self.server.files.get(name)
        status = {"404": 404, "500": 500, "partial": 206}.get(behaviour, 200 if body else 404)
        body = body if status != 404 else b"not here"
        length = len(body)
        if behaviour == "truncated":
            body = body[:-7]
        elif behaviour == "short":
            length, body = length - 7, body[:-7]
        elif behaviour == "wrong":
            body = body[:-7] + b"1234567"
        elif behaviour == "long":
            length, body = length + 1, body + b"!"
        elif behaviour == "empty":
            length, body = 0, b""
        self.send_response(status)
        if behaviour != "endless":
            self.send_header("Content-Length", str(length))
        self.end_headers()
        try:
            if behaviour == "stalls":
                self.wfile.write(body[:100])
                self.wfile.flush()
                self.server.over.wait(20)
            elif behaviour == "endless":
                while not self.server.over.is_set():
                    self.wfile.write(body)
            else:
                self.wfile.write(body)
        except OSError:
            pass  # the client has heard enough

    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Mirror() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


BEHAVIOURS = {
    "404": "status 404",
    "500": "status 500",
    "partial": "status 206",
    "truncated": f"expected {len(RIGHT)} bytes, got {len(RIGHT) - 7} bytes",
    "short": f"expected {len(RIGHT)} bytes, got {len(RIGHT) - 7} bytes",
    "wrong": f"expected SHA-256 {FILE.sha256}, got",
    "long": f"expected {len(RIGHT)} bytes, got more",
    "endless": f"expected {len(RIGHT)} bytes, got more",
    "empty": f"expected {len(RIGHT)} bytes, got 0 bytes",
    "mute": "timed out",
    "stalls": "timed out",
}
each = pytest.mark.parametrize("behaviour", BEHAVIOURS)


def patience(behaviour):
    """Short where it runs out; else ample, for a crowded machine."""
    return 0.5 if behaviour in SILENT else 20.0


def test_the_right_bytes_are_kept_and_not_asked_for_again(tmp_path, mirror):
    for _ in range(2):
        path = fetch(FILE, tmp_path / "new", mirrors=(mirror.address("right"),))
        assert path == tmp_path / "new" / "file.gz"
        assert contents(tmp_path / "new") == {"file.gz": RIGHT}
    assert mirror.asked == ["right"]


def test_a_redirection_is_followed(tmp_path, mirror):
    fetch(FILE, tmp_path, mirrors=(mirror.address("moved"),))
    assert mirror.asked == ["moved", "right"]
    assert contents(tmp_path) == {"file.gz": RIGHT}


@each
def test_a_bad_mirror_is_named_with_its_answer_and_leaves_nothing(tmp_path, mirror, behaviour):
    with pytest.raises(DownloadError) as caught:
        fetch(FILE, tmp_path, mirrors=(mirror.address(behaviour),), timeout=patience(behaviour))
    assert f"{mirror.address(behaviour)}: {BEHAVIOURS[behaviour]}" in str(caught.value)
    assert mirror.asked == [behaviour]
    assert contents(tmp_path) == {}


@each
def test_after_a_bad_mirror_the_next_one_is_asked(tmp_path, mirror, behaviour):
    mirrors = tuple(mirror.address(name) for name in (behaviour, "right", "404"))
    fetch(FILE, tmp_path, mirrors=mirrors, timeout=patience(behaviour))
    assert mirror.asked == [behaviour, "right"]
    assert contents(tmp_path) == {"file.gz": RIGHT}


@pytest.mark.parametrize("damage", [RIGHT[:-1], RIGHT[:-1] + b"!", b""])
def test_a_damaged_file_in_the_folder_is_replaced_or_left_alone(tmp_path, mirror, damage):
    (tmp_path / "file.gz").write_bytes(damage)
    with pytest.raises(DownloadError):
        fetch(FILE, tmp_path, mirrors=(mirror.address("404"),))
    assert contents(tmp_path) == {"file.gz": damage}
    fetch(FILE, tmp_path, mirrors=(mirror.address("right"),))
    assert contents(tmp_path) == {"file.gz": RIGHT}


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as nobody:  # bound, but nobody listens
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}/"
        with pytest.raises(DownloadError, match="without a network, put the file there by hand"):
            fetch(FILE, tmp_path, mirrors=(address,))
    assert contents(tmp_path) == {}


def test_a_write_that_is_cut_off_leaves_the_old_file(tmp_path, mirror, monkeypatch):
    (tmp_path / "file.gz").write_bytes(b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        fetch(FILE, tmp_path, mirrors=(mirror.address("right"),))
    assert contents(tmp_path) == {"file.gz": b"old"}


def test_importing_reads_and_asks_nothing(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert "mnist" in runpy.run_path(download.__file__)


@pytest.mark.parametrize(
    ("call", "settings", "name"),
    [
        (fetch, {"mirrors": ()}, "mirrors"),
        (fetch, {"mirrors": ("http://127.0.0.1/", "http://127.0.0.1")}, "mirrors"),
        (fetch, {"timeout": 0}, "timeout"),
        (fetch, {"timeout": -1.0}, "timeout"),
        (fetch, {"timeout": math.inf}, "timeout"),
        (fetch, {"timeout": math.nan}, "timeout"),
        (mnist, {"split": "validation"}, "split"),
    ],
)
def test_settings_out_of_range_are_named(hook_off, tmp_path, call, settings, name):
    with pytest.raises(ValueError, match=name):
        call(*([FILE] if call is fetch else []), tmp_path, **settings)


# IDX


def idx(shape, numbers, kind=8):
    head = bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
    return head + bytes(numbers)


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (300, 1)])
def test_idx_holds_its_numbers_row_by_row(tmp_path, shape):
    numbers = torch.arange(torch.tensor(shape).prod()) % 256
    path = tmp_path / "data.gz"
    path.write_bytes(packed(idx(shape, numbers.tolist())))
    found = read_idx(path)
    assert found.dtype == torch.uint8
    assert torch.equal(found.long(), numbers.reshape(shape))
    found[0] = 0  # it can be written to


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (packed(idx((5,), range(5)))[:-9], "expected a whole gzip file"),
        (idx((5,), range(5)), "expected a whole gzip file"),
        (packed(b""), "expected IDX data of unsigned bytes"),
        (packed(idx((5,), range(5), kind=9)), "expected IDX data of unsigned bytes, got 00"),
        (packed(idx((), range(5))), "expected IDX data of unsigned bytes"),
        (packed(idx((2, 3), [])[:9]), "expected IDX data of unsigned bytes"),
        (packed(idx((2, 3), range(5))), r"expected 6 numbers for shape \(2, 3\), got 5"),
        (packed(idx((2, 3), range(7))), r"expected 6 numbers for shape \(2, 3\), got 7"),
        (packed(idx((5,), range(5)))[:12] + b"?", "expected a whole gzip file"),
    ],
)
def test_what_is_not_idx_is_named(tmp_path, data, message):
    path = tmp_path / "data.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_idx(path)


# MNIST


@pytest.fixture
def small_mnist(mirror, monkeypatch):
    """Two files that stand in for a split, known by their own checksums."""
    pixels, digits = torch.arange(3 * 784) % 256, [7, 0, 9]
    files = {
        "train-images-idx3-ubyte.gz": packed(idx((3, 28, 28), pixels.tolist())),
        "train-labels-idx1-ubyte.gz": packed(idx((3,), digits)),
    }
    mirror.files = files
    known = tuple(
        RemoteFile(name=name, length=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    )
    monkeypatch.setitem(download.MNIST, "train", known)
    return pixels, digits


def test_mnist_is_images_from_0_to_1_and_their_digits(tmp_path, mirror, small_mnist):
    for _ in range(2):
        images, labels = mnist(tmp_path, mirrors=(mirror.address("right"),))
        assert images.shape == (3, 1, 28, 28)
        assert images.dtype == torch.float32
        assert torch.equal((255 * images).round().long().flatten(), small_mnist[0])
        assert images.max() == 1
        assert labels.tolist() == small_mnist[1]
        assert labels.dtype == torch.int64
    assert mirror.asked == ["right", "right"]


def test_the_four_files_are_the_ones_that_were_published():
    lengths = {"train": (9_912_422, 28_881), "test": (1_648_877, 4_542)}
    for split, files in download.MNIST.items():
        assert tuple(file.length for file in files) == lengths[split]
        assert all(len(bytes.fromhex(file.sha256)) == 32 for file in files)
        assert ["images-idx3" in file.name for file in files] == [True, False]
    assert len({file.sha256 for files in download.MNIST.values() for file in files}) == 4
    assert all(mirror.startswith("https://") for mirror in download.MIRRORS)
