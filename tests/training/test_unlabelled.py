"""Pairs without labels, in every kind of training."""

import copy
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from mfh import KDLoss, Problem, Recipe, align, distill, evaluate, pretrain
from mfh.data.embeddings import alone
from mfh.data.epochs import EpochBatches, MixedBatches, Reading, all_targets, reads_the_same
from mfh.data.pairs import AllPairs, Collated, fetch
from mfh.errors import InputError
from mfh.training.heads import EmbeddingHead, fit_head
from mfh.training.labels import separated
from networks import randn, seeded

LABELLED, MORE = 20, 43


def pairs(count=LABELLED + MORE, seed=0):
    x, s = randn(count, 5, seed=seed), randn(count, 4, seed=seed + 1)
    s[:, :2] += 2 * x[:, :2]
    return x, s, (x[:, :2].sum(1) > 0).long()


X, S, Y = pairs()
TRAIN = TensorDataset(X[:LABELLED], S[:LABELLED], Y[:LABELLED])
UNLABELLED = TensorDataset(X[LABELLED:], S[LABELLED:])
VAL = TensorDataset(*pairs(50, 9))
SHORT = Recipe(epochs=3, batch_size=16, keep="last")


class Items(Dataset):
    """The same samples, read one by one."""

    def __init__(self, *tensors):
        self.tensors = tensors

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, index):
        return tuple(tensor[index] for tensor in self.tensors)


def teacher():
    return seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), 1)


def student(outputs=2):
    return seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs)), 2)


def weights(network):
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labelled", "unlabelled", "size"), [(20, 43, 16), (3, 200, 16), (100, 5, 7), (1, 1, 64)])
@pytest.mark.parametrize(("accumulate", "processes"), [(1, 1), (2, 1), (1, 3)])
def test_an_epoch_is_one_pass_over_all_pairs(labelled, unlabelled, size, accumulate, processes):
    seen, sizes = [], []
    for rank in range(processes):
        batches = MixedBatches(labelled, unlabelled, size, 5, accumulate=accumulate, processes=processes, rank=rank)
        plain = EpochBatches(labelled + unlabelled, size, 5, accumulate=accumulate, processes=processes, rank=rank)
        assert len(batches) == len(plain)
        for index, rows in enumerate(batches.rows()):
            if batches.count(index):
                assert len(rows) == batches.count(index) <= size + 1
                known = (rows < labelled).int().tolist()
                assert known == sorted(known, reverse=True)  # labelled pairs first
                assert sum(known) == batches.labelled(index)
                seen += rows.tolist()
                sizes.append((sum(known), len(rows)))
    assert sorted(seen) == list(range(labelled + unlabelled))
    if processes == accumulate == 1:
        assert max(k for k, _ in sizes) - min(k for k, _ in sizes) <= 1
        assert max(n for _, n in sizes) - min(n for _, n in sizes) <= 2


def test_weights_make_a_step_the_mean_over_its_samples():
    values = torch.arange(63.0)
    for step in range(2):
        labels, everything = 0.0, 0.0
        for rank in range(3):
            batches = MixedBatches(20, 43, 8, 5, processes=3, rank=rank)
            rows, (label, every) = batches.rows()[step], batches.weights(step)
            labels += label * values[rows[: batches.labelled(step)]].mean() / 3
            everything += every * values[rows].mean() / 3
        whole = MixedBatches(20, 43, 24, 5).rows()[step]
        assert float(labels) == pytest.approx(float(values[whole[whole < 20]].mean()))
        assert float(everything) == pytest.approx(float(values[whole].mean()))


def test_a_share_of_labelled_pairs():
    batches = MixedBatches(20, 140, 16, 5, labelled_share=0.25)
    rows = batches.rows()
    assert len(batches) == 10
    assert [(int((row < 20).sum()), len(row)) for row in rows] == [(4, 16)] * 10
    counts = torch.bincount(torch.cat(rows), minlength=160)
    assert counts[:20].tolist() == [2] * 20  # 40 places for 20 pairs
    assert counts[20:].max() == 1
    batches.sampler.set_epoch(1)
    assert not torch.equal(torch.cat(batches.rows()), torch.cat(rows))
    alone = MixedBatches(20, 140, 16, 5, labelled_share=1.0)
    assert all(bool((row < 20).all()) and len(row) == 16 for row in alone.rows())
    assert len(alone) == 10


def test_batches_hold_targets_of_labelled_pairs_only():
    for train, more in ((TRAIN, UNLABELLED), (Items(*TRAIN.tensors), Items(*UNLABELLED.tensors))):
        batch = fetch(AllPairs(train, more), [3, 1, 20, 62])
        assert torch.equal(batch.teacher_input, X[[3, 1, 20, 62]])
        assert torch.equal(batch.student_input, S[[3, 1, 20, 62]])
        assert torch.equal(batch.target, Y[[3, 1]])
        assert len(fetch(AllPairs(train, more), [30]).target) == 0


@pytest.mark.parametrize(("labelled", "unlabelled"), [(3, 2), (1, 3), (40, 5), (1, 6)])
def test_no_batch_is_too_small_for_batch_normalisation(labelled, unlabelled):
    batches = MixedBatches(labelled, unlabelled, 2, 0, accumulate=4, least=2)
    sizes = [len(rows) for rows in batches.rows()]
    assert min(sizes) >= 2
    assert sum(map(batches.count, range(len(batches)))) == labelled + unlabelled
    counted = [rows for index, rows in enumerate(batches.rows()) if batches.count(index)]
    assert sorted(torch.cat(counted).tolist()) == list(range(labelled + unlabelled))


def test_batch_normalisation_in_a_small_training():
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    train, more = TensorDataset(X[:3], S[:3], Y[:3]), TensorDataset(X[3:5], S[3:5])
    recipe = Recipe(epochs=1, batch_size=2, accumulate=4)
    assert distill(teacher(), network, train, VAL, unlabelled=more, recipe=recipe).history


# --- training ---------------------------------------------------------------------------------------------------------


def plain_loop(network, loss, recipe, seed):
    """Ten lines of PyTorch: labels count where they are known, the teacher everywhere."""
    optimizer = recipe.optimizer(network.parameters())
    batches = MixedBatches(LABELLED, MORE, recipe.batch_size, seed, labelled_share=recipe.labelled_share)
    for epoch in range(recipe.epochs):
        batches.sampler.set_epoch(epoch)
        for rows in batches.rows():
            optimizer.zero_grad()
            loss(network, rows, rows[rows < LABELLED]).backward()
            optimizer.step()
    return network


@pytest.mark.parametrize("share", [None, 0.5])
def test_distillation_equals_a_plain_loop(share):
    recipe = Recipe(epochs=4, batch_size=16, keep="last", labelled_share=share)
    frozen = teacher().eval()

    def loss(network, rows, known):
        with torch.no_grad():
            wanted = frozen(X[rows]).div(2).softmax(1)
        label = F.cross_entropy(network(S[known]), Y[known])
        divergence = (wanted * (wanted.log() - network(S[rows]).div(2).log_softmax(1))).sum(1).mean()
        return 0.5 * label + 3.0 * 4 * divergence

    slow = plain_loop(student(), loss, recipe, 5)
    given = KDLoss(temperature=2.0, label_weight=0.5, teacher_weight=3.0)
    for train, more in ((TRAIN, UNLABELLED), (Items(*TRAIN.tensors), Items(*UNLABELLED.tensors))):
        fit = distill(teacher(), student(), train, VAL, unlabelled=more, loss=given, recipe=recipe, seed=5)
        torch.testing.assert_close(weights(fit.student), weights(slow), rtol=1e-5, atol=1e-6)
        assert fit.history[-1]["steps"] == 4 * 4
    assert not torch.allclose(weights(slow), weights(student()))


@pytest.mark.parametrize(("labelled", "accumulate"), [(20, 2), (3, 1), (3, 2)])
def test_few_labels_and_accumulated_batches_equal_a_plain_loop(labelled, accumulate):
    recipe = Recipe(epochs=3, batch_size=8, keep="last", accumulate=accumulate)
    frozen, slow, without = teacher().eval(), student(), 0
    optimizer = recipe.optimizer(slow.parameters())
    batches = MixedBatches(labelled, len(X) - labelled, 8, 5, accumulate=accumulate)
    for epoch in range(recipe.epochs):
        batches.sampler.set_epoch(epoch)
        parts = [rows if batches.count(index) else rows[:0] for index, rows in enumerate(batches.rows())]
        for start in range(0, len(parts), accumulate):
            rows = torch.cat(parts[start : start + accumulate])
            known = rows[rows < labelled]
            without += not len(known)
            with torch.no_grad():
                wanted = frozen(X[rows]).softmax(1)
            loss = (wanted * (wanted.log() - slow(S[rows]).log_softmax(1))).sum(1).mean()
            if len(known):
                loss = loss + F.cross_entropy(slow(S[known]), Y[known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert (without > 0) == (labelled == 3)
    train, more = TensorDataset(X[:labelled], S[:labelled], Y[:labelled]), TensorDataset(X[labelled:], S[labelled:])
    fit = distill(teacher(), student(), train, VAL, unlabelled=more, loss=KDLoss(), recipe=recipe, seed=5)
    torch.testing.assert_close(weights(fit.student), weights(slow), rtol=1e-5, atol=1e-6)


def test_joint_training_equals_a_plain_loop():
    recipe = Recipe(epochs=2, batch_size=16)
    both = nn.ModuleList([teacher(), student()])

    def loss(networks, rows, known):
        labels = sum(F.cross_entropy(net(part[known]), Y[known]) for net, part in zip(networks, (X, S), strict=True))
        return labels + F.mse_loss(networks[0](X[rows]), networks[1](S[rows]))

    slow = plain_loop(both, loss, recipe, 3)
    pair = align(teacher(), student(), TRAIN, VAL, unlabelled=UNLABELLED, recipe=recipe, seed=3)
    torch.testing.assert_close(weights(pair.teacher), weights(slow[0]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights(pair.student), weights(slow[1]), rtol=1e-5, atol=1e-6)


def test_unlabelled_pairs_change_a_student_and_none_change_nothing():
    without = distill(teacher(), student(), TRAIN, VAL, recipe=SHORT).student
    empty = distill(teacher(), student(), TRAIN, VAL, unlabelled=[], recipe=SHORT).student
    more = distill(teacher(), student(), TRAIN, VAL, unlabelled=UNLABELLED, recipe=SHORT).student
    assert torch.equal(weights(without), weights(empty))
    assert not torch.allclose(weights(without), weights(more))


def test_known_outputs_and_fresh_ones_are_the_same():
    with torch.no_grad():
        logits = teacher().eval()(X)
    cached = distill(None, student(), TRAIN, VAL, unlabelled=UNLABELLED, teacher_logits=logits, recipe=SHORT)
    fresh = distill(teacher(), student(), TRAIN, VAL, unlabelled=UNLABELLED, recipe=SHORT)
    torch.testing.assert_close(weights(cached.student), weights(fresh.student))


def test_augmented_pairs(caplog):
    class Augmented(Items):
        def __getitem__(self, index):
            x, *rest = super().__getitem__(index)
            return (x + torch.randn(()), *rest)

    more = Augmented(*UNLABELLED.tensors)
    assert not reads_the_same(AllPairs(TRAIN, more))
    fits = [distill(teacher(), student(), TRAIN, VAL, unlabelled=more, recipe=SHORT, seed=1) for _ in range(2)]
    assert "runs on every batch" in caplog.text
    assert torch.equal(weights(fits[0].student), weights(fits[1].student))


def test_a_collate_function_pads_labelled_and_unlabelled_pairs_together():
    def pad(items):
        width = max(len(s) for _, s, _ in items)
        return (
            torch.stack([x for x, _, _ in items]),
            torch.stack([F.pad(s, (0, width - len(s))) for _, s, _ in items]),
            torch.stack([y for _, _, y in items]),
        )

    lengths = [1 + index % 4 for index in range(len(X))]
    ragged = [(x, s[:n], y) for x, s, y, n in zip(X, S, Y, lengths, strict=True)]
    train, more = Collated(ragged[:LABELLED], pad), Collated([item[:2] for item in ragged[LABELLED:]], pad)
    batch = fetch(AllPairs(train, more), [0, 23])
    assert batch.student_input.shape == (2, 4)
    assert torch.equal(batch.target, Y[:1])


def test_targets_of_different_lengths():
    def pad(items):
        longest = max(len(target) for _, _, target in items)
        padded = [F.pad(target, (0, longest - len(target)), value=-100) for _, _, target in items]
        return torch.stack([x for x, _, _ in items]), torch.stack([s for _, s, _ in items]), torch.stack(padded)

    lengths = [9 if index == 0 else 1 + index % 3 for index in range(600)]
    items = [(X[0], S[0], torch.full((n,), -1 if index % 2 else 1)) for index, n in enumerate(lengths)]
    parts = separated(Collated(items, pad), None, Problem.dense(missing=-1))
    assert (len(parts.labelled), len(parts.unlabelled)) == (300, 300)
    batch = fetch(parts.pairs, [2, 300])  # lengths 2 and 2, whatever the first labelled pair has
    assert batch.target.shape == (1, 2)


def test_one_network_is_read_alone_only_where_all_pairs_can_be():
    class Roles(Items):
        def only(self, role):
            empty = torch.empty(len(self), 0)
            x, s, *rest = self.tensors
            return Roles(*((x, empty) if role == "teacher" else (empty, s)), *rest)

    both = AllPairs(Roles(*TRAIN.tensors), ConcatDataset([Roles(*UNLABELLED.tensors), Roles(X, S)]))
    assert fetch(both.only("student"), [0, 30, 70]).teacher_input.shape == (3, 0)
    for unlabelled in (UNLABELLED, Items(*UNLABELLED.tensors), ConcatDataset([Roles(X, S), Items(X, S)])):
        mixed = AllPairs(Roles(*TRAIN.tensors), unlabelled)
        assert torch.equal(fetch(mixed.only("student"), [3, 30]).student_input[0], S[3])
        distill(teacher(), student(), mixed.labelled, VAL, unlabelled=unlabelled, recipe=SHORT)


def test_looking_at_pairs_leaves_the_generators_as_they_were():
    class Augmented(Items):
        def __getitem__(self, index):
            x, *rest = super().__getitem__(index)
            return (x + torch.randn(()) + np.random.rand() + random.random(), *rest)  # noqa: NPY002

    torch.manual_seed(0)
    marked = torch.where(torch.arange(len(Y)) < 5, -1, Y)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    separated(Augmented(X, S, marked), Augmented(X, S), Problem.classification(missing=-1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]


def test_samples_that_come_around_often_are_not_copied(monkeypatch):
    monkeypatch.setattr("mfh.data.epochs._SHUFFLED_BYTES", 40 * (5 + 4 + 2) * 4)
    cpu = torch.device("cpu")
    for rows, whole in ((0, True), (400, False)):
        batches = MixedBatches(LABELLED, rows, 16, 0, labelled_share=1.0)
        reading = Reading(TRAIN, "train", cpu, batches=batches)
        assert reading._shuffled is whole
        drawn = [(torch.equal(batch.teacher_input, X[indices])) for batch, indices in reading]
        assert all(drawn)
        assert len(drawn) == len(batches)


def test_pairs_are_put_together_only_as_far_as_they_are_read(monkeypatch):
    pairs_ = AllPairs(TRAIN, UNLABELLED)
    how = {"device": torch.device("cpu"), "batches": MixedBatches(LABELLED, MORE, 16, 0)}
    reading = Reading(pairs_, "train", fields=("student_input",), **how)
    assert reading.held.teacher_input.numel() == 0
    assert torch.equal(reading.held.student_input, S)
    monkeypatch.setattr("mfh.data.epochs._HELD_BYTES", S.nbytes - 1)
    reading = Reading(pairs_, "train", fields=("student_input",), **how)
    assert reading.held is None
    assert all(torch.equal(batch.student_input, S[indices]) for batch, indices in reading)


def test_tensors_are_cut_as_items_are_read():
    more = ConcatDataset([UNLABELLED, Subset(TRAIN, [4, 2, 9]), TensorDataset(X, S, Y)])
    slow = AllPairs(Items(*TRAIN.tensors), more)
    for indices in ([0, 3, 70, 21, 64, 22, 65], [5], [64, 21, 63]):
        quick = fetch(AllPairs(TRAIN, more), indices)
        for ours, theirs in zip(quick, fetch(slow, indices), strict=True):
            assert torch.equal(ours, theirs)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    given = {"unlabelled": UNLABELLED, "seed": 4}
    whole = distill(teacher(), student(), TRAIN, VAL, recipe=Recipe(epochs=4, batch_size=16, keep="last"), **given)

    class Stops(Items):
        left = 100

        def __getitem__(self, index):
            Stops.left -= 1
            if not Stops.left:
                raise KeyboardInterrupt
            return super().__getitem__(index)

    file, recipe = tmp_path / "c.ckpt", Recipe(epochs=4, batch_size=16, keep="last")
    with pytest.raises(KeyboardInterrupt):
        distill(teacher(), student(), Stops(*TRAIN.tensors), VAL, recipe=recipe, checkpoint=file, **given)
    assert file.exists()
    resumed = distill(teacher(), student(), TRAIN, VAL, recipe=recipe, checkpoint=file, **given)
    assert torch.equal(weights(resumed.student), weights(whole.student))
    assert resumed.history == whole.history


def test_longer_training_takes_as_many_steps():
    fit = pretrain(student(), TRAIN, VAL, role="student", recipe=SHORT, epoch_size=LABELLED + MORE)
    assert fit.history[-1]["steps"] == 12
    assert pretrain(student(), TRAIN, VAL, role="student", recipe=SHORT).history[-1]["steps"] == 6
    with pytest.raises(InputError, match="epoch_size is 3; choose at least the number of training samples, 20"):
        pretrain(student(), TRAIN, VAL, role="student", recipe=SHORT, epoch_size=3)


# --- missing targets --------------------------------------------------------------------------------------------------


def test_classes_that_are_missing_are_unlabelled_pairs():
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    marked = torch.where(torch.arange(len(X)) < LABELLED, Y, -1)
    mixed = TensorDataset(X[order], S[order], marked[order])
    parts = separated(mixed, None, Problem.classification(missing=-1))
    assert (len(parts.labelled), len(parts.unlabelled)) == (LABELLED, MORE)
    known = order < LABELLED
    assert torch.equal(all_targets(parts.labelled), marked[order][known])
    again = TensorDataset(*(t[parts.order] for t in mixed.tensors))
    problem = Problem.classification(missing=-1)
    ours = distill(teacher(), student(), mixed, VAL, problem=problem, recipe=SHORT)
    first = TensorDataset(*(t[:LABELLED] for t in again.tensors))
    rest = TensorDataset(*(t[LABELLED:] for t in again.tensors[:2]))
    theirs = distill(teacher(), student(), first, VAL, unlabelled=rest, recipe=SHORT)
    assert torch.equal(weights(ours.student), weights(theirs.student))
    with torch.no_grad():
        logits = teacher().eval()(mixed.tensors[0])
    given = distill(None, student(), mixed, VAL, teacher_logits=logits, problem=problem, recipe=SHORT)
    torch.testing.assert_close(weights(given.student), weights(ours.student))
    alone = pretrain(student(), mixed, VAL, role="student", problem=problem, recipe=SHORT)
    assert torch.equal(
        weights(alone.network), weights(pretrain(student(), first, VAL, role="student", recipe=SHORT).network)
    )


@pytest.mark.parametrize("kind", ["regression", "multi_label", "dense"])
def test_entries_that_are_missing_do_not_count(kind):
    generator = torch.Generator().manual_seed(3)
    if kind == "dense":
        logits = torch.randn(6, 3, 4, generator=generator, requires_grad=True)
        target, mark = torch.randint(3, (6, 4), generator=generator), -1
        problem, slow = Problem.dense(missing=mark), F.cross_entropy
    elif kind == "multi_label":
        logits = torch.randn(6, 4, generator=generator, requires_grad=True)
        target, mark = torch.randint(2, (6, 4), generator=generator), -1
        problem, slow = Problem.multi_label(missing=mark), F.binary_cross_entropy_with_logits
    else:
        logits = torch.randn(6, 4, generator=generator, requires_grad=True)
        target, mark = torch.randn(6, 4, generator=generator), math.nan
        problem, slow = Problem.regression(missing=mark), F.mse_loss
    gone = torch.rand(6, 4, generator=generator) < 0.4
    gone[2] = True
    marked = torch.where(gone, torch.full_like(target, mark), target)
    entries = []
    for n in range(6):
        for p in range(4):
            if not gone[n, p]:
                one = logits[n, :, p] if kind == "dense" else logits[n, p]
                entries.append(slow(one[None], target[n, p][None].to(target.dtype if kind == "dense" else one.dtype)))
    loss = problem.known_loss(logits, marked)
    torch.testing.assert_close(loss, torch.stack(entries).mean())
    (gradient,) = torch.autograd.grad(loss, logits)
    where = gone[:, None].expand_as(logits) if kind == "dense" else gone
    assert torch.isfinite(gradient).all()
    assert not gradient[where].any()
    assert problem.without_label(marked).tolist() == gone.all(1).tolist()
    problem.check(logits, marked, "train split", range(6), training=True)
    with pytest.raises(InputError, match=r"val split, sample \d: the target holds"):
        problem.check(logits, marked, "val split", range(6))


def test_regression_learns_from_known_numbers_only():
    target = torch.stack([S.sum(1), X.sum(1)], 1)
    target[::2, 0], target[50:], target[5] = math.nan, math.nan, math.nan
    held = TensorDataset(*pairs(50, 9)[:2], torch.zeros(50, 2))
    train, problem = TensorDataset(X, S, target), Problem.regression(missing=math.nan)
    pair_teacher = seeded(lambda: nn.Linear(5, 2), 1)
    fit = distill(pair_teacher, student(), train, held, problem=problem, recipe=SHORT)
    assert all(math.isfinite(entry["train_loss"]) for entry in fit.history)
    assert torch.isfinite(weights(fit.student)).all()


def test_a_head_is_fitted_to_the_entries_that_are_known():
    x, draws = randn(80, 3, seed=1), torch.Generator().manual_seed(2)
    values = torch.stack([x.sum(1), x[:, 0] - x[:, 1], x[:, 2]], 1)
    gone = torch.rand(80, 3, generator=draws) < 0.4
    for problem, target in (
        (Problem.multi_label(missing=-1), (values > 0).long()),
        (Problem.regression(missing=math.nan), values),
    ):
        marked = torch.where(gone, torch.full_like(target, problem.missing), target)
        val = TensorDataset(x, x, target)
        head = EmbeddingHead(3, 3)
        fit_head(head, TensorDataset(x, x, marked), val, problem)
        with torch.no_grad():
            outputs = head(x)
        if problem.name == "regression":
            torch.testing.assert_close(outputs, values, rtol=0, atol=0.05)
        else:
            assert ((outputs > 0) == (target > 0)).float().mean() > 0.95
        with pytest.raises(InputError, match=r"val split, sample \d: the target holds"):
            fit_head(head, val, TensorDataset(x, x, marked), problem)
    wrong = TensorDataset(x, x, torch.where(torch.arange(80) == 4, -100, 1))
    with pytest.raises(InputError, match=r"train split, sample 4: the target holds -100"):
        fit_head(EmbeddingHead(3, 2), wrong, wrong, Problem.classification())


def test_a_label_loss_of_ones_own_does_not_see_missing_entries():
    logits, target = randn(4, 3), torch.tensor([[1, 0, -1], [-1, -1, 0], [0, 1, 1], [-1, 1, -1]])
    own = KDLoss(label_loss=lambda scores, labels: F.mse_loss(scores.sigmoid(), labels.float()))
    loss = Problem.multi_label(missing=-1).complete(own)
    known = target >= 0
    label, _ = loss.terms(logits, logits, target)
    torch.testing.assert_close(label, F.mse_loss(logits.sigmoid()[known], target[known].float()))


@pytest.mark.parametrize("kind", ["dense", "multi_label"])
def test_labels_are_smoothed_only_where_they_are_known(kind):
    target = torch.tensor([[1, 0, -1], [-1, 1, 0]])
    if kind == "dense":
        logits, target = randn(2, 4, 3), torch.where(torch.arange(3) == 0, -100, target)
        problem, kept = Problem.dense(missing=-1), target >= 0
    else:
        logits, problem, kept = randn(2, 3), Problem.multi_label(missing=-1), target >= 0
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(problem.smoothed(0.3)(logits, target), logits)
    trained = gradient.abs().sum(1) > 0 if kind == "dense" else gradient != 0
    assert torch.equal(trained, kept)


@pytest.mark.parametrize("changed", [{"label_smoothing": 0.0}, {"epoch_size": None}, {"train": VAL}])
def test_a_training_is_not_resumed_with_other_settings(tmp_path, changed):
    given = {"train": TRAIN, "label_smoothing": 0.1, "epoch_size": 50, "checkpoint": tmp_path / "c.ckpt"}

    def run(train, **more):
        pretrain(student(), train, VAL, role="student", recipe=SHORT, **more)

    run(**given)
    run(**given)
    with pytest.raises(InputError, match=r"was made with (label_smoothing|epoch_size|labelled_pairs) .*, now it is"):
        run(**(given | changed))


# --- bad input --------------------------------------------------------------------------------------------------------


def refused(match, train=TRAIN, unlabelled=UNLABELLED, **more):
    given = {"val": VAL, "unlabelled": unlabelled, "recipe": SHORT, **more}
    with pytest.raises(InputError, match=match) as caught:
        distill(teacher(), student(), train, **given)
    assert "\n" not in str(caught.value)


def test_bad_input():
    refused(
        r"unlabelled pairs have inputs of shapes \(5,\) and \(3,\).*labelled ones \(5,\) and \(4,\)",
        unlabelled=TensorDataset(X[:9], S[:9, :3]),
    )
    refused(
        r"student_input is float64 with 1 dimensions in an unlabelled pair and float32 with 1",
        unlabelled=TensorDataset(X[:9], S[:9].double()),
    )
    refused(r"an unlabelled item is a tuple of length 1", unlabelled=Items(X[:9]))
    refused(
        r"the teacher's logits are NaN or infinite \(unlabelled split, sample 4\)",
        unlabelled=TensorDataset(spoiled(X[:9], 4), S[:9]),
    )
    refused(
        r"the target is of type torch.float32; class indices of type torch.int64 were expected: .long\(\)",
        train=TensorDataset(*TRAIN.tensors[:2], Y[:LABELLED].float()),
    )
    refused(r"unlabelled is a dict; a map-style data set", unlabelled={"a": 1})
    refused(r"loss _my_loss needs the labels of all pairs", loss=_my_loss)
    refused(r"teacher_logits has 20 rows for 63 samples", teacher_logits=torch.zeros(20, 2))
    refused(
        r"train split, sample 3: the target holds -1; class indices from 0 to 1 were expected",
        train=TensorDataset(*TRAIN.tensors[:2], Y[:LABELLED].clone().index_fill(0, torch.tensor([3]), -1)),
    )
    marked = TensorDataset(*VAL.tensors[:2], VAL.tensors[2].clone().index_fill(0, torch.tensor([7]), -1))
    refused(r"val split, sample 7: the target holds -1", val=marked, problem=Problem.classification(missing=-1))
    refused(
        r"no pair of the train split has a label: all targets are -1",
        train=TensorDataset(X, S, torch.full_like(Y, -1)),
        problem=Problem.classification(missing=-1),
    )
    for share in (0, 1.5):
        with pytest.raises(InputError, match=r"labelled_share is .*; choose 0.0001 to 1"):
            Recipe(labelled_share=share)


def spoiled(values, row):
    return values.index_fill(0, torch.tensor([row]), math.inf)


@pytest.mark.parametrize("kind", [TensorDataset, Items])
def test_messages_name_pairs_as_they_were_given(kind):
    refused(r"^unlabelled split, sample 4: student_input holds inf", unlabelled=kind(X[:9], spoiled(S[:9], 4)))
    marked = torch.where(torch.arange(len(Y)) < 5, -1, Y)
    given = {"unlabelled": None, "problem": Problem.classification(missing=-1)}
    for row in (2, 20):  # without a label and with one
        refused(rf"^train split, sample {row}: student_input holds", train=kind(X, spoiled(S, row), marked), **given)
    refused(
        r"^train split, sample 30: the target holds 7",
        train=kind(X, S, marked.index_fill(0, torch.tensor([30]), 7)),
        **given,
    )
    refused(
        r"^unlabelled split, sample 4: student_input holds",
        train=kind(X, S, marked),
        **given | {"unlabelled": kind(X[:9], spoiled(S[:9], 4))},
    )
    with pytest.raises(InputError, match=r"^teacher_train split, sample 3: teacher_input holds inf"):
        pretrain(teacher(), alone(kind(spoiled(X, 3), Y)), VAL, role="teacher", recipe=SHORT)


class Broken(Items):
    """Items of which one cannot be read."""

    row, error = 4, OSError("no file 4.wav")

    def __getitem__(self, index):
        if index == self.row:
            raise self.error
        return super().__getitem__(index)


class Refused(Broken):
    error = InputError("clip 4 is silent")


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize(
    ("kind", "said"),
    [(Broken, "item 4 of a Broken cannot be read: OSError: no file 4.wav"), (Refused, "clip 4 is silent")],
)
def test_errors_of_items_name_the_split_that_they_were_given_in(kind, said, num_workers):
    recipe = Recipe(epochs=1, batch_size=16, num_workers=num_workers)
    marked = torch.where(torch.arange(len(Y)) < 3, -1, Y)
    given = {"problem": Problem.classification(missing=-1), "recipe": recipe}
    targets = known(marked)  # so that items are read in training only
    for changed, split in (
        ({"unlabelled": kind(X[:9], S[:9])}, "unlabelled"),
        ({"train": TensorDataset(X, S, marked), "unlabelled": kind(X[:9], S[:9])}, "unlabelled"),
        ({"train": targets(kind(X, S, marked)), "unlabelled": TensorDataset(X[:9], S[:9])}, "train"),
    ):
        refused(rf"^{split} split: {said}$", **given | changed)
    hidden = kind(X, S, torch.where(torch.arange(len(Y)) == 4, -1, Y))  # the pair without a label is the one
    refused(rf"^train split: {said}$", train=known(hidden.tensors[2])(hidden), unlabelled=None, **given)


def known(targets):
    def with_targets(dataset):
        dataset.targets = targets
        return dataset

    return with_targets


def test_only_training_data_may_miss_targets():
    marked = TensorDataset(S, S, torch.full((len(S), 2), math.nan))
    with pytest.raises(InputError, match="train split, sample 0: the target holds nan"):
        evaluate(student(), marked, "student", problem=Problem.regression(missing=math.nan), split="train")


def _my_loss(student_logits, teacher_logits, target):
    return F.cross_entropy(student_logits, target) + F.mse_loss(student_logits, teacher_logits)


def test_class_indices_kept_by_a_data_set_are_not_read_again():
    class Known(Items):
        targets = Y.numpy().copy()

        def __getitem__(self, index):
            raise AssertionError("read")

    assert np.array_equal(all_targets(Known(X, S, Y)), Y)
    assert copy.deepcopy(Y).equal(all_targets(Items(X, S, Y)))


def test_targets_that_a_data_set_holds_are_used_only_if_they_are_the_items():
    class Held(Items):
        targets = ["still"] * len(Y)
        target_transform = None

    assert torch.equal(all_targets(Held(X, S, Y)), Y)
    Held.targets, Held.target_transform = (1 - Y).tolist(), lambda label: 1 - label
    assert torch.equal(all_targets(Held(X, S, Y)), Y)
    Held.target_transform = None
    assert torch.equal(all_targets(Held(X, S, Y)), 1 - Y)
