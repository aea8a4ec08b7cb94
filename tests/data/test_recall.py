import itertools
import math
from collections import Counter

import pytest
import torch

from aigc_lib.data import recall

N, SYMBOLS = 3, 5
BLANK = 2 * SYMBOLS
MAKERS = {
    "joined": recall.joined,
    "two_keys": recall.two_keys,
    "interleaved": recall.interleaved,
}
each = pytest.mark.parametrize("name", MAKERS)


def make(name, batch_size=200, seed=0, **sizes):
    sizes = {"pairs": N, "symbols": SYMBOLS, **sizes}
    return MAKERS[name](batch_size, torch.Generator().manual_seed(seed), **sizes)


def facts(sequence):
    """What a reader of the rules finds in a sequence: position of the value and the value, by key.

    Works for both layouts: the value shares the key's position or stands at the next one.
    """
    found = {}
    positions = sequence[:-N].tolist()
    for t, here in enumerate(positions):
        if here[0] < SYMBOLS:
            place = t if len(here) == 2 else t + 1
            value = positions[place][-1] - SYMBOLS
            assert 0 <= value < SYMBOLS
            assert here[0] not in found
            found[here[0]] = (place, value)
    return found


@each
def test_every_answer_is_the_value_stated_for_the_key_asked(name):
    batch = make(name)
    for sequence, answers, sources in zip(batch.tokens, batch.answers, batch.sources, strict=True):
        known = facts(sequence)
        assert len(known) == N
        for question, answer, source in zip(sequence[-N:], answers, sources, strict=True):
            keys = [question[0].item()]
            if name == "two_keys":
                keys.append(question[1].item() - BLANK - 1)
            if name == "joined":
                assert question[1] == BLANK
            assert [known[key] for key in keys] == list(
                zip(source.tolist(), answer.tolist(), strict=True)
            )


@each
def test_every_key_is_asked_once_in_each_role_and_all_values_differ(name):
    batch = make(name)
    for sequence, answers in zip(batch.tokens, batch.answers, strict=True):
        known = facts(sequence)
        assert len({value for _, value in known.values()}) == N
        assert set(sequence[-N:, 0].tolist()) == set(known)
        for role in answers.T.tolist():
            assert sorted(role) == sorted(value for _, value in known.values())
    if name == "two_keys":
        assert (batch.answers[..., 0] != batch.answers[..., 1]).all()


@each
def test_shapes(name):
    batch = make(name, 7)
    length = {"joined": 2 * N, "two_keys": 2 * N, "interleaved": 3 * N + 8}[name]
    per_question = 2 if name == "two_keys" else 1
    assert batch.tokens.shape == (7, length, 1 if name == "interleaved" else 2)
    assert batch.answers.shape == batch.sources.shape == (7, N, per_question)
    assert batch.tokens.max() < len(recall.vocabulary(SYMBOLS))


@each
def test_the_bag_of_tokens_and_the_question_leave_every_present_value_equally_likely(name):
    # With all keys and values present in every sequence the bag is constant: what remains to be
    # known is the binding, and each of the N! bindings must be as likely as the others.
    batch = make(name, 30_000, symbols=N)
    keys = batch.tokens[:, -N:, 0]
    binding = batch.answers[..., 0].gather(1, keys.argsort(1))
    counts = Counter(map(tuple, binding.tolist()))
    expected = 30_000 / math.factorial(N)
    assert set(counts) == set(itertools.permutations(range(N)))
    for count in counts.values():
        assert abs(count - expected) < 4 * math.sqrt(expected)
    first = batch.answers[:, 0, 0][keys[:, 0] == 0]
    shares = first.bincount() / len(first)
    assert shares.tolist() == pytest.approx([1 / N] * N, abs=4 * math.sqrt(2 / 9 / len(first)))


@each
def test_the_order_of_facts_says_nothing_about_the_order_of_questions(name):
    batch = make(name, 30_000)
    rank = batch.sources[..., 0].argsort(1).argsort(1)
    counts = Counter(map(tuple, rank.tolist()))
    assert len(counts) == math.factorial(N)
    for count in counts.values():
        assert abs(count - 5000) < 4 * math.sqrt(5000)


def test_all_layouts_of_facts_and_blanks_are_equally_likely():
    batch = make("interleaved", 20_000, gaps=2)
    layouts = Counter(map(tuple, (batch.tokens[:, :-N, 0] == BLANK).int().tolist()))
    assert len(layouts) == math.comb(N + 2, N)
    for count in layouts.values():
        assert abs(count - 2000) < 4 * math.sqrt(2000)


def test_without_gaps_facts_fill_fixed_slots():
    batch = make("interleaved", gaps=0)
    assert batch.tokens.shape[1] == 3 * N
    assert (batch.tokens[:, : 2 * N : 2] < SYMBOLS).all()


@each
def test_the_generator_is_the_only_randomness(name):
    first = make(name, seed=1)
    torch.manual_seed(99)
    again, other = make(name, seed=1), make(name, seed=2)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.answers, again.answers)
    assert not torch.equal(first.tokens, other.tokens)


def test_the_vocabulary_names_keys_values_blank_and_second_keys():
    names = recall.vocabulary(3)
    assert names == ["a", "b", "c", "0", "1", "2", "·", "a", "b", "c"]


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *((name, {"batch_size": 0}) for name in MAKERS),
        *((name, {"pairs": pairs}) for name in MAKERS for pairs in (0, SYMBOLS + 1)),
        ("two_keys", {"pairs": 1}),
        ("interleaved", {"gaps": -1}),
    ],
)
def test_bad_sizes_are_refused(name, bad):
    with pytest.raises(ValueError, match=f"expected {next(iter(bad))}"):
        make(name, **bad)


@pytest.mark.parametrize("symbols", [0, 27])
def test_a_vocabulary_needs_letters(symbols):
    with pytest.raises(ValueError, match="expected symbols"):
        recall.vocabulary(symbols)
