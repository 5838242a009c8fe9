import errno
import logging
import multiprocessing

import pytest
import torch
from torch.utils.data import TensorDataset

from mfh.data import cache as caching
from mfh.data.cache import OutputCache, teacher_inputs_digest
from mfh.errors import InputError

ROWS = torch.arange(24.0).reshape(6, 4)


def _get(cache, made, rows=ROWS, source="source", names=("logits",)):
    def compute(missing):
        made.extend(missing)
        return [rows for _ in missing]

    return cache.rows(source, list(names), compute)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_another_cache_of_the_folder_reads_the_same_rows(tmp_path, kind):
    made, rows = [], ROWS.to(kind)
    _get(OutputCache(tmp_path), made, rows)
    (found,) = _get(OutputCache(tmp_path), made)
    assert made == ["logits"]
    assert found.dtype == kind
    assert torch.equal(found, rows)


def test_only_what_is_missing_is_computed(tmp_path):
    made = []
    _get(OutputCache(tmp_path), made, names=["a", "b"])
    _get(OutputCache(tmp_path), made, names=["b", "c", "b"])
    _get(OutputCache(tmp_path), made, source="another", names=["a"])
    assert made == ["a", "b", "c", "a"]


def test_writing_to_rows_changes_no_file(tmp_path):
    made = []
    for _ in range(2):
        _get(OutputCache(tmp_path), made)[0].zero_()
    assert torch.equal(_get(OutputCache(tmp_path), made)[0], ROWS)
    assert made == ["logits"]


def _flipped(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [_flipped, lambda c: c[:-4], lambda c: c + b"more", lambda c: c[:100], lambda c: b"", lambda c: b"[]" * 9]
)
def test_a_damaged_file_is_noticed_and_made_again(tmp_path, caplog, damage):
    made = []
    _get(OutputCache(tmp_path), made)
    (path,) = tmp_path.glob("*.rows")
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(_get(OutputCache(tmp_path), made)[0], ROWS)
    assert made == ["logits", "logits"]
    assert caplog.text.count("is made again") == 1
    _get(OutputCache(tmp_path), made)
    assert made == ["logits", "logits"]


def test_a_file_of_another_source_is_not_taken(tmp_path):
    made = []
    _get(OutputCache(tmp_path), made)
    (first,) = tmp_path.glob("*.rows")
    _get(OutputCache(tmp_path), made, ROWS + 1, source="another")
    (second,) = set(tmp_path.glob("*.rows")) - {first}
    second.write_bytes(first.read_bytes())
    assert torch.equal(_get(OutputCache(tmp_path), made, ROWS + 1, source="another")[0], ROWS + 1)


def test_a_full_disk_is_told_once_and_rows_are_computed(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(caching, "atomic_write", full)
    made, cache = [], OutputCache(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(_get(cache, made)[0], ROWS)
        assert torch.equal(_get(cache, made)[0], ROWS)
    assert caplog.text.count("No space left on device") == 1
    assert len(made) == 2


def test_a_folder_that_cannot_be_made_is_told_once(tmp_path, caplog):
    (tmp_path / "file").touch()
    cache = OutputCache(tmp_path / "file" / "cache")
    assert torch.equal(_get(cache, [])[0], ROWS)
    assert caplog.text.count("cannot be written") == 1


def test_an_error_of_the_network_leaves_nothing_and_is_raised(tmp_path):
    def fails(_):
        raise OSError("the network's own")

    with pytest.raises(OSError, match="the network's own"):
        OutputCache(tmp_path).rows("source", ["logits"], fails)
    assert not list(tmp_path.glob("*.rows"))


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cache is .*file, a file; choose a folder"):
        OutputCache(tmp_path / "file")
    with pytest.raises(InputError, match="there is no folder"):
        OutputCache(tmp_path / "none").clear()


def test_clearing_leaves_other_files(tmp_path):
    _get(OutputCache(tmp_path), [])
    (tmp_path / "notes.txt").touch()
    (tmp_path / "my.rows").touch()
    OutputCache(tmp_path).clear()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.rows", "notes.txt"]


def _second(folder, begun, entered, answers):
    cache, made = OutputCache(folder), []
    begun.wait()
    entered.set()
    _get(cache, made)
    answers.put(made)


def test_of_two_processes_one_computes_and_the_other_waits(tmp_path):
    context = multiprocessing.get_context("spawn")
    begun, entered, answers = context.Event(), context.Event(), context.Queue()
    other = context.Process(target=_second, args=(tmp_path, begun, entered, answers))
    other.start()

    def compute(_):
        begun.set()  # the other process asks while this one holds the lock
        assert entered.wait(60)
        return [ROWS]

    OutputCache(tmp_path).rows("source", ["logits"], compute)
    assert answers.get(timeout=60) == []
    other.join(60)
    assert other.exitcode == 0


def test_the_digest_of_a_split_knows_values_and_order_of_teacher_inputs_only():
    teacher, student, target = torch.randn(9, 3), torch.randn(9, 2), torch.zeros(9, dtype=torch.long)
    known = teacher_inputs_digest(TensorDataset(teacher, student, target))
    assert teacher_inputs_digest(TensorDataset(teacher, student + 1, target + 1)) == known
    changed = teacher.clone()
    changed[5, 1] += 1
    for other in (changed, teacher.flip(0), teacher[:8], teacher.double()):
        size = len(other)
        assert teacher_inputs_digest(TensorDataset(other, student[:size], target[:size])) != known
