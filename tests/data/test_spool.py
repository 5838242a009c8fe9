import gc
import tempfile

import pytest
import torch

from mfh.data import spool
from mfh.data.spool import Rows, mean_rows
from networks import randn


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("limit", [spool.IN_MEMORY_BYTES, 60, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_rows_come_back_in_order(folder, limit, dtype):
    parts = [(randn(n, 3, 2, seed=n) * 5).to(dtype) for n in (7, 1, 20, 4)]
    collected = Rows(limit)
    for part in parts:
        collected.append(part)
    assert len(list(folder.iterdir())) == (limit < 1000)
    whole = collected.finish()
    assert torch.equal(whole, torch.cat(parts))
    assert whole.dtype == dtype
    assert not list(folder.iterdir())
    whole += 1 if dtype != torch.bool else True  # the mapping is private and writable


def test_views_that_are_not_contiguous(folder):
    collected, part = Rows(0), randn(4, 6, 5).transpose(1, 2)
    collected.append(part)
    assert torch.equal(collected.finish(), part)


def test_a_loader_may_reuse_its_memory():
    collected, buffer = Rows(), torch.zeros(2, 3)
    for value in range(3):
        buffer.fill_(value)
        collected.append(buffer)
    assert collected.finish()[:, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_file_does_not_outlive_an_interrupted_run(folder):
    collected = Rows(0)
    collected.append(randn(4, 6))
    assert len(list(folder.iterdir())) == 1
    del collected
    gc.collect()
    assert not list(folder.iterdir())


def test_mean_of_many_rows():
    values = randn(10_000, 3) + 1e4
    torch.testing.assert_close(mean_rows(values), values.double().mean(0))
    assert mean_rows(values).dtype == torch.float64
