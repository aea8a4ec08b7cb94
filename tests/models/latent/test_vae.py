import math

import pytest
import torch
import torch.nn.functional as F
from noise import filled, normal
from references import convolve_by_patches, paint_by_patches

from aigc_lib.models.latent.vae import VAE, VAEConfig
from aigc_lib.objectives.elbo import elbo, gaussian_kl, reparameterize
from aigc_lib.objectives.likelihood import bernoulli_log_likelihood

CLASSES = 3
SMALL = {"image_shape": (2, 8, 12), "latent": 4, "hidden": 16}
each = pytest.mark.parametrize("architecture", ["mlp", "conv"])


def noisy(architecture, **settings):
    return filled(VAE(VAEConfig(architecture=architecture, **SMALL | settings)))


def images(batch=5):
    return (normal(batch, 2, 8, 12) > 0).double()


def labels(batch=5):
    return torch.arange(batch) % CLASSES


# Closed forms and brute force


def bend(y):
    return y / (1 + (-y).exp())


def layer(w, name, x, label=None):
    y = x @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    if label is not None:  # the weights of a one-hot code beside the input
        y = y + F.one_hot(label, CLASSES).double() @ w[f"{name.split('.')[0]}.label.weight"]
    return y


@pytest.mark.parametrize("label", [None, labels()])
def test_perceptrons_are_the_model_written_out(label):
    model = noisy("mlp", num_classes=0 if label is None else CLASSES)
    w, x, z = dict(model.named_parameters()), images(), normal(5, 4)
    h = bend(layer(w, "encoder.first", x.reshape(5, -1), label))
    h = bend(layer(w, "encoder.second", h))
    out = layer(w, "encoder.last", h)
    mu, log_var = model.encode(x, label)
    assert torch.allclose(mu, out[:, :4], atol=1e-12)
    assert torch.allclose(log_var, out[:, 4:], atol=1e-12)
    h = bend(layer(w, "decoder.first", z, label))
    h = bend(layer(w, "decoder.second", h))
    out = layer(w, "decoder.last", h).reshape(5, 2, 8, 12)
    assert torch.allclose(model.decode(z, label), out, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("label", [None, labels()])
def test_convolutions_are_the_model_written_out(label):
    model = noisy("conv", num_classes=0 if label is None else CLASSES)
    w, x, z = dict(model.named_parameters()), images(), normal(5, 4)

    def stage(step, x, name):
        return step(x, w[f"{name}.weight"]) + w[f"{name}.bias"][:, None, None]

    h = bend(stage(convolve_by_patches, x, "encoder.down_1"))
    h = bend(stage(convolve_by_patches, h, "encoder.down_2"))
    assert h.shape == (5, 4, 2, 3)
    h = bend(layer(w, "encoder.first", h.reshape(5, -1), label))
    out = layer(w, "encoder.last", h)
    assert torch.allclose(torch.cat(model.encode(x, label), 1), out, atol=1e-12)
    h = bend(layer(w, "decoder.first", z, label))
    h = bend(layer(w, "decoder.second", h)).reshape(5, 4, 2, 3)
    h = bend(stage(paint_by_patches, h, "decoder.up"))
    out = stage(paint_by_patches, h, "decoder.last")
    assert torch.allclose(model.decode(z, label), out, atol=1e-12)


def test_the_default_has_as_many_parameters_as_its_matrices_say():
    pixels, hidden, latent = 784, 256, 16
    encoder = (pixels + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * 2 * latent
    decoder = (latent + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * pixels
    model = VAE(VAEConfig())
    assert sum(p.numel() for p in model.parameters()) == encoder + decoder == 546_608
    told = VAE(VAEConfig(num_classes=10, has_log_var=True))
    assert sum(p.numel() for p in told.parameters()) == encoder + decoder + 2 * 10 * hidden + 1
    assert told.log_var.shape == ()
    assert told.log_var.item() == 0


@pytest.mark.parametrize("size", [16, 28])
@each
def test_a_fresh_model_begins_near_the_prior_and_near_grey(architecture, size):
    model = VAE(VAEConfig(architecture=architecture, image_shape=(1, size, size)))
    x = (torch.rand(64, 1, size, size) < 0.3).float()
    with torch.no_grad():
        mu, log_var = model.encode(x)
        logits = model.decode(torch.randn(64, 16))
    assert mu.shape == log_var.shape == (64, 16)
    assert logits.shape == x.shape
    assert 0.01 < mu.std() < 0.3
    assert 0.01 < log_var.std() < 0.3
    assert 0.02 < logits.std() < 0.5
    assert gaussian_kl(mu, log_var).max() < 2


@each
def test_a_fresh_model_starts_as_he_et_al_say(architecture):
    model = VAE(VAEConfig(architecture=architecture, num_classes=10))
    for net in (model.encoder, model.decoder):
        for name, module in net.named_children():
            if name == "label":  # like columns of the layer that they join
                inputs = net.first.in_features
            else:
                assert module.bias.count_nonzero() == 0, name
                inputs = module.weight[0].numel()  # of a layer of either kind
                if isinstance(module, torch.nn.ConvTranspose2d):
                    inputs = len(module.weight) * 4  # of 16 taps a quarter meets each pixel
            std = math.sqrt(2 / inputs) * (0.1 if name == "last" else 1)
            assert module.weight.std().item() == pytest.approx(std, rel=0.12), name
            assert module.weight.mean().abs() < 0.1 * std, name


# Invariances


@each
def test_each_image_is_worked_on_alone(architecture):
    model, x, label = noisy(architecture, num_classes=CLASSES), images(), labels()
    order = torch.tensor([3, 0, 4, 1, 2])
    whole, part = model.encode(x, label), model.encode(x[order], label[order])
    for a, b in zip(whole, part, strict=True):
        assert torch.allclose(a[order], b, atol=1e-12)
    decoded = model.decode(whole[0], label)
    assert torch.allclose(model.decode(whole[0][:2], label[:2]), decoded[:2], atol=1e-12)
    assert model.decode(whole[0][:0], label[:0]).shape == (0, 2, 8, 12)


@each
def test_a_label_reaches_both_nets(architecture):
    model, x, z = noisy(architecture, num_classes=CLASSES), images(), normal(5, 4)
    one, two = labels(), (labels() + 1) % CLASSES
    for a, b in zip(model.encode(x, one), model.encode(x, two), strict=True):
        assert ((a - b).abs().flatten(1).amax(1) > 1e-3).all()
    changed = model.decode(z, one) - model.decode(z, two)
    assert (changed.abs().flatten(1).amax(1) > 1e-3).all()
    assert torch.equal(model.decode(z, one.int()), model.decode(z, one))
    told, not_told = model(x, z, one)[0], model(x, z, two)[0]
    assert not torch.allclose(told, not_told, atol=1e-3)


@each
def test_a_single_class_has_its_vector_in_both_nets(architecture):
    model = noisy(architecture, num_classes=1)
    assert len(model.encoder.label.weight) == len(model.decoder.label.weight) == 1
    assert model(images(), normal(5, 4), torch.zeros(5, dtype=torch.long))[0].shape == (5, 2, 8, 12)


@each
def test_forward_is_encode_move_decode(architecture):
    model, x, label, noise = noisy(architecture, num_classes=3), images(), labels(), normal(5, 4)
    logits, mu, log_var = model(x, noise, label)
    again = model.encode(x, label)
    assert torch.equal(mu, again[0])
    assert torch.equal(log_var, again[1])
    z = reparameterize(mu, log_var, noise=noise)
    assert torch.allclose(logits, model.decode(z, label), atol=1e-12)
    assert torch.allclose(
        model(x, torch.zeros_like(noise), label)[0], model.decode(mu, label), atol=1e-12
    )
    wide = VAE(VAEConfig())
    assert wide(torch.zeros(2, 1, 28, 28), torch.zeros(2, 16))[0].dtype == torch.float32


@each
def test_nothing_is_drawn_from_the_global_generator(architecture):
    model, x = noisy(architecture), images()
    before = torch.get_rng_state()
    model(x, normal(5, 4))
    assert torch.equal(torch.get_rng_state(), before)


@each
def test_every_parameter_is_used(architecture):
    model = noisy(architecture, num_classes=CLASSES)
    logits, mu, log_var = model(images(), normal(5, 4), labels())
    loss = elbo(bernoulli_log_likelihood(images(), logits), gaussian_kl(mu, log_var)).mean()
    for gradient in torch.autograd.grad(loss, list(model.parameters())):
        assert gradient.count_nonzero()


# Behaviour


@pytest.mark.parametrize("num_classes", [0, 8])
@each
def test_it_overfits_eight_images(architecture, num_classes, generator):
    settings = {"image_shape": (1, 16, 16), "latent": 4, "hidden": 64}
    model = VAE(VAEConfig(architecture=architecture, num_classes=num_classes, **settings))
    x = (torch.rand(8, 1, 16, 16, generator=generator) < 0.5).float()
    label = torch.arange(8) if num_classes else None
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    for _ in range(120):
        optimizer.zero_grad()
        mu, log_var = model.encode(x, label)
        z = reparameterize(mu, log_var, generator=generator)
        bound = elbo(bernoulli_log_likelihood(x, model.decode(z, label)), gaussian_kl(mu, log_var))
        (-bound.mean()).backward()
        optimizer.step()
    # A fair coin pays 256 log 2 = 177 nats; who knows the eight images pays log 8, or 0 if told.
    assert float(bound.detach().mean()) > -30
    assert float((model.decode(mu, label).gt(0) == x.bool()).float().mean()) > 0.97


@each
def test_it_compiles(architecture, hook_off):
    model = noisy(architecture, num_classes=CLASSES)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    arguments = images(), normal(5, 4), labels()
    for a, b in zip(compiled(*arguments), model(*arguments), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@each
def test_nothing_waits_for_another_device(architecture):
    with torch.device("meta"):  # to look at a number there is an error
        model = VAE(VAEConfig(architecture=architecture, num_classes=CLASSES))
        whole = torch.zeros(2, dtype=torch.long)
        assert model(torch.zeros(2, 1, 28, 28), torch.zeros(2, 16), whole)[0].is_meta


# Bad input


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("latent", {"latent": 0}),
        ("hidden", {"hidden": 0}),
        ("num_classes", {"num_classes": -1}),
        ("architecture", {"architecture": "cnn"}),
        ("image_shape", {"image_shape": (1, 28, 0)}),
        ("image_shape", {"image_shape": (28, 28)}),
        ("image_shape", {"image_shape": [1, 28, 28]}),
        ("image_shape", {"architecture": "conv", "image_shape": (1, 16, 18)}),
        ("image_shape", {"architecture": "conv", "image_shape": (1, 18, 16)}),
        ("hidden", {"architecture": "conv", "hidden": 20}),
    ],
)
def test_a_setting_out_of_range_is_named(name, settings, hook_off):
    with pytest.raises(ValueError, match=f"expected .*{name}"):
        VAEConfig(**settings)


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        *(
            ("x", lambda model, shape=shape: model.encode(zeros(*shape)))
            for shape in ((5, 1, 8, 12), (5, 2, 12, 8), (2, 8, 12), (5, 192))
        ),
        *(
            ("z", lambda model, shape=shape: model.decode(zeros(*shape)))
            for shape in ((5, 3), (4,), (5, 4, 1))
        ),
        *(
            ("noise", lambda model, shape=shape: model(images(), zeros(*shape)))
            for shape in ((1, 4), (5, 1))
        ),
        ("no labels", lambda model: model.encode(images(), labels())),
        ("no labels", lambda model: model.decode(normal(5, 4), labels())),
    ],
)
@each
def test_input_that_does_not_fit_is_named(architecture, name, call, hook_off):
    with pytest.raises(ValueError, match=f"expected {name}"):
        call(noisy(architecture))


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (ValueError, None),
        (ValueError, torch.tensor([0, 1, 2, 3, 0])),
        (ValueError, torch.tensor([0, 1, -1, 2, 0])),
        (ValueError, torch.zeros(4, dtype=torch.long)),
        (ValueError, torch.zeros(5, 3, dtype=torch.long)),
        (TypeError, torch.zeros(5)),
    ],
)
def test_a_wrong_label_is_refused(error, wrong, hook_off):
    model = noisy("mlp", num_classes=CLASSES)
    with pytest.raises(error, match="labels"):
        model.encode(images(), wrong)
    with pytest.raises(error, match="labels"):
        model.decode(normal(5, 4), wrong)


def test_a_pixel_that_is_no_number_is_refused_by_the_likelihood(hook_off):
    model, x = noisy("mlp"), images()
    x[2, 0, 3, 3] = math.nan
    logits, _, _ = model(x, normal(5, 4))
    with pytest.raises(ValueError, match="expected x in"):
        bernoulli_log_likelihood(x, logits)
