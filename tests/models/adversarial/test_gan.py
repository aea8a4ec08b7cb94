import copy
import math

import pytest
import torch
import torch.nn.functional as F
from noise import filled, normal
from references import convolve_by_patches, paint_by_patches

from aigc_lib import train
from aigc_lib.ema import EMA
from aigc_lib.models.adversarial.gan import (
    DCGANConfig,
    DCGANDiscriminator,
    DCGANGenerator,
    ToyDiscriminator,
    ToyGANConfig,
    ToyGenerator,
)
from aigc_lib.objectives.adversarial import discriminator_loss, non_saturating_generator_loss

CLASSES = 3
SMALL = {"size": 8, "latent": 5, "width": 2, "num_classes": CLASSES}
DCGAN = [DCGANGenerator, DCGANDiscriminator]
TOY = [ToyGenerator, ToyDiscriminator]


def noisy(kind, config=None):
    return filled(kind(config or DCGANConfig(**SMALL)))


def labels(batch=6):
    return torch.arange(batch) % CLASSES


def inputs(kind, batch=6, *, size=8, latent=5, seed=0):
    if kind is DCGANGenerator:
        return normal(batch, latent, seed=seed)
    return torch.tanh(normal(batch, 1, size, size, seed=seed))


# Closed forms and brute force


def standardise(x, w, name):
    """BatchNorm with the batch's own mean and variance, over images and places."""
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = (x - mean).square().mean((0, 2, 3), keepdim=True)
    scale, shift = (w[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
    return scale * (x - mean) / (variance + 1e-5).sqrt() + shift


def leak(x):
    return torch.where(x > 0, x, 0.2 * x)


@torch.no_grad()
@pytest.mark.parametrize("label", [None, labels()])
def test_the_generator_is_the_model_written_out(label):
    settings = SMALL | ({} if label is not None else {"num_classes": 0})
    model = noisy(DCGANGenerator, DCGANConfig(**settings))
    w, z = dict(model.named_parameters()), normal(6, 5)
    h = z @ w["project.weight"].T
    if label is not None:  # the weights of a one-hot code beside the noise
        h = h + F.one_hot(label, CLASSES).double() @ w["label.weight"]
    h = standardise(h.reshape(6, 8, 2, 2), w, "net.1").clamp_min(0)
    h = standardise(paint_by_patches(h, w["net.3.weight"]), w, "net.4").clamp_min(0)
    h = paint_by_patches(h, w["net.6.weight"]) + w["net.6.bias"][:, None, None]
    out = model(z, label)
    assert out.shape == (6, 1, 8, 8)
    assert torch.allclose(out, torch.tanh(h), atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("label", [None, labels()])
def test_the_discriminator_is_the_model_written_out(label):
    settings = SMALL | ({} if label is not None else {"num_classes": 0})
    model = noisy(DCGANDiscriminator, DCGANConfig(**settings))
    w, x = dict(model.named_parameters()), inputs(DCGANDiscriminator)
    h = leak(convolve_by_patches(x, w["net.0.weight"]) + w["net.0.bias"][:, None, None])
    h = leak(standardise(convolve_by_patches(h, w["net.2.weight"]), w, "net.3")).reshape(6, -1)
    expected = h @ w["read.weight"][0] + w["read.bias"]
    if label is not None:
        expected = expected + (h * w["label.weight"][label]).sum(1)
    assert torch.allclose(model(x, label), expected, atol=1e-12)


@torch.no_grad()
def test_perceptrons_are_the_model_written_out():
    config = ToyGANConfig(data=2, latent=3, hidden=7, num_layers=2)
    for kind, x in ((ToyGenerator, normal(5, 3)), (ToyDiscriminator, normal(5, 2))):
        model = noisy(kind, config)
        w = dict(model.named_parameters())
        h = x
        for place in (0, 2):
            h = (h @ w[f"net.{place}.weight"].T + w[f"net.{place}.bias"]).clamp_min(0)
        h = h @ w["net.4.weight"].T + w["net.4.bias"]
        expected = h if kind is ToyGenerator else h[:, 0]
        assert torch.allclose(model(x), expected, atol=1e-12)


@pytest.mark.parametrize("size", [16, 28])
def test_the_pair_has_as_many_parameters_as_its_matrices_say(size):
    coarse, c, latent = (size // 4) ** 2, 16, 64
    features = 4 * c * coarse
    generator = (latent + 10) * features + 2 * 4 * c + 4 * c * 2 * c * 16 + 2 * 2 * c
    generator += 2 * c * 16 + 1
    discriminator = (1 * 16 + 1) * 2 * c + 2 * c * 4 * c * 16 + 2 * 4 * c + features + 1
    discriminator += 10 * features
    for kind, expected in zip(DCGAN, (generator, discriminator), strict=True):
        model = kind(DCGANConfig(size=size))
        assert sum(p.numel() for p in model.parameters()) == expected


def test_a_fresh_pair_starts_as_radford_et_al_say():
    for kind in DCGAN:
        model = kind(DCGANConfig())
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                assert p.count_nonzero() == 0, name
            elif p.ndim == 1:
                assert (p.mean() - 1).abs() < 0.02, name
                assert 0.01 < p.std() < 0.03, name
            else:
                assert p.mean().abs() < 0.003, name
                assert p.std().item() == pytest.approx(0.02, rel=0.15), name


# Invariances


@pytest.mark.parametrize("kind", DCGAN)
def test_in_evaluation_each_image_is_worked_on_alone(kind):
    model, x, label = noisy(kind), inputs(kind), labels()
    model(x, label)  # moves the running statistics away from their start
    model.eval()
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    whole = model(x, label)
    assert torch.allclose(model(x[order], label[order]), whole[order], atol=1e-12)
    assert torch.allclose(model(x[:1], label[:1]), whole[:1], atol=1e-12)


@pytest.mark.parametrize("kind", DCGAN)
def test_in_training_the_batch_is_normalised_together(kind):
    model, x, label = noisy(kind), inputs(kind), labels()
    whole = model(x, label)
    assert not torch.allclose(model(x[:3], label[:3]), whole[:3], atol=1e-3)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    assert torch.allclose(model(x[order], label[order]), whole[order], atol=1e-12)


@pytest.mark.parametrize("kind", DCGAN)
def test_each_label_says_something_else(kind):
    model, x = noisy(kind).eval(), inputs(kind)
    outputs = [model(x, torch.full((6,), k)).detach() for k in range(CLASSES)]
    for k in range(CLASSES):
        assert not torch.allclose(outputs[k], outputs[k - 1], atol=1e-3)


@pytest.mark.parametrize("size", [16, 28])
def test_a_generators_images_are_what_a_discriminator_takes(size):
    config = DCGANConfig(size=size)
    images = DCGANGenerator(config)(torch.randn(4, 64), torch.arange(4))
    assert images.shape == (4, 1, size, size)
    assert images.abs().max() < 1
    assert DCGANDiscriminator(config)(images, torch.arange(4)).shape == (4,)


@pytest.mark.parametrize("kind", DCGAN)
def test_every_parameter_has_a_gradient(kind):
    model = noisy(kind)
    out = model(inputs(kind), labels())
    (out * normal(*out.shape, seed=5)).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 1e-9, name


@pytest.mark.parametrize("kind", DCGAN)
def test_compiling_changes_nothing(hook_off, kind):
    model = noisy(kind).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x, label = inputs(kind), labels()
    assert torch.allclose(compiled(x, label), model(x, label), atol=1e-12)


# Behaviour


def ring(count, draw):
    angle = 2 * math.pi * torch.randint(4, (count,), generator=draw) / 4
    centres = torch.stack([angle.cos(), angle.sin()], 1)
    return centres + 0.1 * torch.randn(count, 2, generator=draw)


def test_two_perceptrons_find_four_modes(generator):
    config = ToyGANConfig(hidden=64)
    g, d = ToyGenerator(config), ToyDiscriminator(config)
    ema = EMA(g, 0.99)

    def noise(count):
        return torch.randn(count, 2, generator=generator)

    def d_loss(_):
        return discriminator_loss(d(ring(64, generator)), d(g(noise(64)).detach())).mean()

    def g_loss(_):
        return non_saturating_generator_loss(d(g(noise(64)))).mean()

    players = {
        "d": train.Player(
            loss_fn=d_loss,
            model=d,
            optimizer=torch.optim.Adam(d.parameters(), lr=2e-3, betas=(0.0, 0.9)),
        ),
        "g": train.Player(
            loss_fn=g_loss,
            model=g,
            optimizer=torch.optim.Adam(g.parameters(), lr=2e-3, betas=(0.0, 0.9)),
            ema=ema,
        ),
    }
    for _ in train.alternating(players, steps=500):
        pass
    points = ema.model(noise(2000))
    angle = math.pi / 2 * torch.arange(4)
    centres = torch.stack([angle.cos(), angle.sin()], 1)
    near = torch.cdist(points, centres) < 0.4
    assert near.any(1).float().mean() > 0.7
    assert (near.float().mean(0) > 0.1).all()


def test_a_discriminator_tells_which_label_belongs_to_an_image():
    model = DCGANDiscriminator(DCGANConfig(size=8, width=4, num_classes=2))
    images = torch.full((32, 1, 8, 8), -1.0)
    truth = torch.arange(32) % 2
    images[truth == 1, :, :4] = 1.0
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.5, 0.999))
    for _ in range(60):
        loss = discriminator_loss(model(images, truth), model(images, 1 - truth)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    assert (model(images, truth) > 2).all()
    assert (model(images, 1 - truth) < -2).all()


@pytest.mark.parametrize("kind", DCGAN)
def test_statistics_move_a_tenth_of_the_way_to_the_batchs(kind):
    model, seen = noisy(kind), {}
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_hook(lambda layer, given, _: seen.update({layer: given[0]}))
    model(inputs(kind), labels())
    assert norms
    for norm in norms:
        mean, variance = seen[norm].mean((0, 2, 3)), seen[norm].var((0, 2, 3))
        assert torch.allclose(norm.running_mean, 0.1 * mean, atol=1e-12)
        assert torch.allclose(norm.running_var, 0.9 + 0.1 * variance, atol=1e-12)


def test_statistics_move_in_training_alone():
    model = noisy(DCGANGenerator)
    before = copy.deepcopy(dict(model.named_buffers()))
    model.eval()(normal(6, 5), labels())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
    model.train()(normal(6, 5), labels())
    for name, buffer in model.named_buffers():
        assert not torch.equal(buffer, before[name]), name


# Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 18}, "expected a multiple of 4 for size, got 18"),
        ({"size": 0}, "expected size >= 1, got 0"),
        ({"latent": 0}, "expected latent >= 1, got 0"),
        ({"width": -1}, "expected width >= 1, got -1"),
        ({"num_classes": -1}, "expected num_classes >= 0, got -1"),
    ],
)
def test_sizes_out_of_range_are_named(hook_off, settings, message):
    with pytest.raises(ValueError, match=message):
        DCGANConfig(**settings)


@pytest.mark.parametrize("name", ["data", "latent", "hidden", "layers"])
def test_sizes_of_perceptrons_out_of_range_are_named(name):
    with pytest.raises(ValueError, match=f"expected {name} >= 1, got 0"):
        ToyGANConfig(**{name: 0})


@pytest.mark.parametrize("value", [-1.01, 1.5, 255.0, math.nan, math.inf])
def test_images_outside_their_range_are_named(hook_off, value):
    model, x = noisy(DCGANDiscriminator), inputs(DCGANDiscriminator)
    x[2, 0, 3, 4] = value
    with pytest.raises(ValueError, match=r"expected images in \[-1, 1\], got values from"):
        model(x, labels())


def test_images_on_the_edge_of_their_range_are_taken(hook_off):
    x = torch.ones(2, 1, 8, 8, dtype=torch.float64)
    assert noisy(DCGANDiscriminator)(torch.cat([x, -x]), labels(4)).isfinite().all()


@pytest.mark.parametrize("kind", DCGAN)
def test_a_batch_of_one_in_training_is_named(hook_off, kind):
    model = noisy(kind)
    with pytest.raises(ValueError, match="expected two or more images in training"):
        model(inputs(kind, 1), labels(1))
    assert model.eval()(inputs(kind, 1), labels(1)).isfinite().all()


@pytest.mark.parametrize("kind", DCGAN)
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "expected labels from 0 to 2, got None"),
        (labels(5), r"expected whole labels of shape \(6,\), got torch.int64 of shape \(5,\)"),
        (labels().double(), r"expected whole labels of shape \(6,\), got torch.float64"),
        (labels() + 1, "expected labels from 0 to 2, got 1 to 3"),
        (labels() - 1, "expected labels from 0 to 2, got -1 to 1"),
    ],
)
def test_labels_that_do_not_fit_are_named(hook_off, kind, label, message):
    with pytest.raises(ValueError, match=message):
        noisy(kind)(inputs(kind), label)


@pytest.mark.parametrize("kind", DCGAN)
def test_labels_that_nobody_asked_for_are_refused(hook_off, kind):
    model = kind(DCGANConfig(**SMALL | {"num_classes": 0}))
    with pytest.raises(ValueError, match="expected no labels, the config has num_classes 0"):
        model(inputs(kind).float(), labels())


@pytest.mark.parametrize("kind", DCGAN + TOY)
def test_inputs_of_another_shape_are_named(hook_off, kind):
    model = kind(DCGANConfig(**SMALL) if kind in DCGAN else ToyGANConfig())
    arguments = (labels(),) if kind in DCGAN else ()
    with pytest.raises(ValueError, match=r"expected (noise|images|examples) of shape \(B, .*got"):
        model(torch.zeros(6, 1, 8, 7), *arguments)
