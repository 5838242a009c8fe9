"""Gaussian pairs: the sampler for any world, and the seed recipes of the published runs."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mfh.errors import InputError
from mfh.gaussian.worlds import World

Array = NDArray[np.float64]

#: Coefficients drawn first by the published recipe, however many are used.
_PUBLISHED_COEFFICIENTS = 500


class _NormalSource(Protocol):
    """What `numpy.random.RandomState` and `numpy.random.Generator` have in common here."""

    def standard_normal(self, size: tuple[int, ...], /) -> Array: ...


@dataclass(frozen=True)
class Draw:
    """Samples before they are laid out into modalities; one draw serves every world of a sweep.

    Args:
        decisive: (n, num_decisive) the decisive inputs.
        teacher_noise: (n, teacher_dim) what the teacher sees where it carries nothing decisive.
        student_noise: (n, student_dim) the same for the student.
        target: (n,) the label, 0.0 or 1.0.
    """

    decisive: Array
    teacher_noise: Array
    student_noise: Array
    target: Array

    def teacher_inputs(self, world: World) -> Array:
        """(n, teacher_dim): the noise, with the decisive inputs the teacher carries in their places."""
        inputs = self.teacher_noise.copy()
        start = world.teacher_start
        inputs[:, start : start + len(world.teacher)] = self.decisive[:, list(world.teacher)]
        return inputs

    def student_inputs(self, world: World) -> Array:
        """(n, student_dim): the noise, with the decisive inputs the student carries first."""
        inputs = self.student_noise.copy()
        inputs[:, : len(world.student)] = self.decisive[:, list(world.student)]
        return inputs


@dataclass(frozen=True)
class Pairs:
    """Paired samples of one split.

    Args:
        teacher_inputs: (n, teacher_dim).
        student_inputs: (n, student_dim).
        target: (n,) the label, 0.0 or 1.0.
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

    All inputs are independent standard normals; the label is [a . decisive > 0] (Xue et al. 2023, section 4.1,
    after Lopez-Paz et al. 2016).

    Args:
        world: see `World` and `world_of`.
        num_train: training pairs.
        num_test: test pairs.
        seed: or a generator, which is advanced.
        equal_coefficients: a is all ones instead of standard normal.

    Raises:
        InputError: a number of pairs is below 1.

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

    Legacy generator of `seed`: 500 coefficients, then the training draw; another one of `seed + 1`: the test draw.
    Within a draw: decisive inputs, the student's noise, the teacher's noise. So the test draw of a seed and the
    coefficients and training draw of the next seed are read from the same stream, at different offsets: the
    seeds of a run are nearly but not strictly independent.
    """
    generator = np.random.RandomState(seed)
    coefficients = generator.standard_normal((max(_PUBLISHED_COEFFICIENTS, world.num_decisive),))
    coefficients = coefficients[: world.num_decisive]
    train = _draw(generator, num_train, world, coefficients, student_first=True)
    generator = np.random.RandomState(seed + 1)
    return train, _draw(generator, num_test, world, coefficients, student_first=True)


def published_modification(seed: int, world: World, num_train: int, num_test: int) -> tuple[Draw, Draw, Draw]:
    """First training draw, test draw and fresh training draw of the published Table 2 for one seed.

    One legacy generator of `seed` (42 for the first run), all coefficients one; within a draw: decisive inputs,
    the teacher's noise, the student's noise.
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
