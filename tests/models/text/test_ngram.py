"""The n-gram against a count by hand, a slow twin with dictionaries, and its own claims."""

import math
import random
import string
from collections import Counter, defaultdict

import numpy as np
import pytest

from aigc_lib.models.text.ngram import NGram

TEXT = "".join(random.Random(0).choices("abcd ", weights=[8, 4, 2, 1, 3], k=600))


def slow(text, order, alphabet):
    """p(c | context) by recursion over dictionaries, from the definition alone."""
    start = "\0"
    padded = start * (order - 1) + text
    ends = range(order - 1, len(padded))
    counts = {order: Counter(padded[i - order + 1 : i + 1] for i in ends)}
    for k in range(order - 1, 0, -1):
        before = defaultdict(set)
        for longer in counts[k + 1]:
            before[longer[1:]].add(longer[0])
        counts[k] = Counter({gram: len(found) for gram, found in before.items()})

    def discounts(k):
        n = Counter(counts[k].values())
        if not (n[1] and n[2] and n[3]):
            return [0, 0.5, 0.5, 0.5]
        y = n[1] / (n[1] + 2 * n[2])
        found = [i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3)]
        return [0, *(d if d > 0 else 0.5 for d in found)]

    tables = {k: discounts(k) for k in counts}

    def p(letter, context, k):
        if k == 0:
            return 1 / len(alphabet)
        history = context[len(context) - k + 1 :]
        here = {c: counts[k][history + c] for c in alphabet if counts[k][history + c]}
        if not here:
            return p(letter, context, k - 1)
        total, d = sum(here.values()), tables[k]
        freed = sum(d[min(n, 3)] for n in here.values()) / total
        n = here.get(letter, 0)
        return max(n - d[min(n, 3)], 0) / total + freed * p(letter, context, k - 1)

    return lambda letter, context: p(letter, start * (order - 1) + context, order)


def test_a_unigram_by_hand():
    # a, b, c occur 3, 1, 1 times; too few to estimate from, so each count gives up a half.
    model = NGram(1).fit("aabac", alphabet="abcd")
    freed = 1.5 / 5
    expected = [2.5 / 5 + freed / 4, 0.5 / 5 + freed / 4, 0.5 / 5 + freed / 4, freed / 4]
    assert model.probabilities("").tolist() == pytest.approx(expected, abs=1e-15)
    bits = -(math.log2(expected[0]) + math.log2(expected[3])) / 2
    assert model.bits_per_character("ad") == pytest.approx(bits, abs=1e-14)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6])
def test_every_probability_is_the_recursions(order):
    alphabet = "abcde "
    model, twin = NGram(order).fit(TEXT, alphabet=alphabet), slow(TEXT, order, " abcde")
    contexts = ["", "a", "dd", "ab", "abab", TEXT[:9], TEXT[-9:], "eeee", "ae", "e a"]
    for context in contexts:
        expected = [twin(letter, context) for letter in model.alphabet]
        assert model.probabilities(context).tolist() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("text", ["a", "ab", "abab", "aabacada", "abcabdab"])
@pytest.mark.parametrize("order", [1, 2])
def test_a_short_text_follows_the_recursion_too(text, order):
    # Here some counts of counts are zero, so that discounts cannot all be estimated.
    model, twin = NGram(order).fit(text, alphabet="abcd"), slow(text, order, "abcd")
    for context in ("", "a", "b", "dd"):
        expected = [twin(letter, context) for letter in "abcd"]
        assert model.probabilities(context).tolist() == pytest.approx(expected, abs=1e-13)


def test_no_count_of_four_still_lets_discounts_be_estimated():
    # a occurs three times, b twice, c once: n_1 = n_2 = n_3 = 1 and n_4 = 0, so that Y = 1/3 and
    # d = 1 − 2Y, 2 − 3Y, 3 − 4Y·0 = 1/3, 1, 3: every c of a count is counted by hand.
    p = NGram(1).fit("aaabbc").probabilities("")
    freed = (1 / 3 + 1 + 3) / 6
    expected = [freed / 3, (2 - 1) / 6 + freed / 3, (1 - 1 / 3) / 6 + freed / 3]
    assert p.tolist() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("order", [1, 2, 3, 5, 8])
def test_each_distribution_sums_to_one_and_leaves_nothing_impossible(order):
    model = NGram(order).fit(TEXT, alphabet="abcdxyz ")
    for context in ("", "a", "x", "ab", TEXT[:50], "abcd" * 3, "zzzzzzzz"):
        p = model.probabilities(context)
        assert p.shape == (8,)
        assert p.min() > 0
        assert math.fsum(p) == pytest.approx(1, abs=1e-12)


def test_bits_are_the_mean_of_the_log_probabilities():
    model, text = NGram(4).fit(TEXT), "abba cab dab"
    logs = [
        -math.log2(model.probabilities(text[:t])[model.alphabet.index(letter)])
        for t, letter in enumerate(text)
    ]
    assert model.bits_per_character(text) == pytest.approx(sum(logs) / len(logs), abs=1e-12)


def test_only_the_last_characters_count():
    model = NGram(3).fit(TEXT)
    assert (model.probabilities("dddab") == model.probabilities("aaaab")).all()
    assert (model.probabilities("dddab") != model.probabilities("dddbb")).any()


def test_renaming_the_characters_changes_nothing():
    table = str.maketrans("abcd ", "zyxwv")
    bits = NGram(4).fit(TEXT).bits_per_character(TEXT[100:200])
    renamed = NGram(4).fit(TEXT.translate(table))
    assert renamed.bits_per_character(TEXT[100:200].translate(table)) == pytest.approx(bits)


def test_a_second_fit_forgets_the_first():
    model = NGram(3).fit("xyz" * 50)
    again = model.fit(TEXT)
    assert again is model
    assert model.alphabet == " abcd"
    fresh = NGram(3).fit(TEXT)
    assert model.bits_per_character(TEXT) == fresh.bits_per_character(TEXT)


def test_it_reaches_the_entropy_of_a_markov_chain_that_it_can_hold():
    # After 0 comes 1 with probability 0.9, after 1 comes 0 with 0.6; stationary shares 0.4, 0.6.
    draw, state, letters = random.Random(1), 0, []
    for _ in range(60_000):
        state = int(draw.random() < (0.9 if state == 0 else 0.4))
        letters.append("01"[state])
    text = "".join(letters)
    entropy = 0.4 * _entropy(0.9) + 0.6 * _entropy(0.6)
    bits = {n: NGram(n).fit(text[:40_000]).bits_per_character(text[40_000:]) for n in (1, 2, 3)}
    assert bits[1] == pytest.approx(_entropy(0.4), abs=0.01)
    assert bits[2] == pytest.approx(entropy, abs=0.01)
    assert bits[3] == pytest.approx(entropy, abs=0.01)


def _entropy(p):
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def test_one_character_is_certain():
    assert NGram(3).fit("aaaa").probabilities("a").tolist() == pytest.approx([1.0])


def test_the_numbers_of_long_ngrams_do_not_overflow():
    alphabet = "".join(map(chr, range(32, 127)))
    text = "".join(random.Random(2).choices(alphabet, k=400)) * 2
    model = NGram(9).fit(text, alphabet=alphabet)
    assert model.bits_per_character(text[400:]) < 1
    assert np.argmax(model.probabilities(text[:500])) == model.alphabet.index(text[500])


FITTED = NGram(2).fit("ab")


@pytest.mark.parametrize(
    ("call", "name"),
    [
        *[(lambda order=order: NGram(order), "order") for order in (0, -1, 2.0, True)],
        (lambda: NGram(2).fit(""), "text"),
        (lambda: NGram(2).fit("abc", alphabet="ab"), r"alphabet \(2 of them\), got \['c'\]"),
        (lambda: NGram(10).fit(string.printable[:95]), "order"),
        (lambda: NGram(2).bits_per_character("a"), "fit"),
        (lambda: NGram(2).probabilities("a"), "fit"),
        (lambda: FITTED.bits_per_character("abc"), "alphabet"),
        (lambda: FITTED.probabilities("c"), "alphabet"),
        (lambda: FITTED.bits_per_character(""), "text"),
    ],
)
def test_bad_input_is_named(hook_off, call, name):
    with pytest.raises(ValueError, match=name):
        call()


def test_an_empty_alphabet_is_not_none(hook_off):
    with pytest.raises(ValueError, match=r"alphabet \(0 of them\), got \['a'\]"):
        NGram(1).fit("a", alphabet="")


def test_numbers_of_ngrams_stay_below_two_to_the_sixty_third():
    letters = "".join(map(chr, range(256, 256 + 127)))
    with pytest.raises(ValueError, match=r"\*\* order < 2 \*\* 63, got 128 \*\* 9"):
        NGram(9).fit("Ā", alphabet=letters)
    assert NGram(9).fit("Ā", alphabet=letters[:-1]).probabilities("").sum() == pytest.approx(1)
