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
    """Look at the packages, the processor, the accelerators and the ops' implementations.

    Returns:
        The findings, ending with what they mean for the course.
    """
    packages = _packages()
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # a broken install can raise anything
        advice = "install the course's environment: make lab"
        return [*_system(), *packages, Row("torch import", f"fails: {error}", advice)]
    cuda, cuda_works = _cuda(torch)
    return [
        *_system(),
        *packages,
        _threads(torch),
        *cuda,
        _mps(torch),
        _triton(),
        *_ops(torch, cuda_works),
        _tiers(cuda_works),
    ]


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
    rows = [Row("numpy", *_version("numpy"))]
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
    """Whether a version lies in a range of the kind that pyproject.toml uses.

    Args:
        version: such as "2.13.0+cpu"; only its leading numbers count.
        wanted: such as ">=2.13,<2.14", or "" for anything.

    Returns:
        True if it does.
    """

    def numbers(text: str) -> tuple[int, ...]:
        release = tuple(map(int, re.match(r"\d+(\.\d+)*", text)[0].split(".")))
        return release + (0,) * (4 - len(release))

    for low, bound in re.findall(r"(>=|<)\s*([\d.]+)", wanted):
        if (numbers(version) >= numbers(bound)) != (low == ">="):
            return False
    return True


def _threads(torch) -> Row:
    wanted = os.environ.get("OMP_NUM_THREADS", "not set")
    found = f"torch uses {torch.get_num_threads()} of {os.cpu_count()}; OMP_NUM_THREADS {wanted}"
    advice = "" if (os.cpu_count() or 1) > 1 else "with one core, chapters take twice their time"
    return Row("CPU threads", found, advice)


def _cuda(torch) -> tuple[list[Row], bool]:
    if torch.version.cuda is None:
        advice = ""
        if shutil.which("nvidia-smi"):
            advice = "there is an NVIDIA driver: the CUDA build of torch would use the card"
        return [Row("CUDA", "torch is a build without CUDA", advice)], False
    if not torch.cuda.is_available():
        advice = ""
        if shutil.which("nvidia-smi"):
            advice = f"the driver is too old for CUDA {torch.version.cuda}, or no card is free"
        return [Row("CUDA", f"no usable device: {_cuda_problem(torch)}", advice)], False
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
        advice = ""
        if sys.platform == "linux" and platform.machine() == "x86_64":
            advice = f"needed only by those who work on kernels: {INSTALL_KERNELS}"
        return Row("Triton", "not installed", advice)
    except Exception as error:
        return Row("Triton", f"import fails: {error}", f"reinstall it: {INSTALL_KERNELS}")
    return Row("Triton", triton.__version__)


def _ops(torch, cuda_works: bool) -> list[Row]:
    """What each op takes when nobody chooses, and the measurement that this rests on."""
    dispatch = importlib.import_module("aigc_lib.ops.dispatch")
    capability = None
    if cuda_works:
        properties = torch.cuda.get_device_properties(0)
        capability = (properties.major, properties.minor)
    return [Row(f"op {op}", dispatch.decision(op, capability)) for op in dispatch.OPS]


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
