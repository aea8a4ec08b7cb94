import math

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_as_exact_as_torch, assert_same, gradients

from aigc_lib.ops.cross_entropy import cross_entropy

V = 7
BOTH = pytest.mark.parametrize("impl", ["reference", "torch"])
SMOOTHINGS = pytest.mark.parametrize("smoothing", [0, 0.1, 1.0])


def logits(*shape, scale=2.0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    return (scale * torch.randn(*shape, generator=draw, dtype=torch.float64)).to(dtype)


def classes(*shape, num_classes=V):
    return torch.randint(num_classes, shape, generator=torch.Generator().manual_seed(1))


def gradient(z, y, **settings):
    z = z.detach().requires_grad_()
    return torch.autograd.grad(cross_entropy(z, y, **settings).sum(), z)[0]


@BOTH
@SMOOTHINGS
def test_it_equals_the_sum_over_the_target_distribution(impl, smoothing):
    z, y = logits(5, V), classes(5)
    losses = cross_entropy(z, y, label_smoothing=smoothing, impl=impl)
    for n in range(5):
        total = sum(math.exp(float(z[n, v])) for v in range(V))
        want = 0.0
        for v in range(V):
            share = smoothing / V + (1 - smoothing) * (v == int(y[n]))
            want -= share * math.log(math.exp(float(z[n, v])) / total)
        assert float(losses[n]) == pytest.approx(want, abs=1e-13)


@BOTH
@SMOOTHINGS
def test_a_uniform_model_pays_the_logarithm_of_the_number_of_classes(impl, smoothing):
    z = torch.full((3, V), 1.7, dtype=torch.float64)
    losses = cross_entropy(z, classes(3), label_smoothing=smoothing, impl=impl)
    assert torch.allclose(losses, torch.full_like(losses, math.log(V)), atol=1e-14)


@BOTH
def test_two_classes_are_the_logistic_loss(impl):
    z = logits(6, 2)
    losses = cross_entropy(z, torch.ones(6, dtype=torch.long), impl=impl)
    assert torch.allclose(losses, F.softplus(z[:, 0] - z[:, 1]), atol=1e-14)


@BOTH
@SMOOTHINGS
def test_the_gradient_is_softmax_less_the_target_distribution(impl, smoothing):
    z, y = logits(5, V), classes(5)
    want = z.softmax(1) - (1 - smoothing) * F.one_hot(y, V) - smoothing / V
    got = gradient(z, y, label_smoothing=smoothing, impl=impl)
    assert torch.allclose(got, want, atol=1e-14)
    assert float(got.sum(1).abs().max()) < 1e-14


@BOTH
@SMOOTHINGS
def test_a_shift_of_a_row_changes_nothing(impl, smoothing):
    z, y = logits(4, V), classes(4)
    moved = z + torch.tensor([[0.0], [3.0], [-700.0], [1e4]], dtype=torch.float64)
    same = {"label_smoothing": smoothing, "impl": impl}
    assert torch.allclose(cross_entropy(moved, y, **same), cross_entropy(z, y, **same), atol=1e-11)
    assert torch.allclose(gradient(moved, y, **same), gradient(z, y, **same), atol=1e-11)


@BOTH
def test_the_names_of_the_classes_do_not_matter(impl):
    z, y = logits(4, V), classes(4)
    order = torch.randperm(V)
    renamed = torch.argsort(order)[y]
    want = cross_entropy(z, y, label_smoothing=0.2, impl=impl)
    assert torch.allclose(cross_entropy(z[:, order], renamed, label_smoothing=0.2, impl=impl), want)


@pytest.mark.parametrize("impl", ["reference", "torch", None])
@pytest.mark.parametrize("ignore_index", [-100, -1, 3])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@SMOOTHINGS
def test_it_agrees_with_torch(impl, ignore_index, dtype, smoothing):
    y = classes(11).to(dtype)
    y[[2, 5]] = ignore_index
    same = {"ignore_index": ignore_index, "label_smoothing": smoothing}
    assert_same(
        lambda z: cross_entropy(z, y, impl=impl, **same),
        lambda z: F.cross_entropy(z, y.long(), reduction="none", **same),
        [logits(11, V)],
        tol=1e-13,
    )


@BOTH
def test_an_ignored_position_costs_nothing_and_moves_nothing(impl):
    z, y = logits(2, 3, V), classes(2, 3)
    y[0, 1] = y[1, 2] = -100
    losses, to_z = gradients(lambda z: cross_entropy(z, y, label_smoothing=0.1, impl=impl), [z])
    is_ignored = y == -100
    assert (losses[is_ignored] == 0).all()
    assert (losses[~is_ignored] > 0).all()
    assert (to_z[is_ignored] == 0).all()
    assert (to_z[~is_ignored] != 0).any(1).all()


@BOTH
@pytest.mark.parametrize("nothing", [-torch.inf, torch.inf, torch.nan])
def test_what_stands_at_an_ignored_position_does_not_matter(impl, nothing):
    z, y = logits(3, V), torch.tensor([2, -100, 1])
    z[1, 0] = nothing
    losses, to_z = gradients(lambda z: cross_entropy(z, y, impl=impl), [z])
    assert losses[1] == 0
    assert losses.isfinite().all()
    assert to_z[[0, 2]].isfinite().all()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_forbidden_class_has_no_gradient_and_makes_no_nan(impl, dtype):
    z, y = logits(4, V, dtype=dtype), torch.tensor([0, 1, 2, 3])
    z[:, 4:6] = -torch.inf
    losses, to_z = gradients(lambda z: cross_entropy(z, y, impl=impl), [z])
    allowed = [0, 1, 2, 3, 6]
    want = cross_entropy(z[:, allowed], y, impl=impl)
    assert torch.allclose(losses, want)
    assert to_z.isfinite().all()
    assert (to_z[:, 4:6] == 0).all()


@BOTH
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 2, 2, 2)])
def test_any_number_of_batch_axes(impl, shape):
    z, y = logits(*shape, V), classes(*shape)
    losses, to_z = gradients(lambda z: cross_entropy(z, y, impl=impl), [z])
    assert losses.shape == shape
    assert to_z.shape == z.shape
    flat = cross_entropy(z.reshape(-1, V), y.reshape(-1), impl=impl)
    assert torch.allclose(losses.reshape(-1), flat)


@BOTH
@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_no_position_gives_no_loss(impl, shape):
    losses, to_z = gradients(
        lambda z: cross_entropy(z, classes(*shape), impl=impl), [logits(*shape, V)]
    )
    assert losses.shape == shape
    assert to_z.shape == (*shape, V)


@BOTH
def test_strides_do_not_matter(impl):
    z, y = logits(2, 4, V), classes(2, 4)
    want = cross_entropy(z[:, :-1].clone(), y[:, 1:].clone(), impl=impl)
    assert torch.allclose(cross_entropy(z[:, :-1], y[:, 1:], impl=impl), want, atol=1e-14)
    across = z.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.allclose(cross_entropy(across[:, :-1], y[:, 1:], impl=impl), want, atol=1e-14)


@BOTH
@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_float32_errs_at_most_twice_as_much_as_torch(impl, smoothing):
    y = classes(64, num_classes=300)
    assert_as_exact_as_torch(
        lambda z: cross_entropy(z, y, label_smoothing=smoothing, impl=impl),
        lambda z: F.cross_entropy(z, y, label_smoothing=smoothing, reduction="none"),
        [logits(64, 300)],
        torch.float32,
    )


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_half_precision_gives_a_float32_loss_no_worse_than_torch(impl, dtype, smoothing):
    z, y = logits(64, 300, dtype=dtype), classes(64, num_classes=300)
    same = {"label_smoothing": smoothing}
    ours = gradients(lambda z: cross_entropy(z, y, impl=impl, **same), [z])
    theirs = gradients(lambda z: F.cross_entropy(z, y, reduction="none", **same), [z])
    exact = gradients(lambda z: F.cross_entropy(z, y, reduction="none", **same), [z.double()])
    assert [x.dtype for x in ours] == [torch.float32, dtype]
    for want, a, b in zip(exact, ours, theirs, strict=True):
        assert (a.double() - want).abs().max() <= 2 * (b.double() - want).abs().max()
    assert (ours[0].double() - exact[0]).abs().max() < 1e-5


@BOTH
def test_the_loss_of_a_hopeless_class_is_finite(impl):
    z = torch.zeros(1, V)
    z[0, 2] = 1e4
    assert float(cross_entropy(z, torch.tensor([0]), impl=impl)) == 1e4


@pytest.mark.usefixtures("hook_off")
@BOTH
def test_it_compiles_whole(impl):
    y = classes(2, 5)
    y[0, 3] = -100

    def both(z):
        smooth = cross_entropy(z, y, label_smoothing=0.1, impl=impl)
        return torch.stack([cross_entropy(z, y, impl=impl), smooth])

    compiled = torch.compile(both, fullgraph=True, backend="eager")
    assert_same(compiled, both, [logits(2, 5, V)], tol=1e-14)


Z, Y = logits(3, V), classes(3)
BAD = {
    "no axis": (ValueError, "logits", (torch.tensor(1.0), torch.tensor(0)), {}),
    "no class": (ValueError, "logits", (torch.zeros(3, 0), Y), {}),
    "whole logits": (TypeError, "logits", (classes(3, V), Y), {}),
    "fewer targets": (ValueError, "targets", (Z, Y[:2]), {}),
    "targets of two axes": (ValueError, "targets", (Z, Y[:, None]), {}),
    "device of targets": (ValueError, "targets", (Z, Y.to("meta")), {}),
    **{
        f"targets of {dtype}": (TypeError, "targets", (Z, Y.to(dtype)), {})
        for dtype in (torch.uint8, torch.int16, torch.float32, torch.bool)
    },
    **{
        f"target {wrong}, {impl}": (
            ValueError,
            "targets",
            (Z, torch.tensor([0, wrong, 0])),
            {"ignore_index": -7, "impl": impl},
        )
        for wrong in (V, -1, 50304, -100)
        for impl in ("reference", "torch", None)
    },
    **{
        f"smoothing {x}": (ValueError, "label_smoothing", (Z, Y), {"label_smoothing": x})
        for x in (-0.1, 1.1, math.nan)
    },
    "ignore_index": (ValueError, "ignore_index", (Z, Y), {"ignore_index": 1.5}),
    "impl": (ValueError, "impl", (Z, Y), {"impl": "fast"}),
    "float64 kernel": (ValueError, "triton", (Z, Y), {"impl": "triton"}),
    "kernel on a CPU": (ValueError, "triton", (Z.float(), Y), {"impl": "triton"}),
}


@pytest.mark.usefixtures("hook_off")
@pytest.mark.parametrize(("error", "name", "inputs", "settings"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(error, name, inputs, settings):
    with pytest.raises(error, match=rf"\b{name}\b"):
        cross_entropy(*inputs, **settings)
