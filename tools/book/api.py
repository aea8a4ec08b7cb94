"""The API pages: which modules stand on which, and an overview. What they say, autodoc adds."""

import re
from pathlib import Path

from tools.book.library import SINGLE, Entry, entries


def pages(root: Path) -> dict[str, str]:
    """The pages as MyST Markdown by name, "api" first."""
    by_page: dict[str, list[Entry]] = {}
    for entry in entries(root):
        by_page.setdefault(entry.page, []).append(entry)
    written = {"api": ["# The library", "", *(_automodule("aigc_lib") if by_page else [])]}
    for page, group in by_page.items():
        written["api"] += _overview(page, group)
        lines = [f"# {title(page)}", "", *(_automodule(title(page)) if page != SINGLE else [])]
        for module in dict.fromkeys(entry.module for entry in group):
            lines += [f"## {module.removeprefix('aigc_lib.')}", ""]
            lines += _automodule(module, "   :members:")
        written[page] = lines
    return {page: "\n".join(lines) + "\n" for page, lines in written.items()}


def title(page: str) -> str:
    """The heading of a page, such as "aigc_lib.ops"."""
    return "aigc_lib: single modules" if page == SINGLE else f"aigc_lib.{page[4:]}"


def _automodule(module: str, *options: str) -> list[str]:
    return ["```{eval-rst}", f".. automodule:: {module}", *options, "```", ""]


def _overview(page: str, group: list[Entry]) -> list[str]:
    lines = [f"## {title(page)}", "", "| name | what it is | derived in |", "|:--|:--|:--|"]
    for entry in group:
        if "." not in entry.name:
            what = re.sub(r"([\\*_\[\]<>$#~^{}|`])", r"\\\1", entry.docstring.partition("\n")[0])
            derived = "[]({}.ipynb#{})".format(*entry.derived) if entry.derived else "—"
            name = f"{entry.module.rpartition('.')[2]}.{entry.name}"
            lines.append(f"| [`{name}`](#{entry.anchor}) | {what} | {derived} |")
    return [*lines, ""]
