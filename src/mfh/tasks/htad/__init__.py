"""HTAD: seven home tasks, heard by a microphone and felt by an accelerometer at the wrist."""

from typing import Literal

from mfh.tasks.htad.data import load
from mfh.tasks.task import Task

__all__ = ["task"]


def task(
    seed: int = 0,
    *,
    teacher: str = "audio",
    student: str = "accelerometer",
    labels: int | Literal["all"] = 100,
    unlabelled: bool = True,
    num_val: int = 100,
    num_test: int = 400,
) -> Task:
    """Home tasks by sound and movement as a task. It needs the extra `data`.

    Args:
        seed: Seed of the split, which is stratified by class, and of the pairs that keep their labels.
        teacher: View of the teacher: audio, accelerometer or both.
        student: View of the student, another one.
        labels: Number of labelled training pairs; the other training pairs are pairs without labels. "all" keeps all
            labels.
        unlabelled: Whether training uses the pairs without labels.
        num_val: Number of validation pairs.
        num_test: Number of test pairs.

    Returns:
        A task with vectors: 36 statistics of the sound, 16 of the movement. The networks standardise them. Its layer is
        "hidden", the last of two hidden layers.

    Raises:
        InputError: The data package is not installed, there is no such view, or the data cannot be split so.
    """
    views = load()
    return views.task(
        "htad", seed, teacher=teacher, student=student, labels=labels, unlabelled=unlabelled, val=num_val, test=num_test
    )
