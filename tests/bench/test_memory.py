import sys

import pytest
import torch

from bench import memory
from tools import Refusal

MEBIBYTE = 2**20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
MODULE = """
import torch

def allocate(mebibytes, held=0):
    before = torch.ones(held * 2**18)
    def call():
        torch.ones(mebibytes * 2**18)
        torch.ones(2**18)
        return before
    return call

def fail():
    raise ValueError("no such case")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "memory_targets.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "memory_targets"


@linux
def test_the_peak_is_what_the_call_takes_and_not_what_was_held_before(module):
    peak = memory.in_fresh_process(f"{module}:allocate", 64, 200)
    assert 0.9 < peak / (64 * MEBIBYTE) < 1.1


@linux
def test_a_process_that_fails_is_one_clear_error(module):
    with pytest.raises(Refusal, match=r"memory of .*:fail: ValueError: no such case"):
        memory.in_fresh_process(f"{module}:fail")


def test_where_nobody_can_tell_the_answer_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "missing")
    assert memory.in_fresh_process("no:matter") is None


def test_on_cuda_the_peak_is_above_what_was_allocated_and_after_a_warm_up(monkeypatch):
    log, peak = [], {"now": 0}

    def call():
        log.append("call")
        peak["now"] = 1000

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 300)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: log.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peak["now"])
    assert memory.on_cuda(call) == 700
    assert log == ["call", "reset", "call"]
