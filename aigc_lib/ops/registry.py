"""The ops, once: doctor, the races, the proof that kernels compile and the tests go by this table.

`module` names a file of aigc_lib/ops, of tests/ops and of bench, `kernels` a folder of
aigc_lib/kernels and of tests/kernels, and the file of tools/kernels/shipped with its launches.
"""

import dataclasses
import importlib
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Op:
    """Where an op is, and where its kernels are, if it has some."""

    name: str
    module: str
    kernels: str | None

    def function(self) -> Callable:
        """What a caller calls."""
        return getattr(importlib.import_module(f"aigc_lib.ops.{self.module}"), self.name)


# In the order in which they are listed and raced.
OPS = (
    Op("attention", "attention", "attention"),
    Op("layer_norm", "norm", "norm"),
    Op("rms_norm", "norm", "norm"),
    Op("cross_entropy", "cross_entropy", "cross_entropy"),
    Op("linear_cross_entropy", "linear_cross_entropy", "cross_entropy"),
    Op("group_norm_silu", "group_norm_silu", "group_norm_silu"),
    Op("sample_token", "sample_token", "sample_token"),
)
NAMES = tuple(op.name for op in OPS)
WITHOUT_KERNEL = {op.name for op in OPS if op.kernels is None}
