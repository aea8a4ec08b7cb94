"""Run a module that nobody trusts: `python tools/grading/sandbox.py SETTINGS.json MODULE …`.

bubblewrap gives it namespaces of its own and a file system that holds Python, aigc_lib and what
the settings name, all read-only, besides small private folders in memory. What the kernel's own
limits do not stop, for root or over several processes, a watch stops from outside: ten times a
second it looks, and kills all of it at once. Standard library only, so that it starts quickly.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

LIMITS = {
    "cell": 60.0,  # seconds that one cell may take
    "total": 600.0,  # seconds for everything
    "cpu": 900.0,  # CPU seconds of all processes together
    "memory": 4e9,  # bytes of all processes together
    "tasks": 256.0,  # processes and threads
    "disk": 256e6,  # bytes of one file, and of each private folder
}
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
ETC = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d", "alternatives", "fonts", "localtime")
HOME = "/home/student"  # the working folder
EVERY = 0.1  # seconds between two looks
TICK = 0.01  # seconds after which many new processes on this machine are noticed
MANY = 20
PATIENCE = 0.2  # seconds that adding up memory may take
CHANNELS = 1e6  # bytes that may lie beside the sockets
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
PR_SET_PDEATHSIG = 1
# System calls that get memory nobody counts, or into parts of Linux that no student needs:
# shmget, msgget, keyctl, perf_event_open, bpf, io_uring_setup.
REFUSED = {
    "x86_64": (0xC000003E, (29, 68, 250, 298, 321, 425)),
    "aarch64": (0xC00000B7, (194, 186, 219, 241, 280, 425)),
}
# What runs first inside: the limit that holds until the watch looks. Set outside, it would count
# the user's other processes too.
INSIDE = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NPROC, ({tasks}, {tasks}))
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def bubblewrap(settings: dict, info: int, rules: int) -> list[str]:
    """The command that opens the sandbox, to be followed by the program.

    In the settings, `readable` lists what is shown read-only, `data` the files put into the working
    folder, `channels` the one folder shared for writing; then `environment` and `limits`. `info` is
    a descriptor that bubblewrap tells its first process, `rules` one that it reads the filter from.
    """
    size = str(int(settings["limits"]["disk"]))
    line = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent"]
    line += ["--new-session", "--uid", "1000", "--gid", "1000", "--hostname", "sandbox"]
    line += ["--clearenv", "--info-fd", str(info)]
    if os.uname().machine in REFUSED:
        line += ["--seccomp", str(rules)]
    for name, value in settings["environment"].items():
        line += ["--setenv", name, value]
    for path in SYSTEM:
        if os.path.islink(path):
            line += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            line += ["--ro-bind", path, path]
    for name in ETC:
        line += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    line += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/tmp", HOME, "/dev/shm"):
        line += ["--size", size, "--tmpfs", folder]
    cores = "/sys/devices/system/cpu"
    line += ["--ro-bind-try", cores, cores]
    for path in settings["readable"]:
        line += ["--ro-bind", path, path]
    for path in settings["data"]:
        line += ["--ro-bind", path, f"{HOME}/{Path(path).name}"]
    if settings["channels"]:
        line += ["--bind", settings["channels"], settings["channels"]]
    return [*line, "--remount-ro", "/", "--remount-ro", "/dev", "--chdir", HOME]


def refusals(machine: str) -> bytes:
    """A filter for system calls, as Linux takes it; none for a machine that REFUSED lacks."""
    if machine not in REFUSED:
        return b""
    architecture, calls = REFUSED[machine]
    load, equal, greater, end = 0x20, 0x15, 0x35, 0x06
    refuse, allow = 0x00050000 | 1, 0x7FFF0000  # EPERM
    tests = [(greater, 0x40000000), *((equal, call) for call in calls)]  # the first one: x32
    rules = [(load, 0, 0, 4), (equal, 0, len(tests) + 2, architecture), (load, 0, 0, 0)]
    rules += [(kind, len(tests) - i, 0, value) for i, (kind, value) in enumerate(tests)]
    rules += [(end, 0, 0, allow), (end, 0, 0, refuse)]
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)


def first_limits(limits: dict) -> None:
    """Limits that the kernel keeps, per process; runs in the child before bubblewrap."""
    os.nice(5)  # the watch comes first
    for what, value in (
        (resource.RLIMIT_DATA, limits["memory"]),
        (resource.RLIMIT_FSIZE, limits["disk"]),
        (resource.RLIMIT_CPU, limits["cpu"] + 10),
        (resource.RLIMIT_NOFILE, 1024),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (int(value), int(value)))


def processes(first: int) -> dict[int, list[bytes]]:
    """All descendants of the first process: their fields of /proc/PID/stat from the third on."""
    fields, children = {}, {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                fields[int(name)] = file.read().rpartition(b")")[2].split()
                children.setdefault(int(fields[int(name)][1]), []).append(int(name))
    found, waiting = {}, [first]
    while waiting:
        pid = waiting.pop()
        if pid in fields:
            found[pid] = fields[pid]
            waiting += children.get(pid, [])
    return found


def newest_process() -> int:
    """The number that Linux gave to the latest process or thread."""
    with open("/proc/loadavg", "rb") as file:
        return int(file.read().split()[4])


def memory(found: dict[int, list[bytes]]) -> float:
    """Bytes that processes share or own, each page once, files that have no name any more too.

    A lower bound if adding up takes too long.
    """
    total, unnamed, started = 0, {}, time.monotonic()
    for pid, fields in found.items():
        if time.monotonic() - started > PATIENCE:  # a bomb must not hold up the watch
            return max(total, sum(int(fields[21]) for fields in found.values()) * PAGE / 4)
        share = int(fields[21]) * PAGE
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    share = int(line.split()[1]) * 1024
        total += share
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    file = os.stat(f"/proc/{pid}/fd/{name}")
                    if stat.S_ISREG(file.st_mode) and not file.st_nlink:
                        unnamed[file.st_dev, file.st_ino] = file.st_blocks * 512
    return total + sum(unnamed.values())


def excess(first: int, look: int, started: float, settings: dict) -> str:
    """Which limit is exceeded, or ""; what is slow to find out is looked at now and then."""
    limits, found = settings["limits"], processes(first)
    tasks = sum(int(fields[17]) for fields in found.values())
    cpu = sum(sum(map(int, fields[11:15])) for fields in found.values()) / TICKS
    resident = sum(int(fields[21]) for fields in found.values()) * PAGE
    if tasks > limits["tasks"]:
        return f"more than {limits['tasks']:g} processes and threads"
    if cpu > limits["cpu"]:
        return f"more than {limits['cpu']:g} seconds of CPU time"
    if time.monotonic() - started > limits["total"]:
        return f"more than {limits['total']:g} seconds in all"
    if (resident > limits["memory"] or look % 10 == 0) and memory(found) > limits["memory"]:
        return f"more than {limits['memory'] / 1e9:g} GB of memory"
    with contextlib.suppress(OSError):
        files = list(os.scandir(settings["channels"])) if settings["channels"] else []
        sizes = [file.stat(follow_symlinks=False).st_size for file in files]
        if sum(sizes) > CHANNELS or len(files) > 64:
            return "files written beside the channels of the kernel"
    return ""


def python(settings: dict, module: str, *arguments: str) -> list[str]:
    """How a module is run inside."""
    tasks = 2 * int(settings["limits"]["tasks"])  # the watch ends what has more than once that
    code = INSIDE.format(tasks=tasks, module=module)
    return [sys.executable, "-c", code, *arguments]


def contain(settings: dict, program: list[str]) -> tuple[int, str]:
    """Run a program in the sandbox until it ends or breaks a limit.

    Its exit code, and a sentence: that limit, or the beginning of what it wrote to stderr.
    """
    reading, writing = os.pipe()
    rules, filling = os.pipe()
    with open(filling, "wb") as file:
        file.write(refusals(os.uname().machine))
    sandbox = subprocess.Popen(
        [*bubblewrap(settings, writing, rules), *program],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        pass_fds=[writing, rules],
        preexec_fn=lambda: first_limits(settings["limits"]),
    )
    os.close(writing)
    os.close(rules)
    said: list[bytes] = []
    reader = threading.Thread(target=_drain, args=(sandbox.stderr, said), daemon=True)
    reader.start()
    with open(reading, "rb") as file:
        info = file.read()
    with contextlib.suppress(OSError):  # root may: a thousand processes must not hold up the watch
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    reason, look, started = "", 0, time.monotonic()
    first = json.loads(info)["child-pid"] if info else 0
    while first and sandbox.poll() is None and not reason:
        if reason := excess(first, look, started, settings):
            Path(settings["reason"]).write_text(reason, encoding="utf-8")
            os.kill(first, signal.SIGKILL)  # the first process takes all the others with it
        look += 1
        newest, until = newest_process(), time.monotonic() + EVERY
        while time.monotonic() < until and 0 <= newest_process() - newest < MANY:
            time.sleep(TICK)
    code = sandbox.wait()
    reader.join(1)
    sandbox.stderr.close()
    return code, reason or b"".join(said).decode(errors="replace").strip()


def _drain(stream, said: list[bytes]) -> None:
    while text := stream.read1(65536):
        if sum(map(len, said)) < 4000:
            said.append(text[:4000])


def die_with_parent() -> None:
    """Be killed as soon as the process that started this one is gone."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Run the command line's module with the settings of a file."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    die_with_parent()
    if str(os.getppid()) != os.environ.get("JPY_PARENT_PID"):
        return 1  # no kernel without its grader
    code, reason = contain(settings, python(settings, *sys.argv[2:]))
    Path(settings["reason"]).write_text(reason, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
