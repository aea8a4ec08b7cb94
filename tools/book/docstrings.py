"""What sphinx.ext.autodoc is told of the library's docstrings, which are plain text.

Formulas stand on lines of their own, `Source:` leads to the bibliography, `Derived:` to the
equation, and the code is below.
"""

import ast
import inspect
import re
from pathlib import Path

from sphinx.application import Sphinx

from tools.book import sources
from tools.book.library import MARK, marks

_RELATION = re.compile(r"\s(=|←|~)\s")


def skip(
    app: Sphinx, what: str, name: str, obj: object, skipped: bool, options: dict
) -> bool | None:
    """Leave out what is not the library's, and what has no name of its own: types, fields."""
    if isinstance(obj, property):
        return None
    module, own_name = (str(getattr(obj, key, "")) for key in ("__module__", "__name__"))
    return None if module.startswith("aigc_lib.") and own_name == name else True


def show(app: Sphinx, what: str, name: str, obj: object, options: dict, lines: list[str]) -> None:
    """Make of a docstring what autodoc is to read, in place."""
    docstring = "\n".join(lines).strip("\n")
    lines[:] = _prose(MARK.sub("", docstring))
    said = marks(docstring)
    if said.get("Source", "—") != "—":
        known = app.env.get_domain("cite").bibdata.data.entries
        lines += ["**Source** " + sources.linked(said["Source"], known, escape), ""]
    if said.get("Derived", "—") != "—":
        lines += [f"**Derived** in :ref:`{said['Derived']}`", ""]
    if what in ("class", "function"):
        lines += _code(inspect.unwrap(obj), app.config.book.repository)


def _prose(text: str) -> list[str]:
    """Paragraphs; indented ones become blocks of code, formulas keep their spaces."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith("    "):
            lines += [".. code-block:: text", "", *block.splitlines(), ""]
        elif is_formula(block):
            lines += [".. container:: formula", "", *_indented(escape(block)), ""]
        else:
            lines += [*escape(block).splitlines(), ""]
    return lines


def is_formula(block: str) -> bool:
    """Whether a paragraph begins with a formula; a sentence that contains one doesn't."""
    return bool(
        len(block.splitlines()) <= 3
        and _RELATION.search(block.partition("\n")[0])
        and not re.match(r"[A-Z][a-z]+ ", block)
        and not re.search(r"\. [A-Z]", block)
    )


def escape(text: str) -> str:
    """Text whose punctuation is no markup; what stands between backticks becomes code.

    Code can't begin or end with a space in reStructuredText: "␣" shows one there.
    """
    pieces = re.split(r"`([^`]+)`", text)
    pieces[::2] = [re.sub(r"([\\*_|<>`:])", r"\\\1", piece) for piece in pieces[::2]]
    pieces[1::2] = [rf"\ ``{re.sub('^ | $', '␣', piece)}``\ " for piece in pieces[1::2]]
    return "".join(pieces)


def _code(obj: object, repository: str | None) -> list[str]:
    """What opens to the code without its docstring, with a link to it if it is public."""
    file = Path(inspect.getsourcefile(obj))
    code, first = inspect.getsourcelines(obj)
    body = ast.parse("".join(code)).body[0].body
    if isinstance(body[0], ast.Expr):
        del code[body[0].lineno - 1 : body[0].end_lineno]
    where = f"aigc_lib/{file.as_posix().rpartition('aigc_lib/')[2]}"
    link = f"`{where} <{repository}/blob/HEAD/{where}#L{first}>`__" if repository else ""
    block = [link, "", ".. code-block:: python", "", *_indented("".join(code)), ""]
    return [f".. dropdown:: Code: {where}, line {first}", "", *_indented("\n".join(block)), ""]


def _indented(text: str) -> list[str]:
    return ["   " + line for line in text.splitlines()]
