import math

import pytest
import torch

from aigc_lib.kernels.sample_token import register
from aigc_lib.ops.sample_token import sample_token

pytestmark = [
    pytest.mark.usefixtures("nan_filled"),
    # The interpreter's NumPy remarks on what is meant: far below the largest logit lies −∞.
    pytest.mark.filterwarnings(
        "ignore:(overflow|invalid value|All-NaN slice) encountered:RuntimeWarning"
    ),
]

INF = math.inf
BELOW_ONE = 1 - 2.0**-24

SETTINGS = {
    "plain": {},
    "top-k": {"top_k": 7},
    "top-p": {"top_p": 0.8},
    "both": {"temperature": 1.3, "top_k": 20, "top_p": 0.7},
    "greedy": {"temperature": 0},
}
EACH = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)

# Short rows take blocks of 1024 logits, longer ones than 4096 blocks of 4096.
WIDTHS = (1, 1023, 1024, 1025, 4096, 4097, 8193)


def numbers(count):
    """A grid over [0, 1) with both of its ends."""
    inner = (torch.arange(count) + 0.5) / count
    return torch.cat([torch.tensor([0.0, 2.0**-24]), inner, torch.tensor([BELOW_ONE])])


def pieces(row, temperature=1.0, top_k=None, top_p=None):
    """Where in [0, 1) the piece of each token ends, and which tokens are kept, in float64."""
    z = row.double().cpu()
    if temperature == 0:
        mass = (torch.arange(len(z)) == z.argmax()).double()
    else:
        mass = ((z - z.max()) / temperature).exp()
    if top_k is not None and top_k < len(z):
        mass[z < z.sort(descending=True).values[top_k - 1]] = 0
    if top_p is not None:
        order = z.argsort(descending=True)
        before = int((mass[order].cumsum(0) < top_p * mass.sum()).sum())
        mass[z < z[order[before]]] = 0
    return mass.cumsum(0) / mass.sum(), mass > 0


def assert_drawn_from(row, uniform, settings, margin=2e-6):
    """Every number draws the token that the exact table says, or within rounding its neighbour."""
    logits = row.expand(len(uniform), -1)
    token = sample_token(logits, uniform=uniform, impl="triton", **settings)
    assert token.dtype == torch.int64
    assert token.device == row.device
    token, u = token.cpu(), uniform.double().cpu()
    end, kept = pieces(row, **settings)
    assert ((token >= 0) & (token < len(row))).all()
    assert kept[token].all()
    if settings.get("temperature") == 0:
        return
    start = torch.cat([torch.zeros(1), end[:-1]])
    assert ((start[token] - margin <= u) & (u <= end[token] + margin)).all()
    # Next to a boundary there must not be much of the grid, or the margin would hide a fault.
    want = sample_token(
        row.double().expand(len(u), -1), uniform=uniform, impl="reference", **settings
    )
    different = token != want.cpu()
    near = (end[None] - u[:, None]).abs().min(1).values < margin
    assert (near | ~different).all()


def normal_row(width, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(width, generator=draw)).to(dtype)


# The interpreter takes a fifth of a second per row and search: few rows, and little twice.
ENDS = torch.tensor([0.0, 0.5, BELOW_ONE])
BOTH_SEARCHES = [(width, "both") for width in WIDTHS]
ONE_BY_ONE = [(width, name) for width in (1025, 4097) for name in SETTINGS if name != "both"]


@pytest.mark.parametrize(("width", "name"), BOTH_SEARCHES + ONE_BY_ONE)
def test_every_number_draws_what_the_reference_says(width, name):
    numbers = ENDS[1:2] if name == "both" else ENDS[1:]
    assert_drawn_from(normal_row(width), numbers, SETTINGS[name])


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"temperature": 2.0}, torch.float32),
        ({"temperature": 2.0}, torch.float16),
        ({"top_k": 6, "top_p": 0.9}, torch.float16),
    ],
)
def test_a_fine_grid_of_numbers_draws_every_token_where_it_should(settings, dtype):
    # Every likely token of a short row has its turn.
    row = normal_row(9, dtype)
    row[3] = -INF
    assert_drawn_from(row, numbers(6), settings)


@pytest.mark.parametrize("settings", [{"temperature": 3.0}, {"temperature": 3.0, "top_k": 2000}])
def test_mass_in_every_block_is_drawn_where_it_lies(settings):
    # Flat enough that each of the three blocks holds a third.
    assert_drawn_from(normal_row(3000), torch.tensor([0.2, 0.5, 0.8]), settings)


TIES = {
    "all alike": torch.zeros(1100),
    "ties at the threshold": torch.tensor([2.0, 1.0, 3.0, 1.0, -1.0, 1.0, 0.5, 1.0]),
    "both zeros": torch.tensor([-0.0, 0.0, -1.0, 0.0, 0.0, -2.0]),
    "forbidden at the ends": torch.cat(
        [torch.full((1024,), -INF), normal_row(90), torch.full((1030,), -INF)]
    ),
    "one allowed": torch.tensor([-INF] * 1030 + [-3.0, -INF]),
    "a finite mask": torch.tensor([torch.finfo(torch.float32).min, 1.0, 0.5, -1e9, 0.7]),
    "numbers near zero": torch.tensor([1e-40, -1e-40, 2e-38, -2e-38, 0.0, 1e-20]),
    "all negative": -10 - normal_row(40).abs(),
}


@pytest.mark.parametrize(("top_k", "top_p"), [(3, None), (None, 0.5), (3, 0.95)])
@pytest.mark.parametrize("case", TIES)
def test_ties_and_forbidden_tokens(case, top_k, top_p):
    settings = {"top_k": top_k, "top_p": top_p}
    assert_drawn_from(TIES[case], ENDS[::2], settings)


@pytest.mark.parametrize("case", TIES)
def test_greedy_takes_the_first_of_several(case):
    row = TIES[case]
    token = sample_token(row[None], temperature=0, impl="triton")
    assert int(token) == int((row == row.max()).nonzero()[0])


@pytest.mark.parametrize("temperature", [1e-3, 1e-45, 1e300])
@pytest.mark.parametrize("settings", [{}, {"top_k": 5, "top_p": 0.9}])
def test_wide_logits_and_any_temperature(settings, temperature):
    row = torch.tensor([-1e4, 1e4, 9999.999, -INF, 0.0, -30.0, 5e3, 9990.0])
    assert_drawn_from(row, ENDS, {**settings, "temperature": temperature})


@pytest.mark.parametrize("top_p", [1e-300, 1e-6, 1 - 1e-7])
def test_shares_at_the_ends_of_their_range(top_p):
    assert_drawn_from(normal_row(50), ENDS, {"top_p": top_p}, margin=1e-5)


@pytest.mark.parametrize("top_k", [1, 1024, 1099, 1100, 5000])
def test_any_number_of_tokens_may_be_kept(top_k):
    assert_drawn_from(normal_row(1100), ENDS[1:], {"top_k": top_k})


@pytest.mark.parametrize("settings", [{}, {"top_k": 9}, {"temperature": 0}])
def test_rows_of_their_own_and_any_stride(settings):
    dense, uniform = 3 * torch.randn(2, 70), torch.rand(2)
    want = sample_token(dense, uniform=uniform, impl="reference", **settings)
    wider = torch.full((2, 90), 50.0)
    wider[:, 11:81] = dense
    every_other = torch.full((4, 70), 50.0)
    every_other[::2] = dense
    for logits in (wider[:, 11:81], every_other[::2], dense.T.contiguous().T):
        assert torch.equal(logits, dense)
        numbers_apart = torch.stack([uniform, uniform], 1)[:, 0]
        token = sample_token(logits, uniform=numbers_apart, impl="triton", **settings)
        assert torch.equal(token, want)
        again = sample_token(logits, uniform=numbers_apart, impl="triton", **settings)
        assert torch.equal(again, token)


def test_numbers_rounded_up_to_one_draw_the_last_kept_token():
    row = TIES["forbidden at the ends"]
    token = sample_token(row[None], uniform=torch.ones(1), impl="triton")
    assert int(token) == 1024 + 89


@EACH
def test_a_row_without_a_distribution_yields_some_token(settings):
    rows = torch.zeros(6, 40)
    rows[0], rows[1], rows[2, 3], rows[3, 4], rows[4, 5] = -INF, math.nan, math.nan, INF, -math.nan
    token = sample_token(rows, uniform=torch.full((6,), 0.9), impl="triton", **settings)
    assert ((token >= 0) & (token < 40)).all()


def test_the_seed_draws_the_same_tokens_as_elsewhere():
    logits = torch.randn(6, 40)
    token = [
        sample_token(logits, generator=torch.Generator().manual_seed(1), impl=impl)
        for impl in ("triton", "reference")
    ]
    assert torch.equal(*token)


def test_no_rows_and_gradients():
    assert sample_token(torch.randn(0, 7), impl="triton").shape == (0,)
    token = sample_token(torch.randn(2, 7, requires_grad=True), impl="triton")
    assert not token.requires_grad


@pytest.mark.parametrize("rest", [(0.9, 3, 0.8), (0.0, None, None)])
def test_the_registration_is_sound(rest):
    uniform = None if rest[0] == 0 else torch.rand(2)
    torch.library.opcheck(register.sample_token, (torch.randn(2, 9), uniform, *rest))
    wants = torch.randn(2, 9, requires_grad=True)
    assert not register.sample_token(wants, uniform, *rest).requires_grad


@pytest.mark.usefixtures("hook_off")
def test_it_compiles_as_one_graph():
    def each(logits, uniform):
        settings = ({}, SETTINGS["both"], SETTINGS["greedy"])
        return [sample_token(logits, uniform=uniform, impl="triton", **how) for how in settings]

    logits, uniform = torch.randn(3, 11), torch.rand(3)
    compiled = torch.compile(each, fullgraph=True, backend="aot_eager")
    for token, want in zip(compiled(logits, uniform), each(logits, uniform), strict=True):
        assert torch.equal(token, want)


@pytest.mark.gpu
@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [*WIDTHS, 50257, 50304])
def test_on_a_device_every_number_draws_what_the_reference_says(settings, dtype, width):
    row = normal_row(width, dtype).cuda()
    # Sums over more tokens round more.
    assert_drawn_from(row, numbers(100).cuda(), settings, margin=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("case", TIES)
def test_on_a_device_ties_and_forbidden_tokens(case):
    for top_k in (None, 1, 3):
        for top_p in (None, 0.5, 0.95):
            settings = {"top_k": top_k, "top_p": top_p}
            assert_drawn_from(TIES[case].cuda(), numbers(50).cuda(), settings)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["torch", "triton"])
@EACH
def test_on_a_device_forbidden_tokens_are_never_drawn(settings, impl):
    logits = 3 * torch.randn(20_000, 5000, device="cuda")
    logits[:, ::2] = -INF
    token = sample_token(logits, impl=impl, **settings)
    assert (token % 2 == 1).all()


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["torch", "triton"])
@EACH
def test_on_a_device_a_captured_graph_draws_anew(settings, impl):
    logits, uniform = torch.randn(8, 5000, device="cuda"), torch.rand(8, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        sample_token(logits, uniform=uniform, impl=impl, **settings)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        token = sample_token(logits, uniform=uniform, impl=impl, **settings)
    for _ in range(3):
        logits.normal_()
        uniform.uniform_().clamp_(max=BELOW_ONE)
        graph.replay()
        assert torch.equal(token, sample_token(logits, uniform=uniform, impl=impl, **settings))
