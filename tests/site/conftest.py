"""A copy of the course and the book made from it, a tiny course to plant faults in, a browser."""

import functools
import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import filelock
import pytest
import sample
from browsing import unavailable
from playwright.sync_api import sync_playwright

from tools import KERNEL_ENVIRONMENT, ROOT
from tools.book import npm

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """What is left of a build in a copy with the sample as one more chapter: `built/said.json`.

    Test processes that run side by side share one copy, which the first of them makes.
    """
    home = tmp_path_factory.getbasetemp()
    home = (home.parent if "PYTEST_XDIST_WORKER" in os.environ else home) / "built"
    with filelock.FileLock(f"{home}.lock"):
        if not (home / "said.json").exists():
            copy_of_the_course(home)
            command = [sys.executable, "-m", "tools.book.site"]
            said = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
            answer = {"code": said.returncode, "stdout": said.stdout, "stderr": said.stderr}
            (home / "said.json").write_text(json.dumps(answer))
    return home


@pytest.fixture(scope="session")
def said(built) -> dict:
    """What `python -m tools.book.site` said there: code, stdout, stderr."""
    return json.loads((built / "said.json").read_text())


@pytest.fixture(scope="session")
def course(built, said) -> Path:
    """The copy, with a book in it."""
    assert said["code"] == 0, said["stderr"]
    return built


def copy_of_the_course(root: Path) -> Path:
    """Copy what the book is made of, and add the sample chapter."""
    ignored = shutil.ignore_patterns("__pycache__", "weights", ".ipynb_checkpoints")
    for folder in ("aigc_lib", "bench", "tools", "site", "chapters", "assignments"):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
    for file, more in (("book.toml", sample.MANIFEST), ("references.bib", sample.REFERENCE)):
        text = (ROOT / file).read_text(encoding="utf-8")
        (root / file).write_text(text + more, encoding="utf-8")
    sample.put(root)
    home = npm.fetch(npm.MATHJAX, ROOT)
    if home is not None:
        shutil.copytree(home, root / "build" / home.name)
    return root


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A course of two small chapters and no library, to plant faults in."""
    shutil.copytree(ROOT / "site", tmp_path / "site")
    (tmp_path / "references.bib").write_text(sample.REFERENCE)
    (tmp_path / "book.toml").write_text(sample.BOOK + sample.MANIFEST, encoding="utf-8")
    sample.put(tmp_path)
    sample.put_first(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def book(course):
    """The address of the built book."""
    if not (course / "_build/html/_static/mathjax").is_dir():
        unavailable("no MathJax: npm is missing or had no network")
    handler = functools.partial(_QuietHandler, directory=course / "_build/html")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A folder, and the address of a JupyterLab that serves it."""
    home, served = (tmp_path_factory.mktemp(name) for name in ("jupyter", "notebooks"))
    own = {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={served}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    with open(home / "log", "w") as log:
        environment = os.environ | own | KERNEL_ENVIRONMENT
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert server.poll() is None, (home / "log").read_text()
            if _answers(f"{address}/api"):
                break
            time.sleep(0.2)
        yield served, address
    finally:
        server.terminate()
        server.wait(60)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5):
            return True
    except (urllib.error.URLError, TimeoutError):
        return False


# Not for the session: while Playwright runs, no other test of the process could use asyncio.
@pytest.fixture(scope="module")
def tab():
    """The only tab of a headless Chromium."""
    found = filter(None, map(shutil.which, PROGRAMS))
    program = os.environ.get("CHROMIUM") or next(found, None)
    if program is None:
        unavailable("no Chromium on the PATH, and CHROMIUM does not name one")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=FLAGS.split())
        context = chromium.new_context(reduced_motion="reduce")
        context.set_default_timeout(120_000)  # milliseconds; other tests may use every core
        yield context.new_page()
        chromium.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The accessibility checker, as JavaScript."""
    home = npm.fetch(npm.AXE, ROOT)
    if home is None:
        unavailable("no axe-core: npm is missing or had no network")
    return (home / "axe-core/axe.min.js").read_text(encoding="utf-8")
