"""Split the rows of one finite data set by seed: stratified by class, or by group. Nothing here needs torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfh.errors import InputError
from mfh.tasks.splits import Split

#: How often groups are drawn again until training has every class.
_TRIES = 1000


def stratified_order(classes: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """A random order of rows in which every beginning has nearly the class shares of the whole.

    The first K rows hold one row of each of the K classes. Shorter beginnings lie within longer ones, so label budgets
    that are taken from one order are nested.

    Args:
        classes: Class index of each row, (N,).
        generator: Draws the order.

    Returns:
        A permutation of 0 to N - 1.

    Example:
        >>> order = stratified_order(np.array([0] * 8 + [1] * 4), np.random.default_rng(0))
        >>> sorted(order[:6].tolist()) == sorted(set(order[:6].tolist())), int((order[:6] >= 8).sum())
        (True, 2)
    """
    shuffled = generator.permutation(len(classes))
    before, size = within_classes(classes, shuffled)
    return shuffled[np.argsort(before / size, kind="stable")]


def within_classes(classes: NDArray[np.int64], order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each row of an order stands among the rows of its class.

    Args:
        classes: Class index of each row, (N,).
        order: A permutation of 0 to N - 1.

    Returns:
        For each position of the order, (N,): the number of rows of the same class before it, and of all rows of this
        class.

    Example:
        >>> within_classes(np.array([0, 1, 0]), np.array([2, 1, 0]))
        (array([0, 0, 1]), array([2, 1, 2]))
    """
    before, size = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    for one in np.unique(classes):
        here = classes[order] == one
        size[here] = np.count_nonzero(here)
        before[here] = np.arange(np.count_nonzero(here))
    return before, size


def split_rows(
    classes: NDArray[np.int64], num_val: int, num_test: int, generator: np.random.Generator
) -> dict[Split, NDArray[np.int64]]:
    """Split rows at random, stratified by class.

    Args:
        classes: Class index of each row, (N,).
        num_val: Number of validation rows.
        num_test: Number of test rows.
        generator: Draws the split.

    Returns:
        Rows of each split, sorted. Training has the rest.

    Raises:
        InputError: Nothing is left for one of the splits.
    """
    if min(num_val, num_test) < 1 or num_val + num_test >= len(classes):
        raise InputError(
            f"{len(classes)} labelled pairs cannot be split into {num_val} for validation, {num_test} for testing and "
            "the rest for training; each split needs at least one"
        )
    rows = np.arange(len(classes))
    parts: dict[Split, NDArray[np.int64]] = {}
    sizes: tuple[tuple[Split, int], ...] = (("val", num_val), ("test", num_test))
    for split, size in sizes:
        chosen = stratified_order(classes[rows], generator)[:size]
        parts[split] = np.sort(rows[chosen])
        rows = np.delete(rows, chosen)
    return {"train": rows, **parts}


def split_groups(
    groups: NDArray[Any], needed: NDArray[np.int64], num_val: int, num_test: int, generator: np.random.Generator
) -> dict[Split, NDArray[np.int64]]:
    """Split rows so that no group is in two splits.

    Groups are drawn again until every class occurs in training.

    Args:
        groups: Group of each row, (N,).
        needed: Class index of each row, (N,); -1 for a row without a label.
        num_val: Number of validation groups.
        num_test: Number of test groups.
        generator: Draws the split.

    Returns:
        Rows of each split, sorted. Training has the rest.

    Raises:
        InputError: There are too few groups with labels, or no draw leaves every class in training.
    """
    labelled = np.unique(groups[needed >= 0])  # the others could only leave a split without labels
    if min(num_val, num_test) < 1 or num_val + num_test >= len(labelled):
        raise InputError(
            f"{len(labelled)} groups with labels cannot be split into {num_val} for validation, {num_test} for testing "
            "and the rest for training; each split needs at least one group"
        )
    wanted = np.unique(needed[needed >= 0])
    for _ in range(_TRIES):
        drawn = generator.permutation(labelled)
        val, test = drawn[:num_val], drawn[num_val : num_val + num_test]
        held = np.isin(groups, drawn[: num_val + num_test])
        if len(np.intersect1d(needed[~held], wanted)) == len(wanted):
            return {
                "train": np.flatnonzero(~held),
                "val": np.flatnonzero(np.isin(groups, val)),
                "test": np.flatnonzero(np.isin(groups, test)),
            }
    raise InputError(
        f"no split of the {len(labelled)} groups leaves all {len(wanted)} classes in training; leave rare classes out, "
        "or name the splits yourself"
    )


def names_of(values: Sequence[object] | NDArray[np.generic], limit: int = 5) -> str:
    """The first few values for a message."""
    listed = ", ".join(repr(value.item() if isinstance(value, np.generic) else value) for value in values[:limit])
    return listed + (", ..." if len(values) > limit else "")
