import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_as_exact_as_torch, assert_same, gradients

from aigc_lib.ops import norm
from aigc_lib.ops.norm import layer_norm, rms_norm

C = 6
BOTH = pytest.mark.parametrize("impl", ["reference", "torch"])
EITHER = pytest.mark.parametrize("op", [layer_norm, rms_norm])
SHAPES = pytest.mark.parametrize("shape", [(C,), (5, C), (2, 3, C), (2, 1, 4, C), (3, 1), (1, 1)])


@pytest.fixture(autouse=True)
def _own_passes(monkeypatch):
    """Take the course's own RMSNorm for these small inputs, too."""
    monkeypatch.setattr(norm, "_FEW", 0)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tensors(op, *shape):
    """x, weight and, where the op takes one, bias."""
    x, weight, bias = (draw(*s, seed=i) for i, s in enumerate([shape, shape[-1:], shape[-1:]]))
    return [3 * x + 1, weight, bias] if op is layer_norm else [3 * x + 1, weight]


def by_torch(op, eps):
    if op is layer_norm:
        return lambda x, w=None, b=None: F.layer_norm(x, x.shape[-1:], w, b, eps)
    return lambda x, w=None: F.rms_norm(x, x.shape[-1:], w, eps)


@BOTH
@pytest.mark.parametrize("offset", [0, -5, 100])
def test_layer_norm_gives_mean_zero_and_variance_one(offset, impl):
    y = layer_norm(4 * draw(7, 33) + offset, eps=0, impl=impl)
    assert torch.allclose(y.mean(1), torch.zeros(7, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(y.var(1, correction=0), torch.ones(7, dtype=torch.float64))


@BOTH
def test_rms_norm_gives_mean_square_one(impl):
    y = rms_norm(4 * draw(7, 33) - 5, eps=0, impl=impl)
    assert torch.allclose(y.square().mean(1), torch.ones(7, dtype=torch.float64))


@BOTH
def test_rows_that_can_be_done_by_hand(impl):
    x = torch.tensor([[1.0, 3.0], [-2.0, 6.0]], dtype=torch.float64)
    weight, bias = torch.tensor([[2, 3], [10, 20]], dtype=torch.float64)
    # Mean 2, variance 1; mean 2, variance 16: each plus 9 is 10 or 25.
    got = layer_norm(x, weight, bias, eps=9, impl=impl)
    want = torch.tensor([[10 - 2 / 10**0.5, 20 + 3 / 10**0.5], [10 - 8 / 5, 20 + 12 / 5]])
    assert torch.allclose(got, want.double())
    # Mean squares 5 and 20: each plus 4 or 5.
    got = rms_norm(x, weight, eps=4, impl=impl)
    assert torch.allclose(got[0], torch.tensor([2 / 3, 3], dtype=torch.float64))
    got = rms_norm(x, weight, eps=5, impl=impl)
    assert torch.allclose(got[1], torch.tensor([-4 / 5, 18 / 5], dtype=torch.float64))


@BOTH
@EITHER
def test_the_gradient_is_orthogonal_to_what_the_norm_takes_away(op, impl):
    x = (3 * draw(5, C) + 1).requires_grad_()
    y = op(x, draw(C, seed=1), eps=0, impl=impl)
    (dx,) = torch.autograd.grad((y * draw(5, C, seed=2)).sum(), x)
    assert (dx.abs().amax(1) > 1e-2).all()
    zero = torch.zeros(5, dtype=torch.float64)
    assert torch.allclose((op(x, eps=0) * dx).sum(1), zero, atol=1e-13)
    assert torch.allclose(dx.sum(1), zero, atol=1e-13) == (op is layer_norm)


@BOTH
@EITHER
def test_the_scale_of_a_row_does_not_matter(op, impl):
    x, *affine = tensors(op, 5, C)
    scale = torch.logspace(-3, 3, 5, dtype=torch.float64)[:, None]
    want = op(x, *affine, eps=0, impl=impl)
    assert torch.allclose(op(scale * x, *affine, eps=0, impl=impl), want)
    assert not torch.allclose(op(scale * x, *affine, impl=impl), want, rtol=1e-9)


@BOTH
def test_the_offset_of_a_row_matters_to_rms_norm_only(impl):
    x, *affine = tensors(layer_norm, 5, C)
    offset = 10 * draw(5, 1)
    want = layer_norm(x, *affine, impl=impl)
    assert torch.allclose(layer_norm(x + offset, *affine, impl=impl), want)
    assert not torch.allclose(rms_norm(x + offset, impl=impl), rms_norm(x, impl=impl), atol=0.1)


@BOTH
def test_without_an_offset_the_two_are_the_same(impl):
    x = draw(5, C)
    x = x - x.mean(1, keepdim=True)
    assert torch.allclose(layer_norm(x, eps=0.1, impl=impl), rms_norm(x, eps=0.1, impl=impl))


@BOTH
@EITHER
def test_every_row_is_alone(op, impl):
    x, *affine = tensors(op, 5, C)
    want = op(x, *affine, impl=impl)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.equal(op(x[order], *affine, impl=impl), want[order])
    x[2] = torch.nan
    got = op(x, *affine, impl=impl)
    assert got[2].isnan().all()
    assert torch.equal(got[[0, 1, 3, 4]], want[[0, 1, 3, 4]])


@BOTH
@EITHER
@SHAPES
@pytest.mark.parametrize("num_given", [3, 2, 1])
def test_it_agrees_with_torch(op, shape, num_given, impl):
    inputs = tensors(op, *shape)[:num_given]
    for eps in (0.3, 1) if shape[-1] == 1 else (1e-5, 0.3):
        ours = lambda *inputs, eps=eps: op(*inputs, eps=eps, impl=impl)  # noqa: E731
        assert_same(ours, by_torch(op, eps), inputs, tol=1e-11)


@BOTH
def test_a_bias_needs_no_weight(impl):
    x, _, bias = tensors(layer_norm, 5, C)
    assert_same(
        lambda x, b: layer_norm(x, bias=b, impl=impl),
        lambda x, b: F.layer_norm(x, (C,), bias=b),
        [x, bias],
    )


@EITHER
def test_the_defaults_are_the_usual_ones(op):
    x, *affine = tensors(op, 5, C)
    eps = 1e-5 if op is layer_norm else 1e-6
    for impl in ("reference", "torch", None):
        assert torch.allclose(
            op(1e-3 * x, *affine, impl=impl), by_torch(op, eps)(1e-3 * x, *affine)
        )


@BOTH
@EITHER
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(100, 64), (100, 1000)])  # the largest of many errors
def test_low_precision_errs_at_most_twice_as_much_as_torch(op, shape, dtype, impl):
    assert_as_exact_as_torch(
        lambda *inputs: op(*inputs, eps=1e-5, impl=impl),
        by_torch(op, 1e-5),
        tensors(op, *shape),
        dtype,
    )


@pytest.mark.parametrize(
    ("op", "impl"), [(layer_norm, "reference"), (rms_norm, "reference"), (rms_norm, "torch")]
)  # torch's own layer_norm errs more
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gradient_of_a_weight_is_rounded_once_after_the_sum_over_rows(op, dtype, impl):
    # Equal rows make equal terms: were each rounded on its own, so would their errors add up.
    x, *affine = (t.to(dtype) for t in tensors(op, 1, 200))
    rows = [x.expand(250, -1), *affine]
    upstream = draw(1, 200, seed=1).to(dtype).expand(250, -1)

    def to_weight(inputs, upstream):
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        return torch.autograd.grad(op(*leaves, impl=impl), leaves, upstream)[1]

    got = to_weight(rows, upstream).double()
    want = to_weight([t.double() for t in rows], upstream.double())
    assert ((got - want).abs() <= 0.502 * torch.finfo(dtype).eps * want.abs() + 1e-6).all()


@EITHER
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_without_gradients_it_is_the_same_function(op, dtype):
    inputs = [t.to(dtype).requires_grad_() for t in tensors(op, 5, C)]
    want = op(*inputs)
    with torch.no_grad():
        assert torch.equal(op(*inputs), want)
        assert torch.equal(torch.vmap(lambda x: op(x, *inputs[1:]))(inputs[0]), want)


@pytest.mark.parametrize("with_gradients", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_few_numbers_take_torchs_own_call_and_many_the_few_passes(
    monkeypatch, dtype, with_gradients
):
    # The calls are all that a row of a decoding step costs.
    monkeypatch.undo()
    passes, forward = [], norm._RMSNorm.forward
    counted = staticmethod(lambda *inputs: passes.append(1) or forward(*inputs))
    monkeypatch.setattr(norm._RMSNorm, "forward", counted)
    for rows in (1, norm._FEW // 256 - 1, norm._FEW // 256):
        inputs = [t.to(dtype).requires_grad_(with_gradients) for t in tensors(rms_norm, rows, 256)]
        with torch.set_grad_enabled(with_gradients):
            out = rms_norm(*inputs)
        want = by_torch(rms_norm, 1e-6)(*inputs)
        if rows < norm._FEW // 256:
            assert not passes
            assert torch.equal(out, want)
        assert torch.allclose(out, want, rtol=8 * torch.finfo(dtype).eps)
        assert out.requires_grad == with_gradients
    assert len(passes) == 1


@pytest.mark.parametrize("other", [torch.float32, torch.float64])
def test_a_wider_weight_of_a_short_row_is_computed_with_in_its_dtype(monkeypatch, other):
    monkeypatch.undo()
    x, weight = tensors(rms_norm, 3, 8)
    x, weight = x.bfloat16().requires_grad_(), weight.to(other).requires_grad_()
    out = rms_norm(x, weight)
    want = rms_norm(x.double(), weight.double(), impl="reference")
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, want.bfloat16())
    out.float().sum().backward()
    assert (x.grad.dtype, weight.grad.dtype) == (torch.bfloat16, other)


@BOTH
@EITHER
@pytest.mark.parametrize("offset", [1e4, -3e3])
def test_a_large_offset_does_not_drown_the_variance(op, offset, impl):
    x, *affine = tensors(op, 20, 256)
    inputs = [t.float() for t in (x + offset, *affine)]
    got = gradients(lambda *inputs: op(*inputs, impl=impl), inputs)
    # Each element of x is known to one part in 2²⁴, 6e-4, against a standard deviation of 3.
    # E[x²] − μ² in float32 would be off by more than the variance.
    want = gradients(lambda *inputs: op(*inputs, impl="reference"), [t.double() for t in inputs])
    for a, b in zip(got, want, strict=True):
        assert float((a.double() - b).abs().max()) < 1e-3 * float(b.abs().max())


@BOTH
@EITHER
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0, 1, -7.5])
def test_a_constant_row_stays_finite(op, value, dtype, impl):
    x, *affine = (t.to(dtype) for t in tensors(op, 4, C))
    x[1] = value
    with torch.autograd.set_detect_anomaly(True):
        out, *grads = gradients(lambda *inputs: op(*inputs, impl=impl), [x, *affine])
    assert all(t.isfinite().all() for t in (out, *grads))
    if op is layer_norm:
        assert torch.equal(out[1], affine[1])
    elif value == 0:
        assert (out[1] == 0).all()


@BOTH
@EITHER
def test_half_precision_squares_beyond_its_own_range(op, impl):
    x = torch.tensor([[3e4, -3e4, 1e4, -1e4]], dtype=torch.float16)
    want = op(x.double(), impl=impl)
    assert torch.allclose(op(x, impl=impl).double(), want, atol=1e-3)


@BOTH
@EITHER
@pytest.mark.parametrize(
    ("dtype", "other"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.float16, torch.bfloat16),
    ],
)
def test_a_weight_of_another_dtype_is_computed_with_in_the_wider_one(op, dtype, other, impl):
    x, *affine = tensors(op, 33, 64)
    x, affine = x.to(dtype), [t.to(other) for t in affine]
    got = gradients(lambda *inputs: op(*inputs, impl=impl), [x, *affine])
    assert [t.dtype for t in got] == [dtype, dtype] + [other] * len(affine)
    # In float64, with the upstream gradient that `gradients` rounds to x's dtype.
    inputs = [t.double().requires_grad_() for t in (x, *affine)]
    out = op(*inputs, impl="reference")
    upstream = draw(33, 64, seed=1).to(dtype).double()
    want = [out.detach(), *torch.autograd.grad(out, inputs, upstream)]
    for a, b in zip(got, want, strict=True):
        # Each result is as exact as its own dtype, not as the narrower one of the two.
        bound = 4 * torch.finfo(a.dtype).eps * float(b.abs().max())
        assert float((a.double() - b).abs().max()) <= bound


@BOTH
@EITHER
def test_strides_do_not_matter(op, impl):
    dense, *affine = tensors(op, 4, 5, C)
    want = gradients(lambda *inputs: op(*inputs, impl=impl), [dense, *affine])
    every_other = torch.stack([dense, -dense], 3).flatten(2)[..., ::2]
    transposed = dense.transpose(0, 2).contiguous().transpose(0, 2)
    for x in (every_other, transposed):
        assert not x.is_contiguous()
        out = op(x, *affine, impl=impl)
        assert torch.allclose(out, want[0])
        leaf = x.detach().requires_grad_()
        (dx,) = torch.autograd.grad(op(leaf, *affine, impl=impl).sum(), leaf)
        same = dense.clone().requires_grad_()
        (dense_dx,) = torch.autograd.grad(op(same, *affine, impl=impl).sum(), same)
        assert torch.allclose(dx, dense_dx, atol=1e-12)


@BOTH
@EITHER
@pytest.mark.parametrize("shape", [(0, C), (2, 0, C), (0, 1)])
def test_an_empty_axis_gives_an_empty_result(op, shape, impl):
    inputs = tensors(op, *shape)
    out, *grads = gradients(lambda *inputs: op(*inputs, impl=impl), inputs)
    assert out.shape == shape
    assert [g.shape for g in grads] == [t.shape for t in inputs]
    assert all((g == 0).all() for g in grads)


@BOTH
@EITHER
def test_each_input_gets_its_gradient_alone_too(op, impl):
    inputs = tensors(op, 5, C)
    _, *want = gradients(lambda *inputs: op(*inputs, impl=impl), inputs)
    for i, wanted in enumerate(want):

        def alone(t, i=i):
            return op(*inputs[:i], t, *inputs[i + 1 :], impl=impl)

        assert torch.allclose(gradients(alone, [inputs[i]])[1], wanted)


@BOTH
@EITHER
def test_gradients_of_gradients(op, impl):
    inputs = [t.requires_grad_() for t in tensors(op, 3, C)]
    assert torch.autograd.gradgradcheck(lambda *inputs: op(*inputs, impl=impl), inputs)


@BOTH
@EITHER
def test_it_can_be_mapped_over_an_axis(op, impl):
    x, weight = draw(4, 3, C), draw(4, C)
    got = torch.vmap(lambda x, w: op(x, w, impl=impl))(x, weight)
    want = torch.stack([op(a, w, impl=impl) for a, w in zip(x, weight, strict=True)])
    assert torch.allclose(got, want)


@pytest.mark.usefixtures("hook_off")
@BOTH
@EITHER
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_compiles_into_one_graph(op, impl):
    inputs = tensors(op, 5, C)
    compiled = torch.compile(
        lambda *inputs: op(*inputs, impl=impl), backend="eager", fullgraph=True
    )
    eager = gradients(lambda *inputs: op(*inputs, impl=impl), inputs)
    for a, b in zip(gradients(compiled, inputs), eager, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


ROWS, SCALE, SHIFT = tensors(layer_norm, 5, C)
BAD = {
    "no axis": (ValueError, "x", [ROWS[0, 0]]),
    "no channel": (ValueError, "x", [ROWS[:, :0]]),
    "whole x": (TypeError, "x", [ROWS.long(), SCALE]),
    "fewer weights": (ValueError, "weight", [ROWS, SCALE[:5]]),
    "one weight": (ValueError, "weight", [ROWS, SCALE[:1]]),
    "weights of two axes": (ValueError, "weight", [ROWS, SCALE[None]]),
    "whole weights": (TypeError, "weight", [ROWS, SCALE.long()]),
    "device of weight": (ValueError, "weight", [ROWS, SCALE.to("meta")]),
    "fewer biases": (ValueError, "bias", [ROWS, SCALE, SHIFT[:2]]),
    "boolean bias": (TypeError, "bias", [ROWS, SCALE, SHIFT > 0]),
    "device of bias": (ValueError, "bias", [ROWS, None, SHIFT.to("meta")]),
}
SETTINGS = [("eps", -1e-5), ("eps", float("nan")), ("eps", float("inf")), ("impl", "fast")]


@pytest.mark.usefixtures("hook_off")
@EITHER
@pytest.mark.parametrize(("error", "name", "inputs"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(op, error, name, inputs):
    if op is rms_norm and len(inputs) == 3:
        pytest.skip("rms_norm has no bias")
    with pytest.raises(error, match=rf"expected {name}\b"):
        op(*inputs)


@pytest.mark.usefixtures("hook_off")
@EITHER
@pytest.mark.parametrize(("name", "value"), SETTINGS)
def test_bad_settings_are_refused_by_name(op, name, value):
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        op(ROWS, **{name: value})


@pytest.mark.usefixtures("hook_off")
@EITHER
def test_a_kernel_that_cannot_run_is_refused(op):
    with pytest.raises(ValueError, match=f'"triton" can\'t run {op.__name__} here'):
        op(ROWS, impl="triton")


def test_a_wide_row_is_refused_for_its_gradient_alone():
    x = torch.zeros(1, norm._WIDEST_BACKWARD + 1, requires_grad=True)
    assert "with gradients" in norm._refusal(x)
    assert norm._refusal(x.detach()) is None
    with torch.no_grad():
        assert norm._refusal(x) is None
    assert "without gradients" in norm._refusal(torch.zeros(1, norm._WIDEST + 1))
