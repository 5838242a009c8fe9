import csv
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import mfh
import tiny_task
from mfh import files
from mfh.errors import InputError
from mfh.reporting.summary import recommendation
from mfh.studies import pool
from mfh.studies.folder import Run
from mfh.studies.grid import ARMS, COLUMNS, Cell
from mfh.studies.stats import Repeats
from mfh.studies.summary import summarise

TINY = str(Path(tiny_task.__file__))
FEW = {"arms": ["no-kd", "regular", "general"], "num_seeds": 2, "processes": 1}


def table(folder: Path) -> bytes:
    return (folder / "results.csv").read_bytes()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "run"
    return mfh.study(TINY, out=folder, **FEW)


def test_the_run_folder_holds_what_it_promises(finished):
    for name in ("config.json", "environment.json", "results.csv", "seed-0/saliency-distance.safetensors"):
        assert (finished.folder / name).is_file()
    with (finished.folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["arm", "score", "layer", "ratio", "seed", "split", "metric", "value"]
    assert json.loads((finished.folder / "config.json").read_text())["data_redrawn"] is True
    assert finished.by_seed().shape == (2, 3)


def test_results_are_the_same_in_memory_in_a_folder_and_twice(finished):
    again = mfh.study(TINY, **FEW)
    assert again.folder is None
    assert again.frame.equals(finished.frame)


def test_a_finished_study_is_not_done_again(finished, monkeypatch):
    before = table(finished.folder)
    for name in ("_measure", "_measure_together"):
        monkeypatch.setattr(pool, name, None)
    assert mfh.study(TINY, out=finished.folder, **FEW).frame.equals(finished.frame)
    assert table(finished.folder) == before


def test_more_seeds_change_no_earlier_row(finished):
    before = table(finished.folder)
    more = mfh.study(TINY, out=finished.folder, **FEW | {"num_seeds": 3})
    assert table(finished.folder).startswith(before)
    assert len(table(finished.folder)) > len(before)
    assert set(more.frame["seed"]) == {0, 1, 2}
    with pytest.raises(InputError, match="holds 3 seeds"):
        mfh.study(TINY, out=finished.folder, **FEW)
    assert set(mfh.study(TINY, out=finished.folder, **FEW | {"add_seeds": 1}).frame["seed"]) == {0, 1, 2, 3}


def test_an_interrupted_study_ends_like_one_that_was_not(tmp_path, monkeypatch):
    whole = mfh.study(TINY, out=tmp_path / "whole", **FEW)
    write, count = files.write_table, 0

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count in (2, 5):
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(files, "write_table", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            mfh.study(TINY, out=tmp_path / "broken", **FEW)
    mfh.study(TINY, out=tmp_path / "broken", **FEW)
    assert table(tmp_path / "broken") == table(whole.folder)


def test_two_processes_give_the_rows_of_one(finished, tmp_path):
    two = mfh.study(TINY, out=tmp_path / "two", **FEW | {"processes": 2})
    assert table(two.folder) == b"".join(table(finished.folder).splitlines(keepends=True)[: len(two.frame) + 1])


def test_more_processes_than_seeds_share_the_cells_of_a_seed(finished, tmp_path):
    one = mfh.study(TINY, out=tmp_path / "one", **FEW | {"processes": 3, "num_seeds": 1})
    assert table(one.folder) == b"".join(table(finished.folder).splitlines(keepends=True)[: len(one.frame) + 1])


def test_a_choice_reads_the_test_split_only_for_the_chosen(tmp_path):
    result = mfh.study(TINY, out=tmp_path / "run", **FEW | {"select": True, "ratios": [0.25, 0.5], "arms": ARMS})
    choice = json.loads((tmp_path / "run" / "selection.json").read_text())
    accuracies = result.by_seed("val").mean()
    assert choice["validation_accuracy"] == pytest.approx(accuracies.drop("no-kd").max())
    assert choice["candidates"] == len(accuracies) - 1
    values = result.by_seed("val")
    gains = values[accuracies.drop("no-kd").idxmax()] - values["no-kd"]
    assert choice["validation_gain"] == pytest.approx(gains.mean())
    assert choice["standard_error"] == pytest.approx(gains.sem())
    assert (choice["recommended"] == "no-kd") == (gains.mean() <= gains.sem())
    sentence = recommendation(choice)
    assert sentence.startswith(f"Recommended: {choice['recommended']}. ")
    assert sentence in mfh.report(tmp_path / "run").read_text(encoding="utf-8")
    tested = set(result.frame[result.frame["split"] == "test"]["arm"])
    assert {"no-kd", choice["arm"]} <= tested
    assert len(result.by_seed("test").columns) in (2, 3)


def test_a_choice_stays_when_seeds_are_added(tmp_path):
    options = FEW | {"select": True, "num_seeds": 1, "arms": ["no-kd", "regular", "soft"]}
    mfh.study(TINY, out=tmp_path / "run", **options)
    path = tmp_path / "run" / "selection.json"
    choice = json.loads(path.read_text())
    other = {"regular": ("soft", "probe", "1"), "soft": ("regular", "", "")}[choice["arm"]]
    run = Run(tmp_path / "run")
    run.write_selection(choice | dict(zip(("arm", "score", "layer"), other, strict=True)))  # as if so chosen
    more = mfh.study(TINY, out=tmp_path / "run", **options | {"add_seeds": 2})
    tested = more.frame[more.frame["split"] == "test"]
    assert set(tested["arm"]) == {"no-kd", "regular", other[0]}
    assert set(tested["seed"]) == {0, 1, 2}
    run.write_selection(choice | {"arm": "general"})
    with pytest.raises(InputError, match="names no variant"):
        mfh.study(TINY, out=tmp_path / "run", **options | {"num_seeds": 3})


def test_a_task_that_cannot_travel_runs_here():
    task = tiny_task.task()
    result = mfh.study(lambda: task, arms=["no-kd", "soft"], num_seeds=2, processes=2)
    assert not result.data_redrawn
    assert set(result.frame["arm"]) == {"no-kd", "soft"}


def test_a_choice_on_re_split_data_has_the_corrected_standard_error(tmp_path):
    def task(seed):
        return replace(tiny_task.task(seed), seeds="resplit")

    options = {"arms": ["no-kd", "regular"], "num_seeds": 3, "processes": 1, "epochs": 1}
    values = mfh.study(task, out=tmp_path, select=True, **options).by_seed("val")
    error = (values["regular"] - values["no-kd"]).sem()
    choice = json.loads((tmp_path / "selection.json").read_text())
    assert error > 0
    assert choice["standard_error"] == pytest.approx(error * (1 + 3 * 60 / 120) ** 0.5)


def test_a_study_that_re_splits_its_data_says_so(tmp_path):
    def task(seed):
        return replace(tiny_task.task(seed), seeds="resplit")

    options = {"arms": ["no-kd", "regular"], "num_seeds": 3, "processes": 1, "epochs": 1}
    result = mfh.study(task, out=tmp_path, **options)
    assert not result.data_redrawn
    assert Run(tmp_path).repeats == Repeats("resplit", num_train=120, num_val=60, num_test=60)
    gain = Run(tmp_path).summary.chosen("regular").gain
    plain = summarise(result.frame).chosen("regular").gain
    assert gain.standard_error == pytest.approx(plain.standard_error * (1 + 3 * 60 / 120) ** 0.5)
    assert mfh.study(task, out=tmp_path, **options).frame.equals(result.frame)
    with pytest.raises(InputError, match="made with data_redrawn false, now it is true"):
        mfh.study(tiny_task.task, out=tmp_path, **options)
    # A task without a parameter seed is fixed, whatever it says.
    fixed = task(0)
    mfh.study(lambda: fixed, out=tmp_path / "fixed", **options)
    assert Run(tmp_path / "fixed").repeats == Repeats("fixed")
    with pytest.raises(InputError, match="seeds of task 'tiny' is 'split'; choose 'redrawn', 'resplit' or 'fixed'"):
        replace(fixed, seeds="split")


def test_all_arms_are_run_unless_chosen():
    result = mfh.study(tiny_task.task, num_seeds=1, epochs=1)
    assert set(ARMS) == set(result.frame["arm"])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_seeds": 0}, "num_seeds is 0"),
        ({"arms": ["regullar"]}, "'regular'"),
        ({"ratios": [1.5]}, "ratio is 1.5"),
        ({"scores": ["saliency"]}, "'saliency'"),
        ({"layers": ["7"]}, "no layer '7'"),
        ({"add_seeds": 2}, "holds no study"),
        ({"select": True, "arms": ["regular"]}, "no-kd"),
        ({"epochs": 0}, "epochs is 0"),
        ({"processes": -1}, "processes is -1"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run_behind(tmp_path, changes, said):
    with pytest.raises(InputError, match=said) as error:
        mfh.study(TINY, out=tmp_path / "run", **FEW | changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "results.csv").exists()


@pytest.mark.parametrize(
    ("changes", "field"), [({"epochs": 1}, "epochs"), ({"arms": ["no-kd"]}, "arms"), ({"ratios": [0.25]}, "ratios")]
)
def test_a_folder_of_another_configuration_is_left_alone(finished, changes, field):
    before = table(finished.folder)
    with pytest.raises(InputError, match=rf"\(a study\) was made with {field}"):
        mfh.study(TINY, out=finished.folder, **FEW | {"num_seeds": 9} | changes)
    assert table(finished.folder) == before


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.tex"):
        mfh.study(TINY, out=tmp_path, **FEW)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_half_written_table_is_named_and_kept(finished, tmp_path):
    mfh.study(TINY, out=tmp_path / "run", **FEW)
    (path,) = (tmp_path / "run" / "seed-1" / "cells").glob("regular*.csv")
    path.write_text(path.read_text()[:-25])
    broken = path.read_text()
    with pytest.raises(InputError, match=path.name):
        mfh.study(TINY, out=tmp_path / "run", **FEW)
    assert path.read_text() == broken


def test_an_interrupted_addition_is_finished_not_repeated(tmp_path, monkeypatch):
    few = FEW | {"arms": ["no-kd"]}
    mfh.study(TINY, out=tmp_path / "run", **few)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_table", None)
        with pytest.raises(TypeError):
            mfh.study(TINY, out=tmp_path / "run", **few | {"add_seeds": 1})
    assert set(mfh.study(TINY, out=tmp_path / "run", **few | {"add_seeds": 1}).frame["seed"]) == {0, 1, 2}


def test_an_empty_or_cut_cell_is_not_taken_for_finished(tmp_path):
    few = FEW | {"arms": ["no-kd"], "num_seeds": 1}
    mfh.study(TINY, out=tmp_path / "run", **few)
    (path,) = (tmp_path / "run" / "seed-0" / "cells").glob("no-kd*.csv")
    whole = path.read_text()
    for damaged in ("", whole[:-3]):
        path.write_text(damaged)
        with pytest.raises(InputError, match="remove it to measure this cell again"):
            mfh.study(TINY, out=tmp_path / "run", **few)


def test_other_data_under_the_same_name_are_noticed(tmp_path):
    few = {"arms": ["no-kd"], "num_seeds": 1, "out": tmp_path / "run"}
    mfh.study(tiny_task.task(0), **few)
    with pytest.raises(InputError, match=r"made with data\.train"):
        mfh.study(tiny_task.task(1), **few)


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    with files.claimed(tmp_path / "run"), pytest.raises(InputError, match="in use"):
        mfh.study(TINY, out=tmp_path / "run", **FEW)


WEIGHTED = {"arms": ["no-kd", "regular", "soft"], "weights": [(1, 1), (0, 1), (1, 3)], "num_seeds": 2, "epochs": 2}


def test_weights_of_the_loss_are_compared(tmp_path):
    result = mfh.study(TINY, out=tmp_path / "run", processes=1, **WEIGHTED)
    frame = pd.read_csv(tmp_path / "run" / "results.csv")
    assert list(frame.columns) == [*COLUMNS, "label_weight", "teacher_weight"]
    taught = frame[frame["arm"].isin(["regular", "soft"])]
    assert set(zip(taught["label_weight"], taught["teacher_weight"], strict=True)) == {(1, 1), (0, 1), (1, 3)}
    assert frame[frame["arm"] == "no-kd"]["label_weight"].isna().all()
    # Each pair is what a study of that loss alone finds.
    for label, teacher in WEIGHTED["weights"]:
        alone = mfh.study(
            TINY, processes=1, loss={"label_weight": label, "teacher_weight": teacher}, **WEIGHTED | {"weights": ()}
        )
        for arm in ("regular", "soft-probe-1"):
            name = f"{arm}-label-{label}-teacher-{teacher}"
            assert result.by_seed()[name].tolist() == alone.by_seed()[arm].tolist()
    labels = {variant.label for variant in summarise(result.frame).variants}
    assert labels == {"no-kd", *(f"{a} (weights {w})" for a in ("regular", "soft") for w in ("1:1", "0:1", "1:3"))}
    masking = {v.label: v.masking for v in summarise(result.frame).variants}["soft (weights 0:1)"]
    paired = result.by_seed()["soft-probe-1-label-0-teacher-1"] - result.by_seed()["regular-label-0-teacher-1"]
    assert masking.mean_difference == pytest.approx(100 * paired.mean())


def test_a_choice_may_be_one_of_weights(tmp_path):
    first = mfh.study(TINY, out=tmp_path / "run", processes=1, select=True, **WEIGHTED)
    choice = json.loads((tmp_path / "run" / "selection.json").read_text())
    assert choice["candidates"] == 6
    means = first.by_seed("val").mean().drop("no-kd")
    chosen = Cell(choice["arm"], choice["score"], choice["ratio"], choice["layer"], tuple(choice["weights"]))
    assert means[chosen.name] == means.max()
    assert f". {chosen.name} is the best of 6 by validation" in recommendation(choice)
    worse = recommendation({**choice, "validation_gain": -0.012, "standard_error": 0.02})
    assert "(\u22121.2 points there against no-kd, standard error 2)" in worse
    tested = set(first.by_seed("test").columns)
    assert tested == {"no-kd", chosen.name} | ({chosen.unmasked.name} if chosen.unmasked else set())
    again = mfh.study(TINY, out=tmp_path / "run", processes=1, select=True, **WEIGHTED | {"num_seeds": 3})
    assert set(again.by_seed("test").columns) == tested


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [(0, 0)]}, "one of them positive"),
        ({"weights": [(-1, 1)]}, "label_weight is -1.0; choose 0 to 1000000"),
        ({"loss": {"teacher_weight": 2.0}}, "teacher_weight is 2.0, and weights are to be compared"),
        ({"loss": lambda student, teacher, target: student.mean()}, "a loss of its own"),
    ],
)
def test_wrong_weights_end_in_one_line(change, message):
    with pytest.raises(InputError, match=message):
        mfh.study(TINY, **WEIGHTED | change)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"arms": 5}, "arms is 5, of type int; a sequence"),
        ({"arms": "soft"}, "arms is 'soft', of type str; a sequence"),
        ({"ratios": 0.5}, "ratios is 0.5"),
        ({"ratios": ["x"]}, "ratios is "),
        ({"weights": [1]}, "weights is "),
        ({"label_fractions": 0.5}, "label_fractions is 0.5"),
        ({"out": 5}, "out is 5"),
        ({"select": "no"}, "select is 'no'; choose True or False"),
    ],
)
def test_a_design_of_another_kind_is_refused_in_one_line(options, said):
    with pytest.raises(InputError, match=said):
        mfh.study(TINY, **options)
