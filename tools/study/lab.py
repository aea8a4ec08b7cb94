"""`make lab`: JupyterLab on study/, the learner's own copy of the chapters.

A chapter is copied when it is new, or when it has a newer version and the learner hasn't changed
a cell of it. Running cells is no change. A changed chapter is never overwritten. Copies have no
outputs yet but figures: predict, then run.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

from tools import ROOT, Refusal, bootstrap, command, write_file
from tools.study import manifest

ORIGIN = ".origin.json"  # for each copy: digests of the chapter that it was made from


def update(root: Path, book: manifest.Book) -> list[str]:
    """Bring study/ up to date: the chapters, and the results that they show.

    Returns one line for each file that the learner has changed and that was therefore kept.
    """
    study, chapters = root / "study", root / "chapters"
    study.mkdir(exist_ok=True)
    origin = _read_origin(study / ORIGIN)
    results = sorted(path for path in (chapters / "results").rglob("*") if path.is_file())
    kept = []
    for source in [*(chapter.notebook(root) for chapter in book.chapters), *results]:
        name = source.relative_to(chapters).as_posix()
        copy = study / name
        content = source.read_bytes()
        new = {"file": hashlib.sha256(content).hexdigest(), "own": own(source)}
        old = origin.get(name, {})
        if copy.exists() and own(copy) not in (old.get("own"), new["own"]):
            line = f"study/{name}: you have changed it, so it stays as it is."
            if new["file"] != old.get("file"):
                line += " The course has a newer version: to get it, rename yours and start again."
            kept.append(line)
        elif not copy.exists() or new["file"] != old.get("file"):
            write_file(copy, _unproven(content) if copy.suffix == ".ipynb" else content)
            origin[name] = new
            write_file(study / ORIGIN, json.dumps(origin, indent=1).encode())
    return kept


def _unproven(content: bytes) -> bytes:
    """A chapter that has not been run: its reader predicts, then runs. Only figures stay."""
    nb = json.loads(content)
    for cell in nb["cells"]:
        if cell["cell_type"] == "code":
            shown = [out for out in cell["outputs"] if "image/png" in out.get("data", {})]
            cell.update(outputs=shown, execution_count=None)
    return (json.dumps(nb, indent=1, ensure_ascii=False) + "\n").encode()


def own(path: Path) -> str:
    """A digest of what a learner may make their own: in a notebook, each cell's text and kind."""
    content = path.read_bytes()
    if path.suffix == ".ipynb":
        try:
            cells = json.loads(content)["cells"]
            texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
            content = repr(texts).encode()
        except (ValueError, KeyError, TypeError):
            pass  # no notebook any more: changed
    return hashlib.sha256(content).hexdigest()


def _read_origin(path: Path) -> dict[str, dict[str, str]]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}  # every copy that differs from its chapter then counts as changed


def jupyter(root: Path, port: str, first: str = "") -> tuple[list[str], dict[str, str]]:
    """The command that starts JupyterLab here, from `port` on if one is named, its environment.

    It shows `first`, or what was open when it was last left.
    """
    line = [sys.executable, "-m", "jupyterlab", str(root / "study"), "--log-level=WARN"]
    if first:
        line.append(f"--LabApp.default_url=/lab/tree/{first}")
    if port:
        line.append(f"--ServerApp.port={port}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        line.append("--allow-root")  # in a container there is nobody else
    screen = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    if sys.platform.startswith("linux") and not any(map(os.environ.get, screen)):
        line.append("--no-browser")
    # Its default settings: no question about news, no look for newer versions.
    path = [str(root / "tools" / "study" / "jupyter"), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    environment = os.environ | {"JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, path))}
    if not os.access(Path.home(), os.W_OK):  # a read-only home: keep here what Jupyter keeps there
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
            environment.setdefault(name, str(root / "build" / "jupyter" / name.lower()))
    return line, environment


def main() -> int:
    """Bring study/ up to date and become JupyterLab."""
    parser = argparse.ArgumentParser(prog="make lab", description=__doc__)
    parser.add_argument("--port", default="", help="where to begin to look for a free port")
    port = parser.parse_args().port
    if port and not (port.isdecimal() and int(port) < 65536):
        raise Refusal(f"PORT is a number below 65536, got {port!r}")
    book, is_new = manifest.load(), not (ROOT / "study").exists()
    kept = update(ROOT, book)
    said = "Your copies of the chapters are in study/, without what cells print: predict, then run."
    print("\n".join([said, *kept]))
    print("Starting JupyterLab on them; Ctrl-C twice ends it.", flush=True)
    first = book.chapters[0].notebook().name if is_new else ""
    return bootstrap.become(*jupyter(ROOT, port, first))


if __name__ == "__main__":
    command(main)
