"""Methods in two processes and in one: run by test_features, through torchrun and once more alone."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from method_batches import batch, begin, context
from mfh import Recipe, distill
from mfh.cli.commands import _tell
from mfh.methods.attainable import Attainable
from mfh.methods.crd import CRD
from mfh.methods.dist import DIST
from mfh.methods.mad import MAD
from mfh.methods.names import SHIPPED
from mfh.methods.queue import Queue
from mfh.methods.rkd import RKD
from mfh.methods.sp import SP
from mfh.parallel.distributed import joined, rank, total, world_size
from taught_world import new_student, world

PAIRS, FIRST = 12, 3


def part_of(seen, rows):
    """Some rows of a batch, with gradients of their own."""
    logits = {
        name: getattr(seen, name).detach()[rows].requires_grad_() for name in ("student_logits", "teacher_logits")
    }
    features = {
        side: {name: value.detach()[rows].requires_grad_() for name, value in getattr(seen, side).items()}
        for side in ("student_features", "teacher_features")
    }
    return replace(
        seen, target=seen.target[rows], labelled=seen.labelled[rows], index=seen.index[rows], **logits, **features
    )


def measured():
    """Numbers by what they are: mean losses, gradients of all samples, buffers after two batches."""
    found = {}
    alone = world_size() == 1
    rows = slice(0, 7) if alone else (slice(0, FIRST), slice(FIRST, 7))[rank()]
    for method in (DIST(), RKD(), SP(), MAD(), CRD(width=8, temperature=0.5), Queue(size=10), Attainable(warm_up=1)):
        given = context(pairs=PAIRS)
        modules = begin(method, given)
        for number, index in enumerate(([0, 3, 5, 11, 7, 2, 9], [1, 4, 6, 8, 10, 3, 0])):
            whole = batch(given, modules, seed=number, index=torch.tensor(index))
            seen = part_of(whole, rows)
            loss = method.loss(seen)
            own = len(seen.student_logits)
            loss.backward()
            # The processes' losses are averaged by their numbers of rows.
            mean = total(loss.detach()[None] * own / 7)
            gradients = []
            for of, full in (
                (seen.student_logits, whole.student_logits),
                (seen.student_feature, whole.student_feature),
            ):
                mine = torch.zeros_like(full)
                if of.grad is not None:
                    mine[rows] = of.grad * own / 7
                gradients += total(mine).flatten().tolist()
            found[f"{method.name} {number} loss"] = mean.tolist()
            found[f"{method.name} {number} gradients"] = gradients
        buffers = () if modules is None else modules.named_buffers()
        found |= {f"{method.name} {name}": value.double().flatten().tolist() for name, value in buffers}
    return found


def students():
    """Weights of students by method. Two processes with batches of 8 make the steps of one with batches of 16.

    Batch normalisation is of a process, so methods with projectors that have it are compared between processes only.
    """
    data, size = world(0, unlabelled=24), 16 // world_size()
    labelled = len(data.target)
    train = TensorDataset(data.teacher_input[:labelled], data.student_input[:labelled], data.target)
    more = TensorDataset(data.teacher_input[labelled:], data.student_input[labelled:])
    recipe = Recipe(epochs=2, batch_size=size, optimizer=lambda p: torch.optim.SGD(p, 0.002), keep="last")
    found = {}
    for name in SHIPPED:
        # With one epoch of warm-up the targets are fitted within the training.
        method = Attainable(warm_up=1) if name == "attainable" else name
        fit = distill(
            data.teacher, new_student(0), train, train, unlabelled=more, method=method, recipe=recipe, device="cpu"
        )
        found[name] = torch.cat([parameter.detach().flatten() for parameter in fit.student.parameters()]).tolist()
    return found


if __name__ == "__main__":
    with joined("cpu", _tell):
        results = {"measured": measured(), "students": students()}
        (Path(sys.argv[1]) / f"{rank()}.json").write_text(json.dumps(results))
