"""Captions of scenes in English and in Chinese, from a small grammar, and their tokens.

A caption says exactly the facts that it is given: size, colour and shape of each object; where a
single one is, or how two stand to each other, told from either of them. What is −1 in the facts is
left unsaid: "a red shape", "一个图形在左边", "a red circle and a blue square". Every form that says
the same is equally likely, and both languages know the same facts.

English is cut at spaces, Chinese into the longest words that VOCABULARY has. Token 0 is padding,
so that "", no caption at all, is padding alone.
"""

import re
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from aigc_lib import expect
from aigc_lib.data.scenes import COLOURS, SHAPES, Facts, check_facts

LANGUAGES = ("en", "zh", "both")
LENGTH = 16  # no caption has more tokens than 15

_EN = {
    "object": "a {size} {colour} {shape}",
    "shape": (*SHAPES, "shape"),  # the last is for what is unsaid
    "colour": (*COLOURS, ""),
    "size": ("small", "large", ""),
    "place": (
        *(("on the left", "at the left"), ("on the right", "at the right")),
        *(("at the top", "on top"), ("at the bottom", "on the bottom")),
        ("in the centre", "in the middle"),
    ),
    "relation": (
        *(("to the left of", "left of"), ("to the right of", "right of")),
        *(("above", "over"), ("below", "under")),
    ),
    "one": ("{a} {where}", "there is {a} {where}", "{where} is {a}", "a picture of {a} {where}"),
    "two": (
        *("{a} {where} {b}", "there is {a} {where} {b}", "a picture of {a} {where} {b}"),
        *("{where} {b} is {a}", "{b} with {a} {where} it"),
    ),
    "one anywhere": ("{a}", "there is {a}", "a picture of {a}", "a picture with {a}"),
    "two anywhere": (
        "{a} and {b}",
        "there is {a} and {b}",
        "a picture of {a} and {b}",
        "{a} with {b}",
    ),
}
_SIDES = (("左边", "左侧"), ("右边", "右侧"), ("上方", "上面"), ("下方", "下面"))
_ZH = {
    "object": "一个{size}{colour}{shape}",
    "shape": ("圆形", "方块", "三角形", "十字", "图形"),
    "colour": ("红色", "黄色", "绿色", "蓝色", "紫色", "黑色", ""),
    "size": ("小的", "大的", ""),
    "place": (*_SIDES, ("中间", "中央")),
    "relation": _SIDES,
    "one": ("{a}在{where}", "{where}有{a}", "{where}是{a}", "图中{where}有{a}"),
    "two": (
        *("{a}在{b}{where}", "{a}在{b}的{where}", "{b}的{where}是{a}", "{b}{where}有{a}"),
        "图中{a}在{b}的{where}",
    ),
    "one anywhere": ("{a}", "有{a}", "图中有{a}", "图中是{a}"),
    "two anywhere": ("{a}和{b}", "有{a}和{b}", "图中有{a}和{b}", "图中是{a}和{b}"),
}


def _words_of(grammar: dict) -> list[str]:
    """Every word of a grammar, sorted."""
    texts = " ".join(str(part) for part in grammar.values())
    return sorted(set(re.findall(r"[a-z]+|[^\W\d_a-zA-Z]+", re.sub(r"{\w+}", " ", texts))))


VOCABULARY = ("", *_words_of(_EN), *_words_of(_ZH))
_IDS = {word: i for i, word in enumerate(VOCABULARY)}
_LONGEST_FIRST = "|".join(sorted(_words_of(_ZH), key=len, reverse=True))


def captions(facts: Facts, generator: torch.Generator, language: str = "en") -> list[str]:
    """One caption for each scene: "a large red circle above a small blue square".

    With "both" each is in either language. Two objects must face each other, or neither place is
    said; a scene of which nothing is said has the empty caption.
    """
    check_facts(facts)
    expect.one_of(LANGUAGES, language=language)
    draws = torch.rand(len(facts), 4, generator=generator, device=generator.device).tolist()
    return [_caption(*row, draw, language) for row, draw in zip(facts.tolist(), draws, strict=True)]


def tokenise(captions: Sequence[str], length: int = LENGTH) -> Int[Tensor, "N length"]:
    """Places in VOCABULARY, 0 after a caption's end; a word that is not there is a ValueError."""
    rows = [[_IDS[word] for word in _words(caption)] for caption in captions]
    longest = max(map(len, rows), default=0)
    expect.that(longest <= length, f"captions of at most {length} tokens", longest)
    return torch.tensor([row + [0] * (length - len(row)) for row in rows]).view(-1, length)


def _caption(a: list[int], b: list[int], draw: list[float], language: str) -> str:
    said = [thing for thing in (a, b) if max(thing) >= 0]
    if not said:
        return ""
    if draw[0] < 0.5:
        said.reverse()  # tell it from the other one
    grammar = _EN if language == "en" or (language == "both" and draw[1] < 0.5) else _ZH
    many, where = ("one", "two")[len(said) - 1], ""
    place, other = said[0][3], said[-1][3]
    facing = place == other == -1 or (place ^ 1 == other and max(place, other) < 4)
    expect.that(len(said) == 1 or facing, "two objects that face each other", (place, other))
    if place >= 0:
        phrases = grammar["place" if many == "one" else "relation"][place]
        where = phrases[int(draw[2] * len(phrases))]
    forms = grammar[many if where else f"{many} anywhere"]
    things = [
        grammar["object"].format(**{n: grammar[n][v] for n, v in zip(_ORDER, thing, strict=False)})
        for thing in said
    ]
    text = forms[int(draw[3] * len(forms))].format(a=things[0], b=things[-1], where=where)
    return " ".join(text.split())


_ORDER = ("shape", "colour", "size")


def _words(caption: str) -> list[str]:
    words = []
    for part in caption.lower().split():
        words += [part] if part.isascii() else re.findall(f"{_LONGEST_FIRST}|.", part)
    for word in words:
        expect.that(word in _IDS, "words of VOCABULARY", repr(word))
    return words
