"""The command line, in this process with an op that takes no time, and as a user types it."""

import json
import subprocess
import sys

import pytest
import torch

from bench import __main__ as command
from bench import clock, report
from bench.arms import Goal
from tools import ROOT, Refusal


@pytest.fixture
def bench(workshop, monkeypatch, tmp_path):
    """Runs `main` on a virtual clock with two scripts of one case each."""
    stop = []

    def compute(x):
        if "second" in stop and x.numel() == 3:
            raise KeyboardInterrupt
        return x.square()

    def cases(script, device, *, quick, compiled):
        def case(size):
            return workshop.case(
                [workshop.arm("torch", compute=compute)],
                [workshop.arm("eager")],
                op=script,
                name=f"N {size}",
                inputs=lambda draw: (torch.randn(size, generator=draw),),
                goals=(Goal("torch", "forward", "eager", {"ratio": 0.8}),),
            )

        return [case(2), case(3)] if script == "norm" else [case(2)]

    ceilings = {"copy_gigabytes_per_second": 10.0, "matmul_teraflops": 0.1, "matmul": "8"}
    monkeypatch.setattr(command, "SCRIPTS", ("attention", "norm"))
    monkeypatch.setattr(command, "cases", cases)
    monkeypatch.setattr(clock, "ProcessorClock", lambda: workshop.clock)
    monkeypatch.setattr(clock, "ceilings", lambda *_: ceilings)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command.devices, "limit_threads", lambda: 1)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "TRIALS", tmp_path / "trials")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["bench", *words])
        return command.main()

    run.stop = stop
    run.folder = tmp_path / "results"
    return run


def content(folder):
    (path,) = folder.iterdir()
    return json.loads(path.read_text(encoding="utf-8"))


def test_all_scripts_are_raced_and_stored(bench, capsys):
    assert bench("--rounds", "4", "--keep") == 0
    found = content(bench.folder)
    assert list(found["ops"]) == ["attention", "norm"]
    assert found["missing"] == []
    norm = found["ops"]["norm"]
    assert norm["command"] == "python -m bench --rounds 4"
    assert norm["complete"]
    assert norm["ceilings"]["matmul"] == "8"
    assert [row["case"] for row in norm["rows"]] == ["N 2", "N 2", "N 3", "N 3"]
    assert all(row["rounds"] <= 4 for row in norm["rows"])
    assert norm["rows"][0]["meets"] is True
    out = capsys.readouterr().out
    assert "floor ratio 0.8: met" in out
    assert "copy 10 GB/s" in out
    assert out.strip().endswith(".json.")


def test_a_run_leaves_nothing_for_git_unless_it_is_to_be_kept(bench, capsys):
    bench("--only", "norm")
    assert not bench.folder.exists()
    (stored,) = bench.folder.with_name("trials").iterdir()
    lines = capsys.readouterr().out.splitlines()
    assert str(stored) in lines[-1]
    row = next(line for line in lines if line.startswith("  forward"))
    heading = lines[lines.index("== norm ==") + 1]
    assert heading.index("vs") == row.index("vs")
    assert heading.index("ours", 30) + 1 == row.index(" ms")


def test_one_script_alone_and_the_command_that_repeats_it(bench, tmp_path):
    assert bench("--only", "norm", "--out", str(tmp_path / "mine.json")) == 0
    found = json.loads((tmp_path / "mine.json").read_text(encoding="utf-8"))
    assert list(found["ops"]) == ["norm"]
    assert found["ops"]["norm"]["command"] == "python -m bench --only norm --rounds 15"


def test_ctrl_c_keeps_what_is_done_and_a_second_run_completes_it(bench):
    bench.stop.append("second")
    with pytest.raises(KeyboardInterrupt):
        bench("--keep")
    found = content(bench.folder)
    assert found["missing"] == ["norm"]
    assert found["ops"]["attention"]["complete"]
    assert not found["ops"]["norm"]["complete"]
    assert [row["case"] for row in found["ops"]["norm"]["rows"]] == ["N 2", "N 2"]
    bench.stop.clear()
    bench("--only", "norm", "--keep")
    found = content(bench.folder)
    assert found["missing"] == []
    assert found["ops"]["attention"]["complete"]
    assert len(found["ops"]["norm"]["rows"]) == 4


def test_a_setting_out_of_range_is_refused(bench, monkeypatch):
    with pytest.raises(Refusal, match="expected at least 3 rounds, got 2"):
        bench("--rounds", "2")
    monkeypatch.setattr(command.shutil, "which", lambda name: None)
    with pytest.raises(Refusal, match="needs a C\\+\\+ compiler"):
        bench("--compile")


def test_an_unknown_op_is_one_line_and_no_traceback():
    line = [sys.executable, "-m", "bench", "--only", "norms"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "no op 'norms' to race; there are attention, norm, cross_entropy, linear_cross_entropy, "
        "group_norm_silu, sample_token, decode\n"
    )
