"""Shape checks over the whole suite, and the fixtures that every test may use."""

import jaxtyping
import pytest
import torch

# Named one by one: kernels stay out, their decorators do not survive the hook.
HOOKED = [
    "aigc_lib.check",
    "aigc_lib.data",
    "aigc_lib.device",
    "aigc_lib.layers",
    "aigc_lib.metrics",
    "aigc_lib.models",
    "aigc_lib.objectives",
    "aigc_lib.ops",
    "aigc_lib.plotting",
    "aigc_lib.sampling",
    "aigc_lib.train",
]
_hook = jaxtyping.install_import_hook(HOOKED, "beartype.beartype")


@pytest.fixture
def hook_off():
    """Turn the shape checks off: a user has none, so bad input must fail without them too."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def generator():
    """A seeded generator of the test's own."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
