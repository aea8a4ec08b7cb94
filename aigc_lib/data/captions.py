"""Captions of scenes in English and in Chinese, from a small grammar, and their tokens.

A caption says exactly the facts that it is given, from either object's side; what is −1 is left
unsaid: "a red shape", "一个图形在左边". Of the forms of a language that say it each is equally
likely. English is cut at spaces, Chinese into the longest words of VOCABULARY; token 0 is padding.
"""

import re
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from aigc_lib import expect
from aigc_lib.data.scenes import COLOURS, SHAPES, SIZES, Facts, check_facts

LANGUAGES = ("en", "zh", "both")
# Of each attribute the last word stands for what is unsaid; then what may be said of each place,
# and the forms for one object and for two: a is the one told of, b the other, p where a is.
_EN = {
    "object": "a {2} {1} {0}",
    "words": ((*SHAPES, "shape"), (*COLOURS, ""), (*SIZES, "")),
    "where 1": (
        *("on the left/at the left", "on the right/at the right", "at the top", "at the bottom"),
        "in the centre/in the middle",
    ),
    "where 2": ("to the left of/left of", "to the right of/right of", "above/over", "below/under"),
    "forms 1": "{a} {p}/there is {a} {p}/{p} is {a}/a picture of {a} {p}",
    "forms 2": "{a} {p} {b}/there is {a} {p} {b}/{p} {b} is {a}/{b} with {a} {p} it",
    "anywhere 1": "{a}/there is {a}/a picture of {a}",
    "anywhere 2": "{a} and {b}/there is {a} and {b}/a picture of {a} and {b}",
}
_SIDES = ("左边/左侧", "右边/右侧", "上方/上面", "下方/下面")
_ZH = {
    "object": "一个{2}{1}{0}",
    "words": (
        ("圆形", "方块", "三角形", "十字", "图形"),
        ("红色", "黄色", "绿色", "蓝色", "紫色", "黑色", ""),
        ("小的", "大的", ""),
    ),
    "where 1": (*_SIDES, "中间/中央"),
    "where 2": _SIDES,
    "forms 1": "{a}在{p}/{p}有{a}/{p}是{a}/图中{p}有{a}",
    "forms 2": "{a}在{b}{p}/{a}在{b}的{p}/{b}的{p}是{a}/{b}{p}有{a}",
    "anywhere 1": "{a}/有{a}/图中有{a}",
    "anywhere 2": "{a}和{b}/有{a}和{b}/图中有{a}和{b}",
}
_ENGLISH, _CHINESE = (
    sorted(set(re.findall(letters, re.sub(r"{\w}", " ", str([*grammar.values()])))))
    for grammar, letters in ((_EN, "[a-z]+"), (_ZH, "[一-龥]+"))
)
VOCABULARY = ("", *_ENGLISH, *_CHINESE)
_TOKENS = {word: token for token, word in enumerate(VOCABULARY)}
_WORD = "|".join([*sorted(_CHINESE, key=len, reverse=True), "."])


def captions(facts: Facts, generator: torch.Generator, language: str = "en") -> list[str]:
    """One for each scene, such as "a large red circle above a small blue square"; "" for nothing.

    "both" chooses a language for each. Two objects face each other, or neither place is said.
    """
    check_facts(facts)
    expect.one_of(LANGUAGES, language=language)
    draws = torch.rand(len(facts), 4, generator=generator, device=generator.device).tolist()
    return [_caption(row, *draw, language) for row, draw in zip(facts.tolist(), draws, strict=True)]


def tokenise(captions: Sequence[str], length: int = 16) -> Int[Tensor, "N length"]:
    """Places in VOCABULARY, then 0; "" is 0 throughout. ValueError for any other word."""
    tokens = torch.zeros(len(captions), length, dtype=torch.long)
    for row, caption in zip(tokens, captions, strict=True):
        parts = ([p] if p.isascii() else re.findall(_WORD, p) for p in caption.lower().split())
        words = [word for part in parts for word in part]
        unknown = [word for word in words if word not in _TOKENS]
        expect.that(not unknown, "words of VOCABULARY", ", ".join(map(repr, unknown)))
        expect.that(len(words) <= length, f"captions of at most {length} tokens", len(words))
        row[: len(words)] = torch.tensor([_TOKENS[word] for word in words])
    return tokens


def _caption(
    objects: list, order: float, tongue: float, phrase: float, form: float, language
) -> str:
    grammar = _EN if language == "en" or (language == "both" and tongue < 0.5) else _ZH
    told = [thing for thing in objects if max(thing) >= 0][:: 1 if order < 0.5 else -1]
    if not told:
        return ""
    count, places = len(told), {thing[3] for thing in told}
    facing = count == 1 or places in ({0, 1}, {2, 3}, {-1})
    expect.that(facing, "facts of two objects that face each other", f"places {places}")
    fill = {"a": told[0], "b": told[-1], "p": ""}
    for name in "ab":
        words = (w[i] for w, i in zip(grammar["words"], fill[name][:3], strict=True))
        fill[name] = grammar["object"].format(*words)
    if places != {-1}:
        phrases = grammar[f"where {count}"][told[0][3]].split("/")
        fill["p"] = phrases[int(phrase * len(phrases))]
    forms = grammar[f"{'anywhere' if places == {-1} else 'forms'} {count}"].split("/")
    return " ".join(forms[int(form * len(forms))].format(**fill).split())
