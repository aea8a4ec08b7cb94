r"""Where byte-pair encoding may not merge: the pieces a text is cut into first, and its alphabet.

The standard `re` knows neither \p{L} nor \p{N}; the classes are built here from `unicodedata`, so
their edition of Unicode is Python's. A letter that Unicode gained later counts as a sign.
"""

import functools
import itertools
import re
import sys
import unicodedata

from aigc_lib import expect

# A word, a number or signs, each with the space before it; line ends with the next line's
# indentation; what is left of other white space.
COURSE = r" ?[^\W\d]+| ?\d+|\n+ *| ?[^\w\s]+| +(?= )|\s"

# The white space of Unicode; Python's own \s adds the separators U+001C to U+001F.
_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # 25 characters in all


@functools.cache
def pattern(name: str) -> re.Pattern[str]:
    r"""Its `findall` cuts a text into pieces; every character falls into exactly one.

    "course" is ` ?[^\W\d]+| ?\d+|\n+ *| ?[^\w\s]+| +(?= )|\s`: indentation is one piece.
    "gpt2" is GPT-2's own,
    `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.

    Source: Radford et al. 2019, their published encoder.py.
    Derived: —
    """
    expect.one_of(("course", "gpt2"), pre_tokeniser=name)
    if name == "course":
        return re.compile(COURSE)
    letter, number = _category("L"), _category("N")
    return re.compile(
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{letter}]+| ?[{number}]+"
        rf"| ?[^{_SPACE}{letter}{number}]+|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
    )


@functools.cache
def byte_letters() -> str:
    """A printable character for each of the 256 bytes, in their order, as GPT-2's files write them.

    The bytes that are printable in Latin-1 (! to ~, ¡ to ¬, ® to ÿ) stand for themselves, the other
    68, in their order, for the characters from U+0100 on; a space is Ġ, a line end Ċ.

    Source: Radford et al. 2019, `bytes_to_unicode` of their published encoder.py.
    Derived: —
    """
    itself = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)}
    itself |= set(range(ord("®"), ord("ÿ") + 1))
    others = itertools.count(256)
    return "".join(chr(byte if byte in itself else next(others)) for byte in range(256))


def _category(first: str) -> str:
    """All characters of a general category, as ranges inside a bracket."""
    ranges: list[list[int]] = []
    for point in range(sys.maxunicode + 1):
        if unicodedata.category(chr(point))[0] == first:
            if ranges and ranges[-1][1] == point - 1:
                ranges[-1][1] = point
            else:
                ranges.append([point, point])
    return "".join(f"{chr(start)}-{chr(end)}" for start, end in ranges)
