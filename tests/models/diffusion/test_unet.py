import math

import pytest
import torch
import torch.nn.functional as F
from noise import filled, normal

from aigc_lib.models.diffusion.unet import Level, ResidualBlock, UNet, UNetConfig

CLASSES = 3
SMALL = {"image_shape": (2, 8, 8), "width": 16, "num_heads": 2, "num_classes": CLASSES}
# Sizes that reach every branch.
SIZES = [
    {},
    {"num_classes": 0},
    {"num_heads": 0},
    {"multipliers": (1,)},
    {"multipliers": (1, 2, 3), "image_shape": (1, 16, 24)},
    {"num_blocks": 2},
    {"patch": 1},
    {"patch": 4, "image_shape": (1, 16, 16)},
]
VARIANTS = pytest.mark.parametrize("sizes", SIZES, ids=str)


def noisy(**sizes):
    return filled(UNet(UNetConfig(**SMALL | sizes)), std=0.2)


def inputs(model, batch=4, seed=0):
    """Images, conditions and labels, of which one is "none"."""
    config = model.config
    label = torch.arange(batch) % (CLASSES + 1) if config.num_classes else None
    return normal(batch, *config.image_shape, seed=seed), normal(batch, seed=seed + 1), label


# Closed forms and brute force


def normalise(x, w, name, groups=8):
    """GroupNorm, an example and a group at a time."""
    parts = [
        (part - part.mean()) / (part.var(correction=0) + 1e-5).sqrt()
        for example in x
        for part in example.chunk(groups)
    ]
    scale, shift = (w[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
    return scale * torch.cat(parts).view_as(x) + shift


def silu(x):
    return x / (1 + torch.exp(-x))


def conv(x, w, name, **settings):
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **settings)


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)


def block(x, e, w, name):
    h = conv(silu(normalise(x, w, f"{name}.norm_1")), w, f"{name}.conv_1", padding=1)
    s, b = linear(e, w, f"{name}.modulate")[:, :, None, None].tensor_split(2, 1)
    h = silu(normalise(h, w, f"{name}.norm_2") * (1 + s) + b)
    skip = conv(x, w, f"{name}.skip") if f"{name}.skip.weight" in w else x
    return skip + conv(h, w, f"{name}.conv_2", padding=1)


def attend(h, w, name, heads):
    places = normalise(h, w, f"{name}.norm").flatten(2).mT
    q, k, v = (
        linear(places, w, f"{name}.attention.{kind}").unflatten(2, (heads, -1)).transpose(1, 2)
        for kind in ("query", "key", "value")
    )
    found = (q @ k.mT / math.sqrt(q.shape[3])).softmax(3) @ v
    found = linear(found.transpose(1, 2).flatten(2), w, f"{name}.attention.output")
    return h + found.mT.reshape(h.shape)


@torch.no_grad()
def test_it_is_the_model_written_out():
    model = noisy()
    w, (x, condition, label) = dict(model.named_parameters()), inputs(model)
    angles = 30 * condition[:, None] * 10_000 ** (-torch.arange(0, 16, 2).double() / 16)
    p = torch.stack([angles.sin(), angles.cos()], 2).flatten(1)
    e = linear(silu(linear(p, w, "condition_1")), w, "condition_2") + w["label.weight"][label]
    e = silu(e)
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2)  #  B C Y/2 X/2 2 2
    h = conv(patches.permute(0, 1, 4, 5, 2, 3).flatten(1, 3), w, "first", padding=1)
    seen = block(h, e, w, "level.before.0")
    h = conv(seen, w, "level.shrink", padding=1, stride=2)
    h = block(h, e, w, "level.inner.before.0")
    h = attend(h, w, "level.inner", heads=2)
    h = block(h, e, w, "level.inner.after.0")
    h = conv(h, w, "level.grow", padding=1)
    h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    h = block(torch.cat([h, seen], 1), e, w, "level.after.0")
    h = conv(silu(normalise(h, w, "norm")), w, "last", padding=1).unflatten(1, (2, 2, 2))
    expected = h.permute(0, 1, 4, 2, 5, 3).reshape(x.shape)
    assert torch.allclose(model(x, condition, label), expected, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("inputs", [16, 8])
def test_a_block_is_that_of_diffusers(inputs):
    from diffusers.models.resnet import ResnetBlock2D

    ours = filled(ResidualBlock(inputs, 16, 12))
    theirs = ResnetBlock2D(
        in_channels=inputs,
        out_channels=16,
        temb_channels=12,
        groups=8,
        eps=1e-5,
        time_embedding_norm="scale_shift",
        skip_time_act=True,  # e has had its SiLU
    ).double()
    names = {"norm1": "norm_1", "conv1": "conv_1", "time_emb_proj": "modulate"}
    names |= {"norm2": "norm_2", "conv2": "conv_2", "conv_shortcut": "skip"}
    parameters = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        module, kind = name.split(".")
        parameter.copy_(parameters.pop(f"{names[module]}.{kind}"))
    assert not parameters
    x, e = normal(3, inputs, 4, 6), normal(3, 12, seed=1)
    assert torch.allclose(ours(x, e), theirs(x, e), atol=1e-12)


def test_the_course_s_net_has_about_300_000_parameters():
    count = sum(p.numel() for p in UNet(UNetConfig(num_classes=10)).parameters())
    assert 280_000 < count < 340_000


@VARIANTS
def test_a_fresh_net_gives_zeros_and_does_not_stay_there(sizes):
    model = UNet(UNetConfig(**SMALL | sizes)).double()
    x, condition, label = inputs(model)
    out = model(x, condition, label)
    assert out.shape == x.shape
    assert (out == 0).all()
    (out * normal(*out.shape, seed=5)).sum().backward()
    assert model.last.weight.grad.abs().max() > 0


# Invariances


@torch.no_grad()
@VARIANTS
def test_each_image_is_worked_on_alone(sizes):
    model = noisy(**sizes)
    x, condition, label = inputs(model)
    whole = model(x, condition, label)
    order = torch.tensor([3, 0, 2, 1])
    got = model(x[order], condition[order], None if label is None else label[order])
    assert torch.allclose(got, whole[order], atol=1e-11)
    alone = model(x[:1], condition[:1], None if label is None else label[:1])
    assert torch.allclose(alone, whole[:1], atol=1e-11)


@torch.no_grad()
def test_no_label_is_a_label_of_its_own():
    model = noisy()
    x, condition, _ = inputs(model)
    outputs = [model(x, condition, torch.full((4,), k)) for k in range(CLASSES + 1)]
    assert torch.equal(model(x, condition), outputs[CLASSES])
    for k in range(CLASSES + 1):
        assert not torch.allclose(outputs[k], outputs[k - 1], atol=1e-3)
    model.label.weight[:2] += 1
    assert torch.equal(model(x, condition, torch.full((4,), 2)), outputs[2])


@torch.no_grad()
def test_conditions_of_order_one_and_of_a_thousand_are_told_apart():
    model = noisy()
    x = inputs(model, 1)[0].expand(6, -1, -1, -1)
    for conditions in ([-5.0, -1, 0, 0.05, 1, 5], [0.0, 1, 2, 500, 998, 999]):
        out = model(x, torch.tensor(conditions, dtype=torch.float64)).flatten(1)
        assert torch.pdist(out).min() > 0.05
    other = noisy(scale=3.0)
    assert torch.allclose(
        other(x, torch.arange(6).double()), model(x, torch.arange(6).double() / 10)
    )


@torch.no_grad()
def test_an_images_places_do_not_matter_to_attention_alone():
    # A net of one level and convolutions of one place would not see where a place is.
    model = noisy(multipliers=(1,), patch=1)
    for name, weight in model.named_parameters():
        if weight.ndim == 4:
            middle = weight[..., 1:2, 1:2].clone()
            weight.zero_()[..., 1:2, 1:2] = middle
        assert "skip" not in name
    x, condition, label = inputs(model)
    whole = model(x, condition, label)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    mixed = model(x.flatten(2)[..., order].view_as(x), condition, label)
    assert torch.allclose(mixed.flatten(2), whole.flatten(2)[..., order], atol=1e-11)


@VARIANTS
def test_every_parameter_has_a_gradient(sizes):
    model = noisy(**sizes)
    out = model(*inputs(model))
    (out * normal(*out.shape, seed=5)).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 1e-6, name
    if model.label is not None:
        assert (model.label.weight.grad.abs().amax(1) > 1e-6).all()


def test_the_layout_in_memory_changes_nothing():
    model = noisy().float()
    x, condition, label = inputs(model)
    given = (x.float(), condition.float(), label)
    want = model(*given)
    got = model.to(memory_format=torch.channels_last)(*given)
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-3)


def test_a_condition_may_be_more_exact_than_the_images():
    model = noisy().float()
    x, condition, label = inputs(model)
    out = model(x.float(), condition, label)
    assert out.dtype == torch.float32
    assert torch.allclose(out, model(x.float(), condition.float(), label), atol=1e-3)


def test_it_runs_under_autocast():
    model = noisy().float()
    x, condition, label = inputs(model)
    given = (x.float(), condition.float(), label)
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
    # The same image eight times: condition and label alone say what is wanted.
    model = UNet(UNetConfig(**SMALL | {"num_classes": 1}))
    x = normal(1, 2, 8, 8).float().expand(8, -1, -1, -1)
    condition = torch.tensor([-2.0, -0.5, 0.5, 2.0]).repeat(2)
    label = torch.tensor([0, 1]).repeat_interleave(4)
    wanted = normal(8, 2, 8, 8, seed=1).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = (model(x, condition, label) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


# Bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("image_shape", shape) for shape in [(1, 16), (0, 16, 16), (1, 18, 16), (1, 16, 6)]),
        *((name, 0) for name in ("width", "num_blocks", "patch", "scale")),
        *((name, -1) for name in ("num_classes", "num_heads", "scale")),
        *(("multipliers", value) for value in [(), (1, 0)]),
        ("width", 24),
        ("num_blocks", 1.5),
    ],
)
def test_a_size_out_of_range_is_named(hook_off, name, value):
    with pytest.raises(ValueError, match=f"expected .*{name}"):
        UNetConfig(**{name: value})


X, CONDITION, LABEL = inputs(noisy())
BAD = {
    "another size": (ValueError, "x", [X[..., :6], CONDITION, LABEL]),
    "one axis less": (ValueError, "x", [X[0], CONDITION, LABEL]),
    "fewer conditions": (ValueError, "condition", [X, CONDITION[:3], LABEL]),
    "conditions of two axes": (ValueError, "condition", [X, CONDITION[:, None], LABEL]),
    "fewer labels": (ValueError, "labels", [X, CONDITION, LABEL[:3]]),
    "labels of floats": (TypeError, "labels", [X, CONDITION, LABEL.double()]),
    "labels too large": (ValueError, "labels", [X, CONDITION, LABEL + 1]),
    "negative labels": (ValueError, "labels", [X, CONDITION, LABEL - 1]),
}


@pytest.mark.parametrize(("error", "name", "given"), BAD.values(), ids=BAD)
def test_input_that_does_not_fit_is_named(hook_off, error, name, given):
    with pytest.raises(error, match=f"expected .*{name}"):
        noisy()(*given)


def test_heads_that_do_not_divide_the_width_are_named(hook_off):
    with pytest.raises(ValueError, match="expected num_heads"):
        noisy(num_heads=3)


def test_labels_that_nobody_asked_for_are_refused(hook_off):
    with pytest.raises(ValueError, match="expected no labels"):
        noisy(num_classes=0)(X, CONDITION, LABEL)


def test_the_default_has_as_many_parameters_as_its_matrices_say():
    assert sum(w.numel() for w in UNet(UNetConfig(num_classes=10)).parameters()) == 324_388
    assert sum(w.numel() for w in UNet(UNetConfig(num_blocks=2)).parameters()) > 500_000


def test_every_level_has_its_blocks_and_the_coarsest_attention():
    model = UNet(UNetConfig(multipliers=(1, 2, 3), num_blocks=2))
    levels = [m for m in model.modules() if isinstance(m, Level)]
    assert [(len(m.before), len(m.after)) for m in levels] == [(2, 2)] * 3
    assert [m.attention is not None for m in levels] == [False, False, True]
