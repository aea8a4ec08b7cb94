"""Prose and code that every Python installation carries: its manual and its standard library.

Both corpora come as items (paragraphs, functions) that a blank line separates; no item holds one.
They depend on Python's version alone, except that a distribution which leaves modules out leaves
their functions out here too. Nothing is imported to be read, save a module that holds the manual's
text as one dictionary.

No training item is nearly repeated among the held-out ones. Cut each item into shingles, all runs
of eight consecutive words (prose) or tokens (code); a shorter item is one shingle. A held-out
item is dropped if more than a stated share of its distinct shingles occurs in training: any at all
in prose, more than half in code, where eight tokens are soon repeated. (Shingles as a measure of
resemblance: Broder 1997.)

A corpus is the same at each call. FileNotFoundError where Python came without its manual (the
module pydoc_data), or with its library as a zip archive or compiled alone.
"""

import ast
import functools
import gc
import re
import sys
import sysconfig
import textwrap
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from aigc_lib import expect

# Words in a shingle, and the largest share of a held-out item's shingles that training may hold.
SHINGLE = 8
PROSE_SHARE, CODE_SHARE = 0.0, 0.5

LONGEST_FUNCTION = 500  # characters
# Of the runs of prose two are held out, those whose bits per character under an n-gram are nearest
# to the mean over all such pairs (they range over 0.4 bits).
_RUNS, _HELD_OUT_RUNS = 20, (3, 13)
_HELD_OUT_ONE_IN = 20  # functions

# Tables, demonstrations, graphical programs, and what some distributions leave out.
_SKIPPED = {
    *("antigravity", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data"),
    *("test", "this", "tkinter", "turtle", "turtledemo"),
}
_ASCII = str.maketrans({"’": "'", "‘": "'", "”": '"', "“": '"', "…": "...", "—": "-", "–": "-"})


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Texts to train on and texts to test on, in one fixed order."""

    name: str  # what the items are, and of which Python
    train_items: tuple[str, ...]
    held_out_items: tuple[str, ...]

    @property
    def train(self) -> str:
        """The training items, each followed by a blank line."""
        return "".join(item + "\n\n" for item in self.train_items)

    @property
    def held_out(self) -> str:
        """The held-out items, each followed by a blank line."""
        return "".join(item + "\n\n" for item in self.held_out_items)

    @property
    def alphabet(self) -> str:
        """Every character of both parts, sorted."""
        return "".join(sorted({"\n"}.union(*self.train_items, *self.held_out_items)))


@functools.cache
def prose() -> Corpus:
    """Paragraphs of Python's reference manual, as `help()` prints them.

    A paragraph that repeats an earlier one is dropped, and so are grammar, tables and code, that
    is indented blocks which are not sentences. Quotation marks and dashes become ASCII; a paragraph
    with other characters beyond ASCII is dropped. The rest, in alphabetical order of its topics, is
    cut into twenty runs of equal length, two of which are held out.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise FileNotFoundError(
            f"expected the manual's text with Python {_version()}, got none: this installation "
            "lacks pydoc_data; install the whole standard library (Debian: libpython3-stdlib)"
        ) from error
    paragraphs: dict[str, str] = {}
    for topic in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[topic].translate(_ASCII)):
            if block.isascii() and _is_prose(block):
                paragraphs.setdefault(" ".join(block.split()), textwrap.dedent(block).strip("\n"))
    items = list(paragraphs.values())
    size, start, train, held_out = sum(map(len, items)), 0, [], []
    for item in items:
        (held_out if start * _RUNS // size in _HELD_OUT_RUNS else train).append(item)
        start += len(item)
    return Corpus(
        name=f"paragraphs of the manual of Python {_version()}",
        train_items=tuple(train),
        held_out_items=tuple(_without_repeats(held_out, train, PROSE_SHARE, str.split)),
    )


@functools.cache
def code() -> Corpus:
    """Short functions of Python's standard library, without docstrings, decorators, blank lines.

    Taken are the outermost functions and methods of at most 500 characters, ASCII alone, each text
    once, ordered by module and place. Of all texts every twentieth is held out, chosen by a
    checksum of the text, so that most of the split survives a change of version. `ast.parse`
    accepts every item.
    """
    items = dict.fromkeys(item for path in _sources() for item in _functions(path))
    if not items:
        raise FileNotFoundError(
            f"expected the standard library's sources in {sysconfig.get_path('stdlib')}, got none: "
            "this Python carries them as a zip archive or compiled; use one with its .py files"
        )
    held_out = [i for i in items if zlib.crc32(i.encode()) % _HELD_OUT_ONE_IN == 0]
    for item in held_out:
        del items[item]
    return Corpus(
        name=f"functions of the standard library of Python {_version()}",
        train_items=tuple(items),
        held_out_items=tuple(_without_repeats(held_out, items, CODE_SHARE, code_words)),
    )


def code_words(text: str) -> list[str]:
    """Names, numbers and single signs: what a shingle of code is made of."""
    return re.findall(r"\w+|[^\w\s]", text)


def shingles(words: list[str]) -> set[tuple[str, ...]]:
    """All runs of eight consecutive words; fewer words are one run.

    Source: Broder 1997, section 2 (w-shingling), with w = 8.
    Derived: —
    """
    return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def windows(
    tokens: Int[Tensor, " N"], batch: int, length: int, generator: torch.Generator
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """inputs[b, t] = tokens[s_b + t], targets[b, t] = tokens[s_b + t + 1]; every start s_b alike.

    The generator may live on another device than the text, whose N ≥ T + 1 tokens these are from.
    """
    expect.shaped((None,), tokens=tokens)
    expect.at_least(1, batch=batch, length=length)
    expect.below(len(tokens), length=length)
    starts = torch.randint(
        len(tokens) - length, (batch, 1), generator=generator, device=generator.device
    )
    places = starts.to(tokens.device) + torch.arange(length + 1, device=tokens.device)
    drawn = tokens[places]  #                                               B T+1
    return drawn[:, :-1], drawn[:, 1:]


def _version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _is_prose(block: str) -> bool:
    """Sentences; not grammar (::=), drawn lines, tables, or an indented block of code."""
    if not block.strip() or re.search(r"::=|\+--|={4}|-{4}|\*{4}|(\|.*){6}", block):
        return False
    if not block.startswith(("   ", ">>>")):
        return True
    text = block.strip()
    return text[0].isupper() and text[-1] in ".:" and len(text.split()) > 6


def _without_repeats(items, train, share, split) -> Iterator[str]:
    known = set().union(*(shingles(split(item)) for item in train))
    for item in items:
        found = shingles(split(item))
        if len(found & known) <= share * len(found):
            yield item


def _sources() -> Iterator[Path]:
    """The .py files of the standard library, by module, tests and the like left out."""
    root = Path(sysconfig.get_path("stdlib"))
    for module in sorted(sys.stdlib_module_names - _SKIPPED):
        paths = [root / f"{module}.py", *(root / module).rglob("*.py")]
        for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()):
            if path.is_file() and not {"test", "tests"}.intersection(path.parts):
                yield path


def _functions(path: Path) -> Iterator[str]:
    tree, lines = _parsed(path)
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        text = _short(node, lines) if isinstance(node, _FUNCTION) else ""
        if text:
            yield text
        else:
            waiting += [n for name in _BLOCKS for n in getattr(node, name, ())][::-1]


_FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "handlers", "orelse", "finalbody")


def _parsed(path: Path) -> tuple[ast.Module, list[str]]:
    """The file's tree and lines; an empty tree for what is not UTF-8 or not of this Python."""
    collecting = gc.isenabled()
    gc.disable()  # A growing tree keeps the collector busy for nothing: a third of the time.
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Form feeds between functions are no line ends, and no part of what is learned.
            return ast.parse(source), source.replace("\f", "").split("\n")
    except (UnicodeDecodeError, SyntaxError):
        return ast.Module([], []), []
    finally:
        if collecting:
            gc.enable()


def _short(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """The function's text, or none if it is too long or does not stand alone."""
    first, kept = node.body[0], lines[node.lineno - 1 : node.end_lineno]
    if ast.get_docstring(node, clean=False) is not None:
        if len(node.body) == 1:
            return ""
        del kept[first.lineno - node.lineno : first.end_lineno - node.lineno + 1]
    if sum(map(len, kept)) > 4 * LONGEST_FUNCTION:  # Even if most of it is indentation.
        return ""
    text = textwrap.dedent("\n".join(line for line in kept if line.strip()))
    # Strings over several lines would lose their blank lines or keep the indentation of all.
    whole = text.startswith(("def ", "async def ")) and not re.search(r"\"{3}|'{3}", text)
    return text if whole and text.isascii() and len(text) <= LONGEST_FUNCTION else ""
