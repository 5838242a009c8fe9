"""The forecast: gains that are known, and an independent computation of its regressions."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from torch import nn
from torch.utils.data import TensorDataset

import mfh
import tiny_task
from mfh.studies import forecast as module
from mfh.studies.forecast import SLOPE, forecast
from mfh.studies.networks import Networks
from mfh.studies.positions import PER_ITEM
from mfh.studies.settings import Settings


def network(width):
    return nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 3))


def task_of(teacher_noise, student_noise, unlabelled=400, seed=0, labelled=40):
    """Both views show the same six numbers under noise of their own; the class is decided by two of them."""
    generator = torch.Generator().manual_seed(seed)
    count = labelled + unlabelled + 300
    hidden = torch.randn(count, 6, generator=generator)
    target = torch.stack([hidden[:, 0], hidden[:, 1], -hidden[:, :2].sum(1)], 1).argmax(1)
    views = [hidden + noise * torch.randn(count, 6, generator=generator) for noise in (teacher_noise, student_noise)]

    def part(start, stop):
        return TensorDataset(*(view[start:stop] for view in views), target[start:stop])

    pairs = TensorDataset(*(view[labelled : labelled + unlabelled] for view in views)) if unlabelled else None
    return mfh.Task(
        "views",
        lambda: network(6),
        lambda: network(6),
        "1",
        part(0, labelled),
        part(labelled + unlabelled, labelled + unlabelled + 200),
        part(labelled + unlabelled + 200, count),
        unlabelled=pairs,
    )


def of(task, **settings):
    return forecast(Networks(task, 0, Settings.of(**settings)))


def test_a_better_teacher_with_unlabelled_pairs_gains_and_a_worse_one_loses():
    better, worse, alone = of(task_of(0.0, 1.5)), of(task_of(1.5, 0.0)), of(task_of(0.0, 1.5, unlabelled=0))
    assert better.gain.value > 3
    assert better.lead.value > 10
    assert worse.gain.value < -3
    assert worse.lead.value < -10
    # A teacher that knows its training pairs by heart adds nothing to their labels.
    assert better.labelled_only.value == alone.gain.value == 0
    assert alone.gain.high < better.gain.high - better.gain.value  # and that is known more surely


def test_the_test_split_and_global_state_are_left_alone():
    task = task_of(0.0, 1.5)
    object.__setattr__(task, "test", None)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert of(task) == of(task)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_regressions_are_kernel_ridge_regressions():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    gram, targets = features @ features.T, torch.randn(20, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(20, generator=generator, dtype=torch.float64)
    weights = weights / weights.sum()
    rows, wanted = torch.arange(20), torch.arange(20, 30)
    (found,) = module._regression(gram, rows, targets, weights, (wanted,))
    level = (weights[:, None] * targets).sum(0)
    model = KernelRidge(alpha=module.PENALTY, kernel="precomputed")
    model.fit(gram[:20, :20].numpy(), (targets - level).numpy(), sample_weight=weights.numpy())
    np.testing.assert_allclose(found, model.predict(gram[20:, :20].numpy()) + level.numpy(), rtol=1e-6)


def test_a_given_teacher_is_used_as_it_is(tmp_path):
    task = task_of(0.0, 1.5)
    taught = mfh.pretrain(network(6), task.val, task.val, role="teacher", recipe=mfh.Recipe(epochs=30)).network
    torch.save(taught.state_dict(), tmp_path / "good.pt")
    torch.save(network(6).state_dict(), tmp_path / "untrained.pt")
    good, untrained = (of(task, teacher_checkpoint=tmp_path / f"{name}.pt") for name in ("good", "untrained"))
    assert good.gain.value > 3 > untrained.gain.value
    assert good.labelled_only.value != 0  # it has not seen the labelled training pairs


def test_a_network_that_brings_its_weights_is_run_twice_at_most(monkeypatch):
    made = []

    def pretrained():
        made.append(1)
        torch.manual_seed(7)
        return network(6)

    of(dataclasses.replace(task_of(0.0, 1.5), student=pretrained))
    assert len(made) == 2


def test_a_network_that_fails_is_told_in_a_line_by_a_diagnosis():
    task = dataclasses.replace(task_of(0.0, 1.5), student=lambda: network(5))
    with pytest.raises(mfh.InputError, match="student"):
        mfh.diagnose(task, epochs=1)


def test_draws_keep_classes_and_group_splits_stay():
    task = task_of(0.0, 1.5, labelled=41)
    rows = module._Rows.of(Networks(task, 0, Settings()))
    labelled, held_out = rows.drawn(1)
    assert len(labelled) == 41
    assert not set(labelled.tolist()) & set(held_out.tolist())
    share = torch.bincount(rows.raw, minlength=3) / len(rows.raw)
    np.testing.assert_allclose(torch.bincount(rows.raw[labelled], minlength=3) / 41, share, atol=1 / 41)
    assert labelled.tolist() != rows.drawn(2)[0].tolist()
    grouped = dataclasses.replace(task, facts={"groups": {"unit": "people", "train": 2, "val": 1, "test": 1}})
    networks = Networks(grouped, 0, Settings())
    once = module._rehearse(
        networks,
        rows,
        module._gram(module._features(networks, "student", rows)),
        module._gram(module._features(networks, "teacher", rows)),
        False,
        rows.train,
        rows.val,
    )
    assert forecast(networks).gain.value == pytest.approx(SLOPE * once[0])


def test_pairs_of_another_kind_are_noticed():
    task = task_of(0.0, 1.5)
    alike = of(task)
    teacher, student = task.unlabelled.tensors
    moved = of(dataclasses.replace(task, unlabelled=TensorDataset(teacher, student + 4)))
    assert 0.3 < alike.shift.value < 0.7
    assert moved.shift.value > 0.9
    found = mfh.diagnose(dataclasses.replace(task, unlabelled=TensorDataset(teacher, student + 4)), epochs=1)
    assert any("differ from the labelled ones" in reason for reason in found.reasons)


def test_features_that_are_not_finite_are_named():
    task = dataclasses.replace(
        tiny_task.task(), student=lambda: nn.Sequential(nn.Linear(7, 4), Broken(), nn.Linear(4, 2))
    )
    with pytest.raises(mfh.InputError, match="features of the untrained student are not finite"):
        of(task)


class Broken(nn.Module):
    """Returns no numbers."""

    def forward(self, inputs):
        return inputs * float("nan")


# --- dense prediction -----------------------------------------------------------------------------------------------


def dense_task(teacher_noise, student_noise, labelled=20):
    """Both views show series of four numbers under noise of their own; two of them decide the class of each frame."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(labelled + 140, 4, 12, generator=generator)
    target = torch.stack([hidden[:, 0], hidden[:, 1], -hidden[:, :2].sum(1)], 1).argmax(1)
    views = [
        hidden + noise * torch.randn(hidden.shape, generator=generator) for noise in (teacher_noise, student_noise)
    ]

    def frames():
        return nn.Sequential(nn.Conv1d(4, 64, 1), nn.ReLU(), nn.Conv1d(64, 3, 1))

    def part(start, stop):
        return TensorDataset(*(view[start:stop] for view in views), target[start:stop])

    return mfh.Task(
        "frames",
        frames,
        frames,
        "1",
        part(0, labelled),
        part(labelled + 80, labelled + 120),
        part(labelled + 120, labelled + 140),
        unlabelled=TensorDataset(*(view[labelled : labelled + 80] for view in views)),
        problem=mfh.Problem.dense(),
    )


def test_frames_of_series_have_a_forecast():
    better, worse = of(dense_task(0.0, 1.5)), of(dense_task(1.5, 0.0))
    assert better.lead.value > 10
    assert worse.lead.value < -10
    assert worse.gain.value < -5
    assert worse.gain.low is None  # the size is not confirmed
    assert better.gain.value > worse.gain.value + 10
    assert 0.3 < better.shift.value < 0.7


def test_whole_series_are_held_out():
    rows = module._Rows.of(Networks(dense_task(0.0, 1.5), 0, Settings()))
    labelled, held_out = rows.drawn(1)
    assert len(labelled) == 20 * PER_ITEM
    assert not set((labelled // PER_ITEM).tolist()) & set((held_out // PER_ITEM).tolist())
    assert len(rows.others) == 80 * PER_ITEM


def test_a_given_teacher_of_series_is_read_at_the_same_places(tmp_path):
    task = dense_task(0.0, 1.5)
    taught = mfh.pretrain(
        task.teacher(), task.val, task.val, role="teacher", problem=task.problem, recipe=mfh.Recipe(epochs=30)
    ).network
    torch.save(taught.state_dict(), tmp_path / "good.pt")
    assert of(task, teacher_checkpoint=tmp_path / "good.pt").lead.value > 10


def test_a_network_without_positions_is_named():
    def flat():
        return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 36), nn.Unflatten(1, (3, 12)))

    with pytest.raises(mfh.InputError, match=r"the student's features have shape .* positions in 1 .*student_layer"):
        of(dataclasses.replace(dense_task(0.0, 1.5), student=flat))


def test_a_network_in_half_precision_has_a_forecast():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network(6).bfloat16()

        def forward(self, inputs):
            return self.inner(inputs.bfloat16())

    task = task_of(0.0, 1.5)
    assert of(dataclasses.replace(task, student=Half)).gain.value == pytest.approx(of(task).gain.value, abs=5)


def test_positions_that_do_not_count_are_no_shift():
    task = dense_task(0.0, 1.5)
    teacher_input, student_input, target = task.train.tensors
    target = target.clone()
    target[:, ::2] = -100
    part = TensorDataset(teacher_input, student_input, target)
    shift = of(dataclasses.replace(task, train=part, problem=mfh.Problem.dense(ignore_index=-100))).shift
    assert shift.value is None
    assert "positions" in shift.note


def test_a_sample_of_labelled_pairs_stands_for_all_of_them(monkeypatch):
    monkeypatch.setattr(module, "_LABELLED", 10)
    rows = module._Rows.of(Networks(task_of(0.0, 1.5), 0, Settings()))
    assert len(rows.train) == 10
    assert rows.each_labelled == 4
