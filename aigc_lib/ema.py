"""The average of a model's weights over the last steps, which often does better than the last."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from aigc_lib import expect


class EMA:
    """An exponential moving average of a model's weights: m ← decay·m + (1 − decay)·θ.

    `model` is the averaged copy, in eval mode and without gradients. It starts at the weights as
    they are; about 1 / (1 − decay) steps count. Decay 0 gives the weights themselves, 1 is refused.

    Source: Polyak and Juditsky 1992 average the iterates; this is the exponentially weighted form.
    Derived: —
    """

    def __init__(self, model: nn.Module, decay: float):
        expect.at_least(0, decay=decay)
        expect.below(1, decay=decay)
        self.decay = decay
        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._average.n_averaged += 1  # the weights as they are count: at 0, an update copies
        self.model = self._average.module.requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model, of the same architecture; buffers are copied."""
        wanted, got = (len(list(m.parameters())) for m in (self.model, model))
        expect.that(got == wanted, f"a model of {wanted} parameters", got)
        self._average.update_parameters(model)
