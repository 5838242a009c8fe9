"""The linear baseline: what scikit-learn reaches on the student's inputs and the same labels, without any network."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfh.data.pairs import fetch, tensors
from mfh.errors import InputError
from mfh.tasks.splits import Split
from mfh.tasks.task import Task

#: Inverse strengths of regularisation to choose from, and for ridge regression the strengths.
_CHOICES = np.logspace(-3, 1, 5)
_FOLDS = 5

#: Logit of a class that no training pair has.
_NEVER = -1e9


def linear_baseline(task: Task, seed: int = 0, split: Split = "test") -> float:
    """The metric of a linear model of the student's inputs on one split; see `linear_baselines`.

    Args:
        task: The task.
        seed: Seed of the folds.
        split: Split to measure on.
    """
    return linear_baselines(task, [split], seed)[split]


def linear_baselines(task: Task, splits: Sequence[Split], seed: int = 0) -> dict[Split, float]:
    """The metric of a linear model of the student's inputs, fitted once, on several splits.

    Classes get a logistic regression, several labels one for each, numbers a ridge regression. Inputs are flattened and
    standardised by the labelled training pairs, which also train the model. The strength of regularisation is chosen by
    five-fold cross-validation on them.

    Args:
        task: The task. Its student's input is one tensor, or nested tensors, which are joined.
        splits: Splits to measure on.
        seed: Seed of the folds.

    Returns:
        The task's own metric by split.

    Raises:
        InputError: The problem is dense prediction, or inputs have different sizes.
    """
    inputs, target = _table(task, "train")
    if target.ndim > (1 if task.problem.categorical else 2):
        raise InputError(f"the linear baseline knows no {task.problem.name}; leave it out for task {task.name!r}")
    known = task.problem.known(target).numpy()
    if target.ndim == 1:
        predict = _classifier(inputs, target.numpy(), seed)
    else:
        numbers = task.problem.name == "regression" or not np.isin(target.numpy()[known], (0, 1)).all()
        predict = (_regression if numbers else _labels)(inputs, target.numpy(), known, seed)
    found: dict[Split, float] = {}
    for split in splits:
        test_inputs, test_target = _table(task, split)
        num_classes = int(max(target.max(), test_target.max())) + 1 if target.ndim == 1 else target.shape[1]
        outputs = torch.from_numpy(predict(test_inputs, num_classes)).float()
        found[split] = float(task.problem.metric.of(outputs, test_target))
    return found


def _table(task: Task, split: str) -> tuple[NDArray[np.float64], Tensor]:
    """The student's inputs of a split as vectors (N, F), and the targets."""
    dataset = getattr(task, split)
    batch = fetch(dataset, range(len(dataset)))
    parts = [part.reshape(len(part), -1).double() for part in tensors(batch.student_input)]
    return torch.cat(parts, dim=1).numpy(), batch.target


def _labels(
    inputs: NDArray[np.float64], target: NDArray[Any], known: NDArray[np.bool_], seed: int
) -> Callable[[NDArray[np.float64], int], NDArray[np.float64]]:
    """A logistic regression for each of several labels (N, K): a function from inputs to logits (N, K)."""
    each = [
        _classifier(inputs[rows], column[rows].astype(np.int64), seed)
        for column, rows in zip(target.T, known.T, strict=True)
    ]

    def logits(rows: NDArray[np.float64], _: int) -> NDArray[np.float64]:
        return np.stack([found[:, 1] - found[:, 0] for found in (one(rows, 2) for one in each)], axis=1)

    return logits


def _regression(
    inputs: NDArray[np.float64], target: NDArray[Any], known: NDArray[np.bool_], seed: int
) -> Callable[[NDArray[np.float64], int], NDArray[np.float64]]:
    """A ridge regression of numbers (N, K), each column by the rows that have it: a function from inputs to numbers."""
    from sklearn.linear_model import Ridge

    def fitted(rows: NDArray[np.bool_], columns: NDArray[Any]) -> Any:
        return _fitted(Ridge(), {"alpha": 1 / _CHOICES}, inputs[rows], columns[rows], _FOLDS, seed)

    if known.all():
        models = [fitted(known[:, 0], target)]
    else:
        models = [fitted(rows, target[:, [k]]) if rows.any() else None for k, rows in enumerate(known.T)]

    def numbers(rows: NDArray[np.float64], _: int) -> NDArray[np.float64]:
        return np.column_stack([np.zeros(len(rows)) if model is None else model.predict(rows) for model in models])

    return numbers


def _classifier(
    inputs: NDArray[np.float64], target: NDArray[Any], seed: int
) -> Callable[[NDArray[np.float64], int], NDArray[np.float64]]:
    """A logistic regression: a function from inputs and a number of classes K to logits (N, K).

    Those of classes that training lacks are below all others.
    """
    from sklearn.linear_model import LogisticRegression

    present, counts = np.unique(target, return_counts=True)
    choices, num_folds = {"C": _CHOICES}, min(_FOLDS, counts.min(initial=_FOLDS))
    several = len(present) > 1
    model = _fitted(LogisticRegression(max_iter=300), choices, inputs, target, num_folds, seed) if several else None

    def logits(rows: NDArray[np.float64], num_classes: int) -> NDArray[np.float64]:
        found = np.full((len(rows), num_classes), _NEVER)
        scores = np.zeros((len(rows), 1)) if model is None else model.decision_function(rows)
        found[:, present] = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
        return found

    return logits


def _fitted(
    model: Any, choices: dict[str, Any], inputs: NDArray[np.float64], target: NDArray[Any], num_folds: int, seed: int
) -> Any:
    """A model on standardised inputs, its regularisation chosen by cross-validation where there are folds for it."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pipeline = make_pipeline(StandardScaler(), model)
    # The measure of a regression needs two rows in each fold.
    num_folds = min(num_folds, len(inputs) if target.ndim == 1 else len(inputs) // 2)
    if num_folds >= 2:
        kind = StratifiedKFold if target.ndim == 1 else KFold
        name = type(model).__name__.lower()
        grid = {f"{name}__{parameter}": values for parameter, values in choices.items()}
        pipeline = GridSearchCV(pipeline, grid, cv=kind(num_folds, shuffle=True, random_state=seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the weakest regularisation, which is not chosen then
        return pipeline.fit(inputs, target)
