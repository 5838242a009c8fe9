import builtins
import json
import re
from pathlib import Path

import numpy as np
import pytest

import fake_study
import mfh
from mfh import files
from mfh.errors import InputError, refuse_difference
from mfh.reporting import report
from mfh.reporting.classes import recalls
from mfh.studies.folder import MOST_CLASSES, Run, SeedFolder, safe_name
from mfh.studies.grid import COLUMNS, Cell

SOFT, NONE = Cell("soft", "probe", layer="1"), Cell("no-kd")


@pytest.fixture
def seed(tmp_path):
    return SeedFolder(tmp_path, 0)


def test_counts_come_back(seed):
    counts = np.array([[5, 0, 1], [0, 0, 0], [2, 0, 0]])
    seed.write_counts(SOFT, "test", counts)
    np.testing.assert_array_equal(seed.read_counts(SOFT, "test"), counts)
    np.testing.assert_array_equal(recalls(counts), [5 / 6, np.nan, 0])
    assert len((seed.folder / "counts" / "soft-probe-1-test.csv").read_text().splitlines()) == 6


def test_many_classes_are_right_or_wrong(seed):
    counts = np.random.default_rng(0).integers(0, 9, (MOST_CLASSES + 1, MOST_CLASSES + 1))
    seed.write_counts(NONE, "val", counts)
    kept = seed.read_counts(NONE, "val")
    np.testing.assert_array_equal(kept[:, 0], np.diag(counts))
    np.testing.assert_array_equal(kept.sum(1), counts.sum(1))
    np.testing.assert_array_equal(recalls(kept), recalls(counts))


def test_histories_come_back(seed):
    history = [{"epoch": 0.0, "train_loss": 0.7}, {"epoch": 1.0, "train_loss": 0.1 + 0.2}]
    seed.write_history("student", history)
    assert seed.read_history("student")["train_loss"].tolist() == [0.7, 0.1 + 0.2]


def test_what_is_missing_is_none_and_what_is_damaged_is_said(seed):
    assert seed.read_history(NONE) is None
    assert seed.read_counts(NONE, "val") is None
    seed.write_history(NONE, [{"epoch": 0.0}])
    seed.write_counts(NONE, "val", np.eye(2, dtype=int))
    for folder, read in (
        ("histories", lambda: seed.read_history(NONE)),
        ("counts", lambda: seed.read_counts(NONE, "val")),
    ):
        (path,) = (seed.folder / folder).iterdir()
        for content in ("epoch,target\n1,x\n", "epoch,target\n1\n", "target,predicted,count\n0,x,1\n", "epoch\n1"):
            path.write_text(content)
            with pytest.raises(InputError, match=rf"{path.name} .*; remove it to have a report without it"):
                read()


def rows_of(cell, seed=0, value=0.5):
    key = {"arm": cell.arm, "score": cell.score, "layer": cell.layer, "ratio": "", "seed": seed}
    return [{**key, "split": split, "metric": "accuracy", "value": value} for split in ("val", "test")]


def test_measurements_come_back_without_their_checksum(seed):
    splits = ("val", "test")
    assert seed.read_rows(SOFT, splits, COLUMNS) == []
    seed.write_rows(SOFT, splits, COLUMNS, rows_of(SOFT, value=0.1 + 0.2))
    kept = seed.read_rows(SOFT, splits, COLUMNS)
    assert [tuple(row) for row in kept] == [COLUMNS] * 2
    assert float(kept[0]["value"]) == 0.1 + 0.2


def test_measurements_without_a_checksum_are_refused(seed):
    path = seed.rows_file(NONE, ("val",))
    path.parent.mkdir()
    path.write_text(",".join(COLUMNS) + "\nno-kd,,,,0,val,accuracy,0.5\n")
    with pytest.raises(InputError, match="its checksum differs"):
        seed.read_rows(NONE, ("val",), COLUMNS)


def test_damaged_or_exchanged_measurements_are_refused(seed):
    splits = ("val", "test")
    seed.write_rows(NONE, splits, COLUMNS, rows_of(NONE))
    seed.write_rows(SOFT, splits, COLUMNS, rows_of(SOFT))
    none, soft = (seed.rows_file(cell, splits) for cell in (NONE, SOFT))
    whole = none.read_text()
    for damaged in (whole.replace("0.5", "0.7", 1), "\n".join(whole.splitlines()[:-1]) + "\n"):
        none.write_text(damaged)
        with pytest.raises(InputError, match=r"checksum differs.*remove it to measure this cell again"):
            seed.read_rows(NONE, splits, COLUMNS)
    none.write_text(soft.read_text())
    with pytest.raises(InputError, match=r"another arm, seed or label fraction \(soft, seed 0\)"):
        seed.read_rows(NONE, splits, COLUMNS)
    other = SeedFolder(seed.folder, 1)
    with pytest.raises(InputError, match=r"another arm, seed or label fraction \(soft, seed 0\)"):
        other.read_rows(SOFT, splits, COLUMNS)


def test_layers_with_any_name_make_file_names(seed):
    cell = Cell("soft", "probe", layer="../a/b c")
    seed.write_rows(cell, ("val",), COLUMNS, rows_of(cell))
    seed.write_history(cell, [{"epoch": 0.0}])
    assert seed.rows_file(cell, ("val",)).parent == seed.folder / "cells"
    assert len(seed.read_rows(cell, ("val",), COLUMNS)) == 2
    assert {path.parent.name for path in seed.folder.rglob("*.csv")} == {"cells", "histories"}


def test_one_difference_is_named(tmp_path):
    made = {"task": "a", "identity": {"networks": {"teacher": "1", "student": "2"}, "epochs": 3}}
    now = {"task": "a", "identity": {"networks": {"teacher": "1", "student": "5"}, "epochs": 4}}
    refuse_difference("x", made, made, "go away")
    with pytest.raises(InputError) as error:
        refuse_difference("x", made, now, "go away")
    assert str(error.value) == 'x was made with identity.networks.student "2", now it is "5"; go away'


def test_no_folder_no_run(tmp_path):
    with pytest.raises(InputError, match=r"has no config\.json"):
        Run.open(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        Run.open(tmp_path / "nowhere")


def test_a_report_opens_the_configuration_once(tmp_path, monkeypatch):
    run = fake_study.write(tmp_path / "run")
    opened, whole = [], files.read_text

    def watch(path, *arguments, **options):
        opened.append(Path(path).name)
        return whole(path, *arguments, **options)

    monkeypatch.setattr(files, "read_text", watch)
    plain = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda file, *a, **o: (opened.append(Path(str(file)).name), plain(file, *a, **o))[1]
    )
    report(run)
    assert opened.count("config.json") == 1
    assert json.loads(whole(run / "config.json"))["task"] == "digits"


def test_names_of_files_in_a_run_folder_stand_in_one_module():
    source = Path(mfh.__file__).parent
    names = ("config.json", "environment.json", "results.csv", "selection.json", "diagnosis.json", "truth.json")
    for path in source.rglob("*.py"):
        strings = re.findall(r'"([^"\n]*)"', path.read_text(encoding="utf-8"))
        known = {name for name in names if name in strings}
        assert path.relative_to(source).as_posix() == "studies/folder.py" or not known, (path, known)


@pytest.mark.parametrize("layer", ["../../x", "a/b", "x" * 5000, "\x1b[31m", "\udc80", "naïve", "NUL", "a:b"])
def test_any_layer_makes_a_file_name(tmp_path, layer):
    name = safe_name(f"saliency-{layer}")
    assert len(name.encode()) < 200
    assert Path(name).name == name
    (tmp_path / name).write_text("")
    assert safe_name(f"saliency-{layer}y") != name


@pytest.mark.parametrize(
    ("resplit", "said"),
    [
        ({"num_train": 1}, "resplit.num_test is missing"),
        ({"num_train": 1, "num_val": 1, "num_test": 1, "foo": 1}, "resplit.foo is not known"),
    ],
)
def test_what_a_configuration_says_of_splits_is_checked(tmp_path, resplit, said):
    run = Run(tmp_path)
    run.write_config({"command": "study", "resplit": resplit})
    with pytest.raises(InputError, match=said):
        _ = Run(tmp_path).repeats
