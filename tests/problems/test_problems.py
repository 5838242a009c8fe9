import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, f1_score, jaccard_score
from torch import nn
from torch.utils.data import TensorDataset

import mfh
import mfh.studies.grid
from mfh.errors import InputError
from mfh.problems import metrics
from mfh.problems.losses import KDLoss, bernoulli_divergence, kl_divergence, output_distance
from mfh.problems.metrics import Metric, Tally
from mfh.problems.problem import Problem
from networks import randn, seeded

LABELS = (randn(90, 4, seed=1) > 0.6).long()
MAP = torch.randint(0, 3, (20, 6, 5), generator=torch.Generator().manual_seed(0))
MAP[:, :2, :2] = 9


def problem_and_data(kind, count=80, seed=0):
    """A small task of every kind: 3 inputs shared, logits that a linear layer could find."""
    both, rich, poor = (randn(count, width, seed=seed + i) for i, width in enumerate((3, 3, 4)))
    values = torch.stack([both[:, 0] + rich[:, 0], both[:, 1] - rich[:, 1]], dim=1)
    pairs = torch.cat([both, rich], 1), torch.cat([both, poor], 1)
    if kind == "multi-label":
        return Problem.multi_label(), TensorDataset(*pairs, (values > 0).long())
    if kind == "regression":
        return Problem.regression(), TensorDataset(*pairs, values)
    pixels = (values[:, :, None] + randn(1, 1, 3, seed=7) > 0).long().sum(1)
    pixels[::5, 0] = 255
    return Problem.dense(ignore_index=255), TensorDataset(*pairs, pixels)


class Pixels(nn.Module):
    """(N, inputs) -> (N, 3, 3): three classes at three places."""

    def __init__(self, inputs):
        super().__init__()
        self.hidden, self.relu, self.out = nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 9)

    def forward(self, x):
        return self.out(self.relu(self.hidden(x))).reshape(-1, 3, 3)


def network(kind, inputs):
    if kind == "dense":
        return Pixels(inputs)
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 2))


KINDS = ("multi-label", "regression", "dense")


# --- divergences -----------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_multi_label_divergence_is_a_sum_over_coins(temperature):
    student, teacher = randn(6, 4, seed=1) * 3, randn(6, 4, seed=2) * 3
    total = 0.0
    for s, t in zip(student.double().flatten(), teacher.double().flatten(), strict=True):
        coins = (torch.distributions.Bernoulli(logits=value / temperature) for value in (t, s))
        total += float(torch.distributions.kl_divergence(*coins))
    found = bernoulli_divergence(student, teacher, temperature=temperature)
    assert float(found) == pytest.approx(temperature**2 * total / 6, rel=1e-5)
    mean = bernoulli_divergence(student, teacher, temperature=temperature, reduction="mean")
    assert float(mean) == pytest.approx(float(found) / 4, rel=1e-6)


def test_the_multi_label_divergence_survives_certainty():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss = bernoulli_divergence(logits, -logits.detach())
    loss.backward()
    assert torch.isfinite(loss.detach())
    assert torch.isfinite(logits.grad).all()


def test_the_dense_divergence_is_the_mean_over_pixels():
    student, teacher = randn(3, 4, 2, 5, seed=1), randn(3, 4, 2, 5, seed=2)
    each = [
        kl_divergence(student[i : i + 1, :, y, x], teacher[i : i + 1, :, y, x], temperature=2.0)
        for i in range(3)
        for y in range(2)
        for x in range(5)
    ]
    torch.testing.assert_close(kl_divergence(student, teacher, temperature=2.0), torch.stack(each).mean())


def test_outputs_of_a_regression_have_no_temperature():
    student, teacher = randn(5, 3, seed=1), randn(5, 3, seed=2)
    torch.testing.assert_close(output_distance(student, teacher), (student - teacher).square().mean())
    with pytest.raises(InputError, match=r"temperature is 2.0, but outputs of a regression"):
        output_distance(student, teacher, temperature=2.0)


@pytest.mark.parametrize("divergence", [kl_divergence, bernoulli_divergence, output_distance])
def test_logits_of_another_width_are_refused(divergence):
    with pytest.raises(InputError, match=r"shape \(2, 3\) and the teacher \(2, 4\)"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 4))


def test_a_loss_keeps_what_it_says_itself_and_takes_the_rest_from_the_problem():
    mine = KDLoss(temperature=2.0, label_loss=F.multi_margin_loss)
    whole = Problem.multi_label().complete(mine)
    assert (whole.temperature, whole.label_loss, whole.divergence) == (2.0, F.multi_margin_loss, bernoulli_divergence)
    assert Problem.regression().complete(None).label_loss is F.mse_loss
    assert Problem.regression().complete(max) is max
    logits, teacher, target = randn(6, 3, seed=1), randn(6, 3, seed=2), torch.arange(6) % 3
    assert torch.equal(
        KDLoss()(logits, teacher, target), Problem.classification().complete(None)(logits, teacher, target)
    )


def test_a_batch_without_labelled_pixels_costs_nothing():
    problem, logits = Problem.dense(), randn(2, 3, 4).requires_grad_()
    loss = problem.label_loss(logits, torch.full((2, 4), -100))
    loss.backward()
    assert loss.item() == 0
    target = torch.tensor([[0, 1, -100, 2], [-100, 2, 2, 1]])
    torch.testing.assert_close(problem.label_loss(logits, target), F.cross_entropy(logits, target, ignore_index=-100))


# --- metrics -----------------------------------------------


def flat(labels, ignore=None):
    values = labels.flatten().numpy()
    return values if ignore is None else values[values != ignore]


def by_sklearn(name, logits, target):
    if name == "mean_average_precision":
        return average_precision_score(target.numpy(), logits.double().numpy(), average="macro")
    if name == "f1":
        return f1_score(target.numpy(), (logits > 0).numpy(), average="macro", zero_division=0)
    if name == "mean_iou":
        keep = (target != 9).flatten().numpy()
        return jaccard_score(flat(target)[keep], flat(logits.argmax(1))[keep], average="macro")
    if name == "accuracy":
        return (logits.argmax(1) == target).double().mean()
    return np.mean((logits.numpy().astype(float) - target.numpy()) ** 2)


CASES = {
    "accuracy": (metrics.accuracy(), randn(90, 5, seed=3), torch.arange(90) % 5),
    "mean_average_precision": (metrics.mean_average_precision(), randn(90, 4, seed=3) + LABELS, LABELS),
    "f1": (metrics.f1(), randn(90, 4, seed=3) + LABELS, LABELS),
    "mean_iou": (metrics.mean_iou(9), randn(20, 3, 6, 5, seed=3) + F.one_hot(MAP % 3).movedim(-1, 1), MAP),
    "mean_squared_error": (metrics.mean_squared_error(), randn(90, 3, seed=3), randn(90, 3, seed=4).double()),
}


@pytest.mark.parametrize("name", CASES)
def test_metrics_equal_scikit_learn_whatever_the_batches(name):
    metric, logits, target = CASES[name]
    expected = by_sklearn(name, logits, target)
    assert 0.05 < expected < 3
    close = pytest.approx(float(expected), rel=1e-6 if name == "mean_average_precision" else 1e-9)  # single precision
    for block in (1, 7, 1000):
        assert metric.of(logits, target, block=block) == close
    halves = [Tally(metric), Tally(metric), Tally(metric)]  # the last process has nothing
    for tally, rows in zip(halves, (slice(0, 11), slice(11, None)), strict=False):
        tally.add(logits[rows], target[rows])
    assert halves[0].value([tally.state() for tally in halves]) == close
    assert metric.name == name


def test_logits_that_look_like_probabilities_are_still_logits():
    logits, target = torch.tensor([[0.9, 0.2], [0.1, 0.4]]), torch.tensor([[1, 0], [0, 1]])
    assert metrics.f1().of(logits, target) == pytest.approx(2 / 3)  # all four logits are above 0


def test_classes_that_never_occur_are_left_out_of_the_precision():
    logits, target = randn(30, 3, seed=1), (randn(30, 3, seed=2) > 0).long()
    target[:, 1] = 0
    kept = metrics.mean_average_precision().of(logits[:, [0, 2]], target[:, [0, 2]])
    assert metrics.mean_average_precision().of(logits, target) == pytest.approx(kept)
    one = metrics.mean_average_precision().of(logits[:, :1], target[:, :1])
    alone = torch.where(torch.arange(target.shape[1]) == 0, target, 0)
    assert metrics.mean_average_precision().of(logits, alone) == pytest.approx(one)
    assert one == pytest.approx(average_precision_score(target[:, 0].numpy(), logits[:, 0].double().numpy()), rel=1e-6)


# --- targets that cannot be -----------------------------------------------


@pytest.mark.parametrize(
    ("problem", "logits", "target", "said"),
    [
        (Problem.classification(), (4, 3), torch.tensor([0, 1, 3, 0]), "holds 3; class indices from 0 to 2"),
        (Problem.classification(), (4, 3), torch.tensor([0, -1, 1, 0]), "holds -1"),
        (Problem.classification(), (4, 3), torch.zeros(4), "torch.float32"),
        (Problem.classification(), (4, 3), torch.zeros(4, 3).long(), "Problem.multi_label"),
        (Problem.classification(), (4, 3, 5), torch.zeros(4, 5).long(), "Problem.dense"),
        (Problem.multi_label(), (4, 3), torch.zeros(4).long(), r"shape \(4,\) and the network returns \(4, 3\)"),
        (Problem.multi_label(), (4, 3), torch.full((4, 3), 2), "holds 2; 0 or 1"),
        (Problem.dense(), (4, 3, 5), torch.full((4, 5), 3), "holds 3; class indices from 0 to 2 or -100"),
        (Problem.dense(), (4, 3, 5), torch.zeros(4, 6).long(), r"shape \(4, 5\)"),
        (Problem.regression(), (4, 1), torch.zeros(4), r"shape \(4,\) and the network returns \(4, 1\)"),
        (Problem.regression(), (4, 1), torch.full((4, 1), float("nan")), "holds nan; a finite number"),
        (Problem.regression(), (4, 1), torch.zeros(4, 1).long(), "torch.int64"),
    ],
)
def test_targets_that_cannot_be_are_named(problem, logits, target, said):
    with pytest.raises(InputError, match=said) as error:
        problem.check(torch.zeros(logits), target, "val split", list(range(10, 14)))
    assert str(error.value).startswith("val split")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("place", [0, 70])
def test_a_label_out_of_range_is_named_with_its_sample(split, place):
    x, target = randn(80, 4), torch.arange(80) % 2
    wrong = target.clone()
    wrong[place] = 7
    data = {"train": target, "val": target} | {split: wrong}
    train, val = (TensorDataset(x, x, data[name]) for name in ("train", "val"))
    with pytest.raises(InputError, match=f"{split} split, sample {place}: the target holds 7; .* 0 to 1"):
        mfh.pretrain(nn.Linear(4, 2), train, val, role="student", recipe=mfh.Recipe(epochs=1, batch_size=16))
    with pytest.raises(InputError, match="the target holds 7"):
        mfh.evaluate(nn.Linear(4, 2), TensorDataset(x, x, wrong), "student")


# --- training and studies -----------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_like_a_plain_loop_and_keeps_its_best_epoch(kind):
    problem, train = problem_and_data(kind)
    _, val = problem_and_data(kind, seed=50)
    recipe = mfh.Recipe(epochs=6, batch_size=80)
    teacher, student = (seeded(lambda n=n: network(kind, n), n) for n in (6, 7))
    slow, optimizer = seeded(lambda: network(kind, 7), 7), None
    fit = mfh.distill(teacher, student, train, val, problem=problem, recipe=recipe)
    optimizer = recipe.optimizer(slow.parameters())
    values, (x, s, y) = [], train.tensors
    for _ in range(6):
        logits, taught = slow(s), teacher(x).detach()
        loss = problem.label_loss(logits, y) + problem.divergence(
            logits, taught, temperature=1.0, reduction="batchmean"
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            values.append(problem.metric.of(slow(val.tensors[1]), val.tensors[2]))
    name = f"student_val_{problem.metric.name}"
    assert [entry[name] for entry in fit.history] == pytest.approx(values, rel=1e-4)
    assert fit.best_epoch == np.argmax(problem.metric.scale.sign * np.array(values))
    found = mfh.evaluate(fit.student, val, "student", problem=problem)
    assert found == pytest.approx(values[fit.best_epoch], rel=1e-4)


class Make:
    """A factory that worker processes could be sent."""

    def __init__(self, kind, inputs):
        self.kind, self.inputs = kind, inputs

    def __call__(self):
        return network(self.kind, self.inputs)


def task_of(kind, **changes):
    problem, train = problem_and_data(kind)
    splits = {"train": train} | {s: problem_and_data(kind, 40, seed)[1] for s, seed in (("val", 50), ("test", 90))}
    layer = "relu" if kind == "dense" else "1"
    fields = {"name": kind, "teacher": Make(kind, 6), "student": Make(kind, 7), "layer": layer, "problem": problem}
    recipe = mfh.Recipe(epochs=2)
    return mfh.Task(**fields | splits | {"student_layer": layer, "recipe": recipe} | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_study_of_every_kind(kind, tmp_path):
    task = task_of(kind)
    arms = [*mfh.studies.grid.ARMS, *(["tempered"] if kind == "dense" else [])]
    result = mfh.study(task, arms=arms, num_seeds=2, out=tmp_path / "run", processes=1)
    name = task.problem.metric.name
    assert result.scale == task.problem.metric.scale
    assert result.by_seed().shape == (2, len(arms))
    students = result.frame[result.frame["metric"] == name]
    assert set(students["split"]) == {"val", "test"}
    assert set(result.frame["metric"]) == {name, f"teacher_{name}", "best_epoch"}
    page = mfh.report(tmp_path / "run").read_text(encoding="utf-8")
    assert task.problem.metric.scale.title in page
    assert "accuracy" not in page
    if kind == "regression":
        assert ", points" not in page
        assert "Lower mean squared error is better" in page


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
def test_tempering_needs_a_softmax(kind):
    with pytest.raises(InputError, match="arm 'tempered' softens a softmax"):
        mfh.study(task_of(kind), arms=["no-kd", "tempered"], num_seeds=1, processes=1)


def test_selection_takes_the_lower_error(tmp_path):
    from mfh.files import read_json

    result = mfh.study(
        task_of("regression"), arms=["no-kd", "regular", "aligned"], num_seeds=2, select=True, out=tmp_path, processes=1
    )
    means = result.by_seed("val").mean().drop("no-kd")
    choice = read_json(tmp_path / "selection.json")
    assert choice["arm"] == means.idxmin() != means.idxmax()
    assert choice["validation_mean_squared_error"] == pytest.approx(means.min())


def test_a_lower_error_is_a_gain():
    import pandas as pd

    import fake_study
    from mfh.problems.scale import Scale
    from mfh.reporting.summary import arms_table, finding
    from mfh.studies.summary import summarise

    frame = fake_study.rows(gains={"no-kd": 0.0, "regular": 0.1, "soft": 0.2})
    frame["value"] = frame["value"].where(frame["metric"] == "best_epoch", 0.01 * (1 - frame["value"]))
    frame["metric"] = frame["metric"].str.replace("accuracy", "mean_squared_error")
    scale = Scale("mean_squared_error", higher_is_better=False, percent=False)
    summary = summarise(frame, scale=scale)
    assert summary.chosen().arm == "soft"
    assert summary.chosen().gain.outcome == "gains"
    assert "Distillation helps here: soft gains over no-kd." in finding(summary)
    assert "regular: +0.00" in finding(summary)
    assert "of mean squared error" in finding(summary)
    table = arms_table(summary)
    assert table.columns[1:3] == ["Test mean squared error", "Against no-kd"]
    assert isinstance(frame, pd.DataFrame)


def test_a_metric_a_loss_and_an_optimizer_of_ones_own():
    def worst(logits, target):
        return (logits - target).abs().max()

    seen = []

    def huber(logits, target):
        seen.append(len(target))
        return F.smooth_l1_loss(logits, target)

    def distance(student_logits, teacher_logits, target):
        return (student_logits - teacher_logits).abs().mean() + huber(student_logits, target)

    metric = Metric("worst_error", worst, higher_is_better=False, percent=False)
    recipe = mfh.Recipe(epochs=2, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01))
    task = task_of("regression", problem=Problem.regression(label_loss=huber, metric=metric), recipe=recipe)
    result = mfh.study(task, arms=["no-kd", "regular"], num_seeds=1, processes=1, loss=distance)
    assert seen
    assert set(result.frame["metric"]) == {"worst_error", "teacher_worst_error", "best_epoch"}


def test_a_collate_function_of_ones_own():
    """Items of different length, which only the user knows how to pad."""
    lengths = [2 + i % 3 for i in range(60)]
    items = [(list(range(n)), float(n), n % 2) for n in lengths]

    def collate(chosen):
        padded = torch.zeros(len(chosen), 5)
        for row, (words, _, _) in zip(padded, chosen, strict=True):
            row[: len(words)] = torch.tensor(words) + 1.0
        return padded, torch.tensor([[c[1]] for c in chosen]), torch.tensor([c[2] for c in chosen])

    def make(inputs):
        return nn.Sequential(nn.Linear(inputs, 4), nn.ReLU(), nn.Linear(4, 2))

    task = mfh.Task(
        "padded", lambda: make(5), lambda: make(1), "1", items, items, items, collate=collate,
        recipe=mfh.Recipe(epochs=1),
    )  # fmt: skip
    result = mfh.study(task, arms=["no-kd", "regular", "soft"], num_seeds=1, processes=1)
    assert result.by_seed().notna().all(axis=None)
    with pytest.raises(InputError, match="do not fit into one batch"):
        mfh.pretrain(make(1), [(torch.zeros(n), torch.zeros(1), 0) for n in lengths], task.val, role="student")
