"""RAVDESS: names, splits, networks, preparation of clips in the official layout, and the task's data."""

import csv
import filecmp
import functools
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import av
import librosa
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import mfh
from media import write_mp4, write_wav
from mfh import files
from mfh.cli.commands import main
from mfh.cli.options import PrepareRavdess
from mfh.errors import InputError
from mfh.saliency.masks import ChannelMask
from mfh.studies.networks import load_weights
from mfh.tasks import ravdess
from mfh.tasks.finding import find_task
from mfh.tasks.media import MediaFile
from mfh.tasks.ravdess import names, splits
from mfh.tasks.ravdess import prepare as preparation
from mfh.tasks.ravdess.clips import Clip
from mfh.tasks.ravdess.data import load_splits
from mfh.tasks.ravdess.networks import LAYER, WIDE_LAYER, audio_network, image_network
from mfh.tasks.ravdess.prepare import Features, Work, mfcc
from ravdess_clips import frames_of, sound_of, write_clips, write_features, zip_folder

# In this process unless processes matter: starting one costs more than a few small clips.
prepare = functools.partial(preparation.prepare, processes=0)
SMALL = Features(height=16, width=32, mfcc_frames=32)
ONE = "01-01-01-01-01-01"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Six actors, eight emotions: full-AV clips, for odd actors also songs; the sixth actor's in two files each."""
    folder = tmp_path_factory.mktemp("ravdess") / "raw"
    write_clips(folder, actors=5, seconds=0.4, size=(36, 64))
    write_clips(folder / "apart", actors=6, seconds=0.4, size=(36, 64), separate=True, seed=1)
    for actor in range(1, 6):
        shutil.rmtree(folder / "apart" / f"Actor_{actor:02}")
    return folder


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "data"
    assert prepare(raw, out, features=SMALL, processes=2).fresh
    return out


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- names and splits -------------------------------------------------------------------------------------------------


def test_names_are_taken_apart():
    found = names.parse("03-02-05-02-01-02-18.wav")
    assert found is not None
    assert (found.modality, found.clip, found.channel) == (names.SOUND, "02-05-02-01-02-18", "song")
    assert (found.emotion, found.intensity, found.statement, found.repetition, found.actor) == (
        "angry",
        "strong",
        1,
        2,
        18,
    )


@pytest.mark.parametrize(
    "name",
    [
        "01-01-01-01-01-01.mp4",
        "1-1-1-1-1-1-1.mp4",
        "01-01-09-01-01-01-01.mp4",
        "01-01-02-01-01-01-25.mp4",
        "04-01-02-01-01-01-01.mp4",
        "01-01-01-02-01-01-01.mp4",  # a strong neutral
        "01-02-07-01-01-01-01.mp4",  # a disgusted song
        "01-01-02-01-01-01-01.wav",
        "03-01-02-01-01-01-01.mp4",
        "01-01-02-01-01-01-01 (copy).mp4",
    ],
)
def test_impossible_names_are_none(name):
    assert names.parse(name) is None


def test_actors_are_split_in_pairs_of_both_sexes():
    parts = splits.split_actors(range(1, 25))
    by_split = {name: [actor for actor, split in parts.items() if split == name] for name in splits.SPLITS}
    assert by_split == {"train": list(range(1, 17)), "val": [17, 18, 19, 20], "test": [21, 22, 23, 24]}
    small = splits.split_actors([1, 2, 5, 8, 9, 10, 11])  # 11 has no partner
    assert small == {1: "train", 2: "train", 5: "val", 8: "val", 9: "test", 10: "test", 11: "train"}
    with pytest.raises(InputError, match="actors 1, 2, 3, 5, 7 make 1"):
        splits.split_actors([1, 2, 3, 5, 7])


def clips_of(actors=6, per_emotion=6):
    return [
        {"id": f"{emotion}-{number}", "actor": 1 + number % actors, "emotion": emotion}
        for emotion in names.EMOTIONS
        for number in range(per_emotion)
    ]


def test_random_splits_hold_every_emotion_and_follow_the_seed():
    clips = clips_of(per_emotion=12)
    chosen = splits.assign(clips, "random", seed=1)
    for emotion in names.EMOTIONS:
        kinds = [chosen[clip["id"]] for clip in clips if clip["emotion"] == emotion]
        assert sorted(kinds) == ["test"] * 2 + ["train"] * 8 + ["val"] * 2
    assert chosen == splits.assign(clips, "random", seed=1) != splits.assign(clips, "random", seed=2)


def test_splits_by_table(tmp_path, caplog):
    table = tmp_path / "splits.csv"
    table.write_text("actor,split\n01,train\n2,val\n3,test\n9,train\n")
    with caplog.at_level(logging.WARNING, "mfh"):
        chosen = splits.assign(clips_of(), str(table), 0)
    assert {chosen[clip["id"]] for clip in clips_of() if clip["actor"] == 2} == {"val"}
    assert not [clip for clip in clips_of() if clip["actor"] == 4 and clip["id"] in chosen]
    assert "lists 1 actors that are not among the clips, for instance '9'" in caplog.text
    for content, said in (
        ("actor,split\n1,training\n", "line 2 has split 'training'"),
        ("actor,split\n1,train\n1,val\n", "puts actor '1' into train and, in line 3, into val"),
        ("name,split\nx,train\n", "neither a column 'id' nor 'actor'"),
        ("actor\n1\n", "no column 'split'"),
        ("actor,split\n1,train\n2,val\n", "no clip for test"),
    ):
        table.write_text(content)
        with pytest.raises(InputError, match=said):
            splits.assign(clips_of(), str(table), 0)


def test_a_split_without_some_emotion_is_told(caplog):
    clips = [clip for clip in clips_of() if not (clip["emotion"] == "sad" and clip["actor"] in (3, 4))]
    with caplog.at_level(logging.WARNING, "mfh"):
        splits.assign(clips, "actors", 0)
    assert "no val clip is sad" in caplog.text


# --- networks ---------------------------------------------------------------------------------------------------------


def test_networks_are_the_published_ones():
    audio, image = audio_network(-10.0, 85.0), image_network()
    shapes = {}
    for network, inputs in (
        (audio, torch.randn(2, 1, 40, 256)),
        (image, torch.randint(0, 256, (2, 3, 64, 128), dtype=torch.uint8)),
    ):
        for name in (WIDE_LAYER, LAYER):
            network.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, n=name: shapes.__setitem__(n, out.shape)
            )
        assert network(inputs).shape == (2, 8)
        assert (shapes[WIDE_LAYER], shapes[LAYER]) == ((2, 1024), (2, 128))
    assert audio.fc1.in_features == 12_544
    weights = {
        "audio": 32 * 49 + 64 * 32 * 25 + 128 * 64 * 25,
        "image": 32 * 3 * 9 + 64 * 32 * 9 + 128 * 64 * 9,
    }
    shared = 32 + 64 + 128 + 12_544 * 1024 + 1024 + 1024 * 128 + 128 + 128 * 8 + 8
    assert sum(p.numel() for p in audio.parameters()) == weights["audio"] + shared
    assert sum(p.numel() for p in image.parameters()) == weights["image"] + shared


def test_normalisation_happens_inside():
    image = image_network()
    bytes_ = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(image.normalize(bytes_), (bytes_ / 255 - mean) / std, rtol=1e-4, atol=1e-5)


def test_the_authors_weights_load_by_order(tmp_path):
    source, target = audio_network(0.0, 1.0), audio_network(-10.0, 85.0)
    tensors = [tensor for name, tensor in source.state_dict().items() if not name.startswith("normalize")]
    torch.save({f"module.layer{i}": tensor for i, tensor in enumerate(tensors)}, tmp_path / "teacher.pkl")
    load_weights(target, tmp_path / "teacher.pkl")
    assert torch.equal(target.fc3.weight, source.fc3.weight)
    assert float(1 / target.normalize.factor) == pytest.approx(85)  # the data's normalisation stays
    with pytest.raises(InputError, match="does not fit"):
        load_weights(image_network(), tmp_path / "teacher.pkl")
    torch.save(source, tmp_path / "whole.pkl")  # a pickled network could run code
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(target, tmp_path / "whole.pkl")


# --- preparation ------------------------------------------------------------------------------------------------------


def test_a_prepared_folder_holds_what_the_clips_hold(raw, prepared):
    manifest, meta = rows_of(prepared / "manifest.csv"), json.loads((prepared / "meta.json").read_text())
    assert list(manifest[0]) == ["id", "actor", "channel", "emotion", "intensity", "statement", "repetition", "split"]
    assert [row["id"] for row in manifest] == sorted(row["id"] for row in manifest)
    assert len(manifest) == 48
    assert {row["actor"]: row["split"] for row in manifest} == {
        "1": "train",
        "2": "train",
        "3": "val",
        "4": "val",
        "5": "test",
        "6": "test",
    }
    assert not rows_of(prepared / "skipped.csv")
    sounds, frames = (np.load(prepared / f"{name}.npy", mmap_mode="r") for name in ("mfcc", "frames"))
    assert (sounds.shape, sounds.dtype, frames.shape, frames.dtype) == ((48, 40, 32), "f4", (48, 1, 16, 32, 3), "u1")
    train = sounds[[row["split"] == "train" for row in manifest]]
    assert meta["statistics"]["mfcc_mean"] == pytest.approx(train.mean(dtype=np.float64), rel=1e-6)
    assert meta["statistics"]["mfcc_std"] == pytest.approx(train.std(dtype=np.float64), rel=1e-6)

    place = next(i for i, row in enumerate(manifest) if row["id"] == "01-04-01-01-01-06")
    sound, rate = librosa.core.audio.sf.read(raw / "apart" / "Actor_06" / f"03-{manifest[place]['id']}.wav")
    sound = librosa.util.fix_length(librosa.resample(sound, orig_sr=rate, target_sr=22_050), size=31 * 512)
    expected = librosa.feature.mfcc(y=sound, sr=22_050, n_mfcc=40)
    np.testing.assert_allclose(sounds[place], expected, atol=0.02)
    original = frames_of(3, 6, 4, (36, 64), np.random.default_rng([1, 6, 1, 3, 1, 1]))[2]
    resized = np.asarray(ImageOps.fit(Image.fromarray(original), (32, 16), Image.Resampling.BILINEAR))
    assert np.abs(frames[place, 0].astype(int) - resized).mean() < 4  # the codec loses a little


def test_zip_archives_are_the_same_as_what_was_in_them(raw, prepared, tmp_path):
    archives = tmp_path / "archives"
    archives.mkdir()
    for actor in range(1, 6):
        zip_folder(raw / f"Actor_{actor:02}", archives / f"Video_Speech_Actor_{actor:02}.zip")
    zip_folder(raw / "apart", archives / "rest.ZIP")
    (archives / "readme.txt").write_text("not a clip")
    prepare(archives, tmp_path / "out", features=SMALL)
    for name in ("manifest.csv", "mfcc.npy", "frames.npy"):
        assert filecmp.cmp(prepared / name, tmp_path / "out" / name, shallow=False), name


def spoil(folder: Path) -> dict[str, str]:
    """Every kind of unusable file; name -> reason."""
    rng = np.random.default_rng(5)
    actor = folder / "Actor_01"
    frames, sound = frames_of(1, 1, 4, (36, 64), rng), sound_of(1, 1, 0.4, rng)
    whole = next(actor.glob("01-*.mp4")).read_bytes()
    made = {
        "01-01-02-01-02-01-01.mp4": ("truncated", lambda p: p.write_bytes(whole[: len(whole) // 2])),
        "01-01-02-02-02-01-01.mp4": ("unreadable", lambda p: p.write_bytes(rng.bytes(4000))),
        "01-01-02-02-01-01-01.mp4": ("silent", lambda p: write_mp4(p, frames, 0 * sound, frame_rate=10)),
        "01-01-02-02-01-02-01.mp4": ("no sound", lambda p: write_mp4(p, frames, None, frame_rate=10)),
        "01-01-03-02-01-02-01.mp4": ("no picture", lambda p: write_mp4(p, None, sound)),
        "02-01-03-02-02-02-01.mp4": ("no partner", lambda p: write_mp4(p, frames, None, frame_rate=10)),
        "03-01-03-02-02-01-01.wav": ("no partner", lambda p: write_wav(p, sound)),
        "01-01-09-02-02-01-01.mp4": ("misnamed", lambda p: p.write_bytes(whole)),
        "01-01-08-02-02-02-01.mp4": ("duplicate", lambda p: p.write_bytes(whole)),  # another clip's content
        "02-01-05-02-02-02-01.mp4": ("no partner", lambda p: write_mp4(p, frames, None, frame_rate=10)),
        "03-01-05-02-02-02-01.wav": ("truncated", lambda p: (write_wav(p, sound), os.truncate(p, 5000))),
    }
    for name, (_, make) in made.items():
        make(actor / name)
    (folder / "copies").mkdir()
    copied = next((folder / "Actor_02").glob("01-*.mp4"))
    shutil.copy(copied, folder / "copies" / copied.name)
    (folder / "broken.zip").write_bytes(b"PK\x03\x04 no archive")
    return {name: reason for name, (reason, _) in made.items()} | {"broken.zip": "unreadable"}


def test_frames_and_voice_of_a_clip_are_of_one_stretch_and_errors_are_its_own(tmp_path, monkeypatch):
    shades = np.linspace(20, 220, 40).astype(np.uint8)  # 4 s, of which the coefficients describe 0.74 s
    voice = sound_of(1, 1, 4.0, np.random.default_rng(0))
    write_mp4(tmp_path / "long.mp4", np.stack([np.full((36, 64, 3), s) for s in shades]), voice, frame_rate=10)
    file = MediaFile.of(tmp_path / "long.mp4")
    Work(SMALL, "run")(Clip({"id": "long"}, (file,), (file,)), tmp_path / "good.npz")
    frames = np.load(tmp_path / "good.npz")["frames"]
    assert abs(frames.mean() - shades[3]) < 3
    for error in (OSError(22, "Invalid argument"), MemoryError(), IndexError("list")):

        def fail(*_arguments, error=error, **_options):
            raise error

        monkeypatch.setattr(av, "open", fail)
        Work(SMALL, "run")(Clip({"id": "bad"}, (file,), (file,)), tmp_path / "bad.npz")
        piece = np.load(tmp_path / "bad.npz")
        assert "frames" not in piece
        assert json.loads(bytes(piece["tried"])) == [[str(file), "unreadable"]]


def test_what_cannot_be_used_is_listed_with_the_reason(raw, prepared, tmp_path):
    folder = tmp_path / "raw"
    shutil.copytree(raw, folder)
    expected = spoil(folder)
    made = prepare(folder, tmp_path / "out", features=SMALL)
    skipped = {Path(row["file"]).name: row["reason"] for row in rows_of(tmp_path / "out" / "skipped.csv")}
    copies = [name for name, reason in skipped.items() if reason == "duplicate" and name not in expected]
    assert len(copies) == 1
    assert {name: reason for name, reason in skipped.items() if name not in copies} == expected
    assert made.skipped["no partner"] == 3
    for name in ("manifest.csv", "mfcc.npy", "frames.npy"):
        assert filecmp.cmp(prepared / name, tmp_path / "out" / name, shallow=False), name


def test_members_that_would_escape_are_refused(raw, tmp_path):
    archive = zip_folder(raw, tmp_path / "clips.zip")
    outside = "01-01-08-02-02-02-01.mp4"
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(f"../../{outside}", next(raw.rglob("01-*.mp4")).read_bytes())
        file.writestr(f"/{outside}", b"x")
    prepare(archive, tmp_path / "out", features=SMALL)
    skipped = [row for row in rows_of(tmp_path / "out" / "skipped.csv") if row["reason"] == "unsafe path"]
    assert len(skipped) == 2
    assert not list(tmp_path.parent.glob(outside))


def test_interrupted_at_random_moments_it_comes_out_the_same(raw, prepared, tmp_path):
    out = tmp_path / "out"
    sizes = ["--height", "16", "--width", "32", "--mfcc-frames", "32", "--quiet", "--processes", "2"]
    command = [sys.executable, "-m", "mfh", "prepare", "ravdess", str(raw), str(out), *sizes]
    random = np.random.default_rng(0)
    killed = 0
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wanted = len(list(out.glob(".pieces-*/*.npz"))) + int(random.integers(2, 12))
        end = time.monotonic() + 600
        while process.poll() is None and len(list(out.glob(".pieces-*/*.npz"))) < wanted and time.monotonic() < end:
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(random.choice([signal.SIGKILL, signal.SIGTERM]))
            process.wait(600)
            killed += not (out / "meta.json").exists()
        with pytest.raises(InputError, match="not prepared to the end"):
            load_splits(out)
    assert killed == 3
    done = len(list(out.glob(".pieces-*/*.npz")))
    assert 0 < done < 48
    assert prepare(raw, out, features=SMALL).fresh
    compared = filecmp.dircmp(prepared, out)
    assert not compared.left_only + compared.right_only + compared.diff_files + compared.funny_files
    for name in compared.common_files:
        assert filecmp.cmp(prepared / name, out / name, shallow=False), name


def test_a_full_disk_loses_nothing(raw, prepared, tmp_path, monkeypatch):
    out, write = tmp_path / "out", files.atomic_write

    def full(path, mode="w"):
        if Path(path).name == "frames.npy":
            raise OSError(28, "No space left on device", str(path))
        return write(path, mode)

    with monkeypatch.context() as patch:
        patch.setattr(files, "atomic_write", full)
        with pytest.raises(OSError, match="No space left"):
            prepare(raw, out, features=SMALL)
    assert len(list(out.glob(".pieces-*/*.npz"))) == 48
    prepare(raw, out, features=SMALL)
    assert filecmp.cmp(prepared / "frames.npy", out / "frames.npy", shallow=False)
    assert not list(out.glob(".pieces-*"))


def test_a_finished_folder_is_left_as_it_is(raw, prepared, tmp_path):
    before = (prepared / "meta.json").stat().st_mtime_ns
    assert not prepare(raw, prepared, features=SMALL).fresh
    with pytest.raises(InputError, match="prepared with height 16, now it is 18"):
        prepare(raw, prepared, features=Features(height=18, width=32, mfcc_frames=32))
    with pytest.raises(InputError, match="prepared with split 'actors', now it is 'random, seed 0'"):
        prepare(raw, prepared, features=SMALL, split="random")
    assert (prepared / "meta.json").stat().st_mtime_ns == before
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"'thesis.txt'.*was not prepared by mfh"):
        prepare(raw, tmp_path, features=SMALL)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layout": "tapes"}, "layout is 'tapes'"),
        ({"split": "nowhere.csv"}, "choose actors, random or an existing CSV"),
        ({"layout": "features"}, r"spa_dl.csv; the authors"),
    ],
)
def test_what_cannot_be_prepared(raw, tmp_path, arguments, said):
    with pytest.raises(InputError, match=said):
        prepare(raw, tmp_path / "out", features=SMALL, **arguments)
    assert not (tmp_path / "out").exists()


def test_a_source_without_clips_says_what_was_found(raw, tmp_path):
    with pytest.raises(InputError, match=r"there is no .*nowhere"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="it is empty"):
        prepare(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"1 other files, for instance .*notes.txt"):
        prepare(tmp_path / "in", tmp_path / "out")
    write_wav(tmp_path / "in" / "03-01-02-01-01-01-01.wav", np.ones(4000, np.float32) / 2)
    with pytest.raises(InputError, match=r"03-01-02-01-01-01-01.wav \(no partner\)"):
        prepare(tmp_path / "in", tmp_path / "out")
    with pytest.raises(InputError, match="actors 1 make 0"):
        prepare(raw / "Actor_01", tmp_path / "out", features=SMALL)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="height is 0"):
        Features(height=0)


def test_the_command_line_has_the_same_defaults():
    options = PrepareRavdess(source=Path("in"), out=Path("out"))
    assert Features(**vars(options.features)) == Features()


# --- the authors' layout ----------------------------------------------------------------------------------------------


@pytest.fixture
def authors(tmp_path):
    return write_features(tmp_path / "authors")


def test_the_authors_features(authors, tmp_path):
    prepare(authors, tmp_path / "out", layout="features", features=SMALL)
    parts, meta = load_splits(tmp_path / "out")
    assert meta["counts"] == {"train": 8, "val": 8, "test": 8}
    sound, frame, target = parts["val"][3]
    np.testing.assert_array_equal(sound[0], np.load(authors / "aud_features" / "clip13.npy"))
    assert frame.shape == (3, 16, 32)
    assert abs(float(frame.float().mean()) - 90) < 3
    assert int(target) == 3
    paper = ravdess.task(tmp_path / "out", preset="paper")
    assert paper.teacher is not None
    assert float(1 / paper.teacher().normalize.factor) == pytest.approx(85.66)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("a.npy,b.jpg\n", r"spa_val.csv line 1 is 'a.npy,b.jpg'; audio file, image file, label"),
        ("audio,image,label\na.npy,b.jpg,happy\n", "line 2 is 'a.npy,b.jpg,happy'"),
        ("", "lists no pair"),
        ("a.npy,b.jpg,11\n", "labels in .* go from 0 to 11"),
    ],
)
def test_wrong_tables_of_the_authors(authors, tmp_path, table, said):
    (authors / "data_file" / "spa_val.csv").write_text(table)
    with pytest.raises(InputError, match=said):
        prepare(authors, tmp_path / "out", layout="features", features=SMALL)


def test_missing_and_broken_features_are_listed(authors, tmp_path):
    (authors / "aud_features" / "clip00.npy").unlink()
    np.save(authors / "aud_features" / "clip01.npy", np.array([{}], dtype=object), allow_pickle=True)
    (authors / "vid_features" / "clip02.jpg").write_bytes(b"no picture")
    (authors / "aud_features" / "clip03.npy").write_bytes(b"PK\x03\x04 no archive")
    np.savez(authors / "aud_features" / "many.npz", a=np.zeros(3))
    (authors / "aud_features" / "many.npz").replace(authors / "aud_features" / "clip04.npy")
    prepare(authors, tmp_path / "out", layout="features", features=SMALL)
    skipped = {(Path(row["file"]).name, row["reason"]) for row in rows_of(tmp_path / "out" / "skipped.csv")}
    broken = {("clip00.npy", "missing"), ("clip02.jpg", "unreadable"), ("clip02.npy", "no partner")}
    for name in ("clip01", "clip03", "clip04"):
        broken |= {(f"{name}.npy", "unreadable"), (f"{name}.jpg", "no partner")}
    assert skipped == broken


def test_a_split_of_the_authors_may_not_be_empty(authors, tmp_path):
    for path in (authors / "vid_features").glob("clip0*"):
        path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="leaves no clip for train"):
        prepare(authors, tmp_path / "out", layout="features", features=SMALL)


# --- the task ---------------------------------------------------------------------------------------------------------


def test_the_task(prepared):
    task = ravdess.task(prepared)
    assert (task.layer, len(task.train), len(task.val), len(task.test)) == ("relu5", 16, 16, 16)
    sound, frame, target = task.train[5]
    assert (sound.shape, sound.dtype, frame.shape, frame.dtype) == (
        (1, 40, 32),
        torch.float32,
        (3, 16, 32),
        torch.uint8,
    )
    row = [row for row in rows_of(prepared / "manifest.csv") if row["split"] == "train"][5]
    assert names.EMOTIONS[int(target)] == row["emotion"]
    assert task.protocol.ratio == 0.5
    paper = ravdess.task(prepared, preset="paper")
    assert (paper.recipe.epochs, paper.protocol.ratio, paper.protocol.loss.label_weight) == (100, 0.75, 0)
    assert paper.protocol.loss.reduction == "mean"
    assert not find_task("ravdess").redrawn
    with pytest.raises(InputError, match="needs --data FOLDER"):
        find_task("ravdess").make(0)


def test_augmentation_varies_pictures_only(prepared):
    train = ravdess.task(prepared, augment=True).train
    plain = ravdess.task(prepared).train
    drawn = [train[3] for _ in range(12)]
    assert len({picture.numpy().tobytes() for _, picture, _ in drawn}) > 3
    assert all(torch.equal(sound, plain[3][0]) for sound, _, _ in drawn)
    assert ravdess.task(prepared, augment=True).val.augment is False


def test_data_travel_to_other_processes_without_a_copy(prepared):
    train = ravdess.task(prepared).train
    sent = pickle.dumps(train)
    assert len(sent) < 4000
    assert all(torch.equal(a, b) for a, b in zip(pickle.loads(sent)[2], train[2], strict=True))


def test_a_folder_that_was_changed_is_refused(prepared, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    manifest = (folder / "manifest.csv").read_text()

    def refused(said: str) -> None:
        with pytest.raises(InputError, match=said):
            load_splits(folder)

    (folder / "manifest.csv").write_text(manifest.replace("1,1,val", "1,1,train", 1))
    refused(r"actor \d is in")
    (folder / "manifest.csv").write_text(manifest + manifest.splitlines()[-1] + "\n")
    refused("and again in test")
    (folder / "manifest.csv").write_text("".join(manifest.splitlines(keepends=True)[:-1]))
    refused("for 47 clips")
    (folder / "manifest.csv").write_text(manifest)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format": 0}))
    refused("prepared in format 0")
    (folder / "meta.json").write_text(json.dumps(meta | {"kind": "vggsound"}))
    refused("prepared for 'vggsound'")
    for name, value in (("options", None), ("statistics", {"mfcc_mean": "x"}), ("arrays", {"mfcc": 3})):
        (folder / "meta.json").write_text(json.dumps(meta | {name: value}))
        refused(r"meta\.json has (options|mfcc_mean|mfcc) ")
    (folder / "meta.json").write_text(json.dumps(meta))
    os.truncate(folder / "frames.npy", 1000)
    refused("frames.npy cannot be read")
    with pytest.raises(InputError, match="is no folder"):
        load_splits(tmp_path / "nowhere")


def test_longer_sounds_are_cut_and_shorter_ones_end_in_silence():
    rng = np.random.default_rng(0)
    features = Features(mfcc_frames=8)
    long = rng.standard_normal(40_000).astype(np.float32)
    assert mfcc(long, features).shape == mfcc(long[:500], features).shape == (40, 8)
    np.testing.assert_array_equal(mfcc(long, features), mfcc(long[: 7 * 512], features))


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_steps_of_the_paper_share_a_run_folder(prepared, tmp_path, capsys):
    def run(*words: object) -> str:
        main([str(word) for word in (*words, "--epochs", 1, "--out", tmp_path / "run", "--quiet")])
        return capsys.readouterr().out

    run("align", "ravdess", "--data", prepared, "--preset", "paper")
    shown = run("saliency", "ravdess")  # data and preset as before
    assert "128 channels of layer relu5, 16 pairs, permutations: exact" in shown
    assert "1024 channels of layer relu4" in run("saliency", "ravdess", "--layer", "relu4", "--permutations", 1)
    assert "general-distance-0.75-relu5: validation accuracy" in run("distill", "ravdess", "--arm", "general")
    assert "specific-distance-0.5-relu5" in run("distill", "ravdess", "--arm", "specific", "--ratio", 0.5)
    made = {path.name for path in (tmp_path / "run" / "seed-0").iterdir()}
    assert {
        "aligned-teacher.safetensors",
        "saliency-distance.svg",
        "mask-general-distance-0.75-relu5.safetensors",
    } <= made
    for words, said in (
        (("distill", "ravdess", "--arm", "general", "--ratio", 2), "ratio is 2.0"),
        (("saliency", "ravdess", "--layer", "relu9"), "no layer 'relu9'"),
        (("pretrain", "ravdess", "--data", tmp_path / "nowhere"), "is no folder"),
    ):
        with pytest.raises(SystemExit):
            run(*words)
        assert said in capsys.readouterr().err


def test_the_authors_results_are_used_as_they_are(authors, tmp_path, capsys):
    prepare(authors, tmp_path / "data", layout="features", features=SMALL)
    torch.manual_seed(0)
    tensors = [t for name, t in audio_network(0.0, 1.0).state_dict().items() if not name.startswith("normalize")]
    torch.save({f"layer{i}": tensor for i, tensor in enumerate(tensors)}, tmp_path / "teacher_mod_1_overlap.pkl")
    scores = np.random.default_rng(0).permutation(128) / 127
    np.save(tmp_path / "overlap_tag_teacher_place5_repeat10.npy", scores)
    out = tmp_path / "run"
    main(
        [
            *("distill", "ravdess", "--data", str(tmp_path / "data"), "--preset", "paper", "--arm", "general"),
            *("--aligned-teacher-checkpoint", str(tmp_path / "teacher_mod_1_overlap.pkl")),
            *("--saliency", str(tmp_path / "overlap_tag_teacher_place5_repeat10.npy")),
            *("--epochs", "1", "--out", str(out), "--quiet"),
        ]
    )
    mask = ChannelMask.load(out / "seed-0" / "mask-general-distance-0.75-relu5.safetensors")
    assert mask.removed.tolist() == sorted(np.argsort(scores)[:96])
    assert "general-distance-0.75-relu5" in capsys.readouterr().out


def test_a_study_reports_what_the_clips_show(prepared, tmp_path):
    out = tmp_path / "run"
    result = mfh.study("ravdess", data=prepared, arms=["no-kd", "soft"], num_seeds=1, epochs=1, out=out, processes=1)
    assert not result.data_redrawn
    page = mfh.report(out).read_text()
    assert "RAVDESS, eight emotions" in page
    assert "training randomness only" in page


def test_a_damaged_piece_is_named(tmp_path):
    piece = tmp_path / "piece.npz"
    np.savez(piece, mfcc=np.zeros(100))
    whole = piece.read_bytes()
    for content in (b"", whole[:60], whole[:90] + b"?" + whole[91:], b"no piece"):
        piece.write_bytes(content)
        with pytest.raises(InputError, match=r"piece.npz is damaged .*remove it"):
            list(preparation._rows([piece], "mfcc"))
