import math

import pytest
import torch
import torch.nn.functional as F
from references import attention_by_loops

from aigc_lib.layers.positions import shift_matrix
from aigc_lib.models.text.gpt import GPT, GPTConfig

V, CONTEXT, C, H = 11, 12, 12, 3
KINDS = {
    "ours": {},
    "published": {"positions": "learned", "bias": True, "activation": "gelu_tanh"},
    "modern": {"norm": "rms", "activation": "swiglu", "tied": False},
}
each_kind = pytest.mark.parametrize("kind", list(KINDS))


def noisy(kind="ours", **settings):
    sizes = {"vocab_size": V, "context": CONTEXT, "width": C, "num_layers": 2, "num_heads": H}
    model = GPT(GPTConfig(**sizes | KINDS[kind] | settings)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, dtype=torch.float64))
    return model


def some_tokens(length=9, batch=3):
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(2))


def by_hand(model, tokens, kind):
    """The whole model written out from its weights, with attention by loops."""
    w, T = dict(model.named_parameters()), tokens.shape[1]

    def linear(name, x):
        y = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

    def norm(name, x):
        if kind == "modern":
            return x / (x.square().mean(2, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]
        x = x - x.mean(2, keepdim=True)
        y = x / (x.square().mean(2, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]
        return y + w[f"{name}.bias"] if kind == "published" else y

    rotary = torch.stack([shift_matrix(-t, C // H) for t in range(T)])
    x = w["embedding.weight"][tokens]
    if kind == "published":
        x = x + w["positions.weight"][:T]
    for i in range(2):
        at = f"blocks.{i}"
        y = norm(f"{at}.attention_norm", x)
        q, k, v = (
            linear(f"{at}.attention.{n}", y).unflatten(2, (H, C // H)).transpose(1, 2)
            for n in ("query", "key", "value")
        )
        if kind != "published":
            q, k = (torch.einsum("tij,bhtj->bhti", rotary, y) for y in (q, k))
        out = attention_by_loops(q, k, v, may_attend=lambda b, h, i, j: j <= i)
        x = x + linear(f"{at}.attention.output", out.transpose(1, 2).flatten(2))
        y = norm(f"{at}.mlp_norm", x)
        up = linear(f"{at}.mlp.up", y)
        if kind == "modern":
            up = F.silu(linear(f"{at}.mlp.gate", y)) * up
        else:
            up = F.gelu(up, approximate="tanh" if kind == "published" else "none")
        x = x + linear(f"{at}.mlp.down", up)
    return norm("norm", x) @ w.get("head.weight", w["embedding.weight"]).T


@each_kind
def test_it_is_the_model_written_out(kind):
    model, tokens = noisy(kind), some_tokens(5, batch=2)
    assert torch.allclose(model(tokens), by_hand(model, tokens, kind), atol=1e-11)


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_a_fresh_model_knows_nothing_and_starts_as_published(positions):
    sizes = {"vocab_size": 500, "width": 64, "num_layers": 8, "num_heads": 4}
    model = GPT(GPTConfig(**sizes, positions=positions, bias=True, tied=positions == "rotary"))
    last = 0.02 / math.sqrt(16)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            assert (p == (1.0 if name.endswith("norm.weight") else 0.0)).all()
        else:
            is_last = name.endswith(("attention.output.weight", "mlp.down.weight"))
            want = last if is_last else 0.02
            assert p.std().item() == pytest.approx(want, rel=5 / math.sqrt(2 * p.numel())), name
            assert abs(p.mean().item()) < 5 * want / math.sqrt(p.numel())
    tokens = torch.randint(500, (4, 64))
    loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(500), abs=0.1)


def test_the_published_sizes_have_the_published_number_of_parameters():
    with torch.device("meta"):
        config = GPTConfig(
            vocab_size=50257,
            context=1024,
            width=768,
            num_layers=12,
            num_heads=12,
            positions="learned",
            activation="gelu_tanh",
            bias=True,
        )
        assert sum(p.numel() for p in GPT(config).parameters()) == 124_439_808


@each_kind
def test_a_later_token_changes_no_earlier_logit(kind):
    model, tokens = noisy(kind), some_tokens()
    out = model(tokens)
    for t in range(1, 9):
        other = tokens.clone()
        other[:, t:] = (other[:, t:] + 1) % V
        assert torch.allclose(model(other)[:, :t], out[:, :t], atol=1e-12)
        assert not torch.allclose(model(other)[:, t], out[:, t], atol=1e-2)


@each_kind
def test_sequences_of_a_batch_are_on_their_own(kind):
    model, tokens = noisy(kind), some_tokens()
    out, order = model(tokens), torch.tensor([2, 0, 1])
    assert torch.allclose(model(tokens[order]), out[order], atol=1e-12)
    assert torch.allclose(model(tokens[1:2]), out[1:2], atol=1e-12)
    assert model(tokens[:0]).shape == (0, 9, V)


@each_kind
def test_the_order_of_tokens_matters(kind):
    model, tokens = noisy(kind, num_layers=1), torch.tensor([[1, 2, 3, 4]])
    swapped = torch.tensor([[2, 1, 3, 4]])
    assert not torch.allclose(model(tokens)[:, -1], model(swapped)[:, -1], atol=1e-3)


def test_rotary_positions_are_relative():
    # Without norms' help: the last place sees the same two tokens, once three positions further on
    # behind tokens that it is kept from by nothing but their values being zero.
    model = noisy(num_layers=1)
    block, positions = model.blocks[0], torch.arange(12)
    x = torch.randn(1, 5, C, dtype=torch.float64)
    early, late = (block(x, rotary=model.rotary(positions[s : s + 5])) for s in (0, 7))
    assert torch.allclose(early, late, atol=1e-12)


@each_kind
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("split", [[1] * 9, [5, 1, 1, 2], [9]])
def test_prefix_and_steps_with_a_cache_equal_the_whole(kind, exact, split):
    model, tokens = noisy(kind), some_tokens()
    cache, parts, end = model.new_cache(3, length=10), [], 0
    for part in tokens.split(split, 1):
        end += part.shape[1]
        parts.append(model(part, cache=cache.until(end) if exact else cache))
        assert cache.position.item() == end
    assert torch.allclose(torch.cat(parts, 1), model(tokens), atol=1e-12, rtol=0)
    cache.reset()
    assert torch.allclose(model(tokens[:, :4], cache=cache), model(tokens)[:, :4], atol=1e-12)


def test_logits_are_features_read_out_by_the_head():
    for kind in KINDS:
        model, tokens = noisy(kind), some_tokens()
        assert torch.equal(model(tokens), model.features(tokens) @ model.head_weight.T)
        assert (model.head_weight is model.embedding.weight) == model.config.tied


def test_a_tied_head_gets_the_sum_of_both_gradients():
    tied, loose, tokens = noisy(), noisy(tied=False), some_tokens()
    loose.load_state_dict(tied.state_dict() | {"head.weight": tied.head_weight.detach()})
    for model in (tied, loose):
        F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    both = loose.embedding.weight.grad + loose.head.weight.grad
    assert torch.allclose(tied.embedding.weight.grad, both, atol=1e-13)
    assert loose.embedding.weight.grad.abs().max() > 1e-4
    assert loose.head.weight.grad.abs().max() > 1e-4
    names = {n for n, _ in loose.named_parameters()} - {"embedding.weight", "head.weight"}
    grads = [dict(model.named_parameters()) for model in (tied, loose)]
    assert all(torch.allclose(grads[0][n].grad, grads[1][n].grad, atol=1e-13) for n in names)


@each_kind
def test_every_parameter_gets_a_gradient(kind):
    model = noisy(kind)
    F.cross_entropy(model(some_tokens()).flatten(0, 1), some_tokens().flatten()).backward()
    silent = [n for n, p in model.named_parameters() if not (p.grad.abs() > 1e-12).any()]
    # A bias on the keys adds the same to all scores of a query.
    assert silent == [f"blocks.{i}.attention.key.bias" for i in range(2)] * (kind == "published")


def test_dropout_acts_in_training_alone():
    model, plain, tokens = noisy(dropout=0.3), noisy(dropout=0.0), some_tokens()
    plain.load_state_dict(model.state_dict())
    assert not torch.allclose(model(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), plain(tokens))


@pytest.mark.parametrize("place", ["embedding", "attention", "mlp"])
def test_dropout_acts_on_the_embedding_and_on_each_sublayer(place):
    model, tokens = noisy(dropout=0.3, num_layers=1), some_tokens()
    block = model.blocks[0]
    with torch.no_grad():
        # With its other places silenced, what is left is random.
        if place != "attention":
            block.attention.output.weight.zero_()
        if place != "mlp":
            block.mlp.down.weight.zero_()
    if place != "embedding":
        model.dropout.eval()
    assert not torch.allclose(model(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), model(tokens))


def graphs(compilations):
    """A backend that keeps every graph and runs it as it is."""

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    return backend


@each_kind
def test_forward_and_a_step_trace_as_one_graph_each(kind, hook_off):
    torch._dynamo.reset()
    model, tokens, compilations = noisy(kind, num_layers=1), some_tokens(), []
    model.requires_grad_(False)
    traced = torch.compile(model, fullgraph=True, backend=graphs(compilations))
    want, cache = model(tokens), model.new_cache(3)
    assert torch.allclose(traced(tokens), want, atol=1e-12)
    model(tokens[:, :3], cache=cache)
    # One graph serves every place, whatever the cache holds.
    steps = [traced(tokens[:, t : t + 1], cache=cache) for t in range(3, 9)]
    assert torch.allclose(torch.cat(steps, 1), want[:, 3:], atol=1e-12)
    assert cache.position.item() == 9
    assert len(compilations) == 2


def test_a_compiler_that_rewrites_the_graph_keeps_the_cache(hook_off):
    torch._dynamo.reset()
    model, tokens = noisy(num_layers=1).requires_grad_(False), some_tokens()
    step, cache = torch.compile(model, fullgraph=True, backend="aot_eager"), model.new_cache(3)
    parts = [step(tokens[:, t : t + 1], cache=cache) for t in range(9)]
    assert torch.allclose(torch.cat(parts, 1), model(tokens), atol=1e-12)
    assert cache.position.item() == 9


@each_kind
def test_it_learns_eight_sequences_by_heart(kind):
    sizes = {"vocab_size": V, "context": CONTEXT, "width": 32, "num_heads": 2, "num_layers": 2}
    model, tokens = GPT(GPTConfig(**sizes | KINDS[kind])), some_tokens(CONTEXT, batch=8)
    # The first token tells which sequence it is.
    tokens[:, 0] = torch.arange(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    for _ in range(80):
        loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    written, cache = tokens[:, :1], model.new_cache(8)
    for _ in range(CONTEXT - 1):
        logits = model(written[:, -1:], cache=cache)
        written = torch.cat([written, logits[:, -1].argmax(1, keepdim=True)], 1)
    assert torch.equal(written, tokens)


@each_kind
@pytest.mark.parametrize("eps", [0.0, 0.3])
def test_eps_reaches_every_norm_zero_too(kind, eps):
    model = noisy(kind, eps=eps)
    norms = [m for name, m in model.named_modules() if name.endswith("norm")]
    assert len(norms) == 5
    assert all(norm.eps == eps for norm in norms)


def test_a_hidden_width_is_four_times_the_width_or_two_thirds_of_that():
    make = lambda **s: GPTConfig(vocab_size=2, **s).hidden_width  # noqa: E731
    assert make(width=96) == 384
    assert make(width=96, activation="swiglu") == 256
    assert make(width=100, num_heads=2, activation="swiglu") == 272
    assert make(width=96, hidden=7, activation="swiglu") == 7


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        *[({name: 0}, name) for name in ("vocab_size", "context", "width", "num_layers")],
        ({"num_heads": 0}, "num_heads"),
        ({"hidden": 0}, "hidden"),
        ({"num_heads": 5}, "num_heads"),
        ({"positions": "none"}, "positions .*'rotary', 'learned'"),
        ({"norm": "batch"}, "norm .*'layer', 'rms'"),
        ({"activation": "elu"}, "activation .*'gelu', 'gelu_tanh', 'relu', 'swiglu'"),
        ({"num_heads": 32}, "even width / num_heads"),
        ({"dropout": 1.0}, "dropout"),
        ({"dropout": -0.1}, "dropout"),
        ({"dropout": math.nan}, "dropout"),
        ({"eps": -1.0}, "eps"),
        ({"eps": math.nan}, "eps"),
    ],
)
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        GPTConfig(**{"vocab_size": 2} | settings)


def test_settings_at_their_limits_are_taken():
    GPTConfig(vocab_size=1, context=1, num_layers=1, hidden=1, dropout=0.0, eps=0.0)
    GPTConfig(vocab_size=1, width=9, num_heads=3, positions="learned")


def overflow():
    model = noisy()
    cache = model.new_cache(3, length=6)
    model(some_tokens(6), cache=cache)
    return model(some_tokens(1), cache=cache)


@pytest.mark.parametrize(
    ("call", "error", "name"),
    [
        (lambda: noisy()(some_tokens(13)), ValueError, "1 to 12 tokens"),
        (lambda: noisy()(some_tokens(0)), ValueError, "1 to 12 tokens"),
        (lambda: noisy()(some_tokens().float()), TypeError, "tokens"),
        (lambda: noisy()(some_tokens() + 11), ValueError, "tokens in 0 … 10"),
        (overflow, ValueError, "room for 7 tokens"),
        (
            lambda: noisy()(some_tokens(), cache=noisy().new_cache(2)),
            ValueError,
            "this cache's batch",
        ),
        (lambda: noisy().new_cache(3, length=13), ValueError, "length"),
    ],
)
def test_bad_input_is_named(hook_off, call, error, name):
    with pytest.raises(error, match=name):
        call()
