"""A pretend device without float64, as Apple's MPS: tensors on the CPU that say they are there."""

import torch
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from aigc_lib import device

backend_registration._setup_privateuseone_for_python_backend("pretend")
torch.pretend.is_available = lambda: False  # other tests of this process must not look for it
MPS = torch.device("pretend", 0)


class _OnMps(torch.Tensor):
    """A tensor of real numbers; it computes inside of `Mps` alone."""

    @staticmethod
    def __new__(cls, held):
        how = {"dtype": held.dtype, "device": MPS, "strides": held.stride()}
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, **how)

    def __init__(self, held):
        self.held = held

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside of `with pretend.Mps()`")


class Mps(TorchDispatchMode):
    """While it is entered there is an MPS. Float64 on it and other devices beside it are refused.

    `put` moves a tensor there, and `.cpu()` back; no gradients.
    """

    def __enter__(self):
        device.WITHOUT_FLOAT64.add(MPS.type)
        return super().__enter__()

    def __exit__(self, *error):
        device.WITHOUT_FLOAT64.discard(MPS.type)
        return super().__exit__(*error)

    def put(self, x):
        if x.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return _OnMps(x)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = [x for x in torch.utils._pytree.tree_leaves((args, kwargs)) if _is_tensor(x)]
        there = any(isinstance(x, _OnMps) for x in given)
        moves = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        if there and not moves:
            apart = [x for x in given if not isinstance(x, _OnMps) and x.ndim]
            assert not apart, f"{function} on MPS and the CPU at once"
        if "device" in kwargs and kwargs["device"] is not None:
            there = torch.device(kwargs["device"]).type == MPS.type
            kwargs["device"] = torch.device("cpu")
        if function is torch.ops.aten.copy_.default:
            there = isinstance(args[0], _OnMps)
        plain = tree_map_only(_OnMps, lambda x: x.held, (args, kwargs))
        out = function(*plain[0], **plain[1])
        if not there:
            return out
        changed = {id(x.held): x for x in given if isinstance(x, _OnMps)}  # in place
        return tree_map_only(torch.Tensor, lambda x: changed.get(id(x)) or self.put(x), out)


def _is_tensor(x):
    return isinstance(x, torch.Tensor)
