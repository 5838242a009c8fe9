"""Validation pairs that every seed draws anew."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import mfh
import tiny_task
from mfh.data.epochs import all_targets
from mfh.data.pairs import fetch, groups_of, place_of
from mfh.errors import InputError
from mfh.studies.stats import Repeats


def numbered(num_train=30, num_val=12, groups=None):
    """A task whose teacher's inputs are numbers of pairs, with classes of unequal size."""
    x = torch.arange(60.0)[:, None]
    y = (torch.arange(60) % 6 == 0).long()
    parts = {"train": range(num_train), "val": range(num_train, num_train + num_val), "test": range(42, 60)}
    made = {}
    for split, rows in parts.items():
        made[split] = TensorDataset(x[list(rows)], x[list(rows)], y[list(rows)])
        if groups is not None:
            made[split].groups = np.asarray(groups)[list(rows)]
    return replace(tiny_task.task(), **made)


def numbers(dataset):
    return sorted(int(dataset[index][0]) for index in range(len(dataset)))


def test_every_seed_validates_on_other_pairs_and_the_test_split_stays():
    fixed = numbered()
    task = fixed.cross_validated()
    drawn = [task.resplit(seed) for seed in range(4)]
    for one in drawn:
        assert sorted(numbers(one.train) + numbers(one.val)) == list(range(42))
        assert (len(one.train), len(one.val)) == (30, 12)
        assert one.test is fixed.test
        assert int(all_targets(one.val).sum()) == 2  # the share of the rarer class
    assert len({tuple(numbers(one.val)) for one in drawn}) == 4
    assert numbers(task.resplit(2).val) == numbers(drawn[2].val) == numbers(drawn[1].resplit(2).val)
    assert numbers(fixed.val) == list(range(30, 42))


def test_the_pooled_splits_are_cross_validation():
    """Over many seeds every pair validates, as often as its share of the pool says."""
    task = numbered().cross_validated()
    counts = np.bincount([n for seed in range(200) for n in numbers(task.resplit(seed).val)], minlength=42)
    assert (counts > 0).all()
    assert counts.sum() == 200 * 12
    assert abs(counts / 200 - 12 / 42).max() < 5 * np.sqrt(12 / 42 * 30 / 42 / 200)
    assert Repeats.of(task, True) == Repeats("resplit", 30, 12, 18, same_test=True)


def test_whole_groups_are_drawn():
    groups = np.arange(60) // 3
    task = numbered(groups=groups).cross_validated()
    for seed in range(5):
        one = task.resplit(seed)
        assert not set(groups_of(one.train)) & set(groups_of(one.val))
        assert len(set(groups_of(one.val))) == 4
        assert len(one.train) + len(one.val) == 42


def grouped(target):
    """Arrays in 20 groups of 6, whose pairs have these targets, with named splits."""
    split = np.repeat(["train", "val", "test"], [72, 24, 24])
    x = np.random.default_rng(0).normal(size=(120, 3))
    return mfh.Task.from_arrays(teacher=x, student=x, target=target, groups=np.arange(120) // 6, split=split)


def test_pairs_with_some_labels_follow_their_group():
    target = np.random.default_rng(1).integers(0, 2, size=(120, 3)).astype(float)
    target[np.arange(0, 72, 7), 0] = np.nan
    task = grouped(target).cross_validated()
    for seed in range(5):
        one = task.resplit(seed)
        assert not set(groups_of(one.train)) & set(groups_of(one.val))
        assert len(set(groups_of(one.val))) == 4
        assert len(one.train) == 72
        assert not all_targets(one.val).isnan().any()


def test_unlabelled_pairs_of_groups_that_validate_are_left_out():
    target = np.arange(120) % 3
    target[np.arange(0, 72, 7)] = -1
    fixed = grouped(target)
    left_out = set()
    for seed in range(5):
        one = fixed.cross_validated().resplit(seed)
        validating = set(groups_of(one.val))
        assert not set(groups_of(one.unlabelled)) & validating
        assert set(groups_of(one.unlabelled)) == set(groups_of(fixed.unlabelled)) - validating
        left_out |= set(groups_of(fixed.unlabelled)) & validating
    assert left_out
    target = np.where(np.arange(120) < 12, -1, np.arange(120) % 3)  # only groups 0 and 1 lack labels
    assert grouped(target).cross_validated().resplit(0).unlabelled is not None


@pytest.mark.parametrize("rare", [1, 2])
def test_one_pair_of_the_rarest_class_stays_in_training(rare):
    target = np.arange(60) % 2
    target[[3, 35][:rare]] = 2
    x, split = np.arange(60.0)[:, None], np.repeat(["train", "val", "test"], 20)
    task = mfh.Task.from_arrays(teacher=x, student=x, target=target, split=split).cross_validated()
    for seed in range(10):
        one = task.resplit(seed)
        assert len(one.val) == 20
        assert int((all_targets(one.train) == 2).sum()) == 1


def test_classes_of_one_pair_each_cannot_be_cross_validated():
    def split(*classes):
        return TensorDataset(torch.zeros(len(classes), 8), torch.zeros(len(classes), 8), torch.tensor(classes))

    task = replace(tiny_task.task(), train=split(0, 1), val=split(2), test=split(0, 1))
    with pytest.raises(InputError, match="every class of task 'tiny' has one pair in training and validation together"):
        task.cross_validated()


def test_messages_name_a_pair_by_the_split_that_the_user_made():
    task = numbered().cross_validated().resplit(3)
    for name in ("train", "val"):
        split = getattr(task, name)
        for index in range(len(split)):
            number = int(split[index][0])
            assert place_of(split, name, index) == (("train", number) if number < 30 else ("val", number - 30))


def test_a_collate_function_still_makes_the_batches():
    def collate(items):
        return tuple(torch.stack(parts).double() for parts in zip(*items, strict=True))

    task = replace(numbered(), collate=collate).cross_validated()
    assert fetch(task.resplit(0).train, [0, 1]).teacher_input.dtype == torch.float64


def test_groups_that_hold_a_class_alone_are_refused():
    task = numbered(groups=np.repeat([0, 1], 30))
    task.train.tensors = (*task.train.tensors[:2], torch.zeros(30).long())
    task.val.tensors = (*task.val.tensors[:2], torch.ones(12).long())
    with pytest.raises(InputError, match=r"no 1 of the 2 groups of task 'tiny' leave every class in training; keep"):
        task.cross_validated()


def test_pairs_without_all_labels_stay_in_training():
    y = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(30, 1)
    y[:10, 0] = float("nan")
    x = torch.arange(60.0)[:, None].expand(60, 7)
    parts = {"train": slice(0, 30), "val": slice(30, 45), "test": slice(45, 60)}
    splits = {name: TensorDataset(x[rows], x[rows], y[rows]) for name, rows in parts.items()}
    task = replace(tiny_task.task(), **splits, problem=mfh.Problem.multi_label(), missing_target=float("nan"))
    for seed in range(3):
        one = task.cross_validated().resplit(seed)
        assert len(one.val) == 15
        assert not all_targets(one.val).isnan().any()


def test_what_cannot_be_cross_validated_is_refused():
    with pytest.raises(InputError, match="has resplit= already"):
        numbered().cross_validated().cross_validated()
    with pytest.raises(InputError, match="has teacher_logits=, and that teacher knows the training pairs"):
        replace(numbered(), teacher_logits=torch.zeros(30, 2)).cross_validated()
    with pytest.raises(InputError, match="has teacher_checkpoint="):
        replace(numbered(), teacher_checkpoint="teacher.safetensors").cross_validated()


def test_a_study_says_that_its_seeds_share_pairs(tmp_path):
    task = tiny_task.task().cross_validated()
    result = mfh.study(task, arms=["no-kd", "regular"], num_seeds=2, processes=1, epochs=1, out=tmp_path / "run")
    assert result.repeats == Repeats("resplit", len(task.train), len(task.val), len(task.test), same_test=True)
    assert result.summary.test_to_train == 0
    assert "all seeds share the test split" in str(result.finding)
    assert result.by_seed("val").nunique().max() > 1
    assert result.best.arm in ("no-kd", "regular")
