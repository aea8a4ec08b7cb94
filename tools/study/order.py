"""A pytest plugin: files that take long come first, so that all cores end together.

    python -m tools.study.order    # after `make test`: write the table of seconds anew

The table need be neither complete nor exact: what is not in it comes last. The seconds of notebooks
are those of book.toml.
"""

import json
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tools import ROOT, Refusal, command, write_file
from tools.study import manifest

TABLE = ROOT / "tests" / "seconds.json"
REPORT = ROOT / "build" / "test" / "unit-tests.xml"
WORTH = 4  # seconds; shorter files are not listed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by the seconds of the file; tests of one file stay together and in their order."""
    seconds = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    if any(item.path.suffix == ".ipynb" for item in items):
        seconds |= manifest.notebooks(manifest.load())
    items.sort(key=lambda item: -seconds.get(_name(item.path), 0))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""


def measured(report: Path, root: Path = ROOT) -> dict[str, int]:
    """Seconds per test file in a JUnit report, longest first, without those not worth listing."""
    seconds: Counter = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        path = case.get("classname", "").replace(".", "/") + ".py"
        if (root / path).is_file():
            seconds[path] += float(case.get("time", 0))
    return {path: round(took) for path, took in seconds.most_common() if took >= WORTH}


def main() -> int:
    """Write the table from the last run's report."""
    if not REPORT.exists():
        raise Refusal(f"{REPORT.relative_to(ROOT)} is missing: make test writes it")
    write_file(TABLE, (json.dumps(measured(REPORT), indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    command(main)
