"""Many networks at once are trained as each of them alone."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from mfh import KDLoss, Recipe, align, distill, pretrain
from mfh.data.epochs import Reading
from mfh.errors import InputError
from mfh.networks.standardise import Standardise
from mfh.problems import metrics
from mfh.problems.problem import Problem
from mfh.training import together as at_once
from mfh.training.loop import Training
from mfh.training.together import MOST_NETWORKS, Ready, obstacle, train_together
from networks import randn, seeded

LABELLED, MORE, CLASSES = 24, 60, 3


def pairs(count, seed):
    x, s = randn(count, 5, seed=seed).double(), randn(count, 4, seed=seed + 1).double()
    s[:, :2] += 2 * x[:, :2]
    return x, s, (x[:, :2].sum(1) > 0).long() + (x[:, 2] > 1).long()


def data(seed):
    """Labelled pairs, unlabelled pairs and validation pairs of a seed."""
    x, s, y = pairs(LABELLED + MORE, 10 * seed)
    train = TensorDataset(x[:LABELLED], s[:LABELLED], y[:LABELLED])
    return train, TensorDataset(x[LABELLED:], s[LABELLED:]), TensorDataset(*pairs(30, 10 * seed + 5))


def teacher(seed):
    return seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES)), seed + 100).double()


def student(seed):
    mean, std = randn(4, seed=seed), randn(4, seed=seed + 1).abs() + 0.5

    def make():
        return nn.Sequential(Standardise(mean, std), nn.Linear(4, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, CLASSES))

    return seeded(make, seed).double()


class Filters(nn.Module):
    """A network with a forward pass of its own."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 3, padding=1)
        self.out = nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.out(torch.relu(self.conv(x.unsqueeze(1))).flatten(1))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def only_matrices(parameters):
    matrices, others = [], []
    for parameter in parameters:
        (matrices if parameter.ndim > 1 else others).append(parameter)
    return torch.optim.Adam([{"params": matrices, "weight_decay": 0.1}, {"params": others, "lr": 0.02}], lr=0.01)


def halving(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


class _StoppedError(Exception):
    pass


def waiting(monkeypatch, function, *arguments, **options):
    """A training that has come to its first step, and goes no further."""
    found = []

    def stop(self, train, val):
        found.append(Ready(self, train, val))
        raise _StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(Training, "run", stop)
        with pytest.raises(_StoppedError):
            function(*arguments, **options)
    return found[0]


def weights(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def assert_same_history(found, wanted):
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6, nan_ok=True)  # validation is in single precision


LOSSES = [
    KDLoss(),
    KDLoss(label_weight=0.0),
    KDLoss(label_weight=0.5, teacher_weight=2.0),
    KDLoss(reduction="mean"),
]
TEMPERED = [KDLoss(temperature=4.0), KDLoss(temperature=2.0, reduction="mean", label_weight=0.3)]
LONG = Recipe(epochs=9, batch_size=16, optimizer=adamw)  # 6 steps in an epoch


@pytest.mark.parametrize(
    ("recipe", "make", "losses"),
    [
        (LONG, student, LOSSES),
        (LONG, student, TEMPERED),
        (Recipe(epochs=9, batch_size=16, optimizer=sgd, scheduler=halving, labelled_share=0.5), student, LOSSES[:1]),
        (Recipe(epochs=9, batch_size=16, optimizer=only_matrices, keep="best-loss"), student, LOSSES[:1]),
        (Recipe(epochs=9, batch_size=16, optimizer=adamw, keep="last", class_weights="balanced"), student, LOSSES[:1]),
        (LONG, lambda seed: seeded(Filters, seed).double(), LOSSES[:1]),
    ],
    ids=["losses", "temperatures", "scheduler and shares", "groups of parameters", "class weights", "own forward"],
)
def test_students_of_several_seeds_and_losses_are_those_of_distill(monkeypatch, recipe, make, losses):
    todo = [(seed, loss) for seed in range(3) for loss in losses]
    alone, together = [], []
    for seed, loss in todo:
        train, unlabelled, val = data(seed)
        logits = randn(LABELLED + MORE, CLASSES, seed=seed).double() * 2
        options = {"loss": loss, "teacher_logits": logits, "recipe": recipe, "seed": seed, "unlabelled": unlabelled}
        alone.append(distill(None, make(seed), train, val, **options))
        together.append(waiting(monkeypatch, distill, None, make(seed), train, val, **options))
    starts = [weights(one.training.objective.networks["student"]) for one in together]
    assert train_together(together) == [None] * len(todo)
    for one, fit, start in zip(together, alone, starts, strict=True):
        state, network = one.training.state, one.training.objective.networks["student"]
        assert state.steps >= 50
        assert state.best_epoch == fit.best_epoch
        assert_same_history(state.history, fit.history)
        if state.weights:
            network.load_state_dict(state.weights)
        assert (weights(network) - start).abs().max() > 0.05
        torch.testing.assert_close(weights(network), weights(fit.network), rtol=1e-9, atol=1e-11)


def test_controls_on_labels_and_smoothed_labels_are_those_of_pretrain(monkeypatch):
    train, _, val = data(0)
    options = {"role": "student", "recipe": LONG, "epoch_size": LABELLED + MORE}
    kinds = [{"label_smoothing": 0.0}, {"label_smoothing": 0.1}, {"seed": 3}]
    alone = [pretrain(student(0), train, val, **options, **kind) for kind in kinds]
    together = [waiting(monkeypatch, pretrain, student(0), train, val, **options, **kind) for kind in kinds]
    assert train_together(together) == [None] * 3
    for one, fit in zip(together, alone, strict=True):
        assert_same_history(one.training.state.history, fit.history)
        assert one.training.state.best_epoch == fit.best_epoch
    assert alone[0].history != alone[1].history


def test_students_on_labels_and_from_teachers_share_steps(monkeypatch):
    """What differs in kind is another group, and all are as alone."""
    train, unlabelled, val = data(0)
    logits = randn(LABELLED + MORE, CLASSES).double()
    taught = {"teacher_logits": logits, "recipe": LONG, "unlabelled": unlabelled}
    plain = {"role": "student", "recipe": LONG}
    alone = [distill(None, student(0), train, val, **taught), pretrain(student(0), train, val, **plain)]
    together = [
        waiting(monkeypatch, distill, None, student(0), train, val, **taught),
        waiting(monkeypatch, pretrain, student(0), train, val, **plain),
    ]
    assert train_together(together) == [None, None]
    for one, fit in zip(together, alone, strict=True):
        assert_same_history(one.training.state.history, fit.history)


@pytest.mark.parametrize("shared", [False, True], ids=["with unlabelled pairs", "labelled pairs alone"])
def test_aligned_pairs_are_those_of_align(monkeypatch, shared):
    alone, together = [], []
    for seed in range(3):
        train, unlabelled, val = data(seed)
        options = {"recipe": LONG, "seed": seed, "unlabelled": None if shared else unlabelled}
        alone.append(align(teacher(seed), student(seed), train, val, **options))
        together.append(waiting(monkeypatch, align, teacher(seed), student(seed), train, val, **options))
    assert train_together(together) == [None] * 3
    for one, pair in zip(together, alone, strict=True):
        assert_same_history(one.training.state.history, pair.history)
        assert one.training.state.best_epoch == pair.best_epoch
        for role in ("teacher", "student"):
            network = one.training.objective.networks[role]
            torch.testing.assert_close(weights(network), weights(getattr(pair, role)), rtol=1e-9, atol=1e-11)
        best = torch.cat([value.flatten() for value in one.training.state.weights.values()])
        torch.testing.assert_close(best, weights(pair.best_student), rtol=1e-9, atol=1e-11)


def test_each_stops_by_its_own_patience(monkeypatch):
    recipe = Recipe(epochs=12, batch_size=16, optimizer=adamw, patience=2)
    alone, together = [], []
    for seed in range(6):
        train, _, val = data(seed)
        options = {"role": "student", "recipe": recipe, "seed": seed}
        alone.append(pretrain(student(seed), train, val, **options))
        together.append(waiting(monkeypatch, pretrain, student(seed), train, val, **options))
    assert len({len(fit.history) for fit in alone}) > 1
    assert train_together(together) == [None] * 6
    for one, fit in zip(together, alone, strict=True):
        assert_same_history(one.training.state.history, fit.history)
        assert one.training.state.best_epoch == fit.best_epoch


@pytest.mark.parametrize("others", [1, 2, 6, 17])
def test_in_single_precision_a_network_does_not_depend_on_the_others(monkeypatch, others):
    """To the last bit, so that a study that was killed ends with the same rows."""

    def trained(seeds):
        together = []
        for seed in seeds:
            train, _, val = (
                TensorDataset(*(t.float() if t.is_floating_point() else t for t in d.tensors)) for d in data(0)
            )
            options = {"role": "student", "recipe": Recipe(epochs=2, batch_size=16, optimizer=adamw), "seed": seed}
            together.append(waiting(monkeypatch, pretrain, student(seed).float(), train, val, **options))
        assert train_together(together) == [None] * len(seeds)
        return [weights(one.training.objective.networks["student"]) for one in together]

    (alone,) = trained([0])
    first, *_ = trained(range(1 + others))
    *_, last = trained([*range(1, 1 + others), 0])
    assert torch.equal(alone, first)
    assert torch.equal(alone, last)


# --- what is trained alone --------------------------------------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, CLASSES)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.out(x)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.out(x * 2 if x.sum() > 1e9 else x)


def small(layer):
    return nn.Sequential(nn.Linear(4, 6), layer, nn.Linear(6, CLASSES)).double()


@pytest.mark.parametrize(
    ("network", "named"),
    [
        (lambda: small(nn.BatchNorm1d(6)), "layer '1' (BatchNorm1d) keeps statistics of its batches"),
        (lambda: small(nn.BatchNorm1d(6, track_running_stats=False)), "layer '1' (BatchNorm1d) normalises over"),
        (lambda: small(nn.Dropout(0.2)), "layer '1' (Dropout) is random"),
        (lambda: Counting().double(), "'calls' changes"),
        (lambda: Branching().double(), "Branching cannot run for several networks at once"),
    ],
    ids=["batch norm", "batch norm without statistics", "dropout", "changing buffer", "branching"],
)
def test_what_cannot_be_stacked_is_trained_alone_and_the_layer_is_named(monkeypatch, network, named):
    train, _, val = data(0)
    options = {"role": "student", "recipe": Recipe(epochs=2, batch_size=16)}
    fits = [pretrain(seeded(network, seed), train, val, seed=seed, **options) for seed in range(2)]
    together = [waiting(monkeypatch, pretrain, seeded(network, s), train, val, seed=s, **options) for s in range(2)]
    good = waiting(monkeypatch, pretrain, student(0), train, val, **options)
    reasons = train_together([*together, good])
    assert reasons[2] is None
    for reason, one, fit in zip(reasons, together, fits, strict=False):
        assert named in reason
        assert one.training.state.history == fit.history
        network_now = one.training.objective.networks["student"]
        network_now.load_state_dict(one.training.state.weights)
        assert torch.equal(weights(network_now), weights(fit.network))


class Items(Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


def plateau(optimizer):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max")


def own_loss(logits, target):
    return nn.functional.cross_entropy(logits, target)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": Recipe(accumulate=2)}, "accumulates"),
        ({"recipe": Recipe(optimizer=lambda p: torch.optim.LBFGS(p))}, "LBFGS"),
        ({"recipe": Recipe(scheduler=plateau)}, "ReduceLROnPlateau"),
        ({"recipe": Recipe(precision="bf16-mixed")}, "bf16-mixed"),
        ({"problem": Problem.classification(label_loss=own_loss)}, "label loss"),
        ({"train": Items(data(0)[0])}, "one by one"),
    ],
    ids=["accumulate", "optimizer", "scheduler", "precision", "loss", "items"],
)
def test_what_else_stands_in_the_way_is_said(monkeypatch, changes, said):
    train, _, val = data(0)
    options = {"train": train, "val": val, "role": "student", **changes}
    assert said in obstacle(waiting(monkeypatch, pretrain, student(0), **options))


def test_an_own_distillation_loss_stands_in_the_way(monkeypatch):
    train, _, val = data(0)

    def loss(student_logits, teacher_logits, target):
        return nn.functional.mse_loss(student_logits, teacher_logits)

    logits = randn(LABELLED, CLASSES).double()
    one = waiting(monkeypatch, distill, None, student(0), train, val, loss=loss, teacher_logits=logits)
    assert "KDLoss" in obstacle(one)


def test_any_metric_chooses_the_epoch(monkeypatch):
    train, _, val = data(0)
    problem = Problem.classification(metric=metrics.macro_f1())
    options = {"role": "student", "recipe": LONG, "problem": problem}
    fit = pretrain(student(0), train, val, **options)
    one = waiting(monkeypatch, pretrain, student(0), train, val, **options)
    assert train_together([one]) == [None]
    assert_same_history(one.training.state.history, fit.history)
    assert one.training.state.best_epoch == fit.best_epoch


def test_one_that_diverges_says_so_as_alone(monkeypatch):
    train, _, val = data(0)
    recipe = Recipe(epochs=4, batch_size=16, optimizer=lambda p: torch.optim.SGD(p, lr=1e200))
    with pytest.raises(InputError, match="diverged") as alone:
        pretrain(student(0), train, val, role="student", recipe=recipe)
    one = waiting(monkeypatch, pretrain, student(0), train, val, role="student", recipe=recipe)
    with pytest.raises(InputError, match="diverged") as together:
        train_together([one])
    assert str(together.value) == str(alone.value)


def test_a_wrong_target_is_named_as_alone(monkeypatch):
    train, _, val = data(0)
    wrong = TensorDataset(train.tensors[0], train.tensors[1], train.tensors[2].clone())
    wrong.tensors[2][20] = 7
    one = waiting(monkeypatch, pretrain, student(0), wrong, val, role="student", recipe=LONG)
    with pytest.raises(InputError, match="train split, sample 20"):
        train_together([one])


def test_more_networks_than_fit_are_trained_in_turn(monkeypatch):
    train, _, val = data(0)
    options = {"role": "student", "recipe": Recipe(epochs=1, batch_size=16)}
    todo = [waiting(monkeypatch, pretrain, student(seed), train, val, **options) for seed in range(MOST_NETWORKS + 2)]
    assert train_together(todo) == [None] * len(todo)
    assert all(one.training.finished for one in todo)
    assert all(math.isfinite(one.training.state.history[0]["train_loss"]) for one in todo)


def test_networks_are_left_as_trainings_leave_them(monkeypatch):
    train, _, val = data(0)
    network = student(0).eval()
    before = copy.deepcopy(network)
    one = waiting(monkeypatch, pretrain, network, train, val, role="student", recipe=Recipe(epochs=1, batch_size=16))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert train_together([one]) == [None]
    assert torch.equal(torch.rand(3), expected)
    assert not network.training
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not torch.equal(weights(network), weights(before))


class Centred(nn.Module):
    """A network that mixes the samples of a batch in its own code."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.out(x - x.mean(0, keepdim=True))


class TwoNames(nn.Module):
    """A network with one layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again, self.out = self.first, nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.out(self.again(torch.relu(self.first(x))))


@pytest.mark.parametrize(
    ("network", "said"), [(Centred, "depends on the others in the batch"), (TwoNames, "'again.bias' of its state_dict")]
)
def test_mixed_samples_and_shared_layers_are_trained_alone(monkeypatch, network, said):
    """24 pairs make one whole batch of 16 and one of 8, which is filled up where networks are trained together."""
    train, _, val = data(0)
    options = {"role": "student", "recipe": Recipe(epochs=2, batch_size=16)}

    def of(seed):
        return seeded(network, seed).double()

    fits = [pretrain(of(seed), train, val, seed=seed, **options) for seed in range(2)]
    waits = [waiting(monkeypatch, pretrain, of(seed), train, val, seed=seed, **options) for seed in range(2)]
    reasons = train_together(waits)
    for reason, one, fit in zip(reasons, waits, fits, strict=True):
        assert said in reason
        assert one.training.state.history == fit.history
    with pytest.raises(InputError, match="ensemble is 'on'"):
        at_once.together([lambda: pretrain(of(0), train, val, **options)], strict=True)


def test_mixed_samples_of_validation_alone_are_found_too(monkeypatch):
    class Late(Centred):
        def forward(self, x):
            return self.out(x) if self.training else super().forward(x)

    train, _, _ = data(0)
    val = TensorDataset(*pairs(3000, 5))
    one = waiting(monkeypatch, pretrain, Late().double(), train, val, role="student", recipe=Recipe(epochs=1))
    assert "depends on the others" in train_together([one])[0]


@pytest.mark.parametrize("count", [CLASSES - 1, CLASSES + 2])
def test_class_weights_of_a_wrong_number_are_told_as_alone(count):
    train, _, val = data(0)
    recipe = Recipe(epochs=1, batch_size=16, class_weights=[1.0] * count)

    def run():
        return pretrain(student(0), train, val, role="student", recipe=recipe)

    with pytest.raises(InputError, match=f"there are {count} class weights for {CLASSES} classes") as alone:
        run()
    with pytest.raises(InputError) as told:
        at_once.together([run, run], strict=True)
    assert str(told.value) == str(alone.value)


def test_a_training_goes_on_from_a_checkpoint_alone_whatever_is_wanted(tmp_path, monkeypatch):
    train, _, val = data(0)
    options = {"role": "student", "recipe": Recipe(epochs=4, batch_size=16)}
    fit = pretrain(student(0), train, val, **options)
    write, file = Training._write_checkpoint, tmp_path / "left.ckpt"

    def stopped(self, *arguments):
        write(self, *arguments)
        if self.state.epochs == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_write_checkpoint", stopped)
        with pytest.raises(KeyboardInterrupt):
            pretrain(student(0), train, val, checkpoint=file, **options)
    jobs = [
        lambda: pretrain(student(0), train, val, checkpoint=file, **options),
        lambda: pretrain(student(1), train, val, seed=1, **options),
    ]
    resumed, other = at_once.together(jobs, strict=True)
    assert resumed.history == fit.history
    assert torch.equal(weights(resumed.network), weights(fit.network))
    assert len(other.history) == 4


def groups_of(monkeypatch):
    """Numbers of networks that are trained at once from now on."""
    found, run = [], at_once._Group.run

    def counted(self):
        found.append(len(self.members))
        run(self)

    monkeypatch.setattr(at_once._Group, "run", counted)
    return found


def test_many_classes_make_small_groups(monkeypatch):
    """What is to be learnt of each pair has a number for each class."""
    most, classes, sizes = 2**22, 500, groups_of(monkeypatch)
    monkeypatch.setattr(at_once, "_MOST_BYTES", most)
    x, s, y = pairs(100, 0)
    train = TensorDataset(x, s, y)

    def job(seed, width):
        network = seeded(lambda: nn.Linear(4, width), seed).double()
        options = {"role": "student", "recipe": Recipe(epochs=1, batch_size=16), "seed": seed}
        return lambda: pretrain(network, train, train, **options)

    at_once.together([job(seed, classes) for seed in range(6)], strict=True)
    assert sum(sizes) == 6
    assert max(sizes) * len(train) * classes * 8 * 3 <= most
    sizes.clear()
    at_once.together([job(seed, CLASSES) for seed in range(6)], strict=True)
    assert sizes == [6]


def test_parts_of_a_data_set_are_copied_once(monkeypatch):
    rows = list(range(20))
    train, unlabelled, val = data(0)
    copies = []

    class Counted(Reading):
        def __init__(self, dataset, *arguments, **options):
            copies.append(type(dataset).__name__)
            super().__init__(dataset, *arguments, **options)

    monkeypatch.setattr(at_once, "Reading", Counted)
    logits = randn(len(rows) + MORE, CLASSES).double()
    options = {"teacher_logits": logits, "recipe": Recipe(epochs=1, batch_size=16), "unlabelled": unlabelled}
    part, held_out = Subset(train, rows), Subset(val, rows)
    jobs = [lambda seed=seed: distill(None, student(seed), part, held_out, seed=seed, **options) for seed in range(4)]
    at_once.together(jobs, strict=True)
    assert sorted(copies) == ["AllPairs", "Subset"]
    other = Subset(train, list(reversed(rows)))
    copies.clear()
    at_once.together([*jobs, lambda: distill(None, student(4), other, held_out, **options)], strict=True)
    assert sorted(copies) == ["AllPairs", "AllPairs", "Subset"]


def test_what_a_training_took_elsewhere_is_told_once(monkeypatch):
    """Of its own group, whose clock here ticks once per epoch."""
    train, _, val = data(0)
    told, now, run = [], [0.0], at_once._Group.run

    def ticking(self):
        run(self)
        now[0] += self.recipe.epochs

    monkeypatch.setattr(at_once, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(at_once._Group, "run", ticking)

    def job(network, epochs):
        def run():
            recipe = Recipe(epochs=epochs, batch_size=16)
            fit = pretrain(network, train, val, role="student", recipe=recipe)
            told.append((epochs, at_once.trained_elsewhere(), at_once.trained_elsewhere()))
            return fit

        return run

    other = seeded(Filters, 0).double()
    at_once.together([job(student(0), 2), job(student(1), 2), job(other, 5)], strict=True)
    assert told == [(2, (1.0, 2), None), (2, (1.0, 2), None), (5, (5.0, 1), None)]
    assert at_once.trained_elsewhere() is None


def test_a_job_that_trains_alone_after_all_is_told_no_share():
    train, _, val = data(0)
    taken = []

    def job(seed):
        kept = {}

        def run():
            if "first" not in kept:
                kept["first"] = pretrain(student(seed), train, val, role="student", recipe=Recipe(epochs=1))
                taken.append(at_once.trained_elsewhere())
            alone = small(nn.BatchNorm1d(6))
            pretrain(alone, train, val, role="student", recipe=Recipe(epochs=1))
            taken.append(at_once.trained_elsewhere())

        return run

    at_once.together([job(0), job(1)])
    assert [None if one is None else one.networks for one in taken] == [2, None, 2, None]
