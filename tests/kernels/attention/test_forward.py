"""The forward kernel of attention against the formula in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from aigc_lib.kernels.attention import forward as kernels
from aigc_lib.kernels.attention import register
from aigc_lib.ops.attention import attention

pytestmark = pytest.mark.usefixtures("nan_filled")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
WIDTHS = pytest.mark.parametrize(
    ("width", "dtype"),
    [(width, torch.float16) for width in (1, 16, 24, 33, 64, 100, 128)]
    + [(width, torch.float32) for width in (24, 64, 100)],  # each padded width
)
DEVICE_DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# With blocks of 16 these bands have blocks before, on either edge of, inside and behind them.
BANDS = {
    "dense": (35, 35, {}),
    "dense, fewer keys": (35, 18, {}),
    "dense, whole blocks": (16, 32, {}),
    "one query, one key": (1, 1, {"is_causal": True}),
    "one query": (1, 33, {"is_causal": True}),
    "causal": (35, 35, {"is_causal": True}),
    "causal, whole blocks": (48, 48, {"is_causal": True}),
    "causal, more keys": (17, 47, {"is_causal": True}),
    "window 1": (18, 34, {"is_causal": True, "window": 1}),
    "window 16": (33, 35, {"is_causal": True, "window": 16}),
    "window 17": (34, 50, {"is_causal": True, "window": 17}),
    "window 40": (20, 75, {"is_causal": True, "window": 40}),
    "window beyond all": (20, 35, {"is_causal": True, "window": 1000}),
    "both sides 1": (18, 34, {"window": 1}),
    "both sides 16": (33, 50, {"window": 16}),
    "both sides 40": (20, 90, {"window": 40}),
}
# Float32 has no loop without tests inside the band, hence less to go wrong.
every_band = pytest.mark.parametrize(
    ("band", "dtype"),
    [(band, torch.float16) for band in BANDS]
    + [(band, torch.float32) for band in ("window 17", "both sides 16")],
)

# Rows without a key among them, and axes along which the mask repeats itself; each with the shape
# that it broadcasts to.
MASKS = {
    "whole": ((2, 2, 17, 20), (2, 2, 17, 20)),
    "of keys": ((20,), (1, 2, 9, 20)),
    "of queries": ((17, 1), (1, 1, 17, 9)),
    "of examples": ((2, 1, 1, 20), (2, 2, 9, 20)),
    "of heads": ((2, 1, 20), (2, 2, 9, 20)),
    "one for all": ((), (1, 1, 9, 20)),
}
every_mask = pytest.mark.parametrize(
    ("mask", "dtype"), [(mask, torch.float32) for mask in MASKS] + [("whole", torch.float16)]
)


def draw(*shape, seed=0, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)


def tensors(num_queries, num_keys, width, *, batch=1, heads=1, **how):
    """q, k, v and a gradient of the output."""
    lengths = (num_queries, num_keys, num_keys, num_queries)
    return [draw(batch, heads, n, width, seed=i, **how) for i, n in enumerate(lengths)]


def a_mask(name):
    mask = draw(*MASKS[name][0], seed=7) > 0.3
    if name == "whole":
        mask[0, 1, 4] = mask[..., 7] = False
    if name in ("of examples", "of heads"):
        mask[1] = False
    return mask


def small_blocks(monkeypatch, *tables):
    """Blocks of 16 × 16 make a few tokens as good as many."""
    for module, names in tables:
        for name in names:
            small = dict.fromkeys((16, 32, 64, 128), ((16, 16, 4, 2),) * 2)
            monkeypatch.setattr(module, name, small)


def assert_close_to_exact(ours, by_torch, exact):
    """At most twice torch's own error, and two roundings of the greatest value beside it.

    What cancels to nothing leaves the roundings of float32.
    """
    assert ours.dtype == by_torch.dtype
    assert ours.shape == exact.shape
    error, allowed = (float((x.double() - exact).abs().max()) for x in (ours, by_torch))
    rounding = torch.finfo(ours.dtype).eps * float(exact.abs().max()) + 2**-21
    assert error <= 2 * (allowed + rounding)  # false for NaN


def assert_right(q, k, v, **settings):
    """The kernel's output errs at most twice as much as torch's own kernel."""
    out = attention(q, k, v, impl="triton", **settings)
    by_torch = attention(q, k, v, impl="torch", **settings)
    exact = attention(q.double(), k.double(), v.double(), impl="reference", **settings)
    assert out.is_contiguous()
    assert_close_to_exact(out, by_torch, exact)
    return out


@WIDTHS
def test_every_width_and_ragged_lengths(width, dtype):
    table = kernels.SINGLE if dtype == torch.float32 else kernels.HALF
    block_t, block_m = table[kernels.padded_width(width)][0][:2]
    assert_right(*tensors(block_t + 1, 2 * block_m + 3, width, dtype=dtype)[:3])
    q, k, v, _ = tensors(block_t - 1, block_m, width, heads=2, dtype=dtype)
    assert_right(q, k, v, is_causal=block_t - 1 <= block_m)


@every_band
def test_every_band(band, dtype, monkeypatch):
    small_blocks(monkeypatch, (kernels, ["HALF", "SINGLE"]))
    num_queries, num_keys, settings = BANDS[band]
    assert_right(*tensors(num_queries, num_keys, 8, dtype=dtype)[:3], **settings)


@pytest.mark.parametrize("num_queries", [127, 128, 129])
@pytest.mark.parametrize("window", [None, 100])
def test_the_shipped_blocks_meet_the_causal_edge(num_queries, window):
    q, k, v, _ = tensors(num_queries, 257, 16, dtype=torch.float16)
    assert_right(q, k, v, is_causal=True, window=window)


@every_mask
def test_every_mask_and_rows_without_a_key(mask, dtype, monkeypatch):
    small_blocks(monkeypatch, (kernels, ["HALF", "SINGLE"]))
    allowed = a_mask(mask)
    batch, heads, *tokens = shape = MASKS[mask][1]
    q, k, v, _ = tensors(*tokens, 16, batch=batch, heads=heads, dtype=dtype)
    out = assert_right(q, k, v, mask=allowed)
    barren = ~allowed.expand(shape).any(3)
    assert barren.any() or mask in ("of keys", "one for all")
    assert (out[barren] == 0).all()
    if mask == "whole":
        assert_right(q, k, v, mask=allowed, is_causal=True, window=9)


@DTYPES
@pytest.mark.parametrize("scale", [-0.7, 0, 2, 1e-30])
def test_any_scale(scale, dtype):
    q, k, v, _ = tensors(20, 70, 16, dtype=dtype)
    assert_right(q, k, v, scale=scale)
    assert_right(q, k, v, scale=scale, is_causal=True, window=30)


@DTYPES
@pytest.mark.parametrize("scale", [-40, 40])
def test_great_scores_do_not_overflow(scale, dtype):
    q, k, v, _ = tensors(20, 70, 16, dtype=dtype)
    assert_right(8 * q, 8 * k, v, scale=scale)


def test_a_sum_over_many_keys_is_held_in_float32():
    q, k, v, _ = tensors(3, 2000, 16, dtype=torch.float16)
    out = attention(q * 0, k, v + 1, impl="triton")
    exact = (v + 1).double().mean(2, keepdim=True)
    assert float((out.double() - exact).abs().max()) < 6e-4  # half a unit in the last place near 1


def test_any_strides(monkeypatch):
    small_blocks(monkeypatch, (kernels, ["HALF", "SINGLE"]))
    q, k, v, _ = tensors(9, 20, 24, batch=2, heads=2, dtype=torch.float16)
    want = attention(q, k, v, impl="triton")
    heads_inside = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    width_strided = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    packed = torch.cat([k, v], 3).split(24, 3)
    each_its_own = (q, packed[0], v)
    for inputs in (heads_inside, width_strided, (q, *packed), each_its_own):
        assert not inputs[1].is_contiguous()
        assert torch.equal(attention(*inputs, impl="triton"), want)
    one_for_all = [x[:1, :1].expand(2, 2, -1, -1) for x in (k, v)]
    assert_right(q, *one_for_all)


def test_nothing_beyond_the_edges_is_read():
    inside = tensors(33, 70, 24)[:3]
    surrounded = []
    for x in inside:
        wide = torch.full((2, 2, x.shape[2] + 40, 48), math.nan)
        wide[1:, 1:, :-40, :24] = x
        surrounded.append(wide[1:, 1:, :-40, :24])
    mask = draw(33, 70) > 0
    for settings in ({}, {"mask": mask}, {"is_causal": True, "window": 20}):
        want = attention(*inside, impl="triton", **settings)
        assert torch.equal(attention(*surrounded, impl="triton", **settings), want)


def test_the_logarithm_of_the_sum(monkeypatch):
    small_blocks(monkeypatch, (kernels, ["SINGLE"]))
    q, k, v, _ = tensors(17, 20, 16, batch=2, heads=2)
    mask = a_mask("whole")
    _, lse = register.forward(q, k, v, mask, -0.3, 2**30, 2**30)
    scores = -0.3 * q.double() @ k.double().transpose(2, 3)
    want = scores.masked_fill(~mask, -math.inf).logsumexp(3) / math.log(2)
    barren = ~mask.any(3)
    assert barren.any()
    assert (lse[barren] == math.inf).all()
    assert torch.allclose(lse[~barren].double(), want[~barren], atol=1e-5)


def test_a_nan_stays_visible():
    q, k, v, _ = tensors(5, 20, 16)
    q[0, 0, 2, 3] = math.nan
    out = attention(q, k, v, impl="triton")
    assert out[0, 0, 2].isnan().all()
    assert out[0, 0, :2].isfinite().all()


@DTYPES
def test_it_gives_the_same_bits_twice(dtype):
    q, k, v, _ = tensors(70, 70, 16, heads=2, dtype=dtype)
    first, again = (attention(q, k, v, is_causal=True, impl="triton") for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("sizes", [(0, 1, 5, 6), (1, 0, 5, 6), (1, 1, 0, 6), (1, 1, 5, 0)])
def test_an_empty_axis_launches_nothing(sizes, monkeypatch):
    monkeypatch.setattr(kernels, "forward", None)
    batch, heads, num_queries, num_keys = sizes
    q, k, v, _ = tensors(num_queries, num_keys, 8, batch=batch, heads=heads)
    assert torch.equal(attention(q, k, v, impl="triton"), torch.zeros_like(q))


def test_a_head_that_is_too_wide_is_refused():
    q, k, v, _ = tensors(2, 2, 129)
    with pytest.raises(ValueError, match="heads of width 128 at most, got 129; beyond that"):
        attention(q, k, v, impl="triton")
    assert attention(q, k, v).shape == q.shape


def test_autocast_computes_in_its_dtype_as_torch_does():
    inputs = tensors(5, 7, 16)[:3]
    want = attention(*[x.half() for x in inputs], impl="triton")
    with torch.autocast("cpu", torch.float16):
        out = attention(*inputs, impl="triton")
        assert F.scaled_dot_product_attention(*inputs).dtype == out.dtype == torch.float16
        assert torch.equal(out, want)
        assert attention(*inputs, impl="torch").dtype == torch.float16
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match="interpreter gets bfloat16 wrong"),
    ):
        attention(*inputs, impl="triton")


def test_float32_products_follow_the_setting_of_torch():
    x = torch.ones(1)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert kernels.precision(x) == "ieee"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert kernels.precision(x) == "tf32"
        assert kernels.precision(x.half()) == "ieee"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("mask", [None, "whole"])
def test_torch_accepts_the_operator(mask, monkeypatch):
    small_blocks(monkeypatch, (kernels, ["SINGLE"]))
    q, k, v, _ = tensors(3, 5, 8)
    mask = None if mask is None else draw(3, 5) > -1
    torch.library.opcheck(
        register.forward, (q, k, v, mask, 0.3, 2, 0), test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.usefixtures("hook_off")
def test_it_compiles_as_a_whole_graph():
    def twice(q, k, v):
        return 2 * attention(q, k, v, is_causal=True, window=9, impl="triton")

    inputs = tensors(5, 20, 16)[:3]
    compiled = torch.compile(twice, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*inputs), twice(*inputs))
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(compiled(*inputs), twice(*inputs))


# On a device.

ON_DEVICE = {
    "dense": (300, 500, {}),
    "fewer keys": (500, 300, {"scale": -0.2}),
    "causal": (777, 777, {"is_causal": True}),
    "window": (512, 1000, {"is_causal": True, "window": 130}),
    "both sides": (333, 512, {"window": 200}),
    "one query": (1, 1025, {"is_causal": True}),
    "mask": (259, 300, {"mask": (259, 300)}),
}
every_case = pytest.mark.parametrize("case", ON_DEVICE)
every_dtype = pytest.mark.parametrize("dtype", DEVICE_DTYPES)
every_width = pytest.mark.parametrize("width", [16, 24, 32, 64, 80, 128])


def on_device(case, width, dtype):
    num_queries, num_keys, settings = ON_DEVICE[case]
    settings = dict(settings)
    if "mask" in settings:
        settings["mask"] = (draw(*settings["mask"], seed=7) > 0.8).cuda()
    how = {"batch": 2, "heads": 3, "dtype": dtype, "device": "cuda"}
    return tensors(num_queries, num_keys, width, **how), settings


@pytest.mark.gpu
@every_case
@every_width
@every_dtype
def test_on_a_device_it_errs_at_most_twice_as_much_as_torch(case, width, dtype):
    (q, k, v, _), settings = on_device(case, width, dtype)
    out = assert_right(q, k, v, **settings)
    assert torch.equal(attention(q, k, v, impl="triton", **settings), out)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [32, 64, 128])
def test_on_a_device_tf32_is_used_when_it_is_allowed(width):
    (q, k, v, _), _ = on_device("causal", width, torch.float32)
    exact = attention(q.double(), k.double(), v.double(), is_causal=True, impl="reference")
    before = torch.backends.cuda.matmul.fp32_precision
    errors = []
    try:
        for precision in ("ieee", "tf32"):
            torch.backends.cuda.matmul.fp32_precision = precision
            out = attention(q, k, v, is_causal=True, impl="triton")
            errors.append(float((out.double() - exact).abs().max()))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert errors[0] < 1e-5
    assert 1e-5 < errors[1] < 1e-2
