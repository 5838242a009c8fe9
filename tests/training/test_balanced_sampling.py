"""Labelled samples drawn so that classes come equally often."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.utils.data import Subset, TensorDataset

import mfh
from mfh import InputError, Problem, Recipe, align, distill, pretrain
from mfh.data.epochs import EpochBatches, MixedBatches, drawn
from mfh.problems.metrics import balanced_accuracy
from mfh.training.fitting import _sampled
from networks import seeded


def rare_class(num_samples=300, seed=0):
    """Two overlapping classes, of which the second is rare."""
    generator = torch.Generator().manual_seed(seed)
    target = (torch.rand(num_samples, generator=generator) < 0.1).long()
    inputs = torch.randn(num_samples, 2, generator=generator) + 1.2 * target[:, None]
    return TensorDataset(inputs, inputs.clone(), target)


CLASSES = torch.tensor([0] * 30 + [1] * 7 + [2] * 3)[torch.randperm(40, generator=torch.Generator().manual_seed(0))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=30), st.integers(0, 70), st.integers(0, 5))
def test_classes_come_equally_often_and_so_do_their_samples(classes, needed, seed):
    classes = torch.tensor(classes)
    rows = drawn(len(classes), needed, torch.Generator().manual_seed(seed), classes)
    assert len(rows) == needed
    times = rows.bincount(minlength=len(classes))
    by_class = [times[classes == value] for value in classes.unique()]
    totals = [int(one.sum()) for one in by_class]
    assert max(totals) - min(totals) <= 1
    assert all(one.max() - one.min() <= 1 for one in by_class)


def test_the_class_that_has_one_more_varies():
    found = (drawn(40, 4, torch.Generator().manual_seed(seed), CLASSES) for seed in range(20))
    assert {int(CLASSES[rows].bincount().argmax()) for rows in found} == {0, 1, 2}


def test_without_classes_it_is_one_shuffle_after_another():
    rows, generator = drawn(7, 17, torch.Generator().manual_seed(3)), torch.Generator().manual_seed(3)
    shuffles = [torch.randperm(7, generator=generator) for _ in range(3)]
    assert torch.equal(rows, torch.cat(shuffles)[:17])


@pytest.mark.parametrize("unlabelled", [0, 50])
@pytest.mark.parametrize(("accumulate", "processes"), [(1, 1), (2, 1), (1, 2)])
def test_batches_of_an_epoch(unlabelled, accumulate, processes):
    def parts(size, accumulate, processes, epoch):
        how = {"accumulate": accumulate, "classes": CLASSES, "processes": processes}
        for rank in range(processes):
            if unlabelled:
                batches = MixedBatches(40, unlabelled, size, 5, labelled_share=0.5, rank=rank, **how)
            else:
                batches = EpochBatches(40, size, 5, rank=rank, **how)
            batches.sampler.set_epoch(epoch)
            yield torch.cat([rows for index, rows in enumerate(batches.rows()) if batches.count(index)])

    whole = torch.cat(list(parts(16, 1, 1, 3)))
    labelled = whole[whole < 40]
    counts = CLASSES[labelled].bincount()
    assert len(whole) == (6 * 16 if unlabelled else 40)
    assert counts.max() - counts.min() <= 1
    assert (labelled.bincount(minlength=40)[CLASSES == 2] > 3).all()
    together = torch.cat(list(parts(16 // accumulate // processes, accumulate, processes, 3)))
    assert sorted(together.tolist()) == sorted(whole.tolist())  # however a step is shared out
    assert not torch.equal(torch.cat(list(parts(16, 1, 1, 4))), whole)
    if unlabelled:  # they come as without
        plain = torch.cat(MixedBatches(40, unlabelled, 16, 5, labelled_share=0.5).rows())
        assert (whole >= 40).sum() == (plain >= 40).sum()


@pytest.mark.parametrize("how", ["pretrain", "longer", "align", "distill", "distill with unlabelled pairs"])
def test_it_finds_the_rare_class(how):
    train, val = rare_class(), rare_class(seed=1)
    problem = Problem.classification(metric=balanced_accuracy())
    found = {}
    for balanced in (False, True):
        teacher, student = seeded(lambda: nn.Linear(2, 2)), seeded(lambda: nn.Linear(2, 2), 1)
        optimizer = lambda parameters: torch.optim.Adam(parameters, lr=0.05)  # noqa: E731
        recipe = Recipe(epochs=8, balanced_sampling=balanced, optimizer=optimizer, keep="last")
        options = {"problem": problem, "recipe": recipe, "device": "cpu"}
        if how in ("pretrain", "longer"):
            size = 400 if how == "longer" else None
            network = pretrain(student, train, val, role="student", epoch_size=size, **options).network
        elif how == "align":
            network = align(teacher, student, train, val, **options).student
        else:
            more = TensorDataset(*rare_class(200, seed=2).tensors[:2]) if "unlabelled" in how else None
            loss = mfh.KDLoss(teacher_weight=0.01)
            network = distill(teacher, student, train, val, unlabelled=more, loss=loss, **options).student
        found[balanced] = mfh.evaluate(network, val, "student", problem=problem)
    assert found[True] > found[False] + 0.1


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    class Stops(torch.utils.data.Dataset):
        reads = 0

        def __len__(self):
            return 300

        def __getitem__(self, index):
            Stops.reads += 1
            if Stops.reads > 1100:  # the targets, two epochs, and some of the third
                raise KeyboardInterrupt
            return tuple(tensor[index] for tensor in rare.tensors)

    rare, file = rare_class(), tmp_path / "training.ckpt"
    given = {"role": "student", "recipe": Recipe(epochs=4, balanced_sampling=True, keep="last"), "device": "cpu"}
    whole = pretrain(seeded(lambda: nn.Linear(2, 2)), rare, rare, **given)
    with pytest.raises(KeyboardInterrupt):
        pretrain(seeded(lambda: nn.Linear(2, 2)), Stops(), rare, checkpoint=file, **given)
    plain = given | {"recipe": Recipe(epochs=4, keep="last")}
    with pytest.raises(InputError, match="balanced_sampling"):
        pretrain(seeded(lambda: nn.Linear(2, 2)), rare, rare, checkpoint=file, **plain)
    resumed = pretrain(seeded(lambda: nn.Linear(2, 2)), rare, rare, checkpoint=file, **given)
    assert resumed.history == whole.history
    assert torch.equal(resumed.network.weight, whole.network.weight)


def test_pairs_that_lost_their_label_are_of_no_class():
    inputs, _, target = rare_class(60).tensors
    target = torch.where(torch.arange(60) % 3 == 0, -1, target)
    recipe = Recipe(epochs=1, balanced_sampling=True)
    problem = Problem.classification(missing=-1)
    fit = distill(
        seeded(lambda: nn.Linear(2, 2)), seeded(lambda: nn.Linear(2, 2)), TensorDataset(inputs, inputs, target),
        rare_class(30), problem=problem, recipe=recipe, device="cpu",
    )  # fmt: skip
    assert len(fit.history) == 1


def test_facts_and_options():
    assert "balanced_sampling" not in Recipe().facts()
    assert Recipe(balanced_sampling=True).facts()["balanced_sampling"] is True
    assert mfh.Settings.of(balanced_sampling=True).training.changes() == {"balanced_sampling": True}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Recipe(balanced_sampling="yes"), "balanced_sampling"),
        (lambda: Recipe(balanced_sampling=True, class_weights="balanced"), "leave one of them out"),
        (
            lambda: train(Problem.multi_label()),
            "balanced_sampling was given for the problem multi-label classification",
        ),
        (lambda: train(Problem.regression()), "balanced_sampling was given for the problem regression"),
        (lambda: _sampled(Problem.classification(), BALANCED, pixels()), "one class index for each sample"),
        (lambda: train(Problem.classification(), Subset(wrong(), range(10))), "-7"),
    ],
)
def test_bad_sampling(call, words):
    with pytest.raises(InputError) as error:
        call()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


BALANCED = Recipe(epochs=1, balanced_sampling=True)


def train(problem, data=None):
    numbers = rare_class(20)
    if data is None:
        data = TensorDataset(*numbers.tensors[:2], torch.zeros(20, 2))
    return pretrain(nn.Linear(2, 2), data, numbers, role="student", problem=problem, recipe=BALANCED, device="cpu")


def pixels():
    return TensorDataset(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 3, 3, dtype=torch.long))


def wrong():
    inputs, _, target = rare_class(20).tensors
    return TensorDataset(inputs, inputs, torch.where(torch.arange(20) == 5, -7, target))
