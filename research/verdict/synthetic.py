"""Synthetic settings of the verdict, apart from the real ones: what decides the label, and who sees it, is known.

The list was committed before any setting was run or forecast. No constant of the forecast was chosen on synthetic data.

digits  The shipped task with 1,000 training pairs, of which 100 are labelled, or all.
nets    Data of the held-out worlds of networks in `research/worlds`: the world's number of labelled pairs, 800 training
        pairs without labels, 400 for validation and 2,000 for testing, with the networks that `mfh` makes for vectors.

A name says how many decisive features both modalities carry, the teacher's alone, and the student's alone: 2-1-0.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import mfh
from mfh.studies.labels import with_label_fraction
from mfh.tasks import digits

sys.path.insert(0, str(Path(__file__).parents[1] / "worlds"))

from worlds import World, worlds

_UNLABELLED, _VAL, _TEST = 800, 400, 2000


@dataclass(frozen=True)
class DigitsSetting:
    """The task `digits` with counts of decisive digits, and a label budget.

    Args:
        general: Number of decisive digits in recording and picture.
        teacher_only: Number of decisive digits in the recording alone.
        student_only: Number of decisive digits in the picture alone.
        num_classes: Number of classes.
        labels: Number of labelled training pairs of 1,000, or "all".
    """

    general: int
    teacher_only: int
    student_only: int
    num_classes: int
    labels: str = "100"
    task: str = "digits"

    @property
    def direction(self):
        return f"digits: {self.general}-{self.teacher_only}-{self.student_only}, {self.num_classes} classes"

    @property
    def name(self):
        counts = f"{self.general}-{self.teacher_only}-{self.student_only}"
        return f"digits-{counts}-k{self.num_classes}-{self.labels}"

    def made(self, seed):
        counts = {name: getattr(self, name) for name in ("general", "teacher_only", "student_only", "num_classes")}
        task = digits.task(seed, **counts)
        return with_label_fraction(task, None if self.labels == "all" else int(self.labels) / 1000, seed)


@dataclass(frozen=True)
class WorldSetting:
    """A world of networks, drawn anew by every seed.

    Args:
        world: The world; its number of training pairs is that of the labelled ones.
    """

    world: World
    task: str = "nets"

    @property
    def labels(self):
        return str(self.world.num_train)

    @property
    def direction(self):
        w = self.world
        counts = f"{w.general}-{w.teacher_only}-{w.student_only}"
        return f"nets: {counts}, {w.classes} classes, {w.shape}, noise {w.noise:g}"

    @property
    def name(self):
        return self.world.name

    def made(self, seed):
        sizes = {"train": self.world.num_train + _UNLABELLED, "val": _VAL, "test": _TEST}
        teacher, student, target = self.world.draw(sum(sizes.values()), np.random.default_rng([seed, 2026]))
        target[self.world.num_train : sizes["train"]] = -1
        split = np.repeat(list(sizes), list(sizes.values()))
        return mfh.Task.from_arrays(teacher=teacher, student=student, target=target, split=split, name="nets")


DIGITS = tuple(
    DigitsSetting(*one)
    for one in (
        (1, 1, 0, 2),
        (1, 1, 0, 4),
        (1, 0, 0, 2),
        (1, 0, 0, 4),
        (1, 0, 1, 2),
        (1, 1, 1, 2),
        (2, 1, 0, 2),
        (1, 2, 0, 2),
        (1, 1, 0, 2, "all"),
        (1, 0, 0, 4, "all"),
    )
)
NETS = tuple(WorldSetting(world) for world in worlds() if (world.kind, world.half) == ("nets", "held-out"))
SYNTHETIC = (*DIGITS, *NETS)
