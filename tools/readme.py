"""`python -m tools.readme [--check]`: the table of chapters in the READMEs, from book.toml."""

import argparse
import re
from pathlib import Path

from tools import ROOT, Refusal, command, manifest, write_file

TABLE = re.compile(r"(<!-- chapters -->\n).*?(<!-- /chapters -->)", re.S)


def table(book: manifest.Book, chinese: bool) -> str:
    """The chapters as a Markdown table.

    Args:
        book: the manifest.
        chinese: whether titles and headings are Chinese.

    Returns:
        The table's lines.
    """
    if chinese:
        lines = ["| 章节 | 先修 | 运行 | 阅读 |"]
        units = "约 {} 秒", "{} 分钟"
    else:
        lines = ["| chapter | needs | runs in | reading |"]
        units = "about {} s", "{} min"
    lines.append("|---|---|---|---|")
    for chapter in book.chapters:
        title = chapter.title_zh if chinese else chapter.title
        cells = [
            f"[{chapter.number}](chapters/{chapter.file}.ipynb) {title}",
            ", ".join(need[:2] for need in chapter.needs) or "—",
            units[0].format(chapter.seconds),
            units[1].format(chapter.minutes),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def updated(path: Path, book: manifest.Book) -> str:
    """A README with its table brought up to date.

    Args:
        path: the README; "zh" in its name asks for Chinese.
        book: the manifest.

    Returns:
        The whole text.

    Raises:
        Refusal: the place for the table isn't marked.
    """
    text = path.read_text(encoding="utf-8")
    rows = table(book, ".zh." in path.name)
    text, found = TABLE.subn(lambda match: match[1] + rows + match[2], text)
    if found != 1:
        raise Refusal(f"{path.name}: expected one <!-- chapters --> … <!-- /chapters -->")
    return text


def write(root: Path, book: manifest.Book) -> list[str]:
    """Bring the tables of all READMEs up to date.

    Args:
        root: the repository.
        book: the manifest.

    Returns:
        The names of the READMEs that were behind.
    """
    behind = stale(root, book)
    for name in behind:
        write_file(root / name, updated(root / name, book).encode())
    return behind


def stale(root: Path, book: manifest.Book) -> list[str]:
    """The READMEs whose table differs from book.toml.

    Args:
        root: the repository.
        book: the manifest.

    Returns:
        Their names.
    """
    paths = sorted(root.glob("README*.md"))
    return [path.name for path in paths if updated(path, book) != path.read_text(encoding="utf-8")]


def main() -> int:
    """Write the tables, or only look with --check.

    Returns:
        The exit code, 1 if --check found a table that is behind.
    """
    parser = argparse.ArgumentParser(prog="python -m tools.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing")
    if not parser.parse_args().check:
        write(ROOT, manifest.load())
        return 0
    behind = stale(ROOT, manifest.load())
    for name in behind:
        print(f"{name}: its table is not book.toml's; run python -m tools.readme")
    return bool(behind)


if __name__ == "__main__":
    command(main)
