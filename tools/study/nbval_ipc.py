"""A pytest plugin: the kernels of nbval get the same channels as those of `make run`."""

from typing import Any

import nbval.kernel
from jupyter_client.manager import KernelManager

from tools.study.notebooks import channels


def _manager(**settings: Any) -> KernelManager:
    return KernelManager(**channels(), **settings)


nbval.kernel.KernelManager = _manager
