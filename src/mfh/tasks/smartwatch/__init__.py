"""Shoulder exercises felt by a smart watch: one of its two sensors teaches the other one, on raw series."""

from typing import Literal

from mfh.errors import InputError
from mfh.tasks.smartwatch.data import load
from mfh.tasks.task import Task

__all__ = ["task"]


def task(
    seed: int = 0,
    *,
    teacher: str = "accelerometer",
    student: str = "gyroscope",
    labels: int | Literal["all"] = 100,
    unlabelled: bool = True,
    num_val_people: int = 2,
    num_test_people: int = 2,
    window: int = 128,
) -> Task:
    """Seven exercises by two sensors of a watch as a task, split by person. It needs the extra `data`.

    Args:
        seed: Seed that draws the people of each split, and the training pairs that keep their labels.
        teacher: View of the teacher: accelerometer, gyroscope or both.
        student: View of the student, another one.
        labels: Number of labelled training pairs; the other training pairs are pairs without labels. "all" keeps all
            labels.
        unlabelled: Whether training uses the pairs without labels.
        num_val_people: Number of the ten people who are left out for validation.
        num_test_people: Number of people who are left out for testing.
        window: Length of a sample in steps of 1/50 s, 16 to 512.

    Returns:
        A task with raw series (3, window): acceleration and rotation along three axes. The networks are small 1-D
        convolutional networks, which standardise every axis. Its layer is "features", the mean responses of 64 filters.

    Raises:
        InputError: The data package is not installed, there is no such view, or the people cannot be split so.
    """
    if isinstance(window, bool) or not isinstance(window, int) or not 16 <= window <= 512:
        raise InputError(f"window is {window!r}; choose 16 to 512 steps of 1/50 s")
    sizes = {"val": num_val_people, "test": num_test_people}
    return load(window).task(
        "smartwatch", seed, teacher=teacher, student=student, labels=labels, unlabelled=unlabelled, **sizes
    )
