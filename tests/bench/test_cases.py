"""The cases themselves: arms that pass the gate, goals that name arms, and peers made with care."""

import functools
import importlib
import itertools

import pytest
import torch
from torch.nn.attention import SDPBackend

from aigc_lib.ops.attention import attention as op
from aigc_lib.ops.registry import NAMES, WITHOUT_KERNEL
from bench import __main__ as command
from bench import arms, attention, gate, sample_token

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PEERS = {"eager", "reference", "compile", "liger", "flex", "cudnn", "flash", "efficient"}
PEERS |= {"dense cudnn", "topk", "sort", "no cache", "generate", "static"}


def cases(device, compiled=True, quick=False):
    scripts = [importlib.import_module(f"bench.{name}") for name in command.SCRIPTS]
    found = [script.cases(device, quick=quick, compiled=compiled) for script in scripts]
    return list(itertools.chain(*found))


@pytest.fixture
def with_liger(monkeypatch):
    for name in command.SCRIPTS:
        monkeypatch.setattr(f"bench.{name}.has_liger", lambda: True, raising=False)


@pytest.mark.parametrize("name", command.SCRIPTS)
@pytest.mark.usefixtures("hook_off")
def test_every_arm_passes_the_gate_on_the_cpu(name):
    for case in command.cases(name, CPU, quick=True, compiled=False):
        assert case.arms
        assert case.peers
        assert not case.goals
        assert gate.inspect(case, CPU)[0] == {}


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.usefixtures("with_liger")
def test_cases_have_names_of_their_own_and_goals_that_name_what_races(device):
    found = cases(device)
    names = [(case.op, case.name) for case in found]
    assert len(set(names)) == len(names)
    assert {case.op for case in found} == {*NAMES, "decode"}
    for case in found:
        ours, peers = ([arm.name for arm in group] for group in (case.arms, case.peers))
        assert len(set(ours)) == len(ours)
        assert len(set(peers)) == len(peers)
        has_kernel = device.type == "cuda" and case.op not in WITHOUT_KERNEL
        kernels = ["triton"] if has_kernel else []
        assert set(ours) == ({"cache"} if case.op == "decode" else {"torch", *kernels})
        assert set(peers) <= PEERS
        assert set(case.directions) <= set(arms.DIRECTIONS)
        for goal in case.goals:
            assert goal.arm in ours
            assert goal.peer in peers
            assert goal.direction in case.directions


@pytest.mark.usefixtures("with_liger")
def test_every_kernel_has_a_floor_on_cuda():
    floored = {
        case.op
        for case in cases(CUDA)
        for goal in case.goals
        if goal.floor and goal.arm == "triton"
    }
    assert floored == set(NAMES) - WITHOUT_KERNEL


def test_without_torch_compile_and_liger_no_arm_needs_them(monkeypatch):
    found = cases(CPU, compiled=False)
    assert not any(arm.compiled for case in found for arm in (*case.arms, *case.peers))
    monkeypatch.setattr("bench.norm.has_liger", lambda: False)
    assert all(arm.name != "liger" for case in cases(CUDA) for arm in case.peers)


def test_compile_gets_its_best_settings_and_a_graph_without_breaks(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function, **how: asked.append(how) or function)
    x = torch.ones(3)
    assert arms.compiled(torch.exp).build(x)(x).equal(x.exp())
    assert asked == [{"fullgraph": True, "dynamic": False, "mode": None}]

    class OnCuda:
        is_cuda = True

    arms.compiled(torch.exp).build(OnCuda())
    assert asked[1]["mode"] == "max-autotune-no-cudagraphs"


@pytest.fixture
def qkv():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 40, 16, generator=draw) for _ in range(3)]


@pytest.mark.parametrize("window", [None, 7])
def test_the_fused_peers_compute_what_ours_does(qkv, window):
    want = op(*qkv, is_causal=True, window=window)
    arm = attention._sdpa("math", SDPBackend.MATH, window)
    with arm.around():
        torch.testing.assert_close(arm.build(*qkv)(*qkv), want)
    assert arm.backend(*qkv) == "MATH"
    torch.testing.assert_close(attention._eager(*qkv, window=window), want)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 7])
def test_flex_attention_computes_what_ours_does(qkv, window, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    call = attention._flex(window, *qkv)
    torch.testing.assert_close(call(*qkv), op(*qkv, is_causal=True, window=window))


def test_the_arm_that_lets_torch_choose_says_which_backend_it_was(qkv):
    (case, windowed) = attention.cases(CPU, quick=True, compiled=False)
    for one in (case, windowed):
        (arm,) = [arm for arm in one.arms if arm.name == "torch"]
        assert arm.backend(*qkv) in SDPBackend.__members__


def test_liger_gets_its_arguments_by_the_names_it_has(monkeypatch, with_liger):
    seen = {}

    class Functional:
        @staticmethod
        def liger_layer_norm(X, W, B, eps):
            seen["layer_norm"] = eps

        @staticmethod
        def liger_rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):
            seen["rms_norm"] = (eps, in_place)

        @staticmethod
        def liger_cross_entropy(input, target, reduction="mean"):
            seen["cross_entropy"] = reduction

        @staticmethod
        def liger_fused_linear_cross_entropy(input, weight, target, reduction="mean"):
            seen["linear_cross_entropy"] = reduction

    real = importlib.import_module
    monkeypatch.setattr(
        importlib, "import_module", lambda name: Functional if "liger" in name else real(name)
    )
    inputs = {"layer_norm": 3, "rms_norm": 2, "cross_entropy": 2, "linear_cross_entropy": 3}
    for case in cases(CUDA):
        for arm in case.peers:
            if arm.name == "liger":
                arm.build()(*range(inputs[case.op]))
    assert seen == {
        "layer_norm": 1e-5,
        "rms_norm": (1e-6, False),
        "cross_entropy": "none",
        "linear_cross_entropy": "mean",
    }


@pytest.mark.parametrize(("top_k", "top_p"), [(5, None), (None, 0.9), (5, 0.9), (None, None)])
def test_the_usual_sampler_passes_and_four_wrong_ones_do_not(generator, top_k, top_p):
    logits = 2 * torch.randn(256, 50, generator=generator)
    right = functools.partial(sample_token.by_sorting, top_k=top_k, top_p=top_p)

    def wrong(call):
        return sample_token.wrong_draws(call, logits, top_k, top_p)

    assert wrong(right) is None
    assert "standard errors off" in wrong(lambda z: z.argmax(-1))
    assert "standard errors off" in wrong(lambda z: right(1.2 * z)) or top_p
    assert wrong(lambda z: right(1.2 * z))
    assert wrong(lambda z: right(-z))
    if top_k or top_p:
        assert "were cut" in wrong(lambda z: sample_token.by_sorting(z, None, None))


def test_a_process_can_make_the_call_whose_memory_it_measures():
    for step in ("forward", "both"):
        name = "N 256, V 1003, C 64, float32"
        call = command.call_of("linear_cross_entropy", True, False, name, "torch", step)
        result = call()
        assert len(result) == 2 if step == "both" else result.ndim == 0
