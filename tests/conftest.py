"""Shape checks over the whole suite, and the fixtures that every test may use."""

import jaxtyping
import pytest
import torch

from tests import parts

_hook = parts.enforce_shapes()


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
