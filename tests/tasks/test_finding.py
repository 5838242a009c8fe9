import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import mfh
import tiny_task
from mfh.errors import InputError
from mfh.tasks.finding import TaskArguments, find_task

HERE = Path(tiny_task.__file__).parent


def test_a_task_is_found_by_name_file_module_function_and_object():
    assert find_task("digits").redrawn
    for given in (HERE / "tiny_task.py", str(HERE / "tiny_task.py"), "tiny_task:task", tiny_task.task):
        source = find_task(given)
        assert source.redrawn
        assert source.make(3).name == "tiny"
    fixed = find_task(tiny_task.task())
    assert not fixed.redrawn
    assert fixed.make(0) is fixed.make(1)


def test_data_are_redrawn_per_seed_and_the_same_for_the_same_seed():
    make = find_task("tiny_task:task").make
    first, again, other = (make(seed).train.tensors[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x = 1\n", r"no function task\(\)"),
        ("def task():\n    raise RuntimeError('two\\nlines')\n", "failed: RuntimeError: two lines"),
        ("def task():\n    return 3\n", "returned a int"),
        ("import nowhere_at_all\n", "cannot be run: ModuleNotFoundError"),
        ("def task(:\n", "cannot be run: SyntaxError"),
        ("import sys\nsys.exit(0)\n", "cannot be run: SystemExit: 0"),
        ("import sys\ndef task():\n    sys.exit(0)\n", "failed: SystemExit: 0"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_one_line_with_its_name(tmp_path, content, said):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(InputError, match=said) as error:
        find_task(path).make(0)
    assert "mine.py" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("spec", ["digit", "nowhere.py", "no_module_here:task", "tiny_task:nothing"])
def test_an_unknown_task_is_named(spec):
    with pytest.raises(InputError, match=spec.split(":")[-1].replace(".", r"\.")):
        find_task(spec)


def test_two_files_of_the_same_name_do_not_get_mixed_up(tmp_path):
    names = []
    for folder in ("a", "b"):
        path = tmp_path / folder / "twin.py"
        path.parent.mkdir()
        text = (HERE / "tiny_task.py").read_text().replace('name="tiny"', f'name="{folder}"')
        path.write_text(text)
        names.append(find_task(path).make(0).name)
    assert names == ["a", "b"]


def test_arguments_the_function_does_not_take_are_refused():
    with pytest.raises(InputError, match="has no parameter 'preset'"):
        find_task("tiny_task:task", TaskArguments(preset="paper"))
    with pytest.raises(InputError, match="a Task was given; give the function"):
        find_task(tiny_task.task(), TaskArguments(data="somewhere"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"val": []}, "the val split is empty"),
        ({"teacher": None}, "no teacher"),
        ({"teacher": None, "teacher_logits": torch.zeros(5, 2)}, "5 rows for 120"),
    ],
)
def test_a_task_that_cannot_be_studied_is_refused(changes, said):
    whole = tiny_task.task()
    fields = {name: getattr(whole, name) for name in ("name", "teacher", "student", "layer", "train", "val", "test")}
    with pytest.raises(InputError, match=said):
        mfh.Task(**fields | changes)


def test_later_steps_add_to_the_arguments_of_the_first():
    first = {"data": "here", "set": {"teacher": "audio", "labels": "50"}}
    assert TaskArguments(set=("labels=20",)).or_else(first) == TaskArguments(
        data="here", set=("teacher=audio", "labels=20")
    )
    assert TaskArguments().or_else({}) == TaskArguments()


class _NeverRead(torch.utils.data.Dataset):
    """A data set that may be read while a task is made, and not afterwards."""

    def __init__(self, size):
        self.size, self.closed = size, False

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        assert not self.closed
        return torch.zeros(3), torch.zeros(2), index % 2


def test_a_task_is_shown_in_three_lines_and_nothing_is_read(capsys):
    target = ["still", "walk", "run"] * 20
    numbers = np.random.default_rng(0).normal(size=(60, 3))
    print(mfh.Task.from_arrays(teacher=numbers, student=numbers, target=target, name="pairs", labels=10))
    assert capsys.readouterr().out.splitlines() == [
        "Task 'pairs': classification, 3 classes ['run', 'still', 'walk']",
        "  pairs: 10 training, 26 unlabelled, 12 validation, 12 test",
        "  teacher: vector_network, layer 'hidden'; student: vector_network",
    ]

    class Student(torch.nn.Linear):
        def __init__(self):
            raise AssertionError

    splits = [_NeverRead(size) for size in (5, 4, 3)]
    named = dict(zip(("train", "val", "test"), splits, strict=True))
    made = mfh.Task(name="own", teacher=lambda: Student(), student=Student, layer="0", **named)
    for split in splits:
        split.closed = True
    assert repr(made).splitlines() == [
        "Task 'own': classification",
        "  pairs: 5 training, 4 validation, 3 test",
        "  teacher: a function without a name, layer '0'; student: Student",
    ]
    outputs = torch.zeros(60, 3)
    known = mfh.Task.from_arrays(teacher=numbers, student=numbers, target=target)
    known = dataclasses.replace(known, teacher=None, teacher_logits=outputs[:36])
    assert repr(known).splitlines()[-1] == "  teacher: its outputs; student: vector_network"
    many = dataclasses.replace(known, facts={"classes": list(range(5000))})
    assert len(repr(many)) < 400
