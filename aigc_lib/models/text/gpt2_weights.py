"""GPT-2's published weights: from a local folder into our GPT, and back.

The published layout is a folder with `config.json` and `model.safetensors`. Its tensors have other
names than ours; queries, keys and values come from one matrix; and its linear layers ("Conv1D")
store W as (in, out), the transpose of ours. Nothing is downloaded, and nothing is unpickled.
"""

import json
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aigc_lib import expect
from aigc_lib.models.text.gpt import GPT, GPTConfig

_WEIGHTS = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_PICKLED = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_CONVERT = (
    "; a pickle can run any program, so it is never unpickled here. Take model.safetensors from "
    "the same publisher, or convert a file that you trust, offline, with transformers: "
    "GPT2LMHeadModel.from_pretrained(folder, local_files_only=True).save_pretrained(new_folder)"
)
_PREFIX = "transformer."
# Causal masks that old files hold beside the weights.
_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TANH = "gelu_tanh"
_ACTIVATIONS = {"gelu_new": _TANH, "gelu_pytorch_tanh": _TANH, "gelu": "gelu", "relu": "relu"}
# Settings under which the same tensors would be another function, and the value that ours computes.
_FIXED = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def load(folder: str | os.PathLike, *, dtype: torch.dtype | None = None) -> GPT:
    """A GPT, on the CPU, from a folder in the published layout; None keeps the widest dtype in it.

    Names may carry the prefix "transformer."; the causal masks that old files hold are ignored; a
    read-out that is stored although it is tied must equal the embedding. Tensors are read one by
    one, so that no second copy of all weights is ever in memory. Dropout is left at 0. ValueError
    for a file that is missing, damaged, a pickle, or not GPT-2's, with every wrong tensor named.

    Source: Radford et al. 2019, section 2.3; the layout is that of their release.
    Derived: —
    """
    expect.that(dtype is None or dtype.is_floating_point, "a floating dtype or None", dtype)
    folder = Path(folder)
    path = _weights_path(folder)
    config = _read_config(folder / "config.json")
    state = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = _checked_names(path, file, config)
            dtype = dtype or _widest(file, names.values())
            for name, (_, ours) in _layout(config).items():
                parts = file.get_tensor(names[name]).to(dtype).chunk(len(ours), dim=-1)
                state |= zip(ours, (_turned(name, part) for part in parts), strict=True)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"expected a whole {path}, got a damaged one ({error})") from error
    with torch.device("meta"):  # takes neither memory nor time for random numbers
        model = GPT(config)
    model.load_state_dict(state, assign=True)
    return model


def save(model: GPT, folder: str | os.PathLike) -> None:
    """Write a GPT to a folder in the published layout, for `load` and for other libraries.

    ValueError unless it has GPT-2's choices: learned positions, LayerNorm, biases, and no SwiGLU.
    The folder is made if missing; older files of these names are replaced.

    Source: as for `load`.
    Derived: —
    """
    config, folder = model.config, Path(folder)
    settings = _settings(config)
    state, tensors = model.state_dict(), {}
    for name, (_, ours) in _layout(config).items():
        prefix = "" if name == "lm_head.weight" else _PREFIX
        parts = [_turned(name, state[part]) for part in ours]
        tensors[prefix + name] = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{_WEIGHTS}.tmp"
    save_file(tensors, temporary, metadata={"format": "pt"})
    os.replace(temporary, folder / _WEIGHTS)
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _layout(config: GPTConfig) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """By published name, without prefix: its shape, and the names of ours that lie side by side."""
    vocabulary, width, hidden = config.vocab_size, config.width, config.hidden_width
    layout = {
        "wte.weight": ((vocabulary, width), ("embedding.weight",)),
        "wpe.weight": ((config.context, width), ("positions.weight",)),
    }
    norms = {"ln_f": "norm"}
    for i in range(config.num_layers):
        block = f"blocks.{i}"
        norms |= {f"h.{i}.ln_1": f"{block}.attention_norm", f"h.{i}.ln_2": f"{block}.mlp_norm"}
        for theirs, ours, rows, columns in (
            ("attn.c_attn", ("attention.query", "attention.key", "attention.value"), width, width),
            ("attn.c_proj", ("attention.output",), width, width),
            ("mlp.c_fc", ("mlp.up",), width, hidden),
            ("mlp.c_proj", ("mlp.down",), hidden, width),
        ):
            columns *= len(ours)
            for kind, shape in (("weight", (rows, columns)), ("bias", (columns,))):
                parts = tuple(f"{block}.{part}.{kind}" for part in ours)
                layout[f"h.{i}.{theirs}.{kind}"] = (shape, parts)
    for theirs, ours in norms.items():
        for kind in ("weight", "bias"):
            layout[f"{theirs}.{kind}"] = ((width,), (f"{ours}.{kind}",))
    if not config.tied:
        layout["lm_head.weight"] = ((vocabulary, width), ("head.weight",))
    return layout


def _turned(name: str, x: Tensor) -> Tensor:
    """Between (in, out) there and (out, in) here; vectors and embeddings are alike. A copy."""
    x = x.T if ".c_" in name and x.ndim == 2 else x
    return x.clone(memory_format=torch.contiguous_format)


def _checked_names(path: Path, file, config: GPTConfig) -> dict[str, str]:
    """The stored name of each published one; raises if anything at all is wrong."""
    layout, names, problems = _layout(config), {}, []
    shapes = {name: shape for name, (shape, _) in layout.items()}
    copy = "lm_head.weight"
    if config.tied:
        shapes[copy] = shapes["wte.weight"]
    for stored in sorted(file.keys()):
        name = stored.removeprefix(_PREFIX)
        if _MASK.fullmatch(name):
            continue
        if name not in shapes or name in names:
            problems.append(f"extra {stored}")
            continue
        names[name] = stored
        found = file.get_slice(stored)
        shape, kind = tuple(found.get_shape()), found.get_dtype()
        if shape != shapes[name]:
            problems.append(f"misshapen {stored} {shape} instead of {shapes[name]}")
        elif kind not in _DTYPES:
            problems.append(f"{stored} of type {kind} instead of {', '.join(_DTYPES)}")
    problems += [f"missing {name}" for name in sorted(layout.keys() - names.keys())]
    if not problems and config.tied and copy in names:
        stored, embedding = (file.get_tensor(names[name]) for name in (copy, "wte.weight"))
        if not torch.equal(stored, embedding):
            problems.append(f"{copy} that differs from wte.weight, to which config.json ties it")
    expect.that(not problems, f"{path} to hold this GPT-2's tensors", "; ".join(problems))
    return {name: names[name] for name in layout}


def _widest(file, names) -> torch.dtype:
    kinds = {_DTYPES[file.get_slice(name).get_dtype()] for name in names}
    widest = kinds.pop()
    for kind in kinds:
        widest = torch.promote_types(widest, kind)
    return widest


def _weights_path(folder: Path) -> Path:
    path, found = folder / _WEIGHTS, "a file" if folder.exists() else "nothing"
    expect.that(folder.is_dir(), f"{folder} to be a folder with {_WEIGHTS}", found)
    others = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "an empty folder"
    if not path.is_file() and any(entry.suffix in _PICKLES for entry in folder.iterdir()):
        others += _CONVERT
    if (folder / f"{_WEIGHTS}.index.json").is_file():
        others += "; it is sharded: let transformers load and save it with max_shard_size='100GB'"
    expect.that(path.is_file(), f"{_WEIGHTS} in {folder}", others)
    with open(path, "rb") as file:
        head = file.read(16)
    # The header's length may begin with the same bytes, but then the header follows.
    is_pickle = head[:2] in _PICKLED and head[8:9] != b"{"
    expect.that(not is_pickle, f"{path} to be safetensors", "a pickle; it is never unpickled")
    is_note = head.startswith(b"version https://")
    expect.that(not is_note, f"the weights in {path}", "Git LFS's note; `git lfs pull` there helps")
    return path


def _read_config(path: Path) -> GPTConfig:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", error)
        raise ValueError(f"expected GPT-2's configuration in {path}, got {why}") from error
    expect.that(isinstance(settings, dict), f"a JSON object in {path}", type(settings).__name__)
    settings.setdefault("n_positions", settings.get("n_ctx"))
    sizes = ["n_layer", "n_head", "n_embd", "n_positions", "vocab_size"]
    if settings.get("n_inner") is not None:
        sizes.append("n_inner")
    problems = [
        f"{name} {settings.get(name)!r} instead of a whole number >= 1"
        for name in sizes
        if type(settings.get(name)) is not int or settings[name] < 1
    ]
    problems += [
        f"{name} {settings[name]!r} instead of {value!r}"
        for name, value in _FIXED.items()
        if settings.get(name, value) != value
    ]
    activation = settings.setdefault("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        problems.append(f"activation_function {activation!r} instead of one of {known}")
    expect.that(not problems, f"a GPT-2 in {path}", "; ".join(problems))
    try:
        return _config(settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _config(settings: dict) -> GPTConfig:
    return GPTConfig(
        vocab_size=settings["vocab_size"],
        context=settings["n_positions"],
        width=settings["n_embd"],
        num_layers=settings["n_layer"],
        num_heads=settings["n_head"],
        hidden=settings.get("n_inner"),
        positions="learned",
        activation=_ACTIVATIONS[settings["activation_function"]],
        tied=settings.get("tie_word_embeddings", True),
        bias=True,
        eps=settings.get("layer_norm_epsilon", 1e-5),
    )


def _settings(config: GPTConfig) -> dict:
    names = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
    choices = (config.positions, config.norm, config.bias, config.activation in names)
    rule = f"learned positions, LayerNorm, biases and an activation out of {', '.join(names)}"
    expect.that(choices == ("learned", "layer", True, True), rule, config)
    return _FIXED | {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.hidden_width,
        "activation_function": names[config.activation],
        "tie_word_embeddings": config.tied,
        "layer_norm_epsilon": 1e-5 if config.eps is None else config.eps,
    }
