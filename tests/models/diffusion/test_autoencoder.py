import math

import pytest
import torch
import torch.nn.functional as F
from noise import filled, normal

from aigc_lib import checkpoint
from aigc_lib.ema import EMA
from aigc_lib.models.diffusion.autoencoder import Autoencoder, AutoencoderConfig, _Block

SMALL = {"image_shape": (3, 8, 8), "channels": 2, "widths": (16, 32)}
# Sizes that reach every branch, each with the shape of its latent.
SIZES = {
    (2, 2, 2): {},
    (2, 4, 4): {"widths": (16,)},
    (5, 1, 3): {"widths": (16, 32, 16), "channels": 5, "image_shape": (1, 8, 24)},
    (1, 4, 2): {"patch": 1, "channels": 1, "image_shape": (2, 8, 4)},
    (3, 1, 1): {"patch": 4, "channels": 3},
}
VARIANTS = pytest.mark.parametrize(("shape", "sizes"), SIZES.items(), ids=str)


def noisy(**sizes):
    return filled(Autoencoder(AutoencoderConfig(**SMALL | sizes)), std=0.2)


def inputs(model, batch=4, seed=0):
    """Images and noise for their latents."""
    config = model.config
    x, noise = (config.image_shape, config.latent_shape)
    return normal(batch, *x, seed=seed), normal(batch, *noise, seed=seed + 1)


def fitted(**sizes):
    model = noisy(**sizes)
    model.fit_scale(inputs(model)[0])
    return model


# Closed forms and brute force


def norm_silu(x, w, name):
    parts = [
        (part - part.mean()) / (part.var(correction=0) + 1e-5).sqrt()
        for example in x
        for part in example.chunk(8)
    ]
    scale, shift = (w[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
    z = scale * torch.cat(parts).view_as(x) + shift
    return z / (1 + torch.exp(-z))


def conv(x, w, name, **settings):
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1, **settings)


def block(x, w, name):
    h = conv(norm_silu(x, w, f"{name}.norm_1"), w, f"{name}.conv_1")
    return x + conv(norm_silu(h, w, f"{name}.norm_2"), w, f"{name}.conv_2")


@torch.no_grad()
def test_it_is_the_model_written_out():
    model = noisy()
    w, (x, noise) = dict(model.named_parameters()), inputs(model)
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 1, 4, 5, 2, 3).flatten(1, 3)
    h = block(conv(patches, w, "encoder.1"), w, "encoder.2")
    h = block(conv(h, w, "encoder.4", stride=2), w, "encoder.5")
    h = conv(norm_silu(h, w, "encoder.6"), w, "encoder.7")
    mu, log_var = h[:, :2], h[:, 2:]
    z = mu + log_var.exp().sqrt() * noise
    h = block(conv(z, w, "decoder.0"), w, "decoder.1")
    h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    h = block(conv(h, w, "decoder.3"), w, "decoder.4")
    h = conv(norm_silu(h, w, "decoder.5"), w, "decoder.6").unflatten(1, (3, 2, 2))
    image = h.permute(0, 1, 4, 2, 5, 3).reshape(x.shape)
    for got, want in zip(model(x, noise), (image, mu, log_var), strict=True):
        assert torch.allclose(got, want, atol=1e-11)


@torch.no_grad()
def test_the_scale_makes_the_variance_of_all_draws_one():
    model = fitted()
    x, _ = inputs(model)
    _, mu, log_var = model(x, torch.zeros(4, 2, 2, 2).double())
    draws = mu + log_var.exp().sqrt() * normal(4000, *mu.shape)
    assert model.scale.item() == pytest.approx(1 / draws.std().item(), rel=0.01)
    scaled, scaled_log_var = model.encode(x)
    again = scaled + scaled_log_var.exp().sqrt() * normal(4000, *mu.shape)
    assert again.std().item() == pytest.approx(1, rel=0.01)
    assert torch.allclose(again, model.scale * draws)
    exact = mu.flatten().var(correction=0) + log_var.exp().mean()
    assert model.scale.item() == pytest.approx(exact.item() ** -0.5, abs=1e-12)


@torch.no_grad()
def test_a_block_is_that_of_diffusers():
    from diffusers.models.resnet import ResnetBlock2D

    ours = filled(_Block(16))
    theirs = ResnetBlock2D(in_channels=16, temb_channels=None, groups=8, eps=1e-5).double()
    names = {"norm1": "norm_1", "conv1": "conv_1", "norm2": "norm_2", "conv2": "conv_2"}
    parameters = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        module, kind = name.split(".")
        parameter.copy_(parameters.pop(f"{names[module]}.{kind}"))
    assert not parameters
    x = normal(3, 16, 4, 6)
    assert torch.allclose(ours(x), theirs(x, None), atol=1e-12)


# Invariances


@torch.no_grad()
@VARIANTS
def test_the_latent_is_a_small_image(shape, sizes):
    model = fitted(**sizes)
    x, noise = inputs(model)
    assert model.config.latent_shape == shape
    mu, log_var = model.encode(x)
    assert mu.shape == log_var.shape == noise.shape == (4, *shape)
    assert model.decode(mu).shape == model(x, noise)[0].shape == x.shape


@torch.no_grad()
@VARIANTS
def test_encode_and_decode_are_the_trained_pair_in_other_units(shape, sizes):
    model = fitted(**sizes)
    x, noise = inputs(model)
    model.scale.mul_(1.7)
    mean, log_var = model.encode(x)
    for z in (torch.zeros_like(noise), noise):
        image, mu, raw = model(x, z)
        assert torch.allclose(model.decode(mean + torch.exp(0.5 * log_var) * z), image, atol=1e-11)
    assert torch.allclose(mean / mu, model.scale.expand_as(mu))
    assert torch.allclose(log_var - raw, 2 * model.scale.log().expand_as(mu))


def test_latents_are_refused_until_they_are_scaled():
    model = noisy()
    x, noise = inputs(model)
    for call in (lambda: model.encode(x), lambda: model.decode(noise)):
        with pytest.raises(ValueError, match="expected fit_scale"):
            call()
    model(x, noise)  # training needs none
    model.fit_scale(x)
    assert not model.scale.requires_grad
    model.decode(model.encode(x)[0])


@torch.no_grad()
def test_the_scale_is_saved_with_the_weights(tmp_path):
    model, other = fitted(), Autoencoder(AutoencoderConfig(**SMALL)).double()
    checkpoint.save(tmp_path / "autoencoder", model.state_dict())
    other.load_state_dict(checkpoint.load(tmp_path / "autoencoder"))
    x, _ = inputs(model)
    assert torch.equal(other.encode(x)[0], model.encode(x)[0])
    assert torch.equal(EMA(model, 0.9).model.encode(x)[0], model.encode(x)[0])


@torch.no_grad()
def test_other_units_of_the_data_give_the_same_latents():
    # A last layer three times as large gives other means; scaled ones it leaves as they are.
    model = noisy()
    for part in (model.encoder[7].weight, model.encoder[7].bias):
        part[2:] = 0
    model.encoder[7].bias[2:] = -60
    x, _ = inputs(model)
    model.fit_scale(x)
    before = model.encode(x)[0]
    for part in (model.encoder[7].weight, model.encoder[7].bias):
        part[:2] *= 3
    model.fit_scale(x)
    assert torch.allclose(model.encode(x)[0], before, atol=1e-11)


@torch.no_grad()
@VARIANTS
def test_each_image_is_worked_on_alone(shape, sizes):
    model = fitted(**sizes)
    x, noise = inputs(model)
    order = torch.tensor([3, 0, 2, 1])
    for whole, mixed in zip(model(x, noise), model(x[order], noise[order]), strict=True):
        assert torch.allclose(mixed, whole[order], atol=1e-11)
    assert torch.allclose(model.encode(x[:1])[0], model.encode(x)[0][:1], atol=1e-11)


@VARIANTS
def test_every_parameter_has_a_gradient(shape, sizes):
    model = noisy(**sizes)
    image, mu, log_var = model(*inputs(model))
    loss = (image * normal(*image.shape, seed=5)).sum()
    (loss + (log_var * normal(*mu.shape, seed=6)).sum()).backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 1e-6, name


def test_the_layout_in_memory_changes_nothing():
    model = noisy().float()
    x, noise = (part.float() for part in inputs(model))
    want = model(x, noise)[0]
    got = model.to(memory_format=torch.channels_last)(x, noise)[0]
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-3)


def test_it_runs_under_autocast():
    model = noisy().float()
    x, noise = (part.float() for part in inputs(model))
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, 0 * noise)[0]
    want = model(x, 0 * noise)[0]
    assert (out - want).square().mean() < 0.01 * want.square().mean()
    out.float().sum().backward()


def test_compiling_changes_nothing(hook_off):
    model = noisy()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(*inputs(model))[0], model(*inputs(model))[0], atol=1e-11)


def test_the_default_has_the_parameters_of_its_layers():
    model = Autoencoder(AutoencoderConfig())
    assert model.config.latent_shape == (4, 4, 4)
    blocks = sum(2 * (9 * w * w + w) + 4 * w for w in (32, 64))
    first = 9 * 12 * 32 + 32 + 9 * 4 * 64 + 64
    steps = 9 * 32 * 64 + 64 + 9 * 64 * 32 + 32
    last = 9 * 64 * 8 + 8 + 2 * 64 + 9 * 32 * 12 + 12 + 2 * 32
    assert sum(p.numel() for p in model.parameters()) == 2 * blocks + first + steps + last


# Behaviour


def test_it_learns_eight_images_by_heart():
    model = Autoencoder(AutoencoderConfig(image_shape=(3, 8, 8), channels=8, widths=(16, 32)))
    x = torch.rand(8, 3, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(160):
        image, mu, log_var = model(x, torch.randn(8, *model.config.latent_shape))
        kl = 0.5 * (mu.square() + log_var.exp() - log_var - 1).mean()
        loss = (image - x).square().mean() + 1e-5 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.fit_scale(x)
    with torch.no_grad():
        z, _ = model.encode(x)
        assert (model.decode(z) - x).square().mean() < 0.1 * x.var()
    assert z.std().item() == pytest.approx(1, rel=0.1)


# Bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("image_shape", s) for s in [(3, 16), (0, 16, 16), (3, 18, 16), (3, 16, 6), (3, 0, 16)]),
        *((name, 0) for name in ("channels", "patch")),
        *(("widths", value) for value in [(), (0,), (8,), (-16,), (16, 24)]),
        ("channels", 1.5),
    ],
)
def test_a_size_out_of_range_is_named(hook_off, name, value):
    with pytest.raises(ValueError, match=f"expected .*{name}"):
        AutoencoderConfig(**{name: value})


MODEL = fitted()
X, NOISE = inputs(MODEL)
BAD = {
    "another size": ("x", lambda: MODEL(X[..., :6], NOISE)),
    "a multiple of the size": ("x", lambda: MODEL.encode(X.repeat(1, 1, 2, 2))),
    "one axis less": ("x", lambda: MODEL.encode(X[0])),
    "other channels": ("x", lambda: MODEL.fit_scale(X[:, :1])),
    "less noise": ("noise", lambda: MODEL(X, NOISE[:1])),
    "noise of another size": ("noise", lambda: MODEL(X, NOISE[..., :1])),
    "a latent of another size": ("latent", lambda: MODEL.decode(NOISE.repeat(1, 1, 2, 2))),
    "a latent of other channels": ("latent", lambda: MODEL.decode(NOISE[:, :1])),
    "a flat latent": ("latent", lambda: MODEL.decode(NOISE.flatten(1))),
}


@pytest.mark.parametrize(("name", "call"), BAD.values(), ids=BAD)
def test_input_that_does_not_fit_is_named(hook_off, name, call):
    with pytest.raises(ValueError, match=f"expected .*{name}"):
        call()


def test_a_fresh_net_is_calm():
    model = Autoencoder(AutoencoderConfig())
    x = torch.rand(16, 3, 16, 16)
    image, mu, log_var = model(x, torch.randn(16, 4, 4, 4))
    assert image.std() < 2
    assert mu.abs().max() < 5
    assert math.log(1e-3) < log_var.min() <= log_var.max() < 3
