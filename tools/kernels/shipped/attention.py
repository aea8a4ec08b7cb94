"""Calls that reach every configuration of the attention kernels."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from aigc_lib.kernels.attention import backward as attention_backward
from aigc_lib.kernels.attention import forward as attention_forward

_EVERYTHING = 2**30
_WIDTHS = (32, 64, 128)


def calls(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """What to compile for one dtype: each padded width, and the branches at one of them."""
    for width in _WIDTHS:
        yield f"width {width}", lambda width=width: _both_ways(dtype, width)
    # Loads of a ragged head are masked: padded to 32.
    mask = torch.empty(2, 1, 1000, 1003, device="meta", dtype=torch.bool)
    yield "width 24, ragged, mask", lambda: _both_ways(dtype, 24, 1000, 1003, mask)
    mask = torch.empty(2, 1, 1024, 1024, device="meta", dtype=torch.bool)
    for width in _WIDTHS[1:]:
        yield f"width {width}, mask", lambda width=width: _both_ways(dtype, width, mask=mask)
    if dtype == torch.float32:
        for width in _WIDTHS[1:]:
            yield f"width {width}, TF32", lambda width=width: _with_tf32(dtype, width)


def _both_ways(dtype, width, num_queries=1024, num_keys=1024, mask=None):
    q, k, v = (
        torch.empty(2, 8, n, width, device="meta", dtype=dtype)
        for n in (num_queries, num_keys, num_keys)
    )
    settings = (mask, width**-0.5, _EVERYTHING, 0)
    out, lse = attention_forward.forward(q, k, v, *settings)
    attention_backward.backward(q, k, v, out, lse, q, *settings, True, True)


def _with_tf32(dtype, width):
    with _tf32():
        _both_ways(dtype, width)


@contextmanager
def _tf32():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
