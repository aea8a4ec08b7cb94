"""What the launchers of GroupNorm and SiLU launch."""

from collections.abc import Callable, Iterator

import torch

from aigc_lib.kernels.group_norm_silu import kernels


def calls(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """Reach whole groups and split ones, the largest tiles of both, and both layouts."""
    for shape, groups in (
        ((64, 32, 8, 8), 8),
        ((64, 60, 7, 9), 6),
        ((4, 256, 8, 4), 1),  # a whole group of 8192 numbers
        ((4, 256, 8, 5), 1),
        ((4, 128, 64, 65), 32),
        ((1, 128, 512, 1024), 32),  # 512 tiles
    ):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)
            weight = torch.empty(shape[1], dtype=dtype, device="meta")
            statistics = torch.empty(shape[0] * groups, 2, device="meta")
            given, order = (x, groups, weight, weight), "" if x.is_contiguous() else ", last"
            label = f"C {shape[1]}, P {shape[2] * shape[3]}, G {groups}{order}"
            yield label, lambda g=given: kernels.forward(*g, 1e-5)
            yield label, lambda g=given, s=statistics: kernels.backward(g[0], *g, s)
