import csv
import io

import pytest

from mfh.errors import InputError
from mfh.gaussian import ModifyGamma, VaryGamma, modify_gamma, table_2, vary_gamma

SMALL = {"num_train": 30, "num_test": 40, "steps": 20}


@pytest.fixture(scope="module")
def frame():
    return modify_gamma(3, settings=ModifyGamma(counts=((3, 2), (1, 4)), teacher_dim=8, student_dim=7, **SMALL))


def test_text_has_one_aligned_line_per_setting(frame):
    lines = table_2(frame).splitlines()
    assert len(lines) == 2 + 2
    assert len({len(line) for line in lines}) == 1
    assert "\u00b1" in lines[2]


def test_csv_holds_the_means(frame):
    rows = list(csv.DictReader(io.StringIO(table_2(frame, "csv"))))
    assert [row["gamma"] for row in rows] == ["0.40", "0.80"]
    wanted = frame.query("arm == 'random' and role == 'student' and gamma < 0.5")["accuracy"]
    assert float(rows[0]["random KD"]) == pytest.approx(wanted.mean(), abs=0.006)
    assert float(rows[0]["random KD standard error"]) == pytest.approx(wanted.sem(), abs=0.006)


def test_markdown_and_latex(frame):
    markdown = table_2(frame, "markdown").splitlines()
    assert len(markdown) == 4
    assert len({line.count("|") for line in markdown}) == 1
    assert set(markdown[1]) == set("|-: ")
    latex = table_2(frame, "latex")
    assert latex.count(r"\\") == 3
    assert r"\begin{tabular}{rrrrrrrrrrrr}" in latex
    assert "\u00b1" not in latex


def test_one_seed_has_no_standard_error():
    frame = modify_gamma(1, settings=ModifyGamma(counts=((3, 2),), teacher_dim=8, student_dim=7, **SMALL))
    assert "\u00b1" not in table_2(frame)
    assert "nan" not in table_2(frame, "csv")


def test_bad_input(frame):
    with pytest.raises(InputError, match="form is 'html'"):
        table_2(frame, "html")
    other = vary_gamma(1, settings=VaryGamma(decisive=2, overlaps=(0,), teacher_dim=4, student_dim=5, **SMALL))
    with pytest.raises(InputError, match="'modify-gamma' were expected"):
        table_2(other)
