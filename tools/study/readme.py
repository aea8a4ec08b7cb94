"""`python -m tools.study.readme [--check]`: the READMEs' table, as in book.toml, and figure."""

import argparse
import base64
import re
from pathlib import Path

from tools import ROOT, Refusal, command, write_file
from tools.study import manifest
from tools.study.notebooks import has_tag, read

FIGURE = "site/readme.png"
TABLE = re.compile(r"(<!-- chapters -->\n).*?(<!-- /chapters -->)", re.S)


def table(book: manifest.Book, chinese: bool) -> str:
    """The chapters as a Markdown table, with English or Chinese titles and headings."""
    if chinese:
        lines = ["| 章节 | 先修 | 运行 | 主线(全部) |"]
        units = "约 {} 秒", "{}({})分钟"
    else:
        lines = ["| chapter | needs | runs in | core path (all) |"]
        units = "about {} s", "{} ({}) min"
    lines.append("|---|---|---|---|")
    for chapter in book.chapters:
        title = chapter.title_zh if chinese else chapter.title
        cells = [
            f"[{chapter.number}](chapters/{chapter.file}.ipynb) {title}",
            ", ".join(need[:2] for need in chapter.needs) or "—",
            units[0].format(chapter.seconds),
            units[1].format(chapter.minutes, chapter.minutes_all),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def updated(path: Path, book: manifest.Book) -> str:
    """A README's text with its table up to date, in Chinese if its name says "zh"."""
    text = path.read_text(encoding="utf-8")
    rows = table(book, ".zh." in path.name)
    text, found = TABLE.subn(lambda match: match[1] + rows + match[2], text)
    if found != 1:
        raise Refusal(f"{path.name}: expected one <!-- chapters --> … <!-- /chapters -->")
    return text


def figure(root: Path, book: manifest.Book) -> bytes | None:
    """The picture of the READMEs, a PNG: what the first cell tagged `readme-figure` drew."""
    for chapter in book.chapters:
        for cell in read(chapter.notebook(root)).cells:
            for output in cell.outputs if has_tag(cell, "readme-figure") else []:
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output.data["image/png"])
    return None


def write(root: Path, book: manifest.Book) -> list[str]:
    """Bring the tables of all READMEs and their figure up to date; returns what was behind."""
    behind = stale(root, book)
    for name, content in _wanted(root, book).items():
        if name in behind:
            write_file(root / name, content)
    return behind


def stale(root: Path, book: manifest.Book) -> list[str]:
    """The READMEs whose table differs from book.toml, and the figure if it is not the chapter's."""
    wanted = _wanted(root, book).items()
    return [name for name, content in wanted if _content(root / name) != content]


def _wanted(root: Path, book: manifest.Book) -> dict[str, bytes]:
    tables = {path.name: updated(path, book).encode() for path in sorted(root.glob("README*.md"))}
    picture = figure(root, book)
    return tables if picture is None else tables | {FIGURE: picture}


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def main() -> int:
    """Write tables and figure, or only look with --check, which ends with 1 if one is behind."""
    parser = argparse.ArgumentParser(prog="python -m tools.study.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    if not parser.parse_args().check:
        write(ROOT, manifest.load())
        return 0
    behind = stale(ROOT, manifest.load())
    for name in behind:
        print(f"{name}: not what the chapters say; run python -m tools.study.readme")
    return bool(behind)


if __name__ == "__main__":
    command(main)
