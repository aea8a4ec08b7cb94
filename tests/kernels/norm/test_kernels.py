"""The LayerNorm and RMSNorm kernels against their formula in float64."""

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_as_exact_as_torch

from aigc_lib.kernels.norm import register
from aigc_lib.kernels.norm.kernels import _rows
from aigc_lib.ops.norm import layer_norm, rms_norm

pytestmark = pytest.mark.usefixtures("nan_filled")
EITHER = pytest.mark.parametrize("op", [layer_norm, rms_norm])
HALF = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])

# A tile holds 2048 elements up to BLOCK 2048: 128 rows of 16, 32 of 64, two of 1024, one of 2048.
# The backward has 16 programs there in the interpreter, and 4 at BLOCK 4096.
SHAPES = [
    (1, 1),
    (130, 1),
    (127, 15),
    (128, 16),
    (129, 17),
    (2, 3, 33),
    (31, 63),
    (33, 64),
    (1, 768),
    (2, 1000),
    (35, 1024),  # 18 row blocks over 16 programs
    (19, 1025),
    (2, 2048),
    (6, 2049),  # 6 row blocks over 4 programs
    (3, 4096),
]
WIDE = [(1, 4097), (3, 8192), (2, 8193), (1, 16384)]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensors(op, shape, dtype=torch.float32, other=None, device="cpu"):
    """x, the weight and, where the op takes one, the bias."""
    x, weight, bias = (draw(*s, seed=i) for i, s in enumerate([shape, shape[-1:], shape[-1:]]))
    x = (3 * x + 1).to(device, dtype)
    affine = [t.to(device, other or dtype) for t in (weight, bias)]
    return [x, *affine] if op is layer_norm else [x, affine[0]]


def results(op, inputs, dy, impl="triton", **settings):
    """The output and the gradients of dy in every input."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    out = op(*inputs, impl=impl, **settings)
    return [out.detach(), *torch.autograd.grad(out, inputs, dy)]


def assert_right(op, inputs, dy=None, factor=4, **settings):
    """Each result errs by at most `factor` roundings of its own dtype, at its greatest value."""
    x = inputs[0]
    dy = draw(*x.shape, seed=3).to(x) if dy is None else dy
    got = results(op, inputs, dy, **settings)
    wide = [t.double() for t in inputs]
    want = results(op, wide, dy.double(), impl="reference", **settings)
    for a, b, like in zip(got, want, (x, *inputs), strict=True):
        assert a.dtype == like.dtype
        assert a.shape == b.shape
        assert a.is_contiguous()
        bound = factor * torch.finfo(a.dtype).eps * max(1, float(b.abs().max()))
        assert float((a.double() - b).abs().max()) <= bound


@EITHER
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_at_every_edge(op, shape):
    # Both dtypes for each op, and for each shape.
    is_half = (SHAPES.index(shape) + (op is rms_norm)) % 2
    dtype = torch.float16 if is_half else torch.float32
    # One column wide, a small eps would leave nothing of dx but what cancellation leaves.
    assert_right(op, tensors(op, shape, dtype), eps=0.1)


@HALF
@EITHER
@pytest.mark.parametrize("shape", WIDE, ids=str)
def test_values_beyond_the_width_of_the_backward(op, shape, dtype):
    inputs = tensors(op, shape, dtype)
    want = op(*(t.double() for t in inputs), impl="reference")
    bound = 4 * torch.finfo(dtype).eps * float(want.abs().max())
    assert float((op(*inputs, impl="triton").double() - want).abs().max()) <= bound


@HALF
@EITHER
@pytest.mark.parametrize("shape", [(33, 64), (20, 1000)], ids=str)
def test_it_errs_at_most_twice_as_much_as_torch(op, shape, dtype):
    def torch_s_own(x, weight, bias=None):
        if op is layer_norm:
            return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)
        return F.rms_norm(x, x.shape[-1:], weight, 1e-5)

    def ours(*inputs):
        return op(*inputs, eps=1e-5, impl="triton")

    assert_as_exact_as_torch(ours, torch_s_own, tensors(op, shape, dtype), dtype)


@pytest.mark.parametrize(("eps", "dtype"), [(1e-5, torch.float32), (0.5, torch.float16)])
@pytest.mark.parametrize(
    ("op", "given"),
    [
        (layer_norm, "nothing"),
        (layer_norm, "weight"),
        (layer_norm, "bias"),
        (rms_norm, "nothing"),
        (rms_norm, "weight"),
    ],
)
def test_a_weight_and_a_bias_are_optional(op, given, eps, dtype):
    x, weight, *bias = tensors(op, (35, 40), dtype)
    if given == "bias":
        assert_right(lambda x, b, **s: layer_norm(x, bias=b, **s), [x, bias[0]], eps=eps)
    else:
        assert_right(op, [x, weight] if given == "weight" else [x], eps=eps)


@EITHER
def test_each_input_gets_its_gradient_alone_too(op):
    inputs = tensors(op, (35, 40))
    dy = draw(35, 40, seed=3).float()
    _, *want = results(op, inputs, dy)
    for wanted in range(1, 2 ** len(inputs) - 1):
        chosen = [i for i in range(len(inputs)) if wanted >> i & 1]

        def some(*given, chosen=chosen):
            full = list(inputs)
            for i, t in zip(chosen, given, strict=True):
                full[i] = t
            return op(*full, impl="triton")

        leaves = [inputs[i].clone().requires_grad_() for i in chosen]
        got = torch.autograd.grad(some(*leaves), leaves, dy)
        assert all(torch.equal(g, want[i]) for g, i in zip(got, chosen, strict=True))


@EITHER
@pytest.mark.parametrize(
    ("dtype", "other"), [(torch.float16, torch.float32), (torch.float32, torch.float16)]
)
def test_weights_of_another_dtype(op, dtype, other):
    # With a float32 weight its gradient, a sum over 150 rows of halves, is exact to float32: a
    # sum kept in half precision would be a thousand times further off.
    assert_right(op, tensors(op, (150, 40), dtype, other))


@EITHER
@pytest.mark.parametrize("what", ["rows", "slice", "transposed", "every other", "expanded", "4d"])
def test_strides_do_not_matter(op, what):
    dense, *affine = tensors(op, (5, 7, 24))
    x = {
        "rows": lambda: dense[:, ::2],
        "slice": lambda: dense[..., 3:20],
        "transposed": lambda: dense.transpose(0, 1),
        "every other": lambda: dense[..., ::2],
        "expanded": lambda: dense[:1, :1].expand(5, 7, 24),
        "4d": lambda: dense[:, None, ::2, 4:],
    }[what]()
    affine = [torch.stack([t, -t], 1)[: x.shape[-1], 0] for t in affine]
    assert not any(t.is_contiguous() for t in (x, *affine))
    for dy in (
        draw(*x.shape).float(),
        draw(*x.shape[:-1], 2 * x.shape[-1]).float()[..., : x.shape[-1]],
        draw(x.shape[-1], *x.shape[:-1]).float().movedim(0, -1),
        torch.ones(()).expand(x.shape),
    ):
        assert_right(op, [x, *affine], dy)


def test_rows_at_one_distance_go_in_without_a_copy():
    x = draw(4, 6, 8)
    for view, distance in (
        (x, 8),
        (x[..., 2:5], 8),
        (x[:, 2], 48),
        (x[1:, None, 3:4], 48),
        (x[:, ::3], 24),
        (x[0, 0], 8),
        (x[:1, :1], 8),
        (x[:1, 0].expand(9, 8), 0),
        (x[:, :, 7:], 8),
    ):
        same, stride = _rows(view)
        assert same is view
        assert stride == distance or view.numel() == view.shape[-1]
        rows = torch.as_strided(view, (view.numel() // view.shape[-1], view.shape[-1]), (stride, 1))
        assert torch.equal(rows, view.reshape(rows.shape))
    for view in (x.transpose(0, 1), x[..., ::2], x[:, :4], x.transpose(1, 2)):
        copy, stride = _rows(view)
        assert copy is not view
        assert torch.equal(copy, view)
        assert stride == view.shape[-1]


@EITHER
def test_a_large_offset_does_not_drown_the_variance(op):
    x, *affine = tensors(op, (20, 256))
    inputs = [x + 1e4, *affine]
    dy = draw(20, 256, seed=3).float()
    want = results(op, [t.double() for t in inputs], dy.double(), impl="reference")
    for a, b in zip(results(op, inputs, dy), want, strict=True):
        assert float((a.double() - b).abs().max()) < 1e-3 * float(b.abs().max())


@HALF
@EITHER
@pytest.mark.parametrize("value", [0, 1, -7.5])
def test_a_constant_row_stays_finite(op, value, dtype):
    x, *affine = tensors(op, (4, 24), dtype)
    x[1] = value
    got = results(op, [x, *affine], draw(4, 24, seed=3).to(dtype))
    assert all(t.isfinite().all() for t in got)
    if op is layer_norm:
        assert torch.equal(got[0][1], affine[1])


@EITHER
def test_a_row_of_nans_spoils_no_other(op):
    inputs = tensors(op, (70, 40))
    want = op(*inputs, impl="triton")
    inputs[0][5] = torch.nan
    got = op(*inputs, impl="triton")
    assert got[5].isnan().all()
    keep = torch.arange(70) != 5
    assert torch.equal(got[keep], want[keep])


@EITHER
def test_the_same_input_gives_the_same_bits(op):
    inputs, dy = tensors(op, (150, 40)), draw(150, 40, seed=3).float()
    first, second = (results(op, inputs, dy) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@EITHER
@pytest.mark.parametrize("shape", [(0, 40), (3, 0, 40)])
def test_an_empty_axis_launches_nothing(op, shape):
    inputs = tensors(op, shape)
    out, *grads = results(op, inputs, torch.empty(shape))
    assert out.shape == shape
    assert [g.shape for g in grads] == [t.shape for t in inputs]
    assert all((g == 0).all() for g in grads)


@EITHER
def test_gradients_of_gradients_are_refused(op):
    x, *affine = (t.requires_grad_() for t in tensors(op, (3, 24)))
    (dx,) = torch.autograd.grad(op(x, *affine, impl="triton").sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"norm_backward.* but no autograd formula"):
        dx.square().sum().backward()


@pytest.mark.usefixtures("hook_off")
class TestRefusals:
    def test_widths(self):
        wide, wider = torch.ones(1, 4097), torch.ones(1, 16385)
        weight = torch.ones(4097, requires_grad=True)
        with_gradients = "layer_norm here: it holds rows of at most 4096 channels with gradients"
        with pytest.raises(ValueError, match=f"{with_gradients} in registers, got 4097"):
            layer_norm(wide, weight, impl="triton")
        with torch.no_grad():
            layer_norm(wide, weight, impl="triton")
        assert layer_norm(wide, weight).shape == wide.shape
        without = "rms_norm here: it holds rows of at most 16384 channels without gradients"
        with pytest.raises(ValueError, match=f"{without} in registers, got 16385"):
            rms_norm(wider, impl="triton")

    def test_dtypes(self):
        with pytest.raises(ValueError, match=r"float16 and bfloat16, got torch.float64"):
            layer_norm(torch.ones(2, 3), torch.ones(3, dtype=torch.float64), impl="triton")


@pytest.mark.parametrize(
    ("center", "num_given", "dtype"),
    [(True, 2, torch.float16), (True, 0, torch.float32), (False, 1, torch.float32)],
)
def test_the_registrations_are_sound(center, num_given, dtype):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    # To trace them takes seconds: once, forward, which brings the backward with it.
    traced = (*checks, "test_aot_dispatch_dynamic") if num_given == 2 else checks
    x, *affine = tensors(layer_norm, (3, 4, 24), dtype)
    given = [x, *(t if i < num_given else None for i, t in enumerate(affine))]
    leaves = [None if t is None else t.clone().requires_grad_() for t in given]
    torch.library.opcheck(register.forward, (*leaves, 1e-5, center), test_utils=traced)
    _, statistics = register.forward(*given, 1e-5, center)
    wanted = (num_given > 0, num_given > 1)
    backward = (x, x, given[1], statistics, *wanted)
    torch.library.opcheck(register.backward, backward, test_utils=checks)


@pytest.mark.usefixtures("hook_off")
@EITHER
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_compiles_into_one_graph(op):
    inputs, dy = tensors(op, (5, 24)), draw(5, 24, seed=3).float()
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    eager = results(op, inputs, dy)
    for a, b in zip(results(compiled, inputs, dy), eager, strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@EITHER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [*SHAPES, (40_000, 768)], ids=str)
def test_on_the_device_it_errs_at_most_twice_as_much_as_torch(op, shape, dtype):
    inputs = tensors(op, shape, dtype, device="cuda")
    dy = draw(*shape, seed=3).to(inputs[0])
    want = results(op, [t.double() for t in inputs], dy.double(), impl="reference")
    ours, again = (results(op, inputs, dy) for _ in range(2))
    theirs = results(op, inputs, dy, impl="torch")
    for exact, a, b, c in zip(want, ours, again, theirs, strict=True):
        assert torch.equal(a, b)
        error, allowed = ((t.double() - exact).abs().max() for t in (a, c))
        # Where torch is exact by luck (one row, one column), a few roundings are allowed.
        least = 2 * torch.finfo(dtype).eps * max(1, float(exact.abs().max()))
        assert float(error) <= max(2 * float(allowed), least)


@pytest.mark.gpu
@EITHER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", WIDE, ids=str)
def test_on_the_device_values_beyond_the_width_of_the_backward(op, shape, dtype):
    inputs = tensors(op, shape, dtype, device="cuda")
    want = op(*(t.double() for t in inputs), impl="reference")
    bound = 4 * torch.finfo(dtype).eps * float(want.abs().max())
    assert float((op(*inputs, impl="triton").double() - want).abs().max()) <= bound
