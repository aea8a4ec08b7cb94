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
    h = standardise(h.reshape(6, 8, 2, 2), w, "norm_1").clamp_min(0)
    h = standardise(paint_by_patches(h, w["up_1.weight"]), w, "norm_2").clamp_min(0)
    h = paint_by_patches(h, w["up_2.weight"]) + w["up_2.bias"][:, None, None]
    out = model(z, label)
    assert out.shape == (6, 1, 8, 8)
    assert torch.allclose(out, torch.tanh(h), atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("label", [None, labels()])
def test_the_discriminator_is_the_model_written_out(label):
    settings = SMALL | ({} if label is not None else {"num_classes": 0})
    model = noisy(DCGANDiscriminator, DCGANConfig(**settings))
    w, x = dict(model.named_parameters()), inputs(DCGANDiscriminator)
    h = leak(convolve_by_patches(x, w["down_1.weight"]) + w["down_1.bias"][:, None, None])
    h = leak(standardise(convolve_by_patches(h, w["down_2.weight"]), w, "norm")).reshape(6, -1)
    expected = h @ w["read.weight"][0] + w["read.bias"]
    if label is not None:
        expected = expected + (h * w["label.weight"][label]).sum(1)
    assert torch.allclose(model(x, label), expected, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_perceptrons_are_the_model_written_out(num_layers):
    config = ToyGANConfig(data=2, latent=3, hidden=7, num_layers=num_layers)
    for kind, x in ((ToyGenerator, normal(5, 3)), (ToyDiscriminator, normal(5, 2))):
        model = noisy(kind, config)
        w = dict(model.named_parameters())
        h = x
        for name in ("first", "between.0", "between.1")[:num_layers]:
            h = (h @ w[f"{name}.weight"].T + w[f"{name}.bias"]).clamp_min(0)
        h = h @ w["last.weight"].T + w["last.bias"]
        assert len(w) == 2 * (num_layers + 1)
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


def test_a_batch_of_one_keeps_its_axis():
    for kind, width in ((ToyGenerator, 2), (ToyDiscriminator, None)):
        model = noisy(kind, ToyGANConfig())
        assert model(normal(1, 2)).shape == ((1, width) if width else (1,))
    for kind, shape in ((DCGANGenerator, (1, 1, 8, 8)), (DCGANDiscriminator, (1,))):
        assert noisy(kind).eval()(inputs(kind, 1), labels(1)).shape == shape
        untold = noisy(kind, DCGANConfig(**SMALL | {"num_classes": 0})).eval()
        assert untold(inputs(kind, 1)).shape == shape


def test_fresh_perceptrons_start_as_torchs_do():
    config = ToyGANConfig(num_layers=3)
    for kind in TOY:
        for name, p in kind(config).named_parameters():
            bound = 1 / math.sqrt(2 if name.startswith("first") else config.hidden)
            assert 0.9 * bound < p.abs().max() <= bound or p.numel() < 10, name


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


@pytest.mark.parametrize("kind", DCGAN)
def test_a_single_class_has_its_vector_too(kind):
    model = noisy(kind, DCGANConfig(**SMALL | {"num_classes": 1}))
    assert model.label.weight.shape[0] == 1
    model(inputs(kind), torch.zeros(6, dtype=torch.long)).sum().backward()
    assert model.label.weight.grad is not None


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
    ema = EMA(g, 0.97)

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
            optimizer=torch.optim.Adam(d.parameters(), lr=4e-3, betas=(0.0, 0.9)),
        ),
        "g": train.Player(
            loss_fn=g_loss,
            model=g,
            optimizer=torch.optim.Adam(g.parameters(), lr=4e-3, betas=(0.0, 0.9)),
            ema=ema,
        ),
    }
    for _ in train.alternating(players, steps=250):
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
    ("kind", "name", "value"),
    [
        *((ToyGANConfig, name, 0) for name in ("data", "latent", "hidden", "num_layers")),
        *((DCGANConfig, name, 0) for name in ("size", "latent", "width")),
        (DCGANConfig, "size", 18),
        (DCGANConfig, "num_classes", -1),
    ],
)
def test_a_size_out_of_range_is_named(hook_off, kind, name, value):
    with pytest.raises(ValueError, match=f"expected .*{name}"):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "shape"),
    [
        (ToyGenerator, "z", (6, 3)),
        (ToyGenerator, "z", (2,)),
        (ToyDiscriminator, "x", (6, 3)),
        (ToyDiscriminator, "x", (6, 2, 1)),
        (DCGANGenerator, "z", (6, 4)),
        (DCGANGenerator, "z", (6, 5, 1)),
        (DCGANDiscriminator, "x", (6, 1, 8, 7)),
        (DCGANDiscriminator, "x", (6, 1, 7, 8)),
        (DCGANDiscriminator, "x", (6, 2, 8, 8)),
        (DCGANDiscriminator, "x", (6, 8, 8)),
    ],
)
def test_input_of_another_shape_is_named(hook_off, kind, name, shape):
    model = kind(DCGANConfig(**SMALL) if kind in DCGAN else ToyGANConfig())
    arguments = (labels(),) if kind in DCGAN else ()
    with pytest.raises(ValueError, match=f"expected {name} "):
        model(torch.zeros(shape), *arguments)


@pytest.mark.parametrize("value", [-1.01, 1.5, 255.0, math.nan, math.inf])
def test_images_outside_their_range_are_named(hook_off, value):
    model, x = noisy(DCGANDiscriminator), inputs(DCGANDiscriminator)
    x[2, 0, 3, 4] = value
    with pytest.raises(ValueError, match="expected x in"):
        model(x, labels())


def test_images_on_the_edge_of_their_range_are_taken(hook_off):
    x = torch.ones(2, 1, 8, 8, dtype=torch.float64)
    assert noisy(DCGANDiscriminator)(torch.cat([x, -x]), labels(4)).isfinite().all()


@pytest.mark.parametrize("kind", DCGAN)
def test_a_batch_of_one_in_training_is_named(hook_off, kind):
    model = noisy(kind)
    with pytest.raises(ValueError, match="two images or more in training"):
        model(inputs(kind, 1), labels(1))
    assert model.eval()(inputs(kind, 1), labels(1)).isfinite().all()


@pytest.mark.parametrize("kind", DCGAN)
@pytest.mark.parametrize(
    ("error", "label"),
    [
        (ValueError, None),
        (ValueError, labels(5)),
        (TypeError, labels().double()),
        (ValueError, labels() + 1),
        (ValueError, labels() - 1),
    ],
)
def test_labels_that_do_not_fit_are_named(hook_off, kind, error, label):
    with pytest.raises(error, match="labels"):
        noisy(kind)(inputs(kind), label)


@pytest.mark.parametrize("kind", DCGAN)
def test_labels_that_nobody_asked_for_are_refused(hook_off, kind):
    model = kind(DCGANConfig(**SMALL | {"num_classes": 0}))
    with pytest.raises(ValueError, match="expected no labels"):
        model(inputs(kind).float(), labels())
