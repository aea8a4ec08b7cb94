import pytest
import torch

from bench import gate
from bench.arms import plain

CPU = torch.device("cpu")


def refusal(workshop, compute, dtype=torch.float32, directions=("forward", "backward"), **options):
    case = workshop.case(
        [plain("torch", compute)],
        [plain("eager", lambda x: x.exp())],
        inputs=lambda draw: (torch.randn(64, generator=draw).to(dtype),),
        reference=lambda x: x.exp(),
        eager=lambda x: x.exp(),
        directions=directions,
        **options,
    )
    return gate.inspect(case, CPU)[0].get("torch", "")


class WrongGradient(torch.autograd.Function):
    """exp, whose gradient forgets one element."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx, dy):
        dx = ctx.saved_tensors[0].exp() * dy
        dx[-1] = 0
        return dx


def nan_at_the_end(x):
    return torch.cat([x[:-1].exp(), x[-1:] * torch.nan])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_right_function_passes(workshop, dtype):
    assert not refusal(workshop, lambda x: x.float().exp().to(x.dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_output_is_refused(workshop, dtype):
    step = 8 * torch.finfo(dtype).eps
    assert "wrong output: error" in refusal(workshop, lambda x: x.exp() * (1 + step), dtype)
    assert "error nan" in refusal(workshop, nan_at_the_end, dtype)


def test_a_wrong_gradient_is_refused_where_gradients_are_timed(workshop):
    assert "wrong gradient 0: error" in refusal(workshop, WrongGradient.apply)
    assert "wrong gradient 0" in refusal(workshop, WrongGradient.apply, directions=("both",))
    assert not refusal(workshop, WrongGradient.apply, directions=("forward",))


def test_the_path_without_autograd_is_looked_at_too(workshop):
    def two_paths(x):
        return x.exp() if torch.is_grad_enabled() else x.exp() + 1

    assert "wrong output: error 1" in refusal(workshop, two_paths)
    assert not refusal(workshop, two_paths, directions=("both",))


def test_low_precision_in_float32_is_refused(workshop):
    assert "wrong output" in refusal(workshop, lambda x: x.bfloat16().exp().float())


def test_a_wrong_shape_or_dtype_is_refused(workshop):
    said = refusal(workshop, lambda x: x.exp()[None])
    assert said == "wrong output: (1, 64), torch.float32 for (64,), torch.float32"
    assert "torch.float64 for (64,), torch.float32" in refusal(workshop, lambda x: x.double().exp())


def test_what_raises_is_refused_with_its_first_line(workshop):
    def broken(x):
        raise RuntimeError("no such kernel\nand a long story")

    assert refusal(workshop, broken) == "does not run: RuntimeError: no such kernel"


def test_ctrl_c_is_not_an_arm_that_does_not_run(workshop):
    def stopped(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refusal(workshop, stopped)


def test_a_yardstick_is_held_to_a_formula_of_its_own(workshop):
    for peers, fails in (
        ([plain("dense", torch.sin, reference=torch.sin)], False),
        ([plain("dense", torch.cos, reference=torch.sin)], True),
        ([plain("dense", torch.sin)], True),
    ):
        case = workshop.case([workshop.arm("torch")], peers)
        assert ("dense" in gate.inspect(case, CPU)[0]) == fails


def test_the_seconds_of_compiled_arms_are_told(workshop):
    case = workshop.case([workshop.arm("torch")], [workshop.arm("compile", compiled=True)])
    assert list(gate.inspect(case, CPU)[1]) == ["compile"]
