import subprocess
import sys

import numpy as np
import pytest

from mfh.errors import InputError
from mfh.gaussian import (
    ModifyGamma,
    VaryAlpha,
    VaryGamma,
    gains,
    modify_gamma,
    sign_change,
    summary,
    vary_alpha,
    vary_gamma,
)

COLUMNS = ["experiment", "alpha", "beta", "gamma", "seed", "role", "arm", "accuracy"]
SMALL = {"num_train": 30, "num_test": 40, "steps": 20}
SMALL_MODIFY = ModifyGamma(counts=((3, 2), (1, 4)), teacher_dim=8, student_dim=7, **SMALL)


def mean_of(frame, role, arm, **setting):
    rows = frame[(frame["role"] == role) & (frame["arm"] == arm)]
    for name, value in setting.items():
        rows = rows[np.isclose(rows[name], value)]
    assert len(rows)
    return rows["accuracy"].mean()


def test_published_seeds_reproduce_the_published_script():
    frame = vary_gamma(10, settings=VaryGamma(overlaps=(0,)), device="cpu")
    assert mean_of(frame, "teacher", "regular") == pytest.approx(70.38, abs=0.15)
    assert mean_of(frame, "student", "no-kd") == pytest.approx(69.41, abs=0.15)
    assert mean_of(frame, "student", "regular") == pytest.approx(68.70, abs=0.15)
    gain = gains(frame)["gain"]
    assert gain.mean() == pytest.approx(-0.71, abs=0.15)
    assert gain.std(ddof=0) == pytest.approx(1.00, abs=0.15)

    frame = vary_alpha(10, settings=VaryAlpha(teacher_only=(0,)), device="cpu")
    assert mean_of(frame, "teacher", "regular") == pytest.approx(58.45, abs=0.15)
    assert mean_of(frame, "student", "no-kd") == pytest.approx(57.90, abs=0.15)
    assert mean_of(frame, "student", "regular") == pytest.approx(59.49, abs=0.15)
    gain = gains(frame)["gain"]
    assert gain.mean() == pytest.approx(1.59, abs=0.15)
    assert gain.std(ddof=0) == pytest.approx(1.06, abs=0.15)


def test_table_2_effect():
    frame = modify_gamma(10, settings=ModifyGamma(counts=((10, 10),)), device="cpu")
    alone = mean_of(frame, "student", "no-kd")
    assert mean_of(frame, "teacher", "regular") - mean_of(frame, "teacher", "algorithm-1") > 10
    assert mean_of(frame, "student", "algorithm-1") - alone > 1
    assert abs(mean_of(frame, "student", "regular") - alone) < 1
    found = [record["found"] for record in frame.attrs["general_found"]]
    assert np.mean(found) > 9


def test_tidy_frames():
    frame = vary_gamma(3, settings=VaryGamma(decisive=2, overlaps=(0, 1), teacher_dim=4, student_dim=5, **SMALL))
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 3 * 2 * 3
    assert not frame.duplicated([name for name in COLUMNS if name != "accuracy"]).any()
    assert frame["accuracy"].between(0, 100).all()
    assert set(frame["seed"]) == {0, 1, 2}
    alone = frame[frame["arm"] == "no-kd"].pivot_table(index="seed", columns="gamma", values="accuracy")
    assert (alone.nunique(axis=1) == 1).all()  # fitted once for all settings

    frame = modify_gamma(2, settings=SMALL_MODIFY)
    assert list(frame.columns) == COLUMNS
    assert set(frame["seed"]) == {42, 43}
    assert set(frame["arm"]) == {"no-kd", "regular", "random", "true-general", "algorithm-1"}
    assert set(frame[frame["role"] == "teacher"]["arm"]) == {"regular", "random", "true-general", "algorithm-1"}
    assert len(frame.attrs["general_found"]) == 4
    assert all(0 <= record["found"] <= record["general"] for record in frame.attrs["general_found"])


@pytest.mark.parametrize("permutations", ["exact", 3])
def test_results_do_not_depend_on_chunks_or_neighbours(permutations):
    settings = ModifyGamma(counts=((3, 2),), teacher_dim=8, student_dim=7, permutations=permutations, **SMALL)
    whole = modify_gamma(5, settings=settings)
    chunked = modify_gamma(5, settings=settings, chunk_size=2)
    np.testing.assert_array_equal(whole["accuracy"], chunked["accuracy"])
    one = modify_gamma(1, first_seed=44, settings=settings)
    same_seed = whole[whole["seed"] == 44]
    np.testing.assert_array_equal(one["accuracy"], same_seed["accuracy"])
    assert [r["found"] for r in one.attrs["general_found"]] == [whole.attrs["general_found"][2]["found"]]


def test_when_all_inputs_are_kept_all_teachers_are_the_regular_one():
    settings = ModifyGamma(counts=((0, 6),), teacher_dim=6, student_dim=7, **SMALL)
    frame = modify_gamma(2, settings=settings)
    regular = frame[(frame["arm"] == "regular")].sort_values(["seed", "role"])["accuracy"].to_numpy()
    general = frame[(frame["arm"] == "true-general")].sort_values(["seed", "role"])["accuracy"].to_numpy()
    np.testing.assert_array_equal(regular, general)


def test_progress_is_told():
    seen = []
    vary_alpha(
        5,
        settings=VaryAlpha(general=2, teacher_only=(0,), **SMALL),
        chunk_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_summary_and_gains_are_means_of_the_rows():
    frame = vary_alpha(4, settings=VaryAlpha(general=2, teacher_only=(0, 3), **SMALL))
    row = summary(frame).query("role == 'student' and arm == 'regular'").iloc[1]
    values = frame.query("role == 'student' and arm == 'regular' and alpha > 0")["accuracy"]
    assert row["mean"] == pytest.approx(values.mean())
    assert row["standard_error"] == pytest.approx(values.std() / 2)
    assert row["num_seeds"] == 4
    alone = frame.query("arm == 'no-kd' and alpha > 0").set_index("seed")["accuracy"]
    gain = gains(frame).query("alpha > 0").set_index("seed")["gain"]
    for seed in range(4):
        assert gain[seed] == pytest.approx(values.to_numpy()[seed] - alone[seed])


def gain_frame(lines):
    """A frame in which the students of seed s gain lines[s][k] at the k-th gamma."""
    import pandas as pd

    rows = []
    for seed, line in enumerate(lines):
        for gamma, gain in zip((0.0, 0.5, 1.0), line, strict=True):
            rows += [
                ("vary-gamma", 1 - gamma, 1 - gamma, gamma, seed, "student", "no-kd", 60.0),
                ("vary-gamma", 1 - gamma, 1 - gamma, gamma, seed, "student", "regular", 60.0 + gain),
            ]
    return pd.DataFrame(rows, columns=COLUMNS)


def test_sign_change_lies_on_the_line_between_settings():
    change = sign_change(gain_frame([(-2.0, -1.0, 3.0), (-2.2, -0.8, 3.0), (-1.8, -1.2, 3.0)]))
    assert change.gamma == pytest.approx(0.625)
    assert 0.58 < change.low < change.gamma < change.high < 0.68
    assert change.found == 1
    assert "0.62" in change.describe()


def test_no_sign_change_is_said():
    change = sign_change(gain_frame([(1.0, 2.0, 3.0), (0.5, 2.0, 3.0)]))
    assert np.isnan(change.gamma)
    assert np.isnan(change.low)
    assert "does not change sign" in change.describe()


def test_import_is_light():
    code = (
        "import sys, mfh.gaussian; "
        "print([m for m in ('torch', 'numba', 'pandas', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: VaryGamma(overlaps=(0, 11)), "overlaps has 11.*only 10"),
        (lambda: VaryGamma(overlaps=()), "overlaps is empty"),
        (lambda: VaryGamma(overlaps=(-1,)), r"overlaps is \(-1,\); choose 0 to"),
        (lambda: VaryGamma(teacher_dim=19), "teacher_dim is 19.*at least 20"),
        (lambda: VaryGamma(student_dim=9), "student_dim is 9.*at least 10"),
        (lambda: VaryAlpha(teacher_only=(0, 41)), "num_decisive is 50.*at least 51"),
        (lambda: VaryAlpha(teacher_dim=40), "teacher_dim is 40.*at least 50"),
        (lambda: VaryAlpha(general=0), "general is 0"),
        (lambda: ModifyGamma(counts=((10, 0),)), r"counts is \(\(10, 0\),\); choose 1 to"),
        (lambda: ModifyGamma(counts=((10,),)), "each item a sequence of 2"),
        (lambda: ModifyGamma(counts=((30, 30),)), "teacher_dim is 50.*at least 60"),
        (lambda: ModifyGamma(permutations=0), "permutations is 0; choose 1 to 1000000 or 'exact'"),
        (lambda: ModifyGamma(joint_momentum=1.0), "joint_momentum is 1.0; choose 0 to below 1"),
        (lambda: VaryGamma(num_train=-200), "num_train is -200"),
        (lambda: VaryGamma(num_test=0), "num_test is 0"),
        (lambda: VaryGamma(steps=1.5), "steps is 1.5"),
        (lambda: VaryGamma(num_train=10**20), "num_train is 1000.*choose 1 to 1000000"),
        (lambda: VaryGamma(num_train=10**6, student_dim=10**6), "are 1000000000000 numbers; choose sizes"),
        (lambda: VaryGamma(learning_rate=float("inf")), "learning_rate is inf, of type float; a finite number"),
        (lambda: modify_gamma(1, settings=ModifyGamma(joint_learning_rate=1e6)), "linear models diverged"),
        (lambda: VaryGamma(learning_rate=-0.1), "learning_rate is -0.1"),
        (lambda: VaryGamma(reduction="sum"), "reduction is 'sum'"),
        (lambda: vary_gamma(0), "num_seeds is 0"),
        (lambda: vary_alpha(-3), "num_seeds is -3"),
        (lambda: modify_gamma(1, first_seed=-1), "first_seed is -1"),
        (lambda: modify_gamma(10, first_seed=2**32 - 5), "first_seed is 4294967291; choose 0 to 2147483647"),
        (lambda: vary_gamma(1, chunk_size=0), "chunk_size is 0"),
        (lambda: sign_change(gain_frame([(1, 2, 3)]).query("gamma == 0")), "at least two values"),
    ],
)
def test_bad_input(build, match):
    with pytest.raises(InputError, match=match) as caught:
        build()
    assert "\n" not in str(caught.value)
