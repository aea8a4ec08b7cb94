import math

import pytest
import torch
import torch.nn.functional as F
from noise import normal
from tolerance import assert_as_exact_as_torch, assert_same, gradients

from aigc_lib.ops.group_norm_silu import group_norm_silu

BOTH = pytest.mark.parametrize("impl", ["reference", "torch"])
# x's shape and the number of groups: images, sequences, points; one group, and one map in each.
CASES = [
    ((3, 6, 4, 5), 2),
    ((2, 6, 4, 5), 6),
    ((2, 6, 5), 3),
    ((1, 4, 3), 1),
    ((3, 8), 2),
    ((1, 2, 1, 1), 2),
    ((2, 4, 2, 3, 2), 2),
]


def tensors(shape):
    x, weight, bias = (normal(*s, seed=i) for i, s in enumerate([shape, shape[1:2], shape[1:2]]))
    return [3 * x + 1, weight, bias]


def torch_s_own(groups, eps=1e-5):
    return lambda x, w, b: F.silu(torch.group_norm(x, groups, w, b, eps))


def ours(groups, **settings):
    return lambda x, w, b: group_norm_silu(x, groups, w, b, **settings)


# Closed forms and brute force


@BOTH
def test_a_group_that_can_be_done_by_hand(impl):
    # Mean 2 and variance 1, mean 2 and variance 16: each plus 9 is 10 or 25.
    x = torch.tensor([[1.0, 3.0, -2.0, 6.0]], dtype=torch.float64)
    weight = torch.tensor([10**0.5, 2 * 10**0.5, 5, -5], dtype=torch.float64)
    bias = torch.tensor([0.0, 1.0, 2.0, 0.0], dtype=torch.float64)
    z = [-1, 3, -2, -4]
    want = torch.tensor([[v / (1 + math.exp(-v)) for v in z]], dtype=torch.float64)
    assert torch.allclose(group_norm_silu(x, 2, weight, bias, eps=9, impl=impl), want)


@BOTH
def test_it_is_the_formula_number_by_number(impl):
    x, weight, bias = tensors((2, 6, 2, 3))
    got = group_norm_silu(x, 3, weight, bias, eps=0.3, impl=impl)
    for n in range(2):
        for g in range(3):
            numbers = [v.item() for c in (2 * g, 2 * g + 1) for v in x[n, c].flatten()]
            mu = sum(numbers) / 12
            variance = sum((v - mu) ** 2 for v in numbers) / 12
            for c in (2 * g, 2 * g + 1):
                for v, y in zip(x[n, c].flatten(), got[n, c].flatten(), strict=True):
                    z = (v.item() - mu) / math.sqrt(variance + 0.3) * weight[c].item() + bias[
                        c
                    ].item()
                    assert y.item() == pytest.approx(z / (1 + math.exp(-z)), abs=1e-12)


# Invariances


@BOTH
def test_the_scale_and_the_offset_of_a_group_do_not_matter(impl):
    x, weight, bias = tensors((3, 6, 4, 5))
    want = group_norm_silu(x, 2, weight, bias, eps=0, impl=impl)
    scale, offset = normal(3, 2, 1, 1, seed=5).exp(), 10 * normal(3, 2, 1, 1, seed=6)
    moved = (x.unflatten(1, (2, 3)) * scale[:, :, None] + offset[:, :, None]).flatten(1, 2)
    assert torch.allclose(group_norm_silu(moved, 2, weight, bias, eps=0, impl=impl), want)
    # Of a map alone they do, and with another number of groups.
    alone = x * torch.tensor([2.0, 1, 1, 1, 1, 1], dtype=torch.float64)[:, None, None]
    for other, groups in ((alone, 2), (moved, 1), (x, 3)):
        got = group_norm_silu(other, groups, weight, bias, eps=0, impl=impl)
        assert not torch.allclose(got, want, atol=0.1)


@BOTH
def test_places_and_the_maps_of_a_group_may_change_their_order(impl):
    x, weight, bias = tensors((2, 6, 4, 5))
    want = group_norm_silu(x, 2, weight, bias, impl=impl)
    places = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    mixed = x.flatten(2)[:, :, places].view_as(x)
    got = group_norm_silu(mixed, 2, weight, bias, impl=impl)
    assert torch.allclose(got, want.flatten(2)[:, :, places].view_as(x))
    maps = [2, 0, 1, 3, 5, 4]
    got = group_norm_silu(x[:, maps], 2, weight[maps], bias[maps], impl=impl)
    assert torch.allclose(got, want[:, maps])
    across = [0, 1, 3, 2, 4, 5]
    got = group_norm_silu(x[:, across], 2, weight[across], bias[across], impl=impl)
    assert not torch.allclose(got, want[:, across], atol=0.01)


@BOTH
def test_every_group_of_every_example_is_alone(impl):
    x, weight, bias = tensors((3, 6, 4, 5))
    want = group_norm_silu(x, 2, weight, bias, impl=impl)
    x[1, 4, 2, 2] = torch.nan
    got = group_norm_silu(x, 2, weight, bias, impl=impl)
    assert got[1, 3:].isnan().all()
    keep = torch.ones(3, 2, dtype=torch.bool)
    keep[1, 1] = False
    assert torch.equal(got.unflatten(1, (2, 3))[keep], want.unflatten(1, (2, 3))[keep])


# An independent reference


@BOTH
@pytest.mark.parametrize(("shape", "groups"), CASES, ids=str)
def test_it_agrees_with_torch(shape, groups, impl):
    for eps in (1e-5, 0.3):
        settings = {"eps": eps, "impl": impl}
        assert_same(ours(groups, **settings), torch_s_own(groups, eps), tensors(shape), tol=1e-10)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_low_precision_errs_at_most_twice_as_much_as_torch(dtype, layout, impl):
    x, *affine = tensors((8, 32, 16, 16))
    inputs = [x.contiguous(memory_format=layout), *affine]
    assert_as_exact_as_torch(ours(8, impl=impl), torch_s_own(8), inputs, dtype)


def test_the_defaults_are_the_usual_ones():
    x, weight, bias = tensors((2, 6, 4, 5))
    want = torch_s_own(2)(1e-3 * x, weight, bias)
    for impl in ("reference", "torch", None):
        assert torch.allclose(group_norm_silu(1e-3 * x, 2, weight, bias, impl=impl), want)


# Behaviour


@BOTH
def test_a_large_offset_does_not_drown_the_variance(impl):
    x, *affine = tensors((2, 8, 16, 16))
    inputs = [t.float() for t in (x + 1e4, *affine)]
    want = gradients(ours(2, impl="reference"), [t.double() for t in inputs])
    for a, b in zip(gradients(ours(2, impl=impl), inputs), want, strict=True):
        assert float((a.double() - b).abs().max()) < 1e-3 * float(b.abs().max())


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0, -7.5])
def test_a_constant_group_stays_finite(value, dtype, impl):
    x, *affine = (t.to(dtype) for t in tensors((2, 4, 3, 3)))
    x[1, :2] = value
    out, *grads = gradients(ours(2, impl=impl), [x, *affine])
    assert all(t.isfinite().all() for t in (out, *grads))
    want = F.silu(affine[1].double())[:2, None, None].expand(2, 3, 3)
    # 1/√eps is 316: so many roundings of the mean are seen.
    assert torch.allclose(out[1, :2].double(), want, rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


@BOTH
@pytest.mark.parametrize(
    ("dtype", "other"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
)
def test_weights_of_another_dtype(dtype, other, impl):
    x, *affine = tensors((4, 8, 6, 6))
    inputs = [x.to(dtype), *(t.to(other) for t in affine)]
    got = gradients(ours(2, impl=impl), inputs)
    assert [t.dtype for t in got] == [dtype, dtype, other, other]
    leaves = [t.double().requires_grad_() for t in inputs]
    out = ours(2, impl="reference")(*leaves)
    upstream = normal(*out.shape, seed=1).to(dtype).double()  # which `gradients` draws
    want = [out.detach(), *torch.autograd.grad(out, leaves, upstream)]
    for a, b in zip(got, want, strict=True):
        bound = 8 * torch.finfo(a.dtype).eps * float(b.abs().max())
        assert float((a.double() - b).abs().max()) <= bound


@BOTH
def test_strides_do_not_matter(impl):
    x, *affine = tensors((2, 6, 4, 5))
    want = gradients(ours(2, impl=impl), [x, *affine])
    for view in (
        x.contiguous(memory_format=torch.channels_last),
        torch.stack([x, -x], 4)[..., 0],
        x.transpose(0, 2).contiguous().transpose(0, 2),
    ):
        assert not view.is_contiguous()
        got = gradients(ours(2, impl=impl), [view, *affine])
        for a, b in zip(got, want, strict=True):
            assert torch.allclose(a, b)


def test_channels_last_stays_so():
    x, *affine = tensors((2, 6, 4, 5))
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = group_norm_silu(x, 2, *affine)
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dx.is_contiguous(memory_format=torch.channels_last)


@BOTH
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0), (0, 4)])
def test_an_empty_axis_gives_an_empty_result(shape, impl):
    inputs = tensors(shape)
    out, *grads = gradients(ours(2, impl=impl), inputs)
    assert out.shape == shape
    assert [g.shape for g in grads] == [t.shape for t in inputs]
    assert all((g == 0).all() for g in grads)


@BOTH
def test_gradients_of_gradients(impl):
    inputs = [t.requires_grad_() for t in tensors((2, 4, 3))]
    assert torch.autograd.gradgradcheck(ours(2, impl=impl), inputs)


@BOTH
def test_it_can_be_mapped_over_an_axis(impl):
    x, weight, bias = normal(4, 2, 6, 3), normal(4, 6, seed=1), normal(4, 6, seed=2)
    got = torch.vmap(ours(2, impl=impl))(x, weight, bias)
    want = torch.stack([ours(2, impl=impl)(*t) for t in zip(x, weight, bias, strict=True)])
    assert torch.allclose(got, want)


@pytest.mark.usefixtures("hook_off")
@BOTH
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_compiles_into_one_graph(impl):
    inputs = tensors((2, 6, 4, 5))
    compiled = torch.compile(ours(2, impl=impl), backend="eager", fullgraph=True)
    eager = gradients(ours(2, impl=impl), inputs)
    for a, b in zip(gradients(compiled, inputs), eager, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


# Bad input

X, W, B = tensors((2, 6, 4, 5))
BAD = {
    "one axis": (ValueError, "x", [X[0, :, 0, 0], 2, W, B]),
    "no maps": (ValueError, "x", [X[:, :0], 1, W[:0], B[:0]]),
    "whole x": (TypeError, "x", [X.long(), 2, W, B]),
    "no groups": (ValueError, "num_groups", [X, 0, W, B]),
    "negative groups": (ValueError, "num_groups", [X, -2, W, B]),
    "groups that do not divide": (ValueError, "num_groups", [X, 4, W, B]),
    "fewer weights": (ValueError, "weight", [X, 2, W[:2], B]),
    "weights of two axes": (ValueError, "weight", [X, 2, W[None], B]),
    "whole weights": (TypeError, "weight", [X, 2, W.long(), B]),
    "device of weight": (ValueError, "weight", [X, 2, W.to("meta"), B]),
    "fewer biases": (ValueError, "bias", [X, 2, W, B[:1]]),
    "boolean bias": (TypeError, "bias", [X, 2, W, B > 0]),
    "device of bias": (ValueError, "bias", [X, 2, W, B.to("meta")]),
}


@pytest.mark.usefixtures("hook_off")
@pytest.mark.parametrize(("error", "name", "inputs"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(error, name, inputs):
    with pytest.raises(error, match=rf"expected .*\b{name}\b"):
        group_norm_silu(*inputs)


@pytest.mark.usefixtures("hook_off")
@pytest.mark.parametrize(
    ("name", "value"), [("eps", -1e-5), ("eps", math.nan), ("eps", math.inf), ("impl", "fast")]
)
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        group_norm_silu(X, 2, W, B, **{name: value})


@pytest.mark.usefixtures("hook_off")
def test_a_kernel_that_cannot_run_is_refused():
    with pytest.raises(ValueError, match='"triton" can\'t run group_norm_silu here'):
        group_norm_silu(X, 2, W, B, impl="triton")
