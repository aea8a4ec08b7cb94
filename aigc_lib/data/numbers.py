"""Numbers from 0 to 999 999 in English, in Chinese and in digits: an endless parallel corpus.

English, the American standard: no "and", a hyphen between tens and units ("forty-two"), single
spaces elsewhere, neither "a hundred" nor plurals: "one hundred five thousand forty-two".

Chinese, as primary schools in China teach it (大数的认识): the number is cut into sections of four
digits. In a section each digit other than zero is followed by its unit 千, 百, 十 or nothing. One
or several zeros between two other digits, or in front of them after a section with 万, are one 零;
zeros at a section's end are not read. After the upper section stands 万. Always 二, never 两. A one
before 十 is dropped at the very beginning alone: 十二 and 十二万, but 一百一十二 and 一万零一十二.
So 105 042 is 十万五千零四十二.

Every number has exactly one form in each language, and the parsers accept no other: ValueError for
another text, a number out of range, or a form that is not "english", "chinese" or "digits".
"""

import functools
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import widest_float

LARGEST = 999_999
FORMS = ("english", "chinese", "digits")

_SMALL = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen"),
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = [*_SMALL, *_TENS, "hundred", "thousand"]
_DIGITS, _UNITS = "零一二三四五六七八九", ("", "十", "百", "千")
_SIGNS = [*_DIGITS, *_UNITS[1:], "万"]

# A begin token for each form: it tells the decoder which one is wanted.
PAD, EOS = 0, 1
BOS = {form: 2 + i for i, form in enumerate(FORMS)}
_BEGIN = [f"<{form}>" for form in FORMS]
VOCABULARY = ("<pad>", "<eos>", *_BEGIN, *_WORDS, *_SIGNS, *"0123456789")
_IDS = {token: i for i, token in enumerate(VOCABULARY)}

Direction = tuple[str, str]
BOTH = (("english", "chinese"), ("chinese", "english"))


@dataclass(frozen=True, kw_only=True)
class TranslationBatch:
    """Numbers in one form and in another, padded at the right."""

    source: Int[Tensor, "B M"]  # tokens of the source, then EOS, then PAD
    target_in: Int[Tensor, "B T"]  # what the decoder reads: BOS of the form wanted, the target, PAD
    target_out: Int[Tensor, "B T"]  # what it shall answer: the target, EOS, PAD
    numbers: Int[Tensor, " B"]  # the numbers themselves


def to_english(n: int) -> str:
    """105 042 ↦ "one hundred five thousand forty-two".

    Source: The Chicago Manual of Style 2017, sections 7.89 (hyphens) and 9.5 (no "and").
    Derived: —
    """
    _check_number(n)
    thousands, rest = divmod(n, 1000)
    parts = [*_below_thousand(thousands), "thousand"] if thousands else []
    return " ".join(parts + _below_thousand(rest)) if n else "zero"


def to_chinese(n: int) -> str:
    """105 042 ↦ 十万五千零四十二.

    Source: People's Education Press, mathematics for primary schools, year 4, volume 1, chapter 1.
    Derived: —
    """
    _check_number(n)
    upper, lower = divmod(n, 10_000)
    text = f"{_section(upper)}万" if upper else ""
    if lower:
        text += ("零" if upper and lower < 1000 else "") + _section(lower)
    return re.sub("^一十", "十", text) or "零"


def from_english(text: str) -> int:
    """Read what `to_english` writes, and nothing else."""
    total = part = 0
    for word in re.split("[ -]", text):
        if word == "hundred":
            part *= 100
        elif word == "thousand":
            total, part = total + 1000 * part, 0
        elif word in _SMALL:
            part += _SMALL.index(word)
        elif word in _TENS:
            part += 10 * (2 + _TENS.index(word))
        else:
            raise ValueError(f"expected English number words, got {word!r} in {text!r}")
    return _same(total + part, text, to_english)


def from_chinese(text: str) -> int:
    """Read what `to_chinese` writes, and nothing else."""
    total = part = digit = 0
    for i, sign in enumerate(text):
        if sign == "万":
            total, part, digit = total + 10_000 * (part + digit), 0, 0
        elif sign in _UNITS:
            if i == 0:
                digit = 1
            part, digit = part + digit * 10 ** _UNITS.index(sign), 0
        elif sign in _DIGITS:
            digit = _DIGITS.index(sign)
        else:
            raise ValueError(f"expected Chinese numerals, got {sign!r} in {text!r}")
    return _same(total + part + digit, text, to_chinese)


def write(n: int, form: str) -> str:
    """A number in a form; digits have neither leading zeros nor separators."""
    expect.one_of(FORMS, form=form)
    return {"english": to_english, "chinese": to_chinese, "digits": _to_digits}[form](n)


def read(text: str, form: str) -> int:
    """Read what `write` writes, and nothing else."""
    expect.one_of(FORMS, form=form)
    if form == "digits":
        plain = re.fullmatch("0|[1-9][0-9]{0,5}", text) is not None
        expect.that(plain, "1 to 6 digits without leading zeros", repr(text))
        return int(text)
    return {"english": from_english, "chinese": from_chinese}[form](text)


def encode(n: int, form: str) -> list[int]:
    """Places in VOCABULARY, without BOS or EOS: words (a hyphen parts two), numerals, digits."""
    text = write(n, form)
    return [_IDS[token] for token in (re.split("[ -]", text) if form == "english" else text)]


def decode(ids: Sequence[int], form: str) -> str:
    """The text of some tokens, without BOS, up to the first EOS; it need not be a number."""
    expect.one_of(FORMS, form=form)
    ids = list(itertools.takewhile(lambda i: i != EOS, ids))
    wrong = [i for i in ids if not 0 <= i < len(VOCABULARY)]
    expect.that(not wrong, f"ids from 0 to {len(VOCABULARY) - 1}", wrong[:1])
    tokens = [VOCABULARY[i] for i in ids if i not in BOS.values()]
    if form != "english":
        return "".join(tokens)
    tens, units = "|".join(_TENS), "|".join(_SMALL[1:10])
    return re.sub(rf"\b({tens}) ({units})\b", r"\1-\2", " ".join(tokens))


def is_held_out(n: Int[Tensor, "..."]) -> Tensor:
    """n ≥ 100 and (n · 2654435761 mod 2³²) ≥ 0.9 · 2³²: about a tenth, scattered.

    No training batch holds these numbers.

    Source: Knuth 1998, volume 3, section 6.4 (multiplicative hashing by the golden ratio).
    Derived: —
    """
    return (n >= 100) & (n.long() * 2_654_435_761 % 2**32 >= 9 * 2**32 // 10)


def sample(
    batch: int,
    generator: torch.Generator,
    *,
    directions: Sequence[Direction] = BOTH,
    held_out: bool = False,
) -> TranslationBatch:
    """Draw numbers to translate, each length in digits equally often.

    First a length is drawn among those that have numbers (1 to 6 digits; 3 to 6 if held out), then
    a number of that length, then one of the directions (source, target), each equally likely. The
    numbers are those that `is_held_out`, or the others. The tensors are on the generator's device;
    on MPS, whose draws have 24 bits, numbers of six digits differ by up to 6 % in probability.
    """
    expect.at_least(1, batch=batch)
    expect.that(len(directions) > 0, "one or more directions", directions)
    device, dtype = generator.device, widest_float(generator.device)
    pool, starts, sizes = (t.to(device) for t in _pool(held_out))
    draws = torch.rand(3, batch, generator=generator, device=device, dtype=dtype)
    length = (draws[0] * len(sizes)).long()
    chosen = (draws[2] * len(directions)).long().tolist()
    numbers = pool[starts[length] + (draws[1] * sizes[length]).long()]
    return translate(numbers, [directions[i] for i in chosen])


def translate(numbers: Int[Tensor, " B"], directions: Sequence[Direction]) -> TranslationBatch:
    """The batch of given numbers, each in its direction (source, target), padded to the longest."""
    expect.at_least(1, directions=len(directions))
    expect.shaped((len(directions),), numbers=numbers)
    sources, targets, begins = [], [], []
    for n, (source, target) in zip(numbers.tolist(), directions, strict=True):
        sources.append([*encode(n, source), EOS])
        targets.append([*encode(n, target), EOS])
        begins.append(BOS[target])
    target_out = _padded(targets, numbers.device)  #                        B T
    begin = torch.tensor(begins, device=numbers.device)[:, None]
    # PAD is 0: wiping the EOS out turns the answers into what is read before each of them.
    read_before = target_out.masked_fill(target_out == EOS, PAD)[:, :-1]
    return TranslationBatch(
        source=_padded(sources, numbers.device),
        target_in=torch.cat([begin, read_before], 1),
        target_out=target_out,
        numbers=numbers,
    )


def _to_digits(n: int) -> str:
    _check_number(n)
    return str(n)


def _below_thousand(n: int) -> list[str]:
    hundreds, rest = divmod(n, 100)
    words = [_SMALL[hundreds], "hundred"] if hundreds else []
    if rest >= 20:
        tens, unit = divmod(rest, 10)
        words.append(_TENS[tens - 2] + (f"-{_SMALL[unit]}" if unit else ""))
    elif rest:
        words.append(_SMALL[rest])
    return words


def _section(n: int) -> str:
    """Up to four digits with their units; 一十 is not yet shortened."""
    digits = str(n)
    text = "".join(
        _DIGITS[int(digit)] + (_UNITS[len(digits) - 1 - i] if digit != "0" else "")
        for i, digit in enumerate(digits)
    )
    return re.sub("零+", "零", text).rstrip("零")


@functools.cache
def _pool(held_out: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers that may be drawn; where each length starts among them, and how many it has."""
    numbers = torch.arange(LARGEST + 1)
    numbers = numbers[is_held_out(numbers) == held_out]
    edges = torch.searchsorted(numbers, torch.tensor([0, *(10**k for k in range(1, 7))]))
    sizes = edges.diff()
    return numbers, edges[:-1][sizes > 0], sizes[sizes > 0]


def _padded(rows: list[list[int]], device: torch.device) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows], device=device)


def _same(n: int, text: str, write) -> int:
    expect.that(n <= LARGEST, f"text of a number from 0 to {LARGEST}", repr(text))
    expect.that(write(n) == text, f"text {write(n)!r} for {n}", repr(text))
    return n


def _check_number(n: int) -> None:
    whole = type(n) is int and 0 <= n <= LARGEST
    expect.that(whole, f"n to be a whole number from 0 to {LARGEST}", repr(n))
