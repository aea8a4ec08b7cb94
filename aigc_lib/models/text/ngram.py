"""A character n-gram: the language model to beat, counted instead of trained.

Below the highest order N_k(g) counts not how often g occurs but after how many different
characters. The discounts d(1), d(2), d(≥ 3) of each order are estimated from how many n-grams occur
once, twice, three and four times; where that gives none above zero, d is ½. Before the first
character stands a boundary that is only ever a context.
"""

import numpy as np
from jaxtyping import Float, Int

from aigc_lib import expect


class NGram:
    """Interpolated modified Kneser–Ney: n-gram counts, discounted and backed by shorter n-grams.

    p_k(c | h) = max(N_k(hc) − d(N_k(hc)), 0) / N_k(h·) + λ_k(h) · p_{k−1}(c | h′),

    N_k(h·) = Σ_c N_k(hc),   λ_k(h) = Σ_c d(N_k(hc)) / N_k(h·), what the discounts have freed, or 1
    for a context that never occurred. h′ is h without its oldest character; p_0 is uniform over the
    `alphabet`, so that no character is impossible: a sorted string, empty before `fit`. `order` is
    n, the length of the longest n-gram.

    Source: Chen and Goodman 1999, section 3, modified Kneser–Ney smoothing.
    Derived: —
    """

    def __init__(self, order: int = 6):
        expect.that(type(order) is int and order >= 1, "a whole order >= 1", repr(order))
        self.order, self.alphabet = order, ""
        self._levels: list[_Level] = []

    def fit(self, text: str, *, alphabet: str | None = None) -> "NGram":
        """Count the n-grams of a text; the model itself, an earlier fit forgotten.

        The alphabet has every character that may be asked for later; None means those of the text.
        V + 1 to the power n must stay below 2⁶³.
        """
        expect.that(len(text) > 0, "a text of at least one character", "an empty one")
        letters = "".join(sorted(set(text if alphabet is None else alphabet)))
        base = len(letters) + 1
        fits = base**self.order < 2**63
        expect.that(fits, "(len(alphabet) + 1) ** order < 2 ** 63", f"{base} ** {self.order}")
        grams = _grams(_codes(text, letters), self.order, base)
        keys, counts = np.unique(grams, return_counts=True)
        levels = [_Level(keys, counts, base)]
        for k in range(self.order - 1, 0, -1):
            # Each longer n-gram counts once for its ending: "after how many characters".
            keys, counts = np.unique(keys % base**k, return_counts=True)
            levels.insert(0, _Level(keys, counts, base))
        self.alphabet, self._levels = letters, levels
        return self

    def probabilities(self, context: str) -> Float[np.ndarray, " V"]:
        """p(c | context) of each next character c, in the alphabet's order.

        The context stands before it from the start of the text; its last n − 1 characters count.
        """
        self._require_fit()
        base = len(self.alphabet) + 1
        codes = [0] * (self.order - 1) + _codes(context, self.alphabet).tolist()
        history = 0
        for code in codes[len(codes) - self.order + 1 :]:
            history = history * base + code
        letters = np.arange(1, base)
        grams = [history % base ** (k - 1) * base + letters for k in range(1, self.order + 1)]
        return self._interpolate(grams)

    def bits_per_character(self, text: str) -> float:
        """−(1/T) Σ_t log₂ p(c_t | c_{<t}): a text's code length in bits, from a fresh start."""
        self._require_fit()
        expect.that(len(text) > 0, "a text of at least one character", "an empty one")
        base = len(self.alphabet) + 1
        codes = _codes(text, self.alphabet)
        p = self._interpolate([_grams(codes, k, base) for k in range(1, self.order + 1)])
        return float(-np.log2(p).mean())

    def _interpolate(self, grams: list[Int[np.ndarray, " N"]]) -> Float[np.ndarray, " N"]:
        p = np.full(len(grams[0]), 1 / len(self.alphabet))
        for level, keys in zip(self._levels, grams, strict=True):
            p = level.kept(keys) + level.freed(keys) * p
        return p

    def _require_fit(self) -> None:
        expect.that(bool(self._levels), "a model after fit", "one that has counted nothing")


class _Level:
    """The n-grams of one length, as sorted numbers with their counts, and their contexts."""

    def __init__(self, keys: np.ndarray, counts: np.ndarray, base: int):
        self.base, self.keys = base, keys
        discounts = _discounts(counts)[np.minimum(counts, 3)]
        self.contexts, owner = np.unique(keys // base, return_inverse=True)
        totals = np.bincount(owner, counts)
        self.share = (counts - discounts) / totals[owner]
        self.rest = np.bincount(owner, discounts) / totals

    def kept(self, keys: np.ndarray) -> np.ndarray:
        return _look_up(keys, self.keys, self.share, missing=0.0)

    def freed(self, keys: np.ndarray) -> np.ndarray:
        return _look_up(keys // self.base, self.contexts, self.rest, missing=1.0)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What to take from a count of 0, 1, 2, and 3 or more."""
    n = [float((counts == i).sum()) for i in range(5)]
    found = np.array([0.0, 0.5, 0.5, 0.5])
    if n[1] and n[2] and n[3]:
        for i in (1, 2, 3):
            d = i - (i + 1) * n[1] / (n[1] + 2 * n[2]) * n[i + 1] / n[i]
            # Few n-grams can put the estimate at zero or below, which would free nothing.
            found[i] = d if d > 0 else 0.5
    return found


def _look_up(wanted, keys, values, *, missing: float) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], missing)


def _codes(text: str, alphabet: str) -> np.ndarray:
    """Each character's place in the alphabet, from 1; 0 is the boundary."""
    number = {letter: i for i, letter in enumerate(alphabet, 1)}
    unknown = sorted(set(text) - number.keys())
    expect.that(not unknown, f"characters of the alphabet ({len(alphabet)} of them)", unknown[:1])
    return np.fromiter((number[letter] for letter in text), np.int64, len(text))


def _grams(codes: np.ndarray, length: int, base: int) -> np.ndarray:
    """The n-gram that ends at each place, as a number whose last digit is the last character."""
    padded = np.concatenate([np.zeros(length - 1, np.int64), codes])
    grams = np.zeros(len(codes), np.int64)
    for i in range(length):
        grams = grams * base + padded[i : i + len(codes)]
    return grams
