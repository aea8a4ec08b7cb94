"""What aigc_lib offers to chapters: names and docstrings, read from its files without importing."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SINGLE = "api-single"  # the page of the modules that stand alone
# "Source: …" and "Derived: …", each up to the next of them or to the paragraph's end.
MARK = re.compile(r"^(Source|Derived): (.+?)\.?(?=\n(?:Source|Derived): |\n\n|\s*\Z)", re.M | re.S)


class Entry(NamedTuple):
    """A public function, class or method."""

    module: str  # aigc_lib.objectives.elbo
    name: str  # gaussian_kl, or VAE.forward
    docstring: str

    @property
    def anchor(self) -> str:
        """The id that autodoc gives it."""
        return f"{self.module}.{self.name}"

    @property
    def short(self) -> str:
        """objectives.elbo.gaussian_kl"""
        return self.anchor.removeprefix("aigc_lib.")

    @property
    def page(self) -> str:
        """The page that it stands on."""
        return page_of(self.module)

    @property
    def source(self) -> str:
        """What its docstring says after `Source:`, in one line; maybe nothing."""
        return marks(self.docstring).get("Source", "")

    @property
    def derived(self) -> tuple[str, str] | None:
        """Chapter and label of the equation that it computes, if a chapter derives it."""
        chapter, _, label = marks(self.docstring).get("Derived", "").partition(" ")
        return (chapter, label) if label else None


def marks(docstring: str) -> dict[str, str]:
    """What a docstring says after `Source:` and `Derived:`, each in one line."""
    return {name: " ".join(text.split()) for name, text in MARK.findall(docstring)}


def page_of(module: str) -> str:
    """The page of a module: one for each part, and one for those that stand alone."""
    _, part, *rest = module.split(".")
    return f"api-{part}" if rest else SINGLE


def modules(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """All modules but kernels, which are called through ops; and parts, which hold modules."""
    for path in sorted((root / "aigc_lib").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if "kernels" not in parts and parts[-1] != "__init__":
            yield ".".join(parts), ast.parse(path.read_text(encoding="utf-8"))


def entries(root: Path) -> list[Entry]:
    """Everything public, in the order of files and of lines."""
    return [
        Entry(module, name, ast.get_docstring(node) or "")
        for module, tree in modules(root)
        for name, node in _public(tree)
    ]


def _public(tree: ast.Module | ast.ClassDef, owner: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield owner + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{owner}{node.name}.")


def derivations(found: list[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """For chapter and label of an equation the entries whose `Derived:` names them."""
    by_equation: dict[tuple[str, str], list[Entry]] = {}
    for entry in found:
        if entry.derived:
            by_equation.setdefault(entry.derived, []).append(entry)
    return by_equation
