"""How well a model predicts text, and how good the text is that it writes."""

import ast
import math
import warnings
from collections.abc import Sequence


def bits_per_character(nats: float, characters: int) -> float:
    """The code length of a text under a model, per character: L / (N ln 2), in bits.

    L = −Σ_t ln p(token_t | tokens before) is summed over all tokens of the text, in nats; N counts
    the characters (Unicode code points) of the same text. Divided by the tokens instead, the number
    would depend on the tokeniser; like this, models with different ones can be compared.

    Source: Shannon 1951, equation 4, with a model's probabilities in place of the language's.
    Derived: 13_gpt eq-bits

    Args:
        nats: L ≥ 0, the summed cross-entropy.
        characters: N ≥ 1.

    Returns:
        Bits per character.

    Raises:
        ValueError: there is no character, or L is negative or not finite.
    """
    return _per(nats, characters, "characters") / math.log(2)


def perplexity(nats: float, tokens: int) -> float:
    """The number of equally likely tokens that would surprise as much: exp(L / N).

    Source: Jelinek, Mercer, Bahl and Baker 1977, who introduced it as 2 to the entropy in bits.
    Derived: 13_gpt eq-bits

    Args:
        nats: L ≥ 0, the cross-entropy summed over the tokens.
        tokens: N ≥ 1, how many were predicted.

    Returns:
        The perplexity per token, 1 at best, the size of the vocabulary under a uniform guess.

    Raises:
        ValueError: there is no token, or L is negative or not finite.
    """
    return math.exp(_per(nats, tokens, "tokens"))


def exact_match(outputs: Sequence[object], references: Sequence[object]) -> float:
    """The share of outputs that equal their reference.

    Args:
        outputs: what a model gave: texts, numbers, lists of tokens.
        references: what was wanted, one for each.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: there is none, or not one reference for each output.
    """
    _require_pairs(outputs, references)
    hits = sum(out == wanted for out, wanted in zip(outputs, references, strict=True))
    return hits / len(outputs)


def bleu(outputs: Sequence[str], references: Sequence[str], *, tokenize: str = "13a") -> float:
    """Overlap of a whole corpus of outputs with its references in runs of one to four tokens.

    100 · min(1, exp(1 − r/c)) · (p_1 p_2 p_3 p_4)^¼, where p_n is the share of the outputs' n-grams
    that their references hold (each as often as there), summed over the corpus, and c and r are the
    lengths in tokens of all outputs and of all references. A p_n without any hit counts as
    1 / (2^k · its number of n-grams) for the k-th such n; without any n-grams at all, as in a
    corpus of one-token outputs, BLEU is 0 even if everything is right.

    Source: Papineni et al. 2002, section 2.3, as computed by sacrebleu (Post 2018).
    Derived: 12_transformer eq-bleu

    Args:
        outputs: what a model gave.
        references: what was wanted, one text for each.
        tokenize: "13a" splits off punctuation, "none" splits at spaces, "char" takes each
            character, "zh" takes each Chinese character and splits the rest like "13a".

    Returns:
        From 0 to 100.

    Raises:
        ValueError: there is none, not one reference for each output, or no such tokeniser.
        ImportError: sacrebleu is not installed.
    """
    _require_pairs(outputs, references)
    if tokenize not in ("13a", "none", "char", "zh"):
        raise ValueError(f'expected tokenize "13a", "none", "char" or "zh", got {tokenize!r}')
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ImportError(
            'BLEU is computed by sacrebleu, which is missing; install it (pip install "sacrebleu")'
        ) from error
    # `force` only silences a warning about texts that look tokenised already.
    return BLEU(tokenize=tokenize, force=True).corpus_score(outputs, [references]).score


def parses(text: str) -> bool:
    """Whether Python's grammar accepts a text; nothing is executed or printed.

    Args:
        text: any text.

    Returns:
        True if `ast.parse` takes it; a null byte, nesting that is too deep, or a number too long
        counts as no, a warning as yes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def share_that_parses(samples: Sequence[str]) -> float:
    """The share of texts that Python's grammar accepts; empty ones count as no.

    Args:
        samples: texts, for instance generated functions.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: there is no sample.
    """
    if not samples:
        raise ValueError("expected at least one sample, got none")
    return sum(bool(sample.strip()) and parses(sample) for sample in samples) / len(samples)


def _per(nats, count, unit) -> float:
    if not math.isfinite(nats) or nats < 0:
        raise ValueError(f"expected a summed cross-entropy >= 0 in nats, got {nats}")
    if count < 1:
        raise ValueError(f"expected at least one of the {unit}, got {count}")
    return nats / count


def _require_pairs(outputs, references) -> None:
    if not outputs or len(outputs) != len(references):
        raise ValueError(
            f"expected one reference for each of one or more outputs, got {len(outputs)} outputs "
            f"and {len(references)} references"
        )
