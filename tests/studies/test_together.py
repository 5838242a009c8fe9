"""A study whose small networks are trained at once: the same study."""

import gc
import json
import logging
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import mfh
import tiny_task
from mfh import files
from mfh.errors import InputError
from mfh.studies import networks, pool, seed
from mfh.studies.folder import Run, SeedFolder
from mfh.studies.grid import Cell
from mfh.studies.seed import Seed
from mfh.training import together
from mfh.training.loop import Training
from mfh.training.together import Elsewhere

TINY = str(Path(tiny_task.__file__))
ARMS = ["no-kd", "regular", "aligned", "aligned-student", "general", "soft", "longer", "label-smoothing"]
FEW = {"arms": [*ARMS, "self-training"], "num_seeds": 3, "processes": 1, "label_fractions": (0.5, 1.0)}
SOME = {"arms": ["no-kd", "regular", "general"], "num_seeds": 2, "processes": 1}


def precise(seed: int = 0) -> mfh.Task:
    """The tiny task in double precision, where rounding decides nothing."""
    task = tiny_task.task(seed)
    for split in (task.train, task.val, task.test):
        split.tensors = tuple(part.double() if part.is_floating_point() else part for part in split.tensors)

    def of(make):
        return lambda: make().double()

    return replace(task, teacher=of(task.teacher), student=of(task.student))


def with_layer(*layers: nn.Module):
    def task(seed: int = 0) -> mfh.Task:
        def student() -> nn.Module:
            return nn.Sequential(nn.Linear(7, 10), *layers, nn.ReLU(), nn.Linear(10, 2))

        return replace(tiny_task.task(seed), student=student, student_layer=None)

    return task


def table(folder: Path) -> bytes:
    return (folder / "results.csv").read_bytes()


def alone(monkeypatch) -> list[str]:
    """Roles of the networks that are trained one by one from now on."""
    found, fit = [], Training._fit

    def counted(self, train, val):
        found.append(" and ".join(self.objective.networks))
        fit(self, train, val)

    monkeypatch.setattr(Training, "_fit", counted)
    return found


def test_rows_histories_and_networks_are_those_of_one_by_one(tmp_path, monkeypatch):
    single = alone(monkeypatch)
    found = mfh.study(precise, out=tmp_path / "together", ensemble="on", **FEW)
    assert not single
    wanted = mfh.study(precise, out=tmp_path / "alone", ensemble="off", **FEW)
    assert len(single) > 50
    index = [name for name in found.frame if name != "value"]
    assert found.frame[index].equals(wanted.frame[index])
    np.testing.assert_allclose(found.frame["value"], wanted.frame["value"], rtol=1e-9)
    histories = sorted(path.relative_to(tmp_path / "alone") for path in (tmp_path / "alone").rglob("histories/*.csv"))
    assert len(histories) > 40
    for path in histories:
        ours, theirs = (pd.read_csv(tmp_path / run / path).drop(columns="checksum") for run in ("together", "alone"))
        pd.testing.assert_frame_equal(ours, theirs, rtol=1e-5)


def test_each_arm_is_told_its_share_of_the_seconds(tmp_path):
    arms = [*SOME["arms"], "longer", "fitnets"]
    mfh.study(with_unlabelled, out=tmp_path / "run", ensemble="on", **SOME | {"arms": arms})
    keys = ("teacher", "aligned", *map(Cell, ("regular", "longer", "fitnets")))
    expected = dict(zip(keys, (2, 2, 6, 6, 1), strict=True))  # regular, longer and general, at both seeds
    for number in (0, 1):
        costs = {key: Run(tmp_path / "run").seed(number).read_cost(key) for key in keys}
        assert all(cost["seconds"] > 0 for cost in costs.values())
        assert {key: cost["together"] for key, cost in costs.items()} == expected


def test_seconds_elsewhere_count_once(tmp_path, monkeypatch):
    """A job that finds its teacher trained, and then trains alone, has spent no second elsewhere in the latter."""
    shares = iter([Elsewhere(1000.0, 2), None])
    monkeypatch.setattr(networks, "trained_elsewhere", lambda: next(shares))
    made = Seed(tiny_task.task(0), 0, folder=SeedFolder(tmp_path, 0))
    made.networks.pretrained("teacher")
    made.networks.pretrained("student")
    seconds = [made.folder.read_cost(key)["seconds"] for key in ("teacher", "student")]
    assert seconds[1] < 1000 <= seconds[0]


def with_unlabelled(seed: int = 0) -> mfh.Task:
    task, more = tiny_task.task(seed), tiny_task.task(seed + 1000)
    return replace(task, unlabelled=more.train)


def test_methods_are_shared_out_to_processes(tmp_path, monkeypatch):
    """What is not trained with others waits for no process: a unit's further cells are measured in parts."""
    options = SOME | {"arms": ["no-kd", "regular", "fitnets", "sp", "fitnets+soft"], "num_seeds": 1}
    wanted = mfh.study(TINY, out=tmp_path / "one", **options)
    run, jobs = pool.run_jobs, []

    def noted(workers, todo, finished, *rest):
        jobs.extend(todo)

        def further(job, result):
            more = finished(job, result) or []
            jobs.extend(more)
            return more

        return run(workers, todo, further, *rest)

    monkeypatch.setattr(pool, "run_jobs", noted)
    found = mfh.study(TINY, out=tmp_path / "two", **options | {"processes": 2})
    assert Run(found.folder).config["ensemble"] == "auto"
    chunks = [{cell.arm for cell in job.arguments[2]} for job in jobs if job.arguments[2]]
    assert sorted(map(len, chunks)) == [1, 2]
    assert set().union(*chunks) == {"fitnets", "sp", "fitnets+soft"}
    assert found.frame.equals(wanted.frame)


@pytest.mark.parametrize("ensemble", ["on", "off"])
def test_features_of_teachers_are_let_go_when_their_seed_is_written(monkeypatch, ensemble):
    read, features = seed.teacher_features, []

    def noted(*arguments, **options):
        gc.collect()
        assert not any(one() is not None for one in features)
        found = read(*arguments, **options)
        features.extend(weakref.ref(values) for values in found[1].values())
        return found

    monkeypatch.setattr(seed, "teacher_features", noted)
    result = mfh.study(TINY, ensemble=ensemble, **SOME | {"arms": ["no-kd", "fitnets"], "num_seeds": 3})
    assert len(features) == 3
    gc.collect()
    assert not any(one() is not None for one in features)
    assert len(result.frame)


def test_an_interrupted_study_ends_like_one_that_was_not(tmp_path, monkeypatch):
    whole = mfh.study(TINY, out=tmp_path / "whole", **SOME)
    assert json.loads((tmp_path / "whole/config.json").read_text())["ensemble"] == "auto"
    write, count = files.write_table, 0

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count in (2, 9, 15):
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(files, "write_table", interrupted)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            mfh.study(TINY, out=tmp_path / "part", **SOME)
    assert mfh.study(TINY, out=tmp_path / "part", **SOME).frame.equals(whole.frame)
    assert table(tmp_path / "part") == table(tmp_path / "whole")


def test_neither_the_number_of_seeds_nor_of_processes_changes_a_row(tmp_path):
    first = mfh.study(TINY, out=tmp_path / "run", **SOME)
    before = table(first.folder)
    mfh.study(TINY, out=first.folder, **SOME | {"num_seeds": 3})
    assert table(first.folder).startswith(before)
    again = mfh.study(TINY, out=tmp_path / "two", **SOME | {"num_seeds": 3, "processes": 2})
    assert table(again.folder) == table(first.folder)


def test_a_resumed_run_goes_on_as_it_began(tmp_path, monkeypatch):
    """Whatever the rule would choose now, and with a run folder of a version that knew none."""
    mfh.study(TINY, out=tmp_path / "together", **SOME)
    mfh.study(TINY, out=tmp_path / "alone", ensemble="off", **SOME)
    assert "ensemble" not in Run(tmp_path / "alone").config
    single = alone(monkeypatch)
    mfh.study(TINY, out=tmp_path / "alone", **SOME | {"num_seeds": 3})
    assert single
    single.clear()
    monkeypatch.setattr(networks, "is_worthwhile", lambda *_: False)
    mfh.study(TINY, out=tmp_path / "together", **SOME | {"num_seeds": 3})
    assert not single
    with pytest.raises(InputError, match='made with ensemble "auto"'):
        mfh.study(TINY, out=tmp_path / "together", ensemble="off", **SOME)


def test_what_cannot_be_stacked_is_refused_or_said_once(monkeypatch, caplog):
    task = with_layer(nn.BatchNorm1d(10))
    with pytest.raises(InputError, match=r"ensemble is 'on', but the student .*: layer '1' \(BatchNorm1d\) keeps"):
        mfh.study(task, ensemble="on", **SOME)
    single = alone(monkeypatch)
    with caplog.at_level(logging.WARNING):
        mfh.study(task, **SOME)
    said = [record.getMessage() for record in caplog.records if "one by one" in record.getMessage()]
    assert len(said) == 1
    assert "layer '1' (BatchNorm1d)" in said[0]
    assert "student" in single


def test_a_teacher_that_cannot_be_stacked_is_trained_alone_and_students_together(monkeypatch, caplog):
    def task(seed: int = 0) -> mfh.Task:
        def teacher() -> nn.Module:
            return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 2))

        return replace(tiny_task.task(seed), teacher=teacher)

    single = alone(monkeypatch)
    with caplog.at_level(logging.WARNING):
        mfh.study(task, **SOME)
    assert sorted(set(single)) == ["teacher", "teacher and student"]
    assert sum("teachers of all seeds are trained one by one" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("reason", ["convolution", "size", "gpu"])
def test_auto_takes_what_was_measured_to_be_faster(reason):
    network = nn.Linear(10, 10) if reason != "convolution" else nn.Conv1d(1, 1, 3)
    batch_size = 32 if reason != "size" else together.MOST_MULTIPLICATIONS
    device = torch.device("cuda" if reason == "gpu" else "cpu")
    assert not together.is_worthwhile(network, batch_size, device)
    assert together.is_worthwhile(nn.Linear(10, 10), 32, torch.device("cpu"))


def test_auto_trains_a_large_teacher_alone_and_small_students_together(monkeypatch):
    def task(seed: int = 0) -> mfh.Task:
        def teacher() -> nn.Module:
            return nn.Sequential(
                nn.Linear(8, 12), nn.ReLU(), nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 1, 3), nn.Flatten()
            )

        return replace(tiny_task.task(seed), teacher=lambda: nn.Sequential(*teacher(), nn.Linear(10, 2)))

    single = alone(monkeypatch)
    mfh.study(task, **SOME | {"arms": ["no-kd", "regular"]})
    assert set(single) == {"teacher"}
    single.clear()
    mfh.study(task, ensemble="on", **SOME | {"arms": ["no-kd", "regular"]})
    assert not single


def test_a_wrong_choice_is_refused():
    with pytest.raises(InputError, match="ensemble"):
        mfh.study(TINY, ensemble="always", **SOME)


def test_select_measures_the_chosen_students(tmp_path):
    options = {**SOME, "arms": ["no-kd", "regular", "soft"], "select": True}
    found = mfh.study(precise, out=tmp_path / "together", ensemble="on", **options)
    wanted = mfh.study(precise, out=tmp_path / "alone", ensemble="off", **options)
    assert Run(found.folder).selection["arm"] == Run(wanted.folder).selection["arm"]
    np.testing.assert_allclose(found.by_seed(), wanted.by_seed(), rtol=1e-9)


def test_jobs_that_train_nothing_come_back_as_they_are():
    assert together.together([lambda: 1, lambda: 2]) == [1, 2]
    assert together.together([]) == []


def test_a_study_killed_after_its_first_cells_keeps_them(tmp_path, monkeypatch):
    """What has ended, or was trained in an earlier group, is measured and kept before the next group begins."""
    some = SOME | {"arms": ["no-kd", "regular", "longer", "linear"], "label_fractions": (0.5,)}
    whole = mfh.study(TINY, out=tmp_path / "whole", **some)
    groups, run = [], together._Group.run

    def killed(group):
        groups.append({type(member.training.objective).__name__ for member in group.members})
        if "Distillation" in groups[-1]:
            raise KeyboardInterrupt
        run(group)

    monkeypatch.setattr(together._Group, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        mfh.study(TINY, out=tmp_path / "part", **some)
    kept = {path.name.split("-val")[0] for path in (tmp_path / "part").glob("seed-*/labels-*/cells/*.csv")}
    assert {"no-kd", "linear"} <= kept
    assert "regular" not in kept
    monkeypatch.setattr(together._Group, "run", run)
    assert mfh.study(TINY, out=tmp_path / "part", **some).frame.equals(whole.frame)
    assert table(tmp_path / "part") == table(tmp_path / "whole")


def test_what_ends_is_told_at_once():
    told = []

    def second():
        assert told == [(0, 1)]
        return 2

    assert together.together([lambda: 1, second], finished=lambda *found: told.append(found)) == [1, 2]
    assert told == [(0, 1), (1, 2)]
