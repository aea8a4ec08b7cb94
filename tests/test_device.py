import os
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


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_every_seed_that_numpy_takes_is_taken(seed):
    assert device.seed_everything(seed).initial_seed() == seed


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_a_loss_has_its_inputs_precision_or_float32(dtype, wanted):
    assert device.loss_dtype(torch.zeros(2, dtype=dtype)) == wanted


@pytest.mark.parametrize("name", ["cpu", "cuda:1", "mps", "mps:0"])
def test_all_devices_but_apples_have_float64(name):
    narrow = name.startswith("mps")
    wanted = torch.float32 if narrow else torch.float64
    assert device.widest_float(torch.device(name)) == wanted


@pytest.fixture
def machine(monkeypatch):
    """Pretend that so many CUDA devices, and Apple's GPU or not, are there."""

    def pretend(cuda, mps):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "mps", "best", "others"),
    [
        (0, False, "cpu", ["cpu"]),
        (0, True, "mps", ["mps", "cpu"]),
        (1, False, "cuda", ["cuda", "cuda:0", "cpu"]),
        (2, True, "cuda", ["cuda", "cuda:0", "cuda:1", "mps", "cpu"]),
    ],
)
def test_the_fastest_device_there_is_unless_another_is_named(machine, cuda, mps, best, others):
    machine(cuda, mps)
    assert device.best() == torch.device(best)
    for name in others:
        assert device.best(name) == torch.device(name)
    for name in {"cuda", "cuda:0", "cuda:1", "cuda:2", "mps", "tpu", ""} - set(others):
        with pytest.raises(ValueError, match=f"name .*'{others[-1]}'.* got '{name}'"):
            device.best(name)


def test_the_best_device_of_this_machine_computes():
    assert torch.ones(2, device=device.best()).sum() == 2


@pytest.mark.parametrize(
    ("maximum", "cores", "variable", "threads"),
    [
        (2, 8, "1", 1),
        (1, 8, "64", 1),
        (3, 8, "64", 3),
        (8, 3, "64", 3),
        (4, 8, "3", 3),
        (4, 2, "", 2),
        (2, 8, "0", 2),
        (2, 8, "many", 2),
        (2, None, "", 1),
    ],
)
def test_threads_are_the_least_of_what_is_wanted_there_and_allowed(
    monkeypatch, maximum, cores, variable, threads
):
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert device.limit_threads(maximum) == torch.get_num_threads() == threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: device.seed_everything(-1), "seed"),
        (lambda: device.seed_everything(2**32), "seed"),
        (lambda: device.limit_threads(0), "maximum"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"expected {name}"):
        call()
