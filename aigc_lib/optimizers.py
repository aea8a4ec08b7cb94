"""Several optimizers that step as one: Muon for a model's matrices, AdamW for all else."""

import torch
from torch import nn

from aigc_lib import expect


class Together(torch.optim.Optimizer):
    """Several optimizers that step as one, each with parameters of its own.

    `optimizers` holds them in the order given, `param_groups` the groups of all of them. ValueError
    if there is none, or two hold the same parameter.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer):
        parameters = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
        disjoint = bool(optimizers) and len(parameters) == len(set(parameters))
        expect.that(disjoint, "optimizers with parameters of their own", optimizers)
        self.optimizers = optimizers
        self.param_groups = [group for o in optimizers for group in o.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or fill them with zeros."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def step(self, closure: None = None) -> None:
        """Let each take its step; no closure."""
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict:
        """The state of each, for `load_state_dict`."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take over what `state_dict` gave, of the same optimizers."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]


def matrices_by_muon(
    model: nn.Module, *, muon_lr: float = 0.02, adamw_lr: float = 3e-3
) -> Together:
    """Muon for the matrices inside a model's `blocks`, AdamW for all else, without weight decay.

    Muon steps along the orthogonal matrix nearest to the averaged gradient, so that all directions
    of a matrix are used equally. Embeddings and read-outs, whose rows stand for single tokens, and
    vectors (norms, biases) are left to AdamW. Muon's group comes first. ValueError for a model
    that has no `blocks` or no matrix in them.

    Source: Jordan et al. 2024, for Muon and for the division of labour.
    Derived: —
    """
    blocks = getattr(model, "blocks", None)
    inside = blocks.parameters() if isinstance(blocks, nn.Module) else ()
    matrices = [p for p in inside if p.ndim == 2]
    expect.that(bool(matrices), "a model with matrices in its `blocks`", type(model).__name__)
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    return Together(
        torch.optim.Muon(matrices, lr=muon_lr, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(others, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    )
