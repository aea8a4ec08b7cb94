"""The comparison of language models, on tiny texts and with clocks that tell what they are told."""

import itertools
import json
import math
import re
import runpy
import sys
from dataclasses import replace

import pytest
import torch
from comparisons import contents, fits
from torch import nn

from aigc_lib.data.text import Corpus
from aigc_lib.models.text.gpt import GPT, GPTConfig
from aigc_lib.models.text.ngram import NGram
from aigc_lib.optimizers import Together
from bench import report
from bench.experiments import language
from tools import ROOT, Refusal

FILES = sorted(report.RESULTS.glob("*-language*.json"))
NUMBER = (int, float)
HEAD = {
    **dict.fromkeys(("date", "device", "processor", "command"), str),
    **dict.fromkeys(("versions", "texts", "recipes"), dict),
    **dict.fromkeys(("seeds", "rows"), list),
    **dict.fromkeys(("quick", "complete"), bool),
    "capability": type(None),
    "threads": int,
    "wait_policy": (str, type(None)),
    "budget_cpu_seconds": NUMBER,
}
ROW = {
    **dict.fromkeys(("corpus", "arm"), str),
    **dict.fromkeys(("seed", "steps", "parameters"), (int, type(None))),
    **dict.fromkeys(("bits_per_character", "cpu_seconds", "wall_seconds"), NUMBER),
}
ARMS = ["GPT", "nanoGPT", "GRU"]


def check(content):
    """A result has the form that readers rely on, and every row that its head promises."""
    fits(content, HEAD)
    # The oldest were made when the file stood one folder higher.
    assert re.match(r"python -m bench\.(experiments\.)?language --seeds ", content["command"])
    assert content["recipes"].keys() == content["texts"].keys()
    for row in content["rows"]:
        fits(row, ROW)
        assert (row["seed"] is None) == (row["steps"] is None) == row["arm"].endswith("-gram")
    if content["complete"]:
        learned = [(r["seed"], r["corpus"], r["arm"]) for r in content["rows"] if r["steps"]]
        assert learned == [
            (seed, name, arm)
            for seed in content["seeds"]
            for name in content["texts"]
            for arm in content["recipes"][name]
        ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_committed_comparison_is_whole_and_named_after_its_device_and_day(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    check(content)
    name = re.escape(f"{content['date']}-{report.slug(content['device'])}")
    assert re.fullmatch(rf"{name}-language(-\d+)?\.json", path.name)
    assert content["complete"]
    assert not content["quick"]
    for row in content["rows"]:
        if row["steps"]:
            assert row["cpu_seconds"] == pytest.approx(content["budget_cpu_seconds"], rel=0.02)


# --- scoring


class Uniform(nn.Module):
    """Every token as likely as another."""

    def __init__(self, vocab_size):
        super().__init__()
        self.head_weight = nn.Parameter(torch.zeros(vocab_size, 3, dtype=torch.float64))

    def features(self, tokens):
        return torch.randn(*tokens.shape, 3, dtype=torch.float64)


@pytest.mark.parametrize("length", [2, 6, 7])
@pytest.mark.parametrize("size", [1, 2, 6, 7, 8, 31])
def test_every_token_is_counted_once(size, length):
    tokens = torch.randint(5, (size,))
    assert language.nats(Uniform(5), tokens, length, 5) == pytest.approx(size * math.log(5))


@pytest.mark.parametrize("network", ["GPT", "GRU"])
@pytest.mark.parametrize(("size", "length"), [(30, 8), (29, 6), (5, 8)])
def test_the_score_is_the_sum_over_tokens_one_by_one(network, size, length):
    phases = ((0.5, 2, 1), (1.0, length, 1))
    recipe = language.Recipe(network=network, width=8, num_layers=2, phases=phases, muon_lr=None)
    model, _ = language.new_arm(recipe, 7)
    model.double()
    with torch.no_grad():
        model.head_weight.normal_()
    tokens = torch.randint(7, (size,))
    half, total = length // 2, math.log(7)
    for place in range(1, size):
        block = (place - 1) // half
        seen = tokens[max(0, block - 1) * half : place]
        assert place <= half or half <= len(seen) <= length
        logits = model.features(seen[None])[0, -1] @ model.head_weight.T
        total -= logits.log_softmax(0)[tokens[place]].item()
    assert language.nats(model, tokens, length, 7) == pytest.approx(total, rel=1e-12)


# --- networks


def test_the_recurrent_arm_is_a_chain_of_cells():
    model = language.GRU(5, 4, 1).double()
    cell = nn.GRUCell(4, 4).double()
    names = {f"{name}_l0": value for name, value in cell.named_parameters()}
    model.layers.load_state_dict(names)
    tokens, state = torch.randint(5, (2, 6)), torch.zeros(2, 4, dtype=torch.float64)
    found = model.features(tokens)
    for t in range(6):
        state = cell(model.embedding(tokens[:, t]), state)
        torch.testing.assert_close(found[:, t], state)


@pytest.mark.parametrize("corpus", language.RECIPES)
def test_nanogpt_is_trained_as_published(corpus):
    recipe = language.RECIPES[corpus]["nanoGPT"]
    assert (recipe.tokens, recipe.phases) == ("characters", ((1.0, 64, 12),))
    assert (recipe.warmup, recipe.end) == (100, pytest.approx(1e-4 / 1e-3))
    model, optimizer = language.new_arm(recipe, 65)
    config = GPTConfig(vocab_size=65, context=64, width=128, num_layers=4, positions="learned")
    assert model.config == config
    assert (config.num_heads, config.norm, config.activation) == (4, "layer", "gelu")
    assert (config.tied, config.bias, config.dropout) == (True, False, 0)
    # Per block four maps of attention and two of the perceptron; nine norms; two embeddings.
    assert sum(p.numel() for p in model.parameters()) == 4 * 12 * 128**2 + (9 + 65 + 64) * 128
    assert type(optimizer) is torch.optim.AdamW
    decayed, kept = optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2}
    assert {p.ndim for p in kept["params"]} == {1}
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"]) == (1e-3, (0.9, 0.99))


@pytest.mark.parametrize("corpus", language.RECIPES)
def test_the_gpt_has_its_matrices_trained_by_muon_and_the_gru_by_adamw(corpus):
    recipes = language.RECIPES[corpus]
    assert [arm for arm in recipes if arm not in ("AdamW", "GRU, Muon")] == ARMS
    model, optimizer = language.new_arm(recipes["GPT"], 65)
    assert isinstance(model, GPT)
    assert isinstance(optimizer, Together)
    rates = [recipes["GPT"].muon_lr, recipes["GPT"].adamw_lr]
    assert [group["lr"] for group in optimizer.param_groups] == rates
    model, optimizer = language.new_arm(recipes["GRU"], 65)
    assert isinstance(model, language.GRU)
    assert type(optimizer) is torch.optim.AdamW
    assert recipes["GRU"].tokens == recipes["GPT"].tokens


@pytest.mark.parametrize(("with_muon", "alone"), [("GPT", "AdamW"), ("GRU, Muon", "GRU")])
def test_each_network_has_an_arm_that_differs_in_its_optimizer_alone(with_muon, alone):
    muon, plain = (language.RECIPES["code"][arm] for arm in (with_muon, alone))
    assert replace(plain, muon_lr=muon.muon_lr, adamw_lr=muon.adamw_lr) == muon
    _, optimizer = language.new_arm(plain, 65)
    assert type(optimizer) is torch.optim.AdamW
    _, optimizer = language.new_arm(muon, 65)
    assert isinstance(optimizer, Together)


def test_muon_has_the_recurrent_matrices_of_the_gru_and_adamw_all_else():
    recipe = language.RECIPES["code"]["GRU, Muon"]
    model, optimizer = language.new_arm(recipe, 65)
    muon, adamw = optimizer.param_groups
    assert {p.shape for p in muon["params"]} == {(3 * recipe.width, recipe.width)}
    assert len(muon["params"]) == 2 * recipe.num_layers
    assert len(muon["params"]) + len(adamw["params"]) == len(list(model.parameters()))
    assert (muon["lr"], adamw["lr"]) == (recipe.muon_lr, recipe.adamw_lr)


# --- training

SIZES = {"width": 8, "num_layers": 1, "phases": ((1.0, 8, 4),), "scored": 8}
TINY = {
    "GPT": language.Recipe(**SIZES),
    "nanoGPT": replace(language.NANO, **SIZES),
    "GRU": language.Recipe(network="GRU", **SIZES, muon_lr=None),
}
CORPUS = Corpus(name="letters", train_items=("abcabcab",) * 60, held_out_items=("abcabcab",) * 5)


def counting(steps):
    """The share of a budget of so many steps that is used up, asked once after each."""
    done = itertools.count(1)
    return lambda: next(done) / steps


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_learns_what_repeats_itself(arm):
    recipe = replace(TINY[arm], adamw_lr=0.03)
    vocab_size, tokens, held_out = language.encoded(CORPUS, "characters")
    model, loop = language.training(recipe, vocab_size, tokens, seed=0, used=counting(150))
    before = language.nats(model, held_out, 8, vocab_size)
    assert len(list(loop)) == 150
    assert language.nats(model, held_out, 8, vocab_size) < 0.2 * before


def test_the_rate_rises_then_falls_to_its_end():
    recipe = replace(TINY["nanoGPT"], warmup=10)
    _, loop = language.training(recipe, 4, torch.randint(4, (99,)), seed=0, used=counting(50))
    rates = [step.lr for step in loop]
    assert max(rates) == rates[9] == pytest.approx(1e-3 * at(9 / 50, end=0.1))
    assert rates[0] == pytest.approx(1e-4)
    assert rates[24] == pytest.approx(1e-3 * at(24 / 50, end=0.1))
    assert rates[-1] == pytest.approx(1e-3 * at(49 / 50, end=0.1))


def at(share, end):
    """Half a cosine from 1 to its end."""
    return end + (1 - end) * (1 + math.cos(math.pi * share)) / 2


def test_a_seed_fixes_a_run():
    vocab_size, tokens, _ = language.encoded(CORPUS, "characters")

    def losses(seed):
        _, loop = language.training(TINY["GRU"], vocab_size, tokens, seed=seed, used=counting(5))
        return [step.loss for step in loop]

    assert losses(1) == losses(1) != losses(2)


def test_windows_are_those_of_their_phase(monkeypatch):
    seen, whole = [], language.corpora.windows

    def windows(tokens, batch, length, draws):
        seen.append((length, batch))
        return whole(tokens, batch, length, draws)

    monkeypatch.setattr(language.corpora, "windows", windows)
    recipe = replace(TINY["GPT"], phases=((0.25, 4, 6), (0.75, 6, 4), (1.0, 8, 3)))
    _, loop = language.training(recipe, 4, torch.randint(4, (99,)), seed=0, used=counting(8))
    assert len(list(loop)) == 8
    assert seen == [(4, 6)] * 2 + [(6, 4)] * 4 + [(8, 3)] * 2


@pytest.mark.parametrize(("seconds", "steps"), [(2.0, 5), (9.0, 2), (30.0, 1)])
def test_a_training_ends_with_its_time(monkeypatch, seconds, steps):
    spent, whole = [], language.corpora.windows

    def windows(*given):
        spent.append(seconds)
        return whole(*given)

    monkeypatch.setattr(language.time, "process_time", lambda: sum(spent))
    monkeypatch.setattr(language.corpora, "windows", windows)
    numbers = language.encoded(CORPUS, "characters")
    row = language.train_and_score(TINY["GRU"], numbers, 40, seed=0, budget=10.0)
    assert row["steps"] == steps
    assert row["cpu_seconds"] == seconds * steps


def test_the_networks_are_given_the_same_time_seed_by_seed(monkeypatch):
    given = []

    def fake(recipe, numbers, characters, *, seed, budget):
        assert numbers == (CORPUS, recipe.tokens)
        assert characters == len(CORPUS.held_out)
        given.append((recipe, seed, budget))
        return {}

    recipes = {**TINY, "GPT": replace(TINY["GPT"], tokens="byte pairs")}
    monkeypatch.setattr(language, "encoded", lambda corpus, tokens: (corpus, tokens))
    monkeypatch.setattr(language, "train_and_score", fake)
    monkeypatch.setattr(language, "count_and_score", lambda order, corpus: {})
    monkeypatch.setattr(language, "RECIPES", {"prose": recipes})
    rows = list(language.compare({"prose": CORPUS}, 2, 90.0))
    assert [row["arm"] for row in rows] == [*(f"{n}-gram" for n in range(4, 11)), *ARMS, *ARMS]
    assert given == [(recipes[arm], seed, 90.0) for seed in (0, 1) for arm in ARMS]


def test_some_arms_alone_run_beside_what_counts(monkeypatch):
    monkeypatch.setattr(language, "encoded", lambda corpus, tokens: (corpus, tokens))
    monkeypatch.setattr(language, "train_and_score", lambda *given, seed, budget: {})
    monkeypatch.setattr(language, "RECIPES", {"prose": TINY})
    rows = list(language.compare({"prose": CORPUS}, 2, 90.0, ["GRU", "GPT"]))
    learned = [(row["arm"], row["seed"]) for row in rows if row["seed"] is not None]
    assert learned == [("GPT", 0), ("GRU", 0), ("GPT", 1), ("GRU", 1)]


def test_orders_that_do_not_fit_into_64_bits_are_left_out(monkeypatch):
    letters = "".join(map(chr, range(33, 127)))
    corpus = Corpus(name="letters", train_items=(letters,), held_out_items=(letters[:9],))
    monkeypatch.setattr(language, "RECIPES", {"prose": {}})
    rows = list(language.compare({"prose": corpus}, 1, 1.0))
    assert [row["arm"] for row in rows] == [f"{n}-gram" for n in range(4, 10)]
    model = NGram(5).fit(corpus.train, alphabet=corpus.alphabet)
    assert rows[1]["bits_per_character"] == model.bits_per_character(corpus.held_out)


@pytest.mark.parametrize("tokens", ["characters", "byte pairs"])
def test_bits_are_per_character_whatever_the_tokens(monkeypatch, tokens):
    text = tuple(f"item {i} of {i**3} items" for i in range(1000))
    corpus = Corpus(name="items", train_items=text[:980], held_out_items=text[980:])
    recipe = replace(TINY["GPT"], tokens=tokens, phases=((0.25, 4, 4), (1.0, 8, 2)))
    whole = language.training
    monkeypatch.setattr(
        language, "training", lambda *args, seed, used: whole(*args, seed=seed, used=counting(3))
    )
    numbers = language.encoded(corpus, tokens)
    characters = len(corpus.held_out)
    row = language.train_and_score(recipe, numbers, characters, seed=4, budget=1.0)
    model, loop = whole(recipe, numbers[0], numbers[1], seed=4, used=counting(3))
    assert len(list(loop)) == row["steps"] == 3
    total = language.nats(model, numbers[2], recipe.scored, numbers[0])
    assert row["bits_per_character"] == pytest.approx(total / (characters * math.log(2)))
    assert (len(numbers[2]) == characters) == (tokens == "characters")
    assert row["parameters"] == sum(p.numel() for p in model.parameters())


# --- the table


def row(arm, seed, bits):
    return {
        "corpus": "prose",
        "arm": arm,
        "seed": seed,
        "bits_per_character": bits,
        "cpu_seconds": 90.0,
        "wall_seconds": 46.0,
        "steps": None if seed is None else 800 + seed,
        "parameters": None if seed is None else 1000,
    }


def test_the_table_tells_means_worst_seeds_and_who_is_ahead():
    rows = [row("4-gram", None, 2.0), row("8-gram", None, 1.9), row("9-gram", None, 1.95)]
    rows += [row("GPT", 0, 1.7), row("nanoGPT", 0, 1.8), row("GPT", 1, 1.8), row("nanoGPT", 1, 2.0)]
    rows += [row("GRU", 0, 1.6)]
    table = [" ".join(line.split()) for line in language.lines(rows)]
    assert table[2:] == [
        "4-gram 0 0 90.0 2.000 2.000 -0.250 -0.200",
        "8-gram 0 0 90.0 1.900 1.900 -0.150 -0.100",
        "9-gram 0 0 90.0 1.950 1.950 -0.200 -0.150",
        "GPT 1,000 800 90.0 1.750 1.800",
        "nanoGPT 1,000 800 90.0 1.900 2.000 -0.150 -0.100",
        "GRU 1,000 800 90.0 1.600 1.600 +0.100 +0.100",
        "The best n-gram is the 8-gram.",
    ]


@pytest.mark.parametrize("rows", [[], [row("4-gram", None, 2.0)], [row("GRU", 0, 1.0)]])
def test_a_table_of_a_run_that_was_stopped_early(rows):
    counted = [entry for entry in rows if entry["seed"] is None]
    assert len(language.lines(rows)) == 2 + len(rows) + len(counted)


# --- the command


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """Runs `main` on the little corpus."""
    monkeypatch.setattr(language, "RECIPES", {"prose": TINY, "code": TINY})
    monkeypatch.setattr(language.corpora, "prose", lambda: CORPUS)
    monkeypatch.setattr(language.corpora, "code", lambda: CORPUS)
    monkeypatch.setattr(language.devices, "limit_threads", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(report, "TRIALS", tmp_path / "trials")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["bench.experiments.language", *words])
        return language.main()

    run.folder = tmp_path / "results"
    return run


def test_a_run_leaves_a_whole_result_and_does_not_touch_an_earlier_one(bench, capsys):
    assert bench("--seeds", "2", "--seconds", "0.01") == 0
    (first,) = contents(bench.folder)
    check(first)
    assert first["complete"]
    assert first["seeds"] == [0, 1]
    assert first["command"].endswith("--seeds 2 --seconds 0.01 --only prose code")
    assert (first["threads"], first["budget_cpu_seconds"]) == (3, pytest.approx(0.03))
    assert first["recipes"]["code"]["GRU"]["phases"] == [[1.0, 8, 4]]
    out = capsys.readouterr().out
    assert "== prose ==" in out
    assert "The best n-gram is the 10-gram." in out
    assert out.strip().endswith("-language.json.")
    assert bench("--seeds", "1", "--seconds", "0.01", "--only", "code") == 0
    names = sorted((path.stem for path in bench.folder.iterdir()), key=len)
    assert names == [names[0], f"{names[0]}-2"]
    assert contents(bench.folder)[0] == first
    assert list(contents(bench.folder)[1]["texts"]) == ["code"]


def test_a_run_of_some_arms_says_so_in_its_command_and_holds_no_other(bench):
    recipes = {**TINY, "GRU, Muon": replace(TINY["GRU"], muon_lr=0.01)}
    language.RECIPES["code"] = recipes
    arms = "--arms", "GRU, Muon", "GPT"
    assert bench("--seeds", "2", "--seconds", "0.01", "--only", "code", *arms) == 0
    (content,) = contents(bench.folder)
    check(content)
    assert content["command"].endswith("--only code --arms 'GRU, Muon' GPT")
    assert list(content["recipes"]["code"]) == ["GPT", "GRU, Muon"]


def test_a_trial_runs_from_end_to_end(bench, monkeypatch):
    assert bench("--quick", "--seconds", "0.01") == 0
    whole = language.train_and_score
    monkeypatch.setattr(
        language,
        "train_and_score",
        lambda *given, seed, budget: whole(*given, seed=seed, budget=budget / 100),
    )
    assert bench("--quick", "--only", "prose") == 0
    assert not bench.folder.exists()
    (content,) = contents(bench.folder.with_name("trials"))
    check(content)
    assert content["quick"]
    assert (content["seeds"], list(content["texts"])) == ([0], ["prose"])
    assert content["budget_cpu_seconds"] == 1.5


def test_ctrl_c_loses_only_the_arm_that_is_running(bench, monkeypatch, tmp_path, capsys):
    seen, whole = [], language.train_and_score

    def stopped(*given, **settings):
        seen.append(settings["seed"])
        if len(seen) == 3:
            raise KeyboardInterrupt
        return whole(*given, **settings)

    monkeypatch.setattr(language, "train_and_score", stopped)
    path = tmp_path / "deeper" / "mine.json"
    with pytest.raises(KeyboardInterrupt):
        bench("--seconds", "0.01", "--only", "prose", "--out", str(path))
    content = json.loads(path.read_text(encoding="utf-8"))
    check(content)
    assert not content["complete"]
    assert [row["arm"] for row in content["rows"] if row["steps"]] == ["GPT", "nanoGPT"]
    assert [entry.name for entry in path.parent.iterdir()] == ["mine.json"]
    assert "The best n-gram" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "poems"], "no corpus 'poems' to learn; there are prose, code"),
        (["--only", "prose", "--arms", "LSTM"], "no arm 'LSTM' in prose"),
        (["--seeds", "0"], "expected at least 1 seed, got 0"),
        (["--seconds", "0"], r"expected more than 0 seconds, got 0\.0"),
        (["--seconds", "nan"], "expected more than 0 seconds, got nan"),
        (["--seconds", "inf"], "expected more than 0 seconds, got inf"),
        (["--out", str(ROOT)], "expected a file to write, got the folder"),
    ],
)
def test_a_setting_out_of_range_is_refused(bench, words, message):
    with pytest.raises(Refusal, match=message):
        bench(*words)
    assert not bench.folder.exists()


def test_an_unknown_corpus_is_one_line_and_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.experiments.language", "--only", "poems"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(language.__file__, run_name="__main__")
    assert end.value.code == 1
    assert capsys.readouterr().err == "no corpus 'poems' to learn; there are prose, code\n"
