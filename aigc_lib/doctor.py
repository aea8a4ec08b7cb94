"""What this machine can run: `python -m aigc_lib.doctor`.

Works wherever Python does, without torch too, and changes nothing.
"""

import dataclasses
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import sys

INSTALL_KERNELS = f"{sys.executable} -m pip install -c constraints.txt -e .[kernels]"


@dataclasses.dataclass(frozen=True)
class Row:
    """One finding: what was looked at, what was found, and what to do about it, if anything."""

    name: str
    found: str
    advice: str = ""


def report() -> list[Row]:
    """Look at packages, processor, accelerators and ops; the last row says what they mean."""
    packages = _packages()
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # a broken install can raise anything
        advice = "install the course's environment: make lab"
        return [*_system(), *packages, Row("torch import", f"fails: {error}", advice)]
    cuda, cuda_works = _cuda(torch)
    rows = [*_system(), *packages, _threads(torch), *cuda, _mps(torch), _triton()]
    return [*rows, *_ops(torch, cuda_works), _tiers(cuda_works)]


def _system() -> list[Row]:
    advice = "" if sys.version_info >= (3, 11) else "the course needs Python 3.11 or newer"
    machine = f"{platform.system()} {platform.release()}, {platform.machine()}"
    return [Row("Python", platform.python_version(), advice), Row("system", machine)]


def _packages() -> list[Row]:
    """Installed versions beside the ranges that the package's own metadata asks for."""
    try:
        requirements = importlib.metadata.requires("aigc-lib") or []
    except importlib.metadata.PackageNotFoundError:
        advice = "install it: make lab, or pip install -c constraints.txt -e ."
        return [Row("aigc-lib", "not installed", advice)]
    rows = []
    for requirement in requirements:
        wanted, _, marker = requirement.partition(";")
        if not marker or "course" in marker:
            name = re.match(r"[\w.-]+", wanted)[0]
            rows.append(Row(name, *_version(name, wanted[len(name) :].strip())))
    return rows


def _version(name: str, wanted: str = "") -> tuple[str, str]:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed", "install the course's environment: make lab"
    if within(version, wanted):
        return version, ""
    return version, f"the course is tested with {wanted}: make lab, or upgrade it"


def within(version: str, wanted: str) -> bool:
    """Whether "2.13.0+cpu" lies in ">=2.13,<2.14", by its numbers; true where nothing can tell."""
    try:
        from packaging.specifiers import SpecifierSet
        from packaging.version import Version

        return SpecifierSet(wanted).contains(Version(version).base_version)
    except (ImportError, ValueError):  # packaging comes with pip; some builds have odd versions
        return True


def _threads(torch) -> Row:
    wanted = os.environ.get("OMP_NUM_THREADS", "not set")
    found = f"torch uses {torch.get_num_threads()} of {os.cpu_count()}; OMP_NUM_THREADS {wanted}"
    advice = "" if (os.cpu_count() or 1) > 1 else "with one core, chapters take twice their time"
    return Row("CPU threads", found, advice)


def _cuda(torch) -> tuple[list[Row], bool]:
    driver = shutil.which("nvidia-smi")
    if torch.version.cuda is None:
        advice = "there is an NVIDIA driver: the CUDA build of torch would use the card"
        return [Row("CUDA", "torch is a build without CUDA", advice if driver else "")], False
    if not torch.cuda.is_available():
        advice = f"the driver is too old for CUDA {torch.version.cuda}, or no card is free"
        found = f"no usable device: {_cuda_problem(torch)}"
        return [Row("CUDA", found, advice if driver else "")], False
    rows = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found = (
            f"{properties.name}, capability {properties.major}.{properties.minor}, "
            f"{properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        )
        old = (properties.major, properties.minor) < (8, 0)
        advice = "older than 8.0: no fast bfloat16, no kernels of this course" if old else ""
        rows.append(Row(f"CUDA device {index}", found, advice))
    return rows, True


def _cuda_problem(torch) -> str:
    try:
        torch.cuda.init()
    except Exception as error:  # torch raises several kinds, and the text is what matters
        return str(error).splitlines()[0]
    return "no device is visible"


def _mps(torch) -> Row:
    if torch.backends.mps.is_available():
        return Row("MPS", "available (Apple GPU)")
    if torch.backends.mps.is_built():
        return Row("MPS", "not usable", "it needs macOS 14 or newer on Apple silicon")
    return Row("MPS", "not on this system")


def _triton() -> Row:
    try:
        triton = importlib.import_module("triton")
    except ImportError:
        there_is_one = sys.platform == "linux" and platform.machine() == "x86_64"
        advice = f"needed only by those who work on kernels: {INSTALL_KERNELS}"
        return Row("Triton", "not installed", advice if there_is_one else "")
    except Exception as error:
        return Row("Triton", f"import fails: {error}", f"reinstall it: {INSTALL_KERNELS}")
    return Row("Triton", triton.__version__)


def _ops(torch, cuda_works: bool) -> list[Row]:
    """What each op takes when nobody chooses, and the measurement that this rests on."""
    dispatch = importlib.import_module("aigc_lib.ops.dispatch")
    names = importlib.import_module("aigc_lib.ops.registry").NAMES
    capability = torch.cuda.get_device_capability(0) if cuda_works else None
    return [Row(f"op {op}", dispatch.decision(op, capability)) for op in names]


def _tiers(cuda_works: bool) -> Row:
    if cuda_works:
        return Row("chapters", 'RUN = "minute", "coffee" and "gpu" all run here')
    return Row("chapters", 'RUN = "minute" and "coffee" run here; "gpu" needs a CUDA device')


def main() -> None:
    """Print the report; advice stands below the last of the rows that share it."""
    rows = report()
    following = [row.advice for row in rows[1:]] + [""]
    for row, next_advice in zip(rows, following, strict=True):
        print(f"{row.name:24} {row.found}")
        if row.advice and row.advice != next_advice:
            print(f"{'':24} -> {row.advice}")


if __name__ == "__main__":
    main()
