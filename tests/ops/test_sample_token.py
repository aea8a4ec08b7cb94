import math

import pretend
import pytest
import torch

from aigc_lib.ops.sample_token import sample_token

INF = math.inf
BOTH = pytest.mark.parametrize("impl", ["reference", "torch"])
BELOW_ONE = 1 - 2.0**-24

# Two ties, one token that is forbidden, one that hardly has a chance.
ROW = [1.0, -0.5, 2.0, -INF, 1.0, -0.5, 0.3, -9.0]

SETTINGS = {
    "plain": {},
    "cold": {"temperature": 0.4},
    "hot": {"temperature": 3},
    "top-k": {"top_k": 4},
    "top-k in a tie": {"top_k": 2},
    "top-k beyond the finite ones": {"top_k": 8},
    "top-k beyond all": {"top_k": 100},
    "top-p": {"top_p": 0.85},
    "top-p in a tie": {"top_p": 0.6},
    "top-p of nearly all": {"top_p": 0.9999},
    "everything": {"temperature": 1.7, "top_k": 5, "top_p": 0.8},
    "top-p before the end of a tie of top-k": {"top_k": 2, "top_p": 0.9},
}
EACH = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)


def masses(row, temperature=1.0, top_k=None, top_p=None, dtype=torch.float64):
    """exp(z / temperature) of every token, 0 for those not kept, straight from the definition."""
    mass = [math.exp((z - max(row)) / temperature) for z in row]

    def at_least(threshold):
        return [m if z >= threshold else 0.0 for m, z in zip(mass, row, strict=True)]

    if top_k is not None:
        mass = at_least(sorted(row)[-min(top_k, len(row))])
    if top_p is not None:
        share = top_p - torch.finfo(dtype).eps
        enough = [t for t in row if sum(at_least(t)) >= share * sum(mass)]
        mass = at_least(max(enough))
    return mass


def drawn(mass, u):
    """The first token at which the mass so far exceeds the share u."""
    so_far = 0.0
    for token, m in enumerate(mass):
        so_far += m
        if so_far > u * sum(mass):
            return token
    raise AssertionError("u was not below 1")


def grid(count):
    """Numbers in the middle of equal parts of [0, 1)."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def tokens(row, uniform, **settings):
    """What each of the numbers draws from one row."""
    row = torch.as_tensor(row, dtype=torch.float64)
    return sample_token(row.expand(len(uniform), -1), uniform=uniform, **settings)


def frequencies(row, count=4000, **settings):
    """The share of a fine grid of numbers that draws each token."""
    counts = tokens(row, grid(count), **settings).bincount(minlength=len(row))
    return counts.double() / count


@BOTH
@EACH
def test_every_number_draws_what_the_cumulative_table_says(settings, impl):
    mass = masses(ROW, **settings)
    # No number of the grid is that near to a boundary, where rounding decides.
    uniform = torch.cat([grid(1000), torch.tensor([1e-12, BELOW_ONE], dtype=torch.float64)])
    want = [drawn(mass, u) for u in uniform.tolist()]
    assert tokens(ROW, uniform, impl=impl, **settings).tolist() == want


def test_the_cases_above_keep_what_their_names_say():
    kept = {name: [m > 0 for m in masses(ROW, **s)] for name, s in SETTINGS.items()}
    kept = {name: [v for v, k in enumerate(row) if k] for name, row in kept.items()}
    assert kept["top-k"] == [0, 2, 4, 6]
    assert kept["top-k in a tie"] == [0, 2, 4]
    assert kept["top-p in a tie"] == kept["top-k in a tie"]
    assert kept["top-k beyond all"] == kept["plain"] == [0, 1, 2, 4, 5, 6, 7]
    assert kept["everything"] == [0, 2, 4, 6]
    assert kept["top-p before the end of a tie of top-k"] == [0, 2, 4]


@BOTH
@EACH
def test_draws_have_the_exact_frequencies(settings, impl, generator):
    count = 20_000
    logits = torch.tensor(ROW, dtype=torch.float64).expand(count, -1)
    counts = sample_token(logits, generator=generator, impl=impl, **settings).bincount(minlength=8)
    mass = torch.tensor(masses(ROW, **settings), dtype=torch.float64)
    assert (counts[mass == 0] == 0).all()
    expected = count * mass / mass.sum()
    likely = expected > 5
    distance = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    freedom = int(likely.sum()) - 1
    assert distance < freedom + 5 * math.sqrt(2 * freedom)
    assert (counts[~likely] < 20).all()


@BOTH
@EACH
def test_a_permuted_vocabulary_has_a_permuted_distribution(settings, impl):
    order = torch.tensor([6, 2, 7, 0, 3, 5, 1, 4])
    here = frequencies(ROW, impl=impl, **settings)
    there = frequencies(torch.tensor(ROW)[order], impl=impl, **settings)
    assert float((there - here[order]).abs().max()) < 2 / 4000


@BOTH
def test_a_shift_of_the_logits_changes_nothing(impl):
    uniform = grid(500)
    moved = torch.tensor(ROW, dtype=torch.float64) + 700
    for settings in SETTINGS.values():
        want = tokens(ROW, uniform, impl=impl, **settings)
        assert torch.equal(tokens(moved, uniform, impl=impl, **settings), want)


@BOTH
def test_rows_do_not_see_each_other(impl):
    logits, uniform = torch.randn(6, 50, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    settings = {"top_k": 20, "top_p": 0.8, "impl": impl}
    whole = sample_token(logits, uniform=uniform, **settings)
    for b in range(6):
        one = sample_token(logits[b : b + 1], uniform=uniform[b : b + 1], **settings)
        assert torch.equal(one, whole[b : b + 1])


@BOTH
def test_limits_are_greedy_or_keep_everything(impl):
    logits, uniform = torch.randn(20, 30), torch.rand(20)
    same = {"uniform": uniform, "impl": impl}
    largest = logits.argmax(1)
    for greedy in ({"temperature": 0}, {"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-6}):
        assert torch.equal(sample_token(logits, **same, **greedy), largest)
    for extreme in (1e-45, 1e-300):
        assert torch.equal(sample_token(logits, temperature=extreme, **same), largest)
        assert torch.equal(sample_token(logits, top_p=extreme, **same), largest)
    everything = sample_token(logits, **same)
    assert torch.equal(sample_token(logits, top_p=1, top_k=30, **same), everything)
    # Infinitely hot: every token alike.
    equal = sample_token(logits, temperature=1e300, **same)
    assert torch.equal(equal, (uniform * 30).long())


@BOTH
def test_a_share_reached_exactly_takes_no_further_token(impl):
    row = torch.tensor([1, 0.5, 0.5], dtype=torch.float64).log()
    assert row.exp().tolist() == [1, 0.5, 0.5]  # else rounding would decide
    assert tokens(row, grid(9), top_p=0.5, impl=impl).unique().tolist() == [0]


@BOTH
def test_greedy_takes_the_first_of_several_and_no_randomness(impl, generator):
    state = generator.get_state()
    logits = torch.tensor([ROW, [0.0, 3.0, 3.0, 1.0, 3.0, 0, 0, 0], [-INF] * 7 + [-5.0]])
    token = sample_token(logits, temperature=0, top_k=3, generator=generator, impl=impl)
    assert token.tolist() == [2, 1, 7]
    assert torch.equal(generator.get_state(), state)


def kept_by_sorting(logits, temperature=1.0, top_k=None, top_p=None):
    """Another way to the kept tokens: least probable first, dropped while their sum is small."""
    z = logits / temperature
    if top_k is not None:
        z = z.masked_fill(z < z.topk(top_k)[0][:, -1:], -INF)
    if top_p is not None:
        ascending, places = z.sort(1)
        dropped = ascending.softmax(1).cumsum(1) <= 1 - top_p
        dropped[:, -1] = False
        z = z.masked_fill(dropped.scatter(1, places, dropped), -INF)
    return z.softmax(1)


@BOTH
def test_rare_tokens_keep_their_share(impl):
    # Each has a mass of 1.5e-8; together they are 0.00075 of it, and lie in order.
    num = 50_000
    row = torch.full((num + 1,), -18.0)
    row[0] = 0
    rare = num * math.exp(-18) / (1 + num * math.exp(-18))
    uniform = 1 - rare * torch.tensor([1.1, 0.75, 0.5, 0.25], dtype=torch.float64)
    token = tokens(row, uniform, impl=impl)
    assert rare == pytest.approx(0.00075, rel=0.02)
    assert token.tolist() == pytest.approx([0, num / 4, num / 2, 3 * num / 4], abs=num / 1000)


@BOTH
@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(5, None), (None, 0.7), (9, 0.6), (20, 0.999)])
def test_the_kept_tokens_are_those_of_the_usual_sorted_form(impl, temperature, top_k, top_p):
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    logits = 2 * torch.randn(4, 20, dtype=torch.float64)
    for row, want in zip(logits, kept_by_sorting(logits, **settings), strict=True):
        have = frequencies(row, count=20_000, impl=impl, **settings)
        assert float((have - want).abs().max()) < 2 / 20_000
        assert (have[want == 0] == 0).all()


def at_a_boundary(logits, uniform, token, **settings):
    """Whether u is within rounding of the piece of [0, 1) that belongs to the token."""
    rows = zip(logits.tolist(), uniform.tolist(), token.tolist(), strict=True)
    near = []
    for row, u, t in rows:
        mass = torch.tensor(masses(row, **settings, dtype=logits.dtype), dtype=torch.float64)
        end = mass.cumsum(0) / mass.sum()
        near.append(end[t] - mass[t] / mass.sum() - 1e-5 <= u <= end[t] + 1e-5)
    return torch.tensor(near)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fast_and_exact_form_agree_in_low_precision(settings, dtype):
    logits, uniform = (3 * torch.randn(60, 50)).to(dtype), torch.rand(60)
    fast = sample_token(logits, uniform=uniform, impl="torch", **settings)
    exact = sample_token(logits, uniform=uniform, impl="reference", **settings)
    assert fast.dtype == exact.dtype == torch.int64
    assert int((fast != exact).sum()) <= 1
    assert at_a_boundary(logits, uniform, fast, **settings).all()
    assert at_a_boundary(logits, uniform, exact, **settings).all()
    default = sample_token(logits, uniform=uniform, **settings)
    assert torch.equal(default, fast)


@BOTH
@EACH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_no_number_draws_a_forbidden_token(settings, impl, dtype):
    # Forbidden tokens at both ends, and so many that a running sum rounds.
    row = torch.randn(300).to(dtype)
    row[:7] = row[-7:] = row[100:200] = -INF
    edges = [0.0, 1e-45, 2.0**-24, 0.5, 1 - 2.0**-23, BELOW_ONE, 1.0]
    token = sample_token(
        row.expand(len(edges), -1), uniform=torch.tensor(edges), impl=impl, **settings
    )
    mass = torch.tensor(masses(row.tolist(), **settings, dtype=dtype))
    assert (mass[token] > 0).all()
    kept = mass.nonzero()[:, 0]
    assert int(token[0]) == int(kept[0])
    assert int(token[-1]) == int(kept[-1])


@BOTH
def test_double_precision_numbers_next_to_one_draw_the_last_kept_token(impl):
    uniform = torch.tensor([1 - 2.0**-53, 1.0], dtype=torch.float64)
    assert tokens([*ROW[:6], -INF], uniform, impl=impl).tolist() == [5, 5]


@BOTH
@EACH
def test_a_row_without_a_distribution_yields_some_token(settings, impl):
    row = torch.zeros(6, 8)
    row[0], row[1], row[2, 3], row[3, 4], row[4, 5], row[5, 2] = -INF, math.nan, math.nan, INF, 0, 1
    for greedy in ({}, {"temperature": 0}):
        token = sample_token(row, uniform=torch.full((6,), 0.7), impl=impl, **settings | greedy)
        assert ((token >= 0) & (token < 8)).all()


@BOTH
def test_huge_logits_and_a_cold_temperature(impl):
    row = [-1e4, 1e4, 1e4 - 0.001, -INF, 0.0]
    have = frequencies(row, temperature=1e-3, impl=impl)
    want = torch.tensor(masses(row, temperature=1e-3), dtype=torch.float64)
    assert float((have - want / want.sum()).abs().max()) < 2 / 4000


def test_one_seed_draws_the_same_tokens_from_every_implementation(generator):
    logits = torch.randn(50, 40)
    state = generator.get_state()
    drawn = []
    for impl in ("reference", "torch"):
        generator.set_state(state)
        drawn.append(sample_token(logits, generator=generator, impl=impl))
    uniform = torch.rand(50, generator=generator.set_state(state))
    drawn.append(sample_token(logits, uniform=uniform))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    torch.manual_seed(3)
    first = sample_token(logits)
    assert not torch.equal(sample_token(logits), first)
    torch.manual_seed(3)
    assert torch.equal(sample_token(logits), first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_generator_draws_in_the_widest_dtype_that_numbers_may_have(dtype, generator):
    logits, state = torch.zeros(50, 2**17, dtype=dtype), generator.get_state()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    uniform = torch.rand(50, generator=generator, dtype=wide)
    drawn = sample_token(logits, generator=generator.set_state(state))
    assert torch.equal(drawn, sample_token(logits, uniform=uniform))


@BOTH
@EACH
def test_strides_and_gradients_do_not_matter(settings, impl):
    logits, uniform = torch.randn(5, 9), torch.rand(5)
    want = sample_token(logits, uniform=uniform, impl=impl, **settings)
    for strided in (logits.T.contiguous().T, torch.stack([logits, -logits], 2)[..., 0]):
        assert not strided.is_contiguous()
        assert torch.equal(sample_token(strided, uniform=uniform, impl=impl, **settings), want)
    token = sample_token(logits.requires_grad_(), uniform=uniform, impl=impl, **settings)
    assert torch.equal(token, want)
    assert not token.requires_grad


@BOTH
def test_small_axes(impl):
    for settings in ({}, {"temperature": 0}, {"top_k": 2, "top_p": 0.5}):
        empty = sample_token(torch.randn(0, 7), impl=impl, **settings)
        assert empty.shape == (0,)
        assert empty.dtype == torch.int64
        single = sample_token(torch.randn(3, 1), impl=impl, **settings)
        assert single.tolist() == [0, 0, 0]


@BOTH
@EACH
def test_no_value_is_looked_at_on_the_way(settings, impl):
    # A tensor without values can't be asked for one, as one on a GPU can't be without waiting.
    logits = torch.empty(4, 9, device="meta")
    for greedy in ({}, {"temperature": 0}):
        token = sample_token(logits, impl=impl, **settings | greedy)
        assert (token.shape, token.dtype) == ((4,), torch.int64)


@BOTH
@pytest.mark.usefixtures("hook_off")
def test_it_compiles_as_one_graph(impl):
    def each(logits, uniform):
        settings = ({}, {"temperature": 0}, {"top_k": 4, "top_p": 0.8})
        return [sample_token(logits, uniform=uniform, impl=impl, **how) for how in settings]

    logits, uniform = torch.randn(6, 11), torch.rand(6)
    compiled = torch.compile(each, fullgraph=True, backend="eager")
    for token, want in zip(compiled(logits, uniform), each(logits, uniform), strict=True):
        assert torch.equal(token, want)
    for token in compiled(logits, None):
        assert ((token >= 0) & (token < 11)).all()


@BOTH
@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_float64_boundaries_move_by_rounding_alone(settings, impl, dtype):
    logits, uniform = (2 * torch.randn(400, 50)).to(dtype), torch.rand(400)
    logits[:, :7] = logits[:, -7:] = -INF
    uniform[:4] = torch.tensor([0.0, 2.0**-24, BELOW_ONE, 1.0])
    want = sample_token(logits, uniform=uniform, impl=impl, **settings)
    with pretend.Mps() as mps:
        there = sample_token(mps.put(logits), uniform=mps.put(uniform), impl=impl, **settings)
        assert there.device == pretend.MPS
        drawn = sample_token(mps.put(logits), impl=impl, **settings).cpu()
        token = there.cpu()
    assert int((token != want).sum()) <= 1
    assert (logits.gather(1, torch.stack([token, drawn], 1)) > -INF).all()


def test_without_float64_a_boundary_moves_by_less_than_is_stated():
    # Each of many tokens has the same small share, so that the first number to draw it is known.
    num = 1000
    uniform = (torch.arange(num) / num).repeat(9) + torch.arange(-4, 5).repeat_interleave(
        num
    ) / 2**22
    uniform = uniform.clamp(0, BELOW_ONE)
    row = torch.zeros(1, num).expand(len(uniform), -1)
    with pretend.Mps() as mps:
        token = sample_token(mps.put(row), uniform=mps.put(uniform)).cpu()
    u = uniform.double()
    assert (token / num <= u + 2.0**-22).all()
    assert (u < (token + 1) / num + 2.0**-22).all()


Z = torch.randn(2, 5)
U = torch.rand(2)
BAD = {
    "one axis": (ValueError, "logits", torch.randn(5), {}),
    "three axes": (ValueError, "logits", torch.randn(2, 3, 4), {}),
    "whole logits": (TypeError, "logits", torch.ones(2, 5, dtype=torch.int64), {}),
    "no token": (ValueError, "logits", torch.randn(2, 0), {}),
    **{
        f"{name} {x!r}": (ValueError, name, Z, {name: x})
        for name, wrong in {
            "temperature": (-0.1, INF, math.nan),
            "top_k": (0, -1, 2.0, True),
            "top_p": (0, -0.1, 1.1, math.nan),
        }.items()
        for x in wrong
    },
    "three numbers": (ValueError, "uniform", Z, {"uniform": torch.rand(3)}),
    "numbers of two axes": (ValueError, "uniform", Z, {"uniform": U[:, None]}),
    "finer numbers": (TypeError, "uniform", Z, {"uniform": U.double()}),
    "coarser numbers": (TypeError, "uniform", Z.double(), {"uniform": U.half()}),
    "coarse numbers": (TypeError, "uniform", Z.half(), {"uniform": U.half()}),
    "device": (ValueError, "uniform", Z, {"uniform": U.to("meta")}),
    "both": (ValueError, "generator", Z, {"uniform": U, "generator": torch.Generator()}),
    "impl": (ValueError, "impl", Z, {"impl": "fast"}),
    "kernel": (ValueError, "triton", Z, {"impl": "triton"}),
}


@pytest.mark.usefixtures("hook_off")
@pytest.mark.parametrize(("error", "name", "logits", "settings"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name(error, name, logits, settings):
    with pytest.raises(error, match=rf"\b{name}\b"):
        sample_token(logits, **settings)


PAPER = [
    ([0.3, 0.1, 0.1, 0.5], 0.8, [0, 3]),
    ([0.3, 0.1, 0.1, 0.5], 0.5, [3]),
    ([0.3, 0.1, 0.1, 0.5], 0.9, [0, 1, 2, 3]),  # the tie of the last one kept is kept
    ([0.4, 0.3, 0.2, 0.1], 0.4, [0]),
    ([0.4, 0.3, 0.2, 0.1], 0.7, [0, 1]),
    ([0.4, 0.3, 0.2, 0.1], 0.9, [0, 1, 2]),
    ([0.1, 0.2, 0.3, 0.4], 0.9, [1, 2, 3]),
    ([0.6, 0.3, 0.1], 0.6, [0]),
    ([0.6, 0.3, 0.1], 0.9, [0, 1]),
    ([0.7, 0.2, 0.1], 0.7, [0]),
    ([0.7, 0.2, 0.1], 0.9, [0, 1]),
    ([0.8, 0.2], 0.8, [0]),
    ([0.9, 0.1], 0.9, [0]),
    ([0.2, 0.2, 0.6], 0.6, [2]),
    ([0.2, 0.2, 0.6], 0.8, [0, 1, 2]),
    ([0.5, 0.4, 0.1], 0.9, [0, 1]),
    ([0.3, 0.6, 0.1], 0.9, [0, 1]),
    ([0.1, 0.1, 0.8], 0.8, [2]),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize(("p", "top_p", "kept"), PAPER)
def test_the_share_of_top_p_is_reached_as_on_paper(p, top_p, kept, impl, dtype):
    logits = torch.tensor(p, dtype=torch.float64).log().to(dtype).expand(101, -1)
    uniform = torch.linspace(0, 1 - 1e-6, 101)
    drawn = sample_token(logits, top_p=top_p, uniform=uniform, impl=impl)
    assert drawn.unique().tolist() == kept
    shares = [p[i] / sum(p[j] for j in kept) for i in kept]
    found = [(drawn == i).double().mean().item() for i in kept]
    assert found == pytest.approx(shares, abs=0.02)
