"""The kernels of cross_entropy, in the interpreter unless marked gpu."""

import pytest
import torch
import torch.nn.functional as F
from tolerance import gradients

from aigc_lib.kernels.cross_entropy import kernels, register
from aigc_lib.ops.cross_entropy import cross_entropy

pytestmark = pytest.mark.usefixtures("nan_filled")

# Around the blocks of the table: one block of one warp, one block, several blocks.
VOCABULARIES = [1, 2, 127, 128, 129, 1023, 1024, 1025, 4096, 4097, 9000]
SMOOTHINGS = pytest.mark.parametrize("smoothing", [0, 0.1])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
# Bounds on the error against float64: sums of V terms in float32, and one rounding of the gradient.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def logits(*shape, dtype=torch.float32, scale=2.0):
    draw = torch.Generator().manual_seed(0)
    return (scale * torch.randn(*shape, generator=draw, dtype=torch.float64)).to(dtype)


def classes(*shape, num_classes):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(num_classes, shape, generator=draw)


def both(z, y, **settings):
    """Outputs and gradients of the kernel, and of the formula in float64."""
    got = gradients(lambda z: cross_entropy(z, y, impl="triton", **settings), [z])
    want = gradients(lambda z: cross_entropy(z, y, impl="reference", **settings), [z.double()])
    assert got[0].dtype == torch.float32
    assert got[1].dtype == z.dtype
    assert got[1].is_contiguous()
    return got, want


def assert_close(got, want, dtype):
    assert got[0].shape == want[0].shape
    assert torch.allclose(got[0].double(), want[0], rtol=1e-6, atol=2e-6)
    for a, b in zip(got[1:], want[1:], strict=True):
        assert a.shape == b.shape
        assert float((a.double() - b).abs().max()) <= TOLERANCE[dtype] * float(b.abs().max())


@pytest.mark.parametrize("num_classes", VOCABULARIES)
@SMOOTHINGS
def test_it_equals_the_formula_around_the_edges_of_its_blocks(num_classes, smoothing):
    y = classes(3, num_classes=num_classes)
    y[0] = num_classes - 1
    got, want = both(logits(3, num_classes), y, label_smoothing=smoothing)
    if num_classes == 1:
        assert (got[0] == 0).all()
        assert float(got[1].abs().max()) < 1e-7
    else:
        assert_close(got, want, torch.float32)


@DTYPES
@pytest.mark.parametrize("num_classes", [100, 1000, 5000])
@SMOOTHINGS
def test_it_equals_the_formula_with_ignored_rows(dtype, num_classes, smoothing):
    y = classes(2, 3, num_classes=num_classes)
    y[0, 0] = y[1, 2] = -1
    z = logits(2, 3, num_classes, dtype=dtype)
    z[0, 0] = torch.nan
    got = gradients(
        lambda z: cross_entropy(z, y, ignore_index=-1, label_smoothing=smoothing, impl="triton"),
        [z],
    )
    clean = torch.where(z.isnan(), 0, z)
    assert_close(got, both(clean, y, ignore_index=-1, label_smoothing=smoothing)[1], dtype)
    assert (got[0][0, 0], got[0][1, 2]) == (0, 0)
    assert (got[1][0, 0] == 0).all()
    assert (got[1][1, 2] == 0).all()


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 1, 3)])
def test_any_number_of_batch_axes(shape):
    y = classes(*shape, num_classes=50)
    assert_close(*both(logits(*shape, 50), y), torch.float32)


@pytest.mark.parametrize(
    "view",
    [
        lambda z: z[:, :-1],
        lambda z: z[:, ::2],
        lambda z: z.transpose(0, 1),
        lambda z: z[..., ::3],
        lambda z: z[..., 5:180],
        lambda z: z[..., :9].transpose(1, 2),
        lambda z: z[:1].expand(4, 6, 200),
    ],
)
def test_any_strides(view):
    z = view(logits(4, 6, 200))
    y = classes(*z.shape[:-1], num_classes=z.shape[-1]).mT.contiguous().mT
    assert_close(*both(z, y, label_smoothing=0.1), torch.float32)


def test_the_gradient_of_the_losses_may_be_expanded():
    z, y = logits(5, 40).requires_grad_(), classes(5, num_classes=40)
    (to_z,) = torch.autograd.grad(cross_entropy(z, y, impl="triton").sum(), z)
    want = z.softmax(1) - F.one_hot(y, 40)
    assert torch.allclose(to_z, want, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("ignore_index", [-100, 1, 7])
def test_both_kinds_of_targets(dtype, ignore_index):
    z, y = logits(6, 30), classes(6, num_classes=30).to(dtype)
    y[3] = ignore_index
    assert_close(*both(z, y, ignore_index=ignore_index), torch.float32)


@pytest.mark.parametrize("num_classes", [100, 9000])
def test_forbidden_classes_make_no_nan(num_classes):
    z, y = logits(3, num_classes), torch.full((3,), num_classes - 1)
    # Whole blocks of them, before and after the first allowed one.
    z[0, : num_classes - 3] = -torch.inf
    z[1, 1 : num_classes - 1] = -torch.inf
    z[2, :-1] = -torch.inf
    got, want = both(z, y)
    assert_close(got, want, torch.float32)
    assert (got[1][z == -torch.inf] == 0).all()


@pytest.mark.parametrize("num_classes", [200, 5000])
@SMOOTHINGS
def test_a_shift_of_a_row_costs_no_digits(num_classes, smoothing):
    # Multiples of 1/16 keep their distances when a large number is added.
    z = (logits(3, num_classes) * 16).round() / 16
    y = classes(3, num_classes=num_classes)
    near, _ = both(z, y, label_smoothing=smoothing)
    far, _ = both(z + torch.tensor([[4096.0], [-4096.0], [65536.0]]), y, label_smoothing=smoothing)
    # What is left is the rounding of the log-sum-exp beside the shift.
    assert torch.allclose(far[0], near[0], atol=8e-3)
    assert torch.allclose(far[1], near[1], atol=8e-3)


def test_the_largest_float16_logits_do_not_overflow():
    z = torch.zeros(2, 300, dtype=torch.float16)
    z[0, 7], z[1, 299] = 65504, -65504
    y = torch.tensor([0, 299])
    losses = cross_entropy(z, y, impl="triton")
    assert torch.allclose(losses, cross_entropy(z.double(), y).float())
    assert losses[0] == 65504


@pytest.mark.parametrize("wrong", [40, -1, 2**40, -(2**40)])
def test_a_target_out_of_range_gives_nan_and_reads_nothing(wrong):
    z, y = logits(3, 40).requires_grad_(), classes(3, num_classes=40)
    y[1] = wrong
    losses, lses = register.forward(z[None], y, -100, 0.0)
    (to_z,) = torch.autograd.grad(losses.sum(), z)
    assert losses.isnan().tolist() == [False, True, False]
    assert lses.isfinite().all()
    assert to_z.isnan().all(1).tolist() == [False, True, False]
    assert to_z[[0, 2]].isfinite().all()


def test_a_row_stride_of_two_to_the_30_does_not_overflow(tmp_path):
    # A file of 4 GB with holes: only the pages of the three rows exist.
    stride, wide = 2**30, tmp_path / "wide"
    numbers = torch.from_file(str(wide), True, 2 * stride + 8, dtype=torch.float16)
    z = numbers.as_strided((3, 8), (stride, 1))
    z.copy_(logits(3, 8))
    y = torch.tensor([0, 1, 7])
    losses, lses = register.forward(z[None], y, -100, 0.0)
    exact = z.double().contiguous()
    assert torch.allclose(losses.double(), cross_entropy(exact, y, impl="reference"), atol=1e-6)
    to_z = register.backward(torch.ones(3), z[None], y, lses, -100, 0.0)[0]
    want = exact.softmax(1) - F.one_hot(y, 8)
    assert torch.allclose(to_z.double(), want, atol=1e-3)
    kernels.loss_and_gradient_(z, y, -100, 0.0)
    assert torch.equal(z, to_z)


@DTYPES
@pytest.mark.parametrize("num_classes", [100, 1500])
def test_the_kernel_in_place_knows_rows_that_do_not_count_and_wrong_ones(dtype, num_classes):
    z, y = logits(5, num_classes, dtype=dtype), classes(5, num_classes=num_classes)
    y[1], y[2], y[3] = -100, num_classes, -1
    got = z.clone()
    losses = kernels.loss_and_gradient_(got, y, -100, 0.0)
    assert losses.isnan().tolist() == [False, False, True, True, False]
    assert losses[1] == 0
    assert (got[1] == 0).all()
    assert got[2:4].isnan().all()
    for row in (0, 4):
        exact = z[row].double()
        assert float((losses[row] - F.cross_entropy(exact, y[row])).abs()) < 1e-5
        gradient = exact.softmax(0) - F.one_hot(y[row], num_classes)
        assert float((got[row] - gradient).abs().max()) < TOLERANCE[dtype]


def test_results_are_the_same_each_time():
    z, y = logits(4, 5000), classes(4, num_classes=5000)
    for a, b in zip(both(z, y)[0], both(z, y)[0], strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_raises():
    z, y = logits(3, 20).requires_grad_(), classes(3, num_classes=20)
    (to_z,) = torch.autograd.grad(cross_entropy(z, y, impl="triton").sum(), z, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        (to_z.square().sum() + z.sum()).backward()


@pytest.mark.parametrize(("dtype", "smoothing"), [(torch.float32, 0.1), (torch.float16, 0.0)])
def test_the_custom_ops_keep_their_promises(dtype, smoothing):
    z, y = logits(2, 3, 20, dtype=dtype), classes(6, num_classes=20)
    y[2] = -100
    settings = y, -100, smoothing
    torch.library.opcheck(register.forward, (z.clone().requires_grad_(), *settings))
    losses, lses = register.forward(z, *settings)
    torch.library.opcheck(register.backward, (losses, z, y, lses, *settings[1:]))


@pytest.mark.usefixtures("hook_off")
def test_it_compiles_whole():
    z, y = logits(2, 3, 20), classes(2, 3, num_classes=20)
    y[1, 1] = -100

    def run(z):
        return cross_entropy(z, y, label_smoothing=0.1, impl="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for a, b in zip(gradients(compiled, [z]), gradients(run, [z]), strict=True):
        assert torch.equal(a, b)


@pytest.mark.usefixtures("hook_off")
def test_refusals():
    z, y = logits(2, 5), classes(2, num_classes=5)
    with pytest.raises(ValueError, match="targets"):
        cross_entropy(z, y.fill_(5), impl="triton")
    with pytest.raises(ValueError, match=r"takes float32, float16 and bfloat16, got torch.float64"):
        cross_entropy(z.double(), y.fill_(0), impl="triton")
    with pytest.raises(ValueError, match="interpreter gets bfloat16 wrong"):
        cross_entropy(z.bfloat16(), y, impl="triton")


def test_nothing_is_launched_for_nothing():
    out, to_z = gradients(
        lambda z: cross_entropy(z, classes(0, num_classes=5), impl="triton"), [logits(0, 5)]
    )
    assert (out.shape, to_z.shape) == ((0,), (0, 5))


GPU_DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


def assert_no_worse_than_torch(ours, theirs, inputs, dtype):
    """At most twice torch's error, or one rounding of the largest number."""
    got, peer = gradients(ours, inputs), gradients(theirs, inputs)
    exact = gradients(theirs, [x.double() for x in inputs])
    for want, a, b in zip(exact, got, peer, strict=True):
        error, allowed = ((t.double() - want).abs().max() for t in (a, b))
        rounding = torch.finfo(dtype).eps * want.abs().max()
        assert float(error) <= max(2 * float(allowed), float(rounding))
    again = gradients(ours, inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, again, strict=True))


@pytest.mark.gpu
@GPU_DTYPES
@pytest.mark.parametrize("num_classes", [*VOCABULARIES[1:], 50257, 50304])
@SMOOTHINGS
def test_the_device_errs_at_most_twice_as_much_as_torch(dtype, num_classes, smoothing):
    z = logits(4, 9, num_classes, dtype=dtype).cuda()[:, :-1]
    y = classes(4, 8, num_classes=num_classes).cuda()
    y[0, 3] = -100

    def theirs(z):
        rows, flat = z.reshape(-1, num_classes), y.reshape(-1)
        losses = F.cross_entropy(rows, flat, label_smoothing=smoothing, reduction="none")
        return losses.reshape(y.shape)

    def ours(z):
        return cross_entropy(z, y, label_smoothing=smoothing, impl="triton")

    assert_no_worse_than_torch(ours, theirs, [z], dtype)


@pytest.mark.gpu
def test_a_target_out_of_range_gives_nan_on_the_device():
    z, y = logits(3, 5000).cuda(), classes(3, num_classes=5000).cuda()
    y[1] = 2**40
    losses, to_z = gradients(lambda z: cross_entropy(z, y, impl="triton"), [z])
    assert losses.isnan().tolist() == [False, True, False]
    assert to_z.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.gpu
def test_rows_beyond_two_to_the_31_numbers():
    num, num_classes = 42_700, 50_304
    assert num * num_classes > 2**31
    z = torch.zeros(num, num_classes, dtype=torch.float16, device="cuda")
    z[-1, 3] = 9.0
    y = torch.full((num,), 3, device="cuda")
    losses, to_z = gradients(lambda z: cross_entropy(z, y, impl="triton"), [z])
    want = cross_entropy(z[-2:].double(), y[-2:], impl="reference")
    assert torch.allclose(losses[-2:].double(), want, atol=1e-5)
    assert to_z[-1].isfinite().all()
    assert to_z[-1, 3] != 0
