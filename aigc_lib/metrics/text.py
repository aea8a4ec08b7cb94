"""How well a model predicts text, and how good the text is that it writes.

A share is from 0 to 1. Nothing to measure, or a number or option out of range, raises ValueError.
"""

import ast
import math
import warnings
from collections.abc import Sequence

from aigc_lib import expect


def bits_per_character(nats: float, characters: int) -> float:
    """L / (N ln 2): the code length of a text under a model, in bits per character.

    L = −Σ_t ln p(token_t | tokens before) is summed over all tokens of the text, in nats; N counts
    the characters (Unicode code points) of the same text. Divided by the tokens instead, the number
    would depend on the tokeniser; like this, models with different ones can be compared.

    Source: Shannon 1951, equation 4, with a model's probabilities in place of the language's.
    Derived: 13_gpt eq-bits
    """
    expect.that(0 <= nats < math.inf, "finite nats >= 0", nats)
    expect.at_least(1, characters=characters)
    return nats / characters / math.log(2)


def perplexity(nats: float, tokens: int) -> float:
    """exp(L / N): the number of equally likely tokens that would surprise as much as N tokens did.

    L is their summed cross-entropy in nats. 1 at best; under a uniform guess the vocabulary's size.

    Source: Jelinek, Mercer, Bahl and Baker 1977, who introduced it as 2 to the entropy in bits.
    Derived: 13_gpt eq-bits
    """
    expect.that(0 <= nats < math.inf, "finite nats >= 0", nats)
    expect.at_least(1, tokens=tokens)
    return math.exp(nats / tokens)


def exact_match(outputs: Sequence[object], references: Sequence[object]) -> float:
    """The share of outputs (texts, numbers, lists of tokens) that equal their reference."""
    _check_pairs(outputs, references)
    hits = sum(out == wanted for out, wanted in zip(outputs, references, strict=True))
    return hits / len(outputs)


def bleu(outputs: Sequence[str], references: Sequence[str], *, tokenize: str = "13a") -> float:
    """100 · min(1, exp(1 − r/c)) · (p_1 p_2 p_3 p_4)^¼, over the whole corpus of outputs.

    p_n is the share of the outputs' n-grams that their references hold (each as often as there); c
    and r are the lengths in tokens of all outputs and of all references. A p_n without any hit
    counts as 1 / (2^k · its number of n-grams) for the k-th such n; without any n-grams at all, as
    in a corpus of one-token outputs, BLEU is 0 even if everything is right. tokenize: "13a" splits
    off punctuation, "none" splits at spaces, "char" takes each character, "zh" takes each Chinese
    character and splits the rest like "13a". ImportError without sacrebleu.

    Source: Papineni et al. 2002, section 2.3, as computed by sacrebleu (Post 2018).
    Derived: 12_transformer eq-bleu
    """
    _check_pairs(outputs, references)
    expect.one_of(("13a", "none", "char", "zh"), tokenize=tokenize)
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ImportError('BLEU needs sacrebleu: pip install "sacrebleu"') from error
    # `force` only silences a warning about texts that look tokenised already.
    return BLEU(tokenize=tokenize, force=True).corpus_score(outputs, [references]).score


def parses(text: str) -> bool:
    """Whether Python's grammar accepts a text, as `ast.parse` says; nothing is executed or printed.

    A null byte, nesting that is too deep, or a number too long counts as no, a warning as yes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def share_that_parses(samples: Sequence[str]) -> float:
    """The share of texts that Python's grammar accepts; empty ones count as no."""
    expect.that(len(samples) > 0, "samples", "none")
    return sum(bool(sample.strip()) and parses(sample) for sample in samples) / len(samples)


def _check_pairs(outputs: Sequence, references: Sequence) -> None:
    found = f"{len(outputs)} outputs and {len(references)} references"
    fits = len(outputs) == len(references) > 0
    expect.that(fits, "outputs, and one of the references for each", found)
