from functools import partial

import pytest
import torch
from torch import nn

from aigc_lib.layers.attention import MultiHeadAttention
from aigc_lib.layers.block import Block, Stack
from aigc_lib.layers.kv_cache import KVCache
from aigc_lib.layers.mlp import MLP
from aigc_lib.layers.norm import LayerNorm

B, T, M, C, H, HIDDEN = 2, 4, 5, 6, 3, 10


def make(*, is_causal=False, cross=False, dropout=0.0, activation="relu"):
    block = Block(
        MultiHeadAttention(C, H, is_causal=is_causal, bias=True),
        MLP(C, HIDDEN, activation=activation, bias=True),
        partial(LayerNorm, C),
        cross=MultiHeadAttention(C, H, bias=True) if cross else None,
        dropout=dropout,
    )
    return noisy(block)


def noisy(module):
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64))
    return module


def tokens(length=T):
    return torch.randn(B, length, C, dtype=torch.float64)


def copy_attention(ours, theirs):
    inputs = [ours.query, ours.key, ours.value]
    theirs.in_proj_weight.copy_(torch.cat([x.weight for x in inputs]))
    theirs.in_proj_bias.copy_(torch.cat([x.bias for x in inputs]))
    theirs.out_proj.load_state_dict(ours.output.state_dict())


@torch.no_grad()
def torch_layer(ours, activation="relu"):
    """torch's own pre-norm layer with our weights."""
    kind = nn.TransformerEncoderLayer if ours.cross is None else nn.TransformerDecoderLayer
    settings = {"dropout": 0.0, "batch_first": True, "norm_first": True, "activation": activation}
    theirs = kind(C, H, HIDDEN, **settings).double()
    copy_attention(ours.attention, theirs.self_attn)
    norms = [ours.attention_norm, ours.mlp_norm]
    if ours.cross is not None:
        copy_attention(ours.cross, theirs.multihead_attn)
        norms.insert(1, ours.cross_norm)
    for i, norm in enumerate(norms):
        getattr(theirs, f"norm{i + 1}").load_state_dict(norm.state_dict())
    theirs.linear1.load_state_dict(ours.mlp.up.state_dict())
    theirs.linear2.load_state_dict(ours.mlp.down.state_dict())
    return theirs


def test_each_sublayer_adds_to_the_stream_what_it_makes_of_its_norm():
    block, x, memory = make(cross=True), tokens(), tokens(M)
    one = x + block.attention(block.attention_norm(x))
    two = one + block.cross(block.cross_norm(one), memory)
    want = two + block.mlp(block.mlp_norm(two))
    assert torch.allclose(block(x, memory), want, atol=1e-13)


def test_silent_sublayers_leave_the_stream_alone():
    block, x = make(cross=True), tokens()
    with torch.no_grad():
        for last in (block.attention.output, block.cross.output, block.mlp.down):
            last.weight.zero_()
            last.bias.zero_()
    assert torch.equal(block(x, tokens(M)), x)


def test_a_causal_block_is_blind_to_the_future():
    block, x = make(is_causal=True), tokens()
    other = x.clone()
    other[:, 2:] += 1
    assert torch.allclose(block(other)[:, :2], block(x)[:, :2], atol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("masked", [False, True])
def test_it_agrees_with_the_encoder_layer_of_torch(activation, masked):
    ours = make(activation=activation)
    theirs, x = torch_layer(ours, activation).train(), tokens().requires_grad_()
    keep = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    out = ours(x, mask=keep[:, None, None] if masked else None)
    want = theirs(x, src_key_padding_mask=~keep if masked else None)
    assert torch.allclose(out, want, atol=1e-11)
    g = torch.randn_like(out)
    got = torch.autograd.grad(out, [x, ours.mlp.up.weight], g)
    wanted = torch.autograd.grad(want, [x, theirs.linear1.weight], g)
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_it_agrees_with_the_decoder_layer_of_torch(masked):
    ours = make(is_causal=True, cross=True)
    theirs, x, memory = torch_layer(ours), tokens().requires_grad_(), tokens(M).requires_grad_()
    keep = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    out = ours(x, memory, memory_mask=keep[:, None, None] if masked else None)
    want = theirs(
        x,
        memory,
        tgt_mask=torch.ones(T, T).triu(1).bool(),
        memory_key_padding_mask=~keep if masked else None,
    )
    assert torch.allclose(out, want, atol=1e-11)
    g = torch.randn_like(out)
    got, wanted = (torch.autograd.grad(y, [x, memory], g) for y in (out, want))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_cross_weights_are_those_that_forward_uses():
    block, x, memory = make(is_causal=True, cross=True), tokens(), tokens(M)
    keep = (torch.rand(B, 1, 1, M) < 0.8) | (torch.arange(M) == 0)
    with torch.no_grad():
        block.mlp.down.weight.zero_()
        block.mlp.down.bias.zero_()
    seen = x + block.attention(block.attention_norm(x))
    fetched = block.cross_weights(x, memory, memory_mask=keep) @ block.cross.project(memory)[1]
    want = seen + block.cross.output(fetched.transpose(1, 2).flatten(2))
    assert torch.allclose(block(x, memory, memory_mask=keep), want, atol=1e-12)


def test_dropout_zeroes_whole_answers_in_training_alone():
    block, x = make(dropout=0.5), tokens()
    assert torch.equal(block.eval()(x), block(x))
    assert not torch.allclose(block.train()(x), block(x))
    drop = nn.Dropout(0.5)
    torch.manual_seed(3)
    one = x + drop(block.attention(block.attention_norm(x)))
    want = one + drop(block.mlp(block.mlp_norm(one)))
    torch.manual_seed(3)
    assert torch.allclose(block(x), want, atol=1e-13)


def test_a_stack_runs_its_blocks_in_order_and_each_has_its_part_of_the_cache():
    stack = Stack([make(is_causal=True, cross=True) for _ in range(3)])
    x, memory = tokens(), tokens(M)
    want = stack[2](stack[1](stack[0](x, memory), memory), memory)
    assert torch.allclose(stack(x, memory), want, atol=1e-12)
    projected = [block.cross.project(memory) for block in stack]
    cache, parts = KVCache(3, B, H, 9, C // H, dtype=torch.float64), []
    for part in x.split([1, 2, 1], 1):
        positions = cache.positions(part.shape[1])
        parts.append(stack(part, projected, cache=cache, positions=positions))
    assert torch.allclose(torch.cat(parts, 1), want, atol=1e-12)
    assert cache.position.item() == T
