import math

import pytest
import torch
from noise import filled, normal
from torch import nn

from aigc_lib.models.diffusion.dit import AdaptiveBlock, DiT, DiTConfig

CLASSES = 3
SMALL = {"image_shape": (2, 6, 8), "width": 8, "num_layers": 2, "num_heads": 2}
SMALL |= {"num_classes": CLASSES, "text_width": 5}
# Sizes that reach every branch.
SIZES = [
    {},
    {"num_classes": 0},
    {"text_width": None},
    {"num_classes": 0, "text_width": None, "num_layers": 1},
    {"patch": 1},
    {"patch": 4, "image_shape": (1, 16, 8)},
]
VARIANTS = pytest.mark.parametrize("sizes", SIZES, ids=str)


def noisy(**sizes):
    return filled(DiT(DiTConfig(**SMALL | sizes)))


def inputs(model, batch=4, seed=0):
    """Images, conditions, labels, of which one is "none", and texts of one to three tokens."""
    config = model.config
    label = torch.arange(batch) % (CLASSES + 1) if config.num_classes else None
    text = mask = None
    if config.text_width:
        text = normal(batch, 3, config.text_width, seed=seed + 2)
        mask = torch.arange(3) <= torch.arange(batch)[:, None] % 3
    images = normal(batch, *config.image_shape, seed=seed)
    return [images, normal(batch, seed=seed + 1), label, text, mask]


def part(given, rows):
    return [None if x is None else x[rows] for x in given]


# Closed forms and brute force


def silu(x):
    return x / (1 + torch.exp(-x))


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def normalise(x):
    x = x - x.mean(2, keepdim=True)
    return x / (x.square().mean(2, keepdim=True) + 1e-6).sqrt()


def attend(x, memory, w, name, may):
    q, k, v = (
        linear(y, w, f"{name}.{kind}").unflatten(2, (2, -1)).transpose(1, 2)
        for y, kind in ((x, "query"), (memory, "key"), (memory, "value"))
    )
    weights = (q @ k.mT / math.sqrt(q.shape[3])).exp() * may
    found = weights / weights.sum(3, keepdim=True) @ v
    return linear(found.transpose(1, 2).flatten(2), w, f"{name}.output")


def bend(x):  # GELU by its tanh
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def block(x, e, text, may, w, name):
    shift, scale, gate, shift_2, scale_2, gate_2 = (
        linear(e, w, f"{name}.modulate")[:, None].unflatten(2, (6, -1)).unbind(2)
    )
    y = normalise(x) * (1 + scale) + shift
    x = x + gate * attend(y, y, w, f"{name}.attention", 1)
    if text is not None:
        x = x + attend(normalise(x), text, w, f"{name}.cross", may)
    hidden = bend(linear(normalise(x) * (1 + scale_2) + shift_2, w, f"{name}.mlp.up"))
    return x + gate_2 * linear(hidden, w, f"{name}.mlp.down")


@torch.no_grad()
@pytest.mark.parametrize("text_width", [5, None])
def test_it_is_the_model_written_out(text_width):
    model = noisy(text_width=text_width)
    w, (x, condition, label, text, mask) = dict(model.named_parameters()), inputs(model)

    def wave(t, width):
        angles = t * 10_000 ** (-torch.arange(0, width, 2).double() / width)
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)

    e = silu(linear(wave(30 * condition[:, None], 8), w, "condition_1"))
    e = silu(linear(e, w, "condition_2") + w["label.weight"][label])
    tokens = []
    for row in range(3):
        for column in range(4):
            patch = x[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].flatten(1)
            tokens.append(linear(patch, w, "first") + torch.cat([wave(row, 4), wave(column, 4)]))
    h = torch.stack(tokens, 1)
    if text is not None:
        text, mask = linear(text, w, "text"), mask[:, None, None].double()
    for i in range(2):
        h = block(h, e, text, mask, w, f"blocks.{i}")
    shift, scale = linear(e, w, "modulate")[:, None].tensor_split(2, 2)
    h = linear(normalise(h) * (1 + scale) + shift, w, "last")
    expected = torch.empty_like(x)
    for i in range(12):
        row, column = 2 * (i // 4), 2 * (i % 4)
        expected[:, :, row : row + 2, column : column + 2] = h[:, i].unflatten(1, (2, 2, 2))
    assert torch.allclose(model(*inputs(model)), expected, atol=1e-11)


class Told(nn.Module):
    """In place of diffusers' embeddings of time and label: a vector for each example."""

    def __init__(self, vectors):
        super().__init__()
        self.vectors = vectors

    def forward(self, timestep, class_labels, hidden_dtype):
        return self.vectors


@torch.no_grad()
@pytest.mark.parametrize("has_cross", [False, True])
def test_a_block_is_that_of_diffusers(has_cross):
    from diffusers.models.attention import BasicTransformerBlock

    ours, e = filled(AdaptiveBlock(12, 3, has_cross)), normal(4, 12)
    theirs = BasicTransformerBlock(
        12, 3, 4, activation_fn="gelu-approximate", num_embeds_ada_norm=10, attention_bias=True,
        norm_type="ada_norm_zero", norm_elementwise_affine=False, norm_eps=1e-6,
        cross_attention_dim=12 if has_cross else None,
    ).double()  # fmt: skip
    theirs.norm1.emb = Told(e)
    names = {"norm1.linear": "modulate", "ff.net.0.proj": "mlp.up", "ff.net.2": "mlp.down"}
    for part, name in (("attn1", "attention"), ("attn2", "cross")):
        names |= {f"{part}.to_{kind[0]}": f"{name}.{kind}" for kind in ("query", "key", "value")}
        names[f"{part}.to_out.0"] = f"{name}.output"
    parameters = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        module, kind = name.rsplit(".", 1)
        parameter.copy_(parameters.pop(f"{names[module]}.{kind}"))
    assert not parameters
    x, text = normal(4, 6, 12, seed=1), normal(4, 3, 12, seed=2) if has_cross else None
    mask = (torch.arange(3) <= torch.arange(4)[:, None] % 3) if has_cross else None
    options = {}
    if has_cross:
        options = {"encoder_hidden_states": text, "encoder_attention_mask": mask[:, None]}
    want = theirs(x, timestep=torch.zeros(4).long(), **options)
    got = ours(x, nn.functional.silu(e), text, None if mask is None else mask[:, None, None])
    assert torch.allclose(got, want, atol=1e-12)
    assert not torch.allclose(got, x, atol=0.1)


def test_positions_are_those_of_diffusers_in_another_order():
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    model = DiT(DiTConfig(image_shape=(1, 12, 12), width=16)).double()
    theirs = get_2d_sincos_pos_embed(16, 6, base_size=6, output_type="pt").double()
    columns, rows = theirs.unflatten(1, (2, 2, 4)).mT.flatten(2).unbind(1)  # sines, then cosines
    assert torch.allclose(model._places(), torch.cat([rows, columns], 1), atol=1e-6)


@VARIANTS
def test_a_fresh_net_gives_zeros_and_does_not_stay_there(sizes):
    model = DiT(DiTConfig(**SMALL | sizes)).double()
    given = inputs(model)
    out = model(*given)
    assert out.shape == given[0].shape
    assert (out == 0).all()
    (out * normal(*out.shape, seed=5)).sum().backward()
    assert model.last.weight.grad.abs().max() > 0


@pytest.mark.parametrize("has_cross", [False, True])
def test_a_fresh_block_changes_nothing_and_does_not_stay_so(has_cross):
    fresh = AdaptiveBlock(8, 2, has_cross).double()
    x, e, text = normal(3, 5, 8), normal(3, 8, seed=1), normal(3, 2, 8, seed=2)
    out = fresh(x, e, text)
    assert torch.equal(out, x)
    (out * normal(*out.shape, seed=5)).sum().backward()
    gradients = fresh.modulate.weight.grad.unflatten(0, (6, 8)).abs().amax((1, 2))
    assert (gradients > 0).tolist() == [False, False, True, False, False, True]  # of the gates
    assert not has_cross or fresh.cross.output.weight.grad.abs().max() > 0


def test_the_default_has_as_many_parameters_as_its_matrices_say():
    def count(**sizes):
        return sum(p.numel() for p in DiT(DiTConfig(**sizes)).parameters())

    c = 96
    per_block = 4 * (c * c + c) + 8 * c * c + 5 * c + 6 * (c * c + c)
    whole = 4 * per_block + 2 * (c * c + c) + (4 * c + c) + 2 * (c * c + c) + (4 * c + 4)
    assert count() == whole
    assert count(num_classes=10) == whole + 11 * c
    assert count(text_width=7) == whole + 8 * c + 4 * 4 * (c * c + c)


# Invariances


@torch.no_grad()
@VARIANTS
def test_each_image_is_worked_on_alone(sizes):
    model = noisy(**sizes)
    given, order = inputs(model), torch.tensor([3, 0, 2, 1])
    whole = model(*given)
    assert torch.allclose(model(*part(given, order)), whole[order], atol=1e-11)
    assert torch.allclose(model(*part(given, slice(0, 1))), whole[:1], atol=1e-11)


@torch.no_grad()
def test_no_label_is_a_label_of_its_own():
    model = noisy()
    x, condition, _, text, mask = inputs(model)

    def of(label):
        return model(x, condition, label, text, mask)

    outputs = [of(torch.full((4,), k)) for k in range(CLASSES + 1)]
    assert torch.equal(of(None), outputs[CLASSES])
    for k in range(CLASSES + 1):
        assert not torch.allclose(outputs[k], outputs[k - 1], atol=1e-3)
    model.label.weight[:2] += 1
    assert torch.equal(of(torch.full((4,), 2)), outputs[2])


@torch.no_grad()
def test_what_the_mask_hides_does_not_matter():
    model = noisy()
    x, condition, label, text, mask = inputs(model)
    want = model(x, condition, label, text, mask)
    other = torch.where(mask[..., None], text, 100 + text)
    assert torch.allclose(model(x, condition, label, other, mask), want, atol=1e-11)
    for row in range(4):  # the same as a text that ends there
        given = part([x, condition, label, text], slice(row, row + 1))
        given[3] = given[3][:, : int(mask[row].sum())]
        assert torch.allclose(model(*given), want[row : row + 1], atol=1e-11)


@torch.no_grad()
def test_what_the_mask_shows_does_matter_and_its_order_does_not():
    model = noisy()
    x, condition, label, text, mask = inputs(model)
    want = model(x, condition, label, text, mask)
    for token in range(3):
        other = text.clone()
        other[:, token] += 1
        moved = (model(x, condition, label, other, mask) - want).flatten(1).abs().amax(1)
        assert ((moved > 1e-3) == mask[:, token]).all()
    order = torch.tensor([2, 0, 1])
    mixed = model(x, condition, label, text[:, order], mask[:, order])
    assert torch.allclose(mixed, want, atol=1e-11)
    everywhere = model(x, condition, label, text, torch.ones(4, 3).bool())
    assert torch.allclose(model(x, condition, label, text), everywhere, atol=1e-11)


@torch.no_grad()
def test_patches_change_places_with_their_positions_alone():
    model = noisy()
    x, *others = inputs(model)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))

    def moved(images):
        patches = images.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3)[:, :, order]
        return patches.unflatten(2, (3, 4)).permute(0, 1, 2, 4, 3, 5).reshape(images.shape)

    assert not torch.allclose(model(moved(x), *others), moved(model(x, *others)), atol=1e-2)
    model.positions.table.zero_()
    assert torch.allclose(model(moved(x), *others), moved(model(x, *others)), atol=1e-11)


@torch.no_grad()
def test_conditions_of_order_one_and_of_a_thousand_are_told_apart():
    model = noisy(num_classes=0, text_width=None)
    x = inputs(model, 1)[0].expand(6, -1, -1, -1)
    for conditions in ([-5.0, -1, 0, 0.05, 1, 5], [0.0, 1, 2, 500, 998, 999]):
        out = model(x, torch.tensor(conditions, dtype=torch.float64)).flatten(1)
        assert torch.pdist(out).min() > 0.02
    other = noisy(num_classes=0, text_width=None, scale=3.0)
    steps = torch.arange(6).double()
    assert torch.allclose(other(x, steps), model(x, steps / 10))


@VARIANTS
def test_every_parameter_has_a_gradient(sizes):
    model = noisy(**sizes)
    out = model(*inputs(model))
    (out * normal(*out.shape, seed=5)).sum().backward()
    for name, p in model.named_parameters():
        if not name.endswith("key.bias"):  # it moves all scores of a row alike
            assert p.grad.abs().max() > 1e-6, name


def test_a_condition_may_be_more_exact_than_the_images():
    model = noisy().float()
    x, condition, label, text, mask = inputs(model)
    out = model(x.float(), condition, label, text.float(), mask)
    assert out.dtype == torch.float32
    exact = noisy()(x, condition, label, text, mask)
    assert torch.allclose(out.double(), exact, rtol=1e-3, atol=1e-3)


def test_it_runs_under_autocast():
    model = noisy().float()
    given = [x.float() if x is not None and x.is_floating_point() else x for x in inputs(model)]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(*given)
    want = model(*given)
    assert (out - want).square().mean() < 0.01 * want.square().mean()
    out.sum().backward()


def test_compiling_changes_nothing(hook_off):
    model = noisy()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(*inputs(model)), model(*inputs(model)), atol=1e-11)


# Behaviour


def test_it_learns_eight_answers_to_one_image():
    # The same image eight times: condition, label and text alone say what is wanted.
    model = DiT(DiTConfig(**SMALL | {"num_classes": 2, "width": 16}))
    x = normal(1, 2, 6, 8).float().expand(8, -1, -1, -1)
    condition = torch.tensor([-1.0, 1.0]).repeat(4)
    label = torch.tensor([0, 1]).repeat_interleave(4)
    text = normal(2, 3, 5).float().repeat_interleave(2, 0).repeat(2, 1, 1)
    wanted = normal(8, 2, 6, 8, seed=1).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = (model(x, condition, label, text) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


# Bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("image_shape", shape) for shape in [(1, 16), (0, 16, 16), (1, 17, 16), (1, 16, 7)]),
        *((name, 0) for name in ("width", "num_layers", "num_heads", "patch", "scale")),
        *((name, -1) for name in ("num_classes", "scale", "text_width")),
        ("text_width", 0),
        ("width", 10),
        ("num_layers", 1.5),
    ],
)
def test_a_size_out_of_range_is_named(hook_off, name, value):
    with pytest.raises(ValueError, match=f"expected .*{name}"):
        DiTConfig(**{name: value})


X, CONDITION, LABEL, TEXT, MASK = inputs(noisy())
BAD = {
    "another size": (ValueError, "x", {"x": X[..., :6]}),
    "one axis less": (ValueError, "x", {"x": X[0]}),
    "fewer conditions": (ValueError, "condition", {"condition": CONDITION[:3]}),
    "conditions of two axes": (ValueError, "condition", {"condition": CONDITION[:, None]}),
    "fewer labels": (ValueError, "labels", {"label": LABEL[:3]}),
    "labels of floats": (TypeError, "labels", {"label": LABEL.double()}),
    "labels too large": (ValueError, "labels", {"label": LABEL + 1}),
    "negative labels": (ValueError, "labels", {"label": LABEL - 1}),
    "no text": (ValueError, "text", {"text": None, "text_mask": None}),
    "fewer texts": (ValueError, "text", {"text": TEXT[:3]}),
    "a text of another width": (ValueError, "text", {"text": TEXT[..., :4]}),
    "a longer mask": (ValueError, "text_mask", {"text_mask": torch.ones(4, 4).bool()}),
    "a mask of fewer texts": (ValueError, "text_mask", {"text_mask": MASK[:3]}),
    "a mask of numbers": (TypeError, "text_mask", {"text_mask": MASK.double()}),
}


@pytest.mark.parametrize(("error", "name", "other"), BAD.values(), ids=BAD)
def test_input_that_does_not_fit_is_named(hook_off, error, name, other):
    given = {"x": X, "condition": CONDITION, "label": LABEL, "text": TEXT, "text_mask": MASK}
    with pytest.raises(error, match=f"expected .*{name}"):
        noisy()(**given | other)


@pytest.mark.parametrize(
    ("wanted", "given"),
    [("no text", [TEXT]), ("no text", [TEXT, MASK]), ("text beside text_mask", [None, MASK])],
)
def test_texts_that_nobody_asked_for_are_refused(hook_off, wanted, given):
    with pytest.raises(ValueError, match=f"expected {wanted}"):
        noisy(text_width=None)(X, CONDITION, LABEL, *given)


def test_labels_that_nobody_asked_for_are_refused(hook_off):
    with pytest.raises(ValueError, match="expected no labels"):
        noisy(num_classes=0)(X, CONDITION, LABEL, TEXT)


def test_heads_that_do_not_divide_the_width_are_named(hook_off):
    with pytest.raises(ValueError, match="expected num_heads"):
        noisy(num_heads=3)
