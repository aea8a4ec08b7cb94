import subprocess
import sys

import pytest

from tools import ROOT, Refusal
from tools.kernels import proof as kernels

pytest.importorskip("triton")

# A part of its own, in a folder of its own: Triton reads a kernel's source from its file.
PLANTED = """
import torch
import triton
import triton.language as tl


@triton.jit
def square(x, out, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    tile = tl.load(x + at)
    tl.store(out + at, tl.dot(tile, tile, input_precision=PRECISION).to(out.dtype.element_ty))


@triton.jit
def copy(x, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at))


def calls(dtype):
    x = torch.empty(64, 64, device="meta", dtype=dtype)
    yield "copied", lambda: copy[(1,)](x, x, 1024)
    yield "again", lambda: copy[(1,)](x, x, 1024)
    yield "small", lambda: square[(1,)](x, x, 16, "ieee")
    if dtype == torch.float32:
        yield "in TF32", lambda: square[(1,)](x, x, 16, "tf32")
        yield "too large", lambda: square[(1,)](x, x, 64, "ieee")
"""
SCRIPT = """
import sys
import tools.kernels.proof, tools.kernels.shipped
tools.kernels.shipped.__path__.append(sys.argv[1])
for capability in (80, 90):
    for dtype in ("float32", "float16", "bfloat16"):
        entries = tools.kernels.proof.compile_part("planted", capability, dtype)
        for e in entries:
            what = (e.label, e.multiplies, e.tensor_cores > 0, e.faults())
            print(capability, dtype, *what, sep="|")
    print(tools.kernels.proof.table(entries))
"""


def test_the_compiler_tells_a_good_kernel_from_one_that_spills(tmp_path):
    (tmp_path / "planted.py").write_text(PLANTED)
    line = [sys.executable, "-c", SCRIPT, tmp_path]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in done.stdout.splitlines() if "|" in line]
    for capability in ("80", "90"):
        check_planted([line[1:] for line in lines if line[0] == capability])
        assert f"sm_{capability}" in done.stdout


def check_planted(found):
    assert [line[:4] for line in found] == [
        ["float32", "copied", "no matrices", "False"],
        ["float32", "small", "float32 units", "False"],
        ["float32", "in TF32", "tensor cores", "True"],
        ["float32", "too large", "float32 units", "False"],
        ["float16", "copied", "no matrices", "False"],
        ["float16", "small", "tensor cores", "True"],
        ["bfloat16", "copied", "no matrices", "False"],
        ["bfloat16", "small", "tensor cores", "True"],
    ]
    faults = [line[4] for line in found]
    assert faults[:3] + faults[4:] == ["[]"] * 7
    assert "spills" in faults[3]


def compiled(**changes):
    good = {"kernel": "k", "label": "l", "dtype": "float16", "capability": 80, "warps": 4}
    good |= {"registers": 64, "stack": 0, "shared": 1024, "multiplies": "tensor cores"}
    return kernels.Compiled(**(good | {"tensor_cores": 8} | changes))


def test_each_fault_is_named():
    assert compiled().faults() == []
    assert compiled(multiplies="float32 units", tensor_cores=0).faults() == []
    assert "spills 8 bytes" in compiled(stack=8).faults()[0]
    assert "sm_80 has 166912" in compiled(shared=166_913).faults()[0]
    assert compiled(shared=166_913, capability=90).faults() == []
    assert "without tensor cores" in compiled(tensor_cores=0).faults()[0]


def test_a_process_that_interprets_is_refused(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(Refusal, match="can't compile"):
        list(kernels.compile_all(["norm"]))


def test_an_unknown_part_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["kernels", "--only", "norms"])
    with pytest.raises(Refusal, match="'norms'; there are"):
        kernels.main()
