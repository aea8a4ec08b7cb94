import importlib
import importlib.metadata
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch

from aigc_lib import doctor

ROOT = Path(__file__).parents[1]


def rows():
    return {row.name: row for row in doctor.report()}


@pytest.fixture
def without(monkeypatch):
    """Make the import of a module fail."""

    def hide(name, error):
        real = importlib.import_module

        def fake(wanted, *arguments):
            if wanted == name:
                raise error
            return real(wanted, *arguments)

        monkeypatch.setattr(importlib, "import_module", fake)

    return hide


@pytest.fixture
def card(monkeypatch):
    """Pretend that there is a CUDA device of some capability."""

    def pretend(major, minor):
        properties = types.SimpleNamespace(
            name="Card", major=major, minor=minor, total_memory=80 * 2**30
        )
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)

    return pretend


def test_it_prints_one_line_for_each_finding(capsys):
    doctor.main()
    out = capsys.readouterr().out
    for name in ("Python", "torch", "CPU threads", "CUDA", "MPS", "Triton", "chapters"):
        assert f"\n{name} " in f"\n{out}"


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("2.13.4+cpu", ""),
        ("1.9", "the course is tested with <2.14,>=2.11: make lab, or upgrade it"),
        ("3.0", "the course is tested with <2.14,>=2.11: make lab, or upgrade it"),
    ],
)
def test_a_version_out_of_range_is_named(monkeypatch, version, advice):
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version if name == "torch" else real(name)
    )
    assert rows()["torch"] == doctor.Row("torch", version, advice)


def test_a_machine_without_torch_is_told_what_to_do(without):
    without("torch", ImportError("No module named 'torch'"))
    last = doctor.report()[-1]
    assert last.found == "fails: No module named 'torch'"
    assert "make lab" in last.advice


def test_a_machine_without_the_package_is_told_what_to_do(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert rows()["aigc-lib"].found == "not installed"


def test_a_card_makes_every_tier_run(card):
    card(9, 0)
    found = rows()
    assert found["CUDA device 0"].found == "Card, capability 9.0, 80 GiB, CUDA 13.0"
    assert found["CUDA device 0"].advice == ""
    assert "all run here" in found["chapters"].found


def test_an_old_card_is_told_what_it_lacks(card):
    card(7, 5)
    assert "bfloat16" in rows()["CUDA device 0"].advice


def test_a_cpu_build_beside_a_driver_is_pointed_out(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/nvidia-smi")
    found = rows()
    assert "the CUDA build of torch would use the card" in found["CUDA"].advice
    assert '"gpu" needs a CUDA device' in found["chapters"].found


def test_a_driver_that_is_too_old_is_explained(monkeypatch):
    def fail():
        raise RuntimeError("The NVIDIA driver on your system is too old\nmore")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", fail)
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/nvidia-smi")
    found = rows()["CUDA"]
    assert found.found == "no usable device: The NVIDIA driver on your system is too old"
    assert "too old for CUDA 13.0" in found.advice


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ImportError("gone"), "not installed"), (RuntimeError("broken"), "import fails: broken")],
)
def test_triton_may_be_missing_or_broken(without, error, expected):
    without("triton", error)
    assert rows()["Triton"].found == expected


def test_an_apple_machine_is_recognised(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "Apple" in rows()["MPS"].found


@pytest.mark.parametrize(
    ("version", "wanted", "expected"),
    [
        ("2.13.0+cpu", ">=2.13,<2.14", True),
        ("2.14.0", "<2.14,>=2.13", False),
        ("2.12.9", ">=2.13,<2.14", False),
        ("2.13rc1", ">=2.13,<2.14", True),
        ("10.0", ">=9", True),
        ("4.6.6", ">=4.6,<5", True),
        ("5.0", ">=4.6,<5", False),
        ("1", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version, wanted, expected):
    assert doctor.within(version, wanted) == expected


@pytest.mark.parametrize("version", ["2.13.0+cpu", "unknown"])
def test_where_nothing_can_tell_no_version_is_blamed(monkeypatch, version):
    if version != "unknown":
        monkeypatch.setitem(sys.modules, "packaging.specifiers", None)
    assert doctor.within(version, ">=99")


def test_it_runs_without_torch_and_without_all_that_comes_with_it():
    source = """
        import sys
        for name in ("torch", "numpy", "packaging", "jaxtyping", "triton"):
            sys.modules[name] = None
        from aigc_lib import doctor
        doctor.main()
    """
    command = [sys.executable, "-c", textwrap.dedent(source)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\ntorch import " in done.stdout
    assert "make lab" in done.stdout


def test_every_package_is_named_once():
    names = [row.name for row in doctor.report()]
    assert len(names) == len(set(names))
    assert {"torch", "numpy", "jupyterlab"} <= set(names)
    assert "pytest" not in names
