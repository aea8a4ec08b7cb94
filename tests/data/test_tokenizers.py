import random

import pytest

from aigc_lib.data import byte_pairs
from aigc_lib.data.tokenizers import (
    BytePairTokenizer,
    CharacterTokenizer,
    WordTokenizer,
    merge_pair,
)

BYTES = [bytes([byte]) for byte in range(256)]
TEXT = "the cat and the hat and the bat, that is that; they sat there. " * 3
TRAINED = byte_pairs.train(TEXT, 275, special=["<end>"])


def any_text(draw, length):
    points = [draw.choice((draw.randrange(128), draw.randrange(0x110000))) for _ in range(length)]
    return "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)


def test_characters_are_numbered_in_order():
    tokenizer = CharacterTokenizer("hello, world")
    assert tokenizer.alphabet == " ,dehlorw"
    assert tokenizer.vocab_size == 9
    assert tokenizer.encode("low") == [5, 6, 8]
    assert tokenizer.decode([5, 6, 8]) == "low"
    assert tokenizer.decode(tokenizer.encode("hello, world")) == "hello, world"
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_words_are_numbered_as_given():
    tokenizer = WordTokenizer(["b", "a", "?"])
    assert tokenizer.encode(" a\n b a") == [1, 0, 1]
    assert tokenizer.decode([1, 0, 1]) == "a b a"
    assert WordTokenizer(["b", "a", "?"], unknown="?").encode("a c") == [1, 2]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: CharacterTokenizer(""), "alphabet"),
        (lambda: CharacterTokenizer(["a", "bc"]), "alphabet .*'bc'"),
        (lambda: WordTokenizer([]), "words"),
        (lambda: WordTokenizer(["a", "b", "a"]), r"words.* got \['a'\]"),
        (lambda: WordTokenizer(["a", ""]), r"words.* got \[''\]"),
        (lambda: WordTokenizer(["a b"]), r"words.* got \['a b'\]"),
        (lambda: WordTokenizer(["a"], unknown="?"), r"unknown .*'\?'"),
        (lambda: CharacterTokenizer("ab").encode("abc"), r"text .*got \['c'\]"),
        (lambda: WordTokenizer(["b", "a"]).encode("a c"), r"text .*got \['c'\]"),
        (lambda: BytePairTokenizer(BYTES, [], pieces="x"), "pre_tokeniser"),
        (lambda: BytePairTokenizer(BYTES, []).encode("ab\ud800"), r"text .*ud800"),
    ],
)
def test_bad_vocabularies_and_texts_are_refused(make, name):
    with pytest.raises(ValueError, match=name):
        make()


@pytest.mark.parametrize(
    "tokenizer", [CharacterTokenizer("ab"), WordTokenizer(["a", "b"]), BytePairTokenizer(BYTES, [])]
)
def test_numbers_out_of_range_are_refused(tokenizer):
    last = tokenizer.vocab_size - 1
    for bad in (-1, last + 1):
        with pytest.raises(ValueError, match=rf"numbers from 0 to {last}, got \[{bad}\]"):
            tokenizer.decode([0, bad])


def test_merges_happen_in_the_order_they_were_learned():
    merges = [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc"), (b"c", b"c")]
    tokenizer = BytePairTokenizer([*BYTES, b"bc", b"ab", b"abc", b"cc"], merges)
    assert tokenizer.encode("abc") == [258]
    assert tokenizer.encode("abb") == [257, 98]
    assert tokenizer.encode("bccc") == [256, 259]
    assert tokenizer.encode("ccc") == [259, 99]
    again = BytePairTokenizer(tokenizer.tokens, [*merges, (b"b", b"c"), (b"b", b"c")])
    assert again.encode("abc") == [258]  # What is learned once more keeps its place.


def test_merge_pair_goes_from_the_left():
    assert merge_pair([1, 1, 1, 2, 1, 1], (1, 1), 9) == [9, 1, 2, 9]
    assert merge_pair([1, 2, 1], (1, 2), 9) == [9, 1]
    assert merge_pair([1], (1, 1), 9) == [1]


def test_any_text_and_any_bytes_come_back():
    draw = random.Random(0)
    for tokenizer in (TRAINED, BytePairTokenizer(BYTES, [], pieces="gpt2")):
        for _ in range(300):
            text = any_text(draw, 30)
            assert tokenizer.decode(tokenizer.encode(text)) == text
            assert tokenizer.encode_bytes(text.encode()) == tokenizer.encode(text)
            data = draw.randbytes(40) + b" the \xff\xc3 that"
            assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data
        every = bytes(range(256)) * 2
        assert tokenizer.decode_bytes(tokenizer.encode_bytes(every)) == every
        assert tokenizer.encode("") == tokenizer.encode_bytes(b"") == []
    assert TRAINED.decode([0xFF, 97]) == "\ufffda"


def test_a_special_token_is_one_number():
    end = TRAINED.special["<end>"]
    assert end == TRAINED.vocab_size - 1 == 274
    assert TRAINED.encode("the<end>the") == [*TRAINED.encode("the"), end, *TRAINED.encode("the")]
    assert TRAINED.encode("<end><end>") == [end, end]
    assert end not in TRAINED.encode_bytes(b"<end>")
    assert TRAINED.decode([end]) == TRAINED.decode(TRAINED.encode_bytes(b"<end>")) == "<end>"
    assert end not in TRAINED.encode("<end")


def test_the_longer_of_two_special_names_wins():
    tokenizer = BytePairTokenizer([*BYTES, b"<a", b"<a>"], [], special={"<a": 256, "<a>": 257})
    assert tokenizer.encode("<a><a") == [257, 256]


@pytest.mark.parametrize(
    ("tokens", "merges", "special", "name"),
    [
        (BYTES[1:], [], {}, r"each byte, .*\[0\]"),
        ([*BYTES, b"ab", b"ab"], [], {}, "each token once, .*b'ab'"),
        (BYTES, [(b"a", b"b")], {}, "merge, .*b'a', b'b'"),
        ([*BYTES, b"abc"], [(b"ab", b"c")], {}, "merge, .*b'ab', b'c'"),
        ([*BYTES, b"abc"], [(b"a", b"bc")], {}, "merge, .*b'a', b'bc'"),
        (BYTES, [], {"<end>": 256}, "special"),
        ([*BYTES, b"x!"], [], {"x!": 256, "y!": 256}, "special"),
        ([*BYTES], [], {"a": 97}, "each byte, .*97"),
    ],
)
def test_tokens_that_do_not_fit_together_are_refused(tokens, merges, special, name):
    with pytest.raises(ValueError, match=name):
        BytePairTokenizer(tokens, merges, special=special)
