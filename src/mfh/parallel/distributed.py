"""Processes that work together, as torchrun starts them: their ranks, what they share, and how they end.

Without torch.distributed there is one process, and the functions here cost nothing.
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

    With one process nothing happens. Otherwise the process group is formed (NCCL between GPUs, Gloo between CPUs) and
    destroyed at the end. An error ends this process, and torchrun then ends the others. Only the first process to fail
    reports its error.

    Args:
        device: The user's choice of device; None means a GPU if there is one.
        tell: Function that reports an error and returns the exit code.
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
            code = tell(_lost_process() if is_loss_of_a_process(error) else error)
        # An orderly shutdown of the group or the interpreter could wait forever for processes that have ended.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    # The interpreter may abort at exit if objects still refer to the group's threads, so they are collected now.
    gc.collect()
    torch.distributed.destroy_process_group()


def _choose_gpu(device: str | None) -> bool:
    """Select the GPU with this process's local rank; False if the work runs on the CPU."""
    if not torch.cuda.is_available() or not (device or "cuda").startswith("cuda"):
        return False
    if device not in (None, "cuda"):
        raise InputError(f"device is {device!r}, but every process of torchrun uses its own GPU; leave --device out")
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
    except Exception:  # the process that hosts the store has ended
        return True


def is_loss_of_a_process(error: BaseException) -> bool:
    """Whether an exception says that another process of this job has ended."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and ("gloo" in str(error) or "Connection closed by peer" in str(error))
    )


def _lost_process() -> InputError:
    return InputError("another process of this job has ended; run the same command again to resume")


def check_uniform() -> tuple[int, int]:
    """Number of processes on each machine, and number of machines.

    Raises:
        InputError: Torchrun did not start these processes, or machines have different numbers of them.
    """
    if "LOCAL_WORLD_SIZE" not in os.environ:
        raise InputError(
            "LOCAL_WORLD_SIZE is not set, so torchrun did not start these processes; start them with torchrun"
        )
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if any(there != here for there in gather(here)):
        raise InputError(
            f"machines run {sorted(set(gather(here)))} processes each; give every machine the same --nproc-per-node"
        )
    return here, world_size() // here


# --- rank and size ----------------------------------------------------------------------------------------------------


def world_size() -> int:
    """Number of processes that work together; 1 without torch.distributed."""
    return torch.distributed.get_world_size() if _grouped() else 1


def rank() -> int:
    """Rank of this process; 0 without torch.distributed."""
    return torch.distributed.get_rank() if _grouped() else 0


def _grouped() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


# --- what is shared ---------------------------------------------------------------------------------------------------


def gather(value: T) -> list[T]:
    """Values of all processes in order of rank; a list of one value without torch.distributed."""
    if world_size() == 1:
        return [value]
    values: list[T] = [value] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def share_rows(rows: Tensor) -> Tensor:
    """Rows of all processes, in order of rank; with one process, the rows themselves."""
    gathered = gather(rows.cpu())
    return rows if len(gathered) == 1 else torch.cat(gathered).to(rows.device)


def total(values: Tensor) -> Tensor:
    """Sum of a tensor over processes; every process gets the same sum."""
    if world_size() > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


def average_buffers(network: nn.Module) -> None:
    """Average the floating point buffers of a network over processes: running statistics of batch normalisation."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    if world_size() == 1 or not buffers:
        return
    means = total(torch.cat([buffer.detach().flatten() for buffer in buffers])) / world_size()
    done = 0
    for buffer in buffers:
        buffer.copy_(means[done : done + buffer.numel()].reshape(buffer.shape))
        done += buffer.numel()


def part(dataset: Any) -> Any:
    """This process's part of a data set; with one process, the data set itself.

    Parts are contiguous and disjoint. Put together in order of rank, they are the data set again.

    Raises:
        InputError: There are fewer samples than processes.
    """
    size, count = world_size(), len(dataset)
    if size == 1:
        return dataset
    if count < size:
        raise InputError(f"{count} sample{'s' * (count != 1)} cannot be shared by {size} processes; start fewer")
    return Subset(dataset, range(part_start(count), count * (rank() + 1) // size))


def part_start(count: int) -> int:
    """Position of the first sample of this process's part in a data set of `count` samples."""
    return count * rank() // world_size()


def exists(path: Path) -> bool:
    """Whether a file exists; all processes get the same answer.

    Raises:
        InputError: Some processes see the file and others do not.
    """
    seen = gather(path.exists())
    if len(set(seen)) > 1:
        raise InputError(
            f"process {seen.index(False)} of {len(seen)} does not see {path}, others do; "
            "the run folder must be on a disk that all machines share"
        )
    return seen[0]
