"""Folders of clips with every kind of damage: all good clips are prepared, all bad ones are listed with a reason."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from damage import add_rubbish, damages, interrupt_every, pack_twice
from media import write_mp4
from mfh.errors import InputError
from mfh.files import read_table
from mfh.tasks.ravdess import prepare as ravdess
from mfh.tasks.ravdess.data import load_splits
from mfh.tasks.vggsound import prepare as vggsound
from mfh.tasks.vggsound.annotations import is_validation
from mfh.tasks.vggsound.shards import Clips, open_prepared
from ravdess_clips import write_clips
from vggsound_clips import clip_name, write_clip

SMALL = ravdess.Features(height=16, width=32, mfcc_frames=16)
SIZES = vggsound.Settings(num_frames=2, size=16, seconds=0.5, clips_per_shard=8)


def skipped(out):
    return {(row["file"], row["reason"]) for row in read_table(out / "skipped.csv", None, "")}


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


# --- RAVDESS ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def actors(tmp_path_factory):
    """Six actors' good clips, and a folder of the same clips, some elsewhere, with all kinds of damage beside them."""
    folder = tmp_path_factory.mktemp("ravdess")
    write_clips(folder / "good", seconds=0.2, size=(36, 64))
    (folder / "good" / "Actor_01" / "01-01-08-01-01-01-01.mp4").unlink()
    source = Path(shutil.copytree(folder / "good", folder / "source"))
    shutil.move(source / "Actor_02", folder / "elsewhere")
    (source / "Actor_02").symlink_to(folder / "elsewhere")
    pack_twice(sorted((source / "Actor_04").iterdir()), source / "everything.zip")
    whole = next((source / "Actor_01").glob("*.mp4")).read_bytes()
    expected = add_rubbish(source / "rubbish")
    wrong = [f"01-01-0{2 + n // 4}-02-0{1 + n // 2 % 2}-0{1 + n % 2}-01.mp4" for n in range(12)]
    for name, (reason, make) in zip(wrong, damages(whole), strict=True):
        make(source / "Actor_01" / name)
        expected[name] = reason
    # Damaged copies that are tried before the good ones, one of them of a clip that is in the archive.
    (source / "A damaged copy").mkdir()
    copies = ("01-01-02-01-01-01-02.mp4", "01-01-03-01-01-01-02.mp4", "01-01-03-01-01-01-04.mp4")
    for name, (reason, make) in zip(copies, list(damages(whole))[1:8:3], strict=True):
        make(source / "A damaged copy" / name)
        expected[f"A damaged copy/{name}"] = reason
    for name in ("01-01-04-01-01-01-02.mp4",):  # a good copy: the other one is not needed
        shutil.copy(folder / "elsewhere" / name, source / "A damaged copy" / name)
        expected[f"Actor_02/{name}"] = "duplicate"
    (source / "=1+1.mp4").write_bytes(whole)
    return folder, expected | {"=1+1.mp4": "misnamed"}


def prepare_ravdess(source, out):
    return ravdess.prepare(source, out, features=SMALL, processes=0)


def test_ravdess(actors, tmp_path, monkeypatch):
    folder, expected = actors
    prepare_ravdess(folder / "good", tmp_path / "clean")
    prepare_ravdess(folder / "source", tmp_path / "out")
    names = {(file.removeprefix(f"{folder / 'source'}/"), reason) for file, reason in skipped(tmp_path / "out")}
    found = {(file, reason) for file, reason in names for end in expected if file.endswith(end)}
    assert names == found
    assert {end: [r for file, r in found if file.endswith(end)] for end in expected} == {
        end: [reason] for end, reason in expected.items()
    }
    for name in ("manifest.csv", "mfcc.npy", "frames.npy"):  # nothing good is lost, and nothing bad is in
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()
    assert sum(len(part) for part in load_splits(tmp_path / "out")[0].values()) == 47

    monkeypatch.setattr(ravdess.Work, "__call__", interrupt_every(20, ravdess.Work.__call__))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare_ravdess(folder / "source", tmp_path / "again")
        (pieces,) = (tmp_path / "again").glob(".pieces-*")
        (pieces / ".0.npz.x.part").write_bytes(b"what a kill leaves")
    prepare_ravdess(folder / "source", tmp_path / "again")
    assert content(tmp_path / "again") == content(tmp_path / "out")
    assert not list((tmp_path / "again").rglob("*.part"))


def test_ravdess_says_what_was_unusable_if_a_split_is_left_without_clips(actors, tmp_path):
    source = Path(shutil.copytree(actors[0] / "good", tmp_path / "source"))
    for path in source.glob("Actor_0[56]/*.mp4"):
        path.write_bytes(b"<html>404 Not Found</html>")
    said = r"make 2.*; 16 files are not used \(16 unreadable\), see .*skipped\.csv"
    for _ in range(2):  # also when the command is given again
        with pytest.raises(InputError, match=said):
            prepare_ravdess(source, tmp_path / "out")
        assert {reason for _, reason in skipped(tmp_path / "out")} == {"unreadable"}
    for path in source.glob("Actor_0[56]/*.mp4"):
        shutil.copy(actors[0] / "good" / path.relative_to(source), path)
    prepare_ravdess(source, tmp_path / "out")
    assert not skipped(tmp_path / "out")


def test_a_copy_with_a_fault_gives_neither_picture_nor_sound_if_there_is_a_whole_one(actors, tmp_path):
    """A first copy without sound: its picture alone would do, but nobody knows what else is wrong with it."""
    source = Path(shutil.copytree(actors[0] / "good", tmp_path / "source"))
    name = "01-01-03-01-01-01-02.mp4"
    (source / "A").mkdir()
    other = np.random.default_rng(0).integers(0, 255, (4, 36, 64, 3), dtype=np.uint8)
    write_mp4(source / "A" / name, other, None, frame_rate=10)
    prepare_ravdess(source, tmp_path / "out")
    prepare_ravdess(actors[0] / "good", tmp_path / "clean")
    assert (tmp_path / "out" / "frames.npy").read_bytes() == (tmp_path / "clean" / "frames.npy").read_bytes()
    assert skipped(tmp_path / "out") == {(str(source / "A" / name), "no sound")}


# --- VGGSound ---------------------------------------------------------------------------------------------------------


def names_of(split, count):
    """Ids that fall into a split."""
    wanted = (f"-{split}{number:06d}" for number in range(10_000))
    return [video for video in wanted if split == "test" or is_validation(video) == (split == "val")][:count]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("vggsound"), np.random.default_rng(0)
    labels, source = ("dog barking", "-hyphened sound"), folder / "source"
    (source / "a").mkdir(parents=True)
    rows, good = [], []
    for label in labels:
        for split, count in (("train", 4), ("val", 2), ("test", 2)):
            for video in names_of(split, 40)[labels.index(label) :: 2][:count]:
                rows.append((video, 3, label, "test" if split == "test" else "train"))
                good.append(source / clip_name(video, 3))
                write_clip(good[-1], label, rng, seconds=0.5)
    expected, lost = add_rubbish(source / "rubbish"), {}
    for video, (reason, make) in zip(names_of("train", 80)[40:], damages(good[0].read_bytes()), strict=False):
        make(source / clip_name(video, 7))
        rows.append((video, 7, labels[0], "train"))
        lost[video] = reason
    rows.append(("-gone", 7, labels[0], "test"))
    for path, (reason, make) in zip(good, list(damages(good[0].read_bytes()))[1::4], strict=False):
        make(source / "a" / path.name)  # a first copy with a fault
        shutil.move(path, source / "rubbish" / path.name)
        expected[f"a/{path.name}"] = reason
    shutil.move(source / "a", folder / "elsewhere")
    (source / "a").symlink_to(folder / "elsewhere")
    pack_twice(good[6:8], source / "everything.zip")
    with (folder / "vggsound.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder, expected, lost, {row[0] for row in rows} - {*lost, "-gone"}


def prepare_vggsound(folder, out, **options):
    return vggsound.prepare(
        folder / "source", out, csv=folder / "vggsound.csv", settings=SIZES, processes=0, quiet=True, **options
    )


def test_vggsound(videos, tmp_path, monkeypatch):
    folder, expected, lost, good = videos
    said = prepare_vggsound(folder, tmp_path / "out")
    assert "1 missing" in said
    assert "other files not used" in said
    rows = read_table(tmp_path / "out" / "skipped.csv", None, "")
    assert {row["id"]: row["reason"] for row in rows if row["start"] == "7"} == lost | {"-gone": "missing"}
    others = {row["file"]: row["reason"] for row in rows if row["start"] != "7"}
    assert len(rows) == len(lost) + 1 + len(expected) == len(lost) + 1 + len(others)
    for end, reason in expected.items():
        assert [found for file, found in others.items() if file.endswith(end)] == [reason], end
    opened = open_prepared(tmp_path / "out")
    assert {row["id"] for row in opened.rows} == good
    for split in ("train", "val", "test"):
        clips = Clips(opened, split)
        assert all(len(clips[index][0]) == 8000 for index in range(len(clips)))
    counts = read_table(tmp_path / "out" / "classes.csv", None, "")
    assert sum(int(row["usable"]) for row in counts) == len(good)
    assert sum(int(row["broken"]) for row in counts) == len(lost)
    assert counts[0]["label"] == "-hyphened sound"
    assert "'-hyphened sound" in (tmp_path / "out" / "classes.csv").read_text()  # to a spreadsheet it is text

    with monkeypatch.context() as patch:
        patch.setattr(vggsound, "_make_shard", interrupt_every(2, vggsound._make_shard))
        for part in (1, 0):
            with pytest.raises(KeyboardInterrupt):
                prepare_vggsound(folder, tmp_path / "again", shard=(part, 2))
            place = tmp_path / "again" / f"part-{part}-of-2"
            (place / ".meta.json.x.part").write_bytes(b"what a kill leaves")
    for part in (1, 0):
        prepare_vggsound(folder, tmp_path / "again", shard=(part, 2))
    prepare_vggsound(folder, tmp_path / "again", merge=True)
    assert content(tmp_path / "again") == content(tmp_path / "out")
    assert not list((tmp_path / "again").rglob("*.part"))
