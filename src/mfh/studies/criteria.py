"""Criteria of whether distillation helps, from two networks' outputs on held-out pairs: the trial of heads and others.

All fits (ridge regressions, in closed form) are cross-fitted: they are judged on pairs that they were not fitted to.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mfh.errors import InputError
from mfh.problems.losses import KDLoss
from mfh.saliency.probe import cross_fitted_r2, ridge_predictions

#: Smallest number of validation pairs for a diagnosis, and the largest number that it reads.
FEWEST, MOST = 30, 4000
FOLDS, _REPEATS, _RESAMPLES, _GROUPS = 5, 3, 400, 10
#: Half width of a 90 % interval, in standard errors.
HALF_WIDTH = 1.645


@dataclass(frozen=True, repr=False)
class Measure:
    """An estimate with its interval.

    Args:
        value: The estimate; None where it is not defined.
        low: Lower end of the interval; None where there is none.
        high: Upper end of the interval; None where there is none.
        note: Why the estimate is not defined, or what to know about it.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if (self.low is None) != (self.high is None):
            raise InputError(f"an interval from {self.low} to {self.high} lacks an end; give both or none")

    def __repr__(self) -> str:
        value = "not known" if self.value is None else f"{self.value:.3g}"
        interval = "" if self.low is None else f", {self.low:.3g} to {self.high:.3g}"
        return f"Measure({value}{interval}{f', {self.note!r}' if self.note else ''})"


@dataclass(frozen=True)
class Shares:
    """Estimates of how the modalities share decisive information. `ModalityVenn` defines the same shares by counts.

    Args:
        alpha: Share of the teacher's decisive information that only the teacher's modality has.
        beta: Share of the student's decisive information that only the student's modality has.
        gamma: Share of all decisive information that both modalities have.
    """

    alpha: Measure
    beta: Measure
    gamma: Measure


@dataclass(frozen=True)
class Views:
    """Outputs and features of both networks on pairs that neither was trained on.

    Args:
        target: Class indices, (N,).
        teacher_logits: Logits of the teacher, (N, K).
        student_logits: Logits of the student, (N, K).
        teacher_features: Features of the teacher, (N, F): by default the input of its last layer.
        student_features: Features of the student, (N, F').

    Raises:
        InputError: There are too few pairs, only one class, or numbers that are not finite.
    """

    target: Tensor
    teacher_logits: Tensor
    student_logits: Tensor
    teacher_features: Tensor
    student_features: Tensor

    def __post_init__(self) -> None:
        count = len(self.target)
        if count < FEWEST:
            raise InputError(f"a diagnosis needs at least {FEWEST} validation pairs; there are {count}")
        if self.target.ndim != 1 or self.target.is_floating_point():
            raise InputError("a diagnosis needs class labels: one whole number for each pair was expected")
        counts = torch.bincount(self.target)
        if int((counts > 0).sum()) < 2:
            raise InputError(
                f"all {count} validation pairs are of class {int(counts.argmax())}; a diagnosis needs two classes"
            )
        if int((counts >= FOLDS).sum()) < 2:
            raise InputError(
                f"fewer than two classes have {FOLDS} or more of the {count} validation pairs; "
                "a diagnosis needs two such classes"
            )
        for name in ("teacher_logits", "student_logits", "teacher_features", "student_features"):
            if not torch.isfinite(getattr(self, name)).all():
                raise InputError(f"{name.replace('_', ' ')} are not finite; check the network and its inputs")

    @property
    def labels(self) -> Tensor:
        """One-hot targets, (N, K), float64."""
        return torch.nn.functional.one_hot(self.target, self.teacher_logits.shape[1]).double()


@dataclass(frozen=True)
class TrainingViews:
    """What a student has to learn from: features and outputs on the training pairs, labelled ones first.

    Args:
        target: Class indices of the labelled pairs, (L,).
        teacher_logits: Logits of the teacher on all pairs, (N, K), N at least L.
        student_features: Features of the student on all pairs, (N, F').
        weights: How many pairs each of them stands for, (N,), where they are a sample (default: one).
    """

    target: Tensor
    teacher_logits: Tensor
    student_features: Tensor
    weights: Tensor | None = None


def sampled_rows(count: int, most: int, seed: int) -> list[int]:
    """Positions of at most `most` of so many samples, drawn at random and in order: data may be sorted by class."""
    if count <= most:
        return list(range(count))
    return sorted(torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].tolist())


def training_trial(views: Views, training: TrainingViews, *, loss: KDLoss | None = None, seed: int = 0) -> Measure:
    """Trial of heads on the pairs that distillation will have: with what the teacher says of these very pairs.

    One ridge head on the student's features is fitted to the labels of the labelled training pairs. Another minimises
    what the distillation loss weighs: w times the mean squared error to the labels, over labelled pairs, plus v times
    the mean squared error to the teacher's softened predictions, over all pairs. So a teacher that has memorised its
    training pairs adds nothing there, and unlabelled pairs count as they will. Both heads are judged on validation
    pairs by the correlation of `head_trial`. Each has the penalty that is best on one half of the validation pairs and
    is judged on the other half, both ways, for three random halvings.

    Args:
        views: Outputs and features of both networks on the validation pairs.
        training: The same for the training pairs.
        loss: Distillation loss (default: `KDLoss()`).
        seed: Random seed of the halvings.

    Returns:
        Correlation with the teacher minus the correlation without it, and its 90 % interval over the validation pairs
        (bootstrap, without fitting the heads again).
    """
    loss = loss or KDLoss()
    classes = views.teacher_logits.shape[1]
    labels = torch.nn.functional.one_hot(training.target, classes).double()
    soft = (training.teacher_logits.double() / loss.temperature).softmax(1)
    features, known = training.student_features.double(), len(labels)
    weight = loss.teacher_weight / (classes if loss.reduction == "mean" else 1)
    stands_for = torch.ones(len(soft)) if training.weights is None else training.weights
    shares = [torch.full((known,), loss.label_weight / known), weight * stands_for / stands_for.sum()]
    alone = _ridge_path(features[:known], labels, torch.ones(known).double(), views.student_features)
    both = _ridge_path(
        torch.cat([features[:known], features]),
        torch.cat([labels, soft]),
        torch.cat(shares).double(),
        views.student_features,
    )
    wanted, count = views.labels, len(views.target)
    whole = torch.ones(1, count, dtype=torch.float64)
    rounds = []
    for repeat in range(_REPEATS):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + repeat))
        half = torch.zeros(1, count, dtype=torch.float64)
        half[0, order[: count // 2]] = 1.0
        heads = []
        for path in (alone, both):
            judged = torch.zeros_like(wanted)
            for choosing in (half, whole - half):
                agreements = [float(_correlation(choosing, predicted, wanted)) for predicted in path]
                best = path[agreements.index(max(agreements))]
                others = choosing[0] == 0
                judged[others] = best[others]
            heads.append(judged)
        rounds.append(heads)
    weights = _resamples(count, seed)
    gains = torch.stack(
        [_correlation(weights, both, wanted) - _correlation(weights, alone, wanted) for alone, both in rounds]
    ).mean(0)
    return _interval(gains)


#: Penalties of the trial on training pairs, relative to the mean square of the features' singular values.
_PENALTIES = tuple(10.0**power for power in range(-6, 4))


def _ridge_path(features: Tensor, targets: Tensor, weights: Tensor, new_features: Tensor) -> list[Tensor]:
    """Predictions (N', K) of weighted ridge regressions for new features, one for each penalty."""
    weights = (weights / weights.sum())[:, None]
    middle, level = (weights * features).sum(0), (weights * targets).sum(0)
    root = weights.sqrt()
    u, singular, v = torch.linalg.svd((features - middle) * root, full_matrices=False)
    projected, basis = u.T @ ((targets - level) * root), (new_features.double() - middle) @ v.T
    power = singular.square()
    scale = power.mean().clamp_min(1e-300)
    return [basis @ ((singular / (power + penalty * scale))[:, None] * projected) + level for penalty in _PENALTIES]


def head_trial(
    views: Views, teacher_logits: Tensor, *, num_train: int, loss: KDLoss | None = None, seed: int = 0
) -> Measure:
    """Trial of heads: distillation in closed form, with a linear head on the student's features.

    One ridge head is fitted to one-hot labels y. Another is fitted to (w y + v p) / (w + v), with the teacher's
    softened predictions p and the weights w, v of the distillation loss. Both heads have the penalty that is best for
    the labels. They are judged on held-out pairs by the correlation of their outputs with y (centred per class, over
    all pairs and classes), which does not depend on the scale of the outputs. There are five folds, three times; at
    most `num_train` pairs are fitted.

    Args:
        views: Outputs and features of both networks on held-out pairs.
        teacher_logits: Logits, (N, K), of the teacher to try, masked or not, on the same pairs.
        num_train: Number of pairs that distillation will have.
        loss: Distillation loss (default: `KDLoss()`).
        seed: Random seed of the folds.

    Returns:
        Correlation with the teacher minus the correlation without it, and its 90 % interval over the held-out pairs
        (bootstrap, without fitting the heads again).
    """
    loss = loss or KDLoss()
    labels = views.labels
    soft = (teacher_logits.double() / loss.temperature).softmax(1)
    # The published reduction divides the divergence by the number of classes.
    weight = loss.teacher_weight / (labels.shape[1] if loss.reduction == "mean" else 1)
    mixed = (loss.label_weight * labels + weight * soft) / (loss.label_weight + weight)
    targets = torch.stack([labels, mixed], dim=1)
    rounds = [_held_out(views.student_features, targets, num_train, seed + repeat) for repeat in range(_REPEATS)]
    weights = _resamples(len(labels), seed)
    gains = torch.stack(
        [_correlation(weights, heads[:, 1], labels) - _correlation(weights, heads[:, 0], labels) for heads in rounds]
    ).mean(0)
    return _interval(gains)


def _resamples(count: int, seed: int) -> Tensor:
    """(R + 1, count) how often each pair is in a bootstrap sample; the last row has each once."""
    drawn = torch.randint(count, (_RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(_RESAMPLES + 1, count, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(_RESAMPLES, count, dtype=torch.float64)
    )
    weights[-1] = 1.0
    return weights


def _interval(gains: Tensor) -> Measure:
    """The estimate, which is the last of the gains, and its 90 % interval from the resampled ones before it."""
    value, half_width = float(gains[-1]), HALF_WIDTH * float(gains[:-1].std())
    return Measure(value, value - half_width, value + half_width)


def _held_out(features: Tensor, targets: Tensor, most: int, seed: int) -> Tensor:
    """Cross-fitted ridge predictions, (N, C, P); the first of the C targets decides the penalty."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    predicted = torch.zeros_like(targets)
    for held_out in order.tensor_split(FOLDS):
        fitting = order[~torch.isin(order, held_out)][:most]
        predicted[held_out] = ridge_predictions(features[fitting], targets[fitting], features[held_out], decide=0)
    return predicted


def _correlation(weights: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Correlations, (R,), over samples and columns of (N, K) and (N, K), centred per column, under (R, N) weights."""
    total = weights.sum(1, keepdim=True)
    mean_a, mean_b = weights @ a / total, weights @ b / total

    def product(x: Tensor, y: Tensor, mean_x: Tensor, mean_y: Tensor) -> Tensor:
        return (weights @ (x * y) / total - mean_x * mean_y).sum(1)

    power = product(a, a, mean_a, mean_a).clamp_min(0) * product(b, b, mean_b, mean_b).clamp_min(0)
    return torch.where(power > 0, product(a, b, mean_a, mean_b) / power.clamp_min(1e-300).sqrt(), 0.0)


def estimate_shares(views: Views, *, seed: int = 0) -> Shares:
    """Estimate alpha, beta and gamma from the covariances of heads on both modalities' features.

    Let z be the sum of all decisive features; one modality carries the part a of it, the other the part b. Heads fitted
    to the labels on disjoint pairs estimate a and b up to scale and independent errors. Up to these scales, the
    covariances of the heads with each other and with the label are therefore those of a, b and z:

        P = cov(a, y)^2 / cov(a, a')    Q = cov(b, y)^2 / cov(b, b')
        G = cov(a, b) cov(a, y) cov(b, y) / (cov(a, a') cov(b, b'))
        alpha = 1 - G / P    beta = 1 - G / Q    gamma = G / (P + Q - G)

    Here a, a' are heads of one modality from two disjoint thirds of the pairs, judged on the last third, in all three
    rotations. Outputs are replaced by their normal scores. Each class is taken one against the rest.

    The estimate measures what the features show. Decisive information under noise that differs between the modalities
    counts as specific. With such noise, or with features that miss much, gamma therefore lies below the count of
    features, and alpha and beta lie above it.

    Args:
        views: Outputs and features of both networks on held-out pairs.
        seed: Random seed of the thirds.

    Returns:
        Estimates in [0, 1] with 95 % intervals by the jackknife over ten groups of pairs (t distribution); not defined
        where a modality does not predict the label at all.
    """
    order = torch.randperm(len(views.target), generator=torch.Generator().manual_seed(seed))
    values = _shares(views, order)
    if values is None:
        unknown = Measure(None, note="one of the modalities does not predict the label better than chance")
        return Shares(unknown, unknown, unknown)
    groups = [_shares(views, order[torch.arange(len(order)) % _GROUPS != group]) for group in range(_GROUPS)]
    left_out = [group for group in groups if group is not None]
    if len(left_out) < _GROUPS:
        open_ = "too little of the label is predicted for an interval"
        return Shares(*(Measure(value, 0.0, 1.0, open_) for value in values))
    # 2.262 is the 97.5 % quantile of the t distribution with 9 degrees of freedom.
    half_widths = 2.262 * math.sqrt(_GROUPS - 1) * np.std(left_out, axis=0)
    return Shares(
        *(
            Measure(value, max(value - half_width, 0.0), min(value + half_width, 1.0))
            for value, half_width in zip(values, half_widths.tolist(), strict=True)
        )
    )


def _shares(views: Views, order: Tensor) -> tuple[float, float, float] | None:
    """Alpha, beta and gamma from these pairs; None where a modality does not predict the label."""
    thirds = order.tensor_split(3)
    labels = views.labels[:, :, None]
    features = (views.teacher_features, views.student_features)
    sums = torch.zeros(5, labels.shape[1], dtype=torch.float64)
    for place, judged in enumerate(thirds):
        y = labels[judged, :, 0]
        (a, a_other), (b, b_other) = (
            [
                _normal_scores(ridge_predictions(x[part], labels[part], x[judged], decide=0)[:, :, 0])
                for part in (thirds[place - 1], thirds[place - 2])
            ]
            for x in features
        )
        sums += torch.stack(
            [
                _covariance(a, a_other),
                _covariance(b, b_other),
                _covariance(a + a_other, b + b_other) / 4,
                _covariance(a + a_other, y) / 2,
                _covariance(b + b_other, y) / 2,
            ]
        )
    aa, bb, ab, ay, by = sums
    known = (aa > 0) & (bb > 0) & (ay > 0) & (by > 0)
    if not known.any():
        return None
    aa, bb, ab, ay, by = (part[known] for part in (aa, bb, ab, ay, by))
    p, q, g = (float(part.sum()) for part in (ay**2 / aa, by**2 / bb, ab * ay * by / (aa * bb)))
    shares = (1 - g / p, 1 - g / q, g / (p + q - g) if p + q > g else 1.0)
    alpha, beta, gamma = (min(max(share, 0.0), 1.0) for share in shares)
    return alpha, beta, gamma


def _normal_scores(values: Tensor) -> Tensor:
    """Ranks within each column, (N, K), mapped to a standard normal; a constant column gives zeros."""
    ranks = values.argsort(0).argsort(0).double()
    scores = torch.special.ndtri((ranks + 0.5) / len(values))
    return torch.where(values.std(0) > 0, scores, 0.0)


def _covariance(a: Tensor, b: Tensor) -> Tensor:
    """Sample covariance of each column, (K,)."""
    return ((a - a.mean(0)) * (b - b.mean(0))).mean(0)


def visible_share(features: Tensor, targets: Tensor, *, seed: int = 0) -> Measure:
    """Cross-fitted R^2 of several numbers for each pair, taken together, from features of the same pairs.

    Args:
        features: Features, (N, F), to predict from.
        targets: Numbers, (N, K), to predict.
        seed: Random seed of the folds.

    Returns:
        R^2 and its 95 % interval over five folds (t distribution).
    """
    scores, error = cross_fitted_r2(features, targets[:, None, :], seed=seed)
    value, half_width = float(scores[0]), 2.776 * float(error[0])
    return Measure(value, value - half_width, value + half_width)


def non_target_divergence(teacher_logits: Tensor, student_logits: Tensor, target: Tensor) -> Measure:
    """Mean Jensen-Shannon divergence, in nats, between both networks' predictions among the wrong classes.

    The label's logit is dropped, and a softmax is taken over the rest (arXiv 2409.02438). With the mixture
    m = (p + q) / 2 the divergence is [KL(p || m) + KL(q || m)] / 2, from 0 to ln 2. According to that paper, a smaller
    divergence makes distillation more likely to help. (The published code reverses the arguments of KL; this is the
    standard divergence.)

    Args:
        teacher_logits: Logits of the teacher, (N, K).
        student_logits: Logits of the student, (N, K).
        target: Class indices, (N,).

    Returns:
        The mean and its 95 % interval over pairs; not defined for two classes, which leave one wrong class.

    Example:
        >>> logits = torch.tensor([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0]])
        >>> non_target_divergence(logits, logits, torch.tensor([0, 0])).value
        0.0
    """
    count, classes = teacher_logits.shape
    if classes < 3:
        return Measure(None, note="not defined for two classes: one wrong class leaves nothing to compare")
    others = torch.ones(count, classes, dtype=torch.bool).scatter_(1, target[:, None], False)
    p, q = (
        logits.double()[others].reshape(count, classes - 1).log_softmax(1)
        for logits in (teacher_logits, student_logits)
    )
    m = torch.logaddexp(p, q) - math.log(2)
    values = ((p.exp() * (p - m)).sum(1) + (q.exp() * (q - m)).sum(1)) / 2
    return _mean(values.clamp_min(0))


def complementarity(teacher_logits: Tensor, student_logits: Tensor, target: Tensor) -> Measure:
    """I(teacher; student) - I(student; label), in nats. Above zero, distillation should help (arXiv 2510.13182).

    Mutual information is estimated as that of jointly Gaussian variables, -1/2 sum log(1 - rho^2) over the canonical
    correlations of logits (and one-hot labels). There are two caveats: a label is not Gaussian, so its information is
    underestimated; and logits that depend on each other in a non-linear way share more than the estimate shows. Both
    terms have the same number of dimensions, so their bias of (K - 1)^2 / 2N cancels in the difference.

    Args:
        teacher_logits: Logits of the teacher, (N, K).
        student_logits: Logits of the student, (N, K).
        target: Class indices, (N,).

    Returns:
        The difference and its 95 % interval by the jackknife over ten groups of pairs.
    """
    labels = torch.nn.functional.one_hot(target, teacher_logits.shape[1])
    views = [centred(part.double()) for part in (teacher_logits, student_logits, labels)]

    def difference(rows: Tensor) -> float:
        teacher, student, label = (view[rows] for view in views)
        return _gaussian_information(teacher, student) - _gaussian_information(student, label)

    rows = torch.arange(len(target))
    value = difference(rows)
    left_out = [difference(rows[rows % _GROUPS != group]) for group in range(_GROUPS)]
    half_width = 2.262 * math.sqrt((_GROUPS - 1) * float(np.var(left_out)))
    return Measure(value, value - half_width, value + half_width)


def _gaussian_information(a: Tensor, b: Tensor) -> float:
    """Mutual information of Gaussian variables in nats: -1/2 sum log(1 - rho^2) over canonical correlations."""
    bases = []
    for view in (a, b):
        u, singular, _ = torch.linalg.svd(view - view.mean(0), full_matrices=False)
        bases.append(u[:, singular > 1e-6 * singular[0].clamp_min(1e-300)])
    rho = torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1 - 1e-9)
    return float(-0.5 * torch.log1p(-rho.square()).sum())


def kernel_alignment(a: Tensor, b: Tensor) -> Measure:
    """Linear centred kernel alignment (CKA, arXiv 1905.00414) of two networks' features of the same pairs, 0 to 1.

    Args:
        a: Features of one network, (N, F).
        b: Features of the other, (N, F').

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 5.0]])
        >>> round(kernel_alignment(x, 3 * x.flip(1) + 1).value, 6)
        1.0
    """
    a, b = (part.double() - part.double().mean(0) for part in (a, b))
    power = float((a.T @ a).norm() * (b.T @ b).norm())
    if not power > 0:
        return Measure(None, note="one of the networks gives all pairs the same features")
    return Measure(float((a.T @ b).square().sum()) / power)


def mutual_neighbours(a: Tensor, b: Tensor, *, k: int = 10) -> Measure:
    """Share of a pair's k nearest neighbours that both networks' features agree on, by cosine (arXiv 2405.07987).

    Args:
        a: Features of one network, (N, F).
        b: Features of the other, (N, F').
        k: Number of neighbours.

    Returns:
        The mean over pairs, and its 95 % interval.
    """
    near = []
    for part in (a, b):
        part = torch.nn.functional.normalize(part.double() - part.double().mean(0))
        likeness = (part @ part.T).fill_diagonal_(-2.0)
        near.append(likeness.topk(min(k, len(part) - 1)).indices)
    shared = (near[0][:, :, None] == near[1][:, None, :]).any(2).double().mean(1)
    return _mean(shared)


def cosine_gap(teacher_logits: Tensor, student_logits: Tensor) -> Measure:
    """1 minus the mean cosine of both networks' centred logits of a pair, 0 to 2, with its 95 % interval.

    A student that gives all pairs the same logits may have a small gap, so the gap alone says little.

    Args:
        teacher_logits: Logits of the teacher, (N, K).
        student_logits: Logits of the student, (N, K).
    """
    return _mean(1 - torch.nn.functional.cosine_similarity(centred(teacher_logits), centred(student_logits)))


def _mean(values: Tensor) -> Measure:
    value, half_width = float(values.mean()), 1.96 * float(values.std()) / math.sqrt(len(values))
    return Measure(value, value - half_width, value + half_width)


def slope(a: Tensor, b: Tensor) -> Measure:
    """Slope of a over b: cov(a, b) / var(b), summed over columns, with a 95 % interval by linearisation."""
    a, b = a - a.mean(0), b - b.mean(0)
    top, bottom = (a * b).sum(1), b.square().sum(1)
    if not float(bottom.mean()) > 0:
        return Measure(None, note="the teacher gives all pairs the same logits")
    value = float(top.mean() / bottom.mean())
    error = float((top - value * bottom).std() / bottom.mean()) / math.sqrt(len(a))
    return Measure(value, value - 1.96 * error, value + 1.96 * error)


def centred(logits: Tensor) -> Tensor:
    """Logits minus their mean over classes, because a constant added to all logits of a pair has no effect."""
    return logits.double() - logits.double().mean(1, keepdim=True)


def accuracy_of(logits: Tensor, target: Tensor) -> float:
    """Fraction of samples whose largest logit is the target's."""
    return float((logits.argmax(1) == target).double().mean())
