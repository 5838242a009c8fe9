"""Sampling of Gaussian pairs: for any world, and as the published runs did from their seeds."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mfh.errors import InputError
from mfh.gaussian.worlds import World

Array = NDArray[np.float64]

#: The published recipe draws this many coefficients first, however many it uses.
_PUBLISHED_COEFFICIENTS = 500


class _NormalSource(Protocol):
    """What `numpy.random.RandomState` and `numpy.random.Generator` have in common here."""

    def standard_normal(self, size: tuple[int, ...], /) -> Array: ...


@dataclass(frozen=True)
class Draw:
    """Samples before they are laid out into modalities. One draw serves every world of a sweep.

    Args:
        decisive: Decisive inputs, (n, num_decisive).
        teacher_noise: Values of the teacher's inputs that carry nothing decisive, (n, teacher_dim).
        student_noise: The same for the student, (n, student_dim).
        target: Labels 0.0 or 1.0, (n,).
    """

    decisive: Array
    teacher_noise: Array
    student_noise: Array
    target: Array

    def teacher_inputs(self, world: World) -> Array:
        """The teacher's inputs in a world, (n, teacher_dim): noise, with the decisive inputs in their places."""
        inputs = self.teacher_noise.copy()
        start = world.teacher_start
        inputs[:, start : start + len(world.teacher)] = self.decisive[:, list(world.teacher)]
        return inputs

    def student_inputs(self, world: World) -> Array:
        """The student's inputs in a world, (n, student_dim): noise, with the decisive inputs first."""
        inputs = self.student_noise.copy()
        inputs[:, : len(world.student)] = self.decisive[:, list(world.student)]
        return inputs


@dataclass(frozen=True)
class Pairs:
    """Paired samples of one split.

    Args:
        teacher_inputs: The teacher's inputs, (n, teacher_dim).
        student_inputs: The student's inputs, (n, student_dim).
        target: Labels 0.0 or 1.0, (n,).
    """

    teacher_inputs: Array
    student_inputs: Array
    target: Array


def sample(
    world: World,
    *,
    num_train: int = 200,
    num_test: int = 1000,
    seed: int | np.random.Generator = 0,
    equal_coefficients: bool = False,
) -> tuple[Pairs, Pairs]:
    """Draw a training and a test split of a world.

    All inputs are independent standard normals. The label is 1 where the dot product of the coefficients and the
    decisive inputs is positive (Xue et al. 2023, section 4.1, after Lopez-Paz et al. 2016).

    Args:
        world: What each modality carries, see `World` and `world_of`.
        num_train: Number of training pairs.
        num_test: Number of test pairs.
        seed: Seed, or a generator, which is advanced.
        equal_coefficients: Whether all coefficients are 1. False draws them from a standard normal.

    Raises:
        InputError: A number of pairs is below 1.

    Example:
        >>> from mfh.gaussian import world_of
        >>> from mfh.venn import ModalityVenn
        >>> train, test = sample(world_of(ModalityVenn(general=3, student_only=2)), num_train=20)
        >>> train.student_inputs.shape, test.teacher_inputs.shape
        ((20, 50), (1000, 50))
    """
    for name, number in (("num_train", num_train), ("num_test", num_test)):
        if number < 1:
            raise InputError(f"{name} is {number}; at least 1 pair is needed")
    generator = np.random.default_rng(seed)
    coefficients = np.ones(world.num_decisive)
    if not equal_coefficients:
        coefficients = generator.standard_normal(world.num_decisive)
    splits = []
    for num_samples in (num_train, num_test):
        draw = _draw(generator, num_samples, world, coefficients, student_first=True)
        splits.append(Pairs(draw.teacher_inputs(world), draw.student_inputs(world), draw.target))
    return splits[0], splits[1]


def published_sweep(seed: int, world: World, num_train: int, num_test: int) -> tuple[Draw, Draw]:
    """Training and test draw of the published sweeps (vary gamma, vary alpha) for one seed.

    A legacy generator with `seed` draws 500 coefficients, then the training data. Another one with `seed + 1` draws the
    test data. Each draw makes the decisive inputs, then the student's noise, then the teacher's noise. The test draw
    of a seed and the coefficients and training draw of the next seed therefore come from the same stream, at different
    offsets: the seeds of a run are nearly but not strictly independent.
    """
    generator = np.random.RandomState(seed)
    coefficients = generator.standard_normal((max(_PUBLISHED_COEFFICIENTS, world.num_decisive),))
    coefficients = coefficients[: world.num_decisive]
    train = _draw(generator, num_train, world, coefficients, student_first=True)
    generator = np.random.RandomState(seed + 1)
    return train, _draw(generator, num_test, world, coefficients, student_first=True)


def published_modification(seed: int, world: World, num_train: int, num_test: int) -> tuple[Draw, Draw, Draw]:
    """First training draw, test draw and fresh training draw of the published Table 2 for one seed.

    One legacy generator with `seed` (42 for the first run) makes all draws, and all coefficients are 1. Each draw makes
    the decisive inputs, then the teacher's noise, then the student's noise.
    """
    generator = np.random.RandomState(seed)
    coefficients = np.ones(world.num_decisive)
    first, test, fresh = (
        _draw(generator, num_samples, world, coefficients, student_first=False)
        for num_samples in (num_train, num_test, num_train)
    )
    return first, test, fresh


def _draw(
    generator: _NormalSource, num_samples: int, world: World, coefficients: Array, *, student_first: bool
) -> Draw:
    decisive = generator.standard_normal((num_samples, world.num_decisive))
    dims = [world.student_dim, world.teacher_dim] if student_first else [world.teacher_dim, world.student_dim]
    noise = [generator.standard_normal((num_samples, dim)) for dim in dims]
    student_noise, teacher_noise = noise if student_first else reversed(noise)
    return Draw(decisive, teacher_noise, student_noise, (decisive @ coefficients > 0).astype(np.float64))
