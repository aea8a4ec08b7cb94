"""Read, run, normalise and write notebooks."""

import atexit
import contextlib
import functools
import hashlib
import json
import os
import re
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from tqdm import tqdm

from tools import ROOT, Refusal, kernel_environment, write_file
from tools.study import bands

TIERS = ("minute", "coffee", "gpu")
BAR = re.compile(r"\d+%\|.*\||\d+\S* \[\d\d:\d\d")
# A Markdown cell with this beginning, right after a code cell, is the caption of its figure.
CAPTION = re.compile(r"\*\*Figure(?: \d+\.\d+)?\.\*\* ")
# A Markdown cell that begins a section which the next chapters do not need.
DEEPER = re.compile(r"#+ .*\(deeper\)\s*$", re.M)
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def read(path: Path) -> NotebookNode:
    """Read a notebook, into the current format; refuse what is none."""
    try:
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb)
    except OSError:
        raise
    except Exception as error:  # nbformat raises whatever a broken file leads to
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Refusal(f"{path}: not a readable notebook: {reason}") from None
    return nb


def write(nb: NotebookNode, path: Path) -> None:
    """Write a notebook so that the file is always the old or the new one."""
    write_file(path, (nbformat.writes(nb) + "\n").encode())


def cell_name(nb: NotebookNode, index: int) -> str:
    """How messages name a cell: its number, from 1, and the beginning of its text."""
    first = next(iter(nb.cells[index].source.strip().splitlines()), "empty")
    return f"cell {index + 1} ({first[:50]})"


def has_tag(cell: NotebookNode, tag: str) -> bool:
    """Whether a cell carries a tag."""
    return tag in cell.metadata.get("tags", [])


def code_hash(nb: NotebookNode) -> str:
    """A digest of the code cells; stored with the outputs, it tells when these are stale."""
    sources = [cell.source for cell in nb.cells if cell.cell_type == "code"]
    return hashlib.sha256(repr(sources).encode()).hexdigest()


def set_tier(nb: NotebookNode, tier: str) -> None:
    """Choose how long the notebook trains, one of TIERS, in its cell tagged `parameters`.

    A notebook without that cell has only the shortest tier.
    """
    if tier not in TIERS:
        raise Refusal(f"no tier {tier!r}; RUN is one of {', '.join(TIERS)}")
    if tier == "minute":
        return
    for cell in nb.cells:
        if cell.cell_type == "code" and has_tag(cell, "parameters"):
            source, found = re.subn(r'^RUN = "\w+"', f'RUN = "{tier}"', cell.source, flags=re.M)
            if found:
                cell.source = source
                return
    raise Refusal(f"this chapter has no tier {tier!r}: no cell tagged parameters says RUN")


@functools.cache
def _socket_folder() -> str:
    # The system allows a socket's path about a hundred letters.
    place = None if len(tempfile.gettempdir()) < 60 else "/tmp"
    folder = tempfile.TemporaryDirectory(prefix="aigc-", dir=place)
    atexit.register(folder.cleanup)
    return folder.name


def channels() -> dict[str, str]:
    """How to talk to one new kernel: over Unix sockets, which need no network and never clash.

    Over TCP, kernels that start at the same time sometimes take each other's ports. The result is
    for a kernel manager; it is empty on Windows, which has nothing but TCP.
    """
    if os.name == "nt":
        return {}
    return {"transport": "ipc", "ip": f"{_socket_folder()}/{uuid.uuid4().hex[:8]}"}


def execute(nb: NotebookNode, folder: Path, root: Path = ROOT, bar: bool = True) -> float:
    """Run all cells in a fresh kernel in `folder`, with a progress bar; the seconds that took.

    Outputs go into the notebook, the bands of its claims into its metadata. The library is that of
    `root`. A Refusal holds the traceback of the cell that failed; the notebook then holds what ran
    until there.
    """
    code = [index for index, cell in enumerate(nb.cells) if cell.cell_type == "code"]
    for index in code:
        nb.cells[index].update(outputs=[], execution_count=None)
    client = NotebookClient(nb, timeout=None, record_timing=False, shutdown_kernel="immediate")
    client.km = AsyncKernelManager(kernel_name="python3", **channels())
    environment = kernel_environment(root)
    with (
        client.setup_kernel(cleanup_kc=True, cwd=str(folder), env=environment),
        _bar(code, bar) as cells,
    ):
        _aside(client, bands.RECORD)
        start = time.perf_counter()
        for index in cells:
            cells.set_description_str(cell_name(nb, index))
            _execute_cell(client, nb, index)
        seconds = time.perf_counter() - start
        nb.metadata["bands"] = json.loads(_aside(client, bands.TELL) or "[]")
        return seconds


def _aside(client: NotebookClient, source: str) -> str:
    """What code prints that runs in the notebook's kernel without being a part of it."""
    cell = nbformat.v4.new_code_cell(source)
    client.nb.cells.append(cell)
    client.execute_cell(cell, len(client.nb.cells) - 1, store_history=False)
    client.nb.cells.pop()
    return "".join(output.get("text", "") for output in cell.outputs)


@contextlib.contextmanager
def _bar(cells: list[int], shown: bool) -> Iterator[tqdm]:
    """A progress bar whose clock goes on during a long cell."""
    done = threading.Event()

    def tick() -> None:
        while not done.wait(1):
            bar.refresh()

    off = not (shown and sys.stderr.isatty())
    with tqdm(
        cells, bar_format="{n_fmt}/{total_fmt} |{bar:20}| {elapsed} {desc}", disable=off
    ) as bar:
        if not off:
            threading.Thread(target=tick, daemon=True).start()
        try:
            yield bar
        finally:
            done.set()


def _execute_cell(client: NotebookClient, nb: NotebookNode, index: int) -> None:
    cell = nb.cells[index]
    try:
        client.execute_cell(cell, index)
    except DeadKernelError:
        raise Refusal(f"{cell_name(nb, index)}: the kernel died; is memory short?") from None
    except CellExecutionError:
        pass  # its traceback is among the outputs
    # Not `except`: a figure is drawn after its cell has ended, and its error is only an output.
    for output in cell.outputs:
        if output.output_type == "error" and not has_tag(cell, "raises-exception"):
            traceback = ANSI.sub("", "\n".join(output.traceback))
            raise Refusal(f"{traceback}\n{cell_name(nb, index)} failed: {output.ename}")


def normalise(nb: NotebookNode, seconds: float) -> NotebookNode:
    """A notebook that ran in `seconds`, as it is committed: the same on any machine.

    Metadata are reduced, ids and figures numbered, progress bars dropped, streams merged.
    """
    title = re.match(r"# (\d+)\.", nb.cells[0].source) if nb.cells else None
    cells, captions = [], 0
    for index, cell in enumerate(nb.cells):
        clean = NotebookNode(
            id=f"cell-{index:03d}",
            cell_type=cell.cell_type,
            metadata=_cell_metadata(cell),
            source=cell.source,
        )
        if cell.cell_type == "code":
            clean.update(execution_count=cell.execution_count, outputs=_outputs(cell))
        elif title and CAPTION.match(cell.source):
            captions += 1
            clean.source = CAPTION.sub(f"**Figure {title[1]}.{captions}.** ", cell.source, count=1)
        cells.append(clean)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "aigc": {"code_hash": code_hash(nb), "seconds": round(seconds, 1)},
    }
    if found := nb.metadata.get("bands", nb.metadata.get("aigc", {}).get("bands")):
        metadata["aigc"]["bands"] = found
    return nbformat.from_dict(
        {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    )


def _cell_metadata(cell: NotebookNode) -> dict:
    metadata = {}
    if tags := cell.metadata.get("tags"):
        metadata["tags"] = tags
    if has_tag(cell, "hide-cell"):
        metadata["jupyter"] = {"source_hidden": True, "outputs_hidden": True}
    elif has_tag(cell, "hide-input"):
        metadata["jupyter"] = {"source_hidden": True}
    if DEEPER.match(cell.source):
        metadata["jp-MarkdownHeadingCollapsed"] = True
    return metadata


def _outputs(cell: NotebookNode) -> list[NotebookNode]:
    kept: list[NotebookNode] = []
    for output in cell.outputs:
        if output.output_type != "stream":
            kept.append(NotebookNode(output) | ({"metadata": {}} if "metadata" in output else {}))
            continue
        text = output.text
        if output.name == "stderr" and not has_tag(cell, "nbval-check-output"):
            text = _without_bars(text)
        if kept and kept[-1].get("name") == output.name:
            kept[-1].text += text
        elif text:
            kept.append(NotebookNode(output_type="stream", name=output.name, text=text))
    return kept


def _without_bars(stderr: str) -> str:
    lines = re.split(r"[\r\n]+", ANSI.sub("", stderr))
    return "\n".join(line for line in lines if line.strip() and not BAR.search(line))
