"""The memory of a decoder: keys and values of all tokens so far, so that none is computed twice.

Everything is allocated once, and the place of the next token is itself a tensor. A step therefore
has fixed shapes and never asks the device for a number: it traces as one graph, and CUDA can
record and replay it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aigc_lib import expect

Keys = Float[Tensor, "B H M K"]
New = Float[Tensor, "B H T K"]
Positions = Int[Tensor, " T"]
Dtype = torch.dtype | None
Device = torch.device | str | None


class LayerCache(NamedTuple):
    """One layer's part of a `KVCache`, during one call of the model: views of its keys and values.

    `positions` are those of the T new tokens. `mask` is True where a new token may attend; None
    means all keys up to its own, the last new token standing at the last key.
    """

    keys: Keys
    values: Keys
    positions: Positions
    mask: Bool[Tensor, "T M"] | None


def append(part: LayerCache, k: New, v: New) -> tuple[Keys, Keys]:
    """Write keys and values of the new tokens; all of both, in k's dtype, without gradient."""
    batch, heads, _, width = part.keys.shape
    fits = k.shape == (batch, heads, part.positions.shape[0], width)
    expect.that(fits, "k (B, H, T, K) of this cache's batch, heads and width", k.shape)
    for store, new in ((part.keys, k), (part.values, v)):
        store.index_copy_(2, part.positions, _as(store.dtype, new.detach()))
    return _as(k.dtype, part.keys), _as(k.dtype, part.values)


def _as(dtype, x) -> Tensor:
    # A comparison costs a fifth of a `to` that changes nothing, and a step has a dozen of them.
    return x if x.dtype == dtype else x.to(dtype)


class KVCache:
    """`keys` and `values` of every layer, (layers, B, H, length, K), and how many they hold.

    A model that is given a cache writes the keys and values of its tokens behind those already
    there, attends to all of them, and advances `position`, an int64 scalar on the device. On the
    CPU more than `length` tokens are refused; on a GPU, where asking for the position would stop
    the queue, the caller keeps count.

    Source: Shazeer 2019, "Fast Transformer Decoding", section 2.3 (incremental multi-head
    attention); the fixed allocation is ours.
    Derived: 13_gpt eq-cache
    """

    def __init__(
        self,
        num_layers: int,
        batch: int,
        num_heads: int,
        length: int,
        width: int,
        *,
        dtype: Dtype = None,
        device: Device = None,
    ):
        shape = (num_layers, batch, num_heads, length, width)
        expect.that(min(shape) >= 1, "num_layers, batch, num_heads, length and width >= 1", shape)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self.length, self.is_exact = length, False

    def positions(self, num_tokens: int) -> Positions:
        """Where the next tokens go: position, position + 1, …; ValueError if they do not fit."""
        asking = self.position.device.type == "cpu" and not torch.compiler.is_compiling()
        held = self.position.item() if asking else 0
        end = held + num_tokens
        expect.that(end <= self.length, f"a cache with room for {end} tokens", self.length)
        positions = torch.arange(held, end, device=self.position.device)
        return positions if asking else self.position + positions

    def layers(self, positions: Positions) -> list[LayerCache]:
        """Each layer's part, for a call whose tokens go to these positions; they share one mask."""
        mask = None
        if not self.is_exact:
            mask = torch.arange(self.length, device=positions.device) <= positions[:, None]
        stores = zip(self.keys.unbind(), self.values.unbind(), strict=True)
        return [LayerCache(keys, values, positions, mask) for keys, values in stores]

    def advance(self, num_tokens: int) -> None:
        """Count tokens that all layers have written."""
        self.position += num_tokens

    def reset(self) -> None:
        """Forget everything; the memory stays allocated."""
        self.position.zero_()

    def until(self, end: int) -> "KVCache":
        """A view of the first `end` positions, for one call that fills the last of them.

        For a caller who knows the position as a number: the call reads only what is filled, and
        needs no mask. The view shares keys, values and position with the cache.
        """
        expect.between(1, self.length, end=end)
        view = object.__new__(KVCache)
        view.keys, view.values = self.keys.narrow(3, 0, end), self.values.narrow(3, 0, end)
        view.position, view.length, view.is_exact = self.position, end, True
        return view


def positions_of(tokens: Int[Tensor, "B T"], cache: KVCache | None) -> Positions:
    """The positions of some tokens in their text: behind the cache, or from 0 on."""
    if cache is None:
        return torch.arange(tokens.shape[1], device=tokens.device)
    return cache.positions(tokens.shape[1])
