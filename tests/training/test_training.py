import copy
import logging
import random
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

from mfh import ChannelMask, KDLoss, Recipe, align, distill, mask_channels, pretrain
from mfh.data.epochs import EpochShuffle
from mfh.errors import InputError
from mfh.networks.modes import fingerprint
from mfh.problems.losses import alignment_loss
from mfh.training.acceleration import prepared
from mfh.training.fitting import evaluate
from networks import Attention, Branching, padding, randn, seeded


def data(count=60, seed=0):
    x, s = randn(count, 5, seed=seed), randn(count, 4, seed=seed + 1)
    s[:, :2] += 2 * x[:, :2]
    return TensorDataset(x, s, (x[:, :2].sum(1) > 0).long())


def teacher():
    return seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)), 1)


def student(dropout=0.0):
    return seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2)), 2)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def halving(optimizer):
    return torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


def weights(network):
    return torch.cat([value.flatten().double() for value in network.state_dict().values()])


TRAIN, VAL = data(), data(50, 9)
SHORT = Recipe(epochs=3, batch_size=16)


def train(kind, recipe=SHORT, train=TRAIN, val=VAL, dropout=0.3, seed=0, **more):
    """(trained networks, history) of any of the three kinds."""
    if kind == "pretrain":
        fit = pretrain(student(dropout), train, val, role="student", recipe=recipe, seed=seed, **more)
        return [fit.network], fit.history
    if kind == "align":
        pair = align(teacher(), student(dropout), train, val, recipe=recipe, seed=seed, **more)
        return [pair.teacher, pair.student], pair.history
    fit = distill(teacher(), student(dropout), train, val, recipe=recipe, seed=seed, **more)
    return [fit.student], fit.history


KINDS = ("pretrain", "align", "distill")


def plain_loop(networks, loss, recipe, seed, train=TRAIN):
    """The same training in ten lines of PyTorch: weights after every epoch."""
    optimizer = recipe.optimizer([p for network in networks for p in network.parameters()])
    scheduler = recipe.scheduler(optimizer) if recipe.scheduler else None
    sampler, epochs = EpochShuffle(len(train), seed), []
    for epoch in range(recipe.epochs):
        sampler.set_epoch(epoch)
        for rows in torch.tensor(list(sampler)).split(recipe.batch_size):
            optimizer.zero_grad()
            loss(*(tensor[rows] for tensor in train.tensors)).backward()
            optimizer.step()
        if scheduler:
            scheduler.step()
        epochs.append([weights(network).clone() for network in networks])
    return epochs


@pytest.mark.parametrize("scheduler", [None, halving])
def test_equals_a_plain_loop(scheduler):
    recipe = Recipe(epochs=4, batch_size=16, optimizer=sgd, scheduler=scheduler)
    ours_teacher, ours_student = teacher(), student()
    slow = plain_loop(
        [ours_teacher, ours_student], lambda x, s, y: alignment_loss(ours_teacher(x), ours_student(s), y), recipe, 5
    )
    pair = align(teacher(), student(), TRAIN, VAL, recipe=recipe, seed=5)
    torch.testing.assert_close(weights(pair.teacher), slow[-1][0])
    torch.testing.assert_close(weights(pair.student), slow[-1][1])

    single = student()
    slow = plain_loop([single], lambda _x, s, y: F.cross_entropy(single(s), y), recipe, 5)
    fit = pretrain(student(), TRAIN, VAL, role="student", recipe=recipe, seed=5)
    torch.testing.assert_close(weights(fit.network), slow[fit.best_epoch][0])

    frozen, single, loss = teacher().eval().requires_grad_(False), student(), KDLoss(temperature=2.0, label_weight=0.5)
    slow = plain_loop([single], lambda x, s, y: loss(single(s), frozen(x), y), recipe, 5)
    fit = distill(teacher(), student(), TRAIN, VAL, loss=loss, recipe=recipe, seed=5)
    torch.testing.assert_close(weights(fit.student), slow[fit.best_epoch][0])
    assert not torch.allclose(slow[0][0], slow[-1][0])


def test_accumulated_batches_equal_a_large_one():
    """With 60 samples, 24 to a step: the last step is smaller, and its two batches count by their samples."""
    whole = pretrain(student(), TRAIN, VAL, role="student", recipe=Recipe(epochs=3, batch_size=24, optimizer=sgd))
    recipe = Recipe(epochs=3, batch_size=12, accumulate=2, optimizer=sgd)
    parts = pretrain(student(), TRAIN, VAL, role="student", recipe=recipe)
    assert [entry["steps"] for entry in parts.history] == [entry["steps"] for entry in whole.history] == [3, 6, 9]
    assert parts.best_epoch == whole.best_epoch
    torch.testing.assert_close(weights(parts.network), weights(whole.network))
    for mine, other in zip(parts.history, whole.history, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)


def test_layout_and_compilation_leave_networks_as_they_were():
    def convolutional():
        return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))

    images = TensorDataset(TRAIN.tensors[0], TRAIN.tensors[1].reshape(60, 1, 2, 2), TRAIN.tensors[2])
    plain, faster = seeded(convolutional), seeded(convolutional)
    pretrain(plain, images, images, role="student", recipe=SHORT)
    recipe = Recipe(epochs=3, batch_size=16, channels_last=True, compile=True)
    with torch.compiler.set_stance("force_eager"):  # what the compiler makes is PyTorch's business
        pretrain(faster, images, images, role="student", recipe=recipe)
    torch.testing.assert_close(weights(plain), weights(faster))
    assert all(parameter.is_contiguous() for parameter in faster.parameters())
    assert faster._compiled_call_impl is None


def test_batch_normalisation_is_exchanged_between_gpus_and_put_back(monkeypatch):
    """Synchronised batch normalisation exists on GPUs only; here only the exchange is tried."""
    monkeypatch.setattr("mfh.training.acceleration.world_size", lambda: 2)
    norm = nn.BatchNorm2d(3)
    network = nn.Sequential(nn.Conv2d(1, 3, 2), norm, nn.Sequential(norm, nn.ReLU()))
    networks = nn.ModuleDict({"teacher": network, "student": nn.Linear(2, 2)})
    names = list(networks.state_dict())
    with prepared(networks, SHORT, torch.device("cuda")):
        assert type(network[1]) is nn.SyncBatchNorm
        assert network[1] is network[2][0]
        assert network[1].weight is norm.weight
        assert list(networks.state_dict()) == names
        network[1].running_mean = torch.ones(3)  # as a move to a device exchanges it
    assert network[1] is network[2][0] is norm
    assert norm.running_mean.tolist() == [1, 1, 1]
    with prepared(networks, SHORT, torch.device("cpu")):
        assert network[1] is norm


def test_half_precision_on_a_cpu_is_refused():
    with pytest.raises(InputError, match="precision is '16-mixed', which needs a GPU"):
        pretrain(student(), TRAIN, VAL, role="student", recipe=Recipe(epochs=1, precision="16-mixed"))


def test_processes_that_would_train_apart_are_refused(monkeypatch):
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="torchrun started 2 processes, but they would train apart"):
        pretrain(student(), TRAIN, VAL, role="student", recipe=SHORT)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_weights_whatever_the_global_state(kind):
    torch.manual_seed(1)
    first, history = train(kind)
    torch.manual_seed(2)
    np.random.seed(3)  # noqa: NPY002
    random.seed(4)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    second, again = train(kind)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()
    other, _ = train(kind, seed=1)
    assert history == again
    assert len(history) == 3
    for a, b, c in zip(first, second, other, strict=True):
        assert torch.equal(weights(a), weights(b))
        assert not torch.equal(weights(a), weights(c))


def test_history_and_evaluation():
    pair, history = train("align")
    assert [entry["epoch"] for entry in history] == [0, 1, 2]
    assert set(history[0]) == {
        "epoch",
        "steps",
        "train_loss",
        "teacher_val_accuracy",
        "teacher_val_loss",
        "student_val_accuracy",
        "student_val_loss",
    }
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    for network, role, inputs in zip(pair, ("teacher", "student"), VAL.tensors, strict=False):
        with torch.no_grad():
            logits = network.eval()(inputs)
        accuracy = float((logits.argmax(1) == VAL.tensors[2]).float().mean())
        assert evaluate(network, VAL, role) == pytest.approx(accuracy)
        assert history[-1][f"{role}_val_accuracy"] == pytest.approx(accuracy)
        loss = float(F.cross_entropy(logits, VAL.tensors[2]))
        assert history[-1][f"{role}_val_loss"] == pytest.approx(loss, rel=1e-4)


def test_the_best_epoch_is_restored():
    # Labels that are noise: validation accuracy wanders, so the last epoch is not the best.
    noise = TensorDataset(*TRAIN.tensors[:2], torch.arange(60) % 2)
    recipe = Recipe(epochs=8, batch_size=16, optimizer=lambda p: torch.optim.Adam(p, lr=0.05))
    fit = pretrain(student(), noise, VAL, role="student", recipe=recipe)
    values = [entry["student_val_accuracy"] for entry in fit.history]
    assert values[fit.best_epoch] == max(values)
    assert fit.best_epoch < 7
    assert evaluate(fit.network, VAL, "student") == pytest.approx(max(values))
    ties = [i for i, value in enumerate(values) if value == max(values)]
    assert fit.best_epoch == min(ties, key=lambda i: fit.history[i]["student_val_loss"])


def test_early_stopping(tmp_path):
    noise = TensorDataset(*TRAIN.tensors[:2], torch.arange(60) % 2)
    recipe = Recipe(epochs=40, batch_size=16, optimizer=lambda p: torch.optim.Adam(p, lr=0.05), patience=3)
    first, again = (
        pretrain(student(), noise, VAL, role="student", recipe=recipe, checkpoint=tmp_path / "run.ckpt")
        for _ in range(2)
    )
    assert len(first.history) == first.best_epoch + 4 < 40
    assert (first.best_epoch, first.history) == (again.best_epoch, again.history)  # it stays finished
    assert torch.equal(weights(first.network), weights(again.network))


def test_modes_gradients_and_teachers_are_left_as_found():
    network, source = student(0.5), teacher()
    network[2].eval()
    network[0].bias.requires_grad_(False)
    bias = network[0].bias.clone()
    source[1].eval()
    before = copy.deepcopy(source.state_dict())
    distill(source, network, TRAIN, VAL, recipe=SHORT)
    assert [m.training for m in network.modules()] == [True, True, True, False, True]
    assert [m.training for m in source.modules()] == [True, True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())
    assert all(p.grad is None for p in [*network.parameters(), *source.parameters()])
    assert all(p.requires_grad for p in source.parameters())
    assert not network[0].bias.requires_grad
    assert torch.equal(network[0].bias, bias)
    assert not network._forward_hooks


class Fragile(Dataset):
    """Fails after so many items, as a full disk or a Ctrl+C would."""

    def __init__(self, items=None, error=RuntimeError):
        self.left, self.error = items, error

    def __len__(self):
        return 60

    def __getitem__(self, index):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise self.error("the disk is full")
        x, s, y = TRAIN[index]
        return x, s + np.random.normal(0, 0.1) + random.random() + torch.rand(()) / 10, y  # noqa: NPY002


@pytest.mark.parametrize("items", [30, 150, 239])  # in the first epoch, in the third, at the end of the fourth
@pytest.mark.parametrize("kind", ["pretrain", "align"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, kind, items):
    recipe = Recipe(epochs=5, batch_size=16, optimizer=sgd, scheduler=halving)
    whole, history = train(kind, recipe, Fragile())
    path = tmp_path / "deep" / "run.ckpt"
    with pytest.raises(RuntimeError, match="disk is full"):
        train(kind, recipe, Fragile(items), checkpoint=path)
    assert path.exists() == (items > 60)
    torch.manual_seed(77)
    resumed, again = train(kind, recipe, Fragile(), checkpoint=path)
    assert history == again
    for a, b in zip(whole, resumed, strict=True):
        assert torch.equal(weights(a), weights(b))
    finished, thrice = train(kind, recipe, Fragile(0), checkpoint=path)  # nothing is read, and nothing trained
    assert history == thrice
    for a, b in zip(whole, finished, strict=True):
        assert torch.equal(weights(a), weights(b))
    assert list(path.parent.iterdir()) == [path]


def test_a_resumed_distillation(tmp_path):
    recipe = Recipe(epochs=4, batch_size=16)
    outputs = seeded(teacher)(TRAIN.tensors[0]).detach()

    def run(train, **more):
        return distill(None, student(0.3), train, VAL, teacher_logits=outputs, recipe=recipe, **more)

    whole = run(Fragile())
    with pytest.raises(RuntimeError):
        run(Fragile(130), checkpoint=tmp_path / "run.ckpt")
    resumed = run(Fragile(), checkpoint=tmp_path / "run.ckpt")
    assert torch.equal(weights(whole.student), weights(resumed.student))
    assert (whole.best_epoch, whole.history) == (resumed.best_epoch, resumed.history)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_no_trace(error):
    network, before = student(0.5), signal.getsignal(signal.SIGINT)
    network[2].eval()
    state = torch.get_rng_state()
    with pytest.raises(error):
        pretrain(network, Fragile(20, error), VAL, role="student", recipe=SHORT)
    assert signal.getsignal(signal.SIGINT) == before
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in network.modules()] == [True, True, True, False, True]
    assert all(p.grad is None for p in network.parameters())
    assert logging.getLogger("lightning.pytorch").level != logging.ERROR


def test_a_process_told_to_end_ends_as_without_lightning():
    def handler(*_):
        raise AssertionError

    class Looking(Fragile):
        def __getitem__(self, index):
            found.add(signal.getsignal(signal.SIGTERM))
            return TRAIN[index]

    found, before = set(), signal.signal(signal.SIGTERM, handler)
    try:
        pretrain(student(), Looking(), VAL, role="student", recipe=SHORT)
        assert found == {handler}
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_checkpoints_that_cannot_be_resumed(tmp_path):
    path = tmp_path / "run.ckpt"
    for content in (b"", b"no checkpoint"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"run.ckpt cannot be resumed from .*delete it") as caught:
            train("pretrain", checkpoint=path)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(RuntimeError, match="disk is full"):
        train("pretrain", train=Fragile(100), checkpoint=path)
    with pytest.raises(InputError, match=r"run.ckpt is of other networks"):
        train("align", checkpoint=path)
    whole = path.read_bytes()
    for place in range(len(whole) // 4, 3 * len(whole) // 4, len(whole) // 8):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(InputError, match=r"run.ckpt cannot be resumed from .*checksum differs.*delete it"):
            train("pretrain", checkpoint=path)


class Counting(nn.Module):
    """Counts the samples it sees."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.seen = inner, 0

    def forward(self, x):
        self.seen += len(x)
        return self.inner(x)


class Augmented(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        x, s, y = TRAIN[index]
        return x + torch.randn(5) * 0.1, s, y


def test_a_frozen_teacher_runs_once_per_sample(caplog):
    source = Counting(teacher())
    first = distill(source, student(), TRAIN, VAL, recipe=SHORT)
    assert source.seen == 60
    assert not caplog.records
    outputs = teacher().eval()(TRAIN.tensors[0]).detach()
    second = distill(None, student(), TRAIN, VAL, teacher_logits=outputs, recipe=SHORT)
    torch.testing.assert_close(weights(first.student), weights(second.student))


def test_an_augmented_teacher_runs_per_batch_and_says_so(caplog):
    source = Counting(teacher())
    with caplog.at_level(logging.WARNING, "mfh"):
        first = distill(source, student(), Augmented(), VAL, recipe=SHORT, seed=3)
    assert [r.getMessage() for r in caplog.records] == [
        "teacher inputs differ when read twice (augmented?): the teacher runs on every batch"
    ]
    assert source.seen == 180
    assert source.training
    torch.manual_seed(8)
    second = distill(teacher(), student(), Augmented(), VAL, recipe=SHORT, seed=3)
    assert torch.equal(weights(first.student), weights(second.student))


def test_per_batch_equals_cached(monkeypatch):
    cached = distill(teacher(), student(0.3), TRAIN, VAL, recipe=SHORT)
    monkeypatch.setattr("mfh.training.fitting.reads_the_same", lambda _: False)
    per_batch = distill(teacher(), student(0.3), TRAIN, VAL, recipe=SHORT)
    torch.testing.assert_close(weights(cached.student), weights(per_batch.student))


@pytest.mark.parametrize("augmented", [False, True])
def test_a_focused_attention_teacher(augmented, monkeypatch):
    count = 40
    x, s = {"x": randn(count, 4, 5), "padding": padding(count, 4)}, randn(count, 4)

    class Nested(Dataset):
        def __len__(self):
            return count

        def __getitem__(self, index):
            return {key: value[index] for key, value in x.items()}, s[index], index % 3

    source = seeded(Attention)
    mask = ChannelMask("encoder.layers.0.linear1", np.arange(16) % 2, np.zeros(16), fingerprint(source), channel_dim=2)
    focused = mask_channels(source, mask)
    network = seeded(lambda: nn.Linear(4, 3), 2)
    if augmented:
        monkeypatch.setattr("mfh.training.fitting.reads_the_same", lambda _: False)
    distill(focused, network, Nested(), Nested(), loss=KDLoss(label_weight=0), recipe=SHORT)
    expected = seeded(lambda: nn.Linear(4, 3), 2)
    outputs = focused.eval()(x).detach()
    plain = seeded(lambda: nn.Linear(4, 3), 2)
    assert not torch.allclose(source.eval()(x), outputs, atol=1e-3)
    distill(None, expected, Nested(), Nested(), teacher_logits=outputs, loss=KDLoss(label_weight=0), recipe=SHORT)
    torch.testing.assert_close(weights(network), weights(expected))
    assert not torch.allclose(weights(network), weights(plain))


def test_networks_in_other_shapes_and_subsets():
    subset = Subset(TRAIN, range(10, 50))
    fit = distill(seeded(Branching), seeded(lambda: nn.Linear(4, 3)), subset, VAL, recipe=SHORT)
    assert len(fit.history) == 3
    assert fit.network is fit.student
    mixed = Recipe(epochs=1, precision="bf16-mixed")
    assert len(pretrain(student(), TRAIN, VAL, role="student", recipe=mixed).history) == 1


def test_workers_do_not_matter():
    alone, _ = train("distill", Recipe(epochs=2, batch_size=16))
    helped, _ = train("distill", Recipe(epochs=2, batch_size=16, num_workers=1))
    assert torch.equal(weights(alone[0]), weights(helped[0]))


def test_bad_input():
    empty = Subset(TRAIN, [])
    for kind in KINDS:
        with pytest.raises(InputError, match="the train split is empty"):
            train(kind, train=empty)
        with pytest.raises(InputError, match="the val split is empty"):
            train(kind, val=empty)
    with pytest.raises(InputError, match="there is no teacher; give a network, or teacher_logits"):
        distill(None, student(), TRAIN, VAL)
    with pytest.raises(InputError, match="teacher_logits has 59 rows for 60 samples"):
        distill(None, student(), TRAIN, VAL, teacher_logits=torch.zeros(59, 2))
    with pytest.raises(InputError, match="the teacher's logits are NaN or infinite"):
        distill(None, student(), TRAIN, VAL, teacher_logits=torch.full((60, 2), torch.nan))
    with pytest.raises(InputError, match="both must have the same classes"):
        distill(seeded(Branching), student(), TRAIN, VAL, recipe=SHORT)
    with pytest.raises(InputError, match="both must have the same classes"):
        align(seeded(Branching), student(), TRAIN, VAL, recipe=SHORT)
    with pytest.raises(InputError, match="list of length 2"):
        pretrain(student(), TensorDataset(*TRAIN.tensors[:2]), VAL, role="student")
    for wrong in ({"epochs": 0}, {"batch_size": 0}, {"num_workers": -1}, {"patience": 0}):
        with pytest.raises(InputError, match=r"is (0|-1); choose [01] to \d+"):
            Recipe(**wrong)


def test_diverged_training_is_an_error_not_a_result():
    data = TensorDataset(torch.randn(40, 4), torch.randn(40, 3), torch.arange(40) % 2)
    wild = Recipe(epochs=3, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e30))
    with pytest.raises(InputError, match="student diverged"):
        pretrain(nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2)), data, data, role="student", recipe=wild)


def test_alignment_runs_all_epochs_whatever_the_patience():
    data = TensorDataset(torch.randn(40, 4), torch.randn(40, 3), torch.arange(40) % 2)
    pair = align(nn.Linear(4, 2), nn.Linear(3, 2), data, data, recipe=Recipe(epochs=6, patience=1))
    assert len(pair.history) == 6
