"""What two processes do together: run by test_distributed, through torchrun and once more in one process."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

import tiny_task
from mfh import ChannelSaliency, InputError, Recipe, align, channel_saliency, distill, pretrain
from mfh.cli.commands import _tell
from mfh.data.epochs import PairLoader
from mfh.networks.modes import fingerprint
from mfh.parallel.distributed import average_buffers, exists, gather, joined, part, rank, world_size
from mfh.studies.folder import SeedFolder
from mfh.studies.grid import Cell
from mfh.studies.seed import Seed
from mfh.training.fitting import evaluate
from networks import seeded

CELL = Cell("general", "distance", 0.5, "1")


def uneven_task():
    """117 training pairs: three whole steps of 32 and one of 21; 41 and 33 for validation and test."""
    tiny = tiny_task.task(0)
    parts = {"train": Subset(tiny.train, range(117)), "val": Subset(tiny.val, range(41))}
    return replace(tiny, **parts, test=Subset(tiny.test, range(33)), recipe=Recipe(epochs=3, batch_size=16))


def weights(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()]).tolist()


def trainings(accumulate):
    """Histories and weights of all three kinds of training."""
    task = uneven_task()
    given = {"train": task.train, "val": task.val, "recipe": replace(task.recipe, accumulate=accumulate)}
    teacher, student = seeded(tiny_task.teacher), seeded(tiny_task.student, 1)
    first = pretrain(seeded(tiny_task.student, 1), role="student", **given)
    balanced = given | {"recipe": replace(given["recipe"], balanced_sampling=True)}
    even = pretrain(seeded(tiny_task.student, 1), role="student", **balanced)
    pair = align(teacher, student, **given)
    taught = distill(seeded(tiny_task.teacher, 2), seeded(tiny_task.student, 1), **given)
    hinted = distill(seeded(tiny_task.teacher, 2), seeded(tiny_task.student, 1), method="fitnets", **given)
    return {
        "histories": [first.history, even.history, pair.history, taught.history, hinted.history],
        "best_epochs": [first.best_epoch, even.best_epoch, taught.best_epoch, hinted.best_epoch],
        "weights": [
            weights(n)
            for n in (first.network, even.network, pair.teacher, pair.student, taught.student, hinted.student)
        ],
    }


def measurements():
    """Saliencies and accuracies of networks as they are."""
    task = uneven_task()
    teacher, student = seeded(tiny_task.teacher), seeded(tiny_task.student, 1)
    found = {"accuracies": [evaluate(student, getattr(task, split), "student") for split in ("train", "val", "test")]}
    for name, options in [
        ("exact", {}),
        ("drawn", {"permutations": 3}),
        ("l1", {"distance": "l1"}),
        ("probe", {"score": "probe", "student_layer": "1"}),
    ]:
        saliency = channel_saliency(teacher, student, PairLoader(part(task.train)), layer="1", **options)
        found[name] = [saliency.samples, saliency.scores.tolist(), saliency.means.tolist()]
    given = ChannelSaliency.from_scores(range(12), teacher, PairLoader(part(task.train)), layer="1")
    found["given"] = [given.samples, given.scores.tolist(), given.means.tolist()]
    return found


def kept(folder):
    """What a seed makes, or finds, in a folder."""
    made = Seed(uneven_task(), 0, folder=SeedFolder(folder, 0), keep_students=True)
    student = made.student(CELL)
    return {
        "saliency": made.saliency("distance").scores.tolist(),
        "student": fingerprint(student.network),
        "best_epoch": student.best_epoch,
        "accuracy": evaluate(student.network, made.task.val, "student"),
    }


class Unused(nn.Module):
    """Has a head that nothing reads."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(7, 2), nn.Linear(7, 2)

    def forward(self, inputs):
        return self.used(inputs)


def normalised():
    """A network with batch statistics: every process normalises by its own, and all end with the same network."""
    task = uneven_task()
    network = seeded(lambda: nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)))
    pretrain(network, task.train, task.val, role="student", recipe=task.recipe)
    network[1].running_mean += rank()
    apart = network[1].running_mean.clone()
    average_buffers(network)
    assert torch.allclose(network[1].running_mean, apart + 0.5 - rank())
    return fingerprint(network)


def refusals(folder):
    """Messages of what several processes cannot do."""
    task, small, messages = uneven_task(), Subset(uneven_task().train, [0]), {}
    own = TensorDataset(*(tensor + rank() for tensor in task.train.dataset.tensors))
    (folder / f"of-{rank()}").touch()

    def train(network, train, val):
        return pretrain(network, train, val, role="student", recipe=task.recipe)

    for name, action in {
        "train": lambda: train(tiny_task.student(), small, task.val),
        "val": lambda: train(tiny_task.student(), task.train, small),
        "part": lambda: part(small),
        "unused": lambda: train(Unused(), task.train, task.val),
        "data": lambda: Seed(replace(task, train=own), 0),
        "disk": lambda: exists(folder / "of-0") if rank() == 0 else exists(folder / "elsewhere" / "of-0"),
    }.items():
        try:
            action()
        except InputError as error:
            messages[name] = str(error).replace("elsewhere/", "")
    return messages


def main():
    folder = Path(sys.argv[1])
    with joined("cpu", _tell):
        found = {
            "world": world_size(),
            "trainings": trainings(1),
            "measurements": measurements(),
            "kept": kept(folder / "run"),
            "normalised": gather(normalised()),
            "refusals": refusals(folder),
        }
        (folder / f"{rank()}.json").write_text(json.dumps(found))
        gather("written")  # The error below ends both processes, so it waits until both have written.
        if rank() == 1:
            raise InputError("this process has had enough")
        gather("the first process waits for one that is gone")


if __name__ == "__main__":
    main()
