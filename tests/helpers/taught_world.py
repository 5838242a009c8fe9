"""A small synthetic setting in which every method helps, and a plain training loop as its own reference."""

import copy
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mfh import Problem
from mfh.methods.batch import Batch, Context, Method
from networks import seeded

CLASSES = 4


class Network(nn.Module):
    """Two hidden layers and a head; the input of the head is the penultimate layer."""

    def __init__(self, inputs, width=24):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, CLASSES)

    def forward(self, inputs):
        return self.head(self.trunk(inputs))


@dataclass(frozen=True)
class World:
    """Paired data of one seed: labelled pairs first, then unlabelled ones, with a good teacher."""

    teacher: nn.Module
    teacher_input: Tensor
    student_input: Tensor
    target: Tensor  # of the labelled pairs
    test_input: Tensor
    test_target: Tensor

    @property
    def pairs(self):
        return len(self.teacher_input)


@cache
def world(seed, labelled=40, unlabelled=600, wrong=0.0):
    """Six factors decide the class; the teacher sees them well, the student with noise and among distractors."""
    draws = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=draws)

    decide, mix = 2 * randn(6, CLASSES), randn(6, 10)

    def sample(count):
        factors = randn(count, 6)
        target = (factors @ decide + 0.3 * randn(count, CLASSES)).argmax(1)
        seen = torch.cat([factors @ mix + 0.5 * randn(count, 10), randn(count, 10)], 1)
        return torch.cat([factors, randn(count, 2)], 1), seen, target

    rich, _, known = sample(1000)
    teacher = seeded(lambda: Network(8, 28), seed)
    optimizer = torch.optim.Adam(teacher.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(teacher(rich), known).backward()
        optimizer.step()
    teacher_input, student_input, target = sample(labelled + unlabelled)
    target = target[:labelled].clone()
    flipped = torch.rand(labelled, generator=draws) < wrong
    target[flipped] = torch.randint(CLASSES, (int(flipped.sum()),), generator=draws)
    _, test_input, test_target = sample(1000)
    return World(teacher.eval(), teacher_input, student_input, target, test_input, test_target)


@dataclass(frozen=True)
class Plan:
    """How a student is trained."""

    epochs: int = 30
    batch: int = 64
    rate: float = 0.005
    seed: int = 0
    own_seed: int = 0  # of what the method draws
    batches: list | None = None  # rows of the pairs by batch, by epoch; None shuffles
    optimizer: type = torch.optim.Adam


def new_student(seed):
    return seeded(lambda: Network(20), 100 + seed)


def trained(method: Method | None, data: World, plan: Plan, start: nn.Module):
    """A student trained by a plain loop, as deployed. Without a method it learns from the labels alone.

    Nothing is shared with the loop of the package: batches, features and weights of terms are written out.
    """
    student, teacher, labelled = copy.deepcopy(start), copy.deepcopy(data.teacher), len(data.target)
    modules = None
    if method is not None:
        given = Context(
            problem=Problem.classification(),
            student=student,
            teacher=teacher,
            student_shapes={"input of head": (student.head.in_features,)},
            teacher_shapes={"input of head": (teacher.head.in_features,)},
            logits_shape=(CLASSES,),
            teacher_features={} if method.trains_teacher else {"input of head": shown_by(teacher, data)},
            num_labelled=labelled,
            num_pairs=data.pairs,
            teacher_tails={"input of head": copy.deepcopy(teacher.head)},
            seed=plan.own_seed,
        )
        modules = seeded(lambda: method.begin(given), plan.own_seed)
    parameters = [*student.parameters(), *([] if modules is None else modules.parameters())]
    if method is not None and method.trains_teacher:
        parameters += teacher.parameters()
    optimizer = plan.optimizer(parameters, plan.rate)
    draws = torch.Generator().manual_seed(plan.seed)
    student.train()
    for epoch in range(plan.epochs):
        shuffled = torch.randperm(data.pairs, generator=draws).split(plan.batch)
        for rows in shuffled if plan.batches is None else plan.batches[epoch]:
            rows = torch.cat([rows[rows < labelled], rows[rows >= labelled]])
            known = int((rows < labelled).sum())
            features = student.trunk(data.student_input[rows])
            logits = student.head(features)
            loss = logits.sum() * 0
            if method is None or not method.owns_labels:
                labels = data.target[rows[:known]]
                loss = loss + (F.cross_entropy(logits[:known], labels) if known else 0)
            if method is not None and (known or not method.needs_labels):
                seen = slice(0, known) if method.needs_labels else slice(None)
                with torch.set_grad_enabled(method.trains_teacher):
                    shown = teacher.trunk(data.teacher_input[rows])
                    taught = teacher.head(shown)
                target = torch.zeros(len(rows), dtype=torch.long)
                target[:known] = data.target[rows[:known]]
                loss = loss + method.teacher_weight * method.loss(
                    Batch(
                        student_logits=logits[seen],
                        teacher_logits=taught[seen],
                        target=target[seen],
                        labelled=(rows < labelled)[seen],
                        index=rows[seen],
                        epoch=epoch,
                        student_features={"input of head": features[seen]},
                        teacher_features={"input of head": shown[seen]},
                        modules=modules,
                    )
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student if method is None else method.deploy(student, modules)


@torch.no_grad()
def shown_by(teacher, data):
    """The teacher's features of all pairs."""
    return teacher.trunk(data.teacher_input)


@torch.no_grad()
def accuracy(network, inputs, target):
    """In percent."""
    return float((network.eval()(inputs).argmax(1) == target).float().mean()) * 100
