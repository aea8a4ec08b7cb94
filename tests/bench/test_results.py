"""What is committed under bench/results/, and what rests on it."""

import json
import re

import pytest
import torch

from aigc_lib.ops.dispatch import PROVEN
from aigc_lib.ops.registry import NAMES
from bench import __main__ as command
from bench import race, report

COMPARISONS = ("-language", "-dcgan", "-diffusion", "-flow", "-scenes")  # of a form of their own
FILES = sorted(
    path for path in report.RESULTS.glob("*") if not any(name in path.name for name in COMPARISONS)
)
NUMBER = (int, float)
MAYBE = (*NUMBER, type(None))
HEAD = {
    "date": str,
    "device": str,
    "capability": (list, type(None)),
    "processor": str,
    "threads": int,
    "quick": bool,
    "versions": dict,
    "missing": list,
    "ops": dict,
}
ENTRY = {"command": str, "ceilings": dict, "complete": bool, "rows": list, "seconds": NUMBER}
ROW = {
    "op": str,
    "capability": (list, type(None)),
    "case": str,
    "direction": str,
    "arm": str,
    "peer": str,
    "noise": (list, type(None)),
    "floor": (dict, type(None)),
    "aim": (dict, type(None)),
    "meets": (bool, type(None)),
    "refused": (dict, type(None)),
    "backend": (str, type(None)),
    "peer_backend": (str, type(None)),
    **dict.fromkeys(("ratio", "low", "high", "rounds", "milliseconds", "peer_milliseconds"), MAYBE),
    **dict.fromkeys(("memory_bytes", "peer_memory_bytes", "memory_ratio", "copy_fraction"), MAYBE),
    **dict.fromkeys(("compile_seconds", "peer_compile_seconds"), MAYBE),
}


def fits(found: dict, schema: dict, where: str) -> None:
    assert set(found) == set(schema), where
    for key, kind in schema.items():
        assert isinstance(found[key], kind), f"{where}: {key} is {found[key]!r}"


def check(content: dict) -> None:
    """A result file has the form that readers rely on, and its rows agree with themselves."""
    fits(content, HEAD, "head")
    for name, entry in content["ops"].items():
        assert name in command.SCRIPTS
        fits(entry, ENTRY, name)
        assert entry["command"].startswith("python -m bench")
        for row in entry["rows"]:
            where = f"{row['op']}, {row['case']}, {row['direction']}, {row['arm']}, {row['peer']}"
            fits(row, ROW, where)
            assert row["op"] in (*NAMES, "decode")
            assert row["capability"] == content["capability"]
            assert row["direction"] in ("forward", "backward", "both")
            if row["ratio"] is None:
                assert row["refused"], where
                continue
            assert row["low"] <= row["ratio"] <= row["high"], where
            assert row["noise"][0] <= 1 <= row["noise"][1], where
            assert row["meets"] is race.reaches(row, row["floor"] or {}), where


def test_a_fresh_result_has_the_form_that_committed_ones_must_have(workshop, tmp_path):
    wrong = workshop.arm("triton", compute=lambda x: x + 1)
    case = workshop.case([workshop.arm("torch"), wrong], [workshop.arm("eager")], op=NAMES[0])
    head = report.setting(torch.device("cpu"), quick=False)
    results = report.Results(head, ["norm"], tmp_path / "result.json")
    entry = {"command": "python -m bench", "ceilings": {}}
    command.run_script("norm", [case], results, workshop.track(), entry)
    content = json.loads(results.path.read_text(encoding="utf-8"))
    check(content)
    del content["ops"]["norm"]["rows"][0]["noise"]
    with pytest.raises(AssertionError, match=r"N 8, forward"):
        check(content)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_committed_result_has_the_form_and_is_named_after_its_device_and_day(path):
    assert path.suffix == ".json"
    content = json.loads(path.read_text(encoding="utf-8"))
    check(content)
    name = re.escape(f"{content['date']}-{report.slug(content['device'])}")
    assert re.fullmatch(rf"{name}(-\d+)?\.json", path.name)
    assert not content["quick"]
    assert not content["missing"]
    assert all(entry["complete"] for entry in content["ops"].values())


def unbacked(proven: dict, folder=report.RESULTS) -> list[str]:
    """The entries of a table like PROVEN that no committed result supports."""
    return [
        f"{op} at {capability}: {name}"
        for (op, capability), name in proven.items()
        if not race.meets(folder, op, capability, name)
    ]


def test_every_kernel_that_is_chosen_by_itself_is_backed_by_a_committed_result():
    assert unbacked(PROVEN) == []


def test_a_kernel_without_a_result_would_be_found(tmp_path):
    claim = {("rms_norm", (9, 0)): "2026-01-01-a-gpu.json"}
    assert unbacked(claim, tmp_path) == ["rms_norm at (9, 0): 2026-01-01-a-gpu.json"]
