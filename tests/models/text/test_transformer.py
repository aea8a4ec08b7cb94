import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aigc_lib.layers.mlp import ACTIVATIONS
from aigc_lib.layers.positions import sinusoidal
from aigc_lib.models.text.transformer import Transformer, TransformerConfig

SOURCE, V, PAD, CONTEXT, C, H = 9, 11, 0, 10, 12, 3
KINDS = {
    "ours": {},
    "learned": {"positions": "learned", "tied": False, "bias": False},
    "shared": {"source_vocab": V, "shared": True, "activation": "gelu"},
}
each_kind = pytest.mark.parametrize("kind", list(KINDS))


def noisy(kind="ours", **settings):
    sizes = {"source_vocab": SOURCE, "target_vocab": V, "pad": PAD, "context": CONTEXT, "width": C}
    sizes |= {"num_layers": 2, "num_heads": H}
    model = Transformer(TransformerConfig(**sizes | KINDS[kind] | settings)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, dtype=torch.float64))
    return model


def some_tokens():
    draw = torch.Generator().manual_seed(2)
    source = torch.randint(1, SOURCE, (3, 6), generator=draw)
    source[1, 4:], source[2, 1:] = PAD, PAD
    return source, torch.randint(V, (3, 5), generator=draw)


@torch.no_grad()
def torch_stacks(model):
    """torch's encoder and decoder, pre-norm, with our weights."""
    eps = model.config.eps
    settings = {"dropout": 0.0, "batch_first": True, "norm_first": True, "layer_norm_eps": eps}
    stacks = []
    for blocks, last, kind, stack in (
        (model.encoder, model.memory_norm, nn.TransformerEncoderLayer, nn.TransformerEncoder),
        (model.decoder, model.norm, nn.TransformerDecoderLayer, nn.TransformerDecoder),
    ):
        more = {"enable_nested_tensor": False} if stack is nn.TransformerEncoder else {}
        theirs = stack(kind(C, H, 4 * C, **settings), len(blocks), nn.LayerNorm(C, eps=eps), **more)
        for ours, layer in zip(blocks, theirs.double().layers, strict=True):
            norms = [ours.attention_norm, ours.cross_norm, ours.mlp_norm]
            for i, norm in enumerate(n for n in norms if n is not None):
                getattr(layer, f"norm{i + 1}").load_state_dict(norm.state_dict())
            pairs = [(ours.attention, layer.self_attn)]
            if ours.cross is not None:
                pairs.append((ours.cross, layer.multihead_attn))
            for a, b in pairs:
                inputs = [a.query, a.key, a.value]
                b.in_proj_weight.copy_(torch.cat([x.weight for x in inputs]))
                b.in_proj_bias.copy_(torch.cat([x.bias for x in inputs]))
                b.out_proj.load_state_dict(a.output.state_dict())
            layer.linear1.load_state_dict(ours.mlp.up.state_dict())
            layer.linear2.load_state_dict(ours.mlp.down.state_dict())
        theirs.norm.load_state_dict(last.state_dict())
        stacks.append(theirs)
    return stacks


def test_silent_blocks_leave_scaled_embeddings_positions_norm_and_read_out():
    model, (source, target) = noisy(), some_tokens()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.split(".")[-2] in ("output", "down"):
                p.zero_()
    stream = math.sqrt(C) * model.embedding.weight[target]
    stream = stream + sinusoidal(torch.arange(5, dtype=torch.float64), C)
    want = F.layer_norm(stream, (C,), model.norm.weight, model.norm.bias)
    want = want @ model.embedding.weight.T
    assert torch.allclose(model(source, target), want, atol=1e-12)


def test_it_agrees_with_the_stacks_of_torch():
    model, (source, target) = noisy(eps=0.01), some_tokens()
    encoder, decoder = torch_stacks(model)
    positions = torch.arange(6, dtype=torch.float64)
    read = math.sqrt(C) * model.source_embedding.weight[source] + sinusoidal(positions, C)
    written = math.sqrt(C) * model.embedding.weight[target] + sinusoidal(positions[:5], C)
    padding, future = source == PAD, torch.ones(5, 5).triu(1).bool()
    memory = encoder(read, src_key_padding_mask=padding)
    ours = model.encode(source)
    assert torch.allclose(ours[~padding], memory[~padding], atol=1e-11)
    want = decoder(written, memory, tgt_mask=future, memory_key_padding_mask=padding)
    assert torch.allclose(model.features(source, target), want, atol=1e-11)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation_is_the_one_asked_for_on_both_sides(activation):
    model = noisy(activation=activation)
    found = {block.mlp.activation for side in (model.encoder, model.decoder) for block in side}
    assert found == {activation}


@pytest.mark.parametrize(("hidden", "width"), [(None, 4 * C), (7, 7)])
def test_the_hidden_width_is_the_one_asked_for_on_both_sides(hidden, width):
    model = noisy(hidden=hidden)
    for block in (*model.encoder, *model.decoder):
        assert block.mlp.up.weight.shape == (width, C)


@each_kind
def test_more_padding_and_what_the_memory_holds_there_change_nothing(kind):
    model, (source, target) = noisy(kind), some_tokens()
    out = model(source, target)
    assert torch.allclose(model(F.pad(source, (0, 3), value=PAD), target), out, atol=1e-12)
    alone = model(source[1:2, :4], target[1:2])
    assert torch.allclose(out[1:2], alone, atol=1e-12)
    memory = model.encode(source)
    memory[source == PAD] = 1e3
    features = model.decode(target, memory, model.source_mask(source))
    assert torch.allclose(features, model.features(source, target), atol=1e-12)


def test_without_a_pad_every_token_is_read():
    model, (source, target) = noisy(pad=None), some_tokens()
    assert model.source_mask(source) is None
    longer = F.pad(source, (0, 1), value=PAD)
    assert not torch.allclose(model(longer, target), model(source, target), atol=1e-3)


@each_kind
def test_a_later_target_token_changes_no_earlier_logit_and_every_source_token_all(kind):
    model, (source, target) = noisy(kind), some_tokens()
    out = model(source, target)
    for t in range(1, 5):
        other = target.clone()
        other[:, t:] = (other[:, t:] + 1) % V
        assert torch.allclose(model(source, other)[:, :t], out[:, :t], atol=1e-12)
        assert not torch.allclose(model(source, other)[:, t], out[:, t], atol=1e-3)
    for place in range(6):
        other = source[:1].clone()
        other[0, place] = other[0, place] % (SOURCE - 1) + 1
        moved = (model(other, target[:1]) - out[:1]).abs().amax(2)
        assert (moved > 1e-6).all()


@each_kind
def test_sequences_of_a_batch_are_on_their_own(kind):
    model, (source, target) = noisy(kind), some_tokens()
    out, order = model(source, target), torch.tensor([2, 0, 1])
    assert torch.allclose(model(source[order], target[order]), out[order], atol=1e-12)
    assert torch.allclose(model(source[1:2], target[1:2]), out[1:2], atol=1e-12)


@each_kind
def test_the_order_of_source_and_target_tokens_matters(kind):
    model, (source, target) = noisy(kind, num_layers=1), some_tokens()
    out = model(source[:1], target[:1])
    assert not torch.allclose(model(source[:1].flip(1), target[:1]), out, atol=1e-3)
    order = torch.tensor([1, 0, 2, 3, 4])
    moved = model(source[:1], target[:1, order])
    assert not torch.allclose(moved[:, -1], out[:, -1], atol=1e-3)


@each_kind
@pytest.mark.parametrize("exact", [False, True])
def test_steps_with_a_cache_and_a_memory_projected_once_equal_the_whole(kind, exact):
    model, (source, target) = noisy(kind), some_tokens()
    given, parts, end = model.given(source), [], 0
    cache = given.new_cache(3, length=7)
    for part in target.split([2, 1, 1, 1], 1):
        end += part.shape[1]
        parts.append(given(part, cache=cache.until(end) if exact else cache))
    assert cache.position.item() == 5
    want = model(source, target)
    assert torch.allclose(torch.cat(parts, 1), want, atol=1e-12, rtol=0)
    assert torch.allclose(given(target), want, atol=1e-12)
    features = given.features(target)
    assert torch.allclose(features @ given.head_weight.T, want, atol=1e-12)
    assert given.new_cache(3).length == given.config.context


@each_kind
def test_alignment_is_where_each_layer_looks(kind):
    model, (source, target) = noisy(kind), some_tokens()
    maps = [model.alignment(source, target, layer=layer) for layer in (0, 1)]
    assert torch.equal(model.alignment(source, target), maps[1])
    assert not maps[0].requires_grad
    for m in maps:
        assert m.shape == (3, H, 5, 6)
        assert torch.allclose(m.sum(3), torch.ones(3, H, 5).double(), atol=1e-12)
        assert (m.masked_select((source == PAD)[:, None, None]) == 0).all()
    seen, weights = {}, []
    for i, block in enumerate(model.decoder):
        block.cross.register_forward_pre_hook(lambda _, args, i=i: seen.update({i: args}))
    model(source, target)
    for i, block in enumerate(model.decoder):
        x, memory = seen[i]
        weights.append(block.cross.weights(x, memory, mask=model.source_mask(source)))
    for got, want in zip(maps, weights, strict=True):
        assert torch.allclose(got, want, atol=1e-12)


@each_kind
def test_embeddings_are_shared_and_heads_tied_as_asked(kind):
    model, config = noisy(kind), noisy(kind).config
    assert (model.source_embedding is model.embedding) == config.shared
    assert (model.head_weight is model.embedding.weight) == config.tied
    names = [n for n, _ in model.named_parameters()]
    assert ("source_embedding.weight" in names) != config.shared
    assert ("head.weight" in names) != config.tied


@each_kind
def test_every_parameter_gets_a_gradient(kind):
    model, (source, target) = noisy(kind), some_tokens()
    F.cross_entropy(model(source, target).flatten(0, 1), target.flatten()).backward()
    for name, p in model.named_parameters():
        # A bias on the keys adds the same to all scores of a query.
        assert bool((p.grad.abs() > 1e-12).any()) != name.endswith("key.bias"), name


def test_a_fresh_model_starts_near_chance():
    model = Transformer(TransformerConfig(source_vocab=50, target_vocab=50, width=64, num_layers=4))
    source, target = torch.randint(50, (2, 8, 20))
    out = model(source, target)
    assert 0.5 < out.std().item() < 2
    assert F.cross_entropy(out.flatten(0, 1), source.flatten()).item() < math.log(50) + 1.5


def test_forward_and_a_step_trace_as_one_graph(hook_off):
    torch._dynamo.reset()
    model, (source, target) = noisy(num_layers=1).requires_grad_(False), some_tokens()
    traced = torch.compile(model, fullgraph=True, backend="eager")
    want = model(source, target)
    assert torch.allclose(traced(source, target), want, atol=1e-12)
    given, parts = model.given(source), []
    step = torch.compile(model.decode, fullgraph=True, backend="eager")
    cache = given.new_cache(3)
    for t in range(3):
        features = step(target[:, t : t + 1], given.memory, given.mask, cache=cache)
        parts.append(features @ model.head_weight.T)
    assert torch.allclose(torch.cat(parts, 1), want[:, :3], atol=1e-12)


def test_it_learns_to_turn_sequences_round():
    torch.manual_seed(0)
    sizes = {"source_vocab": 8, "target_vocab": 8, "pad": 0, "context": 8, "width": 32}
    model = Transformer(TransformerConfig(**sizes, num_layers=1, num_heads=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005, fused=True)
    for _ in range(150):
        source = torch.randint(2, 8, (64, 5))
        target_in = F.pad(source.flip(1), (1, 0), value=1)[:, :-1]
        loss = F.cross_entropy(model(source, target_in).flatten(0, 1), source.flip(1).flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source = torch.randint(2, 8, (200, 5))
    given, written = model.eval().given(source), torch.ones(200, 1).long()
    cache = given.new_cache(200)
    for _ in range(5):
        following = given(written[:, -1:], cache=cache)[:, -1].argmax(1, keepdim=True)
        written = torch.cat([written, following], 1)
    assert (written[:, 1:] == source.flip(1)).all(1).float().mean() > 0.95


@pytest.mark.parametrize("place", ["embedding", "attention", "cross", "mlp"])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_dropout_acts_on_the_embeddings_and_on_each_sublayer(side, place):
    if (side, place) == ("encoder", "cross"):
        return
    model, (source, target) = noisy(dropout=0.3, num_layers=1), some_tokens()
    memory, mask = model.eval().encode(source), model.source_mask(source)
    block = getattr(model.train(), side)[0]
    with torch.no_grad():
        # With its other places silenced, what is left is random.
        for name, last in (("attention", "output"), ("cross", "output"), ("mlp", "down")):
            if name != place and getattr(block, name) is not None:
                getattr(getattr(block, name), last).weight.zero_()
                getattr(getattr(block, name), last).bias.zero_()
    if place != "embedding":
        model.dropout.eval()

    def out():
        return model.encode(source) if side == "encoder" else model.decode(target, memory, mask)

    assert not torch.allclose(out(), out())
    model.eval()
    assert torch.equal(out(), out())


def test_a_fresh_model_starts_as_documented():
    sizes = {"source_vocab": 400, "target_vocab": 300, "context": 200, "width": 64}
    model = Transformer(TransformerConfig(**sizes, positions="learned", tied=False))
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            want = 64**-0.5
        elif isinstance(module, nn.Linear):
            want = math.sqrt(2 / (module.in_features + module.out_features))  # Glorot's uniform
            assert module.bias is None or (module.bias == 0).all()
        else:
            continue
        spread = 5 / math.sqrt(2 * module.weight.numel())
        assert module.weight.std().item() == pytest.approx(want, rel=spread), name


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        *[({name: 0}, name) for name in ("source_vocab", "target_vocab", "context", "width")],
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 0}, "num_heads"),
        ({"hidden": 0}, "hidden"),
        ({"num_heads": 5}, "num_heads"),
        ({"positions": "rotary"}, "positions .*'sinusoidal', 'learned'"),
        ({"activation": "elu"}, "activation .*'gelu', 'gelu_tanh', 'relu', 'swiglu'"),
        ({"shared": True}, "target_vocab 9 if shared, got 11"),
        ({"pad": 9}, "pad"),
        ({"pad": -1}, "pad"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        TransformerConfig(**{"source_vocab": 9, "target_vocab": 11} | settings)


SOME, TARGET = some_tokens()


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda: noisy()(F.pad(SOME, (0, 5)), TARGET), ValueError, "1 to 10 tokens"),
        (lambda: noisy()(SOME + (SOME == 1) * 8, TARGET), ValueError, "tokens in 0 … 8, got 9"),
        (lambda: noisy()(SOME, TARGET * 0 - 1), ValueError, "tokens in 0 … 10, got -1"),
        (lambda: noisy()(SOME.float(), TARGET), TypeError, "tokens"),
        (lambda: noisy()(SOME, TARGET[:2]), ValueError, r"\bk\b"),
        (lambda: noisy().alignment(SOME, TARGET, layer=2), ValueError, "layer"),
        (lambda: noisy().alignment(SOME, TARGET, layer=-3), ValueError, "layer"),
        (lambda: noisy().given(SOME).new_cache(3, length=11), ValueError, "length"),
        (lambda: wrong_cache(noisy().given(SOME)), ValueError, "this cache's batch"),
    ],
)
def test_bad_input_is_named(hook_off, call, error, name):
    with pytest.raises(error, match=name):
        call()


def wrong_cache(given):
    return given(TARGET, cache=given.new_cache(2))
