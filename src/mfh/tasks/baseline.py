"""The linear baseline: what scikit-learn reaches on the student's inputs and the same labels, without any network."""

import warnings
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
    """The metric of a linear model of the student's inputs.

    Classes get a logistic regression, several labels one for each, numbers a ridge regression. Inputs are flattened and
    standardised by the labelled training pairs, which also train the model. The strength of regularisation is chosen by
    five-fold cross-validation on them.

    Args:
        task: The task. Its student's input is one tensor, or nested tensors, which are joined.
        seed: Seed of the folds.
        split: Split to measure on.

    Returns:
        The task's own metric.

    Raises:
        InputError: The problem is dense prediction, or inputs have different sizes.
    """
    inputs, target = _table(task, "train")
    test_inputs, test_target = _table(task, split)
    if target.ndim > (1 if task.problem.categorical else 2):
        raise InputError(f"the linear baseline knows no {task.problem.name}; leave it out for task {task.name!r}")
    known = task.problem.known(target).numpy()
    if target.ndim == 1:
        num_classes = int(max(target.max(), test_target.max())) + 1
        outputs = _logits(inputs, target.numpy(), test_inputs, num_classes, seed)
    else:
        outputs = _outputs(inputs, target.numpy(), known, test_inputs, seed)
    return float(task.problem.metric.of(torch.from_numpy(outputs).float(), test_target))


def _table(task: Task, split: str) -> tuple[NDArray[np.float64], Tensor]:
    """The student's inputs of a split as vectors (N, F), and the targets."""
    dataset = getattr(task, split)
    batch = fetch(dataset, range(len(dataset)))
    parts = [part.reshape(len(part), -1).double() for part in tensors(batch.student_input)]
    return torch.cat(parts, dim=1).numpy(), batch.target


def _outputs(
    inputs: NDArray[np.float64],
    target: NDArray[Any],
    known: NDArray[np.bool_],
    test_inputs: NDArray[np.float64],
    seed: int,
) -> NDArray[np.float64]:
    """What the linear model says of the test split for targets (N, K), as logits or numbers (N, K)."""
    if np.isin(target[known], (0, 1)).all():
        each = [
            _logits(inputs[rows], column[rows].astype(np.int64), test_inputs, 2, seed)
            for column, rows in zip(target.T, known.T, strict=True)
        ]
        return np.stack([logits[:, 1] - logits[:, 0] for logits in each], axis=1)
    from sklearn.linear_model import Ridge

    model = _fitted(Ridge(), {"alpha": 1 / _CHOICES}, inputs, target, _FOLDS, seed)
    return np.asarray(model.predict(test_inputs)).reshape(len(test_inputs), -1)


def _logits(
    inputs: NDArray[np.float64], target: NDArray[Any], test_inputs: NDArray[np.float64], num_classes: int, seed: int
) -> NDArray[np.float64]:
    """Logits of a logistic regression; those of classes that training lacks are below all others."""
    from sklearn.linear_model import LogisticRegression

    logits = np.full((len(test_inputs), num_classes), _NEVER)
    present, counts = np.unique(target, return_counts=True)
    if len(present) < 2:
        logits[:, present] = 0
        return logits
    model = _fitted(LogisticRegression(max_iter=300), {"C": _CHOICES}, inputs, target, min(_FOLDS, counts.min()), seed)
    scores = model.decision_function(test_inputs)
    logits[:, present] = np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores
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
    num_folds = min(num_folds, len(inputs))
    if num_folds >= 2:
        kind = StratifiedKFold if target.ndim == 1 else KFold
        name = type(model).__name__.lower()
        grid = {f"{name}__{parameter}": values for parameter, values in choices.items()}
        pipeline = GridSearchCV(pipeline, grid, cv=kind(num_folds, shuffle=True, random_state=seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the weakest regularisation, which is not chosen then
        return pipeline.fit(inputs, target)
