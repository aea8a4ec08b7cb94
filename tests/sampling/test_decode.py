from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from aigc_lib.models.text.gpt import GPT, GPTConfig
from aigc_lib.models.text.transformer import Transformer, TransformerConfig
from aigc_lib.ops.sample_token import sample_token
from aigc_lib.sampling import decode

WAYS = [
    {"temperature": 0},
    {"temperature": 1.3},
    {"temperature": 0.7, "top_k": 5},
    {"top_p": 0.8},
    {"top_k": 7, "top_p": 0.9, "temperature": 2.0},
]


class Chain(nn.Module):
    """A stand-in that reads the last token alone: one row of logits for each token."""

    def __init__(self, logits):
        super().__init__()
        self.logits, self.asked = logits, []
        self.config = SimpleNamespace(context=20, vocab_size=len(logits))

    def forward(self, tokens, *, cache=None):
        self.asked.append((tokens.clone(), cache))
        if cache is not None:
            assert cache.held + tokens.shape[1] == cache.end
            cache.whole.held = cache.end
        return self.logits[tokens]

    def new_cache(self, batch, *, length):
        self.cache = Count(batch, length)
        return self.cache


class Count:
    """A cache that only counts."""

    def __init__(self, batch, length):
        self.batch, self.length, self.held = batch, length, 0

    def until(self, end):
        assert end <= self.length
        return SimpleNamespace(whole=self, held=self.held, end=end)


def successor(vocabulary=6):
    """Greedy, it counts: v is followed by v + 1."""
    return Chain(torch.eye(vocabulary).roll(1, 1))


def noisy(**settings):
    sizes = {"vocab_size": 11, "context": 24, "width": 8, "num_layers": 1, "num_heads": 2}
    model = GPT(GPTConfig(**sizes | settings)).double()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=torch.float64) / 2)
    return model


def some_tokens(vocabulary=11, length=5, rows=3):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (rows, length), generator=draw)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def by_definition(model, prompt, num_new, *, temperature=1.0, seed=0, **settings):
    """The loop that a book prints: the whole text through the model for each token."""
    tokens = prompt
    if temperature:
        uniforms = torch.rand(num_new, len(prompt), generator=seeded(seed))
    for i in range(num_new):
        logits = model(tokens).detach()[:, -1]
        if temperature == 0:
            new = logits.argmax(1)
        else:
            settings |= {"temperature": temperature, "impl": "reference"}
            new = sample_token(logits, uniform=uniforms[i], **settings)
        tokens = torch.cat([tokens, new[:, None]], 1)
    return tokens


@pytest.mark.parametrize("cache", [True, False])
def test_greedy_follows_the_most_probable_token(cache):
    prompt = torch.tensor([[3, 0], [1, 4]])
    out = decode.generate(successor(), prompt, max_new_tokens=4, temperature=0, cache=cache)
    assert out.tolist() == [[3, 0, 1, 2, 3, 4], [1, 4, 5, 0, 1, 2]]
    assert out.dtype == torch.int64


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cache", [True, False])
def test_tokens_are_those_of_the_loop_by_definition(way, cache):
    model, prompt = noisy(), some_tokens()
    out = decode.generate(model, prompt, max_new_tokens=12, generator=seeded(), cache=cache, **way)
    assert torch.equal(out, by_definition(model, prompt, 12, **way))


@pytest.mark.parametrize(
    "settings",
    [
        {"positions": "learned", "bias": True, "activation": "gelu_tanh", "context": 16},
        {"norm": "rms", "activation": "swiglu", "tied": False, "num_layers": 2, "context": 16},
        {"num_heads": 1, "context": 6},
    ],
)
@pytest.mark.parametrize("length", [1, 5])
def test_a_cache_changes_nothing_in_any_kind_of_gpt(settings, length):
    model, prompt = noisy(**settings), some_tokens(length=length)
    num_new = model.config.context - length
    for way in (WAYS[0], WAYS[-1]):
        out = decode.generate(model, prompt, max_new_tokens=num_new, generator=seeded(), **way)
        assert torch.equal(out, by_definition(model, prompt, num_new, **way))


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_yields_the_tokens_of_generate(way):
    model, prompt = noisy(), some_tokens()
    out = decode.generate(model, prompt, max_new_tokens=9, generator=seeded(), **way)
    columns = list(decode.stream(model, prompt, max_new_tokens=9, generator=seeded(), **way))
    assert torch.equal(torch.stack(columns, 1), out[:, 5:])


def test_joint_frequencies_follow_the_chain_rule():
    logits = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0], [-1.0, 0.5, 1.5]])
    rows = 20_000
    prompt = torch.zeros(rows, 1, dtype=torch.int64)
    out = decode.generate(Chain(logits), prompt, max_new_tokens=2, generator=seeded())
    p = logits.double().softmax(1)
    want = (p[0][:, None] * p).flatten()
    got = (3 * out[:, 1] + out[:, 2]).bincount(minlength=9) / rows
    assert ((got - want).abs() < 4 * (want * (1 - want) / rows).sqrt()).all()


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_more_tokens_begin_with_the_same_ones(temperature):
    model, prompt = noisy(), some_tokens()
    outs = [
        decode.generate(
            model, prompt, max_new_tokens=n, temperature=temperature, generator=seeded()
        )
        for n in (0, 1, 4, 19)
    ]
    for short in outs:
        assert torch.equal(outs[-1][:, : short.shape[1]], short)


def test_rows_do_not_know_of_each_other():
    model, prompt = noisy(), some_tokens()
    out = decode.generate(model, prompt, max_new_tokens=9, temperature=0)
    for row, alone in zip(out, prompt, strict=True):
        got = decode.generate(model, alone[None], max_new_tokens=9, temperature=0)
        assert torch.equal(got[0], row)


def uneven(*lengths):
    return [some_tokens(length=n, rows=1)[0] for n in lengths]


@pytest.mark.parametrize("settings", [{}, {"positions": "learned", "norm": "rms"}])
@pytest.mark.parametrize("cache", [True, False])
def test_prompts_of_unequal_lengths_are_continued_as_each_one_alone(settings, cache):
    model, prompts = noisy(**settings), uneven(6, 1, 9, 4, 9)
    how = {"temperature": 0, "cache": cache}
    out = decode.generate(model, prompts, max_new_tokens=8, **how)
    assert out.shape == (5, 17)
    for row, prompt in zip(out, prompts, strict=True):
        num_new = 17 - len(prompt)
        alone = decode.generate(model, prompt[None], max_new_tokens=num_new, **how)
        assert torch.equal(row, alone[0])


@pytest.mark.parametrize("way", WAYS)
def test_a_list_of_equal_lengths_is_as_their_tensor(way):
    model, prompt = noisy(), some_tokens()
    outs = [
        decode.generate(model, given, max_new_tokens=9, generator=seeded(), stop=7, **way)
        for given in (prompt, list(prompt), tuple(prompt.int()))
    ]
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stop", [None, [2, 7]])
def test_a_stream_of_unequal_prompts_yields_the_columns_behind_the_shortest(way, stop):
    model, prompts = noisy(), uneven(3, 8, 5)
    settings = {"max_new_tokens": 9, "stop": stop, **way}
    out = decode.generate(model, prompts, generator=seeded(), **settings)
    columns = torch.stack(list(decode.stream(model, prompts, generator=seeded(), **settings)), 1)
    assert torch.equal(columns, out[:, 3 : 3 + columns.shape[1]])
    for row, prompt in zip(out, prompts, strict=True):
        assert torch.equal(row[: len(prompt)], prompt)


@pytest.mark.parametrize("cache", [True, False])
def test_a_stop_token_in_a_prompt_is_text_and_ends_no_row(cache):
    # The first has stopped before the third's prompt ends; the second's ends in the stop token.
    prompts = [torch.tensor(p) for p in ([3], [4, 0, 4], [0, 4, 4, 4, 2], [5])]
    settings = {"max_new_tokens": 3, "temperature": 0, "cache": cache}
    out = decode.generate(successor(), prompts, stop=4, **settings)
    want = [[3] + [4] * 7, [4, 0, 4, 5, 0, 1, 2, 3], [0, 4, 4, 4, 2, 3, 4, 4]]
    assert out.tolist() == [*want, [5, 0, 1, 2, 3, 4, 4, 4]]
    # All but one have stopped, and that one's prompt goes on with the stop token.
    prompts = [torch.tensor(p) for p in ([3], [0, 4, 4, 1])]
    out = decode.generate(successor(), prompts, stop=4, **settings)
    assert out.tolist() == [[3] + [4] * 6, [0, 4, 4, 1, 2, 3, 4]]


def test_no_new_tokens_fill_unequal_prompts_up_to_the_longest():
    prompts = [torch.tensor(p) for p in ([3], [4, 0, 4])]
    out = decode.generate(successor(), prompts, max_new_tokens=0, temperature=0)
    assert out.tolist() == [[3, 4, 5], [4, 0, 4]]


def test_each_token_is_asked_once_and_the_cache_is_allocated_once():
    model = successor()
    decode.generate(model, torch.tensor([[3, 0]]), max_new_tokens=4, temperature=0)
    assert [tokens.tolist() for tokens, _ in model.asked] == [[[3, 0]], [[1]], [[2]], [[3]]]
    assert [(cache.held, cache.end) for _, cache in model.asked] == [(0, 2), (2, 3), (3, 4), (4, 5)]
    assert all(cache.whole is model.cache for _, cache in model.asked)
    assert (model.cache.batch, model.cache.length) == (1, 5)


def test_without_a_cache_the_whole_text_is_asked_each_time():
    model = successor()

    def without_new_cache(tokens, cache):
        return model(tokens, cache=cache)

    prompt = torch.tensor([[3, 0]])
    decode.generate(without_new_cache, prompt, max_new_tokens=3, temperature=0, cache=False)
    assert [tokens.tolist() for tokens, _ in model.asked] == [[[3, 0]], [[3, 0, 1]], [[3, 0, 1, 2]]]
    assert all(cache is None for _, cache in model.asked)


def test_no_logits_of_a_prompt_are_computed_but_the_last(monkeypatch):
    model, prompt = noisy(), some_tokens()
    want = decode.generate(model, prompt, max_new_tokens=9, temperature=0)
    monkeypatch.setattr(GPT, "forward", None)
    assert torch.equal(decode.generate(model, prompt, max_new_tokens=9, temperature=0), want)


@pytest.mark.parametrize("way", WAYS)
def test_an_encoder_decoder_is_decoded_through_its_given_source(way):
    sizes = {"source_vocab": 7, "target_vocab": 11, "context": 16, "width": 8, "num_layers": 1}
    model = Transformer(TransformerConfig(**sizes, pad=0)).double().eval()
    source = torch.tensor([[3, 5, 1], [2, 0, 0]])
    target = torch.tensor([[1], [1]])
    outs = [
        decode.generate(
            model.given(source),
            target,
            max_new_tokens=8,
            generator=seeded(),
            cache=cache,
            **way,
        )
        for cache in (True, False)
    ]
    assert torch.equal(*outs)
    want = by_definition(lambda tokens: model(source, tokens), target, 8, **way)
    assert torch.equal(outs[0], want)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("stop", [4, [4], (2, 4)])
def test_a_row_that_stopped_repeats_its_stop_token(stop, cache):
    # The first row stops at 4, or at 2 if that stops too; so does the second.
    prompt = torch.tensor([[0, 1], [5, 3], [2, 4]])
    out = decode.generate(
        successor(), prompt, max_new_tokens=5, temperature=0, stop=stop, cache=cache
    )
    first = [0, 1, 2, 2, 2, 2, 2] if stop == (2, 4) else [0, 1, 2, 3, 4, 4, 4]
    third = [2, 4, 5, 0, 1, 2, 2] if stop == (2, 4) else [2, 4, 5, 0, 1, 2, 3]
    assert out.tolist() == [first, [5, 3, 4, 4, 4, 4, 4], third]


def test_a_stopped_row_leaves_the_draws_of_the_others_alone():
    model, prompt = noisy(), some_tokens(rows=8)
    settings = {"max_new_tokens": 19, "temperature": 2.0}
    free = decode.generate(model, prompt, generator=seeded(), **settings)
    out = decode.generate(model, prompt, generator=seeded(), stop=[2, 7], **settings)
    stopped = 0
    for row, want in zip(out.tolist(), free.tolist(), strict=True):
        ends = [i for i in range(5, 24) if want[i] in (2, 7)]
        if ends:
            want[ends[0] :] = [want[ends[0]]] * (24 - ends[0])
            stopped += 1
        assert row == want
    assert stopped > 0


@pytest.mark.parametrize(("patience", "asked"), [(1, 3), (3, 5), (16, 9)])
def test_the_model_is_not_asked_once_all_rows_have_stopped(monkeypatch, patience, asked):
    monkeypatch.setattr(decode, "_patience", lambda device: patience)
    model, prompt = successor(), torch.tensor([[0, 1], [5, 2]])
    out = decode.generate(model, prompt, max_new_tokens=9, temperature=0, stop=4)
    assert out.tolist() == [[0, 1, 2, 3] + [4] * 7, [5, 2, 3] + [4] * 8]
    assert len(model.asked) == asked


def test_a_stream_ends_when_all_rows_have_stopped():
    prompt = torch.tensor([[0, 1], [5, 2]])
    columns = decode.stream(successor(), prompt, max_new_tokens=9, temperature=0, stop=4)
    assert [column.tolist() for column in columns] == [[2, 3], [3, 4], [4, 4]]


def test_the_draws_take_the_same_numbers_from_the_generator_whatever_happens():
    states = []
    for settings in ({}, {"stop": list(range(11))}, {"cache": False}, {"top_k": 1}):
        draw = seeded()
        decode.generate(noisy(), some_tokens(), max_new_tokens=4, generator=draw, **settings)
        states.append(draw.get_state())
    assert all(torch.equal(state, states[0]) for state in states)
    draw = seeded()
    decode.generate(noisy(), some_tokens(), max_new_tokens=4, generator=draw, temperature=0)
    assert torch.equal(draw.get_state(), seeded().get_state())


def test_no_new_tokens_give_a_copy_of_the_prompt_and_ask_nothing():
    model, prompt = successor(), torch.tensor([[3, 0]], dtype=torch.int32)
    out = decode.generate(model, prompt, max_new_tokens=0)
    assert out.tolist() == [[3, 0]]
    assert out.dtype == torch.int64
    assert list(decode.stream(model, prompt, max_new_tokens=0)) == []
    assert model.asked == []


def test_the_whole_context_can_be_used():
    model = noisy(context=7)
    out = decode.generate(model, some_tokens(), max_new_tokens=2, temperature=0)
    assert out.shape == (3, 7)


def test_what_was_written_can_be_trained_on_and_no_mode_leaks():
    model, prompt = noisy(), some_tokens()
    out = decode.generate(model, prompt, max_new_tokens=4)
    columns, losses = [], []
    for column in decode.stream(model, prompt, max_new_tokens=4):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        columns.append(column)
        losses.append(model(column[:, None]).square().mean())
    sum(losses).backward()
    for tokens in (out, torch.stack(columns, 1)):
        model(tokens).square().mean().backward()
    assert not out.is_inference()
    assert model.training


def test_dropout_is_the_callers_affair():
    model, prompt = noisy(dropout=0.9), some_tokens()
    settings = {"max_new_tokens": 9, "temperature": 0}
    first, again = (decode.generate(model, prompt, **settings) for _ in range(2))
    assert not torch.equal(first, again)
    model.eval()
    first, again = (decode.generate(model, prompt, **settings) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("way", WAYS[:1] + WAYS[-1:])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_step_traces_as_one_graph_that_serves_every_place(hook_off, way, mode):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(decode.step, fullgraph=True, dynamic=False, backend=counter)
    model, prompt = noisy(), some_tokens()
    uniforms = torch.rand(5, 3, generator=seeded())
    stop = torch.tensor([3])
    results = []
    with mode():
        for function in (decode.step, compiled):
            cache = model.new_cache(3)
            tokens = [decode.step(model, prompt, cache, uniforms[0], **way)]
            for uniform in uniforms[1:]:
                tokens.append(function(model, tokens[-1], cache, uniform, stop=stop, **way))
            results.append(torch.cat(tokens, 1))
            assert cache.position == 9
    assert torch.equal(*results)
    assert counter.frame_count == 1


def warmed_up(calls):
    """As `decode._record`, with the call itself in place of its recording."""

    def record(once, rewind):
        for _ in range(2):
            once()
            rewind()
        calls.append(once)
        return once

    return record


@pytest.mark.parametrize("stop", [None, [2, 7]])
@pytest.mark.parametrize("way", WAYS)
def test_a_recorded_step_draws_the_same_tokens(monkeypatch, way, stop):
    model, prompt = noisy(), some_tokens()
    settings = {"max_new_tokens": 9, "stop": stop, **way}
    want = decode.generate(model, prompt, generator=seeded(), **settings)
    recordings = []
    monkeypatch.setattr(decode, "_is_recordable", lambda run: True)
    monkeypatch.setattr(decode, "_record", warmed_up(recordings))
    assert torch.equal(decode.generate(model, prompt, generator=seeded(), **settings), want)
    columns = list(decode.stream(model, prompt, generator=seeded(), **settings))
    assert torch.equal(torch.stack(columns, 1), want[:, 5 : 5 + len(columns)])
    assert len(recordings) == 2
    prompts = uneven(3, 8, 5)
    got = decode.generate(model, prompts, generator=seeded(), **settings)
    monkeypatch.undo()
    assert torch.equal(got, decode.generate(model, prompts, generator=seeded(), **settings))
    assert len(recordings) == 3


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("way", WAYS)
def test_a_cuda_graph_draws_the_tokens_of_the_loop(monkeypatch, way):
    model, prompt = noisy().cuda(), some_tokens().cuda()
    recordings, record = [], decode._record

    def counting(once, rewind):
        recordings.append(once)
        return record(once, rewind)

    monkeypatch.setattr(decode, "_record", counting)
    settings = {"max_new_tokens": 19, "stop": 7, **way}
    outs = [
        decode.generate(
            model,
            prompt,
            generator=torch.Generator("cuda").manual_seed(0),
            cache=cache,
            **settings,
        )
        for cache in (True, False)
    ]
    assert torch.equal(*outs)
    assert len(recordings) == 1


@pytest.mark.gpu
@needs_cuda
def test_a_replayed_step_does_not_wait_for_the_device():
    model, prompt = noisy().cuda(), some_tokens().cuda()
    decode.generate(model, prompt, max_new_tokens=19, temperature=0)
    run = decode._Run(model, prompt, 19, {"temperature": 1.0}, None, None, True)
    with torch.inference_mode():
        run.step(5)
        run.step(6)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for place in range(7, 24):
                run.step(place)
        finally:
            torch.cuda.set_sync_debug_mode("default")


BAD = [
    ({"prompt": torch.zeros(1, 0, dtype=torch.int64)}, ValueError, "at least one token"),
    ({"prompt": torch.zeros(0, 3, dtype=torch.int64)}, ValueError, "at least one token"),
    ({"prompt": torch.zeros(3, dtype=torch.int64)}, ValueError, "prompt of shape"),
    ({"prompt": torch.zeros(1, 3)}, TypeError, "prompt"),
    ({"prompt": torch.zeros(1, 3, dtype=torch.bool)}, TypeError, "prompt"),
    ({"prompt": torch.zeros(1, 25, dtype=torch.int64)}, ValueError, "context 24, got 29"),
    ({"prompt": []}, ValueError, "at least one token"),
    ({"prompt": [*uneven(3), torch.zeros(0).long()]}, ValueError, "at least one token"),
    ({"prompt": [some_tokens()]}, ValueError, "prompt of shape"),
    ({"prompt": [*uneven(3), torch.zeros(3)]}, TypeError, "prompt"),
    ({"prompt": uneven(3, 21)}, ValueError, "context 24, got 25"),
    ({"prompt": [*uneven(3), torch.tensor([11])]}, ValueError, "prompt in 0 … 10, got 11"),
    ({"max_new_tokens": 20}, ValueError, "prompt and max_new_tokens within context 24, got 25"),
    ({"max_new_tokens": -1}, ValueError, "max_new_tokens"),
    ({"max_new_tokens": 2.0}, ValueError, "max_new_tokens"),
    ({"prompt": torch.tensor([[3, 11]])}, ValueError, "prompt in 0 … 10, got 11"),
    ({"prompt": torch.tensor([[3, -2]])}, ValueError, "prompt in 0 … 10, got -2"),
    ({"temperature": -0.5}, ValueError, "temperature"),
    ({"temperature": float("nan")}, ValueError, "temperature"),
    ({"top_k": 0}, ValueError, "top_k"),
    ({"top_p": 0.0}, ValueError, "top_p"),
    ({"top_p": 1.5}, ValueError, "top_p"),
    ({"stop": -1}, ValueError, "stop"),
    ({"stop": [3, "x"]}, ValueError, "stop"),
]


@pytest.mark.parametrize(("changed", "error", "name"), BAD)
@pytest.mark.parametrize("function", [decode.generate, decode.stream])
def test_bad_input_is_refused_before_any_work(hook_off, function, changed, error, name):
    model = noisy()
    model.features = None
    settings = {"prompt": some_tokens(), "max_new_tokens": 4}
    with pytest.raises(error, match=name):
        function(model, **settings | changed)


def test_a_model_without_caches_is_told_what_to_do(hook_off):
    with pytest.raises(ValueError, match="new_cache, or cache=False, got Embedding"):
        decode.generate(nn.Embedding(3, 3), torch.zeros(1, 1).long(), max_new_tokens=1)
