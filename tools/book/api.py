"""The API pages: every public function of aigc_lib as its docstring and its code tell it.

Nothing is imported: names, types and docstrings are read from the source files.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SINGLE = "api-single"  # the page of the modules that stand alone
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):$", re.M)
RELATION = re.compile(r"\s(=|←|~)\s")
ITEM = re.compile(r"^ {4}(\S.*?): (.*)$")


class Entry(NamedTuple):
    """A public function, class or method."""

    module: str  # objectives.elbo
    name: str  # gaussian_kl, or VAE.forward
    signature: str
    docstring: str
    code: str  # without the docstring
    file: str  # aigc_lib/objectives/elbo.py
    line: int

    @property
    def anchor(self) -> str:
        """The id of its heading; ids know no capitals, by which `Glyphs` differs from `glyphs`."""
        kind = "-type" if self.name[0].isupper() else ""
        return re.sub(r"[._]", "-", f"{self.module}-{self.name}{kind}").lower()

    @property
    def page(self) -> str:
        """The page that it stands on."""
        return page_of(self.module)

    @property
    def source(self) -> str:
        """What its docstring says after `Source:`, in one line; maybe nothing."""
        found = re.search(r"^Source: (.+?)(?=\n(?:Derived|\n)|\Z)", self.docstring, re.M | re.S)
        return " ".join(found[1].split()) if found else ""

    @property
    def derived(self) -> tuple[str, str] | None:
        """Chapter and label of the equation that it computes, if a chapter derives it."""
        found = re.search(r"^Derived: (\w+) ([\w-]+)\.?$", self.docstring, re.M)
        return (found[1], found[2]) if found else None


def page_of(module: str) -> str:
    """The page of a module.

    Args:
        module: its name below aigc_lib.

    Returns:
        The page's name.
    """
    part, _, rest = module.partition(".")
    return f"api-{part}" if rest else SINGLE


def entries(root: Path) -> list[Entry]:
    """Everything public that aigc_lib offers to chapters; kernels are called through ops.

    Args:
        root: the repository.

    Returns:
        In the order of files and of lines.
    """
    found: list[Entry] = []
    for path in sorted((root / "aigc_lib").rglob("*.py")):
        file = path.relative_to(root)
        if "kernels" not in file.parts:
            found += _in_file(path.read_text(encoding="utf-8"), file)
    return found


def derivations(found: list[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Which functions compute an equation.

    Args:
        found: from `entries`.

    Returns:
        For chapter and label the entries whose `Derived:` names them.
    """
    by_equation: dict[tuple[str, str], list[Entry]] = {}
    for entry in found:
        if entry.derived:
            by_equation.setdefault(entry.derived, []).append(entry)
    return by_equation


def pages(root: Path, repository: str | None) -> dict[str, str]:
    """Write the pages.

    Args:
        root: the repository.
        repository: its public address, to link code to; None where there is none.

    Returns:
        MyST Markdown by page name, "api" first.
    """
    found = entries(root)
    by_page: dict[str, list[Entry]] = {}
    for entry in found:
        by_page.setdefault(entry.page, []).append(entry)
    written = {"api": _overview(root, by_page)}
    for page, group in by_page.items():
        lines = [f"# {title(page)}", ""]
        for number, entry in enumerate(group):
            if not number or group[number - 1].module != entry.module:
                path = root / entry.file
                docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
                lines += [f"## {entry.module}", "", *_prose(docstring or ""), ""]
            lines += _entry(entry, repository)
        written[page] = "\n".join(lines) + "\n"
    return written


def title(page: str) -> str:
    """The heading of a page.

    Args:
        page: its name, from `page_of`.

    Returns:
        Such as "aigc_lib.ops".
    """
    return "aigc_lib: single modules" if page == SINGLE else f"aigc_lib.{page[4:]}"


def _overview(root: Path, by_page: dict[str, list[Entry]]) -> str:
    docstring = ast.get_docstring(ast.parse((root / "aigc_lib/__init__.py").read_text("utf-8")))
    lines = ["# The library", "", *_prose(docstring or ""), ""]
    for page, group in by_page.items():
        lines += [f"## {title(page)}", "", "| name | what it is | derived in |", "|:--|:--|:--|"]
        for entry in group:
            if "." not in entry.name:
                first = _escape(entry.docstring.partition("\n")[0]).replace("|", "\\|")
                name = f"[`{entry.module.rpartition('.')[2]}.{entry.name}`]({_target(entry)})"
                lines.append(f"| {name} | {first} | {_equation(entry) or '—'} |")
        lines.append("")
    return "\n".join(lines) + "\n"


def _target(entry: Entry) -> str:
    return f"{entry.page}.md#{entry.anchor}"


def _equation(entry: Entry) -> str:
    return "[]({}.ipynb#{})".format(*entry.derived) if entry.derived else ""


def _in_file(text: str, file: Path) -> Iterator[Entry]:
    module = ".".join(file.with_suffix("").parts[1:]).removesuffix(".__init__")
    lines = text.splitlines()

    def entry(node: ast.FunctionDef | ast.ClassDef, owner: str = "") -> Entry:
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        body = lines[first - 1 : node.end_lineno]
        if ast.get_docstring(node):
            start, end = node.body[0].lineno, node.body[0].end_lineno
            body[start - first : end - first + 1] = []
        margin = len(body[0]) - len(body[0].lstrip())
        return Entry(
            module=module,
            name=owner + node.name,
            signature=_signature(node, lines),
            docstring=ast.get_docstring(node) or "",
            code="\n".join(line[margin:] for line in body),
            file=file.as_posix(),
            line=first,
        )

    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield entry(node)
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield entry(inner, f"{node.name}.")


def _signature(node: ast.FunctionDef | ast.ClassDef, lines: list[str]) -> str:
    """The head of a definition as it is written; of a class what it is made with."""
    if isinstance(node, ast.FunctionDef):
        head = lines[node.lineno - 1 : node.body[0].lineno - 1]
        text = textwrap.dedent("\n".join(head)).rstrip().removesuffix(":")
        return re.sub(r"\((\s*)(?:self|cls)\b(?:,\s*)?", r"(\1", text)
    methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
    for method in methods:
        if method.name == "__init__":
            head = _signature(method, lines).removesuffix(" -> None")
            return head.replace("def __init__", f"class {node.name}", 1)
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    bases = ", ".join(map(ast.unparse, node.bases))
    head = f"class {node.name}({bases})" if bases else f"class {node.name}"
    body = [line for field in fields for line in lines[field.lineno - 1 : field.end_lineno]]
    return "\n".join([f"{head}:", *body]) if body else head


def _entry(entry: Entry, repository: str | None) -> list[str]:
    level = "####" if "." in entry.name else "###"
    body, *sections = SECTION.split(entry.docstring)
    lines = [f"({entry.anchor})=", f"{level} {entry.name}", ""]
    lines += ["```python", entry.signature, "```", "", *_prose(_without_sources(body)), ""]
    for name, text in zip(sections[::2], sections[1::2], strict=True):
        lines += _section(name, _without_sources(text))
    if entry.source:
        lines += [f"**Source** {_escape(entry.source)}", ""]
    if entry.derived:
        lines += [f"**Derived** in {_equation(entry)}", ""]
    where = f"{entry.file}, line {entry.line}"
    if repository:
        where = f"[{where}]({repository}/blob/HEAD/{entry.file}#L{entry.line})"
    if "." not in entry.name:
        lines += [f"::::{{dropdown}} Code: {where}" if not repository else "::::{dropdown} Code"]
        lines += [*([where, ""] if repository else [])]
        lines += ["```python", entry.code, "```", "::::", ""]
    return lines


def _without_sources(text: str) -> str:
    return re.sub(r"^(Source|Derived): .+?(?=\n\n|\nDerived|\Z)", "", text, flags=re.M | re.S)


def _section(name: str, text: str) -> list[str]:
    lines, text = [f"**{name}**", ""], text.rstrip()
    if name in ("Returns", "Yields"):
        return [*lines[:1], *(f"{_escape(line.strip())}" for line in text.strip().splitlines()), ""]
    for line in text.strip("\n").splitlines():
        item = ITEM.match(line)
        if item:
            lines.append(f"- `{item[1]}`: {_escape(item[2])}")
        else:
            lines.append(f"  {_escape(line.strip())}")
    return [*lines, ""]


def _prose(text: str) -> list[str]:
    """Paragraphs; indented ones become blocks of code, formulas keep their spaces."""
    lines: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith("    "):
            lines += ["```text", *(line[4:] for line in block.splitlines()), "```", ""]
        elif is_formula(block):
            lines += [":::{div} formula", _escape(block), ":::", ""]
        elif block.strip():
            lines += [_escape(block), ""]
    return lines


def is_formula(block: str) -> bool:
    """Whether a paragraph of a docstring is a formula set on lines of its own.

    Args:
        block: the paragraph.

    Returns:
        True if it begins with one; False for a sentence that contains one.
    """
    return bool(
        len(block.splitlines()) <= 3
        and RELATION.search(block.splitlines()[0])
        and not re.match(r"[A-Z][a-z]+ ", block)
        and not re.search(r"\. [A-Z]", block)
    )


def _escape(text: str) -> str:
    """Text whose punctuation is no markup; what stands between backticks stays code."""
    pieces = re.split(r"(`[^`]+`)", text)
    pieces[::2] = [re.sub(r"([\\*_\[\]<>$#~^{}|])", r"\\\1", piece) for piece in pieces[::2]]
    return "".join(pieces)
