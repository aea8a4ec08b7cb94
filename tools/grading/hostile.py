"""Submissions that try to harm or to cheat the grader, made from a right solution of 99_tiny.

Each says what must become of it. "look" stands for points that a person should look
at, "no score" for none; nothing that they do may reach beyond their own kernel.
"""

import copy
import dataclasses
import json
from collections.abc import Callable

import nbformat
from nbformat import NotebookNode

from tools.grading.source import grade_id, nbgrader

TALK = "for _ in range(300):\n    print('x' * 9999)"
RIGHT = 90.0  # points of a right solution without its written answer
WRONG = "def running_sum(x):\n    return x\n"  # loses all of task 1, 40 points


@dataclasses.dataclass(frozen=True)
class Hostile:
    """A submission and what must become of it."""

    name: str
    change: Callable[[NotebookNode], None] | bytes  # of the solved notebook, or the file itself
    status: str  # or two, with " or " between them
    points: float | None  # where there is a score


def _code(cell: str, text: str, keep: bool = True) -> Callable[[NotebookNode], None]:
    """A change: code put before a solution, or in its place."""

    def change(nb: NotebookNode) -> None:
        found = _cell(nb, cell)
        found.source = text + ("\n" + found.source if keep else "")

    return change


def _cell(nb: NotebookNode, name: str) -> NotebookNode:
    return next(cell for cell in nb.cells if grade_id(cell) == name)


def _edited(nb: NotebookNode) -> None:
    _cell(nb, "t1-solution").source = WRONG
    _cell(nb, "t1-visible").source = _cell(nb, "t1-hidden").source = "pass"


def _deleted(nb: NotebookNode) -> None:
    gone = ("setup", "t1-hidden", "t2-given", "t2-visible")
    nb.cells = [cell for cell in nb.cells if grade_id(cell) not in gone]


def _tagged(nb: NotebookNode) -> None:
    _cell(nb, "t1-solution").source = WRONG
    for cell in nb.cells:
        cell.metadata["tags"] = ["demo", "skip-execution"]


def _other_metadata(nb: NotebookNode) -> None:
    nb.metadata["kernelspec"] = {"name": "bash", "language": "bash", "display_name": "Bash"}
    for cell in nb.cells:
        if nbgrader(cell):
            nbgrader(cell).update(points=1000.0, grade=False, locked=False, checksum="0")


def _copied_solution(nb: NotebookNode) -> None:
    wrong = copy.deepcopy(_cell(nb, "t1-solution"))
    wrong.source = WRONG
    nb.cells.insert(nb.cells.index(_cell(nb, "t1-solution")) + 1, wrong)


def _same_ids(nb: NotebookNode) -> None:
    for cell in nb.cells:
        cell["id"] = "same"


def _reads_hidden(nb: NotebookNode) -> None:
    _code("t2-solution", "def mean(x):\n    raise ValueError(str(In))\n", keep=False)(nb)
    nb.cells.append(nbformat.v4.new_code_cell("print('\\n'.join(In))"))


def _empty(nb: NotebookNode) -> None:
    nb.cells = []


PATCH = "import contextlib\n@contextlib.contextmanager\ndef quiet(name):\n    try:\n        yield\n"
PATCH += "    except Exception:\n        pass\n"
SEARCH = """import os
found = []
for folder, _, files in os.walk("/"):
    found += [os.path.join(folder, f) for f in files if f.endswith((".db", ".ipynb", ".csv"))]
for path in found + {known!r}:
    try:
        text = open(path, "rb").read()
        print(path, text[:100])
        open(path, "wb").write(b"gone")
    except OSError:
        pass
"""
DELETE = """import os, shutil
for path in {known!r} + ["/home", "/root", "/tmp/w", "/usr", "/etc", "/var"]:
    shutil.rmtree(path, ignore_errors=True)
    try:
        os.remove(path)
    except OSError:
        pass
"""
CALL = """import socket
for host in ("127.0.0.1", {address!r}):
    try:
        socket.create_connection((host, {port}), timeout=2).send(b"here")
    except OSError:
        pass
"""
SWALLOW = "get_ipython().input_transformers_cleanup.append(\n"
SWALLOW += "    lambda lines: [] if any('grading' in line for line in lines) else lines)\n" + WRONG
DEAF = "import time\ndef mean(x):\n    while True:\n        try:\n            time.sleep(999)\n"
DEAF += "        except BaseException:\n            pass\n"
MANY = "import os, time\nfor _ in range(12):\n    if not os.fork():\n"
MANY += "        x = bytearray(b'x' * 400_000_000)\n        time.sleep(60)\ntime.sleep(60)\n"
FORK = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
EATER = "def running_sum(x):\n    eaten = []\n    while True:\n"
EATER += "        eaten.append(bytearray(10**8))\n"
FAKE = "class Fake(torch.Tensor):\n    __eq__ = lambda self, other: True\n"
FAKE += "def running_sum(x):\n    return x.as_subclass(Fake)\n"
FILL = "try:\n    for i in range(20):\n        open(f'/tmp/{i}', 'wb').write(b'x' * 10**8)\n"
FILL += "except OSError:\n    pass\n"


def cheats() -> list[Hostile]:
    """Submissions that want points which they do not deserve, or are broken."""
    look, none = "look", "no score"
    return [
        Hostile("edited", _edited, look, RIGHT - 40),
        Hostile("deleted", _deleted, look, RIGHT),
        Hostile("skip_tags", _tagged, "graded", RIGHT - 40),
        Hostile("other_metadata", _other_metadata, "graded", RIGHT),
        Hostile("copied_solution", _copied_solution, look, RIGHT - 40),
        Hostile("same_ids", _same_ids, "graded", RIGHT),
        Hostile("no_cells", _empty, none, None),
        Hostile("bad_json", b'{"cells": [', none, None),
        Hostile("no_notebook", json.dumps({"a": 1}).encode(), none, None),
        Hostile("bad_cells", b'{"nbformat": 4, "nbformat_minor": 5, "cells": 3}', none, None),
        Hostile("patched_answer", _patched("grading.answer = lambda *a, **k: None"), none, None),
        Hostile("patched_task", _patched(PATCH + "grading.task = quiet"), none, None),
        Hostile("patched_torch", _patched("torch.Tensor.tolist = lambda x: [1.0]"), none, None),
        Hostile("patched_close", _patched("torch.testing.assert_close = print"), none, None),
        Hostile("other_grading", _patched(PATCH + "class grading:\n    task = quiet"), none, None),
        Hostile("swallowed_cells", _code("t1-solution", SWALLOW, keep=False), none, None),
        Hostile("silent_errors", _patched("get_ipython().showtraceback = print"), none, None),
        Hostile("fake_tensor", _code("t1-solution", FAKE, keep=False), look, RIGHT - 40),
    ]


def attacks(known: list[str], address: str, port: int) -> list[Hostile]:
    """Submissions that want to harm, or use up what there is."""
    look, none = "look", "no score"
    search, delete = SEARCH.format(known=known), DELETE.format(known=known)
    call = CALL.format(address=address, port=port)
    return [
        Hostile("endless", _code("t2-solution", "def mean(x):\n    while 1: 0", False), look, 60.0),
        Hostile("asleep", _code("t3-solution", "import time\ntime.sleep(999)", False), look, 70.0),
        Hostile("deaf", _code("t2-solution", DEAF, keep=False), none, None),
        Hostile("crash", _code("t2-solution", "import ctypes\nctypes.string_at(0)"), none, None),
        Hostile("exit", _code("t2-solution", "import os\nos._exit(0)"), none, None),
        Hostile("fork_bomb", _code("t2-solution", FORK), none, None),
        Hostile("memory_bomb", _code("t1-solution", EATER, keep=False), "graded", RIGHT - 40),
        Hostile("memory_of_many", _code("t2-solution", MANY), none, None),
        # The kernel dies of it, or printing fails at the limit of memory: whichever comes first.
        Hostile(
            "flood",
            _code("t2-solution", "while True: print('x' * 9999)"),
            f"{none} or {look}",
            60.0,
        ),
        Hostile(
            "chatty", _code("t2-solution", "for _ in range(300): print('x' * 9999)"), look, RIGHT
        ),
        Hostile("reads_hidden", _reads_hidden, look, RIGHT - 30),
        Hostile("searches", _code("t1-solution", search), look, RIGHT),
        Hostile("deletes", _code("t1-solution", delete), look, RIGHT),
        Hostile("calls_home", _code("t1-solution", call), look, RIGHT),
        Hostile("fills_disk", _code("t1-solution", FILL), look, RIGHT),
        Hostile(
            "lives_on",
            _patched("import subprocess\nsubprocess.Popen(['sleep', '999'])"),
            look,
            50.0,
        ),
    ]


def _patched(text: str) -> Callable[[NotebookNode], None]:
    return _code("t1-solution", f"{text}\n{WRONG}", keep=False)
