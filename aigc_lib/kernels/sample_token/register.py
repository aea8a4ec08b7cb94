"""Token sampling as an operator of torch; it has no derivative."""

import torch
from torch import Tensor

from aigc_lib.kernels.sample_token import kernels


@torch.library.custom_op("aigc::sample_token", mutates_args=())
def sample_token(
    logits: Tensor, uniform: Tensor | None, temperature: float,
    top_k: int | None, top_p: float | None,
) -> Tensor:  # fmt: skip
    """One token per row."""
    return kernels.sample_token(logits, uniform, temperature, top_k, top_p)


@sample_token.register_fake
def _(logits, uniform, temperature, top_k, top_p):
    return logits.new_empty(logits.shape[0], dtype=torch.int64)
