"""Classes of very different size: metrics that count them equally, and weights in the label loss."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import mfh
from mfh.errors import InputError
from mfh.problems import Problem
from mfh.problems.losses import KDLoss, WeightedCrossEntropy
from mfh.problems.metrics import Tally, accuracy, balanced_accuracy, macro_f1
from mfh.training.fitting import _weighted
from mfh.training.recipe import Recipe


def imbalanced(num_samples=200, num_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.7, 0.2, 0.1, 0.0][:num_classes])
    target = torch.multinomial(shares, num_samples, replacement=True, generator=generator)
    logits = F.one_hot(target, num_classes) * 1.5 + torch.randn(num_samples, num_classes, generator=generator)
    logits[:, 0] += 0.8
    return logits, target


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_scikit_learns(seed):
    logits, target = imbalanced(seed=seed)
    predicted = logits.argmax(1)
    assert 3 in predicted  # a class that does not occur is predicted
    balanced, f1 = balanced_accuracy(), macro_f1()
    assert balanced.of(logits, target) == pytest.approx(balanced_accuracy_score(target, predicted))
    assert f1.of(logits, target) == pytest.approx(f1_score(target, predicted, average="macro"))
    assert balanced.of(logits, target) < accuracy().of(logits, target) - 0.02
    # A class that neither occurs nor is predicted is left out.
    logits[:, 3] = -100
    assert f1.of(logits, target) == pytest.approx(f1_score(target, logits.argmax(1), average="macro"))
    for metric in (balanced, f1):  # however samples are shared out between batches and processes
        parts = [Tally(metric), Tally(metric)]
        for number, rows in enumerate(torch.split(torch.arange(len(target)), 7)):
            parts[number % 2].add(logits[rows], target[rows])
        assert parts[0].value(part.state() for part in parts) == metric.of(logits, target)
    assert balanced.scale.words == "balanced accuracy"


def test_balanced_weights_are_scikit_learns_and_the_loss_is_torchs():
    logits, target = imbalanced()
    data = TensorDataset(logits, logits, target)
    problem = _weighted(Problem.classification(), Recipe(class_weights="balanced"), data)
    weights = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=target.numpy())).float()
    assert problem.label_loss(logits[:, :3], target) == pytest.approx(
        float(F.cross_entropy(logits[:, :3], target, weight=weights))
    )
    # The class without training samples has weight 1, and a network may know it.
    assert problem.label_loss(logits, target) == pytest.approx(
        float(F.cross_entropy(logits, target, weight=torch.cat([weights, torch.ones(1)])))
    )
    # Every sample has its weight whatever batch it is in, which torch's weighted mean does not give.
    parts = torch.split(torch.arange(len(target)), 10)
    mean = sum(float(problem.label_loss(logits[rows], target[rows])) for rows in parts) / len(parts)
    assert mean == pytest.approx(float(problem.label_loss(logits, target)))
    torchs = sum(float(F.cross_entropy(logits[r, :3], target[r], weight=weights)) for r in parts) / len(parts)
    assert torchs != pytest.approx(mean, rel=1e-3)


def test_given_weights_average_one():
    logits, target = imbalanced(num_classes=3)
    data = TensorDataset(logits, logits, target)
    given = (1.0, 2.0, 30.0)
    problem = _weighted(Problem.classification(), Recipe(class_weights=given), data)
    expected = F.cross_entropy(logits, target, weight=torch.tensor(given))
    assert problem.label_loss(logits, target) == pytest.approx(float(expected))
    assert problem.label_loss.weights[target].mean() == pytest.approx(1)
    with pytest.raises(InputError, match="3 class weights for 4 classes"):
        problem.label_loss(torch.zeros(2, 4), torch.tensor([0, 1]))


class Items(Dataset):
    """Pairs that are read one by one."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


def rare_class(num_samples=300, seed=0):
    """Two overlapping classes, of which the second is rare."""
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(num_samples, generator=generator) < 0.1).long()
    inputs = torch.randn(num_samples, 2, generator=generator) + 1.2 * target[:, None]
    return TensorDataset(inputs, inputs.clone(), target)


@pytest.mark.parametrize("how", ["pretrain", "align", "distill"])
def test_weights_find_the_rare_class(how):
    train, val = rare_class(), rare_class(seed=1)
    problem = Problem.classification(metric=balanced_accuracy())
    found = {}
    for weights in (None, "balanced"):
        torch.manual_seed(0)
        teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
        recipe = Recipe(epochs=12, class_weights=weights, optimizer=lambda p: torch.optim.Adam(p, lr=0.05), keep="last")
        options = {"problem": problem, "recipe": recipe, "device": "cpu"}
        if how == "pretrain":
            network = mfh.pretrain(student, Items(train), val, role="student", **options).network
        elif how == "align":
            network = mfh.align(teacher, student, train, val, **options).student
        else:
            network = mfh.distill(teacher, student, train, val, loss=KDLoss(teacher_weight=0.01), **options).student
        found[weights] = mfh.evaluate(network, val, "student", problem=problem)
    assert found["balanced"] > found[None] + 0.1


def test_accumulated_batches_make_the_same_step():
    train, weights = rare_class(64), []
    for batch_size, accumulate in ((32, 1), (8, 4)):
        torch.manual_seed(0)
        student = nn.Linear(2, 2)
        recipe = Recipe(
            epochs=2, batch_size=batch_size, accumulate=accumulate, class_weights="balanced", keep="last",
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        )  # fmt: skip
        mfh.pretrain(student, train, train, role="student", recipe=recipe, device="cpu")
        weights.append(student.weight.detach().clone())
    assert torch.allclose(*weights, atol=1e-6)


def test_facts_have_the_weights_only_where_they_are_given():
    assert "class_weights" not in Recipe().facts()
    assert Recipe(class_weights="balanced").facts()["class_weights"] == "balanced"
    assert Recipe(class_weights=[1, 2]).facts()["class_weights"] == (1.0, 2.0)
    settings = mfh.Settings.of(class_weights="balanced")
    assert settings.training.changes() == {"class_weights": "balanced"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Recipe(class_weights="even"), "class_weights is 'even'; choose 'balanced'"),
        (lambda: Recipe(class_weights=(1.0,)), "each class"),
        (lambda: Recipe(class_weights=(1.0, -1.0)), "at least 0"),
        (lambda: Recipe(class_weights=(0.0, 0.0)), "above 0"),
        (lambda: Recipe(class_weights=3), "class_weights is 3"),
        (lambda: WeightedCrossEntropy([1.0, float("nan")]), "class weights"),
        (lambda: Problem.multi_label().weighted([1, 2]), "the problem multi-label classification"),
        (lambda: Problem.classification(label_loss=nn.CrossEntropyLoss()).weighted([1, 2]), "another label loss"),
        (
            lambda: mfh.distill(
                nn.Linear(2, 2), nn.Linear(2, 2), rare_class(20), rare_class(20),
                loss=lambda student, teacher, target: student.sum(), recipe=Recipe(class_weights="balanced"),
            ),
            "leave one of them out",
        ),
        (
            lambda: mfh.pretrain(
                nn.Linear(2, 3), rare_class(20), rare_class(20), role="student", recipe=Recipe(class_weights=(1.0, 2.0))
            ),
            "2 class weights for 3 classes",
        ),
        (
            lambda: _weighted(Problem.classification(), Recipe(class_weights=(0.0, 0.0, 1.0)), rare_class(20)),
            "no training samples",
        ),
    ],
)  # fmt: skip
def test_bad_weights(call, words):
    with pytest.raises(InputError) as error:
        call()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
