"""Share work on images out among the processes of `accelerate launch`, and bring the results together.

Each process takes a run of whole batches, so that every image is computed in the same batch as on one process.
Every process has to call these functions, in the same order; on a single one they change nothing.
"""

import math
import sys
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, reduce

from training.runtime.process import are_on_cpu

PATIENCE = timedelta(days=1)
"""So long the other processes wait for the main one to list, or to compare, the images."""


def start_processes(patience=None):
    """Bring the processes of a launched command together; returns this one's device, the CPU without a GPU.

    Args:
        patience (`datetime.timedelta`, *optional*): how long they wait for each other; the default is torch's.
    """
    waiting = {} if patience is None else {"timeout": patience}
    if not torch.cuda.is_available():
        PartialState(cpu=are_on_cpu(), **waiting)
        return torch.device("cpu")
    return PartialState(**waiting).device


def own_share(count, batch_size):
    """The places of this process among `count` images, a `range`; whole batches but for the last."""
    state = PartialState()
    size = _share_size(count, batch_size, state.num_processes)
    start = min(state.process_index * size, count)
    return range(start, min(start + size, count))


def gather_rows(rows, count, batch_size):
    """Bring together what each process computed of its own share.

    Args:
        rows (`torch.Tensor`): one row for each place of `own_share(count, batch_size)`, (rows, …). A process whose
            share is empty gives (0, …) of the same dtype and shape.
        count (`int`): images of all processes.
        batch_size (`int`): as in `own_share`.

    Returns:
        `torch.Tensor`: (count, …) on the CPU, in the order of the images, on every process.
    """
    state = PartialState()
    if state.num_processes == 1:
        return rows.cpu()
    size = _share_size(count, batch_size, state.num_processes)
    padded = rows.new_zeros(size, *rows.shape[1:])
    padded[: len(rows)] = rows
    return gather(padded.to(state.device).contiguous()).cpu()[:count]


def sum_over_processes(tensor):
    """The sum of a tensor over all processes, on the CPU, on every process."""
    state = PartialState()
    if state.num_processes == 1:
        return tensor.cpu()
    return reduce(tensor.to(state.device).contiguous(), "sum").cpu()


def mean_over_processes(tensor):
    """The mean of a float tensor over all processes, on the CPU, on every process."""
    return sum_over_processes(tensor) / PartialState().num_processes


def on_any_process(happened):
    """Whether something (a `bool`) is so on at least one process; the same answer on every one."""
    return sum_over_processes(torch.tensor(int(happened))).item() > 0


def on_main_process(function):
    """What a function returns on the main process, on every process; it has to be picklable.

    Raises:
        ValueError: on the main process, as the function (an `OSError` becomes one); the others end with status 1, so
            that a refusal is said once.
    """
    answer, refusal = None, None
    if is_main_process():
        try:
            answer = function()
        except (ValueError, OSError) as error:
            refusal = error
    answer, is_refused = broadcast_object_list([answer, refusal is not None])
    if refusal is not None:
        raise ValueError(str(refusal)) from refusal
    if is_refused:
        sys.exit(1)
    return answer


def is_main_process():
    """Whether this process is the one that writes and reports."""
    return PartialState().is_main_process


def _share_size(count, batch_size, num_processes):
    return math.ceil(math.ceil(count / batch_size) / num_processes) * batch_size
