import pickle
import sys

import numpy as np
import pandas as pd
import pytest

from mfh.errors import InputError
from mfh.tasks.checks import check_task
from mfh.tasks.finding import TaskArguments, find_task

RNG = np.random.default_rng(0)
N = 60


def arrays():
    return {
        "teacher": RNG.normal(size=(N, 3, 20)),
        "student": RNG.normal(size=(N, 4)),
        "target": np.array(["still", "walk", "run"] * 20),
        "group": np.repeat(np.arange(10), 6),
    }


def frame():
    columns = {f"teacher_{i}": RNG.normal(size=N) for i in range(3)} | {f"student_x{i}": range(N) for i in range(2)}
    return pd.DataFrame(columns | {"target": [0, 1, 2] * 20, "group": np.repeat([f"p{i}" for i in range(10)], 6)})


def test_a_npz_is_a_task(tmp_path):
    path = tmp_path / "pairs.npz"
    np.savez(path, **arrays())
    source = find_task(path, TaskArguments(set={"labels": 9, "val": 0.1}))
    task = source.make(0)
    check_task(task, [task.layer])
    assert source.redrawn
    assert (task.name, task.layer, task.student_layer) == ("pairs", "features", "hidden")
    assert len(task.train) == 9
    assert len(set(task.val.groups)) == 1
    assert task.facts["classes"] == ["run", "still", "walk"]


def test_a_csv_is_a_task(tmp_path):
    path, table = tmp_path / "pairs.csv", frame()
    table.to_csv(path, index=False)
    task = find_task(str(path)).make(0)
    assert task.train.tensors[0].shape[1:] == (3,)
    assert task.train.tensors[1].shape[1:] == (2,)
    assert len(set(task.test.groups)) == 2
    assert task.facts["classes"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ([0, 1, None] * 20, "classification"),
        (["a", "b", None] * 20, "classification"),
        ([True, False, None] * 20, "classification"),
        ([0.5, 1.5, None] * 20, "regression"),
        ([0, 1, -1] * 20, "classification"),
    ],
)
def test_empty_targets_of_a_csv_are_pairs_without_labels(tmp_path, target, problem):
    path = tmp_path / "pairs.csv"
    frame().drop(columns="group").assign(target=pd.Series(target, dtype=object)).to_csv(path, index=False)
    task = find_task(path).make(0)
    check_task(task)
    assert task.problem.name == problem
    assert sum(len(split) for split in (task.train, task.val, task.test)) == 40


def test_minus_one_in_a_csv_is_a_number_where_the_user_says_so(tmp_path):
    path = tmp_path / "pairs.csv"
    numbers = np.where(np.arange(N) % 10 == 5, -1.0, np.linspace(1, 2, N))
    frame().drop(columns="group").assign(target=numbers).to_csv(path, index=False)
    task = find_task(path, TaskArguments(set={"problem": "regression"})).make(0)
    assert task.unlabelled is None
    assert sum(int((split.tensors[2] == -1).sum()) for split in (task.train, task.val, task.test)) == N // 10


def test_whole_numbers_written_as_floating_point_are_what_the_user_says(tmp_path):
    path = tmp_path / "pairs.csv"  # as pandas writes whole numbers with gaps
    frame().assign(target=np.where(np.arange(N) < 6, np.nan, np.arange(N) % 3)).to_csv(path, index=False)
    with pytest.raises(InputError, match=r"as floating point.*for a file: --set problem=classification"):
        find_task(path).make(0)
    task = find_task(path, TaskArguments(set={"problem": "classification"})).make(0)
    assert (task.problem.name, task.facts["classes"]) == ("classification", ["0", "1", "2"])
    assert find_task(path, TaskArguments(set={"problem": "regression"})).make(0).problem.name == "regression"
    with pytest.raises(InputError, match="expected classification, multi-label, regression or none"):
        find_task(path, TaskArguments(set={"problem": "dense"}))


def test_seeds_share_the_splits_that_a_table_names(tmp_path):
    path = tmp_path / "pairs.csv"
    frame().drop(columns="group").assign(split=["train", "val", "test"] * 20, target=[0, 0, 0, 1, 1, 1] * 10).to_csv(
        path, index=False
    )
    source = find_task(path)
    assert not source.redrawn
    assert source.make(0) is source.make(1)
    assert find_task(path, TaskArguments(set={"labels": 4})).redrawn


def test_a_parquet_is_the_same_task_as_the_csv(tmp_path):
    pytest.importorskip("pyarrow")
    table = frame()
    table.to_csv(tmp_path / "pairs.csv", index=False)
    table.to_parquet(tmp_path / "pairs.parquet")
    one, other = (find_task(tmp_path / f"pairs.{kind}").make(2) for kind in ("csv", "parquet"))
    for ours, theirs in zip(one.train.tensors, other.train.tensors, strict=True):
        assert ours.equal(theirs)


def test_missing_pyarrow_names_the_extra(tmp_path, monkeypatch):
    path = tmp_path / "pairs.parquet"
    path.touch()
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"needs pyarrow; install mfh with its extra: pip install 'mfh\[data\]'"):
        find_task(path).make(0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": None}, "has no array target; teacher, student, target were expected"),
        ({"labels": np.zeros(3)}, "has the array 'labels', which is none of teacher, student, target, group, split"),
        ({"student": np.array([{}] * N)}, "holds pickled Python objects, which are never loaded"),
        ({"student": np.zeros((3, 2))}, "different lengths"),
    ],
)
def test_a_npz_that_cannot_be_used_is_refused(tmp_path, changes, said):
    path = tmp_path / "pairs.npz"
    np.savez(path, **{name: value for name, value in (arrays() | changes).items() if value is not None})
    with pytest.raises(InputError, match=said) as error:
        find_task(path).make(0)
    assert "pairs.npz" in str(error.value)
    assert "\n" not in str(error.value)


class _Harmful:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", pickle.dumps(_Harmful())])
def test_a_file_that_is_no_npz_is_refused_and_never_unpickled(tmp_path, content):
    path = tmp_path / "pairs.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"pairs\.npz"):
        find_task(path).make(0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": None}, r"has no column target; teacher_\*, student_\*, target were expected"),
        ({"target": None, "label": ["a"] * N}, r"has no column target \(its others: 'label'\); teacher_\*"),
        ({"Unnamed: 0": range(N)}, "has the column 'Unnamed: 0', which is none of .*; save it with index=False"),
        ({"student_x0": None, "student_x1": None}, r"has no column student_\*"),
        ({"teacher_1": ["high"] * N}, "column 'teacher_1' holds 'high'; inputs must be numbers"),
        ({"recording": ["r1.wav"] * N}, "has the column 'recording', which is none of"),
        ({"teacher_1": [None] + [1.0] * (N - 1)}, "missing or not finite in 1 of 60 rows, first in row 0"),
        ({"target": ["a"] * (N - 1) + ["b"]}, "class 'b' has 1 labelled pair"),
        ({"split": ["train"] * N}, "the val split has no labelled pair"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path, changes, said):
    path, table = tmp_path / "pairs.csv", frame()
    for name, values in changes.items():
        table = table.drop(columns=name) if values is None else table.assign(**{name: values})
    table.to_csv(path, index=False)
    with pytest.raises(InputError, match=said) as error:
        find_task(path).make(0)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_broken_table_are_named(tmp_path):
    with pytest.raises(InputError, match=r"there is no file nowhere\.csv"):
        find_task("nowhere.csv").make(0)
    path = tmp_path / "pairs.csv"
    path.write_text("teacher_0,student_0,target\n")
    with pytest.raises(InputError, match=r"pairs\.csv has no rows"):
        find_task(path).make(0)
    frame().to_csv(path, index=False, sep=";")
    with pytest.raises(InputError, match=r"has the single column 'teacher_0;teacher_1.*with commas between columns"):
        find_task(path).make(0)
    path = tmp_path / "broken.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"broken.csv is no readable .csv table"):
        find_task(path).make(0)


def test_an_encrypted_npz_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", teacher=np.zeros((9, 2)), student=np.zeros((9, 2)), target=np.arange(9) % 3)
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = raw.find(mark)
        while place >= 0:
            raw[place + offset] |= 1
            place = raw.find(mark, place + 1)
    (tmp_path / "a.npz").write_bytes(raw)
    with pytest.raises(InputError, match=r"is not readable .*encrypted"):
        find_task(tmp_path / "a.npz").make(0)
