"""Chunks whose loss and gradient come from the kernel of cross_entropy; without it: tests/ops."""

import pytest
import torch
import torch.nn.functional as F
from tolerance import gradients

from aigc_lib.kernels.linear_cross_entropy import register
from aigc_lib.ops.linear_cross_entropy import linear_cross_entropy
from kernels.cross_entropy.test_kernels import (
    DTYPES,
    GPU_DTYPES,
    SMOOTHINGS,
    TOLERANCE,
    assert_no_worse_than_torch,
    classes,
    logits,
)

pytestmark = pytest.mark.usefixtures("nan_filled")


def fused_both(inputs, y, **settings):
    exact = [x.double() for x in inputs]
    got = gradients(lambda x, w: linear_cross_entropy(x, w, y, impl="triton", **settings), inputs)
    settings.pop("chunk", None)
    want = gradients(
        lambda x, w: linear_cross_entropy(x, w, y, impl="reference", **settings), exact
    )
    return got, want


def features(num, num_classes, width=4, dtype=torch.float32):
    return [logits(num, width, dtype=dtype), logits(num_classes, width, dtype=dtype, scale=0.5)]


@DTYPES
@pytest.mark.parametrize("num_classes", [1, 128, 1000, 5000])
@SMOOTHINGS
def test_chunks_equal_the_formula(dtype, num_classes, smoothing):
    y = classes(5, num_classes=num_classes)
    y[3] = -100
    inputs = features(5, num_classes, dtype=dtype)
    got, want = fused_both(inputs, y, chunk=2, label_smoothing=smoothing)
    if num_classes == 1:
        assert float(max(g.abs().max() for g in got)) < 1e-6
        return
    # The logits are rounded to the features' dtype first.
    slack = 1 if dtype == torch.float32 else 4
    for a, b in zip(got, want, strict=True):
        error = float((a.double() - b).abs().max())
        assert error <= slack * TOLERANCE[dtype] * max(1e-3, float(b.abs().max())) + 1e-7


@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_only_what_needs_a_gradient_gets_one(needs):
    y = classes(5, num_classes=30)
    x, w = (t.requires_grad_(need) for t, need in zip(features(5, 30), needs, strict=True))
    loss = linear_cross_entropy(x, w, y, chunk=3, impl="triton")
    want = gradients(lambda x, w: linear_cross_entropy(x, w, y), [x, w])
    assert torch.allclose(loss, want[0])
    assert loss.requires_grad == any(needs)
    if any(needs):
        loss.backward()
    scale = float(gradients(lambda x: x, [torch.ones(())])[1])
    for t, need, g in zip((x, w), needs, want[1:], strict=True):
        assert (t.grad is not None) == need
        assert not need or torch.allclose(scale * t.grad, g, atol=1e-6)


@pytest.mark.parametrize("wrong", [40, -1, 2**40, -(2**40)])
def test_a_target_out_of_range_gives_nan_and_reads_nothing(wrong):
    y = classes(3, num_classes=40)
    y[1] = wrong
    inputs = logits(3, 40), torch.eye(40)
    total, to_x, to_w = register.forward(*inputs, y, -100, 0.0, 2, True, True, True)
    assert total.isnan()
    assert to_x.isnan().all(1).tolist() == [False, True, False]
    assert to_w.isnan().all()


def test_results_are_the_same_each_time():
    inputs, y = features(4, 300), classes(4, num_classes=300)
    for a, b in zip(fused_both(inputs, y)[0], fused_both(inputs, y)[0], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("dtype", "smoothing"), [(torch.float32, 0.1), (torch.float16, 0.0)])
def test_the_custom_op_keeps_its_promises(dtype, smoothing):
    y = classes(6, num_classes=20)
    y[2] = -100
    x, w = (t.requires_grad_() for t in features(6, 20, dtype=dtype))
    torch.library.opcheck(register.forward, (x, w, y, -100, smoothing, 4, True, True, True))


@pytest.mark.usefixtures("hook_off")
def test_it_compiles_whole():
    y = classes(3, num_classes=20)
    y[1] = -100

    def run(x, w):
        return linear_cross_entropy(x, w, y, chunk=2, impl="triton")

    inputs = features(3, 20)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, inputs), gradients(run, inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@GPU_DTYPES
@pytest.mark.parametrize("impl", ["torch", "triton"])
@pytest.mark.parametrize("num_classes", [130, 1024, 50257])
@SMOOTHINGS
def test_chunks_on_the_device_err_at_most_twice_as_much_as_torch(
    dtype, impl, num_classes, smoothing
):
    inputs = [x.cuda() for x in features(37, num_classes, width=64, dtype=dtype)]
    y = classes(37, num_classes=num_classes).cuda()
    y[5] = -100
    same = {"label_smoothing": smoothing}
    assert_no_worse_than_torch(
        lambda x, w: linear_cross_entropy(x, w, y, chunk=10, impl=impl, **same),
        lambda x, w: F.cross_entropy(F.linear(x, w), y, **same),
        inputs,
        dtype,
    )


@pytest.mark.gpu
def test_a_target_out_of_range_gives_nan_on_the_device():
    x, w = (t.cuda() for t in features(3, 5000))
    y = classes(3, num_classes=5000).cuda()
    y[1] = 2**40
    for impl in ("torch", "triton"):
        assert linear_cross_entropy(x, w, y, impl=impl).isnan()
