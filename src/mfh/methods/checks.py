"""What methods say no to before anything is trained, what they warn of once, and how they draw."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated

import torch

from mfh.errors import InputError
from mfh.methods.batch import Context
from mfh.values import Bounds

log = logging.getLogger("mfh")

#: Weight of a term of a loss, and a softmax temperature.
Weight = Annotated[float, Bounds(0, 1_000_000)]
Temperature = Annotated[float, Bounds(0.001, 1_000_000)]


def check_problem(method: str, context: Context, *names: str) -> None:
    """Refuse a problem that the method's formula has no meaning for.

    Args:
        method: Name of the method.
        context: What the training begins with.
        names: Names of the problems that the method can do.

    Raises:
        InputError: The problem is another one.
    """
    if context.problem.name not in names:
        raise InputError(
            f"{method} cannot do {context.problem.name}, only {' and '.join(names)}; choose another method"
        )


def check_pairs(method: str, context: Context, least: int = 2) -> None:
    """Refuse a training with too few pairs for a method that remembers them by index.

    Raises:
        InputError: There are fewer than `least` training pairs.
    """
    if context.num_pairs < least:
        raise InputError(
            f"{method} remembers training pairs by index and needs at least {least}, got {context.num_pairs}; "
            "give more pairs or choose another method"
        )


def check_positions(method: str, context: Context) -> None:
    """Refuse features that cannot be compared position by position.

    Raises:
        InputError: The positions of student and teacher differ in number or size.
    """
    student, teacher = (tuple(shape[1:]) for shape in (context.student_shape, context.teacher_shape))
    if student != teacher:
        raise InputError(
            f"{method} compares features position by position, but the student's layer has positions {student} and the "
            f"teacher's {teacher}; name layers with the same positions, or layers after global pooling"
        )


_warned: set[str] = set()
_silent = ContextVar("silent", default=False)


def warn_once(message: str) -> None:
    """Log a warning; the same one only once in a process, and none inside `warned_before`."""
    if not _silent.get() and message not in _warned:
        _warned.add(message)
        log.warning(message)


def forget_warnings() -> None:
    """Let `warn_once` say again what it has said: a new study begins."""
    _warned.clear()


@contextmanager
def warned_before() -> Iterator[None]:
    """Log no warnings of `warn_once` in the block: a study says them before its hundreds of trainings."""
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Initial weights made in the block are those of the seed; the global random state is restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
