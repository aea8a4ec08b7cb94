"""What a race leaves behind: lines on the screen and a dated JSON file."""

import datetime
import importlib.metadata
import itertools
import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch

from bench.race import is_noise
from tools import ROOT, write_file

RESULTS = ROOT / "bench" / "results"
TRIALS = ROOT / "build" / "bench"
PACKAGES = ("torch", "triton", "liger-kernel")
# What two runs must share for their rows to stand in one file.
SETTING = ("device", "processor", "threads", "capability", "quick", "versions")


def setting(device: torch.device, quick: bool) -> dict:
    """The machine and the software, as the head of a result file."""
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else processor(),
        "capability": list(torch.cuda.get_device_capability(device)) if is_cuda else None,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "quick": quick,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
            "cuda": torch.version.cuda,
            "driver": _driver() if is_cuda else None,
            "system": platform.platform(),
        },
    }


def processor() -> str:
    """The processor's name as its maker writes it, where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return found[1].strip() if found else platform.processor() or platform.machine()


def slug(name: str) -> str:
    """A device's name as part of a file name: "NVIDIA H100 80GB HBM3" → "nvidia-h100-80gb-hbm3"."""
    plain = re.sub(r"\((r|tm|c)\)", " ", name.lower())
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def new_file(head: dict, name: str) -> Path:
    """Where a comparison writes: after day, device and name, numbered unless it is a trial."""
    folder = TRIALS if head["quick"] else RESULTS
    stem = f"{datetime.date.today()}-{slug(head['device'])}-{name}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    paths = (folder / f"{numbered}.json" for numbered in names)
    return next(path for path in paths if head["quick"] or not path.exists())


def write(path: Path, content: dict) -> None:
    """Write a result file, at every moment either the old or the new one; NaN is refused."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_file(path, (text + "\n").encode())


class Results:
    """One result file, written anew after every op so that nothing finished is ever lost."""

    def __init__(self, head: dict, ops: list[str], path: Path | None = None, *, keep: bool = False):
        """Open a file for the ops that are about to run.

        None is that of the day, the device and the software; numbered where another setting has
        taken the name. One to keep lies among the committed results, any other under build/.
        """
        date = datetime.date.today().isoformat()
        folder = RESULTS if keep and not head["quick"] else TRIALS
        self.path = path or folder / f"{date}-{slug(head['device'])}.json"
        first, number = self.path, 1
        while (old := _read(self.path)) and any(old.get(key) != head[key] for key in SETTING):
            number += 1
            self.path = first.with_stem(f"{first.stem}-{number}")
        self.content = {"date": date, **head, "missing": ops, "ops": (old or {}).get("ops", {})}

    def put(self, op: str, entry: dict) -> None:
        """Store an op and write the file; an unfinished op does not replace a finished one."""
        before = self.content["ops"].get(op)
        if entry["complete"] or not (before and before["complete"]):
            self.content["ops"][op] = entry
        if entry["complete"]:
            self.content["missing"] = [name for name in self.content["missing"] if name != op]
        write(self.path, self.content)


# What stands in the columns of `lines`, above them.
HEADING = (
    f"  {'step':8} {'ours':9} vs {'peer':12}{'ours':>14} {'peer':>14}  "
    "ratio [p20, p80]: the peer's time / ours; ~1 within the noise"
)


def lines(rows: list[dict]) -> list[str]:
    """The rows of one case for the screen."""
    return [_line(row) for row in rows]


def _line(row: dict) -> str:
    names = f"  {row['direction']:8} {row['arm']:9} vs {row['peer']:12}"
    if row["refused"]:
        why = "; ".join(f"{name}: {reason}" for name, reason in row["refused"].items())
        return f"{names} not timed. {why}{_verdict(row)}"
    noise = "[{:.2f}, {:.2f}]".format(*row["noise"])
    ratio = f"{row['ratio']:.2f}"
    if is_noise(row["low"], row["high"], row["noise"]):
        ratio = "~1"
    memory = "" if row["memory_ratio"] is None else f"  memory {row['memory_ratio']:.2f}×"
    copy = "" if row["copy_fraction"] is None else f"  {100 * row['copy_fraction']:.0f} % of copy"
    return (
        f"{names}{row['milliseconds']:11.4g} ms {row['peer_milliseconds']:11.4g} ms  {ratio:>5} "
        f"[{row['low']:.2f}, {row['high']:.2f}]  noise {noise}{memory}{copy}{_verdict(row)}"
    )


def _verdict(row: dict) -> str:
    if not row["floor"]:
        return ""
    word = {True: "met", False: "NOT met", None: "not judged"}[row["meets"]]
    return f"  floor {', '.join(f'{k} {v:.3g}' for k, v in row['floor'].items())}: {word}"


def _read(path: Path) -> dict | None:
    if not path.exists():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    if not shutil.which("nvidia-smi"):
        return None
    line = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(line, capture_output=True, text=True)
    return (done.stdout.strip().splitlines() or [None])[0]
