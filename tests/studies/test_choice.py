"""The rule behind `result.best` and `--select`."""

import math

import numpy as np
import pandas as pd
import pytest

import fake_study
import tiny_task
from mfh.problems.scale import ACCURACY, Scale
from mfh.studies.choice import choose
from mfh.studies.findings import recommendation
from mfh.studies.folder import Run
from mfh.studies.grid import Cell
from mfh.studies.recommended import Students
from mfh.studies.settings import Settings
from mfh.studies.stats import Repeats
from mfh.tasks.finding import TaskSource

LOSS = Scale("mean_squared_error", higher_is_better=False, percent=False)
RESPLIT = Repeats("resplit", 120, 60, 60)


def values(**arms):
    return {Cell(name.replace("_", "-")): pd.Series(found, dtype=float) for name, found in arms.items()}


def test_the_best_variant_is_compared_with_the_best_control():
    found = choose(
        values(no_kd=[70, 71, 69], longer=[73, 74, 75], regular=[72, 73, 71], soft=[76, 78, 77], tempered=[90, 90, 90]),
        ACCURACY,
        Repeats(),
        100,
    )
    assert (found.best, found.control, found.candidates) == (Cell("soft"), Cell("longer"), 2)
    differences = np.array([3, 4, 2])
    assert found.gain == pytest.approx(3)
    assert found.error == pytest.approx(differences.std(ddof=1) / math.sqrt(3))
    assert found.helps


def test_without_a_candidate_there_is_no_choice():
    assert choose(values(no_kd=[70], longer=[71]), ACCURACY, Repeats(), 100) is None


def test_a_choice_from_before_stays():
    arms = values(no_kd=[70, 71], regular=[75, 74], soft=[73, 73])
    found = choose(arms, ACCURACY, Repeats(), 100, Cell("soft"))
    assert (found.best, found.gain) == (Cell("soft"), pytest.approx(2.5))


def test_re_split_seeds_share_pairs_and_that_widens_the_error():
    arms = values(no_kd=[70, 70, 70], regular=[71, 73, 72])
    alone = choose(arms, ACCURACY, Repeats(), 60)
    shared = choose(arms, ACCURACY, RESPLIT, 60)
    assert shared.error == pytest.approx(alone.error * math.sqrt(1 + 3 * 60 / 120))


@pytest.mark.parametrize("repeats", [Repeats(), RESPLIT, Repeats("fixed")])
def test_one_seed_has_the_error_of_its_validation_pairs(repeats):
    def gains(better, num_val):
        return choose(values(no_kd=[70], regular=[better]), ACCURACY, repeats, num_val)

    assert gains(72, 100).error == pytest.approx(100 * math.sqrt((0.7 * 0.3 + 0.72 * 0.28) / 100))
    assert not gains(72, 100).helps
    assert gains(72, 10_000).helps
    assert gains(80, 100).helps


def test_seeds_that_share_one_validation_split_count_its_size_too():
    arms = values(no_kd=[70, 70, 70], regular=[72, 72.1, 71.9])
    assert choose(arms, ACCURACY, Repeats(), 50).helps
    shared = choose(arms, ACCURACY, Repeats("fixed"), 50)
    assert not shared.helps  # one pair of the 50 is 2 points
    spread = 0.1 / math.sqrt(3)
    assert shared.error == pytest.approx(math.hypot(spread, 100 * math.sqrt((0.7 * 0.3 + 0.72 * 0.28) / 50)))
    assert choose(arms, ACCURACY, Repeats("fixed"), 5_000).helps


def test_one_seed_of_a_metric_without_known_spread_shows_nothing():
    found = choose(values(no_kd=[2.0], regular=[0.5]), LOSS, Repeats(), 100)
    assert (found.gain, found.error, found.helps) == (1.5, math.inf, False)
    assert choose(values(no_kd=[2.0, 2.1], regular=[0.5, 0.4]), LOSS, Repeats(), 100).helps
    assert choose(values(no_kd=[70], regular=[99]), ACCURACY, Repeats(), 0).error == math.inf  # no size is known


def test_what_is_said_of_one_seed(tmp_path):
    frame = fake_study.rows(num_seeds=1, gains={"no-kd": 0.0, "regular": 0.2})
    students = Students(Run(fake_study.write(tmp_path / "one", frame)), TaskSource(tiny_task.task, True), Settings())
    best = students.best()
    assert best.arm == "no-kd"
    assert best.why.endswith("against no-kd, the best control, with no standard error, as there is one seed.")
    sized = fake_study.write(tmp_path / "sized", frame, pairs=[{"labelled": 50, "val": 400, "test": 500}])
    found = Students(Run(sized), TaskSource(tiny_task.task, True), Settings()).best()
    assert found.arm == "regular"
    assert "with a standard error of " in found.why


def test_the_choice_of_a_study_names_the_control(tmp_path):
    choice = {"arm": "regular", "score": "", "ratio": None, "layer": "", "weights": None, "recommended": "no-kd"}
    choice |= {"validation_gain": 0.02, "standard_error": None, "candidates": 2, "control": "longer"}
    run = Run(fake_study.write(tmp_path / "run"))
    run.write_selection(choice)
    assert "(+2 points there against longer, no standard error, as there is one seed)" in recommendation(run.selection)
    assert "standard error 1.5)" in recommendation(choice | {"standard_error": 0.015})
