"""Associative recall: facts "key: value" are stated, then every key is asked for its value.

The binding is drawn anew for each sequence, so nothing can be learned by heart; it has to be looked
up in the sequence. Keys and values of one sequence are all different.

With n symbols the vocabulary has 3n + 1 tokens: n keys, n values, a blank, and n second keys, which
ask for a second value in the same question. A sequence states N = pairs facts, 1 ≤ N ≤ n, and asks
N questions after them. The generator is the only randomness; the tensors are made on its device.

Asking for many keys in one sequence follows Arora et al. 2023 ("Zoology"); the pattern a 3 … a that
is continued with 3 is the one on which Olsson et al. 2022 found induction heads.
"""

import string
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from aigc_lib import expect


@dataclass(frozen=True, kw_only=True)
class RecallBatch:
    """Sequences of facts and questions; the questions are the last N positions."""

    tokens: Int[Tensor, "B T F"]  # F tokens share each position
    answers: Int[Tensor, "B N A"]  # the A values asked for by each question, from 0 to n − 1
    sources: Int[Tensor, "B N A"]  # the positions at which these values stand


def joined(
    batch_size: int, generator: torch.Generator, *, pairs: int = 8, symbols: int = 16
) -> RecallBatch:
    """Key and value share a position: (a 3)(b 7)(c 1) (b ·)(c ·)(a ·), answers 7 1 3.

    T = 2N positions of F = 2 tokens, A = 1 answer per question.
    """
    keys, values, asked = _facts(batch_size, generator, pairs, symbols)
    facts = torch.stack([keys, symbols + values], 2)
    blank = torch.full_like(asked, 2 * symbols)
    questions = torch.stack([keys.gather(1, asked), blank], 2)
    return RecallBatch(
        tokens=torch.cat([facts, questions], 1),
        answers=values.gather(1, asked)[:, :, None],
        sources=asked[:, :, None],
    )


def two_keys(
    batch_size: int, generator: torch.Generator, *, pairs: int = 8, symbols: int = 16
) -> RecallBatch:
    """Each question names two keys and wants both values in order: (a 3)(b 7) (b a), answer 7, 3.

    Every key is asked once as the first and once as the second of a question. With n = N a single
    head has a way out: it attends to all but the second key, whose value is then the one missing.
    T = 2N positions of F = 2 tokens, A = 2 answers per question; N ≥ 2.
    """
    expect.at_least(2, pairs=pairs)
    keys, values, first = _facts(batch_size, generator, pairs, symbols)
    second = first.roll(1, 1)
    facts = torch.stack([keys, symbols + values], 2)
    questions = [keys.gather(1, first), 2 * symbols + 1 + keys.gather(1, second)]
    return RecallBatch(
        tokens=torch.cat([facts, torch.stack(questions, 2)], 1),
        answers=torch.stack([values.gather(1, first), values.gather(1, second)], 2),
        sources=torch.stack([first, second], 2),
    )


def interleaved(
    batch_size: int,
    generator: torch.Generator,
    *,
    pairs: int = 8,
    symbols: int = 16,
    gaps: int = 8,
) -> RecallBatch:
    """The value stands one position after its key: · a 3 b 7 · · c 1 · b c a, answers 7 1 3.

    The gaps, blanks spread at random between the facts, keep a model from learning at which
    positions values stand. T = 3N + gaps positions of F = 1 token, A = 1 answer per question.
    """
    expect.at_least(0, gaps=gaps)
    keys, values, asked = _facts(batch_size, generator, pairs, symbols)
    # Facts and blanks in random order, a fact counted once; each earlier fact then adds a position.
    order = _permutations(batch_size, pairs + gaps, generator)[:, :pairs].sort(1).values
    starts = order + torch.arange(pairs, device=order.device)
    facts = order.new_full((batch_size, 2 * pairs + gaps), 2 * symbols)
    facts.scatter_(1, starts, keys).scatter_(1, starts + 1, symbols + values)
    return RecallBatch(
        tokens=torch.cat([facts, keys.gather(1, asked)], 1)[:, :, None],
        answers=values.gather(1, asked)[:, :, None],
        sources=(starts + 1).gather(1, asked)[:, :, None],
    )


def vocabulary(symbols: int = 16) -> list[str]:
    """A name for each token: keys a b c …, values 0 1 2 …, the blank ·, second keys a b c …."""
    expect.between(1, 26, symbols=symbols)  # there are no more letters
    keys = list(string.ascii_lowercase[:symbols])
    return [*keys, *map(str, range(symbols)), "·", *keys]


def _facts(
    batch_size: int, generator: torch.Generator, pairs: int, symbols: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, their values, and the order in which they are asked."""
    expect.at_least(1, batch_size=batch_size)
    expect.between(1, symbols, pairs=pairs)
    keys = _permutations(batch_size, symbols, generator)[:, :pairs]
    values = _permutations(batch_size, symbols, generator)[:, :pairs]
    return keys, values, _permutations(batch_size, pairs, generator)


def _permutations(batch_size: int, size: int, generator: torch.Generator) -> Tensor:
    noise = torch.rand(batch_size, size, generator=generator, device=generator.device)
    return noise.argsort(1)
