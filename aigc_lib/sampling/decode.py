"""Decoding: let a model write, one token at a time.

Each new token is drawn from what the model says about all tokens before it. With a cache of keys
and values a step costs one token's work instead of the whole text's. On CUDA, where a small model
would wait for Python to launch its hundreds of kernels, one step is recorded as a CUDA graph and
replayed; on the CPU, where that means nothing, a step reads only the filled part of the cache.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib.ops.sample_token import sample_token

# "Has every row stopped?" needs a number from the device. On a GPU the answer empties the queue of
# work that the CPU has prepared, so that it is asked rarely; what comes too much is overwritten.
_STEPS_PER_QUESTION = 16
# Recording a step costs a few steps.
_STEPS_WORTH_RECORDING = 8


def generate(
    model: Callable[..., Tensor],
    prompt: Int[Tensor, "B T"],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    stop: int | Sequence[int] | None = None,
    cache: bool = True,
) -> Int[Tensor, "B total"]:
    """Continue each prompt, token by token.

    x_t ~ p(x_t | x_{<t}), changed by temperature, top-k and top-p as in `ops.sample_token`.

    All prompts have the same number of tokens. A row that drew a stop token repeats it to the end;
    once every row has, the model is not asked again. The numbers that decide the draws come from
    the generator all at once, before the first step: what a call takes from the generator depends
    only on the shapes, and the tokens are those of `stream` and, up to rounding, those without a
    cache.

    Nothing is switched: a model with dropout wants `model.eval()` before. No gradient is computed.

    Source: the chain rule; a cache of keys and values: Shazeer 2019, section 2.3.
    Derived: 13_gpt eq-gpt-chain

    Args:
        model: `model(tokens, cache=…)` gives logits (B, T, V), and `model.new_cache(batch,
            length=…)` a cache as `KVCache`. If it has `features` and `head_weight`, as a GPT, the
            logits of the last token are all that is computed. `model.config.context` and
            `model.config.vocab_size`, where they exist, are limits.
        prompt: tokens to begin with, T ≥ 1.
        max_new_tokens: how many tokens to add; 0 gives the prompt back.
        temperature: ≥ 0; 0 takes the most probable token (greedy).
        top_k: draw from that many most probable tokens, ≥ 1; None from all.
        top_p: draw from the fewest tokens that hold this share of the mass, in (0, 1]; None from
            all.
        generator: on the prompt's device; None means torch's default one.
        stop: the token, or tokens, that end a row; one in the prompt does not count.
        cache: keep keys and values; False runs the whole text at each step.

    Returns:
        (B, T + max_new_tokens) int64, the prompts included.

    Raises:
        ValueError: the prompt is empty, of another kind, or does not fit into the context together
            with the new tokens; or a setting is out of range.
    """
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    run = _Run(model, prompt, max_new_tokens, settings, generator, stop, cache)
    patience = _patience(prompt.device)
    with torch.inference_mode():
        for place in run.positions:
            run.step(place)
            if place % patience == 0 and run.all_stopped(place):
                run.tokens[:, place + 1 :] = run.tokens[:, place : place + 1]
                break
    return run.tokens


def stream(
    model: Callable[..., Tensor],
    prompt: Int[Tensor, "B T"],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    stop: int | Sequence[int] | None = None,
    cache: bool = True,
) -> Iterator[Int[Tensor, " B"]]:
    """Continue each prompt and hand out every token as soon as it is drawn.

    The tokens are those of `generate`; the stream ends at once when every row has stopped. Bad
    input raises here, not at the first token.

    Source: as for `generate`.
    Derived: 13_gpt eq-gpt-chain

    Args:
        model: as in `generate`, like all that follows.
        prompt: tokens to begin with.
        max_new_tokens: at most so many are yielded.
        temperature: 0 takes the most probable token.
        top_k: draw from that many tokens.
        top_p: draw from this share of the mass.
        generator: on the prompt's device.
        stop: the token, or tokens, that end a row.
        cache: keep keys and values.

    Returns:
        An iterator over (B,) int64, one new token for each row.

    Raises:
        ValueError: as in `generate`.
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
    model: Callable[..., Tensor],
    tokens: Int[Tensor, "B T"],
    cache: object,
    uniform: Float[Tensor, " B"] | None = None,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Int[Tensor, " N"] | None = None,
) -> Int[Tensor, "B 1"]:
    """Draw the token that follows; with one token and a `KVCache`, a step of fixed shapes.

    Nothing here asks the device for a number, so that a step traces as one graph and can be
    recorded as a CUDA graph.

    Source: as for `generate`.
    Derived: 13_gpt eq-gpt-chain

    Args:
        model: as in `generate`.
        tokens: those that the cache does not hold yet.
        cache: of the tokens before; it is filled and advanced. None: `tokens` is the whole text.
        uniform: what decides the draw, as in `ops.sample_token`.
        temperature: as in `generate`, like the next two.
        top_k: draw from that many tokens.
        top_p: draw from this share of the mass.
        stop: a row whose last token is one of these repeats it.

    Returns:
        (B, 1) int64, on the same device.
    """
    head_weight = getattr(model, "head_weight", None)
    if head_weight is not None and hasattr(model, "features"):
        # The other positions' logits would be most of a prompt's work in a small model.
        logits = F.linear(model.features(tokens, cache=cache)[:, -1], head_weight)  # B V
    else:
        logits = model(tokens, cache=cache)[:, -1]
    drawn = sample_token(
        logits, temperature=temperature, top_k=top_k, top_p=top_p, uniform=uniform
    )[:, None]
    if stop is None:
        return drawn
    last = tokens[:, -1:]
    return torch.where((last == stop).any(1, keepdim=True), last, drawn)  # B 1


class _Run:
    """One call of `generate` or `stream`: its tokens, and what the next step needs."""

    def __init__(self, model, prompt, max_new_tokens, settings, generator, stop, cache):
        _check(model, prompt, max_new_tokens, stop, cache)
        # An op says best itself what it takes; ask before any work is done.
        nothing = torch.zeros(1, 1)
        sample_token(nothing, **settings, uniform=nothing[0])
        batch, start = prompt.shape
        total = start + max_new_tokens
        self.positions = range(start, total)
        self.tokens = torch.empty(batch, total, dtype=torch.int64, device=prompt.device)
        self.tokens[:, :start] = prompt
        stop = [stop] if isinstance(stop, int) else stop
        self.stop = torch.tensor(stop, device=prompt.device) if stop else None
        self.uniforms = self.cache = self.replay = None
        if settings["temperature"] > 0:
            shape = (max_new_tokens, batch)
            self.uniforms = torch.rand(shape, generator=generator, device=prompt.device)
        self.model, self.next = model, partial(step, model, **settings)
        if cache and max_new_tokens:
            with torch.inference_mode():
                self.cache = model.new_cache(batch, length=total - 1)  # the last is not asked

    def step(self, place: int) -> None:
        """Draw the tokens of one place."""
        start, tokens = self.positions.start, self.tokens
        uniform = None if self.uniforms is None else self.uniforms[place - start]
        stop = None if place == start else self.stop
        if self.cache is None:
            new = self.next(tokens[:, :place], None, uniform, stop=stop)
        elif place > start and _is_recordable(self):
            self.replay = self.replay or self._record(place)
            new = self.replay(place)
        else:
            held = tokens[:, :place] if place == start else tokens[:, place - 1 : place]
            new = self.next(held, self.cache.until(place), uniform, stop=stop)
        tokens[:, place : place + 1] = new

    def all_stopped(self, place: int) -> bool:
        """Whether every row has drawn a stop token, by this place at the latest."""
        if self.stop is None:
            return False
        return bool((self.tokens[:, place, None] == self.stop).any(1).all())

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


def _check(model, prompt, max_new_tokens, stop, cache) -> None:
    if prompt.ndim != 2 or prompt.is_floating_point() or prompt.dtype == torch.bool:
        raise ValueError(
            f"expected prompts of whole numbers, shape (batch, tokens), got {prompt.dtype} "
            f"{tuple(prompt.shape)}"
        )
    if not prompt.numel():
        raise ValueError(
            "expected prompts of at least one token, got shape "
            f"{tuple(prompt.shape)}; begin with a token that stands for the start of a text"
        )
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise ValueError(f"expected a whole max_new_tokens >= 0, got {max_new_tokens!r}")
    for token in stop if isinstance(stop, Sequence) else [] if stop is None else [stop]:
        if type(token) is not int or token < 0:
            raise ValueError(f"expected stop tokens that are whole numbers >= 0, got {token!r}")
    if cache and not hasattr(model, "new_cache"):
        raise ValueError(
            f"expected a model with new_cache, got {type(model).__name__}; cache=False needs none"
        )
    config, start = getattr(model, "config", None), prompt.shape[1]
    context = getattr(config, "context", None)
    if context is not None and start > context:
        raise ValueError(
            f"expected a prompt of at most {context} tokens, the model's context, got {start}"
        )
    if context is not None and start + max_new_tokens > context:
        raise ValueError(
            f"expected prompt and new tokens to fit into the model's context of {context}, got "
            f"{start} + {max_new_tokens} = {start + max_new_tokens}"
        )
    size = getattr(config, "vocab_size", None)
    if size is not None:
        low, high = (int(x) for x in prompt.aminmax())
        if low < 0 or high >= size:
            raise ValueError(
                f"expected tokens from 0 to {size - 1}, got {low if low < 0 else high}"
            )
