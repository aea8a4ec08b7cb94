"""From what a student handed in to a notebook that can be graded.

The notebook to be graded is the released one with the student's answers put in: locked cells, their
order, metadata and tags are never the student's. What was found changed is told to a person.
"""

import ast
import copy
import dataclasses
import re
import shutil
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from tools import Refusal, write_file
from tools.grading.source import grade_id, nbgrader, role

MAX_BYTES = 20_000_000
PICTURES = ("image/png", "image/jpeg")
STUDENT = re.compile(r"[\w@-][\w.@-]*")
# Canvas puts everybody's files into one folder: name_number_number_file, or name_LATE_….
CANVAS = re.compile(r"([^_]+)(?:_LATE|_late)?_\d+_\d+_(.+)")
EXPECTED = """expected one folder per student, with the notebooks in it under their released names:
  {folder}/ada/11_attention.ipynb
or as nbgrader, Moodle (a folder each) or Canvas (one folder, name_number_number_file) lay them out:
  {folder}/ada/11_attention/11_attention.ipynb"""
# What no honest solution needs. Each is told to a person; no points are taken for it.
NAMES = {
    *("get_ipython", "In", "_ih", "_i", "_ii", "__builtins__", "__import__", "eval", "exec"),
    *("compile", "globals", "breakpoint", "input", "open"),
}
MODULES = {
    *("builtins", "ctypes", "gc", "inspect", "IPython", "ipykernel", "os", "sys", "subprocess"),
    *("socket", "threading", "multiprocessing", "signal", "importlib", "linecache", "traceback"),
    *("shutil", "pathlib", "urllib", "requests", "unittest", "atexit", "pickle", "zmq", "asyncio"),
}
ATTRIBUTES = {
    *("__class__", "__globals__", "__code__", "__closure__", "__dict__", "__subclasses__"),
    *(
        "__traceback__",
        "tb_frame",
        "f_back",
        "f_locals",
        "f_globals",
        "gi_frame",
        "history_manager",
    ),
    *("__torch_function__", "_make_subclass", "input_transformers_cleanup", "run_cell"),
    *("history_manager", "__bases__", "__mro__", "__setattr__", "__getattribute__"),
}
COMPARISONS = {"__eq__", "__ne__", "__lt__", "__gt__", "__le__", "__ge__", "__instancecheck__"}
PATCHED = {"grading", "torch", "math", "Tensor", "nn", "F", "np"}


@dataclasses.dataclass
class Submission:
    """One notebook that a student handed in."""

    student: str
    assignment: str
    path: Path


def discover(
    folder: Path, assignments: list[str], unpacked: Path
) -> tuple[list[Submission], list[str]]:
    """What lies in the folder of submissions: these, and a sentence for each thing that is none.

    A notebook may be renamed by a browser, lie deeper in its student's folder, or in a zip there,
    which goes into the folder `unpacked`. Of several that could be meant none is taken.
    """
    if not folder.is_dir():
        raise Refusal(f"no folder {folder}: {EXPECTED.format(folder='SUBMISSIONS')}")
    meant: dict[tuple[str, str], list[Path]] = {}
    strange, whose = [], {}
    for place in sorted(path for path in folder.iterdir() if path.name[0] != "."):
        student, name = _by_canvas(place, assignments) or (identity(place.name), "")
        if name and student and place.is_file() and not place.is_symlink():
            meant.setdefault((student, name), []).append(place)
        elif place.is_symlink() or not place.is_dir():
            more = "; if it is the whole class, unzip it first" * (place.suffix == ".zip")
            strange.append(f"{place.name}: not a student's folder{more}")
        elif not student:
            strange.append(f"{place.name}: a name has letters, digits, spaces and . _ - @ only")
        elif student in whose:
            strange.append(f"{place.name}: as {student} the same student as {whose[student]}")
        else:
            whose[student] = place.name
            files, refused = _files(place, unpacked / student)
            strange += refused
            named = [(path, _assignment(path, assignments)) for path in files]
            for path, name in named:
                if name:
                    meant.setdefault((student, name), []).append(path)
                else:
                    why = _why_not(path, assignments)
                    strange.append(f"{place.name}/{_inside(path, place)}: {why}")
            if not any(name for _, name in named):
                strange.append(f"{place.name}: holds no notebook of an assignment")
    found, others = _chosen(meant, folder)
    if not found:
        listed = "\n".join(f"  {line}" for line in [*strange, *others][:10])
        raise Refusal(f"nothing to grade in {folder}; {EXPECTED.format(folder=folder)}\n{listed}")
    return found, strange + others


def _by_canvas(path: Path, assignments: list[str]) -> tuple[str, str] | None:
    """Student and assignment that a file names as Canvas does; None for other names."""
    if not (flat := CANVAS.fullmatch(path.stem)):
        return None
    return identity(flat[1]), _assignment(Path(flat[2] + path.suffix), assignments)


def _why_not(path: Path, assignments: list[str]) -> str:
    if (flat := _by_canvas(path, assignments)) and flat[1]:
        return "named as by Canvas: move it up, it belongs beside the folders"
    return f"not the file of an assignment ({', '.join(assignments)})"


def _chosen(meant: dict, folder: Path) -> tuple[list[Submission], list[str]]:
    """For each student and assignment the file that is meant; a sentence for each other one."""
    found, strange = [], []
    for (student, name), paths in meant.items():
        # The released name before others, and what lies higher before what lies deeper.
        order = {path: (path.stem != name, len(_inside(path, folder).parts)) for path in paths}
        first, *rest = sorted(paths, key=order.get)
        if rest and order[first] == order[rest[0]]:
            several = ", ".join(sorted(path.name for path in paths))
            strange.append(f"{student}: {several}: which one is {name}? None of them was graded")
            continue
        found.append(Submission(student, name, first))
        shown = [f"{student}/{_inside(path, folder / student)}" for path in rest]
        graded = f"{student}/{_inside(first, folder / student)}"
        why = (
            f"there are two; {graded} was graded, by its name or place: remove one if that is wrong"
        )
        strange += [f"{path}: {why}" for path in shown]
    return found, strange


def _inside(path: Path, place: Path) -> Path:
    """A file's path from a folder on, or what is left of it if it came out of a zip."""
    return path.relative_to(place) if place in path.parents else Path("zip", *path.parts[-2:])


def identity(name: str) -> str:
    """A student's name in the gradebook, from that of the folder; "" if it can't be one.

    Accents are composed, as not every system writes them, and spaces become underlines.
    """
    name = re.sub(r"\s+", "_", unicodedata.normalize("NFC", name).strip())
    bare = "".join(letter for letter in name if unicodedata.category(letter)[0] != "M")
    return name if STUDENT.fullmatch(bare) else ""


def _assignment(path: Path, assignments: list[str]) -> str:
    """The assignment whose file this is, under its own name or as browsers and people copy it."""
    stem = unicodedata.normalize("NFC", path.stem)
    named = re.fullmatch(r"(?:Copy of )?(.+?)(?: ?\(\d+\)|[-_ ]\d|[-_ ]?[Cc]opy\d*)?", stem)
    names = {stem, named[1] if named else ""} & set(assignments)
    return names.pop() if path.suffix == ".ipynb" and names else ""


def _files(place: Path, unpacked: Path) -> tuple[list[Path], list[str]]:
    """A student's files, those in zips, too; a sentence for each that can't be read."""
    shutil.rmtree(unpacked, ignore_errors=True)
    files, refused = [], []
    for path in sorted(place.rglob("*")):
        inside = path.relative_to(place)
        if any(part[0] == "." or part == "__MACOSX" for part in inside.parts) or path.is_dir():
            continue
        if path.is_symlink():
            refused.append(f"{place.name}/{inside}: a link, which is not followed")
        elif path.suffix.lower() != ".zip":
            files.append(path)
        else:
            try:
                files += _unzipped(path, unpacked / str(len(files)))
            except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
                refused.append(f"{place.name}/{inside}: not a readable zip: {error}")
    return files, refused


def _unzipped(path: Path, folder: Path) -> list[Path]:
    """The notebooks of a zip, each written under its bare name into a folder of its own."""
    files = []
    with zipfile.ZipFile(path) as archive:
        for number, info in enumerate(archive.infolist()):
            name = Path(info.filename).name
            hidden = "__MACOSX" in info.filename or name.startswith(".")
            if hidden or not name.endswith(".ipynb") or info.file_size > MAX_BYTES:
                continue
            files.append(folder / str(number) / name)
            write_file(files[-1], archive.read(info))
    return files


def parse(path: Path) -> NotebookNode:
    """Read a student's notebook; only what `compose` takes of its cells can be trusted."""
    if path.stat().st_size > MAX_BYTES:
        raise Refusal(f"the notebook has more than {MAX_BYTES // 10**6} MB")
    try:
        data = nbformat.reader.reads(path.read_text(encoding="utf-8-sig"))
        nb = nbformat.convert(data, 4)
        for cell in nb.cells:
            source = cell.source if isinstance(cell.source, str) else "".join(cell.source)
            cell.update(source=source, metadata=NotebookNode(cell.get("metadata", {})))
            nbgrader(cell).get("grade_id")
            if cell.cell_type not in ("code", "markdown", "raw"):
                raise ValueError(f"a cell of type {cell.cell_type}")
    except (Exception, RecursionError) as error:  # whatever a broken file leads to
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise Refusal(f"not a readable notebook: {reason}") from None
    return nb


def compose(released: NotebookNode, theirs: NotebookNode) -> tuple[NotebookNode, list[str]]:
    """Put a student's answers into the released notebook, and say what a person should know."""
    own = {grade_id(cell): cell for cell in released.cells if nbgrader(cell)}
    answers, extras, notes = _answers(released, own, theirs)
    pasted = {str(grade_id(cell)): cell.get("attachments") for cell in theirs.cells}
    cells = extras[""]
    for cell in copy.deepcopy(released.cells):
        name, more = grade_id(cell), extras.get(cell.id, [])
        if name and name not in answers:
            notes.append(f"the cell {name} was missing and was put back")
        elif name and nbgrader(cell).locked and answers[name].strip() != cell.source.strip():
            notes.append(f"the locked cell {name} was edited and was restored")
        elif name and not nbgrader(cell).locked:
            cell.source = answers[name]
            if role(cell) == "written" and (pictures := _pictures(pasted[name])):
                cell.attachments = pictures
            joined = "\n".join([cell.source, *(part.source for part in more[:1])])
            if role(cell) == "solution" and _fault(cell.source) and not _fault(joined):
                cell.source, more = joined, more[1:]
                notes.append(f"the cell {name} was split and was joined")
        cells += [cell, *more]
    nb = copy.deepcopy(released)
    nb.cells = []
    for cell in cells:
        nb.cells.append(cell)
        if cell.cell_type == "code" and (fault := _fault(cell.source)):
            name = grade_id(cell) or "a cell of the student's own"
            notes.append(f"{name}: {fault}")
            nb.cells.append(nbformat.v4.new_markdown_cell(f"**The cell above has a {fault}.**"))
    for index, cell in enumerate(cell for cell in nb.cells if not nbgrader(cell)):
        cell.id = f"text-{index}"  # theirs may be anybody's
    return nb, notes


def _answers(released: NotebookNode, own: dict, theirs: NotebookNode) -> tuple[dict, dict, list]:
    """A student's text for each cell of the assignment, cells of their own by where they stand."""
    texts = {cell.source.strip() for cell in released.cells if not nbgrader(cell)}
    places = {cell.id: cell.id for cell in released.cells}
    answers: dict[str, str] = {}
    extras: dict[str, list[NotebookNode]] = {"": []}
    notes, last, before = [], "", ""
    for cell in theirs.cells:
        name = grade_id(cell)
        if isinstance(name, str) and name in own:
            if name not in answers:
                answers[name] = cell.source
            elif name == before:  # what JupyterLab makes of a cell that is split
                answers[name] += "\n" + cell.source
                notes.append(f"the cell {name} was split and was joined")
            else:
                answers[name] = cell.source
                notes.append(f"two cells are called {name}: the last one counts")
            last, before = own[name].id, name
            continue
        before = before if not cell.source.strip() else ""
        if cell.cell_type == "code" or cell.source.strip() not in texts:
            if cell.source.strip():
                extras.setdefault(last, []).append(_extra(cell))
        elif cell.get("id") in places:
            last = cell.id
    if not answers:
        raise Refusal(
            "none of the assignment's cells is in it: is this the chapter, or another file?"
        )
    return answers, extras, notes


def _fault(source: str) -> str:
    """What keeps code from being read at all, with its line; "" if nothing does."""
    if re.search(r"^\s*[%!]", source, re.M):
        return ""  # IPython reads it
    try:
        ast.parse(source)
    except SyntaxError as error:
        return f"syntax error in line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError):
        return "syntax error"
    return ""


def _pictures(attachments: Any) -> dict[str, dict[str, str]]:
    """Of what was pasted into a cell the pictures."""
    if not isinstance(attachments, dict):
        return {}
    return {
        name: {kind: bundle[kind] for kind in PICTURES if isinstance(bundle.get(kind), str)}
        for name, bundle in attachments.items()
        if isinstance(bundle, dict)
    }


def _extra(cell: NotebookNode) -> NotebookNode:
    make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
    return make(cell.source)


def suspicious(nb: NotebookNode) -> list[str]:
    """What in a student's cells no honest solution needs: a sentence for each."""
    notes = []
    for cell in nb.cells:
        if cell.cell_type != "code" or role(cell) not in ("solution", "free"):
            continue
        name = grade_id(cell) or "a cell of the student's own"
        try:
            tree = ast.parse(cell.source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            if re.search(r"^\s*[%!]|get_ipython", cell.source, re.M):
                notes.append(f"{name}: a magic or a shell command")
            continue
        found = {word for node in ast.walk(tree) for word in _words(node)}
        notes += [f"{name}: uses {word}" for word in sorted(found)]
    return notes


def _words(node: ast.AST) -> list[str]:
    """The suspicious words of one node of the syntax tree."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        first = getattr(node, "module", None)
        names = [first] if first else [alias.name for alias in node.names]
        return [f"import {n}" for n in names if n.split(".")[0] in MODULES]
    if isinstance(node, ast.Name):
        stored = isinstance(node.ctx, ast.Store | ast.Del) and node.id in PATCHED - {"F", "nn"}
        return [f"{node.id} = …" if stored else node.id] if stored or node.id in NAMES else []
    if isinstance(node, ast.Attribute):
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        patched = isinstance(root, ast.Name) and root.id in PATCHED
        if isinstance(node.ctx, ast.Store | ast.Del) and patched:
            return [f"{ast.unparse(node)} = …"]
        return [f".{node.attr}"] if node.attr in ATTRIBUTES else []
    if isinstance(node, ast.FunctionDef) and node.name in COMPARISONS | {"grading"}:
        return [f"def {node.name}"]
    if isinstance(node, ast.ClassDef) and node.name == "grading":
        return ["class grading"]
    if isinstance(node, ast.ClassDef):
        bases = [ast.unparse(base).split(".")[-1] for base in node.bases]
        return [f"class …({base})" for base in bases if base in ("Tensor", "Parameter", "float")]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
        return ["setattr"]
    return []
