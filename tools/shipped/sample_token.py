"""What the launcher of token sampling launches."""

from collections.abc import Callable, Iterator

import torch

from aigc_lib.kernels.sample_token import sample_token

B = 64


def calls(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """Reach both kernels and both block sizes.

    Leaving a search out leaves code out; dtypes differ in how a block is loaded, so that one
    configuration of each but float32 is enough.

    Args:
        dtype: of the logits.

    Yields:
        A label and a call.
    """
    uniform = torch.empty(B, device="meta")
    settings = [("V 50257, top-k, top-p", 50257, 0.8)]
    if dtype == torch.float32:
        settings += [("V 512, top-k, top-p", 512, 0.8), ("V 50304, greedy", 50304, 0.0)]
    for label, vocabulary, temperature in settings:
        logits = torch.empty(B, vocabulary, dtype=dtype, device="meta")
        yield label, lambda x=logits, t=temperature: sample_token(x, uniform, t, 50, 0.9)
