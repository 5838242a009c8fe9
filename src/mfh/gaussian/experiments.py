"""The three synthetic experiments of the paper. Each returns one tidy table."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mfh.gaussian.saliency import input_saliency
from mfh.gaussian.sampling import published_modification, published_sweep
from mfh.gaussian.settings import ModifyGamma, Training, VaryAlpha, VaryGamma
from mfh.gaussian.solver import Classifiers, Device, fit, fit_jointly, initial_classifiers
from mfh.gaussian.worlds import World
from mfh.values import NumSeeds, RandomSeed, checked

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Result = TypeVar("Result")

#: Shows how far an experiment is. Called as progress(seeds_done, num_seeds).
Progress = Callable[[int, int], None]

#: Columns of the tidy table.
COLUMNS = ("experiment", "alpha", "beta", "gamma", "seed", "role", "arm", "accuracy")

#: Random streams of initial weights and random inputs, independent of the data and of each other.
_STREAM = {"vary-gamma": 1, "vary-alpha": 2, "modify-gamma": 3, "algorithm-1": 4}


def vary_gamma(
    num_seeds: int = 10,
    *,
    first_seed: int = 0,
    settings: VaryGamma | None = None,
    device: Device = "auto",
    chunk_size: int = 20,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Accuracy with and without a teacher as more and more decisive inputs are shared (Figure 2).

    Args:
        num_seeds: Number of seeds. Each seed draws all data anew.
        first_seed: First of the consecutive seeds. The published run used 0 to 9.
        settings: Sizes and training (default: the published ones).
        device: Device to train on, see `mfh.gaussian.fit`.
        chunk_size: Number of seeds held in memory together. Results do not depend on it.
        progress: Called as progress(seeds_done, num_seeds).

    Returns:
        One row per measurement: experiment, alpha, beta, gamma (of the setting), seed, role ("teacher" or
        "student"), arm ("no-kd" or "regular") and accuracy on the test split after the last step, in percent.
        Students without a teacher do not depend on the setting: they are trained once and listed in every setting.

    Raises:
        InputError: A setting is out of range.

    Example:
        >>> frame = vary_gamma(2, settings=VaryGamma(overlaps=(0, 10), steps=5))
        >>> len(frame), sorted(frame["gamma"].unique().tolist())
        (12, [0.0, 1.0])
    """
    chunk = partial(_sweep, "vary-gamma", settings or VaryGamma(), device)
    return _collect(chunk, num_seeds, first_seed, chunk_size, progress)


def vary_alpha(
    num_seeds: int = 10,
    *,
    first_seed: int = 0,
    settings: VaryAlpha | None = None,
    device: Device = "auto",
    chunk_size: int = 20,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Accuracy with and without a teacher as the teacher carries more and more that the student lacks (Figure 3).

    Arguments, results and errors are those of `vary_gamma`.

    Example:
        >>> frame = vary_alpha(1, settings=VaryAlpha(teacher_only=(0, 40), steps=5))
        >>> sorted(frame["alpha"].unique().tolist())
        [0.0, 0.8]
    """
    chunk = partial(_sweep, "vary-alpha", settings or VaryAlpha(), device)
    return _collect(chunk, num_seeds, first_seed, chunk_size, progress)


def modify_gamma(
    num_seeds: int = 10,
    *,
    first_seed: int = 42,
    settings: ModifyGamma | None = None,
    device: Device = "auto",
    chunk_size: int = 20,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Accuracy of students whose teachers lost some of their inputs (Table 2).

    The "regular" teacher reads all inputs. With g general inputs in the setting, three other teachers are retrained on
    g inputs only: "random" ones, the "true-general" ones, or those that "algorithm-1" ranks as most general. Algorithm
    1 runs on a first training draw. Every teacher and student is then trained on a fresh one.

    Args:
        num_seeds: Number of seeds. Each seed draws all data anew.
        first_seed: First of the consecutive seeds. The published runs started at 42.
        settings: Sizes, training and the permutations of Algorithm 1 (default: the published ones).
        device: Device to train on, see `mfh.gaussian.fit`.
        chunk_size: Number of seeds held in memory together. Results do not depend on it.
        progress: Called as progress(seeds_done, num_seeds).

    Returns:
        The columns of `vary_gamma`. alpha, beta and gamma are those of the setting, the same for all arms.
        `frame.attrs["general_found"]` lists, for every setting and seed, how many of the general inputs Algorithm 1
        kept: records of alpha, beta, gamma, seed, general, found.

    Raises:
        InputError: A setting is out of range.

    Example:
        >>> frame = modify_gamma(1, settings=ModifyGamma(counts=((10, 10),), steps=5))
        >>> sorted(frame["arm"].unique().tolist())
        ['algorithm-1', 'no-kd', 'random', 'regular', 'true-general']
    """
    chunk = partial(_modification, settings or ModifyGamma(), device)
    return _collect(chunk, num_seeds, first_seed, chunk_size, progress)


def _collect(
    chunk: Callable[[range], tuple[list[tuple[Any, ...]], list[dict[str, Any]]]],
    num_seeds: int,
    first_seed: int,
    chunk_size: int,
    progress: Progress | None,
) -> "pd.DataFrame":
    """Run an experiment on one chunk of seeds after the other."""
    checked("num_seeds", num_seeds, NumSeeds)
    checked("first_seed", first_seed, RandomSeed)
    checked("chunk_size", chunk_size, NumSeeds)
    import pandas as pd

    rows, found = [], []
    for start in range(0, num_seeds, chunk_size):
        stop = min(start + chunk_size, num_seeds)
        new_rows, new_found = chunk(range(first_seed + start, first_seed + stop))
        rows += new_rows
        found += new_found
        if progress is not None:
            progress(stop, num_seeds)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    if found:
        frame.attrs["general_found"] = found
    return frame


def _sweep(
    name: str, settings: VaryGamma | VaryAlpha, device: Device, seeds: range
) -> tuple[list[tuple[Any, ...]], list[dict[str, Any]]]:
    worlds = settings.worlds
    num_worlds = len(worlds)
    train_fit = _fitting(settings, device)
    draw = partial(published_sweep, world=worlds[0], num_train=settings.num_train, num_test=settings.num_test)
    draws = _in_threads(draw, seeds)
    target, test_target = (np.stack([pair[split].target for pair in draws]) for split in (0, 1))

    # One group per seed and world, because the teachers' inputs differ. A seed's worlds start alike.
    teacher_start, student_start = _starts(name, seeds, settings.teacher_dim, settings.student_dim)
    teacher_inputs, teacher_test = (
        np.stack([pair[split].teacher_inputs(world) for pair in draws for world in worlds]) for split in (0, 1)
    )
    teachers = train_fit(teacher_inputs, np.repeat(target, num_worlds, axis=0), _repeated(teacher_start, num_worlds))
    teacher_accuracy = teachers.accuracy(teacher_test, np.repeat(test_target, num_worlds, axis=0))
    probability = teachers.probability(teacher_inputs).reshape(len(seeds), num_worlds, -1)

    # One group per seed: the students' inputs are the same in all worlds, so a student without a teacher is too.
    student_inputs, student_test = (
        np.stack([pair[split].student_inputs(worlds[0]) for pair in draws]) for split in (0, 1)
    )
    alone = train_fit(student_inputs, target, student_start)
    students = train_fit(student_inputs, target, student_start, teacher_probability=probability)
    alone_accuracy = alone.accuracy(student_test, test_target)[:, 0]
    student_accuracy = students.accuracy(student_test, test_target)

    rows: list[tuple[Any, ...]] = []
    for index, world in enumerate(worlds):
        for place, seed in enumerate(seeds):
            rows += [
                _row(name, world, seed, "teacher", "regular", teacher_accuracy[place * num_worlds + index, 0]),
                _row(name, world, seed, "student", "no-kd", alone_accuracy[place]),
                _row(name, world, seed, "student", "regular", student_accuracy[place, index]),
            ]
    return rows, []


def _modification(
    settings: ModifyGamma, device: Device, seeds: range
) -> tuple[list[tuple[Any, ...]], list[dict[str, Any]]]:
    rows: list[tuple[Any, ...]] = []
    found = []
    for world in settings.worlds:
        new_rows, num_found = _modified_world(world, settings, device, seeds)
        rows += new_rows
        found += [
            {**_fractions(world), "seed": seed, "general": world.venn.general, "found": number}
            for seed, number in zip(seeds, num_found, strict=True)
        ]
    return rows, found


def _modified_world(
    world: World, settings: ModifyGamma, device: Device, seeds: range
) -> tuple[list[tuple[Any, ...]], list[int]]:
    name = "modify-gamma"
    train_fit = _fitting(settings, device)
    draw = partial(published_modification, world=world, num_train=settings.num_train, num_test=settings.num_test)
    draws = _in_threads(draw, seeds)
    first, test, fresh = (
        (
            np.stack([splits[split].teacher_inputs(world) for splits in draws]),
            np.stack([splits[split].student_inputs(world) for splits in draws]),
            np.stack([splits[split].target for splits in draws]),
        )
        for split in range(3)
    )

    kept = _choices(world, _algorithm_1(*first, settings, device, seeds), seeds)
    target, test_target = fresh[2], test[2]
    arms = ["regular", *kept]

    # One group per seed and arm. The modified teachers are narrower, so their initial weights differ.
    (full_start, student_start), (narrow_start, _) = (
        _starts(name, seeds, width, settings.student_dim) for width in (settings.teacher_dim, world.venn.general)
    )
    teacher_accuracy, probability = [], []
    for arm in arms:
        places = kept.get(arm)
        inputs, test_inputs = (
            inputs if places is None else np.take_along_axis(inputs, places[:, None, :], axis=2)
            for inputs in (fresh[0], test[0])
        )
        teachers = train_fit(inputs, target, full_start if places is None else narrow_start)
        teacher_accuracy.append(teachers.accuracy(test_inputs, test_target)[:, 0])
        probability.append(teachers.probability(inputs)[:, 0])

    alone = train_fit(fresh[1], target, student_start)
    students = train_fit(fresh[1], target, student_start, teacher_probability=np.stack(probability, axis=1))
    alone_accuracy = alone.accuracy(test[1], test_target)[:, 0]
    student_accuracy = students.accuracy(test[1], test_target)

    rows: list[tuple[Any, ...]] = []
    for place, seed in enumerate(seeds):
        rows.append(_row(name, world, seed, "student", "no-kd", alone_accuracy[place]))
        for index, arm in enumerate(arms):
            rows += [
                _row(name, world, seed, "teacher", arm, teacher_accuracy[index][place]),
                _row(name, world, seed, "student", arm, student_accuracy[place, index]),
            ]
    is_found = np.isin(kept["algorithm-1"], world.general_places)
    return rows, [int(number) for number in is_found.sum(axis=1)]


def _algorithm_1(
    teacher_inputs: Array, student_inputs: Array, target: Array, settings: ModifyGamma, device: Device, seeds: range
) -> Array:
    """Saliency of every teacher input, (S, teacher_dim), from networks trained jointly on these data."""
    teacher_start, student_start = _starts("algorithm-1", seeds, settings.teacher_dim, settings.student_dim)
    teachers, students = fit_jointly(
        teacher_inputs,
        student_inputs,
        target,
        teacher_start,
        student_start,
        steps=settings.steps,
        learning_rate=settings.joint_learning_rate,
        momentum=settings.joint_momentum,
        device=device,
    )
    student_logits = students.logits(student_inputs)[:, 0]

    def scores(place: int) -> Array:
        return input_saliency(
            teachers.weight[place, 0],
            teachers.bias[place, 0],
            teacher_inputs[place],
            student_logits[place],
            permutations=settings.permutations,
            seed=np.random.default_rng([seeds[place], _STREAM["algorithm-1"], 1]),
        )

    return np.stack(_in_threads(scores, range(len(seeds))))


def _choices(world: World, scores: Array, seeds: range) -> dict[str, NDArray[np.intp]]:
    """Places of the inputs that each modified teacher keeps, (S, g): as many as are general, chosen in three ways."""
    num_kept, dim = world.venn.general, world.teacher_dim
    random = [np.random.default_rng([seed, _STREAM["modify-gamma"], 1]).permutation(dim) for seed in seeds]
    return {
        "random": np.stack(random)[:, :num_kept],
        "true-general": np.tile(world.general_places, (len(seeds), 1)),
        "algorithm-1": np.argsort(-scores, axis=1, kind="stable")[:, :num_kept],
    }


def _fitting(settings: Training, device: Device) -> Callable[..., Classifiers]:
    return partial(
        fit,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        label_weight=settings.label_weight,
        teacher_weight=settings.teacher_weight,
        reduction=settings.reduction,
        device=device,
    )


def _starts(name: str, seeds: range, teacher_dim: int, student_dim: int) -> tuple[Classifiers, Classifiers]:
    """Initial teachers and students, G = S and Q = 1. All arms of a seed start from the same weights."""
    teachers, students = [], []
    for seed in seeds:
        generator = np.random.default_rng([seed, _STREAM[name]])
        students.append(initial_classifiers(generator, student_dim))
        teachers.append(initial_classifiers(generator, teacher_dim))
    return _joined(teachers), _joined(students)


def _joined(parts: list[Classifiers]) -> Classifiers:
    return Classifiers(np.concatenate([p.weight for p in parts]), np.concatenate([p.bias for p in parts]))


def _repeated(classifiers: Classifiers, times: int) -> Classifiers:
    return Classifiers(np.repeat(classifiers.weight, times, axis=0), np.repeat(classifiers.bias, times, axis=0))


def _in_threads(function: Callable[[int], Result], items: range) -> list[Result]:
    """The function's result for every item, in order. NumPy's samplers let threads run in parallel."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


def _fractions(world: World) -> dict[str, float]:
    venn = world.venn
    return {"alpha": venn.alpha, "beta": venn.beta, "gamma": venn.gamma}


def _row(name: str, world: World, seed: int, role: str, arm: str, accuracy: Any) -> tuple[Any, ...]:
    return (name, *_fractions(world).values(), seed, role, arm, float(accuracy))
