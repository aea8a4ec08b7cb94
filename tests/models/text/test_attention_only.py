import pytest
import torch
import torch.nn.functional as F

from aigc_lib.data import recall
from aigc_lib.layers.positions import sinusoidal
from aigc_lib.models.text.attention_only import AttentionOnly, AttentionOnlyConfig


def noisy(**settings):
    sizes = {"num_tokens": 9, "num_logits": 4, "width": 6, "num_heads": 2}
    model = AttentionOnly(AttentionOnlyConfig(**sizes | settings)).double()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


def some_tokens(length=5, features=2):
    draw = torch.Generator().manual_seed(2)
    return torch.randint(9, (3, length, features), generator=draw)


def test_silent_layers_leave_embeddings_positions_and_readout():
    model, tokens = noisy(num_layers=2), some_tokens()
    with torch.no_grad():
        for layer in model.layers:
            layer.output.weight.zero_()
    table = model.embedding.weight
    stream = table[tokens[..., 0]] + table[tokens[..., 1]]
    stream = stream + sinusoidal(torch.arange(5, dtype=torch.float64), 6)
    assert torch.allclose(model(tokens), stream @ model.readout.weight.T, atol=1e-12)


@pytest.mark.parametrize("is_causal", [True, False])
def test_each_layer_adds_what_its_maps_fetch(is_causal):
    model, tokens = noisy(num_layers=2, is_causal=is_causal), some_tokens()
    x = model.embedding(tokens).sum(2) + sinusoidal(torch.arange(5, dtype=torch.float64), 6)
    maps = model.maps(tokens)
    assert [m.shape for m in maps] == [(3, 2, 5, 5)] * 2
    for layer, weights in zip(model.layers, maps, strict=True):
        values = (x @ layer.value.weight.T).unflatten(2, (2, 3)).transpose(1, 2)
        fetched = (weights @ values).transpose(1, 2).flatten(2)
        x = x + fetched @ layer.output.weight.T
        assert (weights.triu(1) == 0).all() == is_causal
    assert torch.allclose(model(tokens), x @ model.readout.weight.T, atol=1e-12)


@pytest.mark.parametrize(("layers", "is_causal"), [(1, True), (1, False), (3, False)])
def test_without_positions_the_last_token_sees_a_bag(layers, is_causal):
    # The reason why such a model can do no better than guess on interleaved facts.
    order = torch.tensor([2, 0, 3, 1, 4])
    tokens = some_tokens()
    model = noisy(num_layers=layers, is_causal=is_causal, positions=False)
    assert torch.allclose(model(tokens[:, order])[:, -1], model(tokens)[:, -1], atol=1e-9)
    model = noisy(num_layers=layers, is_causal=is_causal, positions=True)
    assert not torch.allclose(model(tokens[:, order])[:, -1], model(tokens)[:, -1], atol=1e-2)


def test_two_causal_layers_see_order_without_positions():
    order, tokens = torch.tensor([2, 0, 3, 1, 4]), some_tokens()
    model = noisy(num_layers=2, positions=False)
    assert not torch.allclose(model(tokens[:, order])[:, -1], model(tokens)[:, -1], atol=1e-2)


@pytest.mark.parametrize("layers", [1, 2])
def test_the_future_does_not_change_the_past(layers):
    model, tokens = noisy(num_layers=layers), some_tokens()
    out = model(tokens)
    for t in range(1, 5):
        other = tokens.clone()
        other[:, t:] = (other[:, t:] + 1) % 9
        assert torch.allclose(model(other)[:, :t], out[:, :t], atol=1e-12)
        assert not torch.allclose(model(other)[:, t], out[:, t], atol=1e-2)


def test_maps_leave_no_gradient_and_every_parameter_of_forward_gets_one():
    model, tokens = noisy(num_layers=2), some_tokens()
    assert not any(m.requires_grad for m in model.maps(tokens))
    model(tokens).square().sum().backward()
    assert all((p.grad != 0).any() for p in model.parameters())


def trained(make, steps, *, pairs, symbols, width, answers=1, **settings):
    """Recall of each answer on fresh sequences after a short training, the model, a batch."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(0)
    sizes = {"num_tokens": 3 * symbols + 1, "num_logits": answers * symbols, "width": width}
    model = AttentionOnly(AttentionOnlyConfig(**sizes, **settings))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def logits(batch):
        return model(batch.tokens)[:, -pairs:].unflatten(2, (answers, symbols))

    for _ in range(steps):
        batch = make(width, draw, pairs=pairs, symbols=symbols)
        optimizer.zero_grad()
        F.cross_entropy(logits(batch).flatten(0, 2), batch.answers.flatten()).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        batch = make(500, draw, pairs=pairs, symbols=symbols)
        right = logits(batch).argmax(3) == batch.answers
    return right.float().mean((0, 1)), model, batch


def test_one_layer_recalls_joined_facts():
    sizes = {"pairs": 4, "symbols": 8, "width": 48}
    recalled, _, _ = trained(recall.joined, 60, positions=False, **sizes)
    assert recalled.min() > 0.99


def test_one_head_answers_one_of_two_questions_and_two_heads_both():
    sizes = {"pairs": 4, "symbols": 8, "width": 48, "answers": 2, "positions": False}
    recalled, _, _ = trained(recall.two_keys, 60, **sizes)
    assert recalled.max() > 0.9
    assert recalled.min() < 0.2
    recalled, _, _ = trained(recall.two_keys, 100, num_heads=2, **sizes)
    assert recalled.min() > 0.99


def test_one_layer_guesses_and_two_layers_recall_interleaved_facts():
    sizes = {"pairs": 4, "symbols": 6, "width": 48}
    recalled, _, _ = trained(recall.interleaved, 60, num_heads=4, **sizes)
    assert recalled.item() == pytest.approx(1 / 4, abs=4 * (3 / 16 / 2000) ** 0.5)
    recalled, model, batch = trained(recall.interleaved, 150, num_layers=2, **sizes)
    assert recalled.item() > 0.99
    values = batch.sources[..., 0]
    first, last = (m[:, 0] for m in model.maps(batch.tokens))
    rows = torch.arange(500)[:, None]
    questions = torch.arange(first.shape[1])[-4:].expand(500, 4)
    assert last[rows, questions, values].mean() > 0.8
    assert first[rows, values, values - 1].mean() > 0.5


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        *[({name: 0}, name) for name in ("num_tokens", "num_logits", "width", "num_heads")],
        ({"num_layers": 0}, "num_layers"),
        ({"width": 5}, "width"),
        ({"width": 6, "num_heads": 4}, "num_heads"),
    ],
)
def test_bad_settings_are_named(settings, name):
    with pytest.raises(ValueError, match=name):
        AttentionOnlyConfig(**{"num_tokens": 2, "num_logits": 2} | settings)


@pytest.mark.parametrize(
    "call", [lambda tokens: noisy()(tokens), lambda tokens: noisy().maps(tokens)]
)
def test_tokens_of_another_kind_are_refused(hook_off, call):
    with pytest.raises(ValueError, match="tokens"):
        call(some_tokens()[..., 0])
    with pytest.raises(TypeError, match="tokens"):
        call(some_tokens().float())
