import itertools
import random
import unicodedata

import pytest
import regex
from transformers.convert_slow_tokenizer import bytes_to_unicode

from aigc_lib.data import pre_tokens

PUBLISHED = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# What both editions of Unicode know, the interpreter's and that of the package regex.
KNOWN = [chr(i) for i in range(0x110000) if unicodedata.category(chr(i)) not in ("Cn", "Cs")]
SPACES = [
    " ",
    "  ",
    "\n",
    "\t",
    "\r\n",
    "\x1c",
    "\x1f",
    "\x85",
    "\xa0",
    "\u2003",
    "\u3000",
    "\u200b",
]


def samples(count, length):
    draw = random.Random(0)
    common = [
        *"abcXYZ0189_.,'-()=#",
        "'s",
        "'ll",
        "é",
        "中",
        "٣",
        "½",
        "😀",
        "ß",
        "e\u0301",
        *SPACES,
    ]
    for _ in range(count):
        yield "".join(
            draw.choice(draw.choice((common, common, SPACES, KNOWN))) for _ in range(length)
        )


def test_gpt2s_pieces_are_those_of_its_published_expression():
    theirs, ours = regex.compile(PUBLISHED), pre_tokens.pattern("gpt2")
    for text in [*samples(3000, 20), "it's   we'll\n\n  x", " 'S 'LL", "a\x1cb \x1c", " \u3000x"]:
        assert ours.findall(text) == theirs.findall(text)


def test_every_character_is_in_the_class_of_its_category():
    theirs, ours = regex.compile(PUBLISHED), pre_tokens.pattern("gpt2")
    # Within a run of one category, such as 20 000 ideographs, every sixteenth.
    kind = [unicodedata.category(letter) for letter in KNOWN]
    border = [a != b for a, b in itertools.pairwise(["", *kind, ""])]
    some = [c for i, c in enumerate(KNOWN) if border[i] or border[i + 1] or i % 16 == 0]
    # One character between a letter, a number, a sign and a space shows its class by what it joins.
    for i in range(0, len(some), 50):
        text = "".join(f"a{letter}1{letter}.{letter} " for letter in some[i : i + 50])
        assert ours.findall(text) == theirs.findall(text)


@pytest.mark.parametrize("name", ["course", "gpt2"])
def test_the_pieces_are_the_text(name):
    for text in samples(1000, 30):
        assert "".join(pre_tokens.pattern(name).findall(text)) == text
    every = "".join(map(chr, range(0x110000)))
    assert "".join(pre_tokens.pattern(name).findall(every)) == every


def test_the_courses_pieces_by_hand():
    text = "def f(x_1):\n\n    return  x_1 + 42\n  # ok \n"
    assert pre_tokens.pattern("course").findall(text) == [
        *("def", " f", "(", "x_", "1", "):", "\n\n    ", "return", " ", " x_", "1", " +", " 42"),
        *("\n  ", "#", " ok", " ", "\n"),
    ]


def test_the_letters_for_bytes_are_the_published_ones():
    assert dict(enumerate(pre_tokens.byte_letters())) == bytes_to_unicode()
    assert len(set(pre_tokens.byte_letters())) == 256
    assert pre_tokens.byte_letters()[ord(" ")] == "Ġ"


def test_an_unknown_pre_tokeniser_is_refused():
    with pytest.raises(ValueError, match="pre_tokeniser"):
        pre_tokens.pattern("x")
