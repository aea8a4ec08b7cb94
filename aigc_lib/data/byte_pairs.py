"""Byte-pair encoding: learning the merges, and the files that hold them.

Training starts from the 256 bytes and merges, again and again, the pair of neighbours that can be
merged most often; no merge crosses the border of a piece (`data.pre_tokens`).

A missing file raises FileNotFoundError; one that is no tokenizer, or contradicts itself, ValueError
that names it. Nothing here is ever unpickled.
"""

import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from aigc_lib import expect
from aigc_lib.data import files
from aigc_lib.data.pre_tokens import byte_letters, pattern
from aigc_lib.data.tokenizers import BytePairTokenizer, merge_pair

END_OF_TEXT = "<|endoftext|>"
_FORMAT = "aigc_lib byte pairs 1"


def train(text: str, vocab_size: int, *, special: Sequence[str] = ()) -> BytePairTokenizer:
    """Learn merges until there are V tokens: bytes 0 to 255, then merges, then special ones.

    Each round merges the pair with the largest number of non-overlapping occurrences (aaa holds aa
    once), among equals the pair with the smallest numbers. A special token is what no text becomes
    by merging; its name is ordinary text here. A text that is used up too early is refused.

    Source: Sennrich, Haddow and Birch 2016, algorithm 1, on bytes.
    Derived: —
    """
    expect.at_least(256 + len(special), vocab_size=vocab_size)
    goal = vocab_size - len(special)
    tokens = [bytes([byte]) for byte in range(256)]
    merges = []
    for a, b in _learn(Counter(pattern("course").findall(text)), goal - 256):
        merges.append((tokens[a], tokens[b]))
        tokens.append(tokens[a] + tokens[b])
    found = len(tokens) + len(special)
    expect.that(found == vocab_size, f"text with pairs to merge for {vocab_size} tokens", found)
    numbers = {name: goal + i for i, name in enumerate(special)}
    tokens += [name.encode() for name in special]
    return BytePairTokenizer(tokens, merges, special=numbers)


def cached(path: str | Path, text: str, vocab_size: int) -> BytePairTokenizer:
    """Load what was trained on this very text for this size, else train and save it there."""
    path = Path(path)
    key = f"{vocab_size} tokens of sha256 {hashlib.sha256(text.encode()).hexdigest()}"
    if path.exists():
        tree = _read_json(path)
        tokenizer = _from_tree(tree, path)
        if tree.get("trained_on") == key:
            return tokenizer
    tokenizer = train(text, vocab_size)
    _write(tokenizer, path, key)
    return tokenizer


def save(tokenizer: BytePairTokenizer, path: str | Path) -> None:
    """Write tokens and merges as JSON that can be read, whole or not at all."""
    _write(tokenizer, Path(path), None)


def load(path: str | Path) -> BytePairTokenizer:
    """Read what `save` or `cached` wrote."""
    return _from_tree(_read_json(Path(path)), Path(path))


def from_published(folder: str | Path) -> BytePairTokenizer:
    """Read a tokenizer in GPT-2's published layout, with GPT-2's pre-tokeniser.

    vocab.json maps each token to its number; merges.txt holds a heading, then two tokens a line,
    the first learned first. <|endoftext|> is special if it is among the tokens.

    Source: Radford et al. 2019, section 2.2, and their published encoder.py.
    Derived: —
    """
    vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
    tree = _read_json(vocabulary)
    if not all(type(i) is int for i in tree.values()) or {*tree.values()} != {*range(len(tree))}:
        raise ValueError(f"{vocabulary}: expected each number from 0 to {len(tree) - 1} once")
    names = sorted(tree, key=tree.__getitem__)
    lines = _read(merges).split("\n")
    if lines and lines[0].startswith("#version"):
        del lines[0]
    while lines and not lines[-1].strip():
        del lines[-1]
    special = {END_OF_TEXT: tree[END_OF_TEXT]} if END_OF_TEXT in tree else {}
    return _built(names, [line.rstrip("\r") for line in lines], special, "gpt2", Path(folder))


def _learn(counts: Counter[str], rounds: int) -> Iterator[tuple[int, int]]:
    """The pairs to merge, in order; the i-th becomes the number 256 + i."""
    words = [list(piece.encode("utf-8")) for piece in counts]
    weights = list(counts.values())
    totals: Counter[tuple[int, int]] = Counter()
    holders: dict[tuple[int, int], set[int]] = defaultdict(set)
    for i, word in enumerate(words):
        for pair in _pairs(word):
            totals[pair] += weights[i]
            holders[pair].add(i)
    # The heap also keeps totals that have changed since; they are skipped when they come up.
    heap = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(heap)
    for whole in range(256, 256 + rounds):
        while heap and -heap[0][0] != totals[heap[0][1]]:
            heapq.heappop(heap)
        if not heap or not heap[0][0]:
            return
        best = heapq.heappop(heap)[1]
        yield best
        change: dict[tuple[int, int], int] = defaultdict(int)
        for i in holders.pop(best):
            word, weight = words[i], weights[i]
            words[i] = merge_pair(word, best, whole)
            # Only the words that hold the pair change; all their pairs are counted anew.
            for pair in _pairs(word):
                change[pair] -= weight
            for pair in _pairs(words[i]):
                change[pair] += weight
                holders[pair].add(i)
        for pair, difference in change.items():
            if difference:
                totals[pair] += difference
                heapq.heappush(heap, (-totals[pair], pair))


def _pairs(word: list[int]) -> list[tuple[int, int]]:
    """Neighbours, without those that overlap an equal pair: aaa holds aa once, aaaa twice."""
    pairs = list(pairwise(word))
    if len(set(pairs)) == len(pairs):
        return pairs
    kept: list[tuple[int, int]] = []
    overlaps = False
    for i, pair in enumerate(pairs):
        overlaps = i > 0 and not overlaps and pair == pairs[i - 1]
        if not overlaps:
            kept.append(pair)
    return kept


def _write(tokenizer: BytePairTokenizer, path: Path, trained_on: str | None) -> None:
    special = set(tokenizer.special.values())
    tree = {
        "format": _FORMAT,
        "pieces": tokenizer.pieces,
        "trained_on": trained_on,
        "special": tokenizer.special,
        "tokens": [
            token.decode() if i in special else _printable(token)
            for i, token in enumerate(tokenizer.tokens)
        ],
        "merges": [f"{_printable(a)} {_printable(b)}" for a, b in tokenizer.merges],
    }
    files.put(path, json.dumps(tree, ensure_ascii=False, indent=0).encode())


def _from_tree(tree: dict[str, Any], path: Path) -> BytePairTokenizer:
    kinds = {"pieces": str, "special": dict, "tokens": list, "merges": list}
    known = all(isinstance(tree.get(name), kind) for name, kind in kinds.items())
    if tree.get("format") != _FORMAT or not known:
        raise ValueError(
            f'{path}: expected a tokenizer of the format "{_FORMAT}", got another file; '
            "name another file, or delete it"
        )
    for name, i in tree["special"].items():
        if type(i) is not int or tree["tokens"][i : i + 1] != [name]:
            raise ValueError(f"{path}: expected the special token {name!r} as number {i!r}")
    return _built(tree["tokens"], tree["merges"], tree["special"], tree["pieces"], path)


def _built(names, lines, special, pieces, path) -> BytePairTokenizer:
    """From tokens and merges as they are printed; errors name the file or folder."""
    value = {letter: byte for byte, letter in enumerate(byte_letters())}

    def read(token: str) -> bytes:
        strange = [letter for letter in token if letter not in value]
        expect.that(not strange, "tokens in GPT-2's letters for bytes", strange[:1])
        return bytes(value[letter] for letter in token)

    try:
        strange = [name for name in names if not isinstance(name, str)]
        expect.that(not strange, "tokens in GPT-2's letters for bytes", strange[:1])
        wrong = [line for line in lines if not isinstance(line, str) or line.count(" ") != 1]
        expect.that(not wrong, "merges of two tokens", wrong[:1])
        merges = [tuple(map(read, line.split(" "))) for line in lines]
        whole = set(special.values())  # known by number: "¶" is also the letter of a byte
        tokens = [n.encode() if i in whole else read(n) for i, n in enumerate(names)]
        return BytePairTokenizer(tokens, merges, special=special, pieces=pieces)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _printable(token: bytes) -> str:
    letters = byte_letters()
    return "".join(letters[byte] for byte in token)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(_read(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(tree).__name__}")
    return tree
