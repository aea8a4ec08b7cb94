"""Search in two languages: English words by their stems, Chinese by neighbouring characters."""

import functools
import itertools
import re

from sphinx.search.en import SearchEnglish

# Chinese has no spaces; two characters in a row are nearly always a word or within one.
_HAN = "\u3400-\u9fff"
_RUNS = re.compile(rf"[{_HAN}]+|[^\W{_HAN}]+")


class EnglishAndChinese(SearchEnglish):
    """Sphinx's English search, which also knows Chinese."""

    js_splitter_code = r"""
var splitQuery = (query) =>
  (query.match(/[\u3400-\u9fff]+|(?:(?![\u3400-\u9fff])[\p{Letter}\p{Number}_])+/gu) ?? [])
    .flatMap((run) => /^[\u3400-\u9fff]{2}/.test(run)
      ? [...run].slice(1).map((next, place) => [...run][place] + next)
      : [run]);
"""

    stem = functools.cache(SearchEnglish.stem)  # most words occur often

    def split(self, input: str) -> list[str]:
        """The words of a text; of Chinese every character and every two neighbours."""
        words: list[str] = []
        for run in _RUNS.findall(input):
            if re.match(f"[{_HAN}]", run):
                words += [*run, *map("".join, itertools.pairwise(run))]
            else:
                words.append(run)
        return words
