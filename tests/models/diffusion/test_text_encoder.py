import pytest
import torch
from noise import filled, normal
from torch import nn

from aigc_lib.models.diffusion.text_encoder import TextEncoder, TextEncoderConfig

SMALL = {"vocab_size": 9, "context": 6, "width": 16, "num_heads": 2}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 8], [2, 7, 1, 0, 0, 0], [6, 0, 0, 0, 0, 0], [0] * 6])
SEEN = TOKENS != 0
SEEN[3, 0] = True


def noisy(**sizes):
    return filled(TextEncoder(TextEncoderConfig(**SMALL | sizes)))


# An independent reference


@torch.no_grad()
@pytest.mark.parametrize("num_layers", [0, 1, 3])
def test_it_is_the_encoder_of_torch_with_turned_queries_and_keys(num_layers):
    model = noisy(num_layers=num_layers)
    ours, x = dict(model.named_parameters()), model.embedding.weight[TOKENS]
    for i in range(num_layers):
        own = {
            name.split(".", 2)[2]: p for name, p in ours.items() if name.startswith(f"blocks.{i}.")
        }
        h = nn.functional.layer_norm(
            x, (16,), own["attention_norm.weight"], own["attention_norm.bias"]
        )
        q, k, v = (
            (h @ own[f"attention.{kind}.weight"].T).reshape(4, 6, 2, 8).transpose(1, 2)
            for kind in ("query", "key", "value")
        )
        q, k = turned(q), turned(k)
        x = x + (
            nn.functional.scaled_dot_product_attention(q, k, v, SEEN[:, None, None])
            .transpose(1, 2)
            .flatten(2)
            @ own["attention.output.weight"].T
        )
        h = nn.functional.layer_norm(x, (16,), own["mlp_norm.weight"], own["mlp_norm.bias"])
        x = x + nn.functional.gelu(h @ own["mlp.up.weight"].T) @ own["mlp.down.weight"].T
    want = nn.functional.layer_norm(x, (16,), model.norm.weight, model.norm.bias)
    text, mask = model(TOKENS)
    assert torch.equal(mask, SEEN)
    assert torch.allclose(text[SEEN], want[SEEN], atol=1e-11)


def turned(x):
    """Each pair of numbers as a complex one, times e to the i · position · speed."""
    speeds = 10_000 ** (-torch.arange(0, 8, 2).double() / 8)
    angles = torch.arange(6.0).double()[:, None] * speeds
    pairs = torch.complex(x[..., ::2], x[..., 1::2]) * torch.exp(1j * angles)
    return torch.stack([pairs.real, pairs.imag], -1).flatten(-2)


# Invariances


@torch.no_grad()
def test_padding_changes_nothing():
    model = noisy()
    text, mask = model(TOKENS)
    for row, length in ((1, 3), (2, 1), (3, 1)):
        for places in range(length, 6):
            shorter, seen = model(TOKENS[row : row + 1, :places])
            assert torch.allclose(shorter[0, :length], text[row, :length], atol=1e-12)
            assert torch.equal(seen[0], mask[row, :places])
            assert seen.sum() == length
    model.embedding.weight[0] += 5 * normal(16)
    assert torch.equal(model(TOKENS)[0][:3][SEEN[:3]], text[:3][SEEN[:3]])


@torch.no_grad()
def test_padding_before_the_words_is_not_seen_either():
    model = noisy()
    text, mask = model(torch.tensor([[0, 0, 3, 4]]))
    assert mask.tolist() == [[False, False, True, True]]
    model.embedding.weight[0] += normal(16)
    assert torch.equal(model(torch.tensor([[0, 0, 3, 4]]))[0][mask], text[mask])


@torch.no_grad()
def test_the_empty_caption_is_one_vector_of_its_own_that_may_be_attended_to():
    model = noisy()
    text, mask = model(TOKENS)
    assert mask[3].tolist() == [True] + 5 * [False]
    assert mask.any(1).all()
    others = [model(torch.tensor([[token]]))[0][0, 0] for token in range(1, 9)]
    assert min((text[3, 0] - other).abs().max() for other in others) > 0.1
    model.embedding.weight[0] += normal(16)
    assert (model(TOKENS)[0][3, 0] - text[3, 0]).abs().max() > 0.1


def test_the_empty_caption_alone_teaches_what_none_is():
    model = noisy()
    for tokens, learns in ((TOKENS[:3], False), (TOKENS[3:], True)):
        model.zero_grad()
        text, mask = model(tokens)
        (text[mask] * normal(*text[mask].shape)).sum().backward()
        assert bool(model.embedding.weight.grad[0].abs().max() > 1e-6) is learns


@torch.no_grad()
def test_the_order_of_words_matters():
    model = noisy()
    words = torch.tensor([[1, 2, 3], [3, 2, 1], [2, 1, 3]])
    means = model(words)[0].mean(1)
    assert torch.pdist(means).min() > 1e-3
    # Word by word, too, and at its own place: the middle word is the same in the first two.
    text, _ = model(words)
    assert (text[0, 1] - text[1, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_each_caption_is_read_alone():
    model = noisy()
    text, mask = model(TOKENS)
    order = torch.tensor([3, 0, 2, 1])
    mixed, seen = model(TOKENS[order])
    assert torch.allclose(mixed, text[order], atol=1e-12)
    assert torch.equal(seen, mask[order])
    for row in range(4):
        alone, _ = model(TOKENS[row : row + 1])
        assert torch.allclose(alone[0][mask[row]], text[row][mask[row]], atol=1e-12)


@torch.no_grad()
def test_every_word_sees_every_other():
    model, tokens = noisy(), TOKENS[:1]
    text, _ = model(tokens)
    for changed in range(6):
        other = tokens.clone()
        other[0, changed] = 2
        away = (model(other)[0] - text)[0].abs().amax(1)
        assert (away > 1e-3).all()


def test_every_parameter_has_a_gradient():
    model = noisy()
    text, mask = model(TOKENS)
    (text[mask] * normal(*text[mask].shape)).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 1e-6, name


def test_the_tokens_stay_as_they_are():
    tokens = TOKENS.clone()
    noisy()(tokens)
    assert torch.equal(tokens, TOKENS)


def test_compiling_changes_nothing(hook_off):
    model = noisy()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(TOKENS)[0], model(TOKENS)[0], atol=1e-12)


# Behaviour


def test_it_tells_captions_of_the_same_words_apart():
    model, head = TextEncoder(TextEncoderConfig(**SMALL)), nn.Linear(16, 8)
    captions = [torch.randperm(5) + 1 for _ in range(6)]
    tokens = torch.stack([padded(c, 6) for c in [*captions, torch.tensor([1, 2]), torch.zeros(0)]])
    assert len({tuple(row.tolist()) for row in tokens}) == 8
    optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(80):
        text, mask = model(tokens)
        mean = (text * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        loss = nn.functional.cross_entropy(head(mean), torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def padded(words, length):
    return nn.functional.pad(words.long(), (0, length - len(words)))


# Bad input


@pytest.mark.parametrize(
    ("error", "name", "tokens"),
    [
        (ValueError, "tokens", TOKENS + 4),
        (ValueError, "tokens", TOKENS - 1),
        (ValueError, "tokens", TOKENS.repeat(1, 2)),
        (ValueError, "tokens", TOKENS[:, :0]),
        (ValueError, "tokens", TOKENS[0]),
        (TypeError, "tokens", TOKENS.double()),
        (TypeError, "tokens", TOKENS != 0),
    ],
)
def test_tokens_that_do_not_fit_are_named(hook_off, error, name, tokens):
    with pytest.raises(error, match=f"expected .*{name}"):
        noisy()(tokens)


@pytest.mark.parametrize(
    ("name", "value"),
    [("vocab_size", 0), ("context", 0), ("width", 0), ("num_heads", 3), ("num_heads", 0)],
)
def test_a_size_out_of_range_is_named(hook_off, name, value):
    with pytest.raises(ValueError, match=f"expected .*{name}"):
        TextEncoder(TextEncoderConfig(**SMALL | {name: value}))
