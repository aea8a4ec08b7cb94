"""The memory of a decoder: keys and values of all tokens so far, so that none is computed twice.

Everything is allocated once, and the place of the next token is itself a tensor. A step therefore
has fixed shapes and never asks the device for a number: it traces as one graph, and CUDA can
record and replay it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class LayerCache(NamedTuple):
    """One layer's part of a `KVCache`, during one call of the model.

    Attributes:
        keys: (B, H, length, K), a view of the cache's.
        values: (B, H, length, K), likewise.
        positions: (T,) positions of the new tokens.
        mask: (T, length), True where a new token may attend; None means all keys up to its own,
            the last new token standing at the last key.
    """

    keys: Float[Tensor, "B H M K"]
    values: Float[Tensor, "B H M K"]
    positions: Int[Tensor, " T"]
    mask: Bool[Tensor, "T M"] | None


def append(
    part: LayerCache, k: Float[Tensor, "B H T K"], v: Float[Tensor, "B H T K"]
) -> tuple[Float[Tensor, "B H M K"], Float[Tensor, "B H M K"]]:
    """Write new keys and values at their positions.

    No gradient flows through a cache.

    Args:
        part: of the layer, for these tokens.
        k: keys of the new tokens.
        v: their values.

    Returns:
        All keys and all values, in the dtype of the new ones.

    Raises:
        ValueError: the new keys are not of the cache's batch, heads and head width.
    """
    batch, heads, _, width = part.keys.shape
    shape = (batch, heads, part.positions.shape[0], width)
    if k.shape != shape:
        raise ValueError(f"expected keys of shape {shape} for this cache, got {tuple(k.shape)}")
    for store, new in ((part.keys, k), (part.values, v)):
        store.index_copy_(2, part.positions, _as(store.dtype, new.detach()))
    return _as(k.dtype, part.keys), _as(v.dtype, part.values)


def _as(dtype, x) -> Tensor:
    # A comparison costs a fifth of a `to` that changes nothing, and a step has a dozen of them.
    return x if x.dtype == dtype else x.to(dtype)


class KVCache:
    """Keys and values of every layer, and how many tokens they hold.

    A model that is given a cache writes the keys and values of its tokens behind those already
    there, attends to all of them, and advances the position. On the CPU a cache that would
    overflow says so; on a GPU, where asking for the position would stop the queue, the caller
    keeps count.

    Source: Shazeer 2019, "Fast Transformer Decoding", section 2.3 (incremental multi-head
    attention); the fixed allocation is ours.
    Derived: 13_gpt eq-cache

    Attributes:
        keys: (layers, B, H, length, K).
        values: (layers, B, H, length, K).
        position: int64 scalar on the device, number of tokens held.
    """

    def __init__(
        self,
        num_layers: int,
        batch: int,
        num_heads: int,
        length: int,
        width: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        """Allocate an empty cache.

        Args:
            num_layers: number of attention layers.
            batch: B.
            num_heads: H.
            length: most tokens that it can hold.
            width: K, of a head.
            dtype: of keys and values; None means torch's default.
            device: where; None means torch's default.

        Raises:
            ValueError: a size is below 1.
        """
        shape = (num_layers, batch, num_heads, length, width)
        if min(shape) < 1:
            raise ValueError(
                f"expected num_layers, batch, num_heads, length, width >= 1, got {shape}"
            )
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)
        self.position = torch.zeros((), dtype=torch.int64, device=device)
        self.is_exact = False

    @property
    def length(self) -> int:
        """Most tokens that it can hold."""
        return self.keys.shape[3]

    def positions(self, num_tokens: int) -> Int[Tensor, " T"]:
        """Where the next tokens go: position, position + 1, …

        Args:
            num_tokens: T, of the tokens to come.

        Returns:
            (T,) int64.

        Raises:
            ValueError: they do not fit; on the CPU alone.
        """
        asking = self.position.device.type == "cpu" and not torch.compiler.is_compiling()
        held = self.position.item() if asking else 0
        if held + num_tokens > self.length:
            behind = f" behind {held}" if asking else ""
            raise ValueError(
                f"expected tokens that fit into a cache of {self.length}, got {num_tokens}{behind}"
            )
        positions = torch.arange(held, held + num_tokens, device=self.position.device)
        return positions if asking else self.position + positions

    def layers(self, positions: Int[Tensor, " T"]) -> list[LayerCache]:
        """Each layer's part, for a call whose tokens go to these positions.

        Args:
            positions: as `positions` gave them.

        Returns:
            One part for each layer; they share one mask.
        """
        mask = None
        if not self.is_exact:
            mask = torch.arange(self.length, device=positions.device) <= positions[:, None]
        return [
            LayerCache(keys, values, positions, mask)
            for keys, values in zip(self.keys.unbind(), self.values.unbind(), strict=True)
        ]

    def advance(self, num_tokens: int) -> None:
        """Count tokens that all layers have written.

        Args:
            num_tokens: how many.
        """
        self.position += num_tokens

    def reset(self) -> None:
        """Forget everything; the memory stays allocated."""
        self.position.zero_()

    def until(self, end: int) -> "KVCache":
        """A view of the first positions, for a caller who knows the position as a number.

        With one token a call that is given `cache.until(position + 1)` reads only what is filled,
        and needs no mask. The view shares keys, values and position with the cache.

        Args:
            end: how many tokens the cache will hold after the call, the position plus its T.

        Returns:
            A cache of that length, for this one call.

        Raises:
            ValueError: the end is not in 1 … length.
        """
        if not 1 <= end <= self.length:
            raise ValueError(f"expected an end from 1 to {self.length}, got {end}")
        view = object.__new__(KVCache)
        view.keys, view.values = self.keys.narrow(3, 0, end), self.values.narrow(3, 0, end)
        view.position, view.is_exact = self.position, True
        return view


def positions_of(tokens: Int[Tensor, "B T"], cache: KVCache | None) -> Int[Tensor, " T"]:
    """The positions of some tokens in their text: behind the cache, or from 0 on.

    Args:
        tokens: (B, T).
        cache: of the tokens before; None without.

    Returns:
        (T,) int64.

    Raises:
        ValueError: they do not fit into the cache; on the CPU alone.
    """
    if cache is None:
        return torch.arange(tokens.shape[1], device=tokens.device)
    return cache.positions(tokens.shape[1])
