import types

import pytest
import torch

from aigc_lib.ops import dispatch

X = torch.ones(2)


@pytest.fixture
def card(monkeypatch, hook_off):
    """Pretend that Triton is there and that tensors lie on a card of some capability."""
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.setattr(dispatch, "INTERPRETED", False)

    def pretend(*capability, dtype=torch.float32):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        return types.SimpleNamespace(dtype=dtype, device=torch.device("cuda", 0))

    return pretend


def too_wide(*_):
    return "too wide"


def test_without_a_choice_it_is_torch(card):
    assert dispatch.choose("op", None, X) == "torch"
    assert dispatch.choose("op", None, card(9, 0)) == "torch"


def test_a_kernel_is_taken_where_a_measurement_supports_it_and_only_there(card, monkeypatch):
    monkeypatch.setattr(dispatch, "PROVEN", {("op", (9, 0)): "file.json"})
    assert dispatch.choose("op", None, card(9, 0)) == "triton"
    assert dispatch.choose("op", None, card(9, 0), refusal=lambda x: None) == "triton"
    assert dispatch.choose("op", None, card(9, 0), refusal=too_wide) == "torch"
    assert dispatch.choose("other", None, card(9, 0)) == "torch"
    assert dispatch.choose("op", None, card(8, 0)) == "torch"
    assert dispatch.choose("op", None, card(9, 0, dtype=torch.float64)) == "torch"
    assert dispatch.choose("op", None, X) == "torch"
    card(9, 0)
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    assert dispatch.choose("op", None, card(9, 0)) == "torch"


@pytest.mark.parametrize("impl", dispatch.IMPLEMENTATIONS)
def test_a_choice_is_obeyed(card, impl):
    assert dispatch.choose("op", impl, card(8, 0)) == impl


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match=r"impl to be one of 'reference'.* None, got 'cuda'"):
        dispatch.choose("op", "cuda", X)


def refused(*tensors, **more):
    with pytest.raises(ValueError, match=r'impl="triton" can\'t run op here: ') as caught:
        dispatch.choose("op", "triton", *tensors, **more)
    return str(caught.value)


def test_a_refused_kernel_says_why(card, monkeypatch):
    assert "on a CUDA device, got one on cpu" in refused(card(9, 0), X)
    assert "capability 8.0, this device has 7.5" in refused(card(7, 5))
    assert "and bfloat16, got torch.float64" in refused(card(9, 0, dtype=torch.float64))
    assert "too wide" in refused(card(9, 0), refusal=too_wide)
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    assert "not installed" in refused(card(9, 0))


def test_the_interpreter_counts_only_when_asked_for(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    assert dispatch.choose("op", None, X) == "torch"
    assert dispatch.choose("op", "triton", X) == "triton"
    assert "bfloat16 wrong" in refused(X.bfloat16())


def test_a_compiler_takes_the_capability_for_a_constant(card):
    card(9, 0)
    compiled = torch.compile(
        lambda x: x + dispatch._capability(0)[0], backend="eager", fullgraph=True
    )
    assert compiled(X).tolist() == [10, 10]


def test_autocast_is_what_torch_makes_of_its_inputs():
    tensors = [X, X.half(), X.double(), X.long()]
    assert all(a is b for a, b in zip(dispatch.autocast(*tensors), tensors, strict=True))
    assert dispatch.autocast(X.to("meta"))[0].dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        dtypes = [x.dtype for x in dispatch.autocast(*tensors)]
        assert dispatch.autocast(X.to("meta"))[0].dtype == torch.float32
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float64, torch.int64]


def test_the_decision_is_told_with_what_it_rests_on(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_TRITON", True)
    monkeypatch.setattr(dispatch, "PROVEN", {("op", (9, 0)): "file.json"})
    assert dispatch.decision("op", None) == "torch: the kernel needs a CUDA device"
    assert dispatch.decision("op", (7, 5)) == "torch: the kernel needs capability 8.0"
    assert dispatch.decision("op", (8, 9)).endswith("was not measured at capability 8.9")
    assert dispatch.decision("op", (9, 0)) == "triton: bench/results/file.json"
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    assert dispatch.decision("op", (9, 0)) == "torch: Triton is not installed"


def test_an_op_without_kernel_says_so(monkeypatch):
    monkeypatch.setattr(dispatch, "WITHOUT_KERNEL", {"plain"})
    with pytest.raises(ValueError, match="plain here: it has no kernel"):
        dispatch.choose("plain", "triton", torch.ones(1))
    assert dispatch.choose("plain", None, torch.ones(1)) == "torch"
    assert dispatch.decision("plain", (9, 0)) == "torch: it has no kernel"
