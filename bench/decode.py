"""Greedy decoding with a cache against the loop without one and against transformers' `generate`.

All arms have the same weights, and the gate demands the same tokens of them.
"""

import functools
import importlib.util
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor

from aigc_lib.models.text import gpt2_weights
from aigc_lib.models.text.gpt import GPT, GPTConfig
from aigc_lib.sampling import decode
from bench.arms import Arm, Case, Goal, plain

PROMPT = 16
# The GPT that writes code in the chapter, with GPT-2's positions; and GPT-2's smallest.
COURSE = {"vocab_size": 2048, "context": 256, "width": 96, "num_layers": 3, "num_heads": 4}
SMALL = {"vocab_size": 50257, "context": 1024, "width": 768, "num_layers": 12, "num_heads": 12}


def cases(device: torch.device, *, quick: bool, compiled: bool) -> list[Case]:
    """One prompt, continued by the course's GPT and by one of 124 million random weights."""
    if quick:
        return [_case(device, "course", COURSE, 8)]
    # At this size a token takes a CPU as long as reading the weights does, the first and the last.
    num_new = 200 if device.type == "cuda" else 16
    return [_case(device, "course", COURSE, 200), _case(device, "124M", SMALL, num_new)]


def _case(device, name, sizes, num_new) -> Case:
    model = functools.cache(functools.partial(_model, device, sizes))
    theirs = functools.cache(lambda: _theirs(model()))

    def inputs(draw):
        shape = (1, PROMPT)
        return (torch.randint(sizes["vocab_size"], shape, generator=draw, device=draw.device),)

    def cached(prompt):
        return decode.generate(model(), prompt, max_new_tokens=num_new, temperature=0)

    def loop(prompt):
        return without_cache(model(), prompt, num_new)

    def same_tokens(call, inputs):
        wrong = int((call(*inputs) != loop(*inputs)).sum())
        return f"wrong output: {wrong} tokens differ from the loop's" if wrong else None

    peers = [plain("no cache", loop)]
    if importlib.util.find_spec("transformers"):
        peers.append(_generate("generate", theirs, num_new))
        if device.type == "cuda":
            peers.append(_generate("static", theirs, num_new, cache_implementation="static"))
    return Case(
        op="decode",
        name=f"{name}, {PROMPT} + {num_new} tokens, float32",
        inputs=inputs,
        reference=loop,
        eager=loop,
        arms=(plain("cache", cached),),
        peers=tuple(peers),
        directions=("forward",),
        goals=() if device.type == "cuda" else _goals(name),
        gate=same_tokens,
    )


def _goals(name: str) -> tuple[Goal, ...]:
    if name == "course":
        return (
            Goal("cache", "forward", "no cache", {"ratio": 2.5}),
            Goal("cache", "forward", "generate", {"ratio": 1.2}),
        )
    return (Goal("cache", "forward", "generate", {}, {"ratio": 1.0}),)


@torch.inference_mode()
def without_cache(model: Callable[..., Tensor], prompt: Tensor, num_new: int) -> Tensor:
    """Greedy decoding as one would first write it."""
    tokens = prompt
    for _ in range(num_new):
        tokens = torch.cat([tokens, model(tokens)[:, -1].argmax(1, keepdim=True)], 1)
    return tokens


def _model(device, sizes) -> GPT:
    torch.manual_seed(0)
    config = GPTConfig(**sizes, positions="learned", activation="gelu_tanh", bias=True)
    return GPT(config).eval().to(device)


def _theirs(model: GPT) -> torch.nn.Module:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        gpt2_weights.save(model, folder)
        theirs = transformers.GPT2LMHeadModel.from_pretrained(folder, local_files_only=True)
    # Random tokens may hold any number: none of them ends or pads a text.
    settings = theirs.generation_config
    settings.bos_token_id = settings.eos_token_id = settings.pad_token_id = None
    return theirs.eval().to(model.head_weight.device)


def _generate(name, theirs, num_new, **settings) -> Arm:
    def call(prompt):
        settings.update(max_new_tokens=num_new, do_sample=False)
        return theirs().generate(prompt, attention_mask=torch.ones_like(prompt), **settings)

    return plain(name, call)
