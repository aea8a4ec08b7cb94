"""`python -m tools.study.bands`: every band of the chapters as a table, from their last refresh.

For each claim its value, its band, and the wrong alternative that comes nearest to the band.
"""

from collections.abc import Iterator

from tools import ROOT, command

# In the kernel, before the first cell: note what every band is given. It stays silent where the
# chapter has a library without bands.
RECORD = """
try:
    from aigc_lib import check as _check
except ImportError:
    pass
else:
    _bands, _band = [], _check.band

    def _recorded(claim, value, low, high, *, wrong=None):
        others = {name: float(other) for name, other in (wrong or {}).items()}
        _bands.append([claim, float(value), float(low), float(high), others])
        return _band(claim, value, low, high, wrong=wrong)

    _check.band = _recorded
"""
TELL = "import json as _json; print(_json.dumps(globals().get('_bands', [])))"


def rows(found: list) -> Iterator[tuple[str, ...]]:
    """Claim, value, band, nearest wrong alternative and its value, as text."""
    for claim, value, low, high, others in found:
        name = min(others, key=lambda other: _distance(others[other], low, high), default="—")
        nearest = f"{others[name]:.4g}" if others else "—"
        yield claim, f"{value:.4g}", f"{low:g} … {high:g}", name, nearest


def _distance(value: float, low: float, high: float) -> float:
    distance = max(low - value, value - high)
    return distance if distance == distance else float("inf")  # NaN is far from everything


def main() -> int:
    """Print the table, in Markdown."""
    from tools.study import manifest, notebooks

    print("| chapter | claim | value | band | nearest wrong alternative | its value |")
    print("|:--|:--|--:|:--|:--|--:|")
    for chapter in manifest.load().chapters:
        stored = notebooks.read(chapter.notebook(ROOT)).metadata.get("aigc", {})
        for row in rows(stored.get("bands", [])):
            print("|", " | ".join([chapter.number, *(cell.replace("|", "/") for cell in row)]), "|")
    return 0


if __name__ == "__main__":
    command(main)
