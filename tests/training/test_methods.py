"""Distillation by methods: against plain loops, with what they see, keep and refuse."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from mfh import InputError, KDLoss, Problem, Recipe, distill, evaluate
from mfh.data.epochs import EpochBatches, MixedBatches
from mfh.methods import KD, Attainable, FitNets, FunctionMethod, Method, SimKD
from mfh.methods.checks import forget_warnings
from mfh.training import by_method, fitting
from networks import conv, image, randn, seeded

COUNT = 40
X, S = randn(COUNT, 5), randn(COUNT, 4, seed=1)
S[:, :2] += 2 * X[:, :2]
Y = (X[:, :2].sum(1) > 0).long()
TRAIN, VAL = TensorDataset(X, S, Y), TensorDataset(X[:30], S[:30], Y[:30])
LABELLED = 15
SHORT = Recipe(epochs=3, batch_size=16, keep="last", optimizer=lambda p: torch.optim.SGD(p, lr=0.1))


def teacher():
    return seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), 1)


def student():
    return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2)), 2)


def weights(network):
    return torch.cat([value.flatten() for value in network.state_dict().values()])


def squares(batch):
    return (batch.student_logits - batch.teacher_logits).square().mean()


class Counting(Method):
    """Remembers in a buffer, weighs its loss by it, draws random numbers, and writes down what it sees."""

    name = "counting"
    student_layers = teacher_layers = None

    def __init__(self):
        self.seen = []

    def begin(self, context):
        self.context = context
        modules = nn.Module()
        modules.project = nn.Linear(context.student_shape[0], context.teacher_shape[0])
        modules.register_buffer("count", torch.zeros(()))
        return modules

    def loss(self, batch):
        self.seen.append(batch)
        batch.modules.count += 1
        noise = torch.rand(())
        error = batch.modules.project(batch.student_feature) - batch.teacher_feature
        return error.square().mean() * (1 + noise) / batch.modules.count


class Deployed(nn.Module):
    """The student's trunk, a projector and the teacher's head."""

    def __init__(self, trunk, modules):
        super().__init__()
        self.trunk, self.project, self.head = trunk, modules["project"], modules["head"]

    def forward(self, x):
        return self.head(self.project(self.trunk(x)))


class Reusing(Method):
    name = "reusing"
    student_layers = teacher_layers = None

    def __init__(self, layers=None):
        self.teacher_layers = layers

    def begin(self, context):
        (layer,) = context.teacher_shapes
        project = nn.Linear(context.student_shape[0], context.teacher_shape[0])
        return nn.ModuleDict({"project": project, "head": context.teacher_tails[layer]})

    def loss(self, batch):
        return (batch.modules["project"](batch.student_feature) - batch.teacher_feature).square().mean()

    def deploy(self, student, modules):
        return Deployed(student[:-1], modules)


def plain_loop(network, extra, term, label_weight=1.0, teacher_weight=1.0):
    """A hand-written loop: term(logits, features, indices) is the teacher's; returns the trained student."""
    optimizer = torch.optim.SGD([*network.parameters(), *extra], lr=0.1)
    batches = EpochBatches(COUNT, 16, 0)
    with torch.random.fork_rng():
        for epoch in range(3):
            torch.manual_seed(epoch)  # of seed 0
            batches.sampler.set_epoch(epoch)
            network.train()
            for rows in batches.rows():
                features = network[:-1](S[rows])
                logits = network[-1](features)
                loss = label_weight * F.cross_entropy(logits, Y[rows])
                loss = loss + teacher_weight * term(logits, features, rows)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return network


# --- against plain loops ----------------------------------------------------------------------------------------------


def test_hints_train_as_a_plain_loop():
    own = {}

    class Watched(FitNets):
        def begin(self, context):
            modules = super().begin(context)
            own["start"] = copy.deepcopy(modules)
            return modules

    fit = distill(teacher(), student(), TRAIN, VAL, method=Watched(), recipe=SHORT, device="cpu")
    taught, regressor = teacher(), own["start"]
    with torch.no_grad():
        theirs = taught[:-1](X)
    expected = plain_loop(
        student(), regressor.parameters(), lambda _, features, rows: F.mse_loss(regressor(features), theirs[rows])
    )
    assert not torch.equal(weights(expected), weights(student()))
    torch.testing.assert_close(weights(fit.student), weights(expected), rtol=1e-6, atol=1e-7)
    assert fit.extra_parameters == 6 * 8 + 8
    assert fit.extra_bytes == 4 * (6 * 8 + 8 + COUNT * 8)


@pytest.mark.parametrize("pair", [None, (0.5, 2.0)])
def test_a_function_trains_as_a_plain_loop(pair):
    given = {} if pair is None else {"label_weight": pair[0], "teacher_weight": pair[1]}
    fit = distill(teacher(), student(), TRAIN, VAL, method=squares, recipe=SHORT, device="cpu", **given)
    with torch.no_grad():
        theirs = teacher()(X)
    expected = plain_loop(
        student(), [], lambda logits, _, rows: (logits - theirs[rows]).square().mean(), *(pair or (1.0, 1.0))
    )
    torch.testing.assert_close(weights(fit.student), weights(expected), rtol=1e-6, atol=1e-7)


def test_loss_is_short_for_a_method():
    loss = KDLoss(temperature=2.0, teacher_weight=0.7)
    fits = [
        distill(teacher(), student(), TRAIN, VAL, recipe=SHORT, **how)
        for how in (
            {"loss": loss},
            {"method": KD(loss)},
            {"method": KD(KDLoss(temperature=2.0)), "teacher_weight": 0.7},
            {"method": "kd"},
        )
    ]
    assert torch.equal(weights(fits[0].student), weights(fits[1].student))
    assert torch.equal(weights(fits[0].student), weights(fits[2].student))
    assert not torch.equal(weights(fits[0].student), weights(fits[3].student))


def test_kd_as_a_method_of_ones_own_is_kd():
    """The general way must give what the short way for KD gives."""

    def divergence(batch):
        return KD().loss(batch)

    ours = distill(teacher(), student(), TRAIN, VAL, method=divergence, recipe=SHORT)
    theirs = distill(teacher(), student(), TRAIN, VAL, recipe=SHORT)
    assert torch.equal(weights(ours.student), weights(theirs.student))
    assert ours.history == theirs.history


def test_all_methods_start_from_the_same_student_and_see_the_same_data(monkeypatch):
    orders = {}
    loss = by_method.ByMethod.loss

    def watched(self, batch, indices, label_share=1.0):
        orders.setdefault(self.computes, []).extend(indices.tolist())
        return loss(self, batch, indices, label_share)

    monkeypatch.setattr(by_method.ByMethod, "loss", watched)
    before = torch.get_rng_state()
    for method in (Counting(), squares, "fitnets"):
        distill(teacher(), student(), TRAIN, VAL, method=method, recipe=SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    first, *others = orders.values()
    assert sorted(first[:COUNT]) == list(range(COUNT))
    assert len(others) == 2
    assert all(first == other for other in others)


# --- checkpoints ------------------------------------------------------------------------------------------------------


class StopError(Exception):
    pass


@pytest.mark.parametrize("make", [Counting, FitNets, lambda: FunctionMethod(squares), Reusing])
def test_a_resumed_training_is_the_same(make, tmp_path, monkeypatch):
    recipe = Recipe(epochs=4, batch_size=16)  # Adam, and the epoch best on validation
    whole = distill(teacher(), student(), TRAIN, VAL, method=make(), recipe=recipe)
    write = fitting.Training._write_checkpoint

    def interrupted(self, *arguments):
        write(self, *arguments)
        if self.state.epochs == 2:
            raise StopError

    path = tmp_path / "training.ckpt"
    with monkeypatch.context() as patch:
        patch.setattr(fitting.Training, "_write_checkpoint", interrupted)
        with pytest.raises(StopError):
            distill(teacher(), student(), TRAIN, VAL, method=make(), recipe=recipe, checkpoint=path)
    resumed = distill(teacher(), student(), TRAIN, VAL, method=make(), recipe=recipe, checkpoint=path)
    assert resumed.history == whole.history
    assert torch.equal(weights(resumed.student), weights(whole.student))
    again = distill(teacher(), student(), TRAIN, VAL, method=make(), recipe=recipe, checkpoint=path)
    assert torch.equal(weights(again.student), weights(whole.student))


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    path = tmp_path / "training.ckpt"
    distill(teacher(), student(), TRAIN, VAL, method=squares, recipe=SHORT, checkpoint=path)

    def cubes(batch):
        return (batch.student_logits - batch.teacher_logits).abs().pow(3).mean()

    with pytest.raises(InputError, match=r'was made with method\.method "squares", now it is ".*cubes"; delete it'):
        distill(teacher(), student(), TRAIN, VAL, method=cubes, recipe=SHORT, checkpoint=path)
    with pytest.raises(InputError, match=r"was made with method\.teacher_weight 1\.0, now it is 2; delete it"):
        distill(teacher(), student(), TRAIN, VAL, method=squares, teacher_weight=2, recipe=SHORT, checkpoint=path)


def test_an_option_of_a_method_is_not_taken_for_one_of_the_recipe(tmp_path):
    class Patient(Method):
        name = "patient"

        def __init__(self, epochs):
            self.epochs = epochs

        def loss(self, batch):
            return squares(batch)

    path = tmp_path / "training.ckpt"
    distill(teacher(), student(), TRAIN, VAL, method=Patient(7), recipe=SHORT, checkpoint=path)
    with pytest.raises(InputError, match=r"was made with epochs 3, now it is 4; delete it"):
        distill(teacher(), student(), TRAIN, VAL, method=Patient(7), recipe=replace(SHORT, epochs=4), checkpoint=path)
    with pytest.raises(InputError, match=r"was made with method\.options\.epochs 7, now it is 8; delete it"):
        distill(teacher(), student(), TRAIN, VAL, method=Patient(8), recipe=SHORT, checkpoint=path)


# --- what a method sees -----------------------------------------------------------------------------------------------


def test_what_begins_and_what_is_in_a_batch():
    method, taught = Counting(), teacher()
    distill(taught, student(), TRAIN, VAL, method=method, recipe=SHORT)
    context = method.context
    assert (context.num_labelled, context.num_pairs, context.logits_shape) == (COUNT, COUNT, (2,))
    assert (context.student_shape, context.teacher_shape) == ((6,), (8,))
    with torch.no_grad():
        torch.testing.assert_close(context.teacher_logits, taught(X))
        (features,) = context.teacher_features.values()
        torch.testing.assert_close(features, taught[:-1](X))
    assert len(method.seen) == 9
    assert [batch.epoch for batch in method.seen] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for batch in method.seen:
        assert batch.labelled.all()
        assert torch.equal(batch.target, Y[batch.index])
        torch.testing.assert_close(batch.teacher_feature, features[batch.index])
        assert batch.student_feature.requires_grad
        assert not batch.teacher_logits.requires_grad
    assert method.seen[0].modules.count == 9


class Unsteady(Dataset):
    """The same pairs, but a teacher input that is another tensor whenever it is read."""

    def __init__(self):
        self.reads = 0

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        self.reads += 1
        return X[index] + 1e-6 * (self.reads % 7), S[index], Y[index]


def test_a_teacher_whose_inputs_are_augmented_runs_on_every_batch(caplog):
    method, taught = Counting(), teacher()
    with caplog.at_level(logging.WARNING, "mfh"):
        fit = distill(taught, student(), Unsteady(), VAL, method=method, recipe=SHORT)
    assert "the teacher runs on every batch" in caplog.text
    assert method.context.teacher_logits is None
    assert not method.context.teacher_features
    assert method.context.teacher_shape == (8,)
    cached = distill(teacher(), student(), TRAIN, VAL, method=Counting(), recipe=SHORT)
    torch.testing.assert_close(weights(fit.student), weights(cached.student), rtol=1e-4, atol=1e-5)
    assert not any(module._forward_pre_hooks for module in taught.modules())


def test_features_and_logits_may_be_known_already():
    taught = teacher()
    with torch.no_grad():
        logits, features = taught(X), taught[:-1](X)
    ours = distill(
        None,
        student(),
        TRAIN,
        VAL,
        method="fitnets",
        teacher_logits=logits,
        teacher_features={"t": features},
        recipe=SHORT,
    )
    theirs = distill(taught, student(), TRAIN, VAL, method="fitnets", recipe=SHORT)
    torch.testing.assert_close(weights(ours.student), weights(theirs.student), rtol=1e-6, atol=1e-7)


def test_large_features_stay_where_they_are(monkeypatch):
    whole = distill(teacher(), student(), TRAIN, VAL, method="fitnets", recipe=SHORT)
    monkeypatch.setattr(by_method, "IN_MEMORY_BYTES", 16)
    far = distill(teacher(), student(), TRAIN, VAL, method="fitnets", recipe=SHORT)
    assert torch.equal(weights(whole.student), weights(far.student))


def test_a_focus_is_handed_over():
    method = Counting()
    focus = {"1": torch.arange(8.0)}
    method.teacher_layers = ("1",)
    distill(teacher(), student(), TRAIN, VAL, method=method, channel_weights=focus, recipe=SHORT)
    assert torch.equal(method.seen[0].channel_weight, torch.arange(8.0))
    assert torch.equal(method.context.channel_weights["1"], torch.arange(8.0))


def test_the_teacher_is_trained_where_the_method_says_so():
    class Both(Method):
        name = "both"
        trains_teacher = True
        student_layers = teacher_layers = None

        def loss(self, batch):
            assert batch.teacher_logits.requires_grad
            assert batch.teacher_feature.requires_grad
            seen.append(weights(own[0]))
            return F.cross_entropy(batch.teacher_logits, batch.target) + squares(batch)

        def begin(self, context):
            own.append(context.teacher)
            assert context.teacher_logits is None

    own, seen, taught = [], [], teacher().requires_grad_(False)
    before = weights(taught).clone()
    fit = distill(taught, student(), TRAIN, VAL, method=Both(), recipe=SHORT)
    assert torch.equal(weights(taught), before)
    assert own[0] is not taught
    assert not torch.equal(seen[0], seen[-1])
    assert "teacher_val_accuracy" in fit.history[0]
    assert fit.extra_parameters == sum(parameter.numel() for parameter in taught.parameters())


# --- labelled and unlabelled pairs ------------------------------------------------------------------------------------


KNOWN = TensorDataset(X[:LABELLED], S[:LABELLED], Y[:LABELLED])
UNKNOWN = TensorDataset(X[LABELLED:], S[LABELLED:])


def test_unlabelled_pairs_count_in_the_method_alone():
    method = Counting()
    distill(teacher(), student(), KNOWN, VAL, unlabelled=UNKNOWN, method=method, recipe=SHORT)
    batches = MixedBatches(LABELLED, COUNT - LABELLED, 16, 0)
    for batch, rows in zip(method.seen, batches.rows(), strict=False):
        assert torch.equal(batch.index, rows)
        assert torch.equal(batch.labelled, rows < LABELLED)
        assert len(batch.target) == len(rows)
        assert torch.equal(batch.target[batch.labelled], Y[rows[batch.labelled]])
        assert set(batch.target.tolist()) <= {0, 1}
    assert (method.context.num_labelled, method.context.num_pairs) == (LABELLED, COUNT)


@pytest.mark.parametrize("needs", [False, True])
def test_the_step_with_unlabelled_pairs_is_the_mean_over_its_own_counts(needs):
    method = FunctionMethod(squares, needs_labels=needs)
    recipe = Recipe(epochs=1, batch_size=COUNT, keep="last", optimizer=lambda p: torch.optim.SGD(p, lr=0.5))
    network = nn.Sequential(nn.Linear(4, 2))
    start = copy.deepcopy(network)
    fit = distill(
        teacher(),
        network,
        KNOWN,
        VAL,
        unlabelled=UNKNOWN,
        method=method,
        label_weight=0.5,
        teacher_weight=3.0,
        recipe=recipe,
    )
    with torch.no_grad():
        theirs = teacher()(X)
    count = LABELLED if needs else COUNT
    logits = start(S)
    total = 0.5 * F.cross_entropy(logits[:LABELLED], Y[:LABELLED])
    total = total + 3 * (logits - theirs)[:count].square().mean()
    total.backward()
    with torch.no_grad():
        for parameter in start.parameters():
            parameter -= 0.5 * parameter.grad
    torch.testing.assert_close(weights(fit.student), weights(start), rtol=1e-5, atol=1e-6)


def test_a_method_that_needs_labels_sees_the_labelled_pairs_alone(caplog):
    seen = []

    def supervised(batch):
        seen.append(batch)
        return squares(batch)

    supervised.needs_labels = True
    few = TensorDataset(X[:2], S[:2], Y[:2])  # so that some batches have no label at all
    more = TensorDataset(X[2:], S[2:])
    forget_warnings()
    with caplog.at_level(logging.WARNING, "mfh"):
        fit = distill(teacher(), student(), few, VAL, unlabelled=more, method=supervised, recipe=SHORT)
    told = [record.message for record in caplog.records]
    assert told == ["method supervised needs labels: it learns nothing from the pairs without one"]
    assert seen
    assert all(batch.labelled.all() and len(batch.target) and batch.index.max() < 2 for batch in seen)
    assert all(torch.isfinite(torch.tensor(epoch["train_loss"])) for epoch in fit.history)


def test_what_has_no_effect_is_said_before_the_training(caplog):
    forget_warnings()
    for recipe, warm_up, told in ((SHORT, 3, True), (SHORT, 2, False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mfh"):
            distill(teacher(), student(), TRAIN, VAL, method=Attainable(warm_up=warm_up), recipe=recipe)
        found = [record.message for record in caplog.records]
        said = "attainable: the targets are fitted after 3 epochs of warm-up, and epochs is 3, so this is kd; choose"
        assert [message.startswith(said) for message in found] == [True] * told
    with caplog.at_level(logging.WARNING, "mfh"):
        distill(teacher(), student(), TRAIN, VAL, method="simkd", recipe=SHORT)
        assert not caplog.records
        distill(teacher(), student(), TRAIN, VAL, method="simkd", label_weight=0.5, recipe=SHORT)
    (record,) = caplog.records
    assert "method simkd, which has no label loss beside its own loss" in record.message


def test_a_method_that_owns_the_labels():
    class Owning(Method):
        name = "owning"
        owns_labels = True

        def loss(self, batch):
            return F.cross_entropy(batch.student_logits, batch.target) + squares(batch)

    ours = distill(teacher(), student(), TRAIN, VAL, method=Owning(), recipe=SHORT)
    theirs = distill(teacher(), student(), TRAIN, VAL, method=squares, recipe=SHORT)
    torch.testing.assert_close(weights(ours.student), weights(theirs.student), rtol=1e-5, atol=1e-6)


# --- what is deployed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [None, ("1",), ("0",)])
def test_what_is_deployed_is_validated_and_kept(layers):
    recipe = Recipe(epochs=4, batch_size=16)
    taught = teacher()
    fit = distill(taught, student(), TRAIN, VAL, method=Reusing(layers), recipe=recipe, device="cpu")
    assert isinstance(fit.student, Deployed)
    assert evaluate(fit.student, VAL, "student") == fit.history[fit.best_epoch]["student_val_accuracy"]
    head = fit.student.head.state_dict().values()
    assert torch.equal(next(iter(head)), taught[-1].weight)
    assert not any(parameter.requires_grad for parameter in fit.student.head.parameters())
    assert not any(module._forward_pre_hooks for module in fit.student.modules())
    own = {id(parameter) for parameter in taught.parameters()}
    assert not any(id(parameter) in own for parameter in fit.student.parameters())


def test_simkd_deploys_a_student_whose_channels_come_last():
    """Both layers hold 3 positions of channels, the student's as (N, positions, channels)."""

    def made(inputs, shape):
        width = shape[0] * shape[1]
        layers = (nn.Linear(inputs, width), nn.Unflatten(1, shape), nn.Identity(), nn.Flatten(), nn.Linear(width, 2))
        return nn.Sequential(*layers)

    taught = seeded(lambda: made(5, (2, 3)), 1)
    method = SimKD(student_layers=("2",), teacher_layers=("2",))
    fit = distill(taught, made(4, (3, 4)), TRAIN, VAL, method=method, student_channel_dim=2, recipe=SHORT, device="cpu")
    assert fit.student(S).shape == (COUNT, 2)
    trunk = fit.student.student[:3](S).movedim(2, 1)  # (N, 4, 3)
    with torch.no_grad():
        expected = taught[3:](fit.student.projector(trunk))
    torch.testing.assert_close(fit.student(S), expected)
    assert evaluate(fit.student, VAL, "student") == fit.history[-1]["student_val_accuracy"]


# --- what is refused --------------------------------------------------------------------------------------------------


class Hints(FitNets):
    """Hints that may be given any attribute."""

    def __init__(self, **more):
        super().__init__()
        for name, value in more.items():
            object.__setattr__(self, name, value)


def _method(**more):
    return Hints(**more)


class Making(Method):
    name = "making"

    def __init__(self, begun=None, deployed=None):
        self.begun, self.deployed = begun, deployed

    def begin(self, context):
        return self.begun

    def loss(self, batch):
        return squares(batch)

    def deploy(self, student, modules):
        return student if self.deployed is None else self.deployed


def failing(batch):
    raise KeyError("features")


LOGITS = {"teacher": None, "teacher_logits": randn(COUNT, 2)}
MISTAKES = {
    "two at once": ({"method": "kd", "loss": KDLoss()}, "loss and method are both given"),
    "a layer that the teacher lacks": (
        {"method": _method(teacher_layers=("10",))},
        "the teacher's layer: Sequential has no layer '10'; close names: '1', '0'",
    ),
    "a layer that the student lacks": (
        {"method": _method(student_layers=("fc",))},
        "the student's layer: Sequential has no layer 'fc'",
    ),
    "no scalar": (
        {"method": lambda batch: batch.student_logits},
        r"returned a tensor of shape \(16, 2\); a tensor of one",
    ),
    "no tensor": ({"method": lambda batch: 1.0}, "returned a float; a tensor of one number"),
    "no gradient": ({"method": lambda batch: squares(batch).detach()}, "returned a tensor without gradient"),
    "an exception": ({"method": failing}, "loss of the method failing failed: KeyError: 'features'"),
    "features of logits": (
        LOGITS | {"method": "fitnets"},
        "method fitnets reads features of the teacher, of which only",
    ),
    "a teacher to train": (
        LOGITS | {"method": _method(trains_teacher=True)},
        "method fitnets trains the teacher, of which only outputs are known",
    ),
    "features for kd": ({"teacher_features": {"a": randn(COUNT, 2)}}, "method kd reads no features"),
    "features of few pairs": (
        {"method": "fitnets", "teacher_features": {"a": randn(3, 2)}},
        "a has 3 rows for 40 samples",
    ),
    "weights of another layer": (
        {"method": "fitnets", "channel_weights": {"1": torch.ones(8)}},
        "channel_weights has layer '1', which the method does not read; it reads 'input of 2'",
    ),
    "weights of other channels": (
        {"method": "fitnets", "channel_weights": {"input of 2": torch.ones(3)}},
        r"channel_weights of layer 'input of 2' have shape \(3,\); one number of at least 0 for each of its 8",
    ),
    "a weight": ({"method": squares, "teacher_weight": -1.0}, "teacher_weight is -1.0; choose 0 to 1000000"),
    "begin": ({"method": Making(begun=5)}, "begin.. of method making returned a int; an nn.Module or None"),
    "deploy": ({"method": Making(deployed=5)}, "deploy.. of method making returned a int; an nn.Module"),
    "no labels": (
        {"method": _method(needs_labels=True), "train": TensorDataset(X, S, torch.full((COUNT,), -1)), "missing": True},
        "no pair of the train split has a label",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line_before_anything_is_trained(name):
    given, said = MISTAKES[name]
    given = {"teacher": teacher(), "train": TRAIN, **given}
    problem = Problem.classification(missing=-1) if given.pop("missing", False) else None
    network = student()
    before = weights(network).clone()
    with pytest.raises(InputError, match=said) as error:
        distill(given.pop("teacher"), network, given.pop("train"), VAL, recipe=SHORT, problem=problem, **given)
    assert "\n" not in str(error.value)
    assert torch.equal(weights(network), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_features_whose_positions_do_not_fit():
    pictures = TensorDataset(image(COUNT, 0), S, Y)
    with pytest.raises(InputError, match=r"fitnets compares .* positions \(\) and the teacher's"):
        distill(
            conv(),
            nn.Sequential(nn.Linear(4, 3)),
            pictures,
            pictures,
            method=_method(teacher_layers=("0",)),
            problem=Problem.classification(),
            recipe=SHORT,
        )


def test_a_teacher_of_nan_is_refused():
    broken = teacher()
    with torch.no_grad():
        broken[0].weight.fill_(float("nan"))
    with pytest.raises(InputError, match="the teacher's logits are NaN or infinite"):
        distill(broken, student(), TRAIN, VAL, method="fitnets", recipe=SHORT)
