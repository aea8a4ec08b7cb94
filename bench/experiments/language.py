"""`python -m bench.experiments.language [--seeds 5] [--seconds 45] [--only code prose] [--arms …]`.

Three networks learn the same text for the same CPU time and are scored on the same held-out text:
the course's GPT, the recipe that nanoGPT's README gives for CPUs, and a GRU. Beside them stand
n-gram models, which count instead and take no time to speak of. Bits are per character, whatever
the tokens are.

A budget of s seconds is s · threads of CPU time. Learning rates and windows follow the share of it
that is used up, and the training ends with it, however fast or busy the machine is. All networks
share the engineering: one loop, one loss, fused AdamW. Text into tokens, the learning of the byte
pairs and the scoring are nobody's time.

On code the GPT and the GRU are trained by AdamW alone and with Muon, each: networks compare where
the optimizer is the same. `--arms` runs some arms only, seed by seed, so that they share a machine
and its hour; runs on two machines do not compare.

The result is one file per run, written anew whenever an arm is done, so that Ctrl-C loses only the
arm that is running.
"""

import argparse
import datetime
import functools
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aigc_lib import device as devices
from aigc_lib import train
from aigc_lib.data import byte_pairs
from aigc_lib.data import text as corpora
from aigc_lib.data.tokenizers import CharacterTokenizer
from aigc_lib.metrics.text import bits_per_character
from aigc_lib.models.text.gpt import GPT, GPTConfig
from aigc_lib.models.text.ngram import NGram
from aigc_lib.ops.linear_cross_entropy import linear_cross_entropy
from aigc_lib.optimizers import matrices_by_muon
from bench import report
from tools import Refusal, command

_GROWING = ((0.25, 32, 60), (0.5, 64, 30), (0.75, 128, 15), (1.0, 256, 7))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that makes one arm; the defaults are those of the course's GPT."""

    network: str = "GPT"  # or "GRU"
    tokens: str = "characters"  # or "byte pairs" (2048 of them)
    width: int = 96
    num_layers: int = 3  # blocks (of 4 heads), or recurrent layers
    positions: str = "rotary"
    activation: str = "gelu"
    # What is trained on until which share of the time: (share, T, B), the last share 1.
    phases: tuple[tuple[float, int, int], ...] = _GROWING
    scored: int = 128  # T of the windows that are scored
    muon_lr: float | None = 0.02  # of the matrices inside the blocks; None: AdamW has them too
    adamw_lr: float = 0.012  # of all else
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW where it is alone
    weight_decay: float = 0.0  # of AdamW where it is alone, for matrices
    warmup: int = 40  # steps until the full learning rate
    end: float = 0.0  # the share of it that it falls to, along a cosine over the time


# The sizes of nanoGPT's README for CPUs, the rest of its configuration for characters; it reads
# characters, whatever the text.
_SIZES = {"width": 128, "num_layers": 4, "positions": "learned", "phases": ((1.0, 64, 12),)}
_RATES = {"muon_lr": None, "adamw_lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}
NANO = Recipe(**_SIZES, **_RATES, scored=64, warmup=100, end=0.1)
# Width, batch and rate are the best of a dozen single-seed trials at this budget, with AdamW. There
# is no text for tuning: trials of any recipe were scored on the held-out text.
RECURRENT = Recipe(
    network="GRU", width=256, num_layers=1, phases=((1.0, 64, 32),), muon_lr=None, adamw_lr=8e-3
)
RECIPES = {
    "prose": {"GPT": Recipe(adamw_lr=3e-3), "nanoGPT": NANO, "GRU": RECURRENT},
    "code": {
        "GPT": Recipe(tokens="byte pairs"),
        # The best of three rates; they, and the trials of the GPT with Muon, were not kept.
        "AdamW": Recipe(tokens="byte pairs", muon_lr=None, adamw_lr=8e-3),
        "nanoGPT": NANO,
        "GRU": replace(RECURRENT, tokens="byte pairs"),
        # By trials with seed 0 and 90 s, as bits of the held-out text: 0.005 → 1.377, 0.01 → 1.347,
        # 0.02 → 1.378, 0.04 → 1.457. AdamW's rate, batch and width stayed those of AdamW alone.
        "GRU, Muon": replace(RECURRENT, tokens="byte pairs", muon_lr=0.01),
    },
}
ORDERS = range(4, 11)  # of n-grams, as far as they can be numbered in 64 bits


class GRU(nn.Module):
    """Embedding, recurrent layers and read-out, with what training asks of a GPT."""

    def __init__(self, vocab_size: int, width: int, num_layers: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.layers = nn.GRU(width, width, num_layers, batch_first=True)
        self.head_weight = nn.Parameter(nn.Linear(width, vocab_size).weight.detach())

    @property
    def blocks(self) -> nn.Module:
        """Where Muon finds its matrices: of each layer two, with the three gates on each other."""
        return self.layers

    def features(self, tokens: Tensor) -> Tensor:
        """What the read-out reads: (B, T, C) of (B, T)."""
        return self.layers(self.embedding(tokens))[0]


def load(name: str, quick: bool) -> corpora.Corpus:
    """The corpus "prose" or "code"; if quick, only its beginning."""
    corpus = getattr(corpora, name)()
    if not quick:
        return corpus
    parts = {"train_items": corpus.train_items[:1500], "held_out_items": corpus.held_out_items[:9]}
    return replace(corpus, **parts)


def encoded(corpus: corpora.Corpus, tokens: str) -> tuple[int, Tensor, Tensor]:
    """A corpus as "characters" or "byte pairs": V, the tokens to learn from, and those held out."""
    if tokens == "characters":
        tokenizer = CharacterTokenizer(corpus.alphabet)
    else:
        tokenizer = byte_pairs.train(corpus.train, 2048)
    parts = (torch.tensor(tokenizer.encode(part)) for part in (corpus.train, corpus.held_out))
    return tokenizer.vocab_size, *parts


def new_arm(recipe: Recipe, vocab_size: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network with weights from torch's global generator, and what trains it."""
    sizes = {"vocab_size": vocab_size, "width": recipe.width, "num_layers": recipe.num_layers}
    if recipe.network == "GRU":
        model = GRU(**sizes)
    else:
        sizes |= {"positions": recipe.positions, "activation": recipe.activation}
        context = max(length for _, length, _ in recipe.phases)
        model = GPT(GPTConfig(**sizes, context=context))
    lr = recipe.adamw_lr
    if recipe.muon_lr is not None:
        return model, matrices_by_muon(model, muon_lr=recipe.muon_lr, adamw_lr=lr)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    settings = {"betas": recipe.betas, "weight_decay": recipe.weight_decay, "fused": True}
    return model, torch.optim.AdamW(groups, lr=lr, **settings)


def training(
    recipe: Recipe, vocab_size: int, tokens: Tensor, *, seed: int, used: Callable[[], float]
) -> tuple[nn.Module, Iterator[train.Step]]:
    """An arm that is about to learn: the network, and the loop that trains it.

    `used` tells the share of the budget that is used up; from 1 on there are no more steps.
    """
    draws = devices.seed_everything(seed)
    model, optimizer = new_arm(recipe, vocab_size)
    now = 0.0

    def loss(_):
        _, length, batch = next(phase for phase in recipe.phases if now < phase[0])
        inputs, targets = corpora.windows(tokens, batch, length, draws)
        return linear_cross_entropy(model.features(inputs), model.head_weight, targets)

    def rate(index):
        fallen = (1 - math.cos(math.pi * now)) / 2
        return min(1.0, (index + 1) / recipe.warmup) * (1 - (1 - recipe.end) * fallen)

    def loop():
        nonlocal now
        settings = {"steps": sys.maxsize, "schedule": rate, "clip": 1.0}
        for step in train.run(loss, model, optimizer, **settings):
            yield step
            now = used()
            if now >= 1:
                return

    return model, loop()


@torch.inference_mode()
def nats(model: nn.Module, tokens: Tensor, length: int, vocab_size: int) -> float:
    """The summed surprise at a text: −Σ_t ln p(token_t | the tokens before it in its window).

    Windows of T tokens overlap by half. Of the first one every token counts, of the others the
    second half, so that nearly all have T/2 tokens or more before them. The very first token has
    none and is charged as one of V.
    """
    half, total = length // 2, math.log(vocab_size)
    for start in range(0, len(tokens) - 1, half):
        first = max(0, start - half)
        piece = tokens[first : start + half + 1]
        logits = model.features(piece[None, :-1])[0, start - first :] @ model.head_weight.T
        total += F.cross_entropy(logits, piece[start - first + 1 :], reduction="sum").item()
    return total


def _timed(work: Callable[[], object]) -> dict:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}


def count_and_score(order: int, corpus: corpora.Corpus) -> dict:
    """Fit and score an n-gram model: what it took, and the bits."""
    model = NGram(order)
    took = _timed(lambda: model.fit(corpus.train, alphabet=corpus.alphabet))
    bits = model.bits_per_character(corpus.held_out)
    return {"bits_per_character": bits, **took, "steps": None, "parameters": None}


def train_and_score(
    recipe: Recipe, numbers: tuple, characters: int, *, seed: int, budget: float
) -> dict:
    """Train one arm for a budget of CPU seconds, then score it: what it took, and the bits.

    The numbers are those of `encoded`; the characters are counted in the held-out text.
    """
    vocab_size, tokens, held_out = numbers
    start = time.process_time()

    def used():
        return (time.process_time() - start) / budget

    model, loop = training(recipe, vocab_size, tokens, seed=seed, used=used)
    losses: list[float] = []
    took = _timed(lambda: losses.extend(step.loss for step in loop))
    bits = bits_per_character(nats(model.eval(), held_out, recipe.scored, vocab_size), characters)
    parameters = sum(p.numel() for p in model.parameters())
    return {"bits_per_character": bits, **took, "steps": len(losses), "parameters": parameters}


def chosen(name: str, arms: Sequence[str] | None) -> dict[str, Recipe]:
    """The arms of a text that learn: all, or those named."""
    return {arm: recipe for arm, recipe in RECIPES[name].items() if arms is None or arm in arms}


def compare(
    texts: dict[str, corpora.Corpus], seeds: int, budget: float, arms: Sequence[str] | None = None
) -> Iterator[dict]:
    """Run all arms, or those named: first those that count, then seed by seed those that learn.

    The texts go by their names in RECIPES; each training has a budget of CPU seconds.
    """
    for name, corpus in texts.items():
        for order in ORDERS:
            if (len(corpus.alphabet) + 1) ** order < 2**63:
                row = {"corpus": name, "arm": f"{order}-gram", "seed": None}
                yield row | count_and_score(order, corpus)
    cut = functools.cache(lambda name, tokens: encoded(texts[name], tokens))
    for seed in range(seeds):
        for name, corpus in texts.items():
            for arm, recipe in chosen(name, arms).items():
                row = {"corpus": name, "arm": arm, "seed": seed}
                given = recipe, cut(name, recipe.tokens), len(corpus.held_out)
                yield row | train_and_score(*given, seed=seed, budget=budget)


def lines(rows: list[dict]) -> list[str]:
    """The table of one corpus: mean and worst of each arm's bits, and of what the GPT saves."""
    bits: dict[str, dict] = {}
    for row in rows:
        bits.setdefault(row["arm"], {})[row["seed"]] = row["bits_per_character"]
    out = [" " * 49 + "bits per character    GPT less this"]
    out += [f"{'':10}{'parameters':>11}{'steps':>8}{'CPU s':>9}" + 2 * f"{'mean':>11}{'worst':>8}"]
    for arm, of_seed in bits.items():
        found = [row for row in rows if row["arm"] == arm]
        keys = "parameters", "steps", "cpu_seconds", "bits_per_character"
        means = [statistics.mean(row[key] or 0 for row in found) for key in keys]
        line = "{:11,.0f}{:8.0f}{:9.1f}{:11.3f}".format(*means) + f"{max(of_seed.values()):8.3f}"
        ours = {seed: b for seed, b in bits.get("GPT", {}).items() if {seed, None} & of_seed.keys()}
        less = [b - of_seed.get(seed, of_seed.get(None)) for seed, b in ours.items()]
        if less and arm != "GPT":
            line += f"{statistics.mean(less):+11.3f}{max(less):+8.3f}"
        out.append(f"{arm:10}{line}")
    counted = sorted((of_seed[None], arm) for arm, of_seed in bits.items() if None in of_seed)
    return out + [f"The best n-gram is the {arm}." for _, arm in counted[:1]]


def _arguments(line: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.experiments.language",
        description="Language models at equal training time.",
    )
    parser.add_argument("--seeds", type=int, help="how many, 5; with --quick 1")
    parser.add_argument("--seconds", type=float, help="for each training, 45; with --quick 0.5")
    parser.add_argument("--only", nargs="+", default=list(RECIPES), metavar="CORPUS")
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="of those that learn; all")
    parser.add_argument("--out", type=Path, help="the file to write, instead of bench/results/")
    parser.add_argument("--quick", action="store_true", help="short texts, to see that it runs")
    arguments = parser.parse_args(line)
    seeds, seconds = (1, 0.5) if arguments.quick else (5, 45.0)
    arguments.seeds = seeds if arguments.seeds is None else arguments.seeds
    arguments.seconds = seconds if arguments.seconds is None else arguments.seconds
    if unknown := [name for name in arguments.only if name not in RECIPES]:
        raise Refusal(f"no corpus {unknown[0]!r} to learn; there are {', '.join(RECIPES)}")
    known = {arm for name in arguments.only for arm in RECIPES[name]}
    if unknown := [arm for arm in arguments.arms or [] if arm not in known]:
        raise Refusal(f"no arm {unknown[0]!r} in {', '.join(arguments.only)}")
    if arguments.seeds < 1:
        raise Refusal(f"expected at least 1 seed, got {arguments.seeds}")
    if not 0 < arguments.seconds < math.inf:
        raise Refusal(f"expected more than 0 seconds, got {arguments.seconds}")
    if arguments.out and arguments.out.is_dir():
        raise Refusal(f"expected a file to write, got the folder {arguments.out}")
    return arguments


def _head(arguments: argparse.Namespace, texts: dict[str, corpora.Corpus]) -> dict:
    words = f"python -m bench.experiments.language --seeds {arguments.seeds}"
    words += f" --seconds {arguments.seconds:g} --only {' '.join(texts)}"
    if arguments.arms:
        words += f" --arms {shlex.join(arguments.arms)}"
    words += " --quick" * arguments.quick
    return {
        "date": datetime.date.today().isoformat(),
        **report.setting(torch.device("cpu"), arguments.quick),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "command": words,
        "seeds": list(range(arguments.seeds)),
        "budget_cpu_seconds": arguments.seconds * torch.get_num_threads(),
        "texts": {name: corpus.name for name, corpus in texts.items()},
        "recipes": {
            name: {arm: asdict(recipe) for arm, recipe in chosen(name, arguments.arms).items()}
            for name in texts
        },
    }


def main() -> int:
    """Compare as asked, and return 0: who is ahead is a result, not an error."""
    arguments = _arguments(sys.argv[1:])
    devices.limit_threads()
    texts = {name: load(name, arguments.quick) for name in arguments.only}
    content = {**_head(arguments, texts), "complete": False, "rows": (rows := [])}
    path = arguments.out or report.new_file(content, "language")
    print(f"{content['device']}, {content['threads']} threads, torch {torch.__version__}")

    try:
        budget = content["budget_cpu_seconds"]
        for row in compare(texts, arguments.seeds, budget, arguments.arms):
            rows.append(row)
            report.write(path, content)
            print(f"{row['corpus']:6}{row['arm']:8}{row['bits_per_character']:.3f}", flush=True)
        content["complete"] = True
        report.write(path, content)
    finally:
        for name in texts:
            print(f"\n== {name} ==")
            print("\n".join(lines([row for row in rows if row["corpus"] == name])))
        print(f"\nThe result is {path}." if rows else "")
    return 0


if __name__ == "__main__":
    command(main)
