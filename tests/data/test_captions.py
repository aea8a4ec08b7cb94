import re

import pytest
import torch

from aigc_lib.data.captions import VOCABULARY, captions, tokenise
from aigc_lib.data.scenes import scenes

# A little parser, written from how people speak, not from the grammar: the words of each
# attribute, in the order of the facts, and how a place is called.
WORDS = {
    "en": (
        ("circle", "square", "triangle", "cross"),
        ("red", "yellow", "green", "blue", "purple", "black"),
        ("small", "large"),
        ("left", "right", "top|above|over", "bottom|below|under", "centre|middle"),
    ),
    "zh": (
        ("圆", "方", "三角", "十字"),
        ("红", "黄", "绿", "蓝", "紫", "黑"),
        ("小", "大"),
        ("左", "右", "上", "下", "中间|中央"),
    ),
}


def place_of(text, words):
    hits = [i for i, word in enumerate(words) if re.search(word, text)]
    assert len(hits) <= 1
    return hits[0] if hits else -1


def parse(caption):
    """Facts of a caption: objects by their article, the place by what stands around them."""
    if not caption:
        return [[-1] * 4, [-1] * 4]
    language = "en" if caption.isascii() else "zh"
    words = WORDS[language]
    noun = r"\ba (?!picture)(?:\w+ )*?(?:circle|square|triangle|cross|shape)\b"
    noun = noun if language == "en" else "一个.*?(?:圆形|方块|三角形|十字|图形)"
    things = [[place_of(n, w) for w in words[:3]] for n in re.findall(noun, caption)]
    place = place_of(re.sub(noun, "#", caption), words[3])
    if len(things) == 1:
        return [[*things[0], place], [-1] * 4]
    if place < 0:
        return [[*thing, -1] for thing in things]
    # Whose place is it? English: "a R b", "R b is a", "b with a R it". Chinese: 在 = the first
    # one's, 是 and 有 after the place = the second one's.
    told = re.sub(noun, "#", caption)
    second = bool(re.search(r"^(?!there|#|a ).* is #$|# with #", told))
    if language == "zh":
        second = not re.search("#在#", told)
    a, b = (things[1], things[0]) if second else things
    objects = sorted([[place, *a], [place ^ 1, *b]])
    return [[*thing, where] for where, *thing in objects]


@pytest.fixture(scope="module")
def facts():
    return scenes(3000, torch.Generator().manual_seed(0)).facts


def said(facts, language, seed=0):
    return captions(facts, torch.Generator().manual_seed(seed), language)


@pytest.mark.parametrize("language", ["en", "zh", "both"])
def test_a_caption_says_its_facts_and_nothing_else(facts, language):
    for text, row in zip(said(facts, language), facts.tolist(), strict=True):
        assert parse(text) == row, text


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("unsaid", [0, 1, 2, 3])
def test_what_is_not_said_stays_open(facts, language, unsaid):
    """Without places the order of two objects is free."""
    some = facts.clone()
    some[:, :, unsaid] = -1
    for text, row in zip(said(some, language), some.tolist(), strict=True):
        assert parse(text) in ((row, row[::-1]) if unsaid == 3 else (row,)), text


def test_both_languages_say_the_same(facts):
    english, chinese = said(facts, "en"), said(facts, "zh", seed=1)
    assert [parse(text) for text in english] == [parse(text) for text in chinese]
    share = sum(text.isascii() for text in said(facts, "both")) / len(facts)
    assert abs(share - 0.5) < 0.04


@pytest.mark.parametrize("language", ["en", "zh"])
def test_one_scene_is_told_in_many_ways(facts, language):
    two = facts[facts[:, 1, 3] >= 0][:1].expand(800, 2, 4)
    one = facts[facts[:, 1, 3] < 0][:1].expand(800, 2, 4)
    assert len(set(said(two, language))) == 16  # 4 forms, 2 phrases, from either side
    assert len(set(said(one, language))) in (4, 8)
    assert len(set(said(two, language))) == len(set(said(two.flip(0), language)))


def test_some_captions_word_for_word():
    one = torch.tensor([[[0, 0, 1, 0], [1, 3, 0, 1]]]).expand(400, 2, 4)
    assert "a large red circle to the left of a small blue square" in said(one, "en")
    assert "a small blue square with a large red circle left of it" in said(one, "en")
    assert "一个大的红色圆形在一个小的蓝色方块左边" in said(one, "zh")
    assert said(torch.full((1, 2, 4), -1), "en") == [""]


def test_tokens_are_the_words_in_order_and_every_word_is_used(facts):
    texts = said(facts, "both") + said(facts, "both", seed=1)
    some = facts.clone()
    some[:, :, 3], some[::2, :, 0] = -1, -1
    texts += said(some, "both")
    tokens = tokenise(texts)
    assert tokens.shape == (9000, 16)
    for text, row in zip(texts, tokens.tolist(), strict=True):
        words = [VOCABULARY[token] for token in row if token]
        assert (" " if text.isascii() else "").join(words) == text
        assert row == sorted(row, key=lambda token: token == 0)  # padding at the end alone
    assert set(tokens.unique().tolist()) == set(range(len(VOCABULARY)))
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_no_caption_is_padding_and_spaces_and_capitals_do_not_matter():
    assert tokenise([""]).eq(0).all()
    assert tokenise([], 5).shape == (0, 5)
    one, other = tokenise(["a red circle", "  A  Red CIRCLE "])
    assert torch.equal(one, other)
    assert tokenise(["一个红色圆形"], 3).ne(0).all()


FACING = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 2]]])
BAD = {
    "an English word": (lambda: tokenise(["a pink circle"]), "'pink'"),
    "a Chinese word": (lambda: tokenise(["一个红色圆形", "一个粉色圆形"]), "'粉'"),
    "punctuation": (lambda: tokenise(["a red circle."]), "'circle.'"),
    "too long": (lambda: tokenise(["a red circle"], 2), "2 tokens, got 3"),
    "no language": (lambda: said(FACING, "de"), "language"),
    "left and top": (lambda: said(FACING, "en"), "face each other"),
    "one place of two": (lambda: said(FACING - torch.tensor([0, 0, 0, 1]), "en"), "face"),
    "unknown facts": (lambda: said(FACING + 6, "en"), "facts"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name, hook_off):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
