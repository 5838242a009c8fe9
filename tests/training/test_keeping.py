"""Which epoch a training keeps, what it tells others on the way, and batches that batch normalisation can take."""

import csv
import io
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from mfh import InputError, Metric, Problem, Recipe, align, distill, evaluate, pretrain
from mfh.data.epochs import EpochBatches
from mfh.training.trackers import check_tracker, find_tracker
from networks import randn, seeded

COUNT = 60
X, S = randn(COUNT, 5), randn(COUNT, 4, seed=1)
NOISE = TensorDataset(X, S, torch.arange(COUNT) % 2)  # labels that are noise: validation wanders
VAL = TensorDataset(randn(50, 5, seed=9), randn(50, 4, seed=106), (randn(50, seed=206) > 0).long())


def student():
    return seeded(lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2)), 2)


def teacher():
    return seeded(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), 1)


def quick(parameters):
    return torch.optim.Adam(parameters, lr=0.05)


def recipe(keep="best-metric", epochs=8, **more):
    return Recipe(epochs=epochs, batch_size=16, optimizer=quick, keep=keep, **more)


def fitted(keep, **more):
    return pretrain(student(), NOISE, VAL, role="student", recipe=recipe(keep, **more))


def expected_epoch(history, keep, role="student"):
    if keep == "last":
        return len(history) - 1
    losses = [entry[f"{role}_val_loss"] for entry in history]
    if keep == "best-loss":
        return losses.index(min(losses))
    values = [entry[f"{role}_val_accuracy"] for entry in history]
    return min((i for i, v in enumerate(values) if v == max(values)), key=lambda i: losses[i])


@pytest.mark.parametrize("keep", ["best-metric", "best-loss", "last"])
def test_the_kept_epoch_is_the_result(keep):
    fit = fitted(keep)
    assert fit.best_epoch == expected_epoch(fit.history, keep)
    entry = fit.history[fit.best_epoch]
    assert evaluate(fit.network, VAL, "student") == pytest.approx(entry["student_val_accuracy"])
    with torch.no_grad():
        loss = nn.functional.cross_entropy(fit.network.eval()(VAL.tensors[1]), VAL.tensors[2])
    assert float(loss) == pytest.approx(entry["student_val_loss"], rel=1e-5)
    assert [e["train_loss"] for e in fit.history] == [e["train_loss"] for e in fitted("last").history]


def test_the_three_ways_differ_here():
    assert len({fitted(keep).best_epoch for keep in ("best-metric", "best-loss", "last")}) == 3


def test_patience_counts_what_is_compared_and_not_with_the_last_epoch():
    assert len(fitted("last", epochs=12, patience=1).history) == 12
    short = fitted("best-loss", epochs=40, patience=2)
    assert len(short.history) == short.best_epoch + 3 < 40


def test_a_metric_that_is_not_a_number_never_wins():
    values = iter([float("nan"), 0.1, 0.3, 0.2])
    problem = Problem.classification(metric=Metric("odd", lambda logits, target: next(values)))
    fit = pretrain(student(), NOISE, VAL, role="student", problem=problem, recipe=recipe(epochs=4))
    assert fit.best_epoch == 2


@pytest.mark.parametrize("keep", ["best-metric", "best-loss", "last"])
def test_the_aligned_pair_keeps_its_last_epoch_and_the_student_its_best(keep):
    pair = align(teacher(), student(), NOISE, VAL, recipe=recipe(keep))
    assert pair.best_epoch == expected_epoch(pair.history, keep)
    assert evaluate(pair.student, VAL, "student") == pytest.approx(pair.history[-1]["student_val_accuracy"])
    best = pair.best_student
    assert best is pair.best_student is not pair.student
    wanted = pair.history[pair.best_epoch]["student_val_accuracy"]
    assert evaluate(best, VAL, "student") == pytest.approx(wanted)
    same = all(torch.equal(a, b) for a, b in zip(best.parameters(), pair.student.parameters(), strict=True))
    assert same == (pair.best_epoch == len(pair.history) - 1)
    assert all(p.requires_grad for p in best.parameters())


class Fragile(Dataset):
    def __init__(self, items=None):
        self.left = items

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("the disk is full")
        return NOISE[index]


def plateau(mode):
    return lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=mode, factor=0.1, patience=0)


@pytest.mark.parametrize("keep", ["best-metric", "best-loss", "last"])
@pytest.mark.parametrize("epochs_before", [1, 4])
def test_resuming_with_each_kind(tmp_path, keep, epochs_before):
    how = recipe(keep, epochs=6, scheduler=plateau("min" if keep == "best-loss" else "max"))
    path = tmp_path / "run.ckpt"

    def run(data, **more):
        return align(teacher(), student(), data, VAL, recipe=how, **more)

    whole = run(Fragile())
    with pytest.raises(RuntimeError, match="disk is full"):
        run(Fragile(COUNT * epochs_before + 20), checkpoint=path)
    for data in (Fragile(), Fragile(0)):  # the second time nothing is read
        again = run(data, checkpoint=path)
        assert (again.history, again.best_epoch) == (whole.history, whole.best_epoch)
        for name in ("teacher", "student", "best_student"):
            ours, theirs = getattr(again, name).state_dict(), getattr(whole, name).state_dict()
            assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_a_finished_distillation_reads_nothing(tmp_path):
    def run(data):
        return distill(teacher(), student(), data, VAL, recipe=recipe(), checkpoint=tmp_path / "run.ckpt")

    first, again = run(Fragile()), run(Fragile(0))
    assert (first.history, first.best_epoch) == (again.history, again.best_epoch)
    for ours, theirs in zip(first.student.parameters(), again.student.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_checkpoints_of_other_kinds_and_versions_are_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "made_with": {}}, path)
    with pytest.raises(InputError, match=r"run.ckpt cannot be resumed from \(another version.*delete it") as error:
        pretrain(student(), NOISE, VAL, role="student", recipe=recipe(), checkpoint=path)
    assert "\n" not in str(error.value)
    path.unlink()
    pretrain(student(), NOISE, VAL, role="student", recipe=recipe("last"), checkpoint=path)
    with pytest.raises(InputError, match=r'run.ckpt was made with keep "last", now it is "best-loss"; delete it'):
        pretrain(student(), NOISE, VAL, role="student", recipe=recipe("best-loss"), checkpoint=path)


def test_a_plateau_lowers_the_learning_rate():
    seen = []

    class Noted(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    how = Recipe(epochs=8, batch_size=60, optimizer=lambda p: Noted(p, lr=1e-5), scheduler=plateau("max"))
    pretrain(student(), NOISE, VAL, role="student", recipe=how)
    assert seen[:3] == pytest.approx([1e-5, 1e-5, 1e-6])  # the first epoch is the best; the second is no better


def test_an_optimizer_that_asks_for_the_loss_again():
    def lbfgs(parameters):
        return torch.optim.LBFGS(parameters, max_iter=5)

    data = TensorDataset(X, S, (S[:, 0] > 0).long())
    fit = pretrain(student(), data, data, role="student", recipe=Recipe(epochs=6, batch_size=60, optimizer=lbfgs))
    assert fit.history[-1]["train_loss"] < fit.history[0]["train_loss"] / 2
    with pytest.raises(InputError, match="LBFGS computes the loss several times per step"):
        pretrain(student(), data, data, role="student", recipe=Recipe(optimizer=lbfgs, accumulate=2))


# --- roles ------------------------------------------------------------------------------------------------------------


def test_the_old_name_of_role_is_taken_with_a_warning():
    with pytest.warns(DeprecationWarning, match="modality= is now called role=") as caught:
        old = pretrain(student(), NOISE, VAL, modality="student", recipe=recipe(epochs=1))
    assert caught[0].filename == __file__
    new = pretrain(student(), NOISE, VAL, role="student", recipe=recipe(epochs=1))
    assert old.history == new.history
    with pytest.warns(DeprecationWarning, match="role="):
        value = evaluate(old.network, VAL, modality="student")
    assert value == evaluate(new.network, VAL, role="student") == evaluate(new.network, VAL, "student")
    with pytest.raises(InputError, match="both given"):
        evaluate(new.network, VAL, "student", modality="student")


def test_a_fit_knows_its_role():
    fit = pretrain(teacher(), NOISE, VAL, role="teacher", recipe=recipe(epochs=1))
    assert fit.role == "teacher"
    with pytest.raises(AttributeError, match=r"this is the fit of a teacher; use .network"):
        _ = fit.student
    assert fitted("last", epochs=1).student is not None


# --- who follows ------------------------------------------------------------------------------------------------------


class Noting:
    def __init__(self):
        self.calls = []

    def log_metrics(self, metrics, step):
        self.calls.append((step, metrics))

    def finalize(self, status):
        self.calls.append(status)


def test_a_logger_gets_the_history_as_it_grows():
    logger = Noting()
    fit = pretrain(student(), NOISE, VAL, role="student", recipe=recipe(epochs=2), logger=logger)
    assert logger.calls[-1] == "success"
    for (step, metrics), entry in zip(logger.calls[:-1], fit.history, strict=True):
        assert step == entry["steps"] - 1
        assert metrics == {key: value for key, value in entry.items() if key != "steps"}
    logger = [Noting(), Noting()]
    with pytest.raises(RuntimeError):
        pretrain(student(), Fragile(70), VAL, role="student", recipe=recipe(epochs=2), logger=logger)
    assert [len(one.calls) for one in logger] == [2, 2]
    assert logger[0].calls[-1] == "failed"


def test_training_needs_no_lightning_and_loggers_by_name_say_that_they_do(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lightning"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning", None)
    assert len(fitted("last", epochs=1).history) == 1
    with pytest.raises(InputError, match=r"logger is 'csv', .* pip install 'lightning.*mfh\[track\]") as error:
        check_tracker("csv")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_files_of_loggers_are_complete(name, tmp_path):
    pytest.importorskip("tensorboard")
    logger = find_tracker(name, tmp_path, "student")
    fit = pretrain(student(), NOISE, VAL, role="student", recipe=recipe(epochs=3), logger=logger)
    if name == "csv":
        with (tmp_path / "student" / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [float(row["train_loss"]) for row in rows] == [entry["train_loss"] for entry in fit.history]
        assert [float(row["step"]) for row in rows] == [entry["steps"] - 1 for entry in fit.history]
    else:
        assert any(path.stat().st_size > 200 for path in (tmp_path / "student").glob("events*"))


def test_progress_shows_what_is_trained(monkeypatch):
    import rich.console

    written = io.StringIO()
    plain = rich.console.Console
    monkeypatch.setattr(
        rich.console,
        "Console",
        lambda **_: plain(file=written, force_terminal=True, width=120),
    )
    silent = fitted("best-metric", epochs=2)
    shown = pretrain(student(), NOISE, VAL, role="student", recipe=recipe(epochs=2), progress=True)
    assert silent.history == shown.history
    assert "student: epoch 2 of 2" in written.getvalue()


# --- batches that batch normalisation can take ------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "accumulate"), [(33, 1), (65, 2), (67, 2), (17, 1)])
def test_no_batch_of_one_reaches_batch_normalisation(samples, accumulate):
    def normalised():
        return seeded(lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)))

    data = TensorDataset(*(tensor.repeat(2, *[1] * (tensor.ndim - 1))[:samples] for tensor in NOISE.tensors))
    how = Recipe(epochs=2, batch_size=16, accumulate=accumulate)
    fit = pretrain(normalised(), data, VAL, role="student", recipe=how)
    assert len(fit.history) == 2
    if accumulate == 1:
        batches = EpochBatches(samples, 16, 0, least=2)
        assert [len(rows) for rows in batches.rows()] == [16] * (len(batches) - 1) + [17]


@pytest.mark.parametrize(("samples", "accumulate"), [(129, 1), (129, 2), (65, 4), (5, 4), (3, 2), (2, 4)])
def test_no_batch_of_one_is_dealt_however_few_samples_there_are(samples, accumulate):
    data = TensorDataset(randn(samples, 4), randn(samples, 4, seed=1), torch.arange(samples) % 2)
    network = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    sizes = []
    network[1].register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])) if module.training else None)
    recipe = Recipe(epochs=2, batch_size=64, accumulate=accumulate)
    pretrain(network, data, data, role="student", recipe=recipe)
    assert min(sizes) >= 2
    assert sum(sizes) >= 2 * samples


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_small_rest_joins_the_step_before(parts):
    for samples in range(1, 60):
        plain, folded = (EpochBatches(samples, 4, 5, accumulate=parts, least=least) for least in (1, 2))
        rows = folded.rows()
        assert torch.equal(torch.cat([row[: folded.count(i)] for i, row in enumerate(rows)]), torch.cat([row[: plain.count(i)] for i, row in enumerate(plain.rows())]))  # fmt: skip  # noqa: E501
        for step in range(len(folded) // parts):
            turns = range(step * parts, (step + 1) * parts)
            size = sum(folded.count(turn) for turn in turns)
            assert all(folded.weights(turn)[1] * size == pytest.approx(folded.count(turn) * parts) for turn in turns)
        assert min(map(len, rows)) >= min(samples, 2)  # also where all samples are one step, and stand-ins
        if len(folded) == len(plain) and samples >= 2 * parts:
            assert [folded.weights(i) for i in range(len(rows))] == [plain.weights(i) for i in range(len(rows))]


def test_user_defined_data_and_tensors_train_alike():
    own = pretrain(student(), Fragile(), VAL, role="student", recipe=recipe())
    tensors = pretrain(student(), NOISE, VAL, role="student", recipe=recipe())
    assert own.history == tensors.history
    assert own.best_epoch == tensors.best_epoch


def test_large_tensors_are_read_in_place(monkeypatch):
    tensors = distill(teacher(), student(), NOISE, VAL, recipe=recipe())
    monkeypatch.setattr("mfh.data.epochs._SHUFFLED_BYTES", 0)
    assert distill(teacher(), student(), NOISE, VAL, recipe=recipe()).history == tensors.history
