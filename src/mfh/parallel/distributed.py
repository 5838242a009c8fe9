"""Several processes that work together, as torchrun starts them: who they are, what they share, how they end.

Without torch.distributed there is one process, and everything here is free of charge.
"""

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from mfh.errors import InputError

log = logging.getLogger("mfh")

T = TypeVar("T")


@contextmanager
def joined(device: str | None, tell: Callable[[BaseException], int]) -> Iterator[None]:
    """Work together with the other processes that torchrun started.

    With one process nothing happens. Otherwise the group is formed (NCCL between GPUs, Gloo between CPUs), and left
    at the end. An error ends this process, and torchrun then ends the others; only the first process to fail is heard.

    Args:
        device: as the user gave it; None is a GPU if there is one.
        tell: says what went wrong, and returns the exit code.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    from torch.distributed.rendezvous import rendezvous

    store, rank_here, size = next(rendezvous("env://"))
    try:
        on_gpu = _choose_gpu(device)
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=rank_here, world_size=size
        )
        check_uniform()
        if rank_here == 0:
            log.info("training on %d processes (%s)", world_size(), "NCCL" if on_gpu else "Gloo")
        yield
    except BaseException as error:
        code = 1
        if _first_to_fail(store):
            code = tell(_lost_process() if _is_loss_of_a_process(error) else error)
        # Leaving the group, or the interpreter, in order could wait for processes that will not come.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    # What still refers to the group's threads must be gone before the interpreter ends, otherwise it may abort.
    gc.collect()
    torch.distributed.destroy_process_group()


def _choose_gpu(device: str | None) -> bool:
    """Take the GPU of this process's number on its machine; False where the work is done on the CPU."""
    if not torch.cuda.is_available() or not (device or "cuda").startswith("cuda"):
        return False
    if device not in (None, "cuda"):
        raise InputError(f"device is {device!r}, but each of several processes has a GPU of its own; leave it out")
    local_size, count = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if local_size > count:
        raise InputError(
            f"{local_size} processes on this machine would share {count} GPU{'s' * (count > 1)}; start one for each, "
            "or give --device cpu"
        )
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return True


def _first_to_fail(store: Any) -> bool:
    try:
        return bool(store.add("mfh-failures", 1) == 1)
    except Exception:  # the process that keeps the store is gone
        return True


def _is_loss_of_a_process(error: BaseException) -> bool:
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in str(error) or "Connection closed by peer" in str(error))
    )


def _lost_process() -> InputError:
    return InputError("another process of this job has ended; the same command resumes")


def check_uniform() -> tuple[int, int]:
    """Processes on each machine, and the number of machines.

    Raises:
        InputError: torchrun did not start these processes, or machines have different numbers of them.
    """
    if "LOCAL_WORLD_SIZE" not in os.environ:
        raise InputError("several processes train together, but not as torchrun starts them; use torchrun")
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if any(there != here for there in gather(here)):
        raise InputError(f"machines run {sorted(set(gather(here)))} processes each; give all the same --nproc-per-node")
    return here, world_size() // here


# --- who we are -----------------------------------------------------------------------------------------------------


def world_size() -> int:
    """How many processes work together; 1 without torch.distributed."""
    return torch.distributed.get_world_size() if _grouped() else 1


def rank() -> int:
    """This process's number, 0 without torch.distributed."""
    return torch.distributed.get_rank() if _grouped() else 0


def _grouped() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


# --- what is shared -------------------------------------------------------------------------------------------------


def gather(value: T) -> list[T]:
    """One value per process, in order of rank; a list of one without torch.distributed."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def share_rows(rows: Tensor) -> Tensor:
    """The rows of all processes in order of rank; with one process the rows themselves."""
    gathered = gather(rows.cpu())
    return rows if len(gathered) == 1 else torch.cat(gathered).to(rows.device)


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over processes, the same in all of them."""
    if world_size() > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


def average_buffers(network: nn.Module) -> None:
    """Give all processes the mean of what their networks keep beside weights: running statistics of batches."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if world_size() == 1 or not buffers:
        return
    means = total(torch.cat([buffer.detach().flatten() for buffer in buffers])) / world_size()
    done = 0
    for buffer in buffers:
        buffer.copy_(means[done : done + buffer.numel()].reshape(buffer.shape))
        done += buffer.numel()


def part(dataset: Any) -> Any:
    """This process's part of a data set: contiguous, disjoint from the others', none repeated; all with one process.

    In order of rank the parts are the data set again.

    Raises:
        InputError: there are fewer samples than processes.
    """
    size, count = world_size(), len(dataset)
    if size == 1:
        return dataset
    if count < size:
        raise InputError(f"{count} sample{'s' * (count != 1)} cannot be shared by {size} processes; start fewer")
    return Subset(dataset, range(count * rank() // size, count * (rank() + 1) // size))


def exists(path: Path) -> bool:
    """Whether there is such a file, the same answer in all processes.

    Raises:
        InputError: only some of them see it.
    """
    seen = gather(path.exists())
    if len(set(seen)) > 1:
        raise InputError(
            f"process {seen.index(False)} of {len(seen)} does not see {path}, others do; "
            "the run folder must be on a disk that all machines share"
        )
    return seen[0]
