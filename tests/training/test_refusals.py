"""Every mistake a user can make with a training is one line that says what to do."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from mfh import InputError, KDLoss, Metric, Problem, Recipe, align, distill, evaluate, pretrain
from mfh.data.epochs import EpochBatches
from mfh.data.pairs import Collated
from mfh.training import objectives
from networks import randn

COUNT = 40
X, S, Y = randn(COUNT, 5), randn(COUNT, 4, seed=1), torch.arange(COUNT) % 2
DATA = TensorDataset(X, S, Y)
QUICK = Recipe(epochs=1, batch_size=16)


def network(inputs=4):
    return nn.Sequential(nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, 2))


class Items(Dataset):
    """Items made by a function of the index."""

    def __init__(self, make, batched=None):
        self.make = make
        if batched:
            self.__getitems__ = lambda indices: batched(indices)

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return self.make(index)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(DATA)


class ByName(nn.Module):
    """A network as Hugging Face makes them."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, input_ids=None, attention_mask=None):
        if input_ids.ndim != 2:
            raise ValueError("You have to specify either input_ids or inputs_embeds")
        return self.inner(input_ids * attention_mask)


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        raise KeyError("no such\nlayer")


def broken(index):
    if index == 7:
        raise OSError("no file\n7.wav")
    return DATA[index]


def supervised(network=network, train=DATA, val=DATA, **options):
    made = network() if network is not None and not isinstance(network, nn.Module) else network
    return pretrain(made, train, val, **{"role": "student", "recipe": QUICK} | options)


TOKENS = [({"input_ids": S[i], "attention_mask": S[i]}, {"input_ids": S[i], "attention_mask": S[i]}, int(Y[i])) for i in range(COUNT)]  # fmt: skip  # noqa: E501
MORE_TOKENS = [(X[i], {"input_ids": S[i], "token_type_ids": S[i]}, int(Y[i])) for i in range(COUNT)]
DICTS = [{"image": X[i], "sound": S[i], "label": int(Y[i])} for i in range(COUNT)]
DOUBLE = [(X[i].numpy(), S[i].numpy().astype(np.float64), int(Y[i])) for i in range(COUNT)]
WORDS = [(X[i], S[i], "cat") for i in range(COUNT)]
NOTHING = [(X[i], S[i], [None]) for i in range(COUNT)]


def full(*_given, **_more):
    """Somebody else's function whose disk is full."""
    raise OSError(28, "No space left on device", "cache.bin")


class Late(nn.Module):
    """A network that cannot read one sample."""

    def __init__(self, index):
        super().__init__()
        self.inner, self.wrong = network(), S[index]

    def forward(self, x):
        if (x == self.wrong).all(1).any():
            full()
        return self.inner(x)


class Logs:
    log_metrics = staticmethod(full)


def with_metric(value, checkpoint=None, **options):
    return supervised(problem=Problem.classification(metric=Metric("own", value, **options)), checkpoint=checkpoint)


def with_loss(label_loss):
    return supervised(problem=Problem.classification(label_loss=label_loss))


def taught(loss):
    return distill(network(5), network(), DATA, DATA, loss=loss, recipe=QUICK)


FULL = r"OSError: \[Errno 28\] No space left on device: 'cache.bin'$"
#: Exceptions of the user's own code, faults of kind 5.
OWN_CODE = {
    "a transform": (lambda: supervised(train=Items(lambda i: full() if i == 7 else DATA[i])), "train split: item 7 of"),
    "a teacher's item": (
        lambda: distill(network(5), network(), Items(full), DATA, recipe=QUICK),
        "train split: item 0 of a Items cannot be read",
    ),
    "a collate function": (lambda: supervised(val=Collated(DATA, full)), r"val split: the collate .* items \[0\]"),
    "a label loss": (lambda: with_loss(full), r"train split, samples \d+, \d+, \d+, ...: the label loss failed"),
    "a distillation loss": (lambda: taught(full), r"train split, samples \d+, .*: the distillation loss failed"),
    "a metric": (lambda: with_metric(full), "val split: the metric own failed"),
    "a statistic": (lambda: with_metric(float, statistics=full), "val split: the metric own failed"),
    "a metric in evaluation": (
        lambda: evaluate(network(), DATA, "student", problem=Problem.classification(metric=Metric("own", full))),
        "data split: the metric own failed",
    ),
    "a late sample": (lambda: supervised(Late(7)), r"student_input of the train split \(.*, sample 7\)"),
    "a late sample in evaluation": (
        lambda: evaluate(Late(39), DATA, "student", split="test"),
        r"student_input of the test split \(.*, sample 39\)",
    ),
    "a teacher that fails on augmented data": (
        lambda: distill(Late(7), network(), Items(lambda i: (S[i] + (i != 7) * torch.rand(4), S[i], Y[i])), DATA),
        r"train split, samples \d+, \d+, .*: the teacher failed",
    ),
    "a teacher that fails": (lambda: distill(Late(7), network(), TensorDataset(S, S, Y), DATA), "samples 0 to 39 of"),
    "an optimizer": (lambda: supervised(recipe=Recipe(optimizer=full)), "the optimizer cannot be made"),
    "a scheduler": (lambda: supervised(recipe=Recipe(scheduler=full)), "the scheduler cannot be made"),
    "a logger": (lambda: supervised(logger=Logs()), "the logger, Logs, failed"),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN_CODE)
def test_an_exception_of_the_users_own_code_is_the_users(name):
    call, said = OWN_CODE[name]
    with pytest.raises(InputError, match=f"{said}.*: {FULL}") as error:
        call()
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, OSError)


def leave(*_given, **_more):
    raise SystemExit(0)


class Leaves(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    forward = leave


@pytest.mark.parametrize(
    "call",
    [
        lambda: supervised(train=Items(leave)),
        lambda: supervised(train=Items(leave), recipe=Recipe(epochs=1, num_workers=1)),
        lambda: supervised(val=Collated(DATA, leave)),
        lambda: with_loss(leave),
        lambda: taught(leave),
        lambda: with_metric(float, statistics=leave),
        lambda: supervised(Leaves()),
        lambda: distill(Leaves(), network(), DATA, DATA, recipe=QUICK),
    ],
)
def test_code_of_the_user_that_ends_the_program_is_told_as_its_error(call):
    with pytest.raises(InputError, match="SystemExit"):
        call()


def items(data):
    return [data[index] for index in range(len(data))]


def put(part, value, dtype=None):
    """The data with another value in one part of sample 33, which is in no first batch of the seed."""
    parts = [X.clone(), S.clone(), Y.clone() if dtype is None else F.one_hot(Y).to(dtype)]
    parts[part][33] = value
    return TensorDataset(*parts)


@pytest.mark.parametrize("kind", [lambda data: data, items], ids=["tensors", "items"])
@pytest.mark.parametrize("split", ["train", "val", "data"])
@pytest.mark.parametrize(
    ("data", "problem", "said"),
    [
        *((put(2, value), Problem.classification(), f"the target holds {value}; class") for value in (-100, -1, 2)),
        (put(2, -1.0, torch.float32), Problem.multi_label(), "the target holds -1.0; 0 or 1 for each class"),
        (put(2, 0.5, torch.float32), Problem.multi_label(), "the target holds 0.5; 0 or 1 for each class"),
        (put(2, float("nan"), torch.float32), Problem.regression(), "the target holds nan; a finite number"),
        (put(1, float("nan")), Problem.classification(), "student_input holds nan; finite numbers .*mfh check TASK"),
        (put(1, float("-inf")), Problem.classification(), "student_input holds -inf; finite numbers"),
    ],
)
def test_wrong_targets_and_inputs_behind_the_first_batch(kind, split, data, problem, said):
    good = TensorDataset(X, S, data.tensors[2].where(data.tensors[2] == 1, 0))
    order = EpochBatches(COUNT, 16, 0).rows()
    assert 33 not in order[0]
    splits = {"train": kind(good), "val": kind(good)} | {split: kind(data)}

    def read():
        if split == "data":
            evaluate(network(), splits["data"], "student", problem=problem)
        else:
            supervised(**splits, problem=problem, recipe=Recipe(epochs=1, batch_size=16))

    with pytest.raises(InputError, match=f"^{split} split, sample 33: {said}"):
        read()


def test_a_batch_of_ignored_labels_is_no_divergence():
    data = TensorDataset(X, S, torch.full_like(Y, -100))
    with pytest.raises(InputError, match=r"train split, sample .*: the target holds -100; class indices from 0 to 1"):
        supervised(train=items(data))


@pytest.mark.parametrize("workers", [0, 1])
def test_items_are_looked_at_in_the_first_epoch_only(workers, monkeypatch):
    looked = []
    monkeypatch.setattr(objectives, "check_finite_inputs", lambda batch, *rest: looked.append(len(batch.target)))
    supervised(train=items(DATA), val=items(DATA), recipe=Recipe(epochs=3, batch_size=16, num_workers=workers))
    assert sum(looked) == 2 * COUNT


# --- what is no number never wins (faults of kind 7) ------------------------------------------------------------------


class Sick(nn.Module):
    """A network that returns NaN for one sample in eval mode, from some pass on."""

    def __init__(self, index, until=99):
        super().__init__()
        self.inner, self.wrong, self.until, self.passes = network(), S[index], until, 0

    def forward(self, x):
        logits = self.inner(x)
        if self.training:
            return logits
        self.passes += 1
        sick = (x == self.wrong).all(1, keepdim=True)
        return logits.masked_fill(sick, float("nan")) if self.passes <= self.until else logits


def test_an_epoch_whose_metric_is_no_number_never_wins():
    values = iter([float("nan"), 0.2, 0.1, float("nan")])
    metric = Metric("own", lambda logits, target: next(values))
    problem = Problem.classification(metric=metric)
    fit = supervised(problem=problem, recipe=Recipe(epochs=4))
    assert fit.best_epoch == 1
    # Accuracy counts NaN as some class, so logits are looked at too.
    assert supervised(Sick(3, until=2), recipe=Recipe(epochs=4)).best_epoch >= 2


def test_a_training_without_a_single_number_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"val split: student_val_own is not a number in any epoch.*keep='last'"):
        with_metric(lambda logits, target: float("nan"), checkpoint=tmp_path / "run.ckpt")
    with pytest.raises(InputError, match="not a number in any epoch"):  # nor does the finished training win
        with_metric(lambda logits, target: float("nan"), checkpoint=tmp_path / "run.ckpt")
    with pytest.raises(InputError, match="val split: student_val_accuracy is not a number in any epoch"):
        supervised(Sick(3))
    assert supervised(Sick(3), recipe=Recipe(epochs=1, keep="last")).best_epoch == 0


def test_a_metric_in_test_that_is_no_number_is_refused_with_the_reason():
    nothing = Problem.classification(metric=Metric("own", lambda logits, target: float("nan")))
    with pytest.raises(InputError, match="test split: the metric own is NaN, although every logit is a number"):
        evaluate(network(), DATA, "student", problem=nothing, split="test")
    with pytest.raises(InputError, match="test split: the student returns NaN for sample 17"):
        evaluate(Sick(17), DATA, "student", split="test")


class Jammed(torch.optim.SGD):
    def step(self, closure=None):
        raise OverflowError("too far")


MISTAKES = {
    "a loader": (lambda: supervised(train=DataLoader(DATA)), "train is a DataLoader; .* give loader.dataset"),
    "a loader to validate": (lambda: supervised(val=DataLoader(DATA)), "val is a DataLoader"),
    "a loader to evaluate": (lambda: evaluate(network(), DataLoader(DATA), "student"), "data is a DataLoader"),
    "an iterable": (lambda: supervised(train=Endless()), "train is a Endless, an IterableDataset; a map-style"),
    "no data set": (lambda: supervised(train=3), "train is a int; a map-style data set"),
    "a dictionary of splits": (lambda: supervised(train={"train": DATA}), "train is a dict; a map-style data set"),
    "items that are dictionaries": (
        lambda: supervised(train=DICTS),
        "train split: an item is a dict with the keys 'image', 'sound', 'label'; .* or give the task a collate",
    ),
    "val items that are dictionaries": (lambda: supervised(val=DICTS), "val split: an item is a dict with the keys"),
    "double precision": (
        lambda: supervised(train=DOUBLE),
        r"student_input is float64 and the network's weights are float32; .* \.float\(\) .* \.astype\('float32'\)",
    ),
    "double precision in tensors": (
        lambda: supervised(train=TensorDataset(X, S.double(), Y)),
        "the student cannot read student_input of the train split: student_input is float64",
    ),
    "text targets": (lambda: supervised(train=WORDS), "train split: the target is text .'cat'.; class indices"),
    "targets without numbers": (
        lambda: supervised(train=Items(lambda i: (X[i], S[i], Y[i]), lambda rows: [(X[i], S[i], "b") for i in rows])),
        "the target is text",
    ),
    "float targets": (
        lambda: supervised(train=TensorDataset(X, S, Y.float())),
        "the target is of type torch.float32; class indices of type torch.int64 were expected",
    ),
    "an unknown role": (lambda: supervised(role="pupil"), "role is 'pupil'; choose 'teacher' or 'student'"),
    "no role": (lambda: pretrain(network(), DATA, DATA), "role is None; choose 'teacher' or 'student'"),
    "an unknown role to evaluate": (lambda: evaluate(network(), DATA, "pupil"), "role is 'pupil'; choose"),
    "two roles": (lambda: supervised(modality="student"), "role and modality are both given"),
    "a network that takes other names": (
        lambda: supervised(ByName, MORE_TOKENS),
        r"'input_ids', 'token_type_ids'.*ByName does not take 'token_type_ids' by name; leave it out of the data",
    ),
    "a network that fails": (
        lambda: supervised(Broken),
        r"the student cannot read student_input of the train split \(a float32 tensor of shape .*KeyError: .*no such",
    ),
    "a network of the other input": (
        lambda: supervised(lambda: network(5)),
        "the student cannot read student_input of the train split .*RuntimeError: mat1",
    ),
    "a network that fails in evaluation": (
        lambda: evaluate(network(5), DATA, "student"),
        "the student cannot read student_input of the data split .*RuntimeError: mat1",
    ),
    "val inputs of another size": (
        lambda: supervised(val=TensorDataset(X, X, Y)),
        "the student cannot read student_input of the val split",
    ),
    "a class": (lambda: pretrain(ByName, DATA, DATA, role="student"), "the student is ByName, not a network"),
    "no network": (lambda: pretrain(None, DATA, DATA, role="student"), "the student is NoneType, not a network"),
    "a function as teacher": (lambda: distill(network, network(), DATA, DATA), r".*: call it, teacher=network\(\)"),
    "nothing to train": (
        lambda: supervised(network().requires_grad_(False)),
        r"the student, Sequential, is frozen .* unfreeze it: student.requires_grad_\(True\)",
    ),
    "no parameters": (lambda: supervised(nn.Flatten), "the student, Flatten, has no parameters"),
    "a frozen teacher in alignment": (
        lambda: align(network(5).requires_grad_(False), network(), DATA, DATA),
        "the teacher, Sequential, is frozen",
    ),
    "an item that fails": (
        lambda: supervised(train=Items(broken)),
        "train split: item 7 of a Items cannot be read: OSError: no file 7.wav",
    ),
    "an item that fails in a reading process": (
        lambda: supervised(train=Items(broken), recipe=Recipe(epochs=1, num_workers=1)),
        "^train split: item 7 of a Items cannot be read: OSError: no file 7.wav$",
    ),
    "a val item that fails": (lambda: supervised(val=Items(broken)), "val split: item 7 of a Items cannot be read"),
    "a loss as problem": (
        lambda: supervised(problem=nn.BCEWithLogitsLoss()),
        r"problem is a BCEWithLogitsLoss; .*classification\(label_loss=BCEWithLogitsLoss\(\)\)",
    ),
    "an uncalled problem": (lambda: supervised(problem=Problem.dense), r"call it, problem=Problem.dense\(\)"),
    "a problem by name": (lambda: supervised(problem="dense"), "problem is 'dense'; choose Problem.classification"),
    "a loss of two arguments": (
        lambda: distill(network(5), network(), DATA, DATA, loss=nn.KLDivLoss()),
        r"loss is KLDivLoss, which takes .*; a function of \(student_logits, teacher_logits, target\) was expected",
    ),
    "a loss by name": (
        lambda: distill(network(5), network(), DATA, DATA, loss="kl"),
        "loss is of type str; a function of",
    ),
    "class weights of another size": (
        lambda: with_loss(nn.CrossEntropyLoss(weight=torch.ones(3))),
        "train split, samples .*: the label loss failed: RuntimeError: weight tensor should be .* shape: .3",
    ),
    "a loss for each sample": (
        lambda: with_loss(nn.CrossEntropyLoss(reduction="none")),
        r"the label loss returned a tensor of shape \(16,\); a tensor of one number .* mean over samples",
    ),
    "a loss without gradient": (
        lambda: with_loss(lambda logits, target: logits.detach().sum()),
        "the label loss returned a tensor without gradient",
    ),
    "a loss that is a plain number": (lambda: taught(lambda *_: 1.0), "the distillation loss returned a float"),
    "a scheduler with too few steps": (
        lambda: supervised(
            recipe=Recipe(epochs=4, scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=2))
        ),
        r"the scheduler, OneCycleLR, failed in epoch 2 of 4 \(it steps once per epoch\): ValueError: Tried to step 3",
    ),
    "an unknown logger": (lambda: supervised(logger="tensorboard"), "logger is of type str; an object"),
    "an optimizer that fails in a step": (
        lambda: supervised(recipe=Recipe(optimizer=lambda parameters: Jammed(parameters, lr=0.1))),
        "the optimizer, Jammed, failed: OverflowError: too far",
    ),
    "an optimizer that is none": (
        lambda: supervised(recipe=Recipe(optimizer=lambda parameters: None)),
        "optimizer made a NoneType; a torch.optim.Optimizer was expected",
    ),
    "a scheduler that is none": (
        lambda: supervised(recipe=Recipe(scheduler=lambda optimizer: 3)),
        "scheduler made a int; a scheduler of torch.optim.lr_scheduler",
    ),
    "a plateau of the wrong direction": (
        lambda: supervised(recipe=Recipe(scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)),
        "mode 'min', but it gets student_val_accuracy, of which a higher value is better; give mode='max'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(name):
    call, said = MISTAKES[name]
    with pytest.raises(InputError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


PARAMETERS = [nn.Parameter(torch.zeros(2))]
ADAM = torch.optim.Adam(PARAMETERS)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"epochs": "3"}, "epochs is '3', of type str; a whole number from 1 to 1000000 was expected"),
        ({"epochs": 2.5}, "epochs is 2.5, of type float; a whole number"),
        ({"epochs": 1e20}, r"epochs is 1e\+20, of type float; a whole number"),
        ({"epochs": True}, "epochs is True, of type bool; a whole number"),
        ({"batch_size": None}, "batch_size is None, of type NoneType"),
        ({"patience": "2"}, "patience is '2', .*a whole number from 1 to 1000000 or None was expected"),
        ({"compile": "yes"}, "compile is 'yes'; choose True or False"),
        ({"precision": "half"}, "precision is 'half'; choose '32-true', 'bf16-mixed' or '16-mixed'"),
        ({"precision": 64}, "precision is 64; choose"),
        ({"keep": "best"}, "keep is 'best'; choose 'best-metric', 'best-loss' or 'last'"),
        ({"optimizer": ADAM}, r"Adam that exists already; .*lambda parameters: torch.optim.Adam\(parameters"),
        ({"optimizer": "adam"}, "optimizer is 'adam'; a function that makes one"),
        ({"scheduler": torch.optim.lr_scheduler.StepLR(ADAM, 3)}, "a StepLR that exists already; .*lambda optimizer: "),
        ({"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(ADAM)}, "a ReduceLROnPlateau that exists already"),
    ],
)  # fmt: skip
def test_recipes_that_cannot_be(given, said):
    with pytest.raises(InputError, match=said) as error:
        Recipe(**given)
    assert "\n" not in str(error.value)


def test_numbers_and_precisions_by_other_names():
    recipe = Recipe(epochs=np.int64(3), precision="bf16", num_workers=np.int32(0))
    assert recipe == Recipe(epochs=3, precision="bf16-mixed")
    assert type(recipe.epochs) is int
    assert Recipe(precision=32).precision == "32-true"
    assert Recipe(keep="last").facts()["keep"] == "last"


def test_the_cause_of_a_failure_is_kept():
    with pytest.raises(InputError) as error:
        supervised(Broken)
    assert isinstance(error.value.__cause__, KeyError)
    with pytest.raises(InputError) as error:
        supervised(train=Items(broken))
    assert isinstance(error.value.__cause__, OSError)


def test_networks_that_convert_their_input_take_any_precision():
    class Converting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x.float())

    assert len(supervised(Converting, train=DOUBLE, val=DOUBLE).history) == 1


def test_losses_of_three_arguments_are_taken_in_any_form():
    class Own(nn.Module):
        def forward(self, student, teacher, target, weight=1.0):
            return F.cross_entropy(student, target) + weight * F.mse_loss(student, teacher)

    def plain(*logits_and_target):
        return F.cross_entropy(logits_and_target[0], logits_and_target[2])

    for loss in (Own(), KDLoss(), plain):
        assert len(distill(network(5), network(), DATA, DATA, loss=loss, recipe=QUICK).history) == 1


def test_mappings_are_inputs_like_others():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, inputs):
            assert isinstance(inputs, Mapping)
            return self.inner(inputs["input_ids"])

    assert len(supervised(Reads, TOKENS, TOKENS).history) == 1
