import pytest
import torch

from aigc_lib.layers.attention import MultiHeadAttention
from aigc_lib.layers.kv_cache import KVCache, append, positions_of

LAYERS, B, H, LENGTH, K = 2, 3, 2, 7, 4


def some(num_tokens, dtype=torch.float64):
    return torch.randn(B, H, num_tokens, K, dtype=dtype)


def fresh(**settings):
    return KVCache(LAYERS, B, H, LENGTH, K, **{"dtype": torch.float64} | settings)


def test_what_is_appended_stands_at_its_positions_and_nowhere_else():
    cache, held = fresh(), torch.zeros(LAYERS, 2, B, H, LENGTH, K, dtype=torch.float64)
    start = 0
    for num_tokens in (3, 1, 2):
        positions = cache.positions(num_tokens)
        assert positions.tolist() == list(range(start, start + num_tokens))
        for index, part in enumerate(cache.layers(positions)):
            k, v = some(num_tokens), some(num_tokens)
            held[index, 0, :, :, positions], held[index, 1, :, :, positions] = k, v
            keys, values = append(part, k, v)
            assert torch.equal(keys, held[index, 0])
            assert torch.equal(values, held[index, 1])
        assert cache.position.item() == start
        cache.advance(num_tokens)
        start += num_tokens
    assert cache.position.item() == 6


def test_a_new_token_may_attend_to_those_before_it_and_to_itself():
    cache = fresh()
    cache.advance(2)
    mask = cache.layers(cache.positions(3))[0].mask
    assert mask.int().tolist() == [[1] * n + [0] * (LENGTH - n) for n in (3, 4, 5)]


def test_a_view_shares_keys_values_and_position():
    cache = fresh()
    cache.advance(2)
    view = cache.until(5)
    assert view.length == 5
    part = view.layers(view.positions(3))[1]
    assert part.mask is None
    k, v = some(3), some(3)
    keys, _ = append(part, k, v)
    assert keys.shape == (B, H, 5, K)
    view.advance(3)
    assert cache.position.item() == 5
    assert torch.equal(cache.keys[1, :, :, 2:5], k)
    assert torch.equal(cache.values[1, :, :, 2:5], v)


def test_reset_starts_again_in_the_same_memory():
    cache = fresh()
    pointer = cache.keys.data_ptr(), cache.position.data_ptr()
    cache.advance(4)
    cache.reset()
    assert cache.positions(2).tolist() == [0, 1]
    assert pointer == (cache.keys.data_ptr(), cache.position.data_ptr())


def test_positions_without_a_cache_count_from_zero():
    tokens = torch.zeros(B, 3).long()
    assert positions_of(tokens, None).tolist() == [0, 1, 2]
    cache = fresh()
    cache.advance(2)
    assert positions_of(tokens, cache).tolist() == [2, 3, 4]


def test_keys_may_be_kept_in_another_dtype():
    cache = fresh(dtype=torch.bfloat16)
    k = some(2)
    keys, values = append(cache.layers(cache.positions(2))[0], k, k)
    assert keys.dtype == values.dtype == torch.float64
    assert torch.equal(keys[:, :, :2], k.bfloat16().double())


def test_no_gradient_is_kept():
    cache = fresh()
    part = cache.layers(cache.positions(2))[0]
    append(part, some(2).requires_grad_(), some(2).requires_grad_())
    assert not cache.keys.requires_grad
    assert not cache.values.requires_grad


@pytest.mark.parametrize("exact", [False, True])
def test_attention_with_a_cache_equals_attention_to_the_whole(exact):
    layer = MultiHeadAttention(H * K, H, is_causal=True, bias=True).double()
    x, cache, parts = torch.randn(B, LENGTH, H * K).double(), fresh(), []
    start = 0
    for num_tokens in (2, 1, 3, 1):
        end = start + num_tokens
        now = cache.until(end) if exact else cache
        part = now.layers(now.positions(num_tokens))[0]
        parts.append(layer(x[:, start:end], cache=part))
        now.advance(num_tokens)
        start = end
    assert torch.allclose(torch.cat(parts, 1), layer(x), atol=1e-13)


def test_what_stands_behind_the_position_is_never_looked_at():
    layer = MultiHeadAttention(H * K, H, is_causal=True).double()
    x, cache = torch.randn(B, 3, H * K).double(), fresh()
    cache.keys.fill_(1e3)
    cache.values.fill_(1e3)
    out = layer(x, cache=cache.layers(cache.positions(3))[0])
    assert torch.allclose(out, layer(x), atol=1e-13)


def part_of(num_tokens=2):
    cache = fresh()
    return cache.layers(cache.positions(num_tokens))[0]


def ask(*, memory=None, mask=None, **settings):
    layer = MultiHeadAttention(8, 2, **settings).double()
    return layer(torch.randn(B, 2, 8).double(), memory, mask=mask, cache=part_of())


def overflow(held, num_tokens):
    cache = fresh()
    cache.advance(held)
    return cache.positions(num_tokens)


def test_the_last_position_can_be_used():
    assert overflow(6, 1).tolist() == [6]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: KVCache(0, 1, 1, 1, 1), "num_layers"),
        (lambda: KVCache(1, 0, 1, 1, 1), "batch"),
        (lambda: KVCache(1, 1, 1, 0, 1), "length"),
        (lambda: overflow(0, 8), "room for 8 tokens, got 7"),
        (lambda: overflow(6, 2), "room for 8 tokens, got 7"),
        (lambda: fresh().until(0), "end"),
        (lambda: fresh().until(8), "end"),
        (lambda: append(part_of(), some(2)[:1], some(2)[:1]), r"\bk\b"),
        (lambda: append(part_of(), some(3), some(3)), r"\bk\b"),
        (lambda: ask(is_causal=False), "cache"),
        (lambda: ask(is_causal=True, window=2), "cache"),
        (lambda: ask(is_causal=True, memory=torch.randn(B, 2, 8).double()), "cache"),
        (lambda: ask(is_causal=True, mask=torch.ones(2, 2).bool()), "cache"),
    ],
)
def test_bad_input_is_named(hook_off, call, name):
    with pytest.raises(ValueError, match=name):
        call()
