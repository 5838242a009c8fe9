import re

import numpy as np
import pandas as pd
import pytest
import torch

import mfh
from mfh.errors import InputError
from mfh.problems import Problem
from mfh.problems.metrics import f1
from mfh.tasks.baseline import linear_baseline
from mfh.tasks.checks import check_task
from mfh.tasks.finding import find_task

RNG = np.random.default_rng(0)
N = 60


def arrays(**changes):
    """60 pairs of vectors, three named classes, 20 pairs each."""
    usual = {
        "teacher": RNG.normal(3, 5, size=(N, 6)),
        "student": RNG.normal(size=(N, 4)),
        "target": np.array(["still", "walk", "run"] * (N // 3)),
    }
    return usual | changes


def task_of(**changes):
    return mfh.Task.from_arrays(**arrays(**changes))


def test_splits_are_stratified_disjoint_and_drawn_by_seed():
    task = task_of()
    check_task(task, [task.layer])
    assert [len(task.train), len(task.val), len(task.test)] == [36, 12, 12]
    assert task.facts["classes"] == ["run", "still", "walk"]
    for split in (task.train, task.val, task.test):
        assert len(set(torch.bincount(split.tensors[2]).tolist())) == 1
    rows = torch.cat([split.tensors[0] for split in (task.train, task.val, task.test)])
    assert len(torch.unique(rows, dim=0)) == N
    again, other = task.resplit(0), task.resplit(1)
    assert torch.equal(again.train.tensors[0], task.train.tensors[0])
    assert not torch.equal(other.test.tensors[0], task.test.tensors[0])


def test_a_study_gives_each_seed_its_own_split():
    task = task_of()
    source = find_task(task)
    assert source.redrawn
    assert torch.equal(source.make(3).val.tensors[0], task.resplit(3).val.tensors[0])


def test_rows_stay_paired():
    target = np.arange(N) % 3
    task = task_of(teacher=np.arange(N)[:, None] * 1.0, student=np.arange(N)[:, None] * 2.0, target=target)
    for split in (task.train, task.val, task.test):
        teacher, student, labels = split.tensors
        assert torch.equal(student, 2 * teacher)
        assert torch.equal(labels, teacher[:, 0].long() % 3)


def test_networks_standardise_by_training_rows_only():
    task = task_of()
    inputs = task.train.tensors[0].double()
    first = task.teacher().standardise
    torch.testing.assert_close(first.mean, inputs.mean(0).float())
    torch.testing.assert_close(first.std, inputs.std(0, correction=0).float())
    whole = torch.from_numpy(arrays()["teacher"]).float()
    assert not torch.allclose(first.mean, whole.mean(0), atol=1e-3)


def test_a_constant_feature_becomes_zero():
    task = task_of(student=np.ones((N, 2)))
    assert not task.student().standardise(task.train.tensors[1]).any()


@pytest.mark.parametrize("shape", [(5,), (3, 40), (2, 1), (1, 8, 8), (3, 2, 2)])
def test_default_networks_fit_vectors_series_and_images(shape):
    task = task_of(student=RNG.normal(size=(N, *shape)))
    check_task(task, [task.layer])
    network = task.student()
    layer = dict(network.named_modules())[task.student_layer]
    seen = []
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape))
    assert network(task.train.tensors[1]).shape == (36, 3)
    assert seen == [(36, 64)]


def test_the_kind_of_target_decides_the_problem():
    for target, name, outputs in (
        (np.arange(N) % 4 + 7, "classification", 4),
        ((np.arange(N) % 2).astype(bool), "classification", 2),
        (np.arange(N)[:, None] % 3, "classification", 3),
        (RNG.normal(size=N), "regression", 1),
        (RNG.normal(size=(N, 2)), "regression", 2),
        (RNG.integers(0, 2, size=(N, 5)), "multi-label classification", 5),
    ):
        task = task_of(target=target)
        check_task(task)
        assert task.problem.name == name
        assert task.student()(task.val.tensors[1]).shape == (12, outputs)
    assert task_of(target=np.arange(N) % 4 + 7).facts["classes"] == ["7", "8", "9", "10"]


@pytest.mark.parametrize(
    ("whole", "gap"),
    [
        (np.arange(N) % 3, -1),
        (np.array(["a", "b", "c"] * 20, dtype=object), None),
        (np.array(["a", "b", "c"] * 20), ""),
        (np.linspace(0, 1, N) + 0.001, np.nan),
        (np.tile([[0, 1], [1, 0], [1, 1]], (20, 1)), -1),
        (np.tile([[0, 1.0], [1, 0], [1, 1]], (20, 1)), np.nan),
    ],
)
def test_rows_without_a_label_are_in_no_labelled_split(whole, gap):
    target = whole.copy()
    target[6:18] = gap
    index = np.arange(N, dtype=float)[:, None]
    task = task_of(teacher=index, target=target)
    check_task(task)
    used = torch.cat([split.tensors[0] for split in (task.train, task.val, task.test)]).flatten()
    assert sorted(used.tolist()) == [*range(6), *range(18, N)]
    assert "12 without" in task.facts["description"]
    # They still count for standardisation: their inputs are known.
    training = torch.cat([task.train.tensors[0].flatten(), torch.arange(6.0, 18)])
    torch.testing.assert_close(task.teacher().standardise.mean[0], training.mean())


def some_labels(kind="whole numbers"):
    """60 pairs of three labels: in 12 only some are known, in 6 none."""
    target = np.tile([[0, 1, 0], [1, 0, 0], [1, 1, 1]], (N // 3, 1))
    gap = -1
    if kind == "NaN":
        target, gap = target.astype(float), np.nan
    target[6:12, 1] = gap
    target[12:18, ::2] = gap
    target[18:24] = gap
    return target


@pytest.mark.parametrize("kind", ["whole numbers", "NaN"])
@pytest.mark.parametrize("how", ["drawn", "by group", "named"])
@pytest.mark.parametrize("problem", [None, Problem.multi_label(missing=-1), Problem.multi_label(metric=f1())])
def test_rows_with_labels_for_some_classes(kind, how, problem):
    index = np.arange(N, dtype=float)[:, None]
    more = {
        "drawn": {},
        "by group": {"groups": np.arange(N) % 12},
        "named": {"split": ["train"] * 24 + ["val"] * 18 + ["test"] * 18},
    }[how]
    task = task_of(teacher=index, target=some_labels(kind), problem=problem, **more)
    check_task(task)
    assert task.problem.metric.name == ("mean_average_precision" if problem is None else problem.metric.name)
    assert np.isnan(task.problem.missing)
    held = torch.cat([task.val.tensors[0], task.test.tensors[0]]).flatten()
    assert not np.isin(held, range(6, 24)).any()
    rows, target = task.train.tensors[0].flatten(), task.train.tensors[2]
    gaps = target.isnan()
    # Those of groups that are held out are not used.
    expected = [row for row in range(6, 18) if how != "by group" or row % 12 not in set((held % 12).tolist())]
    assert rows[gaps.any(1)].tolist() == expected
    assert expected
    assert torch.equal(target[~gaps].double(), torch.tensor(some_labels(kind)[rows.int()][~gaps.numpy()]).double())
    assert gaps[rows < 12].int().sum(0).tolist()[::2] == [0, 0]
    assert not np.isin(rows, range(18, 24)).any()  # pairs without any label
    assert np.isin(task.unlabelled.tensors[0].flatten(), range(18, 24)).all()
    assert f"({len(expected)} of them for some classes only)" in task.facts["description"]


def test_rows_with_labels_for_some_classes_are_trained_on():
    """The loss is that of the entries that are known, by a slow loop; and a network learns from such rows."""
    task = task_of(target=some_labels("NaN"))
    logits = torch.randn(len(task.train), 3, generator=torch.Generator().manual_seed(0))
    target = task.train.tensors[2]
    each = [
        torch.nn.functional.binary_cross_entropy_with_logits(logit, entry)
        for logit, entry in zip(logits.flatten(), target.flatten(), strict=True)
        if not entry.isnan()
    ]
    assert len(each) < target.numel()
    torch.testing.assert_close(task.problem.known_loss(logits, target), torch.stack(each).mean())
    fit = mfh.distill(
        task.teacher(), task.student(), task.train, task.val, unlabelled=task.unlabelled, problem=task.problem,
        recipe=mfh.Recipe(epochs=2, batch_size=16), device="cpu",
    )  # fmt: skip
    assert np.isfinite(fit.history[-1]["train_loss"])
    assert 0 <= linear_baseline(task) <= 1


def test_a_label_that_no_training_pair_has_is_left_open_by_the_baseline():
    target = some_labels("NaN")
    target[:, 2] = np.where(np.arange(N) < 24, np.nan, target[:, 2])
    task = task_of(target=target, split=["train"] * 24 + ["val"] * 18 + ["test"] * 18)
    assert task.train.tensors[2][:, 2].isnan().all()
    assert 0 <= linear_baseline(task) <= 1


def test_label_budgets_are_stratified_and_nested():
    index = np.arange(N)[:, None]
    few, more = (task_of(teacher=index, labels=labels) for labels in (9, 18))
    assert torch.bincount(few.train.tensors[2]).tolist() == [3, 3, 3]
    first, second = (set(task.train.tensors[0].flatten().tolist()) for task in (few, more))
    assert (len(first), len(second)) == (9, 18)
    assert first < second
    assert torch.equal(few.test.tensors[2], more.test.tensors[2])


def test_no_group_is_in_two_splits():
    people = np.repeat([f"person {i}" for i in range(10)], 6)
    for seed in range(5):
        task = task_of(groups=people, seed=seed)
        held = [set(split.groups.tolist()) for split in (task.train, task.val, task.test)]
        assert [len(groups) for groups in held] == [6, 2, 2]
        assert len(set.union(*held)) == 10
        assert task.facts["groups"] == {"unit": "groups", "train": 6, "val": 2, "test": 2}
        assert len(task.train.groups) == len(task.train)


def test_a_person_in_two_named_splits_is_said_by_name(caplog):
    people = [f"person {i % 7}" for i in range(N)]
    check_task(task_of(groups=people, split=["train"] * 36 + ["val"] * 12 + ["test"] * 12))
    assert "7 groups are in both train and val, the first is 'person 0': scores on val are too good" in caplog.text


def test_groups_without_labels_serve_training_and_no_held_out_split_has_gaps():
    people, target = np.repeat(np.arange(10), 6), np.arange(N) % 3
    target[:6] = -1  # person 0 has no label at all
    target[[20, 40]] = -1
    for seed in range(5):
        task = task_of(groups=people, target=target, seed=seed)
        assert "0" in task.unlabelled.groups
        assert all("0" not in split.groups for split in (task.val, task.test))
        assert all((split.tensors[2] >= 0).all() for split in (task.train, task.val, task.test))


def test_named_splits_are_kept_and_fixed():
    split = np.array((["train"] * 4 + ["val", "test"]) * 10)
    target = np.repeat([0, 1], 30)
    target[0] = -1
    task = task_of(target=target, split=split)
    assert [len(task.train), len(task.val), len(task.test)] == [39, 10, 10]
    assert task.resplit is None
    assert task_of(target=target, split=split, labels=10).resplit is not None


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (np.where(np.arange(N) < 6, np.nan, np.arange(N) % 3), Problem.classification()),
        (np.where(np.arange(N) < 6, -1.0, np.arange(N) % 3), Problem.classification()),
        (np.where(np.arange(N) < 6, -100, np.arange(N) % 3), Problem.classification(missing=-100)),
        (np.where(np.arange(N) < 6, -7, np.arange(N) * 3), Problem.regression(missing=-7)),
        (np.where(np.arange(N)[:, None] < 6, -1.0, np.tile([[0, 1], [1, 0], [1, 1]], (20, 1))), Problem.multi_label()),
    ],
)
def test_a_problem_says_what_numbers_mean(target, problem):
    task = task_of(teacher=np.arange(N)[:, None], target=target, problem=problem)
    check_task(task)
    assert task.problem.name == problem.name
    assert sorted(task.unlabelled.tensors[0].flatten().tolist()) == [*range(6)]
    assert task.student()(task.val.tensors[1]).shape[1] == {"regression": 1, "classification": 3}.get(problem.name, 2)


@pytest.mark.parametrize("dtype", [np.dtypes.StringDType(), "S", object])
def test_text_of_any_kind_names_classes_groups_and_splits(dtype):
    words = {
        "target": np.array(["no", "yes"] * 30).astype(dtype),
        "groups": np.array([f"p{i % 10}" for i in range(N)]).astype(dtype),
        "split": np.array((["train"] * 6 + ["val", "val", "test", "test"]) * 6).astype(dtype),
    }
    task = task_of(**words)
    assert task.facts["classes"] == ["no", "yes"]
    assert set(task.val.groups) == {"p6", "p7"}
    assert len(task_of(target=words["target"], groups=words["groups"]).train) == 36


@pytest.mark.parametrize("shape", [(N,), (N, 2)])
@pytest.mark.parametrize("kind", [float, int, object])
def test_minus_one_is_a_number_to_predict(shape, kind):
    target = RNG.integers(-3, 4, size=shape).astype(kind)
    target[5] = -1
    task = task_of(target=target, problem=Problem.regression())
    assert task.unlabelled is None
    assert not torch.cat([split.tensors[2] for split in (task.train, task.val, task.test)]).isnan().any()
    lonely = np.where(np.arange(N) == 5, -1.0, RNG.uniform(1, 2, N))
    assert task_of(target=lonely, problem=Problem.regression()).unlabelled is None


def test_some_numbers_of_a_row_may_be_missing():
    target = np.stack([np.arange(N), -np.arange(N)], axis=1) + 0.5
    target[:6, 1], target[6:9] = np.nan, np.nan
    task = task_of(student=np.arange(N)[:, None], target=target)
    check_task(task)
    gaps = task.train.tensors[2].isnan()
    assert gaps[:, 1].sum() == 6
    assert not gaps[:, 0].any()
    assert len(task.unlabelled) == 3
    assert not torch.cat([task.val.tensors[2], task.test.tensors[2]]).isnan().any()
    assert "(6 of them for some outputs only)" in task.facts["description"]
    assert linear_baseline(task) < 1


def test_a_class_for_each_place_needs_networks_of_its_own():
    pictures, target = RNG.normal(size=(N, 2, 4, 4)), RNG.integers(0, 3, size=(N, 4, 4))
    target[:6, 0], target[6:9], target[9] = -1, -1, -100

    def network():
        return torch.nn.Sequential(torch.nn.Conv2d(2, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 3, 1))

    given = {"teacher": pictures, "student": pictures + 1, "target": target, "problem": Problem.dense()}
    with pytest.raises(InputError, match="no default networks; give teacher_network and student_network"):
        task_of(**given)
    task = task_of(**given, teacher_network=network, student_network=network, layer="1")
    check_task(task, ["1"])
    assert task.problem.missing == -1
    assert len(task.unlabelled) == 3
    assert (task.train.tensors[2] == -1).any(1).any(1).sum() == 6
    assert not (torch.cat([task.val.tensors[2], task.test.tensors[2]]) == -1).any()
    assert not task.facts["linear_baseline"]


def test_numbers_to_predict_may_have_any_scale():
    student = RNG.normal(size=(N, 2))
    values = student * [1e5, 1e-4] + [3e5, 7]
    task = task_of(student=student, target=values)
    scale = task.student().logits
    torch.testing.assert_close(scale.mean, task.train.tensors[2].mean(0))
    torch.testing.assert_close(scale.std, task.train.tensors[2].std(0, correction=0))
    fit = mfh.pretrain(
        task.student(), task.train, task.val, role="student", problem=task.problem, recipe=task.recipe, device="cpu"
    )
    assert fit.history[-1]["student_val_mean_squared_error"] < 0.1 * 1e10  # without the scale it stays near 1e11
    constant = task_of(target=np.full(N, 0.5))
    assert constant.teacher().logits.std == 1


@pytest.mark.parametrize(
    ("kind", "read"),
    [
        (lambda x: pd.DataFrame(x), True),
        (lambda x: pd.DataFrame(x).astype("Float64"), True),
        (lambda x: pd.DataFrame(x.astype(object)), True),
        (lambda x: pd.DataFrame(x).assign(moving=True), True),
        (lambda x: x.astype(object), True),
        (lambda x: torch.from_numpy(x).bfloat16(), True),
        (lambda x: torch.from_numpy(x).requires_grad_(), True),
        (lambda x: [torch.from_numpy(row) for row in x], True),
        (lambda x: np.ma.masked_array(x, np.zeros_like(x)), True),
        (lambda x: torch.from_numpy(x).to_sparse(), "float64, sparse_coo. that makes no array.*call .to_dense"),
        (
            lambda x: pd.DataFrame(x).assign(place="left"),
            "student: column 'place' holds 'left'; inputs must be numbers",
        ),
        (lambda x: np.ma.masked_array(x, np.arange(x.size).reshape(x.shape) == 9), "in 1 of 60 rows, first in row 2"),
        (lambda x: iter(x), "student is a generator; an array of numbers was expected"),
        (lambda x: None, "student is a NoneType; an array of numbers was expected"),
    ],
)
def test_inputs_of_many_kinds(kind, read):
    student = np.arange(N * 4).reshape(N, 4) * 1.0
    made = kind(student) if read != "student is a generator; an array of numbers was expected" else (x for x in student)
    if read is not True:
        with pytest.raises(InputError, match=read):
            task_of(student=made)
        return
    task = task_of(student=made)
    assert sorted(task.train.tensors[1][:, 0].bfloat16().tolist()) == sorted(
        torch.from_numpy(student[np.isin(student[:, 0], task.train.tensors[1][:, 0])][:, 0]).bfloat16().tolist()
    )


@pytest.mark.parametrize(
    ("target", "gaps"),
    [
        (np.ma.masked_array(np.arange(N) % 3, np.arange(N) < 6), 6),
        (pd.Series(pd.Categorical.from_codes(np.where(np.arange(N) < 6, -1, np.arange(N) % 3), ["a", "b", "c"])), 6),
        (pd.Series([None] * 6 + ["a", "b", "c"] * 18, dtype="string"), 6),
        (pd.DataFrame({"y": [0, 1, 1] * 20, "z": [None] * 6 + [1, 0, 1] * 18}).astype("Int64"), 0),
    ],
)
def test_targets_with_gaps_of_many_kinds(target, gaps):
    task = task_of(target=target)
    check_task(task)
    assert (0 if task.unlabelled is None else len(task.unlabelled)) == gaps


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": RNG.normal(size=(N, 8, 8, 3))}, "images of 8 channels, 8 x 3; if the channels come last"),
        ({"student": RNG.normal(size=(N, 50, 3))}, "series of 50 channels and 3 time steps; if the time comes first"),
        ({"student": RNG.normal([0, 1e9], size=(N, 2))}, "feature 1 lies between .* hardly tell apart; subtract"),
        ({"target": RNG.normal(size=N) + 1e9}, "target: column 0 lies between"),
        ({"target": np.eye(3, dtype=int)[np.arange(N) % 3]}, r"exactly one 1 in each row .*target.argmax\(1\)"),
        ({"student": RNG.normal(size=(N, 3, 50)), "teacher": RNG.normal(size=(N, 3, 8, 8)) + 1e6}, None),
    ],
)
def test_what_is_probably_a_mistake_is_said(changes, said, caplog):
    check_task(task_of(**changes))
    if said is None:
        assert not caplog.text
    else:
        assert re.search(said, caplog.text)
        assert len(caplog.records) == 1


def test_own_networks_get_raw_inputs():
    def teacher():
        return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

    task = task_of(teacher_network=teacher, layer="1", recipe=mfh.Recipe(epochs=3), name="mine")
    check_task(task, ["1"])
    assert (task.name, task.recipe.epochs, len(task.teacher())) == ("mine", 3, 3)
    for more in ({}, {"layer": ""}):
        with pytest.raises(InputError, match="layer is not given"):
            task_of(teacher_network=teacher, **more)
    with pytest.raises(InputError, match="teacher of task 'arrays' is a Sequential; a function that makes a new"):
        task_of(teacher_network=teacher(), layer="1")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": np.zeros((N - 1, 4))}, "different lengths: teacher 60, student 59, target 60"),
        ({"groups": np.arange(N - 1)}, "groups 59"),
        ({"teacher": np.array([[{}]] * N)}, "teacher holds Python objects"),
        ({"teacher": np.full((N, 2), "a")}, "teacher holds text"),
        ({"teacher": [[1.0], [1.0, 2.0]]}, "an array cannot be made of a list"),
        ({"teacher": np.zeros(N)}, "of shape .60,., has 1 dimensions; vectors"),
        ({"teacher": np.zeros((N, 0))}, "is empty"),
        ({"teacher": np.where(np.arange(N)[:, None] % 20 == 7, np.nan, 1.0)}, "in 3 of 60 rows, first in row 7"),
        ({"student": np.full((N, 2), 1e200)}, "not finite in 60 of 60 rows, first in row 0"),
        ({"target": np.array(["a"] * 59 + ["b"])}, "class 'b' has 1 labelled pair; at least 3"),
        ({"target": np.zeros(N, dtype=int)}, "the class 0 only"),
        ({"target": np.where(np.arange(N) == 9, -100, np.arange(N) % 3)}, "holds -100 in row 9"),
        ({"target": np.full(N, -1)}, "no label at all"),
        ({"target": np.zeros((N, 2, 2))}, r"target has shape \(60, 2, 2\)"),
        ({"target": RNG.integers(0, 5, size=(N, 2))}, "whole numbers other than 0 and 1"),
        ({"target": np.array(["a", 3] * 30, dtype=object)}, "objects of the types int, str"),
        ({"target": np.where(np.arange(N) == 5, np.inf, 0.5)}, "first in row 5"),
        ({"target": np.zeros(N, dtype=complex)}, "complex128"),
        (
            {"target": np.where(np.arange(N) == 4, np.inf, np.arange(N) % 3), "problem": Problem.classification()},
            "target holds inf in row 4; classes are whole numbers",
        ),
        (
            {"target": np.where(np.arange(N)[:, None] == 4, np.inf, np.ones((N, 2))), "problem": Problem.dense()},
            "holds no class for each place",
        ),
        (
            {"target": np.array([b"\xff", b"a"] * 30)},
            "target holds bytes that are not ASCII; give text: numpy.char.dec",
        ),
        ({"groups": np.array([b"\xff", b"a"] * 30)}, "groups holds bytes that are not ASCII"),
        ({"groups": np.repeat([0, 1], 30)}, "2 groups with labels cannot be split"),
        ({"groups": [None] + [1] * (N - 1)}, "groups is missing in row 0"),
        (
            {"target": some_labels(), "split": ["val"] * 20 + ["test"] * 20 + ["train"] * 20},
            "row 6 of the val split has some of its labels only; only training pairs may lack labels",
        ),
        ({"split": ["train"] * N}, "the val split has no labelled pair"),
        ({"split": ["training"] * N}, "split is 'training' in row 0"),
        ({"labels": 2}, "labels is 2, fewer than the 3 classes"),
        ({"labels": 37}, "labels is 37; choose 1 to 36"),
        ({"labels": "few"}, "labels is 'few'; choose 'all'"),
        ({"val": 0.9, "test": 0.2}, "60 labelled pairs cannot be split"),
        ({"val": -1}, "val is -1"),
        ({"val": float("inf")}, "val is inf"),
        ({"facts": [1]}, "facts is .1., of type list; a Mapping was expected"),
        ({"problem": 5}, "problem is "),
        ({"split": 5}, r"split has shape \(\)"),
        ({"split": [["train"]] * N}, r"split has shape \(60, 1\)"),
        ({"target": [2**70, 1, 2] * 20}, "more than 64 bits"),
        ({"seed": -1}, "seed is -1"),
        (
            {"target": np.arange(N) % 3 * 1.0},
            r"0.0, 1.0, 2.0 as floating point.*problem=mfh.Problem.classification\(\)",
        ),
        ({"target": np.where(np.arange(N) < 9, np.nan, np.arange(N) % 2)}, "may be classes or numbers to predict"),
        ({"target": np.where(np.arange(N) == 5, -1, RNG.uniform(1, 2, N))}, "holds -1 in row 5 and no other negative"),
        ({"target": np.where(np.arange(N) == 5, -999, RNG.uniform(1, 2, N))}, "holds -999 in row 5"),
        ({"target": np.array(["nan", "a", "b"] * 20)}, "is the text 'nan' in row 0, which looks like a missing label"),
        ({"target": RNG.integers(18, 80, N)}, "if the target is a number to predict, give it as floating point"),
        ({"target": RNG.normal(size=N), "problem": Problem.classification()}, "in row 0; classes are whole numbers"),
        ({"problem": Problem.multi_label()}, "target holds text; 0 and 1 for each class"),
        ({"problem": Problem.regression()}, "target holds text; numbers to predict"),
        ({"target": np.arange(N) % 3, "problem": Problem.dense()}, "holds no class for each place"),
        (
            {"target": RNG.integers(0, 5, size=(N, 2)), "problem": Problem.multi_label()},
            "target holds . in row .*; 0 and 1 for each class",
        ),
        ({"val": 10**400}, "val is 1000.*; choose a share"),
        ({"lables": 3}, "no argument 'lables'; close names: 'labels'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(changes, said):
    with pytest.raises(InputError, match=said) as error:
        task_of(**changes)
    assert "\n" not in str(error.value)


def test_a_class_or_a_gap_in_a_named_held_out_split_is_refused():
    split = np.array((["train"] * 4 + ["val", "test"]) * 10)
    target = np.repeat([0, 1], 30)
    target[4] = -1
    with pytest.raises(InputError, match="row 4 of the val split has no label"):
        task_of(target=target, split=split)
    target[4] = 2
    with pytest.raises(InputError, match="class '2' is in the val split and not in training"):
        task_of(target=target, split=split)


def test_a_task_from_arrays_trains():
    target = np.arange(N) % 2
    student = RNG.normal(size=(N, 4)) + 10 * target[:, None]
    task = task_of(student=student, target=target)
    fit = mfh.pretrain(task.student(), task.train, task.val, role="student", recipe=task.recipe, seed=0)
    assert mfh.evaluate(fit.network, task.test, role="student") == 1.0
