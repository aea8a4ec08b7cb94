"""Decoding: let a model write, one token at a time.

With a cache of keys and values a step costs one token's work instead of the whole text's. On CUDA,
where a small model would wait for Python to launch its hundreds of kernels, one step is recorded as
a CUDA graph and replayed; on the CPU a step reads only the filled part of the cache.

A model is what gives logits (B, T, V) as `model(tokens, cache=…)`, and a cache as
`model.new_cache(batch, length=…)`. If it has `features` and `head_weight`, as a GPT, the last
token's logits are all that is computed. Its `config.context` and `config.vocab_size` are limits.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib import expect
from aigc_lib.ops.sample_token import sample_token

# "Has every row stopped?" needs a number from the device. On a GPU the answer empties the queue of
# work that the CPU has prepared, so that it is asked rarely; what comes too much is overwritten.
_STEPS_PER_QUESTION = 16
_STEPS_WORTH_RECORDING = 8  # recording a step costs a few steps

Prompt = Int[Tensor, "B T"]
Prompts = Prompt | Sequence[Int[Tensor, " _"]]  # a list may hold unequal lengths
Model = Callable[..., Tensor]


def generate(
    model: Model,
    prompt: Prompts,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    stop: int | Sequence[int] | None = None,
    cache: bool = True,
) -> Int[Tensor, "B total"]:
    """x_t ~ p(x_t | x_{<t}), changed by temperature, top-k and top-p as in `ops.sample_token`.

    The prompts and what continues them, int64; temperature 0 takes the most probable token. Prompts
    of unequal lengths are a list, for padding would be read as text: all begin in column 0 and go
    on to `max_new_tokens` behind the longest. A row that drew a `stop` token repeats it to the end.
    The numbers that decide the draws come from the generator all at once: the tokens are those of
    `stream` and, up to rounding, those without a cache. No gradient is computed; a model with
    dropout wants `model.eval()` before. ValueError if the context has no room for the new tokens.

    Source: the chain rule; a cache of keys and values: Shazeer 2019, section 2.3.
    Derived: 13_gpt eq-gpt-chain
    """
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    run = _Run(model, prompt, max_new_tokens, settings, generator, stop, cache)
    patience = _patience(run.tokens.device)
    with torch.inference_mode():
        for place in run.positions:
            run.step(place)
            if place % patience == 0 and run.all_stopped(place):
                run.tokens[:, place + 1 :] = run.tokens[:, place : place + 1]
                break
    return run.tokens


def stream(
    model: Model,
    prompt: Prompts,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    stop: int | Sequence[int] | None = None,
    cache: bool = True,
) -> Iterator[Int[Tensor, " B"]]:
    """The columns of `generate` behind the shortest prompt, as they come, until all rows stopped.

    Bad input raises here, not at the first token.

    Source: as for `generate`.
    Derived: 13_gpt eq-gpt-chain
    """
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    run = _Run(model, prompt, max_new_tokens, settings, generator, stop, cache)

    def columns():
        for place in run.positions:
            # The mode must not stay on while the caller has the word.
            with torch.inference_mode():
                run.step(place)
                is_last = run.all_stopped(place)
            yield run.tokens[:, place].clone()
            if is_last:
                return

    return columns()


def step(
    model: Model,
    tokens: Prompt,
    cache: object,
    uniform: Float[Tensor, " B"] | None = None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Int[Tensor, "... N"] | None = None,
) -> Int[Tensor, "B 1"]:
    """Draw the token that follows those that the cache does not hold yet; without cache, the text.

    `uniform` decides the draw, as in `ops.sample_token`; a row whose last token is one of `stop`,
    (N,) or (B, N), repeats it. Nothing here asks the device for a number: with one token and a
    `KVCache` a step has fixed shapes, traces as one graph and can be recorded as a CUDA graph.

    Source: as for `generate`.
    Derived: 13_gpt eq-gpt-chain
    """
    if hasattr(model, "features") and hasattr(model, "head_weight"):
        # The other positions' logits would be most of a prompt's work in a small model.
        logits = F.linear(model.features(tokens, cache=cache)[:, -1], model.head_weight)  # B V
    else:
        logits = model(tokens, cache=cache)[:, -1]
    knobs = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    drawn = sample_token(logits, uniform=uniform, **knobs)[:, None]
    last = tokens[:, -1:]
    return drawn if stop is None else torch.where((last == stop).any(1, keepdim=True), last, drawn)


class _Run:
    """One call of `generate` or `stream`: its tokens, and what the next step needs."""

    def __init__(self, model, prompt, max_new_tokens, settings, generator, stop, cache):
        parts = _check(model, prompt, max_new_tokens, stop, cache)
        # An op says best itself what it takes; ask before any work is done.
        sample_token(torch.zeros(1, 1), **settings, uniform=torch.zeros(1))
        lengths, batch, device = [part.shape[-1] for part in parts], len(prompt), parts[0].device
        self.longest, total = max(lengths), max(lengths) + max_new_tokens
        self.positions = range(min(lengths), total)
        self.lengths = torch.tensor(lengths, device=device)[:, None]
        self.tokens = torch.empty(batch, total, dtype=torch.int64, device=device)
        for rows, part in zip(self.tokens.split(batch // len(parts)), parts, strict=True):
            rows[:, : part.shape[-1]] = part
        stop = [stop] if isinstance(stop, int) else stop
        self.stop = torch.tensor(stop, device=device) if stop else None
        self.uniforms = self.cache = self.replay = None
        if settings["temperature"] > 0:
            shape = (len(self.positions), batch)
            self.uniforms = torch.rand(shape, generator=generator, device=device)
        self.model, self.next = model, partial(step, model, **settings)
        if cache and self.positions:
            with torch.inference_mode():
                self.cache = model.new_cache(batch, length=total - 1)  # the last is not asked

    def step(self, place: int) -> None:
        """Draw the tokens of one place."""
        start, tokens = self.positions.start, self.tokens
        uniform = None if self.uniforms is None else self.uniforms[place - start]
        stop, within = self.stop, place <= self.longest
        if stop is not None and within:  # in a prompt it is text
            stop = stop.where(self.lengths < place, -1)
        if self.cache is None:
            new = self.next(tokens[:, :place], None, uniform, stop=stop)
        elif not within and _is_recordable(self):
            self.replay = self.replay or self._record(place)
            new = self.replay(place)
        else:
            held = tokens[:, :place] if place == start else tokens[:, place - 1 : place]
            new = self.next(held, self.cache.until(place), uniform, stop=stop)
        here = tokens[:, place : place + 1]
        here.copy_(new.where(self.lengths <= place, here) if within else new)

    def all_stopped(self, place: int) -> bool:
        """Whether every row has drawn a stop token, by this place at the latest."""
        may = self.stop is not None and place >= self.longest
        return may and bool((self.tokens[:, place, None] == self.stop).any(1).all())

    def _record(self, place: int) -> Callable[[int], Tensor]:
        """Record the step that draws this place's tokens; replaying it draws any later one's."""
        token = self.tokens[:, place - 1 : place].clone()
        uniform = None if self.uniforms is None else self.uniforms[0].clone()
        first, start = token.clone(), self.positions.start

        def once():
            token.copy_(self.next(token, self.cache, uniform, stop=self.stop))

        def rewind():
            token.copy_(first)
            self.cache.reset()
            self.cache.advance(place - 1)

        replay = _record(once, rewind)

        def draw(place: int) -> Tensor:
            if uniform is not None:
                uniform.copy_(self.uniforms[place - start])
            replay()
            return token

        return draw


def _patience(device: torch.device) -> int:
    return 1 if device.type == "cpu" else _STEPS_PER_QUESTION


def _is_recordable(run: _Run) -> bool:
    return run.tokens.is_cuda and len(run.positions) > _STEPS_WORTH_RECORDING


def _record(once: Callable[[], None], rewind: Callable[[], None]) -> Callable[[], None]:
    """Record a call as a CUDA graph; `rewind` undoes the calls that warm the libraries up."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(2):
            once()
            rewind()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    return graph.replay


def _check(model, prompt, max_new_tokens, stop, cache) -> Sequence[Tensor]:
    """Bad input raises; the prompts, those of one length as one tensor."""
    config = getattr(model, "config", None)
    context, size = getattr(config, "context", None), getattr(config, "vocab_size", None)
    parts, axes = ([prompt], (None,) * 2) if isinstance(prompt, Tensor) else (prompt, (None,))
    for part in parts:
        expect.shaped(axes, prompt=part)
        expect.whole(prompt=part)
        if size is not None:
            expect.values_in(0, size - 1, prompt=part.cpu())
    start = "at least one token in each prompt, as one that stands for the start of a text"
    has_start = len(parts) > 0 and all(part.numel() for part in parts)
    expect.that(has_start, start, [tuple(part.shape) for part in parts])
    is_count = type(max_new_tokens) is int and max_new_tokens >= 0
    expect.that(is_count, "a whole max_new_tokens >= 0", repr(max_new_tokens))
    for token in stop if isinstance(stop, Sequence) else [] if stop is None else [stop]:
        expect.that(type(token) is int and token >= 0, "stop tokens, whole and >= 0", repr(token))
    has_any = not cache or hasattr(model, "new_cache")
    expect.that(has_any, "a model with new_cache, or cache=False", type(model).__name__)
    if context is not None:
        total = max(part.shape[-1] for part in parts) + max_new_tokens
        expect.that(total <= context, f"prompt and max_new_tokens within context {context}", total)
    return parts
