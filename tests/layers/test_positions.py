import math

import numpy as np
import pytest
import torch

from aigc_lib.layers.positions import shift_matrix, sinusoidal

C = 10
PLACES = torch.tensor([0.0, 1.0, 2.0, 7.0, 100.5, -3.0], dtype=torch.float64)


def test_it_equals_the_formula_entry_by_entry():
    code = sinusoidal(PLACES, C)
    assert code.shape == (6, C)
    for row, t in zip(code, PLACES.tolist(), strict=True):
        for i in range(C // 2):
            angle = t / 10_000 ** (2 * i / C)
            assert row[2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert row[2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)


def test_the_first_hand_turns_by_one_radian_and_the_others_more_slowly():
    code = sinusoidal(torch.tensor([0, 1]), 4, base=100).tolist()
    assert code[0] == [0, 1, 0, 1]
    assert code[1] == pytest.approx([math.sin(1), math.cos(1), math.sin(0.1), math.cos(0.1)])


def test_a_shift_is_one_rotation_for_all_positions():
    for offset in (-1, 1, 5, 0.25):
        moved = sinusoidal(PLACES + offset, C)
        rotated = sinusoidal(PLACES, C) @ shift_matrix(offset, C).T
        assert torch.allclose(rotated, moved, atol=1e-12)
    assert not torch.allclose(sinusoidal(PLACES, C), sinusoidal(PLACES + 1, C), atol=0.1)


def test_shifts_add_up_and_keep_lengths():
    one, three, back = (shift_matrix(x, C) for x in (1, 3, -1))
    assert torch.allclose(one @ one @ one, three, atol=1e-12)
    assert torch.allclose(one @ back, torch.eye(C, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(one.T, back, atol=1e-12)


def test_a_dot_product_of_positions_depends_on_their_distance_alone():
    gram = sinusoidal(torch.arange(6, dtype=torch.float64), C)
    gram = gram @ gram.T
    for offset in range(6):
        along = gram.diagonal(offset)
        want = sum(math.cos(offset / 10_000 ** (2 * i / C)) for i in range(C // 2))
        assert along.tolist() == pytest.approx([want] * len(along), abs=1e-12)


def test_it_agrees_with_complex_exponentials():
    speeds = np.logspace(0, -np.log10(10_000) * (C - 2) / C, C // 2)
    hands = np.exp(1j * PLACES.numpy()[:, None] * speeds)
    code = sinusoidal(PLACES, C).numpy()
    np.testing.assert_allclose(code[:, 1::2] + 1j * code[:, ::2], hands, atol=1e-12)
    block = shift_matrix(2.5, C)[2:4, 2:4].tolist()
    angle = 2.5 * speeds[1]
    assert block[0] == pytest.approx([math.cos(angle), math.sin(angle)])
    assert block[1] == pytest.approx([-math.sin(angle), math.cos(angle)])


def test_all_positions_of_a_long_sequence_are_told_apart():
    code = sinusoidal(torch.arange(2000), 64)
    nearest = torch.cdist(code, code).fill_diagonal_(math.inf).min()
    assert nearest > 0.5


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_the_dtype_follows_the_positions(dtype):
    code = sinusoidal(torch.arange(3, dtype=dtype), C)
    assert code.dtype == (torch.float32 if dtype == torch.int64 else dtype)


def test_no_positions_give_an_empty_code():
    assert sinusoidal(torch.arange(0), C).shape == (0, C)


@pytest.mark.usefixtures("hook_off")
class TestBadInput:
    @pytest.mark.parametrize("width", [0, 1, 5, -2])
    def test_widths(self, width):
        for call in (lambda: sinusoidal(PLACES, width), lambda: shift_matrix(1, width)):
            with pytest.raises(ValueError, match=f"expected an even width >= 2, got {width}"):
                call()

    def test_positions_and_base(self):
        with pytest.raises(ValueError, match=r"expected positions of shape \(T,\), got \(6, 1\)"):
            sinusoidal(PLACES[:, None], C)
        with pytest.raises(ValueError, match="expected base > 0, got 0"):
            sinusoidal(PLACES, C, base=0)
