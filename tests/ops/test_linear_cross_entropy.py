import importlib
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_same, gradients
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aigc_lib.kernels.linear_cross_entropy import chunks, register
from aigc_lib.ops.linear_cross_entropy import linear_cross_entropy

N, V, C = 11, 13, 5
BOTH = pytest.mark.parametrize("impl", ["reference", "torch"])
CHUNKS = pytest.mark.parametrize("chunk", [None, 1, 4, N, 100])


def tensors(num=N, num_classes=V, width=C, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(num, width, generator=draw, dtype=torch.float64)
    weight = torch.randn(num_classes, width, generator=draw, dtype=torch.float64)
    return [features.to(dtype), weight.to(dtype)]


def classes(num=N, num_classes=V):
    y = torch.randint(num_classes, (num,), generator=torch.Generator().manual_seed(1))
    y[2] = -100
    return y


def torchs(y, **settings):
    return lambda x, w: F.cross_entropy(F.linear(x, w), y, **settings)


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_it_equals_a_loop_over_positions_and_classes(impl, reduction, smoothing):
    (x, w), y = tensors(), classes()
    total, count = 0.0, 0
    for n in range(N):
        z = [sum(float(x[n, c] * w[v, c]) for c in range(C)) for v in range(V)]
        log_sum = math.log(sum(math.exp(a) for a in z))
        if y[n] != -100:
            count += 1
            for v in range(V):
                share = smoothing / V + (1 - smoothing) * (v == int(y[n]))
                total += share * (log_sum - z[v])
    want = total / count if reduction == "mean" else total
    same = {"label_smoothing": smoothing, "reduction": reduction, "chunk": 3, "impl": impl}
    assert float(linear_cross_entropy(x, w, y, **same)) == pytest.approx(want, abs=1e-12)


@BOTH
def test_features_of_zero_pay_the_logarithm_of_the_number_of_classes(impl):
    x, w = tensors()
    loss = linear_cross_entropy(0 * x, w, classes(), impl=impl)
    assert float(loss) == pytest.approx(math.log(V), abs=1e-14)


@BOTH
def test_a_common_addition_to_all_classes_changes_nothing(impl):
    (x, w), y = tensors(), classes()
    moved = w + torch.randn(1, C, dtype=torch.float64)
    loss, _, to_w = gradients(lambda x, w: linear_cross_entropy(x, w, y, impl=impl), [x, moved])
    assert torch.allclose(loss, linear_cross_entropy(x, w, y, impl=impl), atol=1e-13)
    assert float(to_w.sum(0).abs().max()) < 1e-14


@BOTH
def test_the_order_of_the_positions_does_not_matter(impl):
    (x, w), y = tensors(), classes()
    order = torch.randperm(N)
    want = linear_cross_entropy(x, w, y, chunk=3, impl=impl)
    shuffled = linear_cross_entropy(x[order], w, y[order], chunk=3, impl=impl)
    assert torch.allclose(shuffled, want, atol=1e-14)


@CHUNKS
@pytest.mark.parametrize(("impl", "ignore_index"), [("reference", 3), ("torch", 3), (None, -100)])
@pytest.mark.parametrize("smoothing", [0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_it_agrees_with_torch(chunk, impl, ignore_index, smoothing, reduction):
    y = classes()
    y[y == -100] = ignore_index
    same = {
        "ignore_index": ignore_index,
        "label_smoothing": smoothing,
        "reduction": reduction,
    }
    assert_same(
        lambda x, w: linear_cross_entropy(x, w, y.int(), chunk=chunk, impl=impl, **same),
        torchs(y, **same),
        tensors(),
    )


@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_blocks_that_stay_in_the_cache_change_nothing(smoothing, monkeypatch):
    monkeypatch.setattr(chunks, "CACHED_LOGITS", 2 * V)
    y = classes()
    same = {"label_smoothing": smoothing}
    assert_same(
        lambda x, w: linear_cross_entropy(x, w, y, chunk=7, **same), torchs(y, **same), tensors()
    )


def test_chunks_are_even_and_bounded(monkeypatch):
    x, w = tensors(num=10)
    assert [chunks.chunk_rows(x, w, most) for most in (1, 3, 4, 9, 10, 11)] == [1, 3, 4, 5, 10, 10]
    monkeypatch.setattr(chunks, "MOST_LOGITS", 4 * V)
    assert chunks.chunk_rows(x, w, None) == 4
    monkeypatch.setattr(chunks, "MOST_LOGITS", 1)
    assert chunks.chunk_rows(x, w, None) == 1


@BOTH
@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 1, 3)])
def test_any_number_of_batch_axes(impl, shape):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, C, generator=draw, dtype=torch.float64)
    y = torch.randint(V, shape, generator=draw)
    _, w = tensors()
    loss, to_x, _ = gradients(lambda x, w: linear_cross_entropy(x, w, y, impl=impl), [x, w])
    assert loss.shape == ()
    assert to_x.shape == x.shape
    want = F.cross_entropy((x @ w.T).reshape(-1, V), y.reshape(-1))
    assert torch.allclose(loss, want, atol=1e-14)


@BOTH
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("num", [0, 4])
def test_nothing_to_count_gives_zero_and_no_gradient(impl, reduction, num):
    inputs, y = tensors(num=num), torch.full((num,), -100)
    out = gradients(
        lambda x, w: linear_cross_entropy(x, w, y, reduction=reduction, impl=impl), inputs
    )
    assert [t.shape for t in out[1:]] == [t.shape for t in inputs]
    assert all((t == 0).all() for t in out)


@BOTH
def test_no_width_is_the_uniform_model(impl):
    x, w = tensors(width=0)
    loss, *grads = gradients(lambda x, w: linear_cross_entropy(x, w, classes(), impl=impl), [x, w])
    assert float(loss) == pytest.approx(math.log(V), abs=1e-14)
    assert [g.shape for g in grads] == [x.shape, w.shape]


def test_what_stands_at_an_ignored_position_does_not_matter():
    (x, w), y = tensors(), classes()
    want = gradients(lambda x, w: linear_cross_entropy(x, w, y, chunk=4), [x, w])
    x[2] = torch.nan
    got = gradients(lambda x, w: linear_cross_entropy(x, w, y, chunk=4), [x, w])
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    assert (got[1][2] == 0).all()


@BOTH
def test_strides_do_not_matter(impl):
    (x, w), y = tensors(), classes()
    want = gradients(lambda x, w: linear_cross_entropy(x, w, y, chunk=4, impl=impl), [x, w])
    across = [x.T.contiguous().T, w.T.contiguous().T]
    got = gradients(lambda x, w: linear_cross_entropy(x, w, y, chunk=4, impl=impl), across)
    every_other = torch.stack([x, -x], 1).flatten(0, 1)[::2]
    loss = linear_cross_entropy(every_other, w, torch.stack([y, y], 1).flatten()[::2], impl=impl)
    for a, b in zip([*got, loss], [*want, want[0]], strict=True):
        assert torch.allclose(a, b, atol=1e-14)


@BOTH
@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_only_what_needs_a_gradient_gets_one(impl, needs):
    y = classes()
    x, w = (t.requires_grad_(need) for t, need in zip(tensors(), needs, strict=True))
    loss = linear_cross_entropy(x, w, y, chunk=4, impl=impl)
    assert loss.requires_grad == any(needs)
    assert torch.allclose(loss, torchs(y)(x, w), atol=1e-14)
    if any(needs):
        loss.backward()
    inputs = [t.requires_grad_() for t in tensors()]
    want = torch.autograd.grad(torchs(y)(*inputs), inputs)
    for t, need, g in zip((x, w), needs, want, strict=True):
        assert (t.grad is not None) == need
        assert not need or torch.allclose(t.grad, g, atol=1e-14)


def test_a_graph_can_be_walked_twice():
    y = classes()
    x, w = (t.requires_grad_() for t in tensors())
    loss = linear_cross_entropy(x, w, y, chunk=4)
    first = torch.autograd.grad(5 * loss, [x, w], retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()
    for _ in range(2):
        again = torch.autograd.grad(5 * loss, [x, w], retain_graph=True)
        assert all(torch.allclose(a, b, rtol=1e-13) for a, b in zip(again, kept, strict=True))


def test_a_second_derivative_raises():
    x, w = (t.requires_grad_() for t in tensors())
    loss = linear_cross_entropy(x, w, classes(), chunk=4)
    (to_x,) = torch.autograd.grad(loss, [x], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        (to_x.square().sum() + x.sum()).backward()


class Watch(TorchDispatchMode):
    """Notes the size of every tensor made; a view, or what was handed in, is not made."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.sizes += [t.numel() for t in made if storage(t) not in given]
        return out


def storage(t):
    return t.untyped_storage().data_ptr()


@pytest.fixture
def watch(monkeypatch):
    """Everything that is made, inside the custom op too."""
    outer, inner = Watch(), Watch()
    inner.sizes = outer.sizes
    in_chunks = register.in_chunks

    def watched(*args):
        with inner:
            return in_chunks(*args)

    monkeypatch.setattr(register, "in_chunks", watched)
    return outer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_as_large_as_the_logits(watch, dtype):
    x, w = (t.requires_grad_() for t in tensors(num=100, num_classes=50, width=8, dtype=dtype))
    y = classes(num=100, num_classes=50)
    with watch:
        linear_cross_entropy(x, w, y, chunk=10).backward()
    assert max(watch.sizes) == 100 * 8
    assert 10 * 50 in watch.sizes
    watch.sizes.clear()
    with watch:
        linear_cross_entropy(x, w, y, impl="reference").backward()
    assert max(watch.sizes) == 100 * 50


def test_without_gradients_nothing_of_their_size_is_made(watch):
    x, w = (t.requires_grad_() for t in tensors(num=100, num_classes=300, width=8))
    y = classes(num=100, num_classes=300)
    with watch, torch.no_grad():
        linear_cross_entropy(x, w, y, chunk=2)
    assert max(watch.sizes) == 2 * 300
    assert 100 * 8 not in watch.sizes
    watch.sizes.clear()
    with watch:
        linear_cross_entropy(x, w.detach(), y, chunk=2)
    assert max(watch.sizes) == 100 * 8


def test_the_backward_pass_makes_no_copy_of_the_gradients(watch):
    x, w = (t.requires_grad_() for t in tensors(num=100, num_classes=300, width=8))
    loss = linear_cross_entropy(x, w, classes(num=100, num_classes=300), chunk=2)
    watch.sizes.clear()
    with watch:
        grads = torch.autograd.grad(loss, [x, w])
    assert [g.shape for g in grads] == [x.shape, w.shape]
    assert max(watch.sizes) < 100 * 8


@BOTH
@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_float32_errs_at_most_twice_as_much_as_torch(impl, smoothing):
    y = classes(64, 300)
    same = {"label_smoothing": smoothing, "reduction": "sum"}

    def ours(x, w):
        return linear_cross_entropy(x, w, y, chunk=20, impl=impl, **same)

    # The error of one sum is luck: on average over some draws.
    errors = {ours: [], torchs: []}
    for seed in range(8):
        inputs = tensors(64, 300, 16, torch.float32, seed)
        exact = gradients(torchs(y, **same), [x.double() for x in inputs])
        for which, function in ((ours, ours), (torchs, torchs(y, **same))):
            got = gradients(function, inputs)
            assert all(a.dtype == torch.float32 for a in got)
            largest = [(a - want).abs().max() for a, want in zip(got, exact, strict=True)]
            errors[which].append(torch.stack(largest))
    mean, allowed = (torch.stack(errors[which]).mean(0) for which in (ours, torchs))
    assert (mean <= 2 * allowed).all()


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_half_precision_gives_a_float32_loss_no_worse_than_torch(impl, dtype, reduction):
    inputs, y = tensors(64, 300, 16, dtype=dtype), classes(64, 300)

    def ours(x, w):
        return linear_cross_entropy(x, w, y, chunk=20, impl=impl, reduction=reduction)

    got = gradients(ours, inputs)
    theirs = gradients(torchs(y, reduction=reduction), inputs)
    exact = gradients(torchs(y, reduction=reduction), [t.double() for t in inputs])
    assert [t.dtype for t in got] == [torch.float32, dtype, dtype]
    for want, a, b in zip(exact, got, theirs, strict=True):
        assert (a.double() - want).abs().max() <= 2 * (b.double() - want).abs().max()


def test_the_gradient_of_a_half_precision_weight_is_summed_in_float32():
    # One position at a time adds 1 to a sum that float16 can't count beyond 2048.
    num = 2060
    x = torch.ones(num, 1, dtype=torch.float16)
    w = torch.tensor([[-30.0], [30.0]], dtype=torch.float16).requires_grad_()
    y = torch.zeros(num, dtype=torch.long)
    linear_cross_entropy(x, w, y, chunk=1, reduction="sum").backward()
    assert w.grad.tolist() == [[-num], [num]]


def test_a_mean_over_many_positions_does_not_underflow_in_float16():
    # A probability of 1e-4, shared by 4096 positions, is below float16's least number until the
    # usual factor of a scaled loss is on it.
    num, half_gap = 4096, 4.6
    x = torch.ones(num, 1, dtype=torch.float16).requires_grad_()
    w = torch.tensor([[half_gap], [-half_gap]], dtype=torch.float16).requires_grad_()
    loss = linear_cross_entropy(x, w, torch.zeros(num, dtype=torch.long), chunk=512)
    (loss * 65536).backward()
    wrong = 1 / (1 + math.exp(2 * half_gap))
    assert x.grad[0].item() == pytest.approx(-65536 / num * 2 * half_gap * wrong, rel=1e-2)
    assert w.grad[1].item() == pytest.approx(65536 * wrong, rel=1e-2)


@BOTH
@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)]
)
def test_autocast_does_what_it_does_to_a_linear_layer(impl, dtypes):
    y = classes(64, 300)
    x, w = (t.to(d) for t, d in zip(tensors(64, 300, 16), dtypes, strict=True))

    def ours(x, w):
        with torch.autocast("cpu", torch.bfloat16):
            return linear_cross_entropy(x, w, y, chunk=20, impl=impl)

    def theirs(x, w):
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(F.linear(x, w), y)

    got, want = gradients(ours, [x, w]), gradients(theirs, [x, w])
    exact = gradients(torchs(y), [t.bfloat16().double() for t in (x, w)])
    assert [t.dtype for t in got] == [torch.float32, *dtypes]
    for a, b, e in zip(got, want, exact, strict=True):
        assert (a.double() - e).abs().max() <= 2 * (b.double() - e).abs().max()


@BOTH
def test_shapes_can_be_had_without_memory(impl):
    (x, w), y = tensors(), classes()
    on_meta = [t.to("meta") for t in (x, w)]
    for t in on_meta:
        t.requires_grad_()
    loss = linear_cross_entropy(*on_meta, y.to("meta"), impl=impl)
    loss.backward()
    assert loss.shape == ()
    assert [t.grad.shape for t in on_meta] == [x.shape, w.shape]


@BOTH
def test_autocast_leaves_float64_alone(impl):
    (x, w), y = tensors(), classes()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x, w, y, impl=impl)
    assert loss.dtype == torch.float64
    assert torch.allclose(loss, torchs(y)(x, w), atol=1e-14)


@pytest.mark.parametrize("wrong", [V, -1, -(2**40), 2**40])
def test_a_target_that_is_not_looked_at_is_never_an_address(wrong):
    (x, w), y = tensors(), classes()
    y[5] = wrong
    total, to_x, to_w = register.forward(x, w, y, -100, 0.0, 4, False, True, True)
    assert total.isnan()
    assert to_x[5].isnan().all()
    assert to_w.isnan().all()
    assert to_x[[0, 1, 2, 3, 4, 6, 7, 8, 9, 10]].isfinite().all()


@pytest.mark.parametrize(
    ("needs", "dtype"),
    [
        ((True, True), torch.float16),
        ((False, True), torch.float64),
        ((True, False), torch.float64),
    ],
)
def test_the_custom_ops_keep_their_promises(needs, dtype):
    inputs = [t.requires_grad_(need) for t, need in zip(tensors(dtype=dtype), needs, strict=True)]
    settings = (classes(), -100, 0.1, 4, False, *needs)
    torch.library.opcheck(register.forward, (*inputs, *settings))
    torch.library.opcheck(register.backward, (*(t.detach() for t in inputs), *settings))


def test_the_chunks_need_no_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, chunks.__name__)
    fresh = importlib.import_module(chunks.__name__)
    total, _, _ = fresh.in_chunks(*tensors(), classes(), -100, 0.0, 4, False, True, True)
    assert torch.allclose(total, torchs(classes(), reduction="sum")(*tensors()))


@pytest.mark.usefixtures("hook_off")
@BOTH
def test_it_compiles_whole(impl):
    y = classes()

    def plain(x, w):
        total = linear_cross_entropy(x, w, y, chunk=4, reduction="sum", impl=impl)
        return linear_cross_entropy(x, w, y, chunk=4, impl=impl) + total

    compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
    assert_same(compiled, plain, tensors(), tol=1e-13)
    x, w = tensors()
    with torch.no_grad():
        assert torch.allclose(compiled(x, w), plain(x, w))


@pytest.mark.usefixtures("hook_off")
def test_it_compiles_inside_autocast():
    y = classes()

    def plain(x, w):
        with torch.autocast("cpu", torch.bfloat16):
            return linear_cross_entropy(x, w, y, chunk=4)

    inputs = tensors(dtype=torch.float32)
    compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, inputs), gradients(plain, inputs), strict=True):
        assert torch.equal(a, b)


(X, W), Y = tensors(), classes()
FAR = Y.clone()
FAR[4] = 50304
BAD = {
    "turned weight": (ValueError, "weight", (X, W.T, Y), {}),
    "weight of one axis": (ValueError, "weight", (X, W[0], Y), {}),
    "no axis": (ValueError, "features", (X[0, 0], W, Y[0]), {}),
    "no class": (ValueError, "V >= 1", (X, W[:0], Y), {}),
    "fewer targets": (ValueError, "targets", (X, W, Y[1:]), {}),
    "dtype of weight": (TypeError, "weight", (X, W.float(), Y), {}),
    "device of weight": (ValueError, "weight", (X, W.to("meta"), Y), {}),
    "device of targets": (ValueError, "targets", (X, W, Y.to("meta")), {}),
    "whole features": (TypeError, "features", (X.long(), W.long(), Y), {}),
    "dtype of targets": (TypeError, "targets", (X, W, Y.short()), {}),
    **{
        f"target out of range, {impl}": (ValueError, "targets", (X, W, FAR), {"impl": impl})
        for impl in ("reference", "torch", None)
    },
    "ignore_index": (ValueError, "ignore_index", (X, W, Y), {"ignore_index": 1.5}),
    "label_smoothing": (ValueError, "label_smoothing", (X, W, Y), {"label_smoothing": 2}),
    "reduction": (ValueError, "reduction", (X, W, Y), {"reduction": "none"}),
    **{f"chunk {x!r}": (ValueError, "chunk", (X, W, Y), {"chunk": x}) for x in (0, -1, 2.0, True)},
    "impl": (ValueError, "impl", (X, W, Y), {"impl": "fast"}),
    "kernel": (ValueError, "triton", (X.float(), W.float(), Y), {"impl": "triton"}),
}


@pytest.mark.usefixtures("hook_off")
@pytest.mark.parametrize(("error", "name", "inputs", "settings"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(error, name, inputs, settings):
    with pytest.raises(error, match=rf"\b{name}"):
        linear_cross_entropy(*inputs, **settings)
