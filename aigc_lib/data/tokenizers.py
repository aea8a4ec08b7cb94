"""Tokenisers: a text as whole numbers from 0 to V − 1, and back; V is `vocab_size`.

Text without a number, numbers out of range and vocabularies that contradict themselves raise
ValueError.
"""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from aigc_lib import expect
from aigc_lib.data.pre_tokens import pattern


class CharacterTokenizer:
    """A character's number is its place in the sorted alphabet, which may be given as any text."""

    def __init__(self, alphabet: Iterable[str]):
        letters = sorted(set(alphabet))
        single = {len(letter) for letter in letters} == {1}
        expect.that(single, "an alphabet of one or more single characters", letters[:5])
        self.alphabet = "".join(letters)
        self.vocab_size = len(letters)
        self._ids = {letter: i for i, letter in enumerate(letters)}

    def encode(self, text: str) -> list[int]:
        """The number of each character."""
        strange = sorted(set(text) - self._ids.keys())
        expect.that(not strange, f"text of the alphabet's {self.vocab_size} letters", strange[:5])
        return [self._ids[letter] for letter in text]

    def decode(self, ids: Iterable[int]) -> str:
        """The character of each number."""
        return "".join(self.alphabet[i] for i in _in_range(ids, self.vocab_size))


class WordTokenizer:
    """A word's number is its place in the list; white space parts words and is not kept.

    The unknown word, one of the list, stands for every other; without it, others are refused.
    """

    def __init__(self, words: Sequence[str], *, unknown: str | None = None):
        self.words = list(words)
        self.vocab_size = len(self.words)
        self._ids = {word: i for i, word in enumerate(self.words)}
        odd = [w for w, n in Counter(self.words).items() if n > 1 or w.split() != [w]]
        expect.that(len(self.words) > 0 and not odd, "one or more words, each once", odd[:5])
        known = unknown is None or unknown in self._ids
        expect.that(known, "the unknown word among the words", repr(unknown))
        self._unknown = self._ids.get(unknown)

    def encode(self, text: str) -> list[int]:
        """The number of each word."""
        words = text.split()
        strange = [word for word in words if word not in self._ids]
        known = self._unknown is not None or not strange
        expect.that(known, f"text of the list's {self.vocab_size} words", strange[:5])
        return [self._ids.get(word, self._unknown) for word in words]

    def decode(self, ids: Iterable[int]) -> str:
        """The word of each number, with a space between."""
        return " ".join(self.words[i] for i in _in_range(ids, self.vocab_size))


class BytePairTokenizer:
    """Byte-pair encoding: any text as byte strings that occurred often, without loss.

    The text is cut into pieces (`data.pre_tokens`). Each piece starts as its bytes; as long as two
    neighbours are a known merge, the one learned first is carried out wherever it occurs. As every
    byte is a token, every text has an encoding. `data.byte_pairs` trains, saves and loads.

    Source: Sennrich, Haddow and Birch 2016, algorithm 1, on bytes as in Radford et al. 2019,
    section 2.2.
    Derived: —
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: Sequence[tuple[bytes, bytes]],
        *,
        special: dict[str, int] | None = None,
        pieces: str = "course",
    ):
        self.tokens = list(tokens)  # the byte string of each number; a special token's is its name
        self.merges = list(merges)  # the first learned first
        self.special = dict(special or {})  # the number of each special token
        self.pieces = pieces  # the name of the pre-tokeniser
        self.vocab_size = len(self.tokens)
        self._pattern = pattern(pieces)
        reserved = set(self.special.values())
        self._ids = {t: i for i, t in enumerate(self.tokens) if i not in reserved}
        self._check(reserved)
        ids = self._ids
        # A pair's rank and what it becomes, all in numbers.
        self._ranks = {
            (ids[a], ids[b]): (rank, ids[a + b])
            for rank, (a, b) in reversed(list(enumerate(self.merges)))
        }
        self._bytes = [ids[bytes([byte])] for byte in range(256)]
        names = sorted(self.special, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None
        # Most pieces come again and again; a bound keeps a long run from filling the memory.
        self._encode_piece = functools.lru_cache(1 << 18)(self._merged)

    def encode(self, text: str) -> list[int]:
        """The numbers of a text; the name of a special token becomes its number."""
        lone = re.findall("[\ud800-\udfff]", text)
        expect.that(not lone, "text that UTF-8 can write", f"the lone surrogates {lone[:5]}")
        out: list[int] = []
        for part in self._split.split(text) if self._split else [text]:
            if part in self.special:
                out.append(self.special[part])
            else:
                out.extend(self._plain(part))
        return out

    def encode_bytes(self, data: bytes) -> list[int]:
        """The numbers of any bytes, UTF-8 or not; nothing in them is special."""
        return self._plain(data.decode("utf-8", "surrogateescape"))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some numbers; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some numbers, the exact inverse of `encode_bytes`."""
        return b"".join(self.tokens[i] for i in _in_range(ids, self.vocab_size))

    def _plain(self, text: str) -> list[int]:
        pieces = (piece.encode("utf-8", "surrogateescape") for piece in self._pattern.findall(text))
        return [i for piece in pieces for i in self._encode_piece(piece)]

    def _merged(self, data: bytes) -> list[int]:
        ids, none = [self._bytes[byte] for byte in data], (len(self._ranks), -1)
        while len(ids) > 1:
            pair = min(itertools.pairwise(ids), key=lambda p: self._ranks.get(p, none)[0])
            if pair not in self._ranks:
                break
            ids = merge_pair(ids, pair, self._ranks[pair][1])
        return ids

    def _check(self, reserved: set[int]) -> None:
        own = len(reserved) == len(self.special) and reserved <= set(range(self.vocab_size))
        expect.that(own, "a number below V for each special token", self.special)
        missing = [byte for byte in range(256) if bytes([byte]) not in self._ids]
        expect.that(not missing, "a token for each byte", f"none for {missing[:1]}")
        twice = [token for token, n in Counter(self.tokens).items() if n > 1]
        once = len(self._ids) + len(reserved) == self.vocab_size
        expect.that(once, "each token once", f"{twice[:1]} twice")
        lost = [(a, b) for a, b in self.merges if not {a, b, a + b} <= self._ids.keys()]
        expect.that(not lost, "tokens for the parts and the whole of every merge", lost[:1])


def merge_pair(ids: list[int], pair: tuple[int, int], whole: int) -> list[int]:
    """Write one number for each occurrence of a pair, from the left, none overlapping."""
    out, i, last = [], 0, len(ids) - 1
    while i <= last:
        if i < last and ids[i] == pair[0] and ids[i + 1] == pair[1]:
            out.append(whole)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def _in_range(ids: Iterable[int], size: int) -> list[int]:
    ids = list(ids)
    wrong = [i for i in ids if not 0 <= i < size]
    expect.that(not wrong, f"token numbers from 0 to {size - 1}", wrong[:5])
    return ids
