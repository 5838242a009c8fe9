import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import mfh
from mfh.errors import InputError
from mfh.tasks import baseline
from mfh.tasks.baseline import linear_baseline

RNG = np.random.default_rng(0)
N = 150


def task_of(student, target, **options):
    return mfh.Task.from_arrays(teacher=RNG.normal(size=(N, 3)), student=student, target=target, **options)


def test_it_reaches_what_a_linear_model_can_and_chooses_regularisation():
    target = RNG.integers(0, 3, N)
    student = RNG.normal(size=(N, 20)) + 3 * np.eye(3, 20)[target]
    assert linear_baseline(task_of(student, target)) > 0.85
    assert linear_baseline(task_of(RNG.normal(size=(N, 20)), target)) < 0.6


def test_series_several_labels_and_numbers():
    series = RNG.normal(size=(N, 2, 8))
    mean = series.mean(2)
    assert linear_baseline(task_of(series, (mean[:, 0] > 0).astype(int))) > 0.8
    assert linear_baseline(task_of(series, (mean > 0).astype(int))) > 0.85
    assert linear_baseline(task_of(series, mean[:, 0] * 3 + 1)) < 0.05  # mean squared error


@pytest.mark.parametrize("known", [1, 3, 7])
def test_numbers_known_in_few_rows_bring_no_warning(known):
    student, target = RNG.normal(size=(N, 3)), RNG.normal(size=(N, 2))
    target[:-20, 1] = np.nan
    split = np.repeat(["train", "val", "test"], [N - 20, 10, 10])
    target[:known, 1] = 0.5 + np.arange(known)
    assert linear_baseline(task_of(student, target, split=split)) > 0  # warnings are errors


def test_classes_that_training_lacks_are_never_predicted():
    def split(target):
        return TensorDataset(torch.zeros(len(target), 1), torch.randn(len(target), 2), torch.tensor(target))

    made = mfh.Task(
        name="odd", teacher=torch.nn.Identity, student=torch.nn.Identity, layer="", train=split([1, 1, 1]),
        val=split([0]), test=split([0, 1, 2, 1]),
    )  # fmt: skip
    assert linear_baseline(made) == 0.5


def test_dense_prediction_has_no_linear_baseline():
    pairs = TensorDataset(torch.zeros(4, 1, 2), torch.zeros(4, 1, 2), torch.zeros(4, 2, dtype=torch.long))
    made = mfh.Task(
        name="dense", teacher=torch.nn.Identity, student=torch.nn.Identity, layer="", train=pairs, val=pairs,
        test=pairs, problem=mfh.Problem.dense(),
    )  # fmt: skip
    with pytest.raises(InputError, match="knows no dense prediction"):
        linear_baseline(made)


def test_several_splits_are_measured_by_one_fit(monkeypatch):
    fitted, fits = baseline._fitted, []

    def counted(*arguments):
        fits.append(arguments)
        return fitted(*arguments)

    target = RNG.integers(0, 3, N)
    series = RNG.normal(size=(N, 2, 8))
    for task in (task_of(series, target), task_of(series, series.mean(2)), task_of(series, series[:, 0, 0])):
        alone = {split: linear_baseline(task, 3, split) for split in ("val", "test")}
        with monkeypatch.context() as patched:
            patched.setattr(baseline, "_fitted", counted)
            assert baseline.linear_baselines(task, ["val", "test"], 3) == alone
    assert len(fits) == 3
