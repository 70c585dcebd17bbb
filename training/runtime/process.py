"""A process and its machine: all its cores, an allocator that keeps large buffers, its peak memory, SIGTERM."""

import atexit
import ctypes
import gc
import logging
import multiprocessing
import os
import platform
import re
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from tqdm.auto import tqdm

TERMINATED = 128 + signal.SIGTERM
"""Exit status of a process that ended because it was asked to."""

MAX_READERS = 8
"""Processes that read images for one that computes on a GPU, unless more are asked for."""

READER_NICENESS = 10
"""How far processes that read images stand back behind the one that computes, as in `os.nice`."""

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


class _AboveProgressBars:
    """Standard error as a stream whose lines stand above the progress bars that are being drawn there."""

    def write(self, text):
        tqdm.write(text, file=sys.stderr, end="")

    def flush(self):
        sys.stderr.flush()


def show_messages():
    """Let a command's messages reach its user, such as what is left out; requests to the Hub are no news."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=_AboveProgressBars())
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)


def are_on_cpu():
    """Whether this is one of several processes on a machine without a GPU, which talk to each other through gloo."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available()


def use_all_cores():
    """Undo the single OpenMP thread that `accelerate launch` sets on a CPU: share the cores among local processes."""
    torch.set_num_threads(max(1, _cores_of_this_process()))


def num_readers():
    """How many processes read images: one where the cores compute, else one for each core to spare, up to a limit."""
    if not torch.cuda.is_available():
        return 1
    return min(max(1, _cores_of_this_process() - 1), MAX_READERS)


def keep_large_buffers():
    """Tell glibc to reuse large buffers, of any thread, instead of giving them back to the kernel after each operation.

    Threads share one arena: with one for each, every thread that ever served a request would keep the buffers of the
    largest image it saw. Page faults took a third of a training step's processor time without it. Does nothing where
    the C library has no mallopt.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD):
        mallopt(option, 1 << 30 if option != _M_TOP_PAD else 32 << 20)
    mallopt(_M_ARENA_MAX, 1)


def give_back_free_memory():
    """Give what glibc holds free, wherever it lies, back to the kernel: after something large that is not replaced.

    Does nothing where the C library has no malloc_trim.
    """
    gc.collect()  # networks are in circles of references
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory_gb():
    """Peak resident memory of this process in GB; None where the system does not tell."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage would also count what the process that started this one held
        kilobytes = int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1))
        return round(kilobytes / 2**20, 2)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30, 2)  # macOS counts bytes


def describe_device(device):
    """What computes, in words: the name of a GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    return f"CPU ({named.group(1) if named else platform.machine()})"


@contextmanager
def noted_termination():
    """Within the block SIGTERM does not end the process; what is yielded is a `threading.Event` that it sets.

    Outside of the main thread, where Python allows no handler, nothing is changed.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    former = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, former)


def stand_back(*_):
    """For processes that read images for another: let its threads go first, leave SIGTERM to it, and end with it.

    The threads of a step wait for each other, so that a reader on the core of one of them holds up all; it finds time
    enough while they are not all busy. SIGTERM to the whole group is the other's to answer, which ends its readers:
    Python would wait for ever at its exit for one that is still there (see `end_children_at_exit`). A reader of one
    that was killed would wait for ever for somebody to take what it has sent.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(os, "nice"):  # not on Windows
        os.nice(READER_NICENESS)

    def end_after_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_after_parent, daemon=True).start()


def end_children_at_exit():
    """Kill the processes that this one has started when it exits, before Python waits for them."""
    atexit.register(lambda: [child.kill() for child in multiprocessing.active_children()])


def _cores_of_this_process():
    """Its share of the cores that the processes of a launch may use on this machine; 0 if there are fewer cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
