"""Kernels in Triton's interpreter, in a process of its own:

    TRITON_INTERPRET=1 pytest tests/kernels -m "not gpu"

A process with that setting can't compile or use a GPU, and one without it can't interpret.
"""

import os

import pytest
import torch

from aigc_lib.ops import dispatch

# Without it cuBLAS refuses to work while torch.empty is filled with NaN.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(items):
    for item in items:
        if "kernels" not in item.path.parts:
            continue
        on_device = item.get_closest_marker("gpu") is not None
        if on_device and dispatch.INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="needs a process without TRITON_INTERPRET"))
        elif on_device and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif not on_device and not dispatch.INTERPRETED:
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1: make test sets it"))


@pytest.fixture
def nan_filled():
    """Fill every torch.empty with NaN, so that a place that a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
