import dataclasses
import logging

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

import mfh
import tiny_task
from mfh.cli import commands
from mfh.errors import InputError
from mfh.problems.problem import Problem
from mfh.tasks.checks import check_task, num_shared
from networks import randn

TASK = tiny_task.task()


def with_part(part, value, split="train"):
    """The task with one field of one split changed, for every sample."""
    tensors = list(getattr(TASK, split).tensors)
    tensors[part] = value(tensors[part])
    return dataclasses.replace(TASK, **{split: TensorDataset(*tensors)})


class Failing:
    def __len__(self):
        return 5

    def __getitem__(self, index):
        raise KeyError("no such clip")


def changed(**changes):
    return dataclasses.replace(TASK, **changes)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (changed(val=Failing()), "val split: item 0 or 4 cannot be read: KeyError: 'no such clip'"),
        (changed(val=[(1, 2)]), "val split: a batch of pairs is a tuple of length 2"),
        (changed(val=[(torch.zeros(n), torch.zeros(7), 0) for n in (8, 7)]), "val split: items .* do not fit into one"),
        (with_part(0, lambda x: {"sound": x}["sound"][:, :6]), "the teacher cannot read teacher_input of the train"),
        (with_part(1, lambda x: x.double(), "test"), r"student_input is float32 with 2 .* and float64 .* in the test"),
        (with_part(2, lambda y: y + 1, "val"), "val split: the target holds 2; class indices from 0 to 1"),
        (with_part(2, lambda y: y.float()), "train split: the target is of type torch.float32; class indices"),
        (changed(student=lambda: nn.Linear(7, 3)), r"teacher returns logits of shape \(N, 2\) and the student returns"),
        (changed(teacher=None, teacher_logits=torch.zeros(120, 5)), r"teacher_logits holds logits of shape \(N, 5\)"),
        (changed(teacher=lambda: 3), r"teacher\(\) returned a int"),
        (changed(teacher=lambda: nn.Linear("x", 3)), r"teacher\(\) cannot make a network: TypeError"),
        (changed(student=lambda: nn.LSTM(7, 2)), "student: a network returned a tuple"),
        (changed(problem=Problem.multi_label()), "the target has shape"),
        (changed(problem=Problem.regression()), "the target has shape"),
    ],
)
def test_what_does_not_fit_is_one_line_with_its_field(task, said):
    with pytest.raises(InputError, match=said) as error:
        check_task(task, ["1"], "mine.py")
    assert str(error.value).startswith("mine.py: ")
    assert "\n" not in str(error.value)


def test_a_layer_must_be_there_and_good_tasks_pass(caplog):
    check_task(TASK, ["1"])
    assert not caplog.records
    with pytest.raises(InputError, match="no layer 'nowhere'"):
        check_task(TASK, ["nowhere"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": [1] and iter([])}, "task 'tiny': train is a list_iterator; a map-style data set"),
        ({"val": []}, "the val split is empty"),
        ({"teacher": nn.Linear(8, 2)}, r"teacher of task 'tiny' is a Linear; a function that makes a new network"),
        ({"teacher_logits": "nowhere.npy"}, r"teacher_logits of task 'tiny' \(nowhere.npy\): there is no such file"),
    ],
)
def test_a_task_that_cannot_be_is_refused_when_it_is_made(changes, said):
    with pytest.raises(InputError, match=said):
        changed(**changes)


def test_splits_that_share_items_are_told_from_those_that_do_not():
    whole = TensorDataset(randn(30, 3), randn(30, 2, seed=1), torch.zeros(30))
    other = TensorDataset(randn(30, 3, seed=2), randn(30, 2, seed=3), torch.zeros(30))
    assert num_shared(whole, other) == 0
    assert num_shared(Subset(whole, range(20)), Subset(whole, range(20, 30))) == 0
    assert num_shared(Subset(whole, range(20)), Subset(Subset(whole, range(15, 30)), range(10))) == 5
    assert num_shared(whole, Subset(whole, [3])) == 1
    copy = TensorDataset(*(tensor[[4, 7]].clone() for tensor in whole.tensors))
    assert num_shared(whole, copy) == 2
    assert num_shared(Subset(whole, range(6)), copy) == 1
    assert num_shared(list(whole), list(whole)) == 0  # not known


def test_shared_items_are_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="mfh"):
        check_task(changed(test=TASK.train), origin="mine.py")
    assert "mine.py: 120 of the 120 items of test are in train too" in caplog.text


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        (2, -100, "test split, sample 31: the target holds -100; class indices from 0 to 1"),
        (0, float("nan"), "test split, sample 31: teacher_input holds nan"),
    ],
)
@pytest.mark.parametrize("kind", [lambda data: data, list], ids=["tensors", "items"])
def test_the_whole_test_split_is_checked_before_a_study_trains(kind, part, value, said, tmp_path):
    tensors = [tensor.clone() for tensor in TASK.test.tensors]
    tensors[part][31] = value
    task = changed(test=kind(TensorDataset(*tensors)))
    check_task(task)  # the cheap check of a step, which does not read this split
    with pytest.raises(InputError, match=said):
        mfh.study(task, arms=["no-kd"], num_seeds=1, processes=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_test_split_that_is_large_is_left_for_later(monkeypatch):
    read = set()

    class Counted(Failing):
        def __len__(self):
            return 60

        def __getitem__(self, index):
            read.add(index)
            return TASK.test[index]

    monkeypatch.setattr("mfh.tasks.checks._COMPARED_BYTES", 60 * 15 * 4 - 1)
    check_task(changed(test=Counted()), whole=["test"])
    assert read == {0, 59}
    monkeypatch.setattr("mfh.tasks.checks._COMPARED_BYTES", 60 * 15 * 4)
    check_task(changed(test=Counted()), whole=["test"])
    assert read == set(range(60))


@pytest.mark.parametrize("command", [["study", "--num-seeds", "1"], ["pretrain"], ["saliency"]])
def test_commands_name_the_file(command, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import dataclasses, torch, tiny_task\n"
        "def task():\n    return dataclasses.replace(tiny_task.task(), student=lambda: torch.nn.Linear(7, 4))\n"
    )
    name, *rest = command
    with pytest.raises(SystemExit) as end:
        commands.main([name, str(mine), *rest, "--out", str(tmp_path / "run"), "--quiet"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "mine.py: the teacher returns logits of shape (N, 2) and the student returns (N, 4)" in said
    assert said.count("\n") == 1


def test_an_empty_split_in_a_file_names_the_file(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import dataclasses, tiny_task\ndef task():\n    return dataclasses.replace(tiny_task.task(), val=[])\n"
    )
    with pytest.raises(InputError, match=r"mine.py: task 'tiny': the val split is empty"):
        mfh.study(mine, num_seeds=1)


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from ()


@pytest.mark.parametrize("wrong", [5, Endless(), iter([])])
def test_unlabelled_pairs_that_are_no_data_set_are_refused(wrong):
    with pytest.raises(InputError, match="task 'tiny': unlabelled is a "):
        dataclasses.replace(tiny_task.task(), unlabelled=wrong)


def test_a_student_that_fails_beside_embeddings_is_named():
    def student():
        raise KeyError("size")

    task = tiny_task.task()
    rows = {split: torch.randn(len(getattr(task, split)), 3) for split in ("train", "val", "test")}
    with pytest.raises(InputError, match=r"student\(\) of task 'tiny' cannot make .*KeyError"):
        dataclasses.replace(task, teacher=None, teacher_embeddings=rows, student=student)
