import math
import sys
import warnings
from collections import Counter
from functools import partial

import pytest
import sacrebleu
import torch

from aigc_lib.metrics import text


def test_bits_of_a_fair_choice():
    # Four tokens, each one of eight equally likely: 12 bits, spread over six characters.
    assert text.bits_per_character(4 * math.log(8), 6) == pytest.approx(2, abs=1e-15)
    assert text.bits_per_character(0, 3) == 0


def test_perplexity_of_a_uniform_guess_is_the_size_of_the_vocabulary():
    assert text.perplexity(7 * math.log(57), 7) == pytest.approx(57, rel=1e-14)
    assert text.perplexity(0, 5) == 1


def test_both_from_a_cross_entropy():
    logits, targets = torch.randn(9, 5, dtype=torch.float64), torch.arange(9) % 5
    nats = torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    p = logits.softmax(1)[torch.arange(9), targets]
    assert text.perplexity(nats, 9) == pytest.approx(p.prod().item() ** (-1 / 9), rel=1e-12)
    assert text.bits_per_character(nats, 20) == pytest.approx(-p.log2().sum().item() / 20)


def test_exact_match_counts_pairs():
    assert text.exact_match(["a", "b", "c", "d"], ["a", "b", "d", "c"]) == 0.5
    assert text.exact_match([[1, 2], [3]], [[1, 2], [3, 4]]) == 0.5
    assert text.exact_match((1,), (1,)) == 1
    assert text.exact_match(["a", "a", "a"], ["a", "a", "b"]) == pytest.approx(2 / 3)


OUTPUTS = ["the cat sat on the mat today", "a dog ran", "one two three four five six"]
REFERENCES = ["the cat sat on a mat today", "the dog ran away fast", "one two three four six five"]


def spelled_out(outputs, references):
    log, c, r = 0.0, 0, 0
    for n in range(1, 5):
        hits = total = 0
        for output, reference in zip(outputs, references, strict=True):
            a, b = output.split(), reference.split()
            grams = [Counter(zip(*(w[i:] for i in range(n)), strict=False)) for w in (a, b)]
            hits, total = hits + (grams[0] & grams[1]).total(), total + grams[0].total()
            if n == 1:
                c, r = c + len(a), r + len(b)
        log += math.log(hits / total) / 4
    return 100 * min(1, math.exp(1 - r / c)) * math.exp(log)


def test_bleu_is_the_formula_of_its_docstring():
    expected = spelled_out(OUTPUTS, REFERENCES)
    assert 10 < expected < 90
    assert text.bleu(OUTPUTS, REFERENCES) == pytest.approx(expected, rel=1e-9)


def test_bleu_pools_the_counts_of_the_corpus():
    single = [text.bleu([o], [r]) for o, r in zip(OUTPUTS, REFERENCES, strict=True)]
    assert abs(text.bleu(OUTPUTS, REFERENCES) - sum(single) / 3) > 1
    assert text.bleu(OUTPUTS[::-1], REFERENCES[::-1]) == pytest.approx(
        text.bleu(OUTPUTS, REFERENCES), rel=1e-12
    )


def test_bleu_is_sacrebleus_in_each_tokenisation():
    outputs, references = (
        ["我有 three 只猫, 三只.", "一二三四五"],
        ["我有 two 只猫, 三只.", "一二三四六"],
    )
    for tokenize in ("13a", "none", "char", "zh"):
        expected = sacrebleu.corpus_bleu(outputs, [references], tokenize=tokenize, force=True).score
        assert text.bleu(outputs, references, tokenize=tokenize) == pytest.approx(expected)
    assert text.bleu(outputs, references, tokenize="zh") > text.bleu(outputs, references)


def test_perfect_outputs_score_100_unless_they_are_too_short_for_4_grams():
    assert text.bleu(REFERENCES, REFERENCES) == pytest.approx(100)
    assert text.bleu(["七", "八"], ["七", "八"], tokenize="char") == 0


def test_a_ngram_length_without_hits_is_smoothed_as_stated():
    # p_1 = 3/4; no bigram, trigram or 4-gram of 3, 2, 1 is hit.
    score = text.bleu(["a b c d"], ["c b a e"])
    assert score == pytest.approx(100 * (3 / 4 / (2 * 3) / (4 * 2) / (8 * 1)) ** 0.25, rel=1e-9)


def test_without_sacrebleu_one_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ImportError, match="needs sacrebleu: pip install"):
        text.bleu(["a"], ["a"])


@pytest.mark.parametrize(
    ("program", "accepted"),
    [
        ("def f(x):\n    return x", True),
        ("def f(x):\nreturn x", False),
        ("def f(x:", False),
        ("x = 'unfinished", False),
        ("", True),
        ("x = 1\0", False),
        ("x = '\ud800'", False),
        ("(" * 5000 + ")" * 5000, False),
        ("-" * 200_000 + "1", False),
        ("a" + ".b" * 200_000, False),
        ("x = " + "9" * 5000, False),
        ("x = '\\d'", True),
        ("1 is 1", True),
        ("x = 0777", False),
        ("\tif 1:\n        pass", False),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_parses(program, accepted, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert text.parses(program) is accepted
    assert capfd.readouterr() == ("", "")


def test_the_share_that_parses_counts_empty_samples_as_no():
    assert text.share_that_parses(["x = 1", "x =", "", "\n "]) == 0.25


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("characters", lambda: text.bits_per_character(1.0, 0)),
        ("tokens", lambda: text.perplexity(1.0, 0)),
        *(
            ("nats", partial(metric, nats, 3))
            for metric in (text.bits_per_character, text.perplexity)
            for nats in (-1.0, math.nan, math.inf)
        ),
        *(
            ("references", partial(metric, outputs, references))
            for metric in (text.exact_match, text.bleu)
            for outputs, references in (([], []), (["a"], []), (["a"], ["a", "b"]))
        ),
        ("tokenize", lambda: text.bleu(["a"], ["a"], tokenize="flores200")),
        ("samples", lambda: text.share_that_parses([])),
    ],
)
def test_bad_input_is_named(name, call):
    with pytest.raises(ValueError, match=rf"^expected .*\b{name}\b.*, got"):
        call()
