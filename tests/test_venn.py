import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import assume, given

from mfh import ModalityVenn
from mfh.errors import InputError

counts = st.integers(0, 50)


@given(counts, counts, counts)
def test_fractions(general, teacher_only, student_only):
    assume(general + teacher_only + student_only)
    venn = ModalityVenn(general, teacher_only, student_only)
    assert venn.total == general + teacher_only + student_only
    assert venn.gamma == general / venn.total
    assert venn.alpha * (teacher_only + general) == pytest.approx(teacher_only)
    assert venn.beta * (student_only + general) == pytest.approx(student_only)
    assert all(0 <= value <= 1 for value in (venn.alpha, venn.beta, venn.gamma))
    if not student_only and teacher_only + general:
        assert venn.gamma == pytest.approx(1 - venn.alpha)


@pytest.mark.parametrize(
    ("overlap", "gamma"), [(0, 0), (2, 0.11), (4, 0.25), (6, 0.43), (8, 0.67), (10, 1)]
)  # figure 2 of the paper: both see 10 of 20
def test_published_gammas(overlap, gamma):
    venn = ModalityVenn(overlap, 10 - overlap, 10 - overlap)
    assert venn.gamma == pytest.approx(gamma, abs=0.005)


def test_only_one_modality_decides():
    assert ModalityVenn(0, 3, 0).beta == 0
    assert ModalityVenn(0, 3, 0).alpha == 1
    assert ModalityVenn(np.int64(2), 2.0).alpha == 0.5


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "2", "two", None, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["general", "teacher_only", "student_only"])
def test_bad_counts(name, wrong):
    with pytest.raises(InputError, match=f"{name} is {wrong!r}; a count of features is a whole number from 0"):
        ModalityVenn(**{"general": 1, name: wrong})


def test_nothing_decides():
    with pytest.raises(InputError, match="no feature is decisive"):
        ModalityVenn(0)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModalityVenn(1).general = 2
