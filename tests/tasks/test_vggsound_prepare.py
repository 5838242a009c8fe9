"""VGGSound, from raw clips to shards: annotations, what is found and skipped, parts and merging, interruptions."""

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mfh.cli.commands import main
from mfh.errors import InputError
from mfh.files import read_table
from mfh.tasks.media import MediaError, MediaFile
from mfh.tasks.vggsound import prepare as preparation
from mfh.tasks.vggsound import strips
from mfh.tasks.vggsound.annotations import Clip, choose_classes, find_clips, is_validation, read_annotations
from mfh.tasks.vggsound.prepare import Settings, normalised, plan, prepare
from vggsound_clips import CLASSES, FAULTS, clip_name, write_strips, write_vggsound

SMALL = Settings(num_frames=4, size=32, seconds=1.0, clips_per_shard=10)
OPTIONS = ["--num-frames", "4", "--size", "32", "--seconds", "1", "--clips-per-shard", "10", "--quiet"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(clips, csv, prepared at once)"""
    folder = tmp_path_factory.mktemp("vggsound")
    clips, table = write_vggsound(folder)
    prepare(clips, folder / "once", csv=table, settings=SMALL, processes=2, quiet=True)
    return clips, table, folder / "once"


def contents(folder):
    """name -> bytes, of everything that is not hidden."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def rows_of(path):
    return read_table(path, None, "")


# --- annotations ------------------------------------------------------------------------------------------------------


def write_csv(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_annotations(tmp_path):
    text = '-abc,7,"violin, fiddle",train\n__x,120,dog,test\n-abc,7,"violin, fiddle",train\n'
    clips = read_annotations(write_csv(tmp_path / "v.csv", text))
    assert [(clip.key, clip.label) for clip in clips] == [("-abc_000007", "violin, fiddle"), ("__x_000120", "dog")]
    assert clips[1].split == "test"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("only,two\n", "line 1 has 2 columns; 4 were expected"),
        ("a,1,playing violin, fiddle,train\n", "5 columns"),
        ("id,start,label,split\n", "'start'; a whole number was expected .and no header"),
        ("a,1,dog,valid\n", "'valid'; 'train' or 'test'"),
        ("a/../b,1,dog,train\n", "expected a YouTube id and a non-empty label, got 'a/../b'"),
        ("a,1,dog,train\na,1,cat,train\n", "line 2: clip a_000001 has another label"),
        ("", "is empty"),
        ('a,1,"dog,train\n', "2 columns|3 columns"),
    ],
)
def test_bad_annotations(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_annotations(write_csv(tmp_path / "v.csv", text))


def test_no_annotations(tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_annotations(tmp_path / "v.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)))
    with pytest.raises(InputError, match="not a readable csv"):
        read_annotations(tmp_path / "binary.csv")


def test_validation_goes_by_video(tmp_path):
    rows = "".join(f"video{n},{start},dog,train\n" for n in range(2000) for start in (0, 30))
    clips = read_annotations(write_csv(tmp_path / "v.csv", rows + "test,0,cat,test\n"))
    splits = {}
    for clip in clips:
        splits.setdefault(clip.id, set()).add(clip.split)
    assert all(len(found) == 1 for found in splits.values())
    assert 150 < sum(found == {"val"} for found in splits.values()) < 250
    assert splits["test"] == {"test"}  # whatever its hash
    assert is_validation("video3") == (splits["video3"] == {"val"})


def clips_of(counts, split="train"):
    return [Clip(f"{label}{n}", 0, label, split) for label, count in counts.items() for n in range(count)]


def test_chosen_classes(tmp_path):
    clips = clips_of({"b": 3, "a": 3, "d": 5, "c": 1}) + clips_of({"c": 9}, "test")
    assert choose_classes(clips, None) == ["a", "b", "c", "d"]
    assert choose_classes(clips, "2") == ["a", "d"]  # the most training clips, ties by name; test clips do not count
    assert choose_classes(clips, "3") == ["a", "b", "d"]
    (tmp_path / "list.txt").write_text("d\n\nb\n")
    assert choose_classes(clips, str(tmp_path / "list.txt")) == ["b", "d"]
    (tmp_path / "label.json").write_text('{"d": 0, "a": 1}')
    assert choose_classes(clips, str(tmp_path / "label.json")) == ["d", "a"]


@pytest.mark.parametrize(
    ("classes", "content", "message"),
    [
        ("5", None, "classes is 5; choose 2 to 4, the number of labels"),
        ("1", None, "classes is 1; choose 2 to 4, the number of labels"),
        ("many.txt", None, "a number or a file with one label per line was expected"),
        ("list.txt", "a\ndog barkin\n", "'dog barkin', which the annotations do not; close names: 'dog barking'"),
        ("list.txt", "a\n", "1 labels"),
        ("label.json", '{"a": 1, "b": 2}', "0, 1, 2"),
        ("label.json", '{"a": "x", "b": 1}', "0, 1, 2"),
    ],
)
def test_bad_classes(tmp_path, monkeypatch, classes, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(classes).write_text(content)
    with pytest.raises(InputError, match=message):
        choose_classes(clips_of({"a": 2, "b": 1, "c": 1, "dog barking": 1}), classes)


# --- finding ----------------------------------------------------------------------------------------------------------


def test_clips_are_found_by_any_of_their_names(tmp_path):
    clips = [Clip(f"-v_{n}", 30, "dog", "train") for n in range(6)]
    first, second = tmp_path / "first", tmp_path / "second"
    (first / "deep/below").mkdir(parents=True)
    second.mkdir()
    for path in (
        first / "-v_0_000030.mp4",
        first / "deep/below/-v_1_30.WEBM",
        first / "-v_2_30_40.mkv",
        first / "-v_3_30000_40000.mp4",
        second / "-v_3_000030.mp4",  # the better name wins
        second / "-v_0_000030.mp4",  # the earlier source wins
        first / "-v_5.mp4",  # may be the whole video
        first / "-v_5_000030.txt",
    ):
        path.write_bytes(b"x")
    with tarfile.open(second / "some.tar", "w") as archive:
        entry = tarfile.TarInfo("any/-v_4_000030.mp4")
        entry.size = 3
        archive.addfile(entry, io.BytesIO(b"abc"))
    found = find_clips(clips, [first, second])
    assert not found.unusable
    names = {clip.id: str(copies[0]) for clip, copies in found.clips.items()}
    assert names == {
        "-v_0": str(first / "-v_0_000030.mp4"),
        "-v_1": str(first / "deep/below/-v_1_30.WEBM"),
        "-v_2": str(first / "-v_2_30_40.mkv"),
        "-v_3": str(second / "-v_3_000030.mp4"),
        "-v_4": str(second / "some.tar/any/-v_4_000030.mp4"),
    }
    copies = {clip.id: [str(copy) for copy in of[1:]] for clip, of in found.clips.items() if len(of) > 1}
    assert copies == {"-v_0": [str(second / "-v_0_000030.mp4")], "-v_3": [str(first / "-v_3_30000_40000.mp4")]}
    with found.clips[clips[4]][0].open() as file:
        assert file.read() == b"abc"
    assert set(find_clips(clips, [second / "some.tar"]).clips) == {clips[4]}
    (first / "-v_9_0_10000.mp4").write_bytes(b"x")  # from the first second on, in milliseconds
    assert find_clips([Clip("-v_9", 0, "dog", "train")], [first]).clips


def test_archives_that_cannot_be_read(tmp_path, caplog):
    clips = [Clip(f"v{n}", 1, "dog", "train") for n in range(3)]
    with tarfile.open(tmp_path / "half.tar", "w") as archive:
        for clip in clips:
            entry = tarfile.TarInfo(f"{clip.key}.mp4")
            entry.size = 20_000
            archive.addfile(entry, io.BytesIO(bytes(20_000)))
    whole = (tmp_path / "half.tar").read_bytes()
    (tmp_path / "half.tar").write_bytes(whole[:35_000])
    (tmp_path / "vggsound_00.tar.gz").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        found = find_clips(clips, [tmp_path])
    assert list(found.clips) == clips[:2]  # what lies before the damage
    with pytest.raises(MediaError, match="truncated"), found.clips[clips[1]][0].open():
        pass
    assert {Path(row["file"]).name: row["reason"] for row in found.unusable} == {
        "half.tar": "unreadable",
        "vggsound_00.tar.gz": "archive not opened",
    }
    assert f"2 files in {tmp_path} cannot be read, for instance" in caplog.text


def test_nothing_to_find(tmp_path):
    with pytest.raises(InputError, match="no clip of the annotations is in"):
        find_clips([Clip("a", 1, "dog", "train")], [tmp_path])
    with pytest.raises(InputError, match="there is no folder or tar file"):
        find_clips([Clip("a", 1, "dog", "train")], [tmp_path / "gone"])


# --- sound ------------------------------------------------------------------------------------------------------------


def test_sound_is_normalised_then_padded():
    sound = np.linspace(-0.2, 0.1, 2000, dtype=np.float32)
    result = normalised(sound, 3000)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result[:2000], sound / 0.22, rtol=1e-5)
    assert not result[2000:].any()
    assert len(normalised(sound, 1500)) == 1500


def test_sound_of_no_use():
    with pytest.raises(MediaError, match="silent"), np.errstate(all="raise"):
        normalised(np.zeros(2000, np.float32), 3000)
    with pytest.raises(MediaError, match="too short"):
        normalised(np.ones(1023, np.float32), 3000)
    assert len(normalised(np.ones(1024, np.float32), 3000)) == 3000


# --- preparation ------------------------------------------------------------------------------------------------------


def test_what_is_prepared(world):
    _, table, out = world
    meta = json.loads((out / "meta.json").read_text())
    assert meta["labels"] == sorted(CLASSES)
    assert meta["clips"] == {"train": 48, "val": 16, "test": 16}
    rows = rows_of(out / "index.csv")
    annotated = {clip.key: clip for clip in read_annotations(table)}
    assert len(rows) == 80
    assert len({row["key"] for row in rows}) == 80
    assert any(row["id"].startswith("-") for row in rows)
    for row in rows:
        clip = annotated[row["key"]]
        assert (row["label"], row["split"]) == (clip.label, clip.split)
        assert meta["labels"][int(row["class"])] == row["label"]
    # Neither parts nor pieces are left.
    names = set(contents(out))
    assert names == {"meta.json", "index.csv", "skipped.csv", "classes.csv", *meta["shards"]}


def test_what_is_skipped_and_why(world):
    out = world[2]
    skipped = rows_of(out / "skipped.csv")
    assert {row["id"]: row["reason"] for row in skipped} == FAULTS
    assert all(bool(row["file"]) == (row["reason"] != "missing") for row in skipped)
    counts = rows_of(out / "classes.csv")
    assert len(counts) == 12
    of_dogs = {row["split"]: row for row in counts if row["label"] == "dog barking"}
    lost = Counter((row["split"], row["reason"] == "missing") for row in skipped)
    for split in ("train", "val", "test"):
        row = {name: int(value) for name, value in of_dogs[split].items() if value.isdigit()}
        assert (row["missing"], row["broken"]) == (lost[split, True], lost[split, False])
        assert row["annotated"] == row["usable"] + row["missing"] + row["broken"]
    assert all(row["annotated"] == row["usable"] for row in counts if row["label"] != "dog barking")


def test_shards_are_plain_tars_of_consecutive_members(world):
    out = world[2]
    rows = {row["key"]: row for row in rows_of(out / "index.csv")}
    seen = []
    for name in json.loads((out / "meta.json").read_text())["shards"]:
        with tarfile.open(out / name) as archive:
            for member in archive:
                key, _, end = member.name.partition(".")
                if not seen or seen[-1] != key:
                    seen.append(key)
                    expected = ["00.jpg", "01.jpg", "02.jpg", "03.jpg", "wav", "json"]
                    assert int(rows[key]["offset"]) == member.offset
                assert end == expected.pop(0)
                content = archive.extractfile(member).read()
                label = rows[key]["label"]
                if end == "json":
                    assert json.loads(content)["label"] == label
                elif end == "wav":
                    assert content[:4] == b"RIFF"
                    assert len(content) == 44 + 2 * 16_000
                else:
                    picture = np.asarray(Image.open(io.BytesIO(content)), dtype=float)
                    assert picture.shape == (32, 32, 3)
                    # The square's colour stands out from the grey ground.
                    strongest = np.argmax(np.abs(picture - 110).mean((0, 1)) * (np.array(CLASSES[label][1]) != 60))
                    assert CLASSES[label][1][strongest] > 110
    assert sorted(seen) == sorted(rows)  # every clip once, its members together


def test_two_machines_and_one_give_the_same(world, tmp_path, capsys):
    clips, table, once = world
    out = tmp_path / "out"
    common = ["prepare", "vggsound", str(clips), str(out), "--csv", str(table), *OPTIONS]
    for part in ("1/2", "0/2"):
        main([*common, "--shard", part])
    assert "part 0 of 2 is complete" in capsys.readouterr().out
    main([*common, "--merge"])
    printed = capsys.readouterr().out
    assert "80 clips of 4 classes (48 train, 16 val, 16 test)" in printed
    assert "2 missing" in printed
    assert contents(out) == contents(once)
    main(common)
    assert "is complete already" in capsys.readouterr().out


def test_parts_are_verified(world, tmp_path):
    clips, table, once = world
    out = tmp_path / "out"
    arguments = {"csv": table, "settings": SMALL, "quiet": True}
    with pytest.raises(InputError, match="no complete part to merge"):
        prepare(clips, out, merge=True, **arguments)
    prepare(clips, out, shard=(1, 2), **arguments)
    with pytest.raises(InputError, match="lacks part 0 of 2"):
        prepare(clips, out, merge=True, **arguments)
    prepare(clips, out, shard=(0, 2), **arguments)
    with pytest.raises(InputError, match="was prepared with size 32, now it is 40"):
        prepare(clips, out, merge=True, csv=table, settings=Settings(4, 40, 90, 1.0, 10), quiet=True)
    with pytest.raises(InputError, match="was prepared with annotations '88 clips"):
        prepare(clips, out, merge=True, classes="3", **arguments)
    victim = next((out / "part-1-of-2").glob("*.tar"))
    whole = victim.read_bytes()
    for damaged in (whole[:-512], whole[:100] + b"?" + whole[101:]):
        victim.write_bytes(damaged)
        with pytest.raises(InputError, match="not as it was written"):
            prepare(clips, out, merge=True, **arguments)
    listed = victim.with_name(f"{victim.name}.json")
    content = json.loads(listed.read_text())
    listed.write_text(json.dumps({name: value for name, value in content.items() if name != "size"}))
    with pytest.raises(InputError, match=f"{listed.name} is not of this preparation"):
        prepare(clips, out, merge=True, **arguments)
    listed.write_text(json.dumps(content))
    victim.unlink()
    with pytest.raises(InputError, match=f"has no {victim.name}"):
        prepare(clips, out, merge=True, **arguments)
    assert not (out / "meta.json").exists()
    victim.write_bytes(whole)
    listing = victim.with_name(f"{victim.name}.json")
    kept = listing.read_bytes()
    listing.write_text(json.dumps({**json.loads(kept), "rows": []}))
    with pytest.raises(InputError, match="lists other clips"):
        prepare(clips, out, merge=True, **arguments)
    listing.write_bytes(kept)
    # A merge that was interrupted while it moved shards goes on.
    victim.rename(out / victim.name)
    prepare(clips, out, merge=True, **arguments)
    assert contents(out) == contents(once)


def test_killed_preparation_goes_on(world, tmp_path):
    clips, table, once = world
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mfh", "prepare", "vggsound", clips, out, "--csv", table, *OPTIONS]
    process = subprocess.Popen([*map(str, command), "--processes", "1"], start_new_session=True)
    deadline = time.monotonic() + 600
    while not (first := list(out.glob("part-0-of-1/.pieces-*/*.json"))) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert first, "nothing was made in time"
    before = {path: path.stat().st_mtime_ns for path in out.glob("part-0-of-1/.pieces-*/*.tar")}
    assert len(before) < 10, "the kill came too late to test anything"
    assert not (out / "meta.json").exists()
    prepare(clips, out, csv=table, settings=SMALL, processes=1, quiet=True)
    assert contents(out) == contents(once)
    made_first = {path.name.partition(".tar")[0] + ".tar" for path in first}
    for path, stamp in before.items():  # what was finished was not made again
        if path.name in made_first:
            assert (out / path.name).stat().st_mtime_ns == stamp


def test_an_interrupt_while_shards_are_moved_costs_nothing(world, tmp_path, monkeypatch):
    clips, table, once = world
    out, copy, count = tmp_path / "out", shutil.copyfile, 0

    def interrupted(*arguments):
        nonlocal count
        count += 1
        if count in (1, 3):
            raise KeyboardInterrupt
        return copy(*arguments)

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            prepare(clips, out, csv=table, settings=SMALL, processes=0, quiet=True)
    prepare(clips, out, csv=table, settings=SMALL, processes=0, quiet=True)
    assert contents(out) == contents(once)


def test_other_clips_in_between_leave_nothing_behind(world, tmp_path, monkeypatch):
    clips, table, once = world
    fewer, out = tmp_path / "fewer", tmp_path / "out"
    shutil.copytree(clips, fewer)
    for path in [path for path in fewer.rglob("*") if path.is_file()][::2]:
        path.unlink()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", interrupted)  # when all shards are made, and one is moved
        for source in (clips, fewer):
            with pytest.raises(KeyboardInterrupt):
                prepare(source, out, csv=table, settings=SMALL, processes=0, quiet=True)
    prepare(clips, out, csv=table, settings=SMALL, processes=0, quiet=True)
    assert contents(out) == contents(once)


class Deadly(MediaFile):
    """A clip that takes the decoder's process with it."""

    def open(self):
        os._exit(1)


def test_a_clip_that_crashes_the_decoder_is_skipped(world, tmp_path, monkeypatch):
    clips, table, _ = world

    def found(wanted, sources):
        """One clip is deadly; another one has a deadly copy, which is tried first."""
        made = find_clips(wanted, sources)
        for victim, kept in zip(victims, ((), (made.clips[victims[1]][0],)), strict=True):
            made.clips[victim] = (Deadly(tmp_path / f"{victim.key}.mp4", stamp="stamp"), *kept)
        return made

    monkeypatch.setattr(preparation, "find_clips", found)
    (tmp_path / "few.csv").write_text("".join(few_rows(table)))
    victims = [clip for clip in read_annotations(tmp_path / "few.csv") if clip.split == "train"][:2]
    out = tmp_path / "out"
    prepare(clips, out, csv=tmp_path / "few.csv", settings=SMALL, processes=2, quiet=True)
    skipped = {(row["id"], row["reason"]) for row in rows_of(out / "skipped.csv")}
    assert skipped == {(clip.id, "crashes the decoder") for clip in victims}
    assert {row["key"] for row in rows_of(out / "index.csv")} >= {victims[1].key}
    assert victims[0].key not in {row["key"] for row in rows_of(out / "index.csv")}


def few_rows(table, label='"playing violin, fiddle"', other="dog barking"):
    """Lines of two classes without faulty clips: three of each split and class."""
    kept = Counter()
    for line in table.read_text().splitlines(keepends=True):
        video, _, rest = line.partition(",")
        split = "test" if rest.strip().endswith("test") else "val" if is_validation(video) else "train"
        place = (split, label in line)
        if (label in line or other in line) and video not in FAULTS and kept[place] < 3:
            kept[place] += 1
            yield line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the annotations are missing; give --csv"),
        (["--csv", "gone.csv"], "no file gone.csv"),
        (["--csv", "CSV", "--size", "1"], "size is 1"),
        (["--csv", "CSV", "--shard", "2/2"], "shard is 2/2; i/n with n from 1 to 100000"),
        (["--csv", "CSV", "--shard", "two"], "'two'; i/n was expected"),
        (["--csv", "CSV", "--shard", "0/2", "--merge"], "exclude each other"),
        (["--csv", "CSV", "--classes", "400"], "classes is 400; choose 2 to 4, the number of labels"),
        (["--csv", "CSV", "--also", "gone"], "no folder or tar file gone"),
    ],
)
def test_errors_end_in_one_line(world, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    arguments = [str(world[1]) if word == "CSV" else word for word in arguments]
    with pytest.raises(SystemExit) as end:
        main(["prepare", "vggsound", str(world[0]), "out", *arguments])
    assert end.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("mfh: ")
    assert printed.count("\n") == 1
    assert message in printed
    assert not Path("out/meta.json").exists()


def test_other_options_and_foreign_folders_are_refused(world, tmp_path):
    clips, table, once = world
    before = contents(once)
    with pytest.raises(InputError, match="was prepared with clips_per_shard 10, now it is 128"):
        prepare(clips, once, csv=table, quiet=True)
    assert contents(once) == before
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/love.txt").write_text("dear")
    with pytest.raises(InputError, match="was not prepared by mfh"):
        prepare(clips, tmp_path / "letters", csv=table, settings=SMALL, quiet=True)
    assert (tmp_path / "letters/love.txt").read_text() == "dear"
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["love.txt"]


def test_classes_without_usable_clips(tmp_path, caplog):
    """The rest goes on, with a warning; without any clip of a split there is nothing to go on with."""
    (tmp_path / "clips").mkdir()
    clips, table = write_vggsound(tmp_path / "world", train=2, val=1, test=1, faults=False)
    lines = table.read_text() + "gone1,1,never found,train\ngone2,1,never found,test\n"
    table.write_text(lines)
    with caplog.at_level(logging.WARNING):
        said = prepare(clips, tmp_path / "out", csv=table, settings=SMALL, processes=1, quiet=True)
    assert "1 classes have no usable training clip, for instance 'never found'" in caplog.text
    assert "of 5 classes" in said
    for clip in read_annotations(table):
        if clip.split == "val":
            (clips / clip_name(clip.id, clip.start)).unlink(missing_ok=True)
            (clips / "below" / clip_name(clip.id, clip.start)).unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"no usable val clip, see .*skipped\.csv"):
        prepare(clips, tmp_path / "other", csv=table, settings=SMALL, processes=1, quiet=True)
    assert not (tmp_path / "other/meta.json").exists()
    assert (tmp_path / "other/skipped.csv").exists()


def test_shards_follow_from_the_annotations_alone():
    clips = clips_of({"a": 7, "b": 7}) + clips_of({"a": 3}, "val") + clips_of({"b": 2}, "test")
    shards = plan(clips, 5)
    assert [shard.name for shard in shards] == [
        *(f"shard-train-0000{n}.tar" for n in range(3)),
        "shard-val-00000.tar",
        "shard-test-00000.tar",
    ]
    assert sorted(clip.key for shard in shards for clip in shard.clips) == sorted(clip.key for clip in clips)
    assert plan(clips[::-1], 5) == shards
    assert len({clip.label for clip in shards[0].clips}) == 2
    with pytest.raises(InputError, match="no val clips"):
        plan(clips_of({"a": 2}), 5)


# --- the authors' layout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_wav", [False, True])
def test_the_authors_layout(tmp_path, capsys, as_wav):
    write_strips(tmp_path / "data", as_wav=as_wav)
    roots = (
        [str(tmp_path / "data/Train"), "--test", str(tmp_path / "data/Test")] if as_wav else [str(tmp_path / "data")]
    )
    main(["prepare", "vggsound", roots[0], str(tmp_path / "out"), "--layout", "strips", *roots[1:], *OPTIONS])
    meta = json.loads((tmp_path / "out/meta.json").read_text())
    assert meta["labels"] == ["violin, fiddle", "a_dog_barks"]  # the authors' order
    skipped = rows_of(tmp_path / "out/skipped.csv")
    expected = {"-_Tr00_y": "unreadable"}
    if not as_wav:
        expected |= {"-_Tr01_y": "silent", "-_Tr02_y": "unreadable", "-_Tr03_y": "no sound"}
    assert {row["id"]: row["reason"] for row in skipped} == expected
    assert {row["label"] for row in skipped} == {"a_dog_barks"}
    assert meta["clips"]["test"] == 6
    assert sum(meta["clips"].values()) == 66 - len(expected)
    from mfh.tasks.vggsound import task

    made = task(data=tmp_path / "out")
    sound, video, label = made.test[0]
    assert sound.abs().max() == pytest.approx(1 / 1.1, abs=1e-4)
    assert not sound[8000:].any()
    assert video.shape == (4, 32, 32, 3)
    brightness = video[..., label].float().mean((1, 2))
    np.testing.assert_allclose(brightness, [4 * 7, 12 * 7, 20 * 7, 28 * 7], atol=6)


def test_bad_strips(tmp_path):
    with pytest.raises(InputError, match=r"has no label\.json"):
        prepare(tmp_path, tmp_path / "out", layout="strips", quiet=True)
    write_strips(tmp_path / "data")
    stray = tmp_path / "data/Train/video_jpg/x_cat_1.jpg"
    shutil.copy(next(stray.parent.glob("*.jpg")), stray)
    with pytest.raises(InputError, match=r"x_cat_1\.jpg is not named <id>_<label>_<n>\.jpg"):
        prepare(tmp_path / "data", tmp_path / "out", layout="strips", quiet=True)


def test_names_of_parts_take_no_memory(tmp_path):
    for name in ("part-0-of-99999", "part-1-of-99999999999999", "part-7-of-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text("{}")
    with pytest.raises(InputError, match=r"lacks part 1, 2, 3, 4, 5, \.\.\. of 99999"):
        preparation._complete_parts(tmp_path)


@pytest.mark.parametrize("owner", [strips, Image])
def test_strips_of_too_many_pixels_are_refused(tmp_path, monkeypatch, owner):
    Image.new("RGB", (8, 8 * strips.STRIP_FRAMES)).save(tmp_path / "strip.jpg")
    assert strips.read_strip(tmp_path / "strip.jpg", 2, 8).shape == (2, 8, 8, 3)
    monkeypatch.setattr(owner, "MOST_PIXELS" if owner is strips else "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(MediaError, match="too large"):
        strips.read_strip(tmp_path / "strip.jpg", 2, 8)
