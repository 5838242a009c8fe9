"""Label budgets: a task whose training pairs have lost some of their labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfh.data.epochs import all_targets, generators_kept
from mfh.data.pairs import fetch, groups_of
from mfh.errors import InputError
from mfh.tasks.resplit import within_classes
from mfh.tasks.task import Task


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """Label fractions in ascending order, each once.

    Raises:
        InputError: One of them is no number above 0 and at most 1.
    """
    for fraction in fractions:
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
            raise InputError(f"label fraction is {fraction!r}; choose a share of the labels, above 0 and at most 1")
    return tuple(sorted(set(map(float, fractions))))


def with_label_fraction(task: Task, fraction: float | None, seed: int) -> Task:
    """The same task with a share of its labels; the other training pairs become unlabelled ones.

    Where the training split has `groups` (people, recordings), whole groups keep their labels. Otherwise every class
    keeps the same share, as nearly as whole pairs allow. Smaller shares lie within larger ones of the same seed.

    Args:
        task: The task.
        fraction: Share of the labelled training pairs (or groups) that keep their labels, above 0 and at most 1; None
            keeps all.
        seed: Random seed of the choice.

    Raises:
        InputError: A class would have no label.
    """
    if fraction is None or fraction == 1:
        return task
    count = len(task.train)
    generator = np.random.default_rng([seed % 2**63, count])
    with generators_kept():
        first = fetch(task.train, [0]).target
    single = first.ndim == 1 and not first.is_floating_point()
    classes = np.asarray(all_targets(task.train)) if single else np.zeros(count, int)
    groups = groups_of(task.train)
    if groups is None:
        rows = _by_class(classes, fraction, generator, task)
    else:
        rows = _by_group(groups, classes, fraction, generator)
        lost = np.setdiff1d(classes, classes[rows])
        if len(lost):
            raise InputError(
                f"label fraction {fraction:g} of the {len(np.unique(groups))} groups leaves {_named(lost[0], task)} "
                "without a labelled pair; choose a larger one"
            )
    return task.with_labels(rows.tolist())


def _by_class(classes: NDArray[Any], fraction: float, generator: np.random.Generator, task: Task) -> NDArray[np.int64]:
    order = np.concatenate([generator.permutation(np.flatnonzero(classes == one)) for one in np.unique(classes)])
    before, size = within_classes(classes, order)
    kept = (fraction * size + 0.5).astype(np.int64)
    if not kept.all():
        first = np.flatnonzero(kept == 0)[0]
        if size[first] == len(classes):
            raise InputError(f"label fraction {fraction:g} of {len(classes)} training pairs leaves no labelled pair")
        raise InputError(
            f"label fraction {fraction:g} leaves {_named(classes[order[first]], task)} (of {size[first]} training "
            f"pairs) without a labelled pair; choose at least {0.5 / size[first]:.2g}"
        )
    return np.sort(order[before < kept])


def _by_group(
    groups: NDArray[Any], classes: NDArray[Any], fraction: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    order = generator.permutation(np.unique(groups)).tolist()
    # Groups that bring a class come first, so that few groups (recordings of one class each) hold all classes.
    wanted, seen = len(np.unique(classes)), set[int]()
    first: dict[int, None] = {}
    for group in order:
        if len(seen) == wanted:
            break
        held = set(classes[groups == group].tolist())
        if held - seen:
            first[group] = None
            seen |= held
    order = [*first, *(group for group in order if group not in first)]
    number = max(1, int(fraction * len(order) + 0.5))
    return np.flatnonzero(np.isin(groups, order[:number]))


def _named(index: Any, task: Task) -> str:
    """A class by number and name."""
    names, number = task.class_names, int(index)
    return f"class {number}" + (f" ({names[number]})" if number < len(names) else "")
