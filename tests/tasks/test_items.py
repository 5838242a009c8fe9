"""`mfh check`: every bad item of a task is found in one pass, whatever is wrong with it."""

import csv
import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset, TensorDataset

import mfh
import tiny_task
from mfh.cli.commands import main
from mfh.errors import InputError
from mfh.problems.problem import Problem
from mfh.reporting.items import class_table
from mfh.tasks.items import find
from networks import randn

TASK = tiny_task.task()
COUNT = 10_000


class Changed(Dataset):
    """The items of another data set; those at some indices go through a function."""

    def __init__(self, data, changes):
        self.data, self.changes = data, changes

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        item = self.data[index]
        return self.changes[index](*item) if index in self.changes else item


def unreadable(*_item):
    raise OSError(28, "No space left on device", "17.wav")


def unlabelled(teacher, student, _target):
    return teacher, student, torch.tensor(-100)


def no_number(teacher, student, target):
    return teacher, student * float("nan"), target


def leaves(*_item):
    raise SystemExit(0)


def changed(**changes):
    return dataclasses.replace(TASK, **changes)


def three_of_ten_thousand() -> mfh.Task:
    data = TensorDataset(randn(COUNT, 8), randn(COUNT, 7, seed=1), torch.arange(COUNT) % 2)
    return changed(train=Changed(data, {17: unreadable, 4242: no_number, 9999: unlabelled}))


THREE = [
    ("train", 17, "cannot be read: OSError: [Errno 28] No space left on device: '17.wav'"),
    ("train", 4242, "student_input holds nan; finite numbers were expected"),
    ("train", 9999, "the target holds -100; class indices from 0 to 1 were expected"),
]


@pytest.mark.parametrize("workers", [0, 2])
def test_three_damaged_items_of_ten_thousand(workers):
    frame = mfh.check(three_of_ten_thousand(), num_workers=workers)
    assert list(frame.itertuples(index=False, name=None)) == THREE
    assert frame.attrs["items"] == {"train": COUNT, "val": 60, "test": 60}
    assert frame.attrs["classes"]["train"] == [4999, 4998]
    assert frame.attrs["odd"] == []


def test_each_item_is_read_once():
    read = Counter()

    class Counted(Dataset):
        def __len__(self):
            return len(TASK.val)

        def __getitem__(self, index):
            read[index] += 1
            return TASK.val[index]

    assert mfh.check(changed(val=Counted())).empty
    assert read == Counter(range(60))


def shape(teacher, student, target):
    return teacher[:5], student, target


def double(teacher, student, target):
    return teacher, student.double(), target


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (unreadable, "cannot be read: OSError"),
        (leaves, "cannot be read: SystemExit"),
        (lambda *item: item[:2], "a batch of pairs is a tuple of length 2"),
        (lambda x, s, y: {"x": x}, "an item is a dict with the keys 'x'"),
        (lambda x, s, y: (x, s, "cat"), "the target is text"),
        (lambda x, s, y: (x / 0, s, y), "teacher_input holds (-?inf)"),
        (shape, r"teacher_input is float32 of shape \(5,\); 119 of 120 items of the split have float32 of shape \(8,"),
        (double, r"student_input is float64 .*; 119 of 120 items of the split have float32"),
        (lambda x, s, y: (x, s, y + 2), "the target holds [23]; class indices from 0 to 1"),
        (lambda x, s, y: (x, s, -1), "the target holds -1; class indices from 0 to 1"),
        (
            lambda x, s, y: (x, s, y.float()),
            r"target is float32 .*; the target is of type torch.float32; class indices .* were expected",
        ),
    ],
)
@pytest.mark.parametrize("index", [0, 77])
def test_whatever_is_wrong_with_an_item(change, said, index):
    frame = mfh.check(changed(train=Changed(TASK.train, {index: change})))
    assert list(zip(frame["split"], frame["index"], strict=True)) == [("train", index)]
    assert frame["reason"].str.fullmatch(f".*{said}.*").all(), frame["reason"].tolist()
    assert not frame["reason"].str.contains("\n").any()


@pytest.mark.parametrize(
    ("problem", "target", "bad", "said"),
    [
        (Problem.multi_label(), torch.eye(2).repeat(60, 1), -1.0, "the target holds -1.0; 0 or 1 for each class"),
        (Problem.multi_label(), torch.eye(2).repeat(60, 1), 0.5, "the target holds 0.5; 0 or 1 for each class"),
        (Problem.regression(), randn(120, 2), float("nan"), "the target holds nan; a finite number"),
    ],
)
def test_targets_of_other_kinds(problem, target, bad, said):
    train = TensorDataset(*TASK.train.tensors[:2], target.clone())
    others = {name: TensorDataset(*getattr(TASK, name).tensors[:2], target[:60]) for name in ("val", "test")}
    task = changed(train=train, problem=problem, **others)
    assert mfh.check(task).empty
    train.tensors[2][[5, 9], 1] = bad
    frame = mfh.check(task)
    assert frame["index"].tolist() == [5, 9]
    assert frame["reason"].str.contains(said).all()


def test_dense_targets_of_pictures_of_two_sizes():
    def split(count, width, seed):
        pictures = randn(count, 1, 6, width, seed=seed)
        target = (pictures[:, 0] > 0).long()
        target[0, 0, 0] = -100
        return TensorDataset(pictures, pictures + 1, target)

    task = changed(
        teacher=lambda: nn.Conv2d(1, 2, 1),
        student=lambda: nn.Conv2d(1, 2, 1),
        layer="",
        problem=Problem.dense(),
        **{name: split(9, width, seed) for seed, (name, width) in enumerate([("train", 5), ("val", 7), ("test", 5)])},
    )
    found = find(task)
    assert not found.bad
    assert sum(found.classes["val"]) == 9 * 6 * 7 - 1
    task.test.tensors[2][4, 1, 1] = 2
    assert find(task).bad == {
        ("test", 4): "the target holds 2; class indices from 0 to 1 or -100 (ignored) were expected"
    }


def test_collated_items_may_differ_in_length():
    items = [(randn(length, 8), randn(7, seed=length), length % 2) for length in range(1, 9)]

    def collate(batch):
        sound, other, target = zip(*batch, strict=True)
        return torch.stack([x.mean(0) for x in sound]), torch.stack(other), torch.tensor(target)

    assert mfh.check(changed(train=items, val=items[:3], test=items[3:5], collate=collate)).empty
    items.append((randn(2, 8, 3), randn(7), 0))
    frame = mfh.check(changed(train=items, collate=collate, val=items[:3], test=items[3:5]))
    assert frame[["split", "index"]].to_numpy().tolist() == [["train", 8]]


def test_a_split_of_another_kind_is_named_once():
    frame = mfh.check(changed(test=TensorDataset(*(part.double() for part in TASK.test.tensors[:2]), TASK.test[:][2])))
    assert frame[["split", "index"]].to_numpy().tolist() == [["test", 0]]
    assert "teacher_input of the whole split is float64" in frame["reason"][0]
    assert "student_input of the whole split is float64" in frame["reason"][0]


def test_a_network_that_cannot_read_the_items_is_no_end():
    frame = mfh.check(changed(student=lambda: nn.Linear(9, 2), val=Changed(TASK.val, {3: unreadable})))
    assert frame[["split", "index"]].to_numpy().tolist() == [["train", 0], ["val", 3]]
    assert "the student cannot read student_input of the train split" in frame["reason"][0]


def test_given_outputs_that_are_not_finite():
    outputs = randn(120, 2)
    outputs[40, 1] = float("inf")
    frame = mfh.check(changed(teacher=None, teacher_logits=outputs))
    assert frame.to_numpy().tolist() == [["train", 40, "teacher_logits are NaN or infinite"]]


def test_bad_outputs_are_of_the_pair_that_the_user_gave():
    outputs = randn(124, 2)
    outputs[[7, 40, 123]] = float("nan")
    target = TASK.train.tensors[2].clone()
    target[[3, 40]] = -1
    train = TensorDataset(*TASK.train.tensors[:2], target)
    more = TensorDataset(randn(4, 8, seed=7), randn(4, 7, seed=8))
    task = changed(teacher=None, teacher_logits=outputs, train=train, unlabelled=more, missing_target=-1)
    assert mfh.check(task).to_numpy().tolist() == [
        [split, index, "teacher_logits are NaN or infinite"]
        for split, index in [("train", 7), ("train", 40), ("unlabelled", 3)]
    ]


def test_partly_missing_entries_are_not_counted():
    target = torch.eye(2).repeat(60, 1)
    target[:30, 1] = float("nan")
    splits = {name: TensorDataset(*getattr(TASK, name).tensors[:2], target[:60]) for name in ("val", "test")}
    splits["train"] = TensorDataset(*TASK.train.tensors[:2], target)
    frame = mfh.check(changed(problem=Problem.multi_label(), missing_target=float("nan"), **splits))
    assert frame.attrs["classes"]["train"] == [60, 45]


def test_unlabelled_pairs_have_no_column_of_classes():
    more = TensorDataset(randn(4, 8, seed=7), randn(4, 7, seed=8))
    found = find(changed(unlabelled=more))
    assert found.items["unlabelled"] == 4
    assert list(found.classes) == ["train", "val", "test"]
    assert "unlabelled" not in str(class_table(found))


def test_items_of_any_kind_of_tensor_are_looked_at():
    target = torch.eye(2).repeat(60, 1).bfloat16()
    splits = {name: TensorDataset(*getattr(TASK, name).tensors[:2], target[:60]) for name in ("val", "test")}
    splits["train"] = TensorDataset(*TASK.train.tensors[:2], target)
    assert mfh.check(changed(problem=Problem.multi_label(), **splits)).empty

    def sparse(teacher, student, target):
        return teacher, student.to_sparse(), target

    frame = mfh.check(changed(train=Changed(TASK.train, {5: sparse})))
    assert set(frame["index"]) <= {5}


def test_what_the_teacher_alone_learns_from_is_read_too():
    alone = TensorDataset(randn(30, 8, seed=5), torch.arange(30) % 2)
    assert mfh.check(changed(teacher_train=alone)).attrs["items"]["teacher_train"] == 30
    alone.tensors[0][4, 1] = float("nan")
    alone.tensors[1][9] = 7
    frame = mfh.check(changed(teacher_train=alone))
    assert list(zip(frame["split"], frame["index"], strict=True)) == [("teacher_train", 4), ("teacher_train", 9)]


# --- odd, but not wrong -----------------------------------------------------------------------------------------------


def test_classes_constants_and_leaks_are_odd():
    def silent(teacher, student, target):
        return torch.zeros_like(teacher), student, target

    of_class_0 = [index for index in range(60) if TASK.val[index][2] == 0]
    task = changed(
        train=Changed(TASK.train, {3: silent, 8: silent}),
        val=Subset(TASK.val, of_class_0),
        test=[TASK.train[7], *TASK.test],
        facts={"classes": ["cat", "dog"]},
    )
    frame = mfh.check(task)
    assert frame.empty
    assert frame.attrs["odd"] == [
        "val has no item of class 1 (dog), of 2 that the networks return",
        "2 of the 120 items of train have a constant teacher_input (all its numbers are equal), first item 3",
        "1 of the 61 items of test are in train too, with equal inputs (first: test 0 is train 7): scores on test are "
        "too good",
    ]


def test_unlabelled_pairs_of_the_test_split_make_its_scores_too_good():
    inputs = [torch.cat([TASK.train.tensors[i][:2], TASK.test.tensors[i][:1]]) for i in (0, 1)]
    assert mfh.check(changed(unlabelled=TensorDataset(*inputs))).attrs["odd"] == [
        "1 of the 3 items of unlabelled are in test too, with equal inputs (first: unlabelled 2 is test 0): scores on "
        "test are too good"
    ]


@pytest.mark.parametrize("classes", [5, None, ["cat"]])
def test_names_of_classes_may_be_missing(classes):
    frame = mfh.check(changed(val=Subset(TASK.val, [0, 1]), facts={"classes": classes}))
    assert frame.empty


@pytest.mark.parametrize("groups", [5, [[1], [1, 2]], ["ann"]])
def test_groups_that_are_not_one_for_each_item_are_refused(groups):
    part = TensorDataset(*TASK.train.tensors)
    part.groups = groups
    with pytest.raises(InputError, match=r"groups of a TensorDataset is .*the group of each of its 120 samples"):
        mfh.check(changed(train=part))


def test_groups_in_two_splits_are_odd():
    splits = {}
    for name, groups in (("train", ["ann", "bob"]), ("val", ["bob"]), ("test", ["dan"])):
        part = TensorDataset(*getattr(TASK, name).tensors)
        part.groups = np.resize(groups, len(part))
        splits[name] = part
    assert find(dataclasses.replace(TASK, **splits)).odd == [
        "1 group is in train and in val (bob): scores on val are too good"
    ]
    splits["val"].groups = ["eve"] * len(splits["val"])
    assert find(dataclasses.replace(TASK, **splits)).odd == []


class Drawn(Dataset):
    """Items that are drawn at random whenever they are read; one in twenty cannot be read."""

    def __len__(self):
        return 200

    def __getitem__(self, index):
        if torch.rand(()) < 0.05 or np.random.random() < 0.05:  # noqa: NPY002
            raise ValueError("unlucky")
        return torch.rand(8), torch.rand(7), index % 2


def test_what_items_draw_does_not_depend_on_the_processes_and_leaves_no_trace():
    task, before = changed(train=Drawn()), torch.get_rng_state()
    alone, together, other = (mfh.check(task, num_workers=n, seed=seed) for n, seed in ((0, 0), (2, 0), (0, 1)))
    assert 0 < len(alone) < 60
    assert alone.equals(together)
    assert not alone.equals(other)
    assert torch.equal(torch.get_rng_state(), before)


# --- the command ------------------------------------------------------------------------------------------------------

MINE = """import dataclasses, torch, tiny_task
from test_items import Changed, no_number, unreadable
def task():
    tiny = tiny_task.task()
    train = Changed(tiny.train, {%s})
    return dataclasses.replace(tiny, train=train)
"""


def run(folder: Path, changes: str, *words: str) -> int:
    mine = folder / "mine.py"
    mine.write_text(MINE % changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)
        patch.delitem(__import__("sys").modules, "mine", raising=False)
        try:
            main(["check", str(mine), "--quiet", *words])
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def test_the_command_prints_a_table_of_80_columns_and_ends_in_1(tmp_path, capsys):
    out = tmp_path / "found/bad.csv"
    assert run(tmp_path, "5: unreadable, 119: no_number", "--out", str(out), "--workers", "1") == 1
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines() if str(out) not in line) <= 80
    assert "240 items read (120 train, 60 val, 60 test): 2 bad" in shown
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["index"]) for row in rows] == [("train", "5"), ("train", "119")]
    assert "OSError: [Errno 28] No space left on device" in rows[0]["reason"]


def test_a_good_task_ends_in_0_and_an_empty_table(tmp_path, capsys):
    out = tmp_path / "bad.csv"
    assert run(tmp_path, "", "--out", str(out)) == 0
    assert out.read_text() == "split,index,reason\n"
    assert "none is bad" in capsys.readouterr().out


def test_many_bad_items_are_shown_in_part(tmp_path, capsys):
    assert run(tmp_path, ", ".join(f"{n}: no_number" for n in range(40))) == 1
    shown = capsys.readouterr().out
    assert "The first 20 bad items of 40; --out FILE lists all" in shown
    assert shown.count("student_input holds nan") == 20


def test_a_number_of_workers_that_cannot_be():
    for count in (-1, 10**20):
        with pytest.raises(InputError, match=f"num_workers is {count}; choose 0 to 256"):
            mfh.check(TASK, num_workers=count)
    with pytest.raises(InputError, match="num_workers is '2', of type str"):
        mfh.check(TASK, num_workers="2")
    for seed in (-1, 2**63, 0.5):
        with pytest.raises(InputError, match="seed is "):
            find(TASK, seed=seed)


def test_an_interrupted_check_does_not_promise_to_resume(tmp_path, capsys, monkeypatch):
    def interrupted(*_given, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr("mfh.tasks.items.find", interrupted)
    assert run(tmp_path, "") == 130
    assert capsys.readouterr().err == "mfh: interrupted\n"


def test_the_table_is_printed_before_the_file_fails(tmp_path, capsys):
    assert run(tmp_path, "5: unreadable", "--out", str(tmp_path)) == 2
    shown = capsys.readouterr()
    assert "cannot be read: OSError" in shown.out
    assert shown.err.count("\n") == 1
    assert "resumes" not in shown.err
