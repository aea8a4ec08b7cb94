"""Slow forms that follow a definition word for word, for comparison."""

import math

import torch
import torch.nn.functional as F


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


def convolve_by_patches(x, weight):
    """Kernel 4, stride 2, a border of zeros one pixel wide; one output pixel at a time."""
    x = F.pad(x, (1, 1, 1, 1))
    rows, columns = (x.shape[2] - 2) // 2, (x.shape[3] - 2) // 2
    out = x.new_zeros(len(x), len(weight), rows, columns)
    for i in range(rows):
        for j in range(columns):
            patch = x[:, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
            out[:, :, i, j] = torch.einsum("bcyx,dcyx->bd", patch, weight)
    return out


def paint_by_patches(x, weight):
    """The transpose of `convolve_by_patches`: each input pixel paints a patch."""
    out = x.new_zeros(len(x), weight.shape[1], 2 * x.shape[2] + 2, 2 * x.shape[3] + 2)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            patch = torch.einsum("bc,cdyx->bdyx", x[:, :, i, j], weight)
            out[:, :, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += patch
    return out[:, :, 1:-1, 1:-1]
