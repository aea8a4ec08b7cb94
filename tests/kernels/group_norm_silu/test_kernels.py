"""The kernels of GroupNorm and SiLU against their formula in float64."""

import pytest
import torch
import torch.nn.functional as F
from noise import normal
from tolerance import assert_as_exact_as_torch

from aigc_lib.kernels.group_norm_silu import kernels, register
from aigc_lib.ops.group_norm_silu import group_norm_silu

pytestmark = pytest.mark.usefixtures("nan_filled")
LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)

# NumPy's warning, in the interpreter: sigmoid(z) is 0 where exp(−z) is infinite.
OVERFLOW = pytest.mark.filterwarnings("ignore:overflow encountered in exp")

# x's shape and the number of groups. A tile is a whole group up to 8192 numbers, maps and places
# padded to powers of two, else it has 4096.
CASES = [
    ((1, 1, 1, 1), 1),
    ((3, 4, 1, 1), 4),
    ((2, 6, 3, 5), 2),
    ((2, 8, 4, 4), 2),
    ((1, 16, 8, 64), 1),  # 8192 numbers
    ((1, 16, 19, 27), 1),  # 513 places: three tiles, the last with one place
    ((2, 6, 40, 52), 2),  # 3 maps padded to 4, 2080 places in tiles of 1024
    ((1, 2, 91, 91), 2),
    ((1, 256, 5, 7), 1),  # the most maps: 35 places in tiles of 16
    ((1, 5, 65, 64), 1),
]


def tensors(shape, dtype=torch.float32, other=None, layout=torch.contiguous_format, device="cpu"):
    x, weight, bias = (normal(*s, seed=i) for i, s in enumerate([shape, shape[1:2], shape[1:2]]))
    x = (3 * x + 1).to(
        device, dtype, memory_format=layout if x.ndim == 4 else torch.preserve_format
    )
    return [x, *(t.to(device, other or dtype) for t in (weight, bias))]


def results(inputs, groups, dy, impl="triton", **settings):
    """The output and the gradients of dy in every input."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = group_norm_silu(inputs[0], groups, *inputs[1:], impl=impl, **settings)
    return [out.detach(), *torch.autograd.grad(out, inputs, dy)]


def assert_right(inputs, groups, dy=None, factor=4, **settings):
    """Each result errs by at most `factor` roundings of its own dtype, at its greatest value."""
    x = inputs[0]
    dy = normal(*x.shape, seed=3).to(x) if dy is None else dy
    got = results(inputs, groups, dy, **settings)
    wide = [t.double() for t in inputs]
    want = results(wide, groups, dy.double(), impl="reference", **settings)
    for a, b, like in zip(got, want, (x, *inputs), strict=True):
        assert a.dtype == like.dtype
        assert a.shape == b.shape
        bound = factor * torch.finfo(a.dtype).eps * max(1, float(b.abs().max()))
        assert float((a.double() - b).abs().max()) <= bound


@LAYOUTS
@pytest.mark.parametrize(("shape", "groups"), CASES, ids=str)
def test_values_and_gradients_at_every_edge(shape, groups, layout):
    is_half = (CASES.index((shape, groups)) + (layout is torch.channels_last)) % 2
    dtype = torch.float16 if is_half else torch.float32
    assert_right(tensors(shape, dtype, layout=layout), groups, eps=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("shape", "groups"), [((4, 16, 8, 8), 4), ((2, 4, 50, 90), 2)], ids=str)
def test_it_errs_at_most_twice_as_much_as_torch(shape, groups, dtype):
    def torch_s_own(x, weight, bias):
        return F.silu(F.group_norm(x, groups, weight, bias))

    def ours(x, weight, bias):
        return group_norm_silu(x, groups, weight, bias, impl="triton")

    assert_as_exact_as_torch(ours, torch_s_own, tensors(shape, dtype), dtype)


@pytest.mark.parametrize("shape", [(2, 6), (2, 6, 5), (2, 6, 2, 3, 4), (1, 6, 70, 5, 8)], ids=str)
def test_any_number_of_axes(shape):
    assert_right(tensors(shape), 2, eps=0.1)


@pytest.mark.parametrize(
    ("dtype", "other"), [(torch.float16, torch.float32), (torch.float32, torch.float16)]
)
def test_weights_of_another_dtype(dtype, other):
    assert_right(tensors((3, 6, 5, 7), dtype, other), 2)


@pytest.mark.parametrize("side", [6, 60])
def test_strides_do_not_matter(side):
    dense, *affine = tensors((1, 6, side, 64))
    affine = [torch.stack([t, -t], 1)[:, 0] for t in affine]
    for x in (
        dense,
        dense.contiguous(memory_format=torch.channels_last),
        dense[..., ::2],
        dense[..., 3:40],
        dense.transpose(2, 3),
        dense[:, :1, :1].expand(1, 6, side, 64),
    ):
        dy = normal(*x.shape, seed=3).float()
        for same in (dy, dy.contiguous(memory_format=torch.channels_last)):
            assert_right([x, *affine], 2, same, factor=8)
    assert_right([x, *affine], 2, torch.ones(()).expand(x.shape), factor=8)


def test_dense_layouts_are_kept_and_go_in_without_a_copy():
    for layout in (torch.contiguous_format, torch.channels_last):
        x, *affine = tensors((2, 6, 5, 7), layout=layout)
        assert kernels.dense(x) is x
        out, dx, *_ = results([x, *affine], 2, torch.ones(()).expand(x.shape))
        assert out.is_contiguous(memory_format=layout)
        assert dx.is_contiguous(memory_format=layout)
    for view in (x[:, :, ::2], x.transpose(2, 3), x[:, :4]):
        assert kernels.dense(view) is not view


@OVERFLOW
@pytest.mark.parametrize("places", [64, 9000])
def test_a_large_offset_does_not_drown_the_variance(places):
    x, *affine = tensors((1, 4, places))
    inputs, dy = [x + 1e4, *affine], normal(1, 4, places, seed=3).float()
    want = results([t.double() for t in inputs], 2, dy.double(), impl="reference")
    for a, b in zip(results(inputs, 2, dy), want, strict=True):
        assert float((a.double() - b).abs().max()) < 1e-3 * float(b.abs().max())


@OVERFLOW
def test_far_from_zero_it_is_flat_or_the_identity():
    x, weight, bias = tensors((1, 4, 30))
    inputs = [x, 400 * weight.sign(), bias]
    assert_right(inputs, 2)
    out, dx, *_ = results(inputs, 2, torch.ones_like(x))
    assert out.isfinite().all()
    assert dx.isfinite().all()
    assert 20 < (out == 0).sum() < 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("places", [9, 9000])
@pytest.mark.parametrize("value", [0, -7.5])
def test_a_constant_group_stays_finite(places, value, dtype):
    x, *affine = tensors((1, 4, places), dtype)
    x[0, :2] = value
    out, *grads = results([x, *affine], 2, normal(1, 4, places, seed=3).to(dtype))
    assert all(t.isfinite().all() for t in (out, *grads))
    want = F.silu(affine[1].double())[:2, None]
    assert torch.allclose(out[0, :2].double(), want, rtol=4 * torch.finfo(dtype).eps, atol=1e-3)


@pytest.mark.parametrize("places", [16, 9000])
def test_a_group_of_nans_spoils_no_other(places):
    x, *affine = tensors((2, 4, places))
    want = group_norm_silu(x, 2, *affine, impl="triton")
    x[1, 2, 3] = torch.nan
    got = group_norm_silu(x, 2, *affine, impl="triton")
    assert got[1, 2:].isnan().all()
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1, :2], want[1, :2])


@pytest.mark.parametrize("places", [16, 9000])
def test_the_same_input_gives_the_same_bits(places):
    inputs, dy = tensors((2, 4, places)), normal(2, 4, places, seed=3).float()
    first, second = (results(inputs, 2, dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 4, 0)])
def test_an_empty_axis_launches_nothing(shape):
    inputs = tensors(shape)
    out, *grads = results(inputs, 2, torch.empty(shape))
    assert out.shape == shape
    assert all((g == 0).all() for g in grads)


def test_gradients_of_gradients_are_refused():
    x, *affine = (t.requires_grad_() for t in tensors((2, 4, 3)))
    (dx,) = torch.autograd.grad(
        group_norm_silu(x, 2, *affine, impl="triton").sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match=r"norm_silu_backward.* but no autograd formula"):
        dx.square().sum().backward()


@pytest.mark.usefixtures("hook_off")
@pytest.mark.parametrize("shape", [(1, 514, 1), (1, 2, 2**21 + 1)])
def test_groups_that_are_too_large_are_refused(shape):
    x, vector = torch.zeros(shape), torch.zeros(shape[1])
    with pytest.raises(ValueError, match="over 256 maps or 2²¹ numbers"):
        group_norm_silu(x, 2, vector, vector, impl="triton")
    assert group_norm_silu(x, 2, vector, vector).shape == shape


@LAYOUTS
def test_the_registrations_are_sound(layout):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    # To trace them takes seconds: once, forward, which brings the backward with it.
    traced = (*checks, "test_aot_dispatch_dynamic") if layout is torch.channels_last else checks
    x, *affine = tensors((2, 6, 5, 7), layout=layout)
    leaves = [t.clone().requires_grad_() for t in (x, *affine)]
    torch.library.opcheck(register.forward, (leaves[0], 2, *leaves[1:], 1e-5), test_utils=traced)
    _, statistics = register.forward(x, 2, *affine, 1e-5)
    torch.library.opcheck(register.backward, (x, x, 2, *affine, statistics), test_utils=checks)


@pytest.mark.usefixtures("hook_off")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_compiles_into_one_graph():
    inputs, dy = tensors((2, 6, 5, 7)), normal(2, 6, 5, 7, seed=3).float()

    def call(x, weight, bias):
        return group_norm_silu(x, 2, weight, bias, impl="triton")

    leaves = [t.clone().requires_grad_() for t in inputs]
    out = torch.compile(call, backend="aot_eager", fullgraph=True)(*leaves)
    got = [out.detach(), *torch.autograd.grad(out, leaves, dy)]
    assert all(torch.equal(a, b) for a, b in zip(got, results(inputs, 2, dy), strict=True))


@pytest.mark.gpu
@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("shape", "groups"), [*CASES, ((4, 256, 64, 64), 32)], ids=str)
def test_on_the_device_it_errs_at_most_twice_as_much_as_torch(shape, groups, dtype, layout):
    inputs = tensors(shape, dtype, layout=layout, device="cuda")
    dy = normal(*shape, seed=3).to(inputs[0])
    want = results([t.double() for t in inputs], groups, dy.double(), impl="reference")
    ours, again = (results(inputs, groups, dy) for _ in range(2))
    theirs = results(inputs, groups, dy, impl="torch")
    for exact, a, b, c in zip(want, ours, again, theirs, strict=True):
        assert torch.equal(a, b)
        error, allowed = ((t.double() - exact).abs().max() for t in (a, c))
        # Where torch is exact by luck, a few roundings are allowed.
        least = 2 * torch.finfo(dtype).eps * max(1, float(exact.abs().max()))
        assert float(error) <= max(2 * float(allowed), least)
