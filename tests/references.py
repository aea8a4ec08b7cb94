"""Slow forms that follow a definition word for word, for comparison."""

import math

import torch


def attention_by_loops(q, k, v, *, may_attend=lambda b, h, i, j: True, scale=None):
    """Attention with one Python loop per index, in the inputs' precision, differentiable."""
    batch, heads, num_queries, width = q.shape
    num_keys = k.shape[2]
    scale = 1 / math.sqrt(width) if scale is None else scale
    rows = []
    for b in range(batch):
        for h in range(heads):
            for i in range(num_queries):
                total, row = 0.0, torch.zeros(width, dtype=q.dtype)
                for j in range(num_keys):
                    if may_attend(b, h, i, j):
                        score = sum(q[b, h, i, c] * k[b, h, j, c] for c in range(width))
                        weight = torch.exp(scale * score)
                        total, row = total + weight, row + weight * v[b, h, j]
                rows.append(row / total if isinstance(total, torch.Tensor) else row)
    return torch.stack(rows).reshape(batch, heads, num_queries, width)
