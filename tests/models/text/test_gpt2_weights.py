import json
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from aigc_lib.models.text import gpt2_weights
from aigc_lib.models.text.gpt import GPT, GPTConfig
from aigc_lib.sampling import decode

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 6, "n_positions": 9, "vocab_size": 11}
MASKS = {f"h.{i}.attn.bias": torch.ones(1, 1, 9, 9) for i in range(2)}
MASKS |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}


def published(seed=0, **settings):
    """Random tensors in the published layout, without prefix."""
    sizes = SIZES | settings
    width, vocabulary = sizes["n_embd"], sizes["vocab_size"]
    hidden = sizes.get("n_inner") or 4 * width
    shapes = {"wte.weight": (vocabulary, width), "wpe.weight": (sizes["n_positions"], width)}
    linear = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, hidden),
        "mlp.c_proj": (hidden, width),
    }
    norms = ["ln_f"]
    for i in range(sizes["n_layer"]):
        norms += [f"h.{i}.ln_1", f"h.{i}.ln_2"]
        shapes |= {f"h.{i}.{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"h.{i}.{name}.bias": shape[1:] for name, shape in linear.items()}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=draw, dtype=torch.float64) / 2
        for name, shape in shapes.items()
    }


def write(folder, tensors, **settings):
    save_file({name: x.contiguous() for name, x in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(SIZES | settings))
    return folder


def logits_by_formula(w, tokens, heads, bend=lambda x: F.gelu(x, approximate="tanh"), eps=1e-5):
    """Logits of one sequence, from tensors in the published layout, a loop over heads."""

    def norm(name, x):
        x = x - x.mean(1, keepdim=True)
        x = x / (x.square().mean(1, keepdim=True) + eps).sqrt()
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(name, x):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][tokens] + w["wpe.weight"][: len(tokens)]
    future = torch.ones(len(tokens), len(tokens)).triu(1).bool()
    i = 0
    while f"h.{i}.ln_1.weight" in w:
        q, k, v = linear(f"h.{i}.attn.c_attn", norm(f"h.{i}.ln_1", x)).chunk(3, 1)
        answers = []
        for head in torch.arange(x.shape[1]).chunk(heads):
            scores = q[:, head] @ k[:, head].T / len(head) ** 0.5
            answers.append(scores.masked_fill(future, -torch.inf).softmax(1) @ v[:, head])
        x = x + linear(f"h.{i}.attn.c_proj", torch.cat(answers, 1))
        hidden = bend(linear(f"h.{i}.mlp.c_fc", norm(f"h.{i}.ln_2", x)))
        x = x + linear(f"h.{i}.mlp.c_proj", hidden)
        i += 1
    return norm("ln_f", x) @ w.get("lm_head.weight", w["wte.weight"]).T


def some_tokens(vocabulary=11, length=7, rows=2):
    draw = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (rows, length), generator=draw)


def assert_follows_the_formula(model, tensors, heads=2, **settings):
    tokens = some_tokens()
    want = torch.stack([logits_by_formula(tensors, row, heads, **settings) for row in tokens])
    assert torch.allclose(model(tokens), want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("extras", [{}, MASKS])
def test_logits_follow_the_formula(tmp_path, prefix, extras):
    tensors = published()
    stored = {prefix + name: x for name, x in (tensors | extras).items()}
    model = gpt2_weights.load(write(tmp_path, stored))
    assert_follows_the_formula(model, tensors)
    assert model.config.tied
    assert (model.config.context, model.config.num_layers) == (9, 2)


def test_a_stored_copy_of_the_embedding_is_the_tied_read_out(tmp_path):
    tensors = published()
    stored = {f"transformer.{name}": x for name, x in tensors.items()}
    stored["lm_head.weight"] = tensors["wte.weight"].clone()
    model = gpt2_weights.load(write(tmp_path, stored))
    assert_follows_the_formula(model, tensors)
    assert model.head_weight is model.embedding.weight


def test_a_read_out_of_its_own_is_kept(tmp_path):
    tensors = published() | {"lm_head.weight": torch.randn(11, 6, dtype=torch.float64)}
    model = gpt2_weights.load(write(tmp_path, tensors, tie_word_embeddings=False))
    assert_follows_the_formula(model, tensors)


@pytest.mark.parametrize(
    ("settings", "formula"),
    [
        ({"activation_function": "gelu_pytorch_tanh"}, {}),
        ({"activation_function": "gelu"}, {"bend": F.gelu}),
        ({"activation_function": "relu"}, {"bend": F.relu}),
        ({"layer_norm_epsilon": 0.1}, {"eps": 0.1}),
        ({"n_inner": 5}, {}),
        ({"n_head": 3}, {"heads": 3}),
        ({"n_positions": None, "n_ctx": 9}, {}),
        ({"resid_pdrop": 0.5, "summary_type": "cls_index"}, {}),
    ],
)
def test_the_configuration_is_obeyed(tmp_path, settings, formula):
    tensors = published(**settings | {"n_positions": 9})
    settings = {name: value for name, value in settings.items() if value is not None}
    assert_follows_the_formula(
        gpt2_weights.load(write(tmp_path, tensors, **settings)), tensors, **formula
    )


def test_positions_may_be_named_by_their_older_name(tmp_path):
    write(tmp_path, published())
    settings = {name: value for name, value in SIZES.items() if name != "n_positions"}
    (tmp_path / "config.json").write_text(json.dumps(settings | {"n_ctx": 9}))
    assert gpt2_weights.load(tmp_path).config.context == 9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_precision_is_kept_or_chosen(tmp_path, dtype):
    stored = {name: x.to(dtype) for name, x in published().items()}
    write(tmp_path, stored)
    model = gpt2_weights.load(tmp_path)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.equal(model.blocks[1].mlp.up.weight, stored["h.1.mlp.c_fc.weight"].T)
    assert {p.dtype for p in gpt2_weights.load(tmp_path, dtype=torch.float32).parameters()} == {
        torch.float32
    }


@pytest.mark.parametrize(
    ("one", "other", "widest"),
    [
        (torch.float16, torch.float32, torch.float32),
        (torch.float64, torch.float16, torch.float64),
        # Neither of these holds the other.
        (torch.float16, torch.bfloat16, torch.float32),
    ],
)
def test_of_several_precisions_the_widest_is_taken(tmp_path, one, other, widest):
    stored = {name: x.to(one if "mlp" in name else other) for name, x in published().items()}
    model = gpt2_weights.load(write(tmp_path, stored))
    assert {p.dtype for p in model.parameters()} == {widest}


def test_the_model_owns_its_memory_and_can_be_trained(tmp_path):
    model = gpt2_weights.load(write(tmp_path, published()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    size = (tmp_path / "model.safetensors").stat().st_size
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.write(b"\xff" * size)
    storages = set()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.is_contiguous()
        assert p.requires_grad
        storages.add(p.untyped_storage().data_ptr())
    assert len(storages) == len(before)
    model(some_tokens()).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def noisy(**settings):
    sizes = {"vocab_size": 11, "context": 9, "width": 6, "num_layers": 2, "num_heads": 2}
    choices = {"positions": "learned", "activation": "gelu_tanh", "bias": True}
    model = GPT(GPTConfig(**sizes | choices | settings)).double()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draw, dtype=torch.float64))
    return model


@pytest.mark.parametrize(
    "settings", [{}, {"tied": False}, {"hidden": 5}, {"activation": "relu"}, {"eps": 0.1}]
)
def test_what_is_saved_is_loaded(tmp_path, settings):
    model = noisy(**settings)
    gpt2_weights.save(model, tmp_path / "new" / "folder")
    other = gpt2_weights.load(tmp_path / "new" / "folder")
    assert other.state_dict().keys() == model.state_dict().keys()
    for name, x in model.state_dict().items():
        assert torch.equal(x, other.state_dict()[name])
    assert torch.equal(other(some_tokens()), model(some_tokens()))
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_loading_and_saving_gives_the_same_file(tmp_path):
    tensors = {f"transformer.{name}": x for name, x in published().items()}
    write(tmp_path, tensors)
    gpt2_weights.save(gpt2_weights.load(tmp_path), tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(x, again[name]) for name, x in tensors.items())


@pytest.mark.parametrize(
    "settings",
    [
        {"positions": "rotary", "width": 8},
        {"norm": "rms"},
        {"bias": False},
        {"activation": "swiglu"},
    ],
)
def test_a_model_that_the_layout_has_no_place_for_is_not_saved(tmp_path, settings):
    with pytest.raises(ValueError, match="learned positions, LayerNorm, biases"):
        gpt2_weights.save(noisy(**settings), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def transformers():
    module = pytest.importorskip("transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


def theirs(transformers, seed):
    """One of transformers' models of random size, and the draw that gave it."""
    rng = random.Random(seed)
    heads = rng.randint(1, 4)
    config = transformers.GPT2Config(
        n_layer=rng.randint(1, 3),
        n_head=heads,
        n_embd=heads * rng.randint(1, 9),
        n_positions=rng.randint(12, 40),
        vocab_size=rng.randint(5, 90),
        n_inner=rng.choice([None, rng.randint(1, 50)]),
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return model, rng


@pytest.mark.parametrize("seed", range(4))
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path, transformers, seed):
    model, rng = theirs(transformers, seed)
    model.save_pretrained(tmp_path)
    ours = gpt2_weights.load(tmp_path)
    context, vocabulary = model.config.n_positions, model.config.vocab_size
    tokens = torch.randint(vocabulary, (3, context))
    with torch.no_grad():
        want = model(tokens).logits
        assert float((ours(tokens) - want).norm() / want.norm()) < 1e-9
    start = rng.randint(1, context - 1)
    settings = {"max_new_tokens": context - start, "do_sample": False}
    prompt = tokens[:, :start]
    want = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    for cache in (True, False):
        got = decode.generate(
            ours, prompt, max_new_tokens=context - start, temperature=0, cache=cache
        )
        assert torch.equal(got, want)


def test_transformers_reads_what_is_saved(tmp_path, transformers):
    model = noisy()
    gpt2_weights.save(model, tmp_path)
    other = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, local_files_only=True)
    tokens = some_tokens()
    assert torch.allclose(other.double()(tokens).logits, model(tokens), atol=1e-10, rtol=0)


def test_every_wrong_tensor_is_named_at_once(tmp_path):
    tensors = published()
    del tensors["wpe.weight"], tensors["h.1.mlp.c_fc.bias"]
    tensors["h.0.attn.c_proj.weight"] = torch.zeros(6, 7)
    tensors["h.1.attn.c_attn.weight"] = tensors["h.1.attn.c_attn.weight"].T
    tensors |= {"h.2.ln_1.weight": torch.zeros(6), "transformer.ln_f.bias": torch.zeros(6)}
    tensors["ln_f.weight"] = torch.zeros(6, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"model\.safetensors to hold") as error:
        gpt2_weights.load(write(tmp_path, tensors))
    text = str(error.value)
    for problem in (
        "missing wpe.weight",
        "missing h.1.mlp.c_fc.bias",
        "misshapen h.0.attn.c_proj.weight (6, 7) instead of (6, 6)",
        "misshapen h.1.attn.c_attn.weight (18, 6) instead of (6, 18)",
        "extra h.2.ln_1.weight",
        "extra transformer.ln_f.bias",
        "ln_f.weight of type I8 instead of F64, F32, F16, BF16",
    ):
        assert problem in text
    assert text.count(";") == 6


def test_a_read_out_that_contradicts_the_configuration_is_named(tmp_path):
    tensors = published() | {"lm_head.weight": torch.zeros(11, 6, dtype=torch.float64)}
    with pytest.raises(ValueError, match=r"lm_head\.weight that differs from wte\.weight"):
        gpt2_weights.load(write(tmp_path, tensors))
    del tensors["lm_head.weight"]
    with pytest.raises(ValueError, match=r"missing lm_head\.weight"):
        gpt2_weights.load(write(tmp_path, tensors, tie_word_embeddings=False))


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_weights_in_several_files_are_named_and_what_to_do_with_them(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(ValueError, match=r"expected model.safetensors in (?!.*sharded)"):
        gpt2_weights.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="it is sharded: let transformers load and save it"):
        gpt2_weights.load(tmp_path)


def test_a_pickle_is_refused_and_never_unpickled(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    (tmp_path / "pytorch_model.bin").write_bytes(trap)
    message = "got .*pytorch_model.bin; a pickle can run any program, so it is never unpickled"
    with pytest.raises(ValueError, match=message):
        gpt2_weights.load(tmp_path)
    for content in (trap, b"PK\x03\x04" + bytes(60)):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="to be safetensors, got a pickle; it is never un"):
            gpt2_weights.load(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    # 0x4b50 bytes of header: the file begins with "PK", as a zipped pickle does.
    write(tmp_path, published())
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].ljust(0x4B50)
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert path.read_bytes()[:2] == b"PK"
    assert_follows_the_formula(gpt2_weights.load(tmp_path), published())


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = write(tmp_path, published()) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"expected a whole .*safetensors, got a damaged"):
        gpt2_weights.load(tmp_path)


def test_what_git_lfs_leaves_behind_is_recognised(tmp_path):
    path = write(tmp_path, published()) / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548105171\n")
    with pytest.raises(ValueError, match="got Git LFS"):
        gpt2_weights.load(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected model\.safetensors .*, got an empty folder"):
        gpt2_weights.load(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected model\.safetensors .*, got vocab\.json"):
        gpt2_weights.load(tmp_path)
    with pytest.raises(ValueError, match=r"to be a folder .*, got nothing"):
        gpt2_weights.load(tmp_path / "none")
    with pytest.raises(ValueError, match=r"to be a folder .*, got a file"):
        gpt2_weights.load(tmp_path / "vocab.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"configuration in .*config\.json, got Expecting"),
        ("[1]", r"a JSON object in .*config\.json, got list"),
        (
            json.dumps(SIZES | {"n_layer": 0, "n_embd": None, "model_type": "llama"}),
            "expected a GP",
        ),
        (json.dumps(SIZES | {"n_head": 4}), r"config\.json: expected num_heads"),
        (json.dumps(SIZES | {"activation_function": "silu"}), "activation_function 'silu' instead"),
        (
            json.dumps(SIZES | {"scale_attn_weights": False}),
            "scale_attn_weights False instead of T",
        ),
    ],
)
def test_a_foreign_configuration_is_refused(tmp_path, text, message):
    write(tmp_path, published())
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        gpt2_weights.load(tmp_path)
    if "llama" in text:
        for problem in ("n_layer 0 instead", "n_embd None instead", "model_type 'llama' instead"):
            assert problem in str(error.value)


def test_a_missing_configuration_and_a_whole_number_dtype_are_refused(tmp_path):
    write(tmp_path, published())
    with pytest.raises(ValueError, match="dtype"):
        gpt2_weights.load(tmp_path, dtype=torch.int8)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"configuration in .*, got No such file"):
        gpt2_weights.load(tmp_path)
