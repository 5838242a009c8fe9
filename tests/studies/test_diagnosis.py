"""The diagnosis: criteria against closed forms and against worlds whose answer is known, and bad input."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge
from torch.utils.data import TensorDataset

import mfh
import tiny_task
from mfh.cli import commands
from mfh.problems.problem import Problem
from mfh.problems.scale import Scale
from mfh.studies import criteria, diagnosis
from mfh.studies.criteria import (
    Measure,
    TrainingViews,
    Views,
    complementarity,
    cosine_gap,
    estimate_shares,
    head_trial,
    kernel_alignment,
    mutual_neighbours,
    non_target_divergence,
    training_trial,
    visible_share,
)
from mfh.studies.diagnosis import Diagnosis, in_words, outcome_of

TINY = str(Path(tiny_task.__file__))


def linear_views(general, teacher_only, student_only, count=600, distractors=5, seed=0):
    """Features are the inputs; logits are those of whoever knows the true sum of what it sees, under noise."""
    generator = torch.Generator().manual_seed(seed)
    g, a, b = (torch.randn(count, k, generator=generator) for k in (general, teacher_only, student_only))
    target = (torch.cat([g, a, b], 1).sum(1) > 0).long()
    teacher, student = torch.cat([g, a], 1), torch.cat([g, b], 1)

    def logits(features, missing):
        margin = features.sum(1) / math.sqrt(max(missing, 1))  # about as sure as it may be
        return torch.stack([-margin, margin], 1)

    return Views(
        target,
        logits(teacher, student_only),
        logits(student, teacher_only),
        torch.cat([teacher, torch.randn(count, distractors, generator=generator)], 1),
        torch.cat([student, torch.randn(count, distractors, generator=generator)], 1),
    )


# --- criteria -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(4, 0, 0), (3, 3, 0), (3, 0, 3), (2, 2, 2), (1, 4, 5), (4, 1, 3)])
def test_shares_of_worlds_that_are_known(counts):
    truth = mfh.ModalityVenn(*counts)
    estimates = [estimate_shares(linear_views(*counts, seed=seed)) for seed in range(6)]
    for name in ("alpha", "beta", "gamma"):
        expected, found = getattr(truth, name), [getattr(estimate, name) for estimate in estimates]
        assert np.mean([share.value for share in found]) == pytest.approx(expected, abs=0.08), name
        assert sum(share.low - 1e-9 <= expected <= share.high + 1e-9 for share in found) >= 4, name


def test_shares_swap_with_the_modalities():
    views = linear_views(2, 3, 1)
    swapped = Views(
        views.target, views.student_logits, views.teacher_logits, views.student_features, views.teacher_features
    )
    ours, theirs = estimate_shares(views), estimate_shares(swapped)
    assert ours.alpha.value > ours.beta.value + 0.1
    for mine, other in ((ours.alpha, theirs.beta), (ours.beta, theirs.alpha), (ours.gamma, theirs.gamma)):
        assert dataclasses.astuple(mine)[:3] == pytest.approx(dataclasses.astuple(other)[:3])


def test_shares_are_open_where_nothing_predicts_the_label():
    views = linear_views(2, 1, 0)
    blind = dataclasses.replace(views, student_features=torch.zeros_like(views.student_features))
    found = estimate_shares(blind)
    for share in (found.alpha, found.beta, found.gamma):
        assert share.value is None
        assert "does not predict the label" in share.note


def test_the_trial_tells_a_teacher_from_noise():
    """The teacher knows the student's whole decision and more exactly than a label; shuffled logits know nothing."""
    views = linear_views(6, 0, 0, count=200, distractors=30)
    helps = head_trial(views, views.teacher_logits, num_train=80)
    assert helps.low > 0
    shuffled = views.teacher_logits[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    hurts = head_trial(views, shuffled, num_train=80)
    assert hurts.high < 0


def test_the_trial_of_a_teacher_that_repeats_the_label_changes_nothing():
    views = linear_views(2, 2, 1)
    repeats = 60.0 * (views.labels.float() - 0.5)
    trial = head_trial(views, repeats, num_train=400)
    assert trial.value == pytest.approx(0, abs=1e-9)


def training_of(views, rows, unlabelled, logits):
    """The first rows as labelled training pairs, the next ones without labels; the rest is for validation."""
    parts = {field.name: getattr(views, field.name)[rows + unlabelled :] for field in dataclasses.fields(views)}
    pairs = slice(0, rows + unlabelled)
    return Views(**parts), TrainingViews(views.target[:rows], logits[pairs], views.student_features[pairs])


def test_the_training_trial_counts_unlabelled_pairs_and_not_a_memory_of_labels():
    views = linear_views(6, 0, 0, count=700, distractors=30)
    memory = torch.where(torch.arange(700)[:, None] < 60, 60.0 * (views.labels.float() - 0.5), views.teacher_logits)
    alone, more = (training_trial(*training_of(views, 60, number, memory)) for number in (0, 340))
    assert alone.value == pytest.approx(0, abs=1e-6)
    assert more.low > 0.02
    shuffled = views.teacher_logits[torch.randperm(700, generator=torch.Generator().manual_seed(1))]
    assert training_trial(*training_of(views, 60, 340, shuffled)).high < 0


def test_the_training_trial_equals_weighted_ridge_regressions():
    views = linear_views(2, 2, 1, count=200)
    held, training = training_of(views, 60, 80, views.teacher_logits)
    x = training.student_features.double().numpy()
    soft = training.teacher_logits.double().softmax(1).numpy()
    labels = torch.nn.functional.one_hot(training.target, 2).double().numpy()
    rows, targets = np.concatenate([x[:60], x]), np.concatenate([labels, soft])
    weights = np.concatenate([np.full(60, 0.5 / 60), np.full(140, 2.0 / 140)])
    path = criteria._ridge_path(
        torch.from_numpy(rows), torch.from_numpy(targets), torch.from_numpy(weights), held.student_features
    )
    weights = weights / weights.sum()
    centred = (rows - weights @ rows) * np.sqrt(weights)[:, None]
    scale = np.mean(np.linalg.svd(centred, compute_uv=False) ** 2)
    for penalty, found in zip(criteria._PENALTIES, path, strict=True):
        model = Ridge(alpha=penalty * scale).fit(rows, targets, sample_weight=weights)
        np.testing.assert_allclose(found, model.predict(held.student_features.double().numpy()), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("low", "high", "percent", "verdict"),
    [
        (0.1, 9.0, True, "likely to help"),
        (-0.1, 9.0, True, "cannot tell"),
        (-1.6, 1.6, True, "not likely to help"),
        (-9.0, 2.1, True, "cannot tell"),
        (-0.2, 0.1, False, "cannot tell"),
        (-0.2, -0.1, False, "not likely to help"),
    ],
)
def test_the_verdict_follows_the_interval_of_the_forecast(low, high, percent, verdict):
    scale = Scale(percent=percent)
    assert outcome_of(Measure((low + high) / 2, low, high), scale) == verdict
    assert outcome_of(Measure(None, note="not defined"), scale) == "cannot tell"


def test_a_gain_in_words():
    assert in_words(Measure(4.14, -0.2, 8.0), Scale()) == "+4.1 points (90 % interval \u22120.2 to +8.0)"
    error = Scale("mean_squared_error", False, False)
    assert in_words(Measure(-0.0123), error) == "\u22120.0123"
    assert in_words(Measure(-0.0123, note="rehearsed only"), error) == "\u22120.0123 (rehearsed only)"


def test_alike_and_different_features():
    generator = torch.Generator().manual_seed(0)
    x, other = (torch.randn(200, 6, generator=generator) for _ in range(2))
    turned = 3 * x @ torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    assert kernel_alignment(x, turned).value == pytest.approx(1, abs=1e-5)
    assert mutual_neighbours(x, turned).value == pytest.approx(1, abs=0.01)
    assert cosine_gap(x, 2 * x + 1).value == pytest.approx(0, abs=1e-6)
    assert cosine_gap(x, -x).value == pytest.approx(2, abs=1e-6)
    # Independent features: CKA by the definition with centred Gram matrices, neighbours by a plain loop.
    centre = torch.eye(200, dtype=torch.float64) - 1 / 200
    a, b = (centre @ (part.double() @ part.double().T) @ centre for part in (x, other))
    assert kernel_alignment(x, other).value == pytest.approx(float((a * b).sum() / (a.norm() * b.norm())), rel=1e-9)
    near = []
    for part in (x, other):
        part = part.double() - part.double().mean(0)
        cosines = part @ part.T / part.norm(dim=1)[:, None] / part.norm(dim=1)[None]
        near.append([set(np.argsort(-row)[1:11].tolist()) for row in cosines.numpy()])
    expected = np.mean([len(one & two) / 10 for one, two in zip(*near, strict=True)])
    assert mutual_neighbours(x, other).value == pytest.approx(expected, abs=1e-9)
    assert kernel_alignment(x, torch.ones(200, 3)).value is None


def test_the_trial_follows_the_weights_of_the_loss():
    views = linear_views(2, 4, 0, count=200, distractors=20)
    light, heavy, published = (
        head_trial(views, views.teacher_logits, num_train=100, loss=mfh.KDLoss(**weights)).value
        for weights in ({"teacher_weight": 1e-6}, {"label_weight": 0.0}, {"teacher_weight": 2e-6, "reduction": "mean"})
    )
    assert light == pytest.approx(0, abs=1e-5)
    assert published == pytest.approx(light, abs=1e-12)  # two classes: half of twice the weight
    assert abs(heavy) > 1e-3


def test_surplus_is_what_only_the_student_knows():
    def surplus(views):
        return visible_share(views.student_features, views.labels - views.teacher_logits.double().softmax(1)).value

    assert surplus(linear_views(2, 2, 3)) > 0.1
    assert surplus(linear_views(3, 2, 0)) < 0.02


def test_non_target_divergence_is_scipys():
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(40, 5, generator=generator) for _ in range(2))
    target = torch.arange(40) % 5
    rows = []
    for t, s, y in zip(teacher.double(), student.double(), target, strict=True):
        rest = torch.arange(5) != y
        rows.append(jensenshannon(t[rest].softmax(0).numpy(), s[rest].softmax(0).numpy()) ** 2)
    found = non_target_divergence(teacher, student, target)
    assert found.value == pytest.approx(np.mean(rows), rel=1e-9)
    assert found.low < found.value < found.high
    assert "two classes" in non_target_divergence(teacher[:, :2], student[:, :2], target % 2).note


def test_complementarity_is_that_of_canonical_correlations():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(300, 3, generator=generator)
    teacher = student + torch.randn(300, 3, generator=generator)
    target = (student + 0.5 * torch.randn(300, 3, generator=generator)).argmax(1)
    centred = [x - x.mean(1, keepdim=True) for x in (teacher, student, torch.nn.functional.one_hot(target).float())]

    def information(a, b):
        a, b = a[:, :2].numpy(), b[:, :2].numpy()  # two of three centred columns span them all
        u, v = CCA(2, scale=False, tol=1e-9).fit(a, b).transform(a, b)
        return sum(-0.5 * np.log(1 - np.corrcoef(u[:, k], v[:, k])[0, 1] ** 2) for k in range(2))

    expected = information(*centred[:2]) - information(*centred[1:])
    found = complementarity(teacher, student, target)
    assert found.value == pytest.approx(expected, abs=2e-3)
    assert found.low < found.value < found.high


# --- the whole ------------------------------------------------------------------------------------------------------


def test_diagnose_keeps_what_a_study_needs_and_changes_no_global_state(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = mfh.diagnose(TINY, out=tmp_path / "run", device="cpu", layers=["0", "1"])
    assert torch.equal(torch.get_rng_state(), before)
    assert [view.layer for view in found.layers] == ["0", "1"]
    assert found.verdict in ("likely to help", "not likely to help", "cannot tell")
    assert any("What a soft mask adds cannot be told beforehand" in reason for reason in found.reasons)
    assert Diagnosis.load(tmp_path / "run" / "diagnosis.json") == found
    assert mfh.diagnose(TINY, device="cpu", layers=["0", "1"]) == found  # nothing kept, the same seed
    weights = tmp_path / "run" / "seed-0" / "student.safetensors"
    made = weights.stat().st_mtime_ns
    result = mfh.study(TINY, arms=["no-kd", "soft"], num_seeds=1, out=tmp_path / "run", device="cpu", processes=1)
    assert weights.stat().st_mtime_ns == made
    assert len(result.by_seed()) == 1
    page = mfh.report(tmp_path / "run").read_text(encoding="utf-8")
    assert "Will distillation help?" in page
    assert "Study: tiny" in page
    assert "estimated from" in page  # nobody knows the counts of this task, so the estimate is what is drawn


def test_command(tmp_path, capsys):
    commands.main(["diagnose", TINY, "--out", str(tmp_path / "d"), "--quiet", "--device", "cpu", "--epochs", "1"])
    out = capsys.readouterr().out
    assert "expected gain" in out
    assert "trial of heads" in out
    assert json.loads((tmp_path / "d" / "diagnosis.json").read_text())["task"] == "tiny"
    assert "Diagnosis: tiny" in (tmp_path / "d" / "report.html").read_text(encoding="utf-8")


def test_classes_of_any_number():
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(200) % 4
    signal = torch.nn.functional.one_hot(target, 5).float()  # the fifth class never occurs
    shown = [signal + 0.7 * torch.randn(200, 5, generator=generator) for _ in range(4)]
    views = Views(target, *shown)
    assert 0 < estimate_shares(views).gamma.value < 1
    assert math.isfinite(head_trial(views, views.teacher_logits, num_train=100).value)


def test_pairs_are_sampled_whatever_their_order(monkeypatch):
    monkeypatch.setattr(diagnosis, "MOST", 50)
    task = tiny_task.task()
    order = task.train.tensors[2].argsort()
    by_class = TensorDataset(*(tensor[order] for tensor in task.train.tensors))
    made = diagnosis.Seed(dataclasses.replace(task, train=by_class), 0)
    rows, stands_for = diagnosis._sampled_rows(made)
    assert rows == sorted(rows)
    assert len(rows) == 50
    assert set(by_class.tensors[2][rows].tolist()) == {0, 1}
    assert stands_for.tolist() == pytest.approx([120 / 50] * 50)


# --- bad input ------------------------------------------------------------------------------------------------------


def with_val(val):
    return dataclasses.replace(tiny_task.task(), val=val)


def split(count, target):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(count, 8, generator=generator), torch.randn(count, 7, generator=generator), target)


@pytest.mark.parametrize(
    ("val", "message"),
    [
        (split(12, torch.arange(12) % 2), "has 12 validation pairs; a diagnosis needs at least 30"),
        (split(40, torch.ones(40, dtype=torch.long)), "all 40 validation pairs are of class 1"),
        (split(40, (torch.arange(40) < 2).long()), "fewer than two classes have 5 or more of the 40"),
    ],
)
def test_validation_pairs_that_do_not_do(val, message):
    with pytest.raises(mfh.InputError, match=message):
        mfh.diagnose(with_val(val), device="cpu", epochs=1)


def test_a_task_without_validation_data():
    with pytest.raises(mfh.InputError, match="task 'tiny': val is a NoneType"):
        with_val(None)


def test_print_shows_what_the_command_shows(tmp_path, capsys):
    commands.main(["diagnose", TINY, "--out", str(tmp_path / "run"), "--device", "cpu", "--epochs", "1", "--quiet"])
    shown = capsys.readouterr().out.partition("Report:")[0]
    found = Diagnosis.load(tmp_path / "run" / "diagnosis.json")
    text = str(found)
    assert text == found.report()
    assert sorted(text.split()) == sorted(word for word in shown.split() if set(word) != {"\u2500"})
    lines = text.splitlines()
    assert lines[1].split() == ["Criterion", "Value", "Interval", "Meaning"]
    place = lines[1].index("Value")
    assert all(line[place - 2 : place] == "  " for line in lines[1 : lines.index("")])  # in columns
    assert max(map(len, lines[: lines.index("")])) <= 120
    assert repr(found).count("\n") == 0


def test_a_measure_is_shown_in_few_digits():
    assert repr(Measure(-4.559999999999998, -15.6123, 6.51)) == "Measure(-4.56, -15.6 to 6.51)"
    assert repr(Measure(None, note="needs one class per sample")) == "Measure(not known, 'needs one class per sample')"
    assert repr(Measure(1 / 3)) == "Measure(0.333)"


def test_a_teacher_known_by_its_outputs_only():
    task = dataclasses.replace(tiny_task.task(), teacher=None, teacher_logits=torch.zeros(120, 2))
    with pytest.raises(mfh.InputError, match="a diagnosis needs the network"):
        mfh.diagnose(task, device="cpu")


def test_multi_label_and_regression_have_a_forecast_and_no_criteria_of_classes(tmp_path):
    tiny = tiny_task.task()

    def changed(target, problem):
        splits = {
            split: TensorDataset(*getattr(tiny, split).tensors[:2], target(getattr(tiny, split).tensors[2]))
            for split in ("train", "val", "test")
        }
        return dataclasses.replace(tiny, problem=problem, **splits)

    labels = changed(lambda y: torch.nn.functional.one_hot(y, 2), Problem.multi_label())
    found = mfh.diagnose(labels, device="cpu", epochs=1)
    assert found.forecast.gain.low < found.forecast.gain.value < found.forecast.gain.high
    assert found.trial.value is None
    assert found.layers[0].channels == 12
    numbers = changed(lambda y: torch.stack([y, 1 - y], 1).float(), Problem.regression())
    found = mfh.diagnose(numbers, device="cpu", epochs=1, out=tmp_path / "run")
    assert found.verdict == "cannot tell"
    assert "rehearsed only" in found.forecast.gain.note
    assert Diagnosis.load(tmp_path / "run" / "diagnosis.json") == found
    page = mfh.report(tmp_path / "run").read_text(encoding="utf-8")
    assert "student, labels only: mean squared error" in page


def test_dense_prediction_has_a_forecast():
    def frames():
        return torch.nn.Sequential(torch.nn.Conv1d(4, 8, 1), torch.nn.ReLU(), torch.nn.Conv1d(8, 3, 1))

    generator = torch.Generator().manual_seed(0)
    series = torch.randn(120, 4, 10, generator=generator)
    noisy, target = series + torch.randn(series.shape, generator=generator), series[:, :3].argmax(1)
    train, val, test = (TensorDataset(series[rows], noisy[rows], target[rows]) for rows in torch.arange(120).split(40))
    task = mfh.Task("frames", frames, frames, "1", train, val, test, problem=Problem.dense())
    found = mfh.diagnose(task, device="cpu", epochs=1)
    assert found.forecast.gain.low is None
    assert "the size is not confirmed for dense prediction" in found.reasons[0]
    assert found.verdict == "cannot tell"
    assert found.forecast.masked.value is None
    assert found.forecast.lead.value > 0
    assert found.trial.value is None
    assert 0 < found.layers[0].seen < 1
    assert "mean iou" in found.reasons[0]


@pytest.mark.parametrize("part", ["train", "val", "unlabelled"])
def test_inputs_that_are_not_finite_are_named(part):
    task = tiny_task.task()
    task = dataclasses.replace(task, unlabelled=TensorDataset(*(tensor.clone() for tensor in task.test.tensors[:2])))
    getattr(task, part).tensors[1][3, 2] = math.nan
    with pytest.raises(mfh.InputError, match=r"student_input holds nan|features of the student are not finite"):
        mfh.diagnose(task, device="cpu", epochs=1)


def test_constant_channels_are_named():
    def dead():
        network = tiny_task.teacher()
        network[0].weight.data.zero_()
        network[0].bias.data.fill_(-1.0)
        for parameter in network[0].parameters():
            parameter.requires_grad_(False)
        return network

    found = mfh.diagnose(dataclasses.replace(tiny_task.task(), teacher=dead), device="cpu", epochs=1)
    assert "all are constant" in found.layers[0].note
    assert any("all are constant" in reason for reason in found.reasons)
    assert found.alpha.value is found.beta.value is found.gamma.value is None


def test_an_unknown_layer_is_refused_before_anything_is_trained():
    with pytest.raises(mfh.InputError, match="no layer 'nine'"):
        mfh.diagnose(tiny_task.task(), layers=["nine"], device="cpu")


def test_a_damaged_file(tmp_path):
    path = tmp_path / "diagnosis.json"
    path.write_text('{"task": "x"}')
    with pytest.raises(mfh.InputError, match="not a diagnosis"):
        Diagnosis.load(path)
