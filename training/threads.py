"""CPU settings that a process needs before it computes: all its cores, and an allocator that keeps large buffers."""

import ctypes
import os

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def use_all_cores():
    """Undo the single OpenMP thread that `accelerate launch` sets on a CPU: share the cores among local processes."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))


def keep_large_buffers():
    """Tell glibc to reuse large buffers instead of giving them back to the kernel after each operation.

    Page faults took a third of a training step's processor time without it. Does nothing where the C library has
    no mallopt.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_TOP_PAD):
        mallopt(option, 1 << 30 if option != _M_TOP_PAD else 32 << 20)
