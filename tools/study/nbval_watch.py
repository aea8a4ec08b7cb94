"""A pytest plugin: nbval's kernels as those of `make run`, watched by what they compute.

No clock on the wall decides, for a busy machine is no fault. A cell is stuck when its kernel used
no processor time during many looks in a row; it loops without end when it used too much.
"""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from queue import Empty

import nbval.plugin
import psutil
import pytest
from jupyter_client.manager import KernelManager
from nbval.kernel import NbvalKernelspecManager, RunningKernel

from tools import kernel_environment
from tools.study.notebooks import ANSI, channels

LOOK = 1.0  # seconds to wait for a message between two looks at the processor time
NOTHING = 0.2  # processor seconds; an idle kernel takes a few thousandths of one per look


class Stuck(Exception):
    """A cell that will never end, or a kernel that has died; holds the cell's traceback, if any."""

    def __init__(self, why: str, traceback: str = ""):
        super().__init__(why)
        self.traceback = traceback


class Watch:
    """Says when a process will not end: `looks` looks without work, or `limit` processor seconds.

    `spent` gives the processor seconds that the process has used until now.
    """

    def __init__(self, spent: Callable[[], float], looks: int, limit: float):
        self.spent, self.looks, self.limit = spent, looks, limit
        self.start = self.last = spent()
        self.idle = 0

    def look(self) -> str:
        """Why the process will not end; "" as long as it may."""
        now = self.spent()
        if now - self.start > self.limit:
            return f"endless: it used more than {self.limit:g} seconds of processor time"
        # Time of a child that ended may get lost: less than before is work, too.
        if abs(now - self.last) > NOTHING:
            self.last, self.idle = now, 0
        else:
            self.idle += 1
        if self.idle >= self.looks:
            return f"stuck: no processor time used for {self.idle * LOOK:g} seconds"
        return ""


def spent(pid: int) -> float:
    """Processor seconds that a process and its children have used; 0 if it is gone."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = each.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


class WatchedKernel(RunningKernel):
    """nbval's kernel, over the channels of `make run`; it waits as long as the watch lets it."""

    looks, limit = 120, 900.0  # a cell of a chapter takes seconds; endless is not slow

    def __init__(self, kernel_name: str, cwd: str | None = None, startup_timeout: float = 0):
        self.km = KernelManager(
            kernel_name=kernel_name, kernel_spec_manager=NbvalKernelspecManager(), **channels()
        )
        self.km.start_kernel(cwd=cwd, env=kernel_environment(), stderr=subprocess.DEVNULL)
        self.kc = self.km.client()
        self.kc.start_channels()
        for _ in range(self.looks):  # what iopub says before it is connected is lost: ask again
            try:
                self.await_reply(self.kc.kernel_info())
                self.kc.get_iopub_msg(timeout=LOOK)
            except Empty:
                continue
            except Stuck:
                self.stop()
                raise
            return
        self.stop()
        raise Stuck("not to be heard: its kernel answers, but shows no output")

    def get_message(self, stream: str, timeout: float | None = None) -> dict:
        """The next message, whenever it comes: nbval's `timeout` does not count."""
        watch = Watch(lambda: spent(self.km.provisioner.pid), self.looks, self.limit)
        while True:
            with contextlib.suppress(Empty):
                return super().get_message(stream, timeout=LOOK)
            if not self.km.is_alive():
                self.stop()
                raise Stuck("dead: its kernel has ended; is memory short?")
            if why := watch.look():
                raise Stuck(why, self._end())

    def _end(self) -> str:
        """Interrupt the cell, to see where it was, then kill its kernel."""
        traceback = ""
        self.interrupt()
        with contextlib.suppress(Empty):
            while not traceback:
                message = self.kc.get_iopub_msg(timeout=10)
                if message["msg_type"] == "error":
                    traceback = "\n".join(message["content"]["traceback"])
        self.stop()
        return ANSI.sub("", traceback)


nbval.plugin.RunningKernel = WatchedKernel


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A cell that will never end fails as other cells do, with its source and its place."""
    try:
        return (yield)
    except Stuck as stuck:
        item.raise_cell_error(f"The cell is {stuck}", stuck.traceback)
