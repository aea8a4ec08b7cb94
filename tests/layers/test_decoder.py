from types import SimpleNamespace

import pytest
import torch
from torch import nn

from aigc_lib.layers.decoder import Decoder
from aigc_lib.layers.embedding import TokenEmbedding

V, C, H, LAYERS, CONTEXT = 7, 6, 3, 2, 9


class Bare(Decoder, nn.Module):
    """The least that a decoder needs: its features are embeddings, times what the cache says."""

    def __init__(self, *, tied=True):
        super().__init__()
        self.config = SimpleNamespace(num_layers=LAYERS, num_heads=H, width=C, context=CONTEXT)
        self.embedding = TokenEmbedding(V, C, CONTEXT)
        self.head = None if tied else nn.Linear(C, V, bias=False)

    def features(self, tokens, *, cache=None):
        return self.embedding(tokens) * (1 if cache is None else cache)


TOKENS = torch.tensor([[0, 6, 3], [2, 2, 5]])


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_features_read_out_by_the_embedding_or_by_a_head_of_its_own(tied):
    model = Bare(tied=tied)
    u = model.embedding.weight if tied else model.head.weight
    assert model.head_weight is u
    want = torch.einsum("btc,vc->btv", model.embedding.weight[TOKENS], u)
    assert torch.allclose(model(TOKENS), want, atol=1e-6)


def test_the_cache_is_handed_on(hook_off):
    model = Bare()
    assert torch.equal(model(TOKENS, cache=2), 2 * model(TOKENS))


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_cache_has_the_sizes_of_the_model_and_is_like_its_weights(tied):
    model = Bare(tied=tied).bfloat16()
    cache = model.new_cache(4)
    assert cache.keys.shape == cache.values.shape == (LAYERS, 4, H, CONTEXT, C // H)
    assert cache.keys.dtype == torch.bfloat16
    assert cache.position.item() == 0
    assert model.to("meta").new_cache(4).keys.is_meta


def test_length_dtype_and_device_may_be_chosen():
    cache = Bare().new_cache(1, length=4, dtype=torch.float16, device="meta")
    assert cache.length == 4
    assert cache.keys.dtype == torch.float16
    assert cache.keys.is_meta
    assert Bare().new_cache(1, length=1).length == 1
    assert Bare().new_cache(1, length=CONTEXT).length == CONTEXT


@pytest.mark.parametrize(
    ("settings", "name"),
    [({"length": 0}, "length"), ({"length": CONTEXT + 1}, "length"), ({"batch": 0}, "batch")],
)
def test_bad_sizes_are_named(hook_off, settings, name):
    with pytest.raises(ValueError, match=name):
        Bare().new_cache(**{"batch": 1} | settings)
