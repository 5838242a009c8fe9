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
        InputError: The problem has no linear head, or an embedding is not finite.
    """
    (x, y), (x_val, y_val) = _arrays(train, "train"), _arrays(val, "val")
    standard = Standardise.of(torch.from_numpy(x))
    with torch.no_grad():
        head.embedding.mean.copy_(standard.mean)
        head.embedding.std.copy_(standard.std)
    z, z_val = (standard(torch.from_numpy(part)).numpy() for part in (x, x_val))
    best: tuple[float, float, np.ndarray, np.ndarray] | None = None
    for strength in STRENGTHS:
        weight, bias = _solve(z, y, strength, problem, head.head.out_features)
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
    z: np.ndarray, y: np.ndarray, strength: float, problem: Problem, outputs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (K, D) and intercepts (K,) for one strength of regularisation."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if problem.name == "classification":
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
    if problem.name == "multi-label classification":
        weight, bias = np.zeros((outputs, z.shape[1])), np.zeros(outputs)
        for k in range(outputs):
            if len(np.unique(y[:, k])) == 2:
                model = LogisticRegression(C=1 / (strength * len(z)), max_iter=1000).fit(z, y[:, k])
                weight[k], bias[k] = model.coef_[0], model.intercept_[0]
            else:
                bias[k] = 20.0 if y[0, k] else -20.0
        return weight, bias
    if problem.name == "regression" and y.ndim == 2:
        ridge = Ridge(alpha=strength * len(z)).fit(z, y)
        return np.atleast_2d(ridge.coef_), np.atleast_1d(ridge.intercept_)
    raise InputError(f"a linear head on embeddings cannot be fitted to {problem.name}; give a teacher network")


def _arrays(dataset: Any, split: str) -> tuple[np.ndarray, np.ndarray]:
    batches = list(PairLoader(only_role(dataset, "teacher")))
    x = torch.cat([batch.teacher_input for batch in batches]).double()
    wrong = ~torch.isfinite(x).all(1)
    if wrong.any():
        raise InputError(f"{split} split, sample {int(wrong.nonzero()[0])}: the embedding is NaN or infinite")
    return x.numpy(), torch.cat([batch.target for batch in batches]).numpy()
