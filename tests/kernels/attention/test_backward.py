"""The backward kernels of attention against the derivatives of the formula in float64."""

import itertools

import pytest
import torch

from aigc_lib.kernels.attention import backward as kernels
from aigc_lib.kernels.attention import forward, register
from aigc_lib.ops.attention import attention
from kernels.attention.test_forward import (
    BANDS,
    DTYPES,
    MASKS,
    WIDTHS,
    a_mask,
    assert_close_to_exact,
    every_band,
    every_case,
    every_dtype,
    every_mask,
    every_width,
    on_device,
    small_blocks,
    tensors,
)

pytestmark = pytest.mark.usefixtures("nan_filled")
# Every choice of inputs but none.
WANTED = list(itertools.product([True, False], repeat=3))[:-1]
TABLES = ["KEYS_HALF", "KEYS_SINGLE", "QUERIES_HALF", "QUERIES_SINGLE"]


@pytest.fixture
def blocks_of_16(monkeypatch):
    small_blocks(monkeypatch, (forward, ["HALF", "SINGLE"]), (kernels, TABLES))
    monkeypatch.setattr(kernels, "DELTA_ROWS", 16)


def results(q, k, v, grad, impl="triton", wanted=(True, True, True), **settings):
    """The gradients in q, k and v, as many as are wanted."""
    inputs = [x.detach().requires_grad_(want) for x, want in zip((q, k, v), wanted, strict=True)]
    out = attention(*inputs, impl=impl, **settings)
    return torch.autograd.grad(out, list(itertools.compress(inputs, wanted)), grad)


def assert_right(q, k, v, grad, **settings):
    """Each gradient errs at most twice as much as the one of torch's own kernel."""
    ours = results(q, k, v, grad, **settings)
    by_torch = results(q, k, v, grad, impl="torch", **settings)
    wide = [x.double() for x in (q, k, v, grad)]
    exact = results(*wide, impl="reference", **settings)
    for x, theirs, want in zip(ours, by_torch, exact, strict=True):
        assert x.is_contiguous()
        assert_close_to_exact(x, theirs, want)
    return ours


@WIDTHS
def test_every_width_and_ragged_lengths(width, dtype):
    single = dtype == torch.float32
    padded = forward.padded_width(width)
    query_rows = (kernels.QUERIES_SINGLE if single else kernels.QUERIES_HALF)[padded][0][0]
    key_rows = (kernels.KEYS_SINGLE if single else kernels.KEYS_HALF)[padded][0][1]
    assert_right(*tensors(query_rows + 1, key_rows + 3, width, dtype=dtype))
    if width in (16, 64):
        x = tensors(query_rows - 1, max(query_rows, key_rows), width, heads=2, dtype=dtype)
        assert_right(*x, is_causal=True)


@every_band
@pytest.mark.usefixtures("blocks_of_16")
def test_every_band(band, dtype):
    num_queries, num_keys, settings = BANDS[band]
    assert_right(*tensors(num_queries, num_keys, 8, dtype=dtype), **settings)


@every_mask
@pytest.mark.usefixtures("blocks_of_16")
def test_every_mask_and_rows_without_a_key(mask, dtype):
    settings = {"mask": a_mask(mask)}
    batch, heads, *tokens = shape = MASKS[mask][1]
    inputs = tensors(*tokens, 16, batch=batch, heads=heads, dtype=dtype)
    dq, dk, dv = assert_right(*inputs, **settings)
    allowed = settings["mask"].expand(shape)
    assert (dq[~allowed.any(3)] == 0).all()
    for x in (dk, dv):
        assert (x[~allowed.any(2)] == 0).all()
    if mask == "whole" and dtype == torch.float32:
        assert_right(*inputs, **settings, is_causal=True, window=9)


@DTYPES
@pytest.mark.parametrize("scale", [-0.7, 0, 2])
@pytest.mark.usefixtures("blocks_of_16")
def test_any_scale(scale, dtype):
    inputs = tensors(9, 20, 16, dtype=dtype)
    dq, dk, _ = assert_right(*inputs, scale=scale)
    assert scale != 0 or not (dq.any() or dk.any())
    assert_right(*inputs, scale=scale, is_causal=True, window=10)


def test_a_sum_over_many_queries_is_held_in_float32():
    q, k, v, grad = tensors(700, 3, 16, dtype=torch.float16)
    assert_right(q * 0, k, v, grad + 1)


@pytest.mark.usefixtures("blocks_of_16")
def test_any_strides():
    inputs = tensors(9, 20, 24, heads=2)
    want = results(*inputs)
    heads_inside = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    width_strided = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in inputs]
    # No two alike, so that none can take another's strides.
    _, k, v, dy = inputs
    each_its_own = [
        heads_inside[0],
        torch.cat([k, v], 3)[..., : k.shape[3]],
        torch.cat([v, k, v], 3)[..., : v.shape[3]],
        dy.transpose(0, 1).contiguous().transpose(0, 1),
    ]
    for strided in (heads_inside, width_strided, each_its_own):
        assert all(torch.equal(a, b) for a, b in zip(results(*strided), want, strict=True))
    # What a sum sends back: one number, expanded.
    one = torch.ones(())
    dense = results(*inputs[:3], one.expand(1, 2, 9, 24).contiguous())
    for grad in (one.expand(1, 2, 9, 24), torch.ones(24).expand(1, 2, 9, 24)):
        got = results(*inputs[:3], grad)
        assert all(torch.equal(a, b) for a, b in zip(got, dense, strict=True))


@pytest.mark.usefixtures("blocks_of_16")
def test_a_gradient_does_not_depend_on_which_others_are_wanted(monkeypatch):
    inputs = tensors(9, 20, 16)
    everything = results(*inputs)
    for wanted in WANTED:
        with monkeypatch.context() as patch:
            for name, needed in (("queries_kernel", wanted[0]), ("keys_kernel", any(wanted[1:]))):
                if not needed:
                    patch.setattr(kernels, name, None)  # not even launched
            got = results(*inputs, wanted=wanted)
        want = itertools.compress(everything, wanted)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.usefixtures("blocks_of_16")
def test_it_gives_the_same_bits_twice():
    inputs = tensors(33, 33, 16, dtype=torch.float16)
    first, again = (results(*inputs, is_causal=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.usefixtures("blocks_of_16")
def test_the_gradient_of_a_gradient_is_refused():
    q, k, v, _ = (x.requires_grad_() for x in tensors(3, 4, 8))
    (dq,) = torch.autograd.grad(attention(q, k, v, impl="triton").sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        dq.sum().backward()


@pytest.mark.usefixtures("blocks_of_16")
def test_autocast_returns_gradients_in_the_inputs_dtype():
    inputs = tensors(5, 7, 16)
    half = results(*[x.half() for x in inputs])
    with torch.autocast("cpu", torch.float16):
        got = results(*inputs[:3], inputs[3].half())
    for x, want in zip(got, half, strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, want.float())


@pytest.mark.parametrize(("mask", "wanted"), [("whole", (True, True)), (None, (False, True))])
@pytest.mark.usefixtures("blocks_of_16")
def test_torch_accepts_the_operators(mask, wanted):
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    # To trace them takes seconds: once, forward, which brings the backward with it.
    traced = (*checks, "test_aot_dispatch_dynamic") if mask else checks
    q, k, v, grad = tensors(3, 5, 8)
    mask = None if mask is None else torch.arange(15).view(3, 5) % 4 > 0
    more = (mask, 0.3, 2, 0)
    out, lse = register.forward(q, k, v, *more)
    given = (q, k, v, out, lse, grad, *more, *wanted)
    torch.library.opcheck(register.backward, given, test_utils=checks)
    trained = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(register.forward, (*trained, *more), test_utils=traced)


@pytest.mark.usefixtures("hook_off", "blocks_of_16")
def test_it_compiles_as_a_whole_graph():
    def twice(q, k, v):
        return 2 * attention(q, k, v, is_causal=True, window=9, impl="triton")

    compiled = torch.compile(twice, backend="aot_eager", fullgraph=True)
    q, k, v, grad = tensors(5, 20, 16)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    got, want = (torch.autograd.grad(f(*inputs), inputs, grad) for f in (compiled, twice))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.gpu
@every_case
@every_width
@every_dtype
def test_on_a_device_it_errs_at_most_twice_as_much_as_torch(case, width, dtype):
    inputs, settings = on_device(case, width, dtype)
    got = assert_right(*inputs, **settings)
    again = results(*inputs, **settings)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
