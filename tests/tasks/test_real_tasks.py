"""htad, numerals, smartwatch: on the real files where the extra `data` is installed, on files like them elsewhere."""

import importlib.util

import pytest

from mfh.errors import InputError
from mfh.tasks import htad, numerals, smartwatch
from mfh.tasks.checks import check_task, shared_groups
from real_views import replace_real_data


@pytest.fixture
def random_data(monkeypatch):
    replace_real_data(monkeypatch)


@pytest.mark.parametrize("module", [htad, numerals, smartwatch])
def test_a_task_has_few_labels_and_networks_that_fit(module, random_data):
    task = module.task(3)
    check_task(task, [task.layer])
    assert len(task.train) == 100
    assert task.recipe.keep == "last"
    assert task.resplit(4).train.tensors[0].shape == task.train.tensors[0].shape
    assert not task.resplit(4).train.tensors[0].equal(task.train.tensors[0])


def test_views_are_chosen_and_joined(random_data):
    task = numerals.task
    made = task(teacher="fac+kar", student="mor", labels="all")
    assert (made.train.tensors[0].shape[1], made.train.tensors[1].shape) == (280, (100, 6))
    assert htad.task(teacher="both").train.tensors[0].shape[1] == 52
    with pytest.raises(InputError, match="there is no view 'both'; known names: 'audio', 'accelerometer'; join"):
        htad.task(teacher="both+audio")
    with pytest.raises(InputError, match="both read 'both'; choose different views"):
        htad.task(teacher="both", student="accelerometer+audio")
    for given, said in (
        ({"teacher": "pixel"}, "teacher is 'pixel', and there is no view 'pixel'; close names: 'pix'"),
        ({"student": "pix"}, "teacher and student both read 'pix'"),
        ({"student": "fou+fou"}, "names a view twice"),
        ({"student": "both"}, "there is no view 'both'"),
        ({"teacher": "fou+fac", "student": "fac+fou"}, "teacher and student both read 'fou.fac'"),
        ({"labels": 101}, "choose 1 to 100"),
    ):
        with pytest.raises(InputError, match=said):
            task(**given)


def test_no_person_of_the_smartwatch_is_in_two_splits(random_data):
    task = smartwatch.task
    for seed in range(3):
        made = task(seed)
        splits = (made.train, made.val, made.test)
        assert [len(set(split.groups)) for split in splits] == [6, 2, 2]
        assert made.facts["groups"] == {"unit": "people", "train": 6, "val": 2, "test": 2}
        assert not any(shared_groups(one, other) for one in splits for other in splits if one is not other)
    with pytest.raises(InputError, match="window is 3"):
        task(window=3)
    with pytest.raises(InputError, match="10 groups with labels cannot be split into 9"):
        task(num_val_people=9)


def test_a_person_in_two_splits_is_said_before_training(random_data, caplog):
    made = smartwatch.task(0)
    made.val.groups[0] = made.train.groups[0]
    check_task(made)
    assert f"1 groups are in both train and val, the first is {made.train.groups[0]}" in caplog.text


@pytest.mark.parametrize(
    ("module", "package", "shapes", "sizes"),
    [
        (htad, "multiviewstacking", [(36,), (16,)], (100, 100, 400)),
        (smartwatch, "seglearn", [(3, 128), (3, 128)], (100, None, None)),
    ],
)
def test_the_real_files(module, package, shapes, sizes):
    if importlib.util.find_spec(package) is None:
        with pytest.raises(InputError, match=rf"needs the package {package}; .*mfh\[data\]"):
            module.task()
        pytest.skip(f"{package} is not installed")
    made = module.task()
    assert [tuple(part.shape[1:]) for part in made.train.tensors[:2]] == shapes
    assert all(size in (None, len(split)) for size, split in zip(sizes, (made.train, made.val, made.test), strict=True))
    assert len(made.facts["classes"]) == 7
