"""Saliency and distillation by several processes, each with its own part of the data.

    torchrun --nproc-per-node 2 examples/07_torchrun.py

Sums over the data are added over processes, so every process ends with the same scores. The student is trained in a
plain loop under DistributedDataParallel; the focused teacher is frozen and needs no wrapping. Runs alone, too.
"""

import gc
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset, TensorDataset

import mfh


def network(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, 2))


def main(rank: int, world: int) -> None:
    torch.manual_seed(0)  # the same data and weights everywhere; usually they come from files
    both, rich, poor = (torch.randn(400, width) for width in (5, 5, 10))
    target = (both.sum(1) + rich.sum(1) > 0).long()
    pairs = TensorDataset(torch.cat([both, rich], 1), torch.cat([both, poor], 1), target)
    teacher, first_student, student = network(10), network(15), network(15)

    # Disjoint parts. DistributedSampler would pad them to equal length by counting some samples twice.
    mine = Subset(pairs, range(rank, len(pairs), world))
    loader = DataLoader(mine, batch_size=64)
    saliency = mfh.channel_saliency(teacher, first_student, loader, layer="1", score="probe")
    focused = mfh.mask_channels(teacher, saliency.mask("soft")).eval().requires_grad_(False)

    learner = DistributedDataParallel(student)
    optimizer, loss_of = torch.optim.Adam(student.parameters(), lr=1e-3), mfh.KDLoss(temperature=2.0)
    for _ in range(3):
        for teacher_input, student_input, label in loader:
            loss = loss_of(learner(student_input), focused(teacher_input), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if rank == 0:
        print(f"{saliency.samples} pairs in {world} process(es), most general channels: {saliency.ranking[:3]}")
        print(f"weights after training: {sum(float(p.detach().sum()) for p in student.parameters()):.4f}")


if __name__ == "__main__":
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", "29501")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    main(rank, world)
    gc.collect()  # models and their buckets go before the group they speak through
    dist.destroy_process_group()
