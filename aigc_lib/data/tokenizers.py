"""Tokenisers: a text as whole numbers, and back."""

import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from aigc_lib.data.pre_tokens import pattern


class CharacterTokenizer:
    """Numbers the characters of an alphabet.

    Attributes:
        alphabet: the characters, sorted; the place of each is its number.
        vocab_size: V, how many there are.
    """

    def __init__(self, alphabet: Iterable[str]):
        """Sort the characters.

        Args:
            alphabet: characters, or any text that holds them all.

        Raises:
            ValueError: there is none, or one is not a single character.
        """
        letters = sorted(set(alphabet))
        if not letters or any(len(letter) != 1 for letter in letters):
            raise ValueError(f"expected one or more single characters, got {letters[:5]}")
        self.alphabet = "".join(letters)
        self.vocab_size = len(letters)
        self._ids = {letter: i for i, letter in enumerate(letters)}

    def encode(self, text: str) -> list[int]:
        """The number of each character.

        Args:
            text: characters of the alphabet.

        Returns:
            As many numbers.

        Raises:
            ValueError: a character is not in the alphabet.
        """
        try:
            return [self._ids[letter] for letter in text]
        except KeyError as error:
            raise ValueError(
                f"expected characters of the alphabet ({self.vocab_size} of them), "
                f"got {error.args[0]!r}"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """The character of each number.

        Args:
            ids: numbers from 0 to V − 1.

        Returns:
            The text.

        Raises:
            ValueError: a number is out of range.
        """
        return "".join(self.alphabet[i] for i in _in_range(ids, self.vocab_size))


class WordTokenizer:
    """Numbers the words of a given list; white space parts words and is not kept.

    Attributes:
        words: the words; the place of each is its number.
        vocab_size: V, how many there are.
    """

    def __init__(self, words: Sequence[str], *, unknown: str | None = None):
        """Number the words in the order given.

        Args:
            words: each once, none empty or with white space inside.
            unknown: the word among them that stands for every other; None refuses other words.

        Raises:
            ValueError: there is no word, one stands twice or is not a word, or the unknown one is
                not among them.
        """
        self.words = list(words)
        self.vocab_size = len(self.words)
        self._ids = {word: i for i, word in enumerate(self.words)}
        odd = [w for w, n in Counter(self.words).items() if n > 1 or w.split() != [w]]
        if odd or not self.words:
            raise ValueError(f"expected one or more words, each once, got {odd[:5]}")
        if unknown is not None and unknown not in self._ids:
            raise ValueError(f"expected the unknown word among the words, got {unknown!r}")
        self._unknown = unknown

    def encode(self, text: str) -> list[int]:
        """The number of each word.

        Args:
            text: words with white space between.

        Returns:
            As many numbers as words.

        Raises:
            ValueError: a word is not in the list, and no word stands for unknown ones.
        """
        ids = []
        for word in text.split():
            known = word if word in self._ids else self._unknown
            if known is None:
                raise ValueError(f"expected one of {self.vocab_size} words, got {word!r}")
            ids.append(self._ids[known])
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The word of each number, with a space between.

        Args:
            ids: numbers from 0 to V − 1.

        Returns:
            The text.

        Raises:
            ValueError: a number is out of range.
        """
        return " ".join(self.words[i] for i in _in_range(ids, self.vocab_size))


class BytePairTokenizer:
    """Byte-pair encoding: any text as byte strings that occurred often, without loss.

    The text is cut into pieces (`data.pre_tokens`). Each piece starts as its bytes; as long as two
    neighbours are a known merge, the one learned first is carried out wherever it occurs. As every
    byte is a token, every text has an encoding. `data.byte_pairs` trains, saves and loads.

    Source: Sennrich, Haddow and Birch 2016, algorithm 1, on bytes as in Radford et al. 2019,
    section 2.2.
    Derived: —

    Attributes:
        tokens: the byte string of each number; a special token's is its name.
        merges: pairs of byte strings, the first learned first.
        special: the number of each special token; its name in a text becomes this one number.
        pieces: name of the pre-tokeniser, "course" or "gpt2".
        vocab_size: V, how many numbers there are.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        merges: Sequence[tuple[bytes, bytes]],
        *,
        special: dict[str, int] | None = None,
        pieces: str = "course",
    ):
        """Take over what was learned; `byte_pairs.train` and its like call this.

        Args:
            tokens: the byte string of each number, all 256 single bytes among them.
            merges: pairs whose parts and whole are tokens.
            special: special tokens with their numbers.
            pieces: name of the pre-tokeniser.

        Raises:
            ValueError: a byte is missing, a token stands twice, a merge has no token, or a special
                token has no number of its own.
        """
        self.tokens, self.merges = list(tokens), list(merges)
        self.special, self.pieces = dict(special or {}), pieces
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
        """The numbers of a text; the name of a special token becomes its number.

        Args:
            text: any text that UTF-8 can write.

        Returns:
            The numbers, none for an empty text.

        Raises:
            ValueError: the text holds a lone surrogate.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"expected text that UTF-8 can write, got the lone surrogate "
                f"{text[error.start]!r} at place {error.start}"
            ) from None
        out: list[int] = []
        for part in self._split.split(text) if self._split else [text]:
            if part in self.special:
                out.append(self.special[part])
            else:
                out.extend(self._plain(part))
        return out

    def encode_bytes(self, data: bytes) -> list[int]:
        """The numbers of any bytes: those of `encode` for UTF-8 without special tokens.

        Args:
            data: any bytes, UTF-8 or not; nothing in them is special.

        Returns:
            The numbers.
        """
        return self._plain(data.decode("utf-8", "surrogateescape"))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some numbers; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: numbers from 0 to V − 1.

        Returns:
            The text; for numbers from `encode` the one that was encoded.

        Raises:
            ValueError: a number is out of range.
        """
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some numbers, the exact inverse of `encode_bytes`.

        Args:
            ids: numbers from 0 to V − 1.

        Returns:
            Their byte strings, one after the other; a special token gives its name.

        Raises:
            ValueError: a number is out of range.
        """
        return b"".join(self.tokens[i] for i in _in_range(ids, self.vocab_size))

    def _plain(self, text: str) -> list[int]:
        out: list[int] = []
        for piece in self._pattern.findall(text):
            out.extend(self._encode_piece(piece.encode("utf-8", "surrogateescape")))
        return out

    def _merged(self, data: bytes) -> list[int]:
        ids, none = [self._bytes[byte] for byte in data], (len(self._ranks), -1)
        while len(ids) > 1:
            pair = min(itertools.pairwise(ids), key=lambda p: self._ranks.get(p, none)[0])
            if pair not in self._ranks:
                break
            ids = merge_pair(ids, pair, self._ranks[pair][1])
        return ids

    def _check(self, reserved: set[int]) -> None:
        if len(reserved) < len(self.special) or not reserved <= set(range(self.vocab_size)):
            raise ValueError(
                f"expected a number below V for each special token, got {self.special}"
            )
        missing = [byte for byte in range(256) if bytes([byte]) not in self._ids]
        if missing:
            raise ValueError(f"expected a token for each byte, got none for {missing[0]}")
        if len(self._ids) + len(reserved) != self.vocab_size:
            twice = [t for t, n in Counter(self.tokens).items() if n > 1]
            raise ValueError(f"expected each token once, got {twice[:1]} twice")
        for a, b in self.merges:
            for part in (a, b, a + b):
                if part not in self._ids:
                    raise ValueError(f"expected a token for the merge {a!r} {b!r}, got no {part!r}")


def merge_pair(ids: list[int], pair: tuple[int, int], whole: int) -> list[int]:
    """Write one number for each occurrence of a pair, from the left, none overlapping.

    Args:
        ids: numbers.
        pair: two of them that stand side by side.
        whole: the number written instead.

    Returns:
        The new list.
    """
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
    for i in ids:
        if not 0 <= i < size:
            raise ValueError(f"expected token numbers from 0 to {size - 1}, got {i}")
    return ids
