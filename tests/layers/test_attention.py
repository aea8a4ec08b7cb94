import pytest
import torch
from references import attention_by_loops
from torch import nn

from aigc_lib.layers.attention import MultiHeadAttention
from aigc_lib.layers.positions import rotary_table, shift_matrix

B, T, M, C, H = 2, 4, 6, 6, 3


def noisy(**settings):
    layer = MultiHeadAttention(C, H, **settings).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    return layer


def tokens(length, seed=2):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(B, length, C, generator=draw, dtype=torch.float64)


def torch_layer(ours):
    """torch's own layer with our weights; it stacks the three input projections."""
    theirs = nn.MultiheadAttention(C, H, bias=ours.query.bias is not None, batch_first=True)
    theirs = theirs.double()
    inputs = [ours.query, ours.key, ours.value]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([x.weight for x in inputs]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        if theirs.in_proj_bias is not None:
            theirs.in_proj_bias.copy_(torch.cat([x.bias for x in inputs]))
            theirs.out_proj.bias.copy_(ours.output.bias)
    return theirs


def with_gradients(layer, x, memory, call):
    x = x.clone().requires_grad_()
    memory = x if memory is None else memory.clone().requires_grad_()
    leaves = [x, *layer.parameters()] if memory is x else [x, memory, *layer.parameters()]
    out = call(x, memory)
    draw = torch.Generator().manual_seed(3)
    weights = torch.randn(out.shape, generator=draw, dtype=out.dtype)
    grads = torch.autograd.grad((out * weights).sum(), leaves)
    inputs = 1 if memory is x else 2
    named = dict(zip([n for n, _ in layer.named_parameters()], grads[inputs:], strict=True))
    return out.detach(), grads[:inputs], named


@pytest.mark.parametrize("memory", [None, tokens(M, seed=4)], ids=["self", "cross"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_it_is_a_sum_over_heads_each_with_its_own_rows(memory, is_causal):
    layer, x = noisy(is_causal=is_causal), tokens(T)
    asked = x if memory is None else memory
    offset = asked.shape[1] - T
    want, width = 0, C // H
    for h in range(H):
        rows = slice(h * width, (h + 1) * width)
        q = x @ layer.query.weight[rows].T
        k, v = asked @ layer.key.weight[rows].T, asked @ layer.value.weight[rows].T
        answer = attention_by_loops(
            q[:, None],
            k[:, None],
            v[:, None],
            may_attend=lambda b, h, i, j: not is_causal or j <= i + offset,
        )
        want = want + answer[:, 0] @ layer.output.weight[:, rows].T
    assert torch.allclose(layer(x, memory), want, atol=1e-12)


def test_a_window_reaches_so_many_tokens_back():
    layer = noisy(is_causal=True, window=2)
    band = torch.ones(T, T, dtype=torch.bool).tril().triu(-1)
    want = noisy()(tokens(T), mask=band)
    assert torch.allclose(layer(tokens(T)), want, atol=1e-14)


def test_rotary_rotates_the_queries_and_keys_of_each_head_and_not_the_values():
    # H = 3 heads of width 2: one pair in each.
    layer, x = noisy(is_causal=True), tokens(T)
    positions = torch.tensor([0.0, 1.0, 5.0, 2.5], dtype=torch.float64)
    turn = torch.stack([shift_matrix(-t, 2) for t in positions.tolist()])
    heads = [
        (x @ w.weight.T).unflatten(2, (H, 2)).transpose(1, 2)
        for w in (layer.query, layer.key, layer.value)
    ]
    q, k = (torch.einsum("tij,bhtj->bhti", turn, y) for y in heads[:2])
    answer = attention_by_loops(q, k, heads[2], may_attend=lambda b, h, i, j: j <= i)
    want = answer.transpose(1, 2).flatten(2) @ layer.output.weight.T
    rotary = rotary_table(positions, 2)
    assert torch.allclose(layer(x, rotary=rotary), want, atol=1e-12)
    rebuilt = layer.weights(x, rotary=rotary) @ heads[2]
    assert torch.allclose(rebuilt.transpose(1, 2).flatten(2) @ layer.output.weight.T, want)


def test_with_rotary_a_shift_of_all_positions_changes_nothing():
    layer, x, positions = noisy(), tokens(T), torch.arange(T, dtype=torch.float64)
    out = layer(x, rotary=rotary_table(positions, 2))
    assert torch.allclose(layer(x, rotary=rotary_table(positions + 7, 2)), out, atol=1e-12)
    assert not torch.allclose(layer(x, rotary=rotary_table(positions * 2, 2)), out, atol=1e-3)


def test_a_memory_may_be_projected_once():
    layer, x, memory = noisy(bias=True), tokens(T), tokens(M, seed=4)
    projected = layer.project(memory)
    assert [y.shape for y in projected] == [(B, H, M, C // H)] * 2
    assert torch.equal(layer(x, projected), layer(x, memory))
    assert torch.equal(layer.weights(x, projected), layer.weights(x, memory))


def test_without_mask_and_positions_it_is_equivariant_to_permutation():
    layer, x, order = noisy(), tokens(T), torch.tensor([2, 0, 3, 1])
    assert torch.allclose(layer(x[:, order]), layer(x)[:, order], atol=1e-12)
    causal = noisy(is_causal=True)
    assert not torch.allclose(causal(x[:, order]), causal(x)[:, order], atol=1e-2)


def test_the_order_of_the_memory_does_not_matter():
    layer, x, memory = noisy(), tokens(T), tokens(M, seed=4)
    order = torch.randperm(M)
    assert torch.allclose(layer(x, memory[:, order]), layer(x, memory), atol=1e-12)


def test_a_causal_layer_is_blind_to_the_future_by_value_and_by_gradient():
    layer, x = noisy(is_causal=True), tokens(T).requires_grad_()
    out = layer(x)
    for t in range(T):
        (gradient,) = torch.autograd.grad(out[:, t].sum(), x, retain_graph=True)
        assert (gradient[:, t + 1 :] == 0).all()
        assert (gradient[:, : t + 1] != 0).all()
        other = x.detach().clone()
        other[:, t + 1 :] = 7.0
        assert torch.allclose(layer(other)[:, : t + 1], out[:, : t + 1], atol=1e-14)


def test_each_sequence_is_on_its_own():
    layer, x = noisy(), tokens(T)
    assert torch.allclose(layer(x)[:1], layer(x[:1]), atol=1e-14)


def test_a_bias_on_the_keys_cancels():
    layer, x = noisy(bias=True), tokens(T)
    before = layer(x)
    with torch.no_grad():
        layer.key.bias += 3
    assert torch.allclose(layer(x), before, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("memory", [None, tokens(M, seed=4)], ids=["self", "cross"])
@pytest.mark.parametrize("masked", [False, True])
def test_it_agrees_with_the_layer_of_torch(bias, memory, masked):
    ours, x = noisy(bias=bias), tokens(T)
    theirs = torch_layer(ours)
    keys = T if memory is None else M
    # Ours says who may attend, torch's who may not.
    mask = torch.ones(T, keys, dtype=torch.bool).tril(keys - T) if masked else None
    forbidden = ~mask if masked else None
    out, to_inputs, to_weights = with_gradients(ours, x, memory, lambda x, m: ours(x, m, mask=mask))
    want, to_inputs_too, wanted = with_gradients(
        theirs, x, memory, lambda x, m: theirs(x, m, m, attn_mask=forbidden)[0]
    )
    assert torch.allclose(out, want, atol=1e-12)
    for a, b in zip(to_inputs, to_inputs_too, strict=True):
        assert torch.allclose(a, b, atol=1e-11)
    for kind in ["weight", "bias"] if bias else ["weight"]:
        stacked = torch.cat([to_weights[f"{name}.{kind}"] for name in ("query", "key", "value")])
        assert torch.allclose(stacked, wanted[f"in_proj_{kind}"], atol=1e-11)
        assert torch.allclose(to_weights[f"output.{kind}"], wanted[f"out_proj.{kind}"], atol=1e-11)
    maps = theirs(
        x,
        *[x if memory is None else memory] * 2,
        attn_mask=forbidden,
        average_attn_weights=False,
    )[1]
    assert torch.allclose(ours.weights(x, memory, mask=mask), maps, atol=1e-12)


def test_a_causal_layer_agrees_with_the_layer_of_torch():
    ours, x = noisy(is_causal=True), tokens(T)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    want, maps = torch_layer(ours)(x, x, x, attn_mask=future, average_attn_weights=False)
    assert torch.allclose(ours(x), want, atol=1e-12)
    assert torch.allclose(ours.weights(x), maps, atol=1e-12)


@pytest.mark.parametrize(
    "settings", [{}, {"is_causal": True}, {"is_causal": True, "window": 2}, {"window": 2}]
)
def test_the_maps_are_those_that_forward_uses(settings):
    layer, x, memory = noisy(**settings), tokens(T), tokens(M, seed=4)
    mask = torch.rand(B, 1, T, M) < 0.7
    for asked, rule in [(None, None), (memory, None), (memory, mask)]:
        m = x if asked is None else asked
        v = (m @ layer.value.weight.T).unflatten(2, (H, C // H)).transpose(1, 2)
        answer = layer.weights(x, asked, mask=rule) @ v
        rebuilt = answer.transpose(1, 2).flatten(2) @ layer.output.weight.T
        assert torch.allclose(layer(x, asked, mask=rule), rebuilt, atol=1e-12)


def test_it_learns_to_look_up_words_that_it_has_never_seen():
    torch.manual_seed(0)
    layer = MultiHeadAttention(12, 2)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03, fused=True)
    for _ in range(120):
        # Four memory tokens [name, word]; a question is a name alone.
        words, order = torch.randn(16, 4, 8), torch.rand(16, 4).argsort(1)
        names = torch.eye(4).expand(16, 4, 4)
        memory = torch.cat([names, words], 2)
        question = torch.cat([torch.eye(4)[order], torch.zeros(16, 4, 8)], 2)
        wanted = words[torch.arange(16)[:, None], order]
        loss = (layer(question, memory)[..., 4:] - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05  # words have variance 1; their mean alone would score 0.75
    assert torch.equal(layer.weights(question, memory).mean(1).argmax(2), order)


def test_an_empty_batch_gives_an_empty_result():
    assert noisy()(tokens(T)[:0]).shape == (0, T, C)


TURNED = rotary_table(torch.arange(T).double(), 2)


def project_then_ask(layer):
    return layer(tokens(T), layer.project(tokens(M)), rotary=TURNED)


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda: MultiHeadAttention(6, 4), ValueError, "num_heads"),
        (lambda: MultiHeadAttention(6, 0), ValueError, "num_heads"),
        (lambda: MultiHeadAttention(6, -3), ValueError, "num_heads"),
        (lambda: MultiHeadAttention(0, 1), ValueError, "width"),
        (lambda: noisy()(tokens(T)[0]), ValueError, "expected x "),
        (lambda: noisy().weights(tokens(T)[..., :5]), ValueError, "expected x "),
        (lambda: noisy()(tokens(T), tokens(M)[..., :5]), ValueError, "memory"),
        (lambda: noisy().weights(tokens(T), tokens(M)[0]), ValueError, "memory"),
        (lambda: noisy().project(tokens(M)[0]), ValueError, "memory"),
        # The op refuses keys of another batch.
        (lambda: noisy()(tokens(T), tokens(M)[:1]), ValueError, r"\bk\b"),
        (lambda: noisy()(tokens(T), tokens(M), rotary=TURNED), ValueError, "rotary"),
        (lambda: noisy().weights(tokens(T), tokens(M), rotary=TURNED), ValueError, "rotary"),
        (lambda: project_then_ask(noisy()), ValueError, "rotary"),
        (lambda: noisy()(tokens(T), mask=torch.ones(T, T)), TypeError, "mask"),
        (lambda: noisy(window=0)(tokens(T)), ValueError, "window"),
        (lambda: noisy(is_causal=True)(tokens(M), tokens(T)), ValueError, "is_causal"),
    ],
)
def test_bad_input_is_named(hook_off, call, error, name):
    with pytest.raises(error, match=name):
        call()
