import math

import numpy as np
import pytest
import torch

from aigc_lib.layers.positions import (
    Rotary,
    Sinusoidal,
    rotary_table,
    rotate,
    shift_matrix,
    sinusoidal,
)

C = 10
POSITIONS = torch.tensor([0.0, 1.0, 2.0, 7.0, 100.5, -3.0], dtype=torch.float64)


def test_it_equals_the_formula_entry_by_entry():
    code = sinusoidal(POSITIONS, C)
    assert code.shape == (6, C)
    for row, t in zip(code, POSITIONS.tolist(), strict=True):
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
        moved = sinusoidal(POSITIONS + offset, C)
        rotated = sinusoidal(POSITIONS, C) @ shift_matrix(offset, C).T
        assert torch.allclose(rotated, moved, atol=1e-12)
    assert not torch.allclose(sinusoidal(POSITIONS, C), sinusoidal(POSITIONS + 1, C), atol=0.1)


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
    hands = np.exp(1j * POSITIONS.numpy()[:, None] * speeds)
    code = sinusoidal(POSITIONS, C).numpy()
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


def test_rotary_turns_each_pair_of_neighbours_by_its_own_angle():
    x = torch.randn(6, C, dtype=torch.float64)
    turned = rotate(x, rotary_table(POSITIONS, C))
    for row, out, t in zip(x, turned, POSITIONS.tolist(), strict=True):
        for i in range(C // 2):
            angle = t / 10_000 ** (2 * i / C)
            a, b = row[2 * i].item(), row[2 * i + 1].item()
            want = [
                a * math.cos(angle) - b * math.sin(angle),
                a * math.sin(angle) + b * math.cos(angle),
            ]
            assert out[2 * i : 2 * i + 2].tolist() == pytest.approx(want, abs=1e-12)


def test_rotary_is_the_inverse_of_the_shift_of_sinusoids():
    x = torch.randn(6, C, dtype=torch.float64)
    turned = rotate(x, rotary_table(POSITIONS, C, base=100))
    for row, out, t in zip(x, turned, POSITIONS.tolist(), strict=True):
        assert torch.allclose(out, shift_matrix(-t, C, base=100) @ row, atol=1e-12)


def test_rotary_scores_depend_on_the_distance_alone_and_lengths_are_kept():
    q, k = torch.randn(2, C, dtype=torch.float64)
    table = rotary_table(torch.arange(9, dtype=torch.float64), C)
    turned_q, turned_k = rotate(q.expand(9, C), table), rotate(k.expand(9, C), table)
    scores = turned_q @ turned_k.T
    for distance in range(-8, 9):
        along = scores.diagonal(distance)
        assert torch.allclose(along, along[:1].expand_as(along), atol=1e-12)
    # The sign: query m before key n is the query at 0 and the key at n − m.
    assert torch.allclose(scores[2, 5], q @ turned_k[3], atol=1e-12)
    assert not torch.allclose(scores[2, 5], scores[5, 2], atol=1e-2)
    assert torch.allclose(turned_q.norm(dim=1), q.norm().expand(9), atol=1e-12)


def test_rotary_at_position_zero_changes_nothing():
    x = torch.randn(2, 3, 1, C, dtype=torch.float64)
    assert torch.equal(rotate(x, rotary_table(torch.zeros(1), C).double()), x)


@pytest.mark.parametrize(
    "lay_out",
    [
        lambda x: x,
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: torch.cat([x, x[..., :1]], 3)[..., :C],
        lambda x: torch.cat([x[..., :1], x], 3).flatten()[1:].as_strided(x.shape, (198, 66, 11, 1)),
    ],
)
def test_rotary_does_not_depend_on_the_layout_in_memory(lay_out):
    x = torch.randn(2, 3, 6, C, dtype=torch.float64)
    table = rotary_table(POSITIONS, C)
    wanted = torch.stack([shift_matrix(-t, C) for t in POSITIONS.tolist()])
    want = torch.einsum("tij,bhtj->bhti", wanted, x)
    assert torch.allclose(rotate(lay_out(x), table), want, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotary_keeps_the_dtype_and_rounds_once(dtype):
    x = torch.randn(2, 6, C, dtype=dtype)
    table = rotary_table(POSITIONS, C)
    out, want = rotate(x, table), rotate(x.double(), table)
    assert out.dtype == dtype
    assert torch.equal(out, want.to(dtype))


def test_the_gradient_of_a_turn_is_the_turn_back():
    x, g = torch.randn(2, 6, C, dtype=torch.float64)
    x.requires_grad_()
    rotate(x, rotary_table(POSITIONS, C)).backward(g)
    assert torch.allclose(x.grad, rotate(g, rotary_table(-POSITIONS, C)), atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: rotate(x, rotary_table(POSITIONS, C)), x)


@pytest.mark.parametrize(("make", "rows"), [(Rotary, rotary_table), (Sinusoidal, sinusoidal)])
def test_a_table_holds_the_exact_rows_in_any_dtype_and_is_not_saved(make, rows):
    module, positions = make(C, 300, base=500), torch.tensor([299, 0, 17])
    exact = rows(torch.arange(300, dtype=torch.float64), C, base=500)
    assert torch.equal(module(positions), exact[positions].float())
    assert torch.equal(module.bfloat16().double()(positions), exact[positions])
    assert not module.state_dict()
    with torch.device("meta"):
        lost = make(C, 300, base=500)
    assert lost.table.is_meta
    assert torch.equal(lost.to_empty(device="cpu")(positions), exact[positions].float())


def test_rotary_traces_as_one_graph(hook_off):
    x, module = torch.randn(2, 3, 6, C), Rotary(C, 6)

    def turned(x, positions):
        return rotate(x, module(positions))

    compiled = torch.compile(turned, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, torch.arange(6)), turned(x, torch.arange(6)), atol=1e-6)


BAD_WIDTHS = [
    (call, "width")
    for width in (0, 1, 5, -2)
    for call in (
        lambda width=width: sinusoidal(POSITIONS, width),
        lambda width=width: shift_matrix(1, width),
        lambda width=width: rotary_table(POSITIONS, width),
        lambda width=width: Rotary(width, 6),
    )
]
BAD_ROTARY = [
    (lambda x=x, rotary=rotary: rotate(torch.zeros(x), torch.zeros(rotary)), "rotary")
    for x, rotary in [
        ((2, 6, C), (5, 5, 2)),
        ((2, 6, C), (6, 4, 2)),
        ((2, 6, C), (6, 5)),
        ((2, 6, C), (6, 5, 1)),
        ((6, 3), (6, 1, 2)),
        ((C,), (1, 5, 2)),
    ]
]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        *BAD_WIDTHS,
        *BAD_ROTARY,
        (lambda: sinusoidal(POSITIONS[:, None], C), "positions"),
        (lambda: sinusoidal(POSITIONS, C, base=0), "base"),
        (lambda: Sinusoidal(C, 6, base=-1), "base"),
    ],
)
def test_bad_input_is_named(hook_off, call, name):
    with pytest.raises(ValueError, match=name):
        call()
