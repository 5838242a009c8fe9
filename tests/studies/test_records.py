import numpy as np
import pytest

from mfh.errors import InputError
from mfh.studies.records import MOST_CLASSES, read_counts, read_history, recalls, write_counts, write_history


def test_counts_come_back(tmp_path):
    counts = np.array([[5, 0, 1], [0, 0, 0], [2, 0, 0]])
    write_counts(tmp_path, "soft-test", counts)
    np.testing.assert_array_equal(read_counts(tmp_path, "soft-test"), counts)
    np.testing.assert_array_equal(recalls(counts), [5 / 6, np.nan, 0])
    assert len((tmp_path / "counts" / "soft-test.csv").read_text().splitlines()) == 6


def test_many_classes_are_right_or_wrong(tmp_path):
    counts = np.random.default_rng(0).integers(0, 9, (MOST_CLASSES + 1, MOST_CLASSES + 1))
    write_counts(tmp_path, "x", counts)
    kept = read_counts(tmp_path, "x")
    np.testing.assert_array_equal(kept[:, 0], np.diag(counts))
    np.testing.assert_array_equal(kept.sum(1), counts.sum(1))
    np.testing.assert_array_equal(recalls(kept), recalls(counts))


def test_histories_come_back(tmp_path):
    history = [{"epoch": 0.0, "train_loss": 0.7}, {"epoch": 1.0, "train_loss": 0.1 + 0.2}]
    write_history(tmp_path, "student", history)
    assert read_history(tmp_path, "student")["train_loss"].tolist() == [0.7, 0.1 + 0.2]


def test_what_is_missing_is_none_and_what_is_damaged_is_said(tmp_path):
    assert read_history(tmp_path, "student") is None
    assert read_counts(tmp_path, "student") is None
    for folder, read in (("histories", read_history), ("counts", read_counts)):
        (tmp_path / folder).mkdir()
        for content in ("epoch,target\n1,x\n", "epoch,target\n1\n", "target,predicted,count\n0,x,1\n", "epoch\n1"):
            (tmp_path / folder / "x.csv").write_text(content)
            with pytest.raises(InputError, match=r"x\.csv .*; remove it to have a report without it"):
                read(tmp_path, "x")
