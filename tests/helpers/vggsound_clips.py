"""A small VGGSound in the official layout: real clips whose class can be heard and seen, and all that goes wrong.

A class is a pitch and a colour. Labels have commas, ids begin with "-", some clips are missing or broken.
"""

import csv
import json
import tarfile
from pathlib import Path

import numpy as np

from media import jpeg, tone, write_mp4, write_wav
from mfh.tasks.vggsound.annotations import is_validation

#: label -> (pitch in Hz, colour)
CLASSES = {
    "playing violin, fiddle": (500.0, (220, 60, 60)),
    "dog barking": (1000.0, (60, 220, 60)),
    "people eating, crispy": (2000.0, (60, 60, 220)),
    "-hyphened sound": (3500.0, (200, 200, 60)),
}


def clip_name(video, start):
    return f"{video}_{start:06d}.mp4"


def video_id(number, split, rng):
    """An id that falls into this split; ids begin and end with all there is."""
    while True:
        video = f"{'-_aZ'[number % 4]}{rng.integers(10**9):09d}{'xY-_'[number // 4 % 4]}"
        if split == "test" or is_validation(video) == (split == "val"):
            return video


def write_clip(path, label, rng, *, seconds=1.0, picture_noise=40.0, sound=True, picture=True, silent=False):
    pitch, colour = CLASSES[label]
    frames, wave = None, None
    if picture:
        base = np.full((10, 48, 64, 3), 110.0)
        top, left = rng.integers(0, 24), rng.integers(0, 40)
        for number in range(10):
            base[number, top : top + 24, left + number : left + number + 24] = colour
        frames = np.clip(base + picture_noise * rng.standard_normal(base.shape), 0, 255).astype(np.uint8)
    if sound:
        wave = np.zeros(int(48_000 * seconds), np.float32) if silent else tone([pitch], seconds, rng, noise=0.3)
    write_mp4(path, frames, wave, frame_rate=10)


def write_vggsound(folder, *, train=12, val=4, test=4, seed=0, faults=True, **options):
    """Clips and vggsound.csv; returns (clips folder, csv).

    Every class has so many usable clips, those for validation among the csv's training clips. With `faults` there are
    also missing and broken ones, clips in a folder below, in a tar, and under other names.
    """
    rng = np.random.default_rng(seed)
    clips, rows, number = Path(folder) / "clips", [], 0
    (clips / "below").mkdir(parents=True)
    packed = []
    for label in CLASSES:
        for split, count in (("train", train), ("val", val), ("test", test)):
            for _ in range(count):
                number += 1
                video, start = video_id(number, split, rng), int(rng.integers(0, 300))
                rows.append((video, start, label, "test" if split == "test" else "train"))
                path = clips / ("below" if number % 5 == 0 else "") / clip_name(video, start)
                if faults and number == 3:
                    path = clips / f"{video}_{start}.mp4"
                if faults and number == 4:
                    path = clips / f"{video}_{start * 1000}_{(start + 10) * 1000}.mp4"
                write_clip(path, label, rng, **options)
                if faults and number % 7 == 0:
                    packed.append(path)
    if faults:
        with tarfile.open(clips / "more.tar", "w") as archive:
            for path in packed:
                archive.add(path, f"some/folder/{path.name}")
                path.unlink()
        rows += write_faulty(clips, rng)
    table = Path(folder) / "vggsound.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return clips, table


#: video id -> why it is skipped
FAULTS = {
    "-gone000000": "missing",
    "-gone000001": "missing",
    "-text000000": "unreadable",
    "-half000000": "truncated",
    "-silent0000": "silent",
    "-nosound000": "no sound",
    "-nopicture0": "no picture",
    "-tooshort00": "too short",
}


def write_faulty(clips, rng):
    label = "dog barking"
    for video, reason in FAULTS.items():
        path = clips / clip_name(video, 7)
        if reason == "unreadable":
            path.write_text("this is no clip\n")
        elif reason == "truncated":
            write_clip(path, label, rng)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        elif reason == "too short":
            write_clip(path, label, rng, seconds=0.02)
        elif reason != "missing":
            options = {"silent": {"silent": True}, "no sound": {"sound": False}, "no picture": {"picture": False}}
            write_clip(path, label, rng, **options[reason])
    return [(video, 7, label, "train" if number % 2 else "test") for number, video in enumerate(FAULTS)]


def write_strips(root, *, as_wav=False):
    """The authors' layout in Train and Test; some training clips are broken (not all kinds as WAV)."""
    rng = np.random.default_rng(0)
    labels = {"violin, fiddle": 0, "a_dog_barks": 1}
    for split, count in (("Train", 30), ("Test", 3)):
        for folder in ("video_jpg", "audio" if as_wav else "audio_npy"):
            (root / split / folder).mkdir(parents=True)
        for label, index in labels.items():
            for number in range(count):
                stem = f"-_{split[:2]}{number:02d}_{'xy'[index]}_{label}_{number}"
                write_strip(root / split, stem, index, rng, as_wav)
    (root / "Train/label.json").write_text(json.dumps(labels))
    train = root / "Train"
    (train / "video_jpg/-_Tr00_y_a_dog_barks_0.jpg").write_bytes(jpeg(np.zeros((50, 8, 3), np.uint8)))
    if not as_wav:
        np.save(train / "audio_npy/-_Tr01_y_a_dog_barks_1.npy", np.zeros(5000, np.float32))
        np.save(train / "audio_npy/-_Tr02_y_a_dog_barks_2.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        (train / "audio_npy/-_Tr03_y_a_dog_barks_3.npy").unlink()


def write_strip(root, stem, index, rng, as_wav):
    frames = np.zeros((32, 24, 24, 3), np.uint8)
    frames[..., index] = (np.arange(32) * 7)[:, None, None]
    (root / "video_jpg" / f"{stem}.jpg").write_bytes(jpeg(frames.reshape(32 * 24, 24, 3)))
    sound = 0.3 * rng.standard_normal(8000).astype(np.float32)
    if as_wav:
        write_wav(root / "audio" / f"{stem}.wav", np.clip(sound, -1, 1), 16_000)
    else:
        np.save(root / "audio_npy" / f"{stem}.npy", sound)
