"""A linear head on a frozen model's embeddings: a teacher that is fitted without training steps."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mfh.data.epochs import PairLoader
from mfh.data.pairs import only_role
from mfh.errors import InputError
from mfh.networks.standardise import Standardise
from mfh.problems.problem import Problem
from mfh.training.checks import check_targets, where

#: Strengths of regularisation that are tried, relative to 1 / number of samples.
STRENGTHS = tuple(float(10.0**power) for power in range(-4, 5))


class EmbeddingHead(nn.Module):
    """A linear classifier, or regression, on standardised embeddings.

    Its layer "embedding" returns the standardised embedding, one channel for each number.

    Args:
        width: Length D of an embedding.
        outputs: Number of outputs K.
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.embedding = Standardise(torch.zeros(width), torch.ones(width))
        self.head = nn.Linear(width, outputs)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(N, K) logits of (N, D) embeddings."""
        logits: Tensor = self.head(self.embedding(embeddings.to(self.head.weight.dtype)))
        return logits


def fit_head(head: EmbeddingHead, train: Any, val: Any, problem: Problem) -> float:
    """Fit a head to labels, with the strength of regularisation that is best on validation data.

    One class per sample: multinomial logistic regression. Several: one logistic regression for each class. Numbers:
    ridge regression in closed form.

    Args:
        head: The head, which is changed in place.
        train: A map-style data set of (embedding, ..., target).
        val: The same for validation.
        problem: What targets mean.

    Returns:
        The strength that was chosen: one of `STRENGTHS`.

    Raises:
        InputError: The problem has no linear head, a target is wrong, or an embedding is not finite.
    """
    outputs = head.head.out_features
    if problem.name not in ("classification", "multi-label classification", "regression"):
        raise InputError(f"a linear head on embeddings cannot be fitted to {problem.name}; give a teacher network")
    (x, y), (x_val, y_val) = (
        _arrays(dataset, split, problem, outputs) for dataset, split in ((train, "train"), (val, "val"))
    )
    known = problem.known(torch.from_numpy(y)).numpy()
    standard = Standardise.of(torch.from_numpy(x))
    with torch.no_grad():
        head.embedding.mean.copy_(standard.mean)
        head.embedding.std.copy_(standard.std)
    z, z_val = (standard(torch.from_numpy(part)).numpy() for part in (x, x_val))
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for strength in STRENGTHS:
        weight, bias = _solve(z, y, known, strength, problem, outputs)
        value = problem.metric.of(torch.from_numpy(z_val @ weight.T + bias).float(), torch.from_numpy(y_val))
        rank = value if problem.metric.higher_is_better else -value
        if best is None or rank > best[0]:
            best = rank, strength, weight, bias
    assert best is not None
    with torch.no_grad():
        head.head.weight.copy_(torch.from_numpy(best[2]))
        head.head.bias.copy_(torch.from_numpy(best[3]))
    return best[1]


def _solve(
    z: np.ndarray, y: np.ndarray, known: np.ndarray, strength: float, problem: Problem, outputs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, D) and intercepts (K,) for one strength of regularisation, from the entries of y that are known."""
    if problem.name == "classification":
        return _classes(z[known], y[known], strength, outputs)
    if problem.name == "regression" and known.all():
        return _numbers(z, y, strength)
    weight, bias = np.zeros((outputs, z.shape[1])), np.zeros(outputs)  # as they stay where nothing is known
    for k in range(outputs):
        rows = known[:, k]
        if rows.any():
            one = _numbers if problem.name == "regression" else _label
            weight[k], bias[k] = one(z[rows], y[rows, k], strength)
    return weight, bias


def _classes(z: np.ndarray, y: np.ndarray, strength: float, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression

    weight, bias = np.zeros((outputs, z.shape[1])), np.full(outputs, -20.0)
    classes = np.unique(y)
    if len(classes) == 1:
        bias[classes[0]] = 0.0
        return weight, bias
    model = LogisticRegression(C=1 / (strength * len(z)), max_iter=1000).fit(z, y)
    if len(classes) == 2:  # one row of differences
        weight[classes[1]], bias[classes] = model.coef_[0], (0.0, model.intercept_[0])
    else:
        weight[classes], bias[classes] = model.coef_, model.intercept_
    return weight, bias


def _label(z: np.ndarray, y: np.ndarray, strength: float) -> tuple[Any, Any]:
    """Logistic regression for one class that may be there or not."""
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(y)) == 1:
        return 0.0, 20.0 if y[0] else -20.0
    model = LogisticRegression(C=1 / (strength * len(z)), max_iter=1000).fit(z, y)
    return model.coef_[0], model.intercept_[0]


def _numbers(z: np.ndarray, y: np.ndarray, strength: float) -> tuple[Any, Any]:
    """Ridge regression."""
    from sklearn.linear_model import Ridge

    ridge = Ridge(alpha=strength * len(z)).fit(z, y)
    return (
        (ridge.coef_, ridge.intercept_)
        if y.ndim == 1
        else (np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_))
    )


def _arrays(dataset: Any, split: str, problem: Problem, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) and targets (N, ...), which are checked."""
    batches = list(PairLoader(only_role(dataset, "teacher")))
    x, y = torch.cat([batch.teacher_input for batch in batches]).double(), torch.cat([b.target for b in batches])
    wrong = ~torch.isfinite(x).all(1)
    if wrong.any():
        raise InputError(f"{where(dataset, split, [int(wrong.nonzero()[0])])}: the embedding is NaN or infinite")
    logits = torch.empty((len(y), outputs), device="meta")
    check_targets(problem, logits, y, split, range(len(y)), dataset, training=split == "train")
    return x.numpy(), y.numpy()
