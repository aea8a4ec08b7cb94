"""A pytest plugin for xdist: what takes long comes first, so that all cores end together.

    python -m tools.study.order    # after `make test`: write the table of seconds anew

A file runs on one core. So does a whole folder whose files share what takes long to make. The table
need be neither complete nor exact: what is not in it comes last. book.toml has notebooks' seconds.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from xdist.scheduler import LoadFileScheduling

from tools import ROOT, Refusal, command, write_file
from tools.study import manifest

TABLE = ROOT / "tests" / "seconds.json"
REPORT = ROOT / "build" / "test" / "tests-and-notebooks.xml"
WORTH = 4  # seconds; shorter files are not listed
TOGETHER = ("tests/site/",)  # one book, one browser


def scope(name: str) -> str:
    """What runs on one core: the folder of a file or of a test if it is TOGETHER, else the file."""
    return next((folder for folder in TOGETHER if name.startswith(folder)), name.split("::")[0])


class Scheduler(LoadFileScheduling):
    """xdist's, by file, but with folders that stay together."""

    def _split_scope(self, nodeid: str) -> str:
        return scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduler | None:
    """Take our scheduler in place of xdist's by file."""
    return Scheduler(config, log) if config.option.dist == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by the seconds of what runs on one core; its tests stay together and in their order."""
    seconds: Counter = Counter()
    for name, own in (json.loads(TABLE.read_text()) if TABLE.exists() else {}).items():
        seconds[scope(name)] += own
    if any(item.path.suffix == ".ipynb" for item in items):
        seconds.update(manifest.notebooks(manifest.load()))
    items.sort(key=lambda item: (-seconds[place := scope(_name(item.path))], place))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


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
