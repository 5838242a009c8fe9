"""The engine of preparation: pieces, interruptions, workers that die."""

import os
import time
from contextlib import suppress

import pytest

from mfh.errors import InputError
from mfh.files import atomic_write
from mfh.tasks import preparing
from mfh.tasks.media import MediaError
from mfh.tasks.sources import Unusable


def read_or_die(candidate):
    if candidate == "fatal":
        os._exit(3)
    return candidate


def write_first(candidates, piece):
    """A worker that decodes files, of which some are fatal, for two purposes."""
    faults, deaths, lines = {}, preparing.Deaths(piece, "run"), []
    for purpose, order in (("picture", candidates), ("sound", candidates[::-1])):
        made = preparing.first_usable(order, read_or_die, faults, deaths, purpose)
        lines.append(f"{made and made[0]} {sorted(faults.items())}")
    with atomic_write(piece) as file:
        file.write("\n".join(lines))
    deaths.forget()


def write(job, piece):
    """A worker: some jobs are fatal."""
    if job == "fatal":
        os._exit(3)  # as a decoder that crashes
    if job == "error":
        raise OSError(28, "No space left on device")
    with atomic_write(piece) as file:
        file.write(job)


def test_every_missing_piece_is_made_and_none_twice(tmp_path):
    jobs = {tmp_path / name: name for name in "abc"}
    (tmp_path / "b").write_text("from before")
    told = []
    assert preparing.make_pieces(jobs, write, processes=0, progress=told.append) == set()
    assert [path.read_text() for path in jobs] == ["a", "from before", "c"]
    assert (told[0], told[-1]) == (1, 3)
    with pytest.raises(OSError, match="No space"):
        preparing.make_pieces({tmp_path / "d": "error"}, write, processes=0)
    with pytest.raises(InputError, match="processes is -1"):
        preparing.make_pieces(jobs, write, processes=-1)


def test_a_worker_that_dies_costs_only_its_own_piece(tmp_path):
    jobs = {tmp_path / f"{number}": "fatal" if number == 2 else f"{number}" for number in range(5)}
    assert preparing.make_pieces(jobs, write, processes=2) == {tmp_path / "2"}
    assert sorted(path.name for path in tmp_path.glob("[0-9]")) == ["0", "1", "3", "4"]


def test_a_file_that_kills_its_worker_is_one_candidate_of_its_clip(tmp_path):
    jobs = {tmp_path / "0": ("fatal", "fine"), tmp_path / "1": ("fine", "fatal"), tmp_path / "2": ("fatal",)}
    preparing.make_from_files(jobs, write_first, "run", processes=2)
    fault = "('fatal', 'crashes the decoder')"
    made = [path.read_text().splitlines() for path in jobs]
    assert made == [
        [f"fine [{fault}]", f"fine [{fault}]"],
        ["fine []", f"fine [{fault}]"],
        [f"None [{fault}]", f"None [{fault}]"],
    ]
    with pytest.raises(InputError, match="ended between two clips"):
        preparing.make_from_files({tmp_path / "3": "fatal"}, write, "run", processes=1)


def die_together(candidates, piece):
    """A worker that dies while another one reads its first file, which is ended with it."""
    flag = piece.with_name("reading")

    def read(candidate):
        if candidate == "slow" and not flag.exists():
            flag.touch()
            time.sleep(600)
        while candidate == "fatal" and not flag.exists():
            time.sleep(0.01)
        return read_or_die(candidate)

    deaths, faults = preparing.Deaths(piece, "run"), {}
    for candidate in candidates:
        preparing.first_usable([candidate], read, faults, deaths, "picture")
    piece.write_text(str(sorted(faults)))
    deaths.forget()


def test_a_worker_that_another_one_takes_down_has_crashed_on_nothing(tmp_path):
    jobs = {tmp_path / "0": ("fatal",), tmp_path / "1": ("slow", "fatal")}
    preparing.make_from_files(jobs, die_together, "run", processes=2)
    assert [path.read_text() for path in jobs] == ["['fatal']", "['fatal']"]


def test_marks_of_an_interrupted_run_condemn_nothing(tmp_path):
    jobs = {tmp_path / "fine": "fine", tmp_path / "bad": "fatal"}
    preparing._marker(tmp_path / "fine").touch()
    assert preparing.make_pieces(jobs, write, processes=1) == {tmp_path / "bad"}
    assert (tmp_path / "fine").read_text() == "fine"
    assert not list(tmp_path.glob("fine.*"))


def test_the_first_candidate_that_decodes_wins_whatever_the_others_raise(tmp_path):
    wrong = [MediaError("silent"), OSError(22, "Invalid argument"), MemoryError(), RecursionError(), KeyError("x")]

    def read(candidate):
        if isinstance(candidate, Exception):
            raise candidate
        return f"content of {candidate}"

    faults, deaths = {}, preparing.Deaths(tmp_path / "piece", "run")
    link = Unusable(tmp_path, reason="dangling link")
    assert preparing.first_usable([link, *wrong, "good", "other"], read, faults, deaths, "x") == (
        "good",
        "content of good",
    )
    assert list(faults.values()) == ["dangling link", "silent", *["unreadable"] * 4]
    assert preparing.first_usable(wrong, read, faults, deaths, "x") is None
    with pytest.raises(KeyboardInterrupt):
        preparing.first_usable([1], lambda _: (_ for _ in ()).throw(KeyboardInterrupt), faults, deaths, "x")


def test_what_killed_writes_left_is_removed(tmp_path):
    with suppress(RuntimeError), preparing.preparing(tmp_path, "kind", {}) as pieces:
        raise RuntimeError
    for folder in (tmp_path, pieces):
        (folder / ".meta.json.abcd1234.part").write_text("half")
    with preparing.preparing(tmp_path, "kind", {}):
        assert not list(tmp_path.rglob("*.part"))


def test_a_folder_is_complete_only_at_the_end(tmp_path):
    out, options = tmp_path / "out", {"size": 3}
    with suppress(RuntimeError), preparing.preparing(out, "kind", options) as pieces:
        (pieces / "1").write_text("kept")
        raise RuntimeError
    with pytest.raises(InputError, match="not prepared to the end"):
        preparing.read_meta(out, "kind")
    with preparing.preparing(out, "kind", {"size": 4}) as others:
        assert others != pieces
        assert (pieces / "1").exists()
        preparing.finish(out, "kind", {"size": 4}, {"count": 1})
    assert preparing.read_meta(out, "kind")["count"] == 1
    assert not list(out.glob(".pieces*"))
    with preparing.preparing(out, "kind", {"size": 4}) as pieces:
        assert pieces is None
    with (
        pytest.raises(InputError, match="prepared with size 4, now it is 3"),
        preparing.preparing(out, "kind", options),
    ):
        pass
    with pytest.raises(InputError, match="was prepared for 'kind'"):
        preparing.read_meta(out, "other")


@pytest.mark.parametrize("content", ["", "[]", '{"run": "now"}', '{"run": "now", "counts": {"a": "x"}}'])
def test_counts_that_were_damaged_count_nothing(tmp_path, content):
    (tmp_path / "piece.deaths").write_text(content)
    deaths = preparing.Deaths(tmp_path / "piece", "now")
    assert not deaths.condemned
    assert deaths.begin("a")
