"""The parts of aigc_lib: who may import whom, and whose shape types the suite enforces."""

from pathlib import Path

import jaxtyping

LIBRARY = Path(__file__).parents[1] / "aigc_lib"
# Which parts a part may import, besides itself and `expect`. This table is the rule: a part that is
# not in it fails tests/test_house.py.
MAY_IMPORT = {
    "": set(),
    "expect": set(),
    "device": set(),
    "check": set(),
    "plotting": set(),
    "checkpoint": {"device"},
    "ema": {"device"},
    "grading": set(),
    "optimizers": {"device"},
    "train": {"device", "checkpoint", "ema"},
    "schedules": {"device"},
    "kernels": set(),
    "ops": {"device", "kernels"},
    "layers": {"device", "ops"},
    "models": {"device", "checkpoint", "ops", "layers"},
    "objectives": {"device", "ops", "schedules"},
    "sampling": {"device", "ops", "schedules"},
    "data": {"device"},
    "metrics": {"device"},
    "doctor": {"device", "ops"},
}
# Kernels' decorators do not survive the hook; doctor must be importable without torch.
UNHOOKED = {"", "kernels", "doctor"}


def found(library: Path = LIBRARY) -> set[str]:
    """The parts that there are, whether or not the table knows them."""
    names = {path.name.removesuffix(".py") for path in library.iterdir() if path.suffix == ".py"}
    names |= {path.parent.name for path in library.glob("*/__init__.py")}
    return {"" if name == "__init__" else name for name in names}


def enforce_shapes(library: Path = LIBRARY):
    """Check every annotated call into aigc_lib from now on; `uninstall` ends that."""
    names = [f"aigc_lib.{part}" for part in sorted((found(library) | set(MAY_IMPORT)) - UNHOOKED)]
    # With the numeric tower an int is a float, as everywhere in Python.
    checker = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
    return jaxtyping.install_import_hook(names, checker)
