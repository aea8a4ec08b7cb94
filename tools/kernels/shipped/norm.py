"""What the launchers of LayerNorm and RMSNorm launch."""

from collections.abc import Callable, Iterator

import torch

from aigc_lib.kernels.norm import kernels as norm

N = 4096


def calls(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """Reach every entry of both tables: narrow, ragged and the widest rows."""
    for width, center in (
        (64, False),
        (1001, True),
        (4096, True),
        (16384, True),
    ):
        x = torch.empty(N, width, dtype=dtype, device="meta")
        vector = torch.empty(width, dtype=dtype, device="meta")
        statistics = torch.empty(1 + center, N, dtype=torch.float32, device="meta")
        label = f"{'layer' if center else 'rms'}_norm, C {width}"
        yield label, lambda x=x, v=vector, c=center: norm.forward(x, v, v if c else None, 1e-5, c)
        if width <= 4096:
            yield (
                label,
                lambda x=x, v=vector, s=statistics, c=center: norm.backward(x, x, v, s, True, c),
            )
