"""nbgrader's preprocessors of our own: cells that must fail, and what feedback may show.

A student's code runs in the same kernel as the tests, so it could make tests pass. Between the
tests stand canaries: cells that look like tests and must fail with a sentence drawn by lot, and
some that must succeed. If one does otherwise, something swallows failures and no score is given.
"""

import ast
import json
import os
import secrets
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.manager import AsyncKernelManager
from nbclient.client import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from nbgrader.preprocessors import ClearHiddenTests, Execute, NbGraderPreprocessor
from zmq.asyncio import Context

from tools.grading.gradebook import escape
from tools.grading.source import HIDDEN, grade_id, labels, role

MAX_MESSAGE = 4_000_000  # bytes; the grader hangs up on a kernel that sends a longer one
MAX_OUTPUT = 1_000_000  # characters of one cell's output; what comes after is dropped
MAX_SENTENCE = 300
WITHHELD = "a canary did not do what it must: something swallows failures, or makes them"
TOO_LONG = "{}: stopped after {:g} seconds, the most that one cell may take"


class Insert(NbGraderPreprocessor):
    """Put the canaries in."""

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        """Add a canary before each test and a row of them after the last one."""
        cells, end = [], 0
        for cell in nb.cells:
            if role(cell) in ("visible", "hidden"):
                cells.append(twin(cell.source))
                end = len(cells) + 1
            cells.append(cell)
        cells[end:end] = row()
        nb.cells = cells
        return nb, resources


def twin(source: str) -> NotebookNode:
    """A canary that looks like a test and fails in its first line.

    A plain one if the test is not a single `with grading.task(…)` block.
    """
    words, (a, b) = f"case {secrets.token_hex(4)}", sorted(1 + secrets.randbelow(90) for _ in "ab")
    b += 1
    lines = [
        f"grading.answer({words!r}, torch.tensor([{a}.0, {b}.0]), torch.tensor([{a}.0, {a}.0]))",
        f"raise AssertionError({words!r})",
        f"grading.answer({words!r}, {b}.0, {a}.0)",
        f"if torch.tensor([{a}.0, {b}.0])[1] > {a}.0: raise AssertionError({words!r})",
    ]
    ends = [f": expected {a}, got {b}", "", f": expected {a}, got {b}", ""]
    which = secrets.randbelow(len(lines))
    try:
        (block,) = ast.parse(source).body
        name = ast.literal_eval(block.items[0].context_expr.args[0])
        text, first = source.splitlines(), block.body[0]
    except (SyntaxError, ValueError, AttributeError, IndexError, TypeError):
        return canary(f"raise RuntimeError({words!r})", "RuntimeError", words)
    text.insert(first.lineno - 1, " " * first.col_offset + lines[which])
    return canary("\n".join(text), "NotYet", f"{name}: {words}{ends[which]}")


def row() -> list[NotebookNode]:
    """Canaries of every other kind, the last of which must succeed."""
    words, number = [f"case {secrets.token_hex(4)}" for _ in range(5)], secrets.randbelow(10**6)
    close = "torch.testing.assert_close(torch.tensor([1.0]), torch.tensor([2.0]), msg={!r})"
    unequal = "with grading.task('x'):\n    grading.answer({!r}, torch.ones(2), torch.zeros(2))"
    good = f"with grading.task('x'):\n    grading.answer('x', torch.tensor([{number}.0]) + 1, "
    good += f"torch.tensor([{number + 1}.0]))\nprint({number} * 7)"
    return [
        canary(f"raise RuntimeError({words[0]!r})", "RuntimeError", words[0]),
        canary(f"assert 1 == 2, {words[1]!r}", "AssertionError", words[1]),
        canary(close.format(words[2]), "AssertionError", words[2]),
        canary(f"with grading.task('x'):\n    raise ValueError({words[3]!r})", "NotYet", words[3]),
        canary(unequal.format(words[4]), "NotYet", words[4]),
        canary(good, "", f"{number * 7}\n"),
    ]


def canary(source: str, error: str, text: str) -> NotebookNode:
    """A cell that must raise the `error` whose text holds `text`, or print it if `error` is ""."""
    return new_code_cell(source, metadata={"canary": {"error": error, "text": text}})


def sings(cell: NotebookNode) -> bool:
    """Whether a canary did what it must."""
    error, text = cell.metadata.canary.error, cell.metadata.canary.text
    errors = [output for output in cell.outputs if output.output_type == "error"]
    if error:
        return bool(errors) and all(e.ename == error and text in e.evalue for e in errors)
    printed = [o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"]
    return not errors and "".join(printed) == text


class Manager(AsyncKernelManager):
    """A kernel manager that hangs up on messages that would fill the grader's memory."""

    def _context_default(self) -> Context:
        self._created_context = True
        context = Context()
        context.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        context.setsockopt(zmq.RCVHWM, 100)
        return context


class Run(Execute):
    """nbgrader's own execution, with a bound on what a cell may put out."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **(settings | {"kernel_manager_class": Manager}))

    def preprocess_cell(self, cell: NotebookNode, resources: Any, index: int) -> tuple:
        """Write down which cell runs, in case that it takes the kernel with it."""
        if cell.cell_type == "code" and "canary" not in cell.metadata:
            (Path(os.environ["AIGC_JOB"]) / "cell").write_text(called(self.nb, cell))
        return super().preprocess_cell(cell, resources, index)

    def process_message(self, msg: dict, cell: NotebookNode, cell_index: int) -> Any:
        """Take one message of the kernel, unless the cell has said enough."""
        if msg["msg_type"] in ("stream", "display_data", "execute_result", "error"):
            said = cell.metadata.get("said", 0) + len(str(msg["content"]))
            cell.metadata["said"] = said
            if said > MAX_OUTPUT and msg["msg_type"] != "error":
                return None
        elif msg["msg_type"] not in ("status", "clear_output", "execute_input"):
            return None  # neither widgets nor updates of earlier cells
        return NotebookClient.process_message(self, msg, cell, cell_index)


class Judge(NbGraderPreprocessor):
    """Take the canaries out, say what they found, and reduce what tests put out to one line."""

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        """Judge an executed notebook; what a person should know goes to a file."""
        notes = {"withheld": "", "look": []}
        if not all(sings(cell) for cell in nb.cells if "canary" in cell.metadata):
            notes["withheld"] = WITHHELD
        nb.cells = [cell for cell in nb.cells if "canary" not in cell.metadata]
        limit = json.loads((Path(os.environ["AIGC_JOB"]) / "settings.json").read_text())["limits"]
        secret = hidden_lines(nb)
        for cell in list(nb.cells):
            if cell.cell_type != "code":
                continue
            if cell.metadata.pop("said", 0) > MAX_OUTPUT:
                notes["look"].append(f"{called(nb, cell)}: too much output, cut off")
            if any(o.get("ename") == "CellTimeoutError" for o in cell.outputs):
                said = TOO_LONG.format(called(nb, cell), limit["cell"])
                notes["look"].append(said)
                tell(nb, cell, said)
            if role(cell) in ("visible", "hidden"):
                cell.outputs = one_line(cell.outputs, secret)
            for output in cell.outputs:
                for kind in set(output.get("data", ())) - {"text/plain", "image/png"}:
                    del output.data[kind]
        (Path(os.environ["AIGC_JOB"]) / "notes.json").write_text(json.dumps(notes))
        return nb, resources


def called(nb: NotebookNode, cell: NotebookNode) -> str:
    """What people call a cell: by its task, or by how it begins."""
    begin = " ".join(cell.source.split())[:40]
    name = grade_id(cell)
    return labels(nb).get(name) or name or f"an added cell, which begins with “{begin}”"


def tell(nb: NotebookNode, cell: NotebookNode, said: str) -> None:
    """Say in one sentence what stopped a cell, instead of how Python was interrupted."""
    cell.outputs = [output for output in cell.outputs if output.output_type != "error"]
    if role(cell) in ("visible", "hidden"):
        cell.outputs = [new_output("error", ename="Stopped", evalue=said, traceback=[said])]
    else:  # a text of its own, as outputs may not be shown
        text = new_markdown_cell(f"**{escape(said)}**")
        nb.cells.insert(nb.cells.index(cell) + 1, text)


def hidden_lines(nb: NotebookNode) -> list[str]:
    """The lines of hidden tests, longest first, without those too short to say anything."""
    lines = set()
    for cell in nb.cells:
        if cell.cell_type == "code" and role(cell) == "hidden":
            text = cell.source.partition(HIDDEN[0])[2].partition(HIDDEN[1])[0]
            lines |= {line.strip() for line in text.splitlines() if len(line.strip()) > 7}
    return sorted(lines, key=len, reverse=True)


def one_line(outputs: list[NotebookNode], secret: list[str]) -> list[NotebookNode]:
    """What a test says, without the secret lines: one error, or nothing if it passed."""
    for output in outputs:
        if output.output_type == "error":
            name, text = str(output.ename)[:60], str(output.evalue)
            for line in secret:
                text = text.replace(line, "…")
            text = " ".join(text.split())[:MAX_SENTENCE]
            return [new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"])]
    return []


class Discreet(NbGraderPreprocessor):
    """What a student's feedback leaves out: hidden tests, and what ran when they could be read."""

    def preprocess(self, nb: NotebookNode, resources: Any) -> tuple[NotebookNode, Any]:
        """Empty the hidden tests, and drop other cells' outputs from the first of them on."""
        secret, seen = hidden_lines(nb), False
        resources["labels"] = labels(nb)  # while one can tell hidden tests from visible ones
        for cell in nb.cells:
            if cell.cell_type != "code":
                continue
            kind = role(cell)
            seen = seen or kind == "hidden"
            if kind in ("visible", "hidden"):
                cell.outputs = one_line(cell.outputs, secret)
            elif seen and cell.outputs:
                words = "Not shown: what cells put out after the first hidden test.\n"
                cell.outputs = [new_output("stream", name="stdout", text=words)]
        return ClearHiddenTests().preprocess(nb, resources)
