"""What the launcher of token sampling launches."""

from collections.abc import Callable, Iterator

import torch

from aigc_lib.kernels.sample_token.kernels import sample_token as draw

B = 64


def calls(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """Reach both kernels and both block sizes; without a search there is only less code."""
    uniform = torch.empty(B, device="meta")
    for vocabulary in (512, 50257):
        logits = torch.empty(B, vocabulary, dtype=dtype, device="meta")
        yield f"V {vocabulary}, top-k, top-p", lambda x=logits: draw(x, uniform, 0.8, 50, 0.9)
        yield f"V {vocabulary}, greedy", lambda x=logits: draw(x, None, 0.0, None, None)
