"""Atomic save and load of tensors and plain values, in one safetensors file.

A tree of dicts, lists and tuples with tensors, numbers, strings, booleans and None at its leaves is
split in two: the tensors go into the file's body, the rest into its header as JSON. Nothing is ever
pickled or unpickled, so a file from a stranger can do no harm.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _from_bytes
from safetensors.torch import save as _to_bytes
from torch import Tensor

_FORMAT = "aigc-tree-1"


class CheckpointError(ValueError):
    """A checkpoint file is missing, damaged, foreign, or could not be written."""


def save(path: str | os.PathLike, tree: Any) -> Path:
    """Write a tree of tensors and plain values so that the file is whole or absent; give its path.

    The bytes go to a neighbouring temporary file, are flushed to the disk, and then replace the old
    file in one step: whoever kills the process, or fills the disk, finds the last good file. A
    missing folder is made. TypeError says where in the tree another kind of leaf is;
    CheckpointError: it could not be written, and the old file is untouched.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    structure = _encode(tree, "tree", tensors)
    data = _to_bytes(tensors, metadata={"format": _FORMAT, "tree": json.dumps(structure)})
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        found = f"could not be written ({error.strerror}); an older file there is untouched"
        raise CheckpointError(f"{path}: {found}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def load(path: str | os.PathLike) -> Any:
    """Read back what `save` wrote, equal in structure, types, dtypes and bits; tensors on the CPU.

    CheckpointError for a file that is missing, truncated, a pickle, or not one of ours.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        found = f"expected a readable checkpoint, got {error.strerror}"
        raise CheckpointError(f"{path}: {found}") from error
    # A good file begins with a length, which may look like a pickle, but then with a brace.
    pickled = data[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if pickled and data[8:9] != b"{":
        raise CheckpointError(f"{path}: expected a safetensors file, got a pickle; never unpickled")
    try:
        tensors = _from_bytes(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError) as error:
        found = f"expected a whole safetensors file, got a damaged or truncated one ({error})"
        raise CheckpointError(f"{path}: {found}") from error
    if (form := header.get("format")) != _FORMAT:
        raise CheckpointError(f"{path}: expected a file of format {_FORMAT}, got {form!r}")
    return _decode(json.loads(header["tree"]), tensors)


def _encode(node: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = where if where not in tensors else f"{where}#{len(tensors)}"
        tensors[name] = node.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(node, dict):
        pairs = [[_key(k, where), _encode(v, f"{where}.{k}", tensors)] for k, v in node.items()]
        return {"dict": pairs}
    if isinstance(node, list | tuple):
        kind = "list" if isinstance(node, list) else "tuple"
        return {kind: [_encode(v, f"{where}.{i}", tensors) for i, v in enumerate(node)]}
    if node is None or type(node) in (bool, int, float, str):
        return node
    raise TypeError(f"{where}: expected tensors and plain values, got {type(node).__name__}")


def _key(key: Any, where: str) -> str | int:
    if type(key) not in (str, int):
        raise TypeError(f"{where}: expected keys of type str or int, got {type(key).__name__}")
    return key


def _decode(node: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _decode(child, tensors) for key, child in value}
    children = [_decode(child, tensors) for child in value]
    return tuple(children) if kind == "tuple" else children


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rng_state() -> dict[str, Any]:
    """The states of torch's global generators, on the CPU and on every CUDA device, for `save`."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict[str, Any]) -> None:
    """Put torch's global generators back; CUDA's states are skipped on a machine without CUDA."""
    torch.set_rng_state(state["cpu"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
