import random

import numpy as np
import pytest
import torch

from aigc_lib import device


def draws(seed):
    own = device.seed_everything(seed)
    return (random.random(), np.random.rand(), torch.rand(3), torch.rand(3, generator=own))  # noqa: NPY002


def test_one_seed_repeats_every_generator():
    for first, again in zip(draws(7), draws(7), strict=True):
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(again))


def test_two_seeds_differ_in_every_generator():
    for first, other in zip(draws(7), draws(8), strict=True):
        assert not torch.equal(torch.as_tensor(first), torch.as_tensor(other))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range_is_named(seed):
    with pytest.raises(ValueError, match=rf"expected a seed from 0 to 2\*\*32 - 1, got {seed}"):
        device.seed_everything(seed)


def test_best_device_computes():
    assert torch.ones(2, device=device.best()).sum() == 2
    assert device.best("cpu").type == "cpu"


def test_unknown_device_lists_those_of_this_machine():
    with pytest.raises(ValueError, match=r"expected a device of this machine \(.*cpu\), got 'tpu'"):
        device.best("tpu")


def test_half_precision_is_for_new_cuda_cards_only(monkeypatch):
    assert device.best_dtype(torch.device("cpu")) == torch.float32
    for capability, dtype in [((7, 5), torch.float32), ((8, 0), torch.bfloat16)]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert device.best_dtype(torch.device("cuda")) == dtype


def test_thread_limit_never_exceeds_what_the_environment_allows(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert device.limit_threads(2) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert device.limit_threads(1) == 1
    torch.set_num_threads(before)


def test_zero_threads_are_refused():
    with pytest.raises(ValueError, match="expected at least 1 thread, got 0"):
        device.limit_threads(0)
