import pytest
import torch
import torch.nn.functional as F
from references import attention_by_loops
from tolerance import assert_as_exact_as_torch, assert_same, gradients

from aigc_lib.ops.attention import attention, attention_weights

T, M = 4, 6
BOTH = pytest.mark.parametrize("impl", ["reference", "torch"])
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def tensors(batch=2, heads=3, num_queries=T, num_keys=M, width=5, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)

    def one(tokens):
        x = torch.randn(batch, heads, tokens, width, generator=draw, dtype=torch.float64)
        return x.to(dtype)

    return [one(num_queries), one(num_keys), one(num_keys)]


MASK = torch.rand(2, 3, T, M, generator=torch.Generator().manual_seed(0)) < 0.6

# Settings, and the same in words: may query i see key j? Query i stands at key i + M - T.
CASES = {
    "plain": ({}, lambda b, h, i, j: True),
    "scale": ({"scale": 1.7}, lambda b, h, i, j: True),
    "negative scale": ({"scale": -0.3}, lambda b, h, i, j: True),
    "scale 0": ({"scale": 0}, lambda b, h, i, j: True),
    "causal, scale 0": ({"is_causal": True, "scale": 0.0}, lambda b, h, i, j: j <= i + 2),
    "causal": ({"is_causal": True}, lambda b, h, i, j: j <= i + 2),
    "causal, scale": ({"is_causal": True, "scale": 2}, lambda b, h, i, j: j <= i + 2),
    "window 1": ({"is_causal": True, "window": 1}, lambda b, h, i, j: j == i + 2),
    "window 3": ({"is_causal": True, "window": 3}, lambda b, h, i, j: i <= j <= i + 2),
    "both sides": ({"window": 2}, lambda b, h, i, j: i + 1 <= j <= i + 3),
    "mask": ({"mask": MASK}, lambda b, h, i, j: bool(MASK[b, h, i, j])),
    "mask of keys": ({"mask": MASK[0, 0, 0]}, lambda b, h, i, j: bool(MASK[0, 0, 0, j])),
    "mask per example": (
        {"mask": MASK[:, :1, :1]},
        lambda b, h, i, j: bool(MASK[b, 0, 0, j]),
    ),
    "all together": (
        {"mask": MASK, "is_causal": True, "window": 4, "scale": 0.9},
        lambda b, h, i, j: bool(MASK[b, h, i, j]) and i - 1 <= j <= i + 2,
    ),
}


@BOTH
@pytest.mark.parametrize("case", CASES)
def test_it_equals_a_loop_over_every_index(case, impl):
    settings, may_attend = CASES[case]
    scale = settings.get("scale")
    assert_same(
        lambda q, k, v: attention(q, k, v, impl=impl, **settings),
        lambda q, k, v: attention_by_loops(q, k, v, may_attend=may_attend, scale=scale),
        tensors(),
    )


def test_the_mask_hides_something_and_kills_no_row_in_the_cases_above():
    assert MASK.any(3).all()
    assert not MASK[0, 0, 0].all()


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_distributions_over_the_allowed_keys(case):
    settings, may_attend = CASES[case]
    q, k, v = tensors()
    weights = attention_weights(q, k, **settings)
    allowed = torch.tensor(
        [
            [[[may_attend(b, h, i, j) for j in range(M)] for i in range(T)] for h in range(3)]
            for b in range(2)
        ]
    )
    assert torch.equal(weights > 0, allowed)
    # "all together" leaves some rows without a key.
    assert torch.allclose(weights.sum(3), allowed.any(3).double(), atol=1e-14)
    assert torch.allclose(weights @ v, attention(q, k, v, **settings), atol=1e-14)


@BOTH
def test_equal_scores_give_the_mean_of_the_values(impl):
    _, k, v = tensors()
    out = attention(torch.zeros(2, 3, T, 5, dtype=torch.float64), k, v, impl=impl)
    assert torch.allclose(out, v.mean(2, keepdim=True).expand_as(out), atol=1e-14)


@BOTH
def test_queries_come_out_in_their_order_and_keys_in_any(impl):
    q, k, v = tensors()
    out = attention(q, k, v, impl=impl)
    queries, keys = torch.randperm(T), torch.randperm(M)
    assert torch.allclose(attention(q[:, :, queries], k, v, impl=impl), out[:, :, queries])
    shuffled = attention(q, k[:, :, keys], v[:, :, keys], impl=impl)
    assert torch.allclose(shuffled, out, atol=1e-14)


@BOTH
def test_a_shift_of_all_keys_changes_nothing(impl):
    q, k, v = tensors()
    moved = attention(q, k + torch.randn(2, 3, 1, 5, dtype=torch.float64), v, impl=impl)
    assert torch.allclose(moved, attention(q, k, v, impl=impl), atol=1e-13)


@BOTH
@pytest.mark.parametrize("window", [None, 2])
def test_causal_attention_sees_neither_the_future_nor_beyond_the_window(impl, window):
    q, k, v = (x.requires_grad_() for x in tensors(num_queries=M))
    out = attention(q, k, v, is_causal=True, window=window, impl=impl)
    for i in range(M):
        to_k, to_v = torch.autograd.grad(out[:, :, i].sum(), [k, v], retain_graph=True)
        first = 0 if window is None else max(0, i + 1 - window)
        for gradient in (to_k, to_v):
            assert (gradient[:, :, :first] == 0).all()
            assert (gradient[:, :, i + 1 :] == 0).all()
        assert (to_v[:, :, first : i + 1] != 0).all()
        later_k, later_v = k.detach().clone(), v.detach().clone()
        later_k[:, :, i + 1 :] += 1e3
        later_v[:, :, i + 1 :] += 1e3
        again = attention(q, later_k, later_v, is_causal=True, window=window, impl=impl)
        assert torch.equal(again[:, :, : i + 1], out[:, :, : i + 1])


@BOTH
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_cache_of_earlier_keys_gives_the_same_as_the_whole_sequence(impl, chunk, window):
    q, k, v = tensors(num_queries=M)
    whole = attention(q, k, v, is_causal=True, window=window, impl=impl)
    for end in range(chunk, M + 1, chunk):
        part = attention(
            q[:, :, end - chunk : end],
            k[:, :, :end],
            v[:, :, :end],
            is_causal=True,
            window=window,
            impl=impl,
        )
        assert torch.allclose(part, whole[:, :, end - chunk : end], atol=1e-14)


@pytest.mark.parametrize("impl", ["reference", "torch", None])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("scale", [None, 1.3])
def test_it_agrees_with_torch_on_a_square(impl, is_causal, scale):
    same = {"is_causal": is_causal, "scale": scale}
    assert_same(
        lambda q, k, v: attention(q, k, v, impl=impl, **same),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **same),
        tensors(num_queries=M),
    )


@BOTH
def test_the_causal_diagonal_is_the_bottom_right_one(impl):
    q, k, v = tensors()
    bottom_right = torch.ones(T, M, dtype=torch.bool).tril(M - T)
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=bottom_right)
    assert torch.allclose(attention(q, k, v, is_causal=True, impl=impl), want, atol=1e-14)
    top_left = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert not torch.allclose(top_left, want, atol=1e-2)


@BOTH
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_query_that_may_attend_to_nothing_gets_zeros(impl, device, dtype):
    mask = MASK.clone()
    mask[0, 1, 2] = mask[1, :, 0] = False
    alive = mask.any(3)
    inputs = [x.to(device) for x in tensors(dtype=dtype)]
    with torch.autograd.set_detect_anomaly(True):
        out, *grads = gradients(
            lambda q, k, v: attention(q, k, v, mask=mask.to(device), impl=impl), inputs
        )
    assert (out.cpu()[~alive] == 0).all()
    assert (out.cpu()[alive] != 0).any(1).all()
    assert all(g.isfinite().all() for g in grads)
    assert (grads[0].cpu()[~alive] == 0).all()
    weights = attention_weights(*inputs[:2], mask=mask.to(device)).cpu()
    assert (weights[~alive] == 0).all()


def test_zeros_do_not_depend_on_what_a_kernel_does_with_such_a_row(monkeypatch):
    def literal(q, k, v, attn_mask, scale):
        scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
        return scores.masked_fill(~attn_mask, -torch.inf).softmax(3) @ v

    mask = MASK.clone()
    mask[0, 1, 2] = False
    inputs = tensors()
    want = gradients(lambda q, k, v: attention(q, k, v, mask=mask, impl="reference"), inputs)
    assert literal(*inputs, mask, None)[0, 1, 2].isnan().all()
    monkeypatch.setattr(F, "scaled_dot_product_attention", literal)
    got = gradients(lambda q, k, v: attention(q, k, v, mask=mask, impl="torch"), inputs)
    for a, b in zip(got, want, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


@BOTH
def test_nothing_to_attend_to_at_all_gives_zeros(impl):
    out, *grads = gradients(
        lambda q, k, v: attention(q, k, v, mask=torch.zeros(M, dtype=torch.bool), impl=impl),
        tensors(),
    )
    assert (out == 0).all()
    assert all((g == 0).all() for g in grads)
    q, k, v = tensors(num_keys=0)
    assert torch.equal(attention(q, k, v, impl=impl), torch.zeros_like(q))


@BOTH
def test_a_huge_score_or_value_behind_the_mask_does_not_leak(impl):
    q, k, v = tensors(dtype=torch.float32)
    mask = torch.ones(M, dtype=torch.bool)
    mask[2] = False
    want = attention(q, k, v, mask=mask, impl=impl)
    k[:, :, 2], v[:, :, 2] = 1e18, 1e30
    assert torch.allclose(attention(q, k, v, mask=mask, impl=impl), want)


@BOTH
@pytest.mark.parametrize("settings", [{}, {"is_causal": True}, {"window": 2}, {"mask": MASK[:1]}])
@pytest.mark.parametrize("sizes", [{"batch": 0}, {"heads": 0}, {"num_queries": 0}])
def test_an_empty_axis_gives_an_empty_result(impl, settings, sizes):
    if "mask" in settings:
        settings = {"mask": torch.ones(M, dtype=torch.bool)}
    q, k, v = tensors(**sizes)
    out, *grads = gradients(lambda *x: attention(*x, impl=impl, **settings), [q, k, v])
    assert out.shape == q.shape
    assert [g.shape for g in grads] == [q.shape, k.shape, v.shape]


@BOTH
@pytest.mark.parametrize("settings", [{}, {"is_causal": True}, {"mask": MASK}])
def test_strides_do_not_matter(impl, settings):
    dense = tensors()
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in dense]
    every_other = [torch.stack([x, -x], 3).flatten(2, 3)[:, :, ::2] for x in dense]
    want = attention(*dense, impl=impl, **settings)
    for inputs in (strided, every_other):
        assert not any(x.is_contiguous() for x in inputs)
        assert torch.allclose(attention(*inputs, impl=impl, **settings), want, atol=1e-14)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_causal", [False, True])
def test_low_precision_errs_at_most_twice_as_much_as_torch(impl, dtype, is_causal):
    assert_as_exact_as_torch(
        lambda q, k, v: attention(q, k, v, is_causal=is_causal, impl=impl),
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=is_causal),
        tensors(num_queries=33, num_keys=33, width=16),
        dtype,
    )


@BOTH
def test_a_sharp_query_fetches_exactly_one_value(impl):
    k = torch.eye(5, dtype=torch.float64)[None, None]
    v = torch.randn(1, 1, 5, 5, dtype=torch.float64)
    order = torch.tensor([3, 0, 4])
    out = attention(k[:, :, order], k, v, scale=60, impl=impl)
    assert torch.allclose(out, v[:, :, order], atol=1e-12)


@pytest.mark.usefixtures("hook_off")
@BOTH
def test_it_compiles_as_a_whole_graph(impl):
    def thrice(q, k, v):
        plain = attention(q, k, v, impl=impl)
        in_a_window = attention(q, k, v, is_causal=True, window=2, impl=impl)
        return plain, in_a_window, attention(q, k, v, mask=MASK, scale=2, impl=impl)

    compiled = torch.compile(thrice, backend="eager", fullgraph=True)
    assert_same(lambda *x: torch.stack(compiled(*x)), lambda *x: torch.stack(thrice(*x)), tensors())


def test_autocast_does_what_it_does_to_the_fused_kernels_of_torch():
    q, k, v = tensors(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        want = F.scaled_dot_product_attention(q, k, v)
        assert torch.equal(attention(q, k, v, impl="torch"), want)
        assert attention(q, k, v).dtype == want.dtype == torch.bfloat16
        assert attention(q.double(), k.double(), v.double()).dtype == torch.float64


Q, K, VALUES = tensors()
LONG = tensors(num_queries=M, num_keys=T)
BAD = {
    "three axes of q": (ValueError, "q", lambda: attention(Q[0], K, VALUES)),
    "three axes of k": (ValueError, "k", lambda: attention(Q, K[0], VALUES)),
    "another batch": (ValueError, "k", lambda: attention(Q, K[:1], VALUES[:1])),
    "fewer heads": (ValueError, "k", lambda: attention(Q, K[:, :1], VALUES[:, :1])),
    "another width": (ValueError, "k", lambda: attention(Q, K[..., :4], VALUES)),
    "fewer values": (ValueError, "v", lambda: attention(Q, K, VALUES[:, :, :5])),
    "narrower values": (ValueError, "v", lambda: attention(Q, K, VALUES[..., :4])),
    "no width": (ValueError, "K >= 1", lambda: attention(Q[..., :0], K[..., :0], VALUES[..., :0])),
    "dtype of k": (TypeError, "k", lambda: attention(Q, K.float(), VALUES)),
    "dtype of v": (TypeError, "v", lambda: attention(Q, K, VALUES.float())),
    "whole numbers": (TypeError, "q", lambda: attention(Q.long(), K.long(), VALUES.long())),
    "device of k": (ValueError, "k", lambda: attention(Q, K.to("meta"), VALUES)),
    "device of v": (ValueError, "v", lambda: attention(Q, K, VALUES.to("meta"))),
    "mask of floats": (TypeError, "mask", lambda: attention(Q, K, VALUES, mask=MASK.double())),
    "mask of ints": (TypeError, "mask", lambda: attention(Q, K, VALUES, mask=MASK.long())),
    "device of mask": (ValueError, "mask", lambda: attention(Q, K, VALUES, mask=MASK.to("meta"))),
    "turned mask": (ValueError, "mask", lambda: attention(Q, K, VALUES, mask=MASK[0, 0].T)),
    "mask of heads": (ValueError, "mask", lambda: attention(Q, K, VALUES, mask=MASK[:, :2])),
    "mask of examples": (
        ValueError,
        "mask",
        lambda: attention(Q[:1], K[:1], VALUES[:1], mask=MASK),
    ),
    "five axes": (ValueError, "mask", lambda: attention(Q, K, VALUES, mask=MASK[None])),
    "empty mask": (ValueError, "mask", lambda: attention(Q, K, VALUES, mask=MASK[0, 0, :0])),
    **{
        f"window {x!r}": (ValueError, "window", lambda x=x: attention(Q, K, VALUES, window=x))
        for x in (0, -1, 2.0, True)
    },
    **{
        f"scale {x}": (ValueError, "scale", lambda x=x: attention(Q, K, VALUES, scale=x))
        for x in (float("nan"), float("inf"), -float("inf"))
    },
    "long, causal": (ValueError, "is_causal", lambda: attention(*LONG, is_causal=True)),
    "long, window": (ValueError, "window", lambda: attention(*LONG, window=2)),
    "float64 kernel": (ValueError, "triton", lambda: attention(Q, K, VALUES, impl="triton")),
    "another impl": (ValueError, "impl", lambda: attention(Q, K, VALUES, impl="fast")),
    "weights, window": (ValueError, "window", lambda: attention_weights(Q, K, window=0)),
    "weights, width": (ValueError, "k", lambda: attention_weights(Q, K[..., :4])),
}


@pytest.mark.usefixtures("hook_off")
@pytest.mark.parametrize(("error", "name", "call"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(error, name, call):
    with pytest.raises(error, match=rf"\b{name}\b"):
        call()


@pytest.mark.usefixtures("hook_off")
def test_more_queries_than_keys_are_fine_without_places():
    assert attention(*LONG).shape == LONG[0].shape


@pytest.mark.usefixtures("hook_off")
def test_a_kernel_that_cannot_run_is_refused():
    with pytest.raises(ValueError, match=r"can't run attention here: "):
        attention(*tensors(width=129, dtype=torch.float32), impl="triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_do_not_overflow(dtype):
    q, k = torch.full((1, 1, 1, 64), -200.0), torch.tensor([[0.0], [200.0]]).expand(1, 1, 2, 64)
    q, k = q.to(dtype), k.to(dtype)
    weights = attention_weights(q, k)
    assert weights.dtype == dtype
    assert weights.flatten().tolist() == [1, 0]
    assert attention_weights(q, k[:, :, 1:].expand(1, 1, 2, 64)).flatten().tolist() == [0.5, 0.5]
    mask = torch.tensor([False, True])
    assert attention_weights(q, k, mask=mask).flatten().tolist() == [0, 1]
